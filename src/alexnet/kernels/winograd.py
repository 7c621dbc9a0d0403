"""Winograd convolutions, computed by ``winograd.c``: 3×3 and 5×5 filters with a third of the multiplications.

The sums of a convolution of stride 1 are regrouped (Winograd 1980; Lavin and Gray 2015). The size of the feature maps
decides which tile is used:

====  =======  ========  ===============  ================  ==============
Tile  Filter   Outputs   Multiplications  In place of       Rounding error
====  =======  ========  ===============  ================  ==============
6×6   3×3      4×4       36               144               2 times
6×6   5×5      2×2       36               100               2 times
7×7   3×3      5×5       49               225               4 times
7×7   5×5      3×3       49               225               4 times
8×8   5×5      4×4       64               400               8 times
====  =======  ========  ===============  ================  ==============

The rounding error is relative to that of the plain sum in float32; bfloat16's is more than a hundred times larger.
``torch.nn.functional.conv2d`` is the reference implementation.

The same number of threads gives the same bits, which is what PyTorch guarantees too.
"""

import ctypes
import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alexnet.kernels import backend, native_kernels
from alexnet.kernels.backend import FilterCache, first_derivative_only
from alexnet.kernels.native_kernels import pointer

_MIN_OUTPUTS = 1024  # pixels of a batch's feature maps from which transforming the filters pays, if not cached
_CHUNK = 64  # tiles that a thread computes together: a multiple of 8


class _Geometry(NamedTuple):
    """A convolution of stride 1."""

    padding: int
    groups: int
    relu: bool = False  # negative outputs become 0


def fits(
    input: Tensor, weight: Tensor, stride: int, padding: int, groups: int, cache: FilterCache | None = None
) -> bool:
    """Whether :func:`convolve` is faster than PyTorch here. Input [N, C, H, W], weight [K, C/groups, r, r]."""
    if not (native_kernels.in_use("winograd") and native_kernels.is_fast("winograd")):
        return False
    if not (native_kernels.is_cpu_tensor(input) and native_kernels.is_cpu_tensor(weight)):
        return False
    kernels, channels, size, width = weight.shape
    if stride != 1 or size != width or size not in (3, 5) or channels % 16 or kernels // groups % 16:
        return False
    if not backend.computes_in_float32(input, weight):
        return False
    out_height, out_width = (length + 2 * padding - size + 1 for length in input.shape[2:])
    if min(out_height, out_width) < 7 - size:
        return False
    return len(input) * out_height * out_width >= (_MIN_OUTPUTS if cache is None else 1)


def is_available() -> bool:
    """Whether this processor can compute Winograd convolutions and they are enabled. Compiles the kernels if needed."""
    native_kernels.build()
    return "winograd" in native_kernels.built() and native_kernels.is_fast("winograd")


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    groups: int = 1,
    relu: bool = False,
    cache: FilterCache | None = None,
) -> Tensor:
    """[N, C, H, W] -> [N, K, H', W'], channels-last in memory, H' = H + 2·padding − r + 1."""
    return backend.apply(_Convolve.apply, input, weight, bias, _Geometry(padding, groups, relu), cache)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry, cache: FilterCache | None
    ) -> Tensor:
        input = input.contiguous(memory_format=torch.channels_last)
        n, _, h, w = input.shape
        growth = 2 * geometry.padding - weight.shape[2] + 1
        out = torch.empty((n, len(weight), h + growth, w + growth), memory_format=torch.channels_last)
        threads = torch.get_num_threads()
        shape = _shape(input, weight, out, geometry, threads)
        scratch = input.new_empty(threads, _scratch_size(shape))
        own_bias = None if bias is None else bias.detach().contiguous()
        if cache is None:
            filters = _transformed_groups(weight, geometry.groups, shape.tile)
        else:
            reorder = functools.partial(_transformed_groups, groups=geometry.groups, tile=shape.tile)
            filters = cache.get(weight, ("winograd", shape.tile), reorder)
        for group, points in enumerate(filters):
            native_kernels.function("winograd", "winograd_forward")(
                ctypes.byref(shape),
                _group_pointer(input, group, shape.channels),
                pointer(points),
                _group_pointer(own_bias, group, shape.kernels),
                _group_pointer(out, group, shape.kernels),
                pointer(scratch),
            )
        ctx.save_for_backward(input, weight, out if geometry.relu else None)
        ctx.geometry, ctx.has_bias = geometry, bias is not None
        return out

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        input, weight, out = ctx.saved_tensors
        grad = grad.float().contiguous(memory_format=torch.channels_last)
        needs_input_grad, needs_weight_grad = ctx.needs_input_grad[:2]
        threads = min(torch.get_num_threads(), len(input))
        shape = _shape(input, weight, grad, ctx.geometry, threads)
        d_input = torch.empty_like(input) if needs_input_grad else None
        scratch = input.new_empty(threads, _scratch_size(shape))
        d_weight, d_bias = [], []
        for group, filters in enumerate(weight.detach().chunk(ctx.geometry.groups)):
            group_d_bias = input.new_zeros(threads, shape.kernels)
            size = (threads, shape.tile**2, shape.channels * shape.kernels)
            d_points = input.new_zeros(size) if needs_weight_grad else None
            transposed = transformed(filters.transpose(0, 1), shape.tile) if needs_input_grad else None
            native_kernels.function("winograd", "winograd_backward")(
                ctypes.byref(shape),
                _group_pointer(input, group, shape.channels),
                _group_pointer(grad, group, shape.kernels),
                _group_pointer(out, group, shape.kernels),
                pointer(transposed),
                _group_pointer(d_input, group, shape.channels),
                pointer(d_points),
                pointer(group_d_bias),
                pointer(scratch),
            )
            d_bias.append(group_d_bias[0])
            if d_points is not None:
                d_weight.append(filter_gradient(d_points[0], filters))
        weight_grad = torch.cat(d_weight) if needs_weight_grad else None
        return d_input, weight_grad, torch.cat(d_bias) if ctx.has_bias else None, None, None


class _Shape(ctypes.Structure):
    """``Shape`` of ``winograd.c``: one group of a convolution."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "x_stride")),
        *((name, ctypes.c_int64) for name in ("out_height", "out_width", "kernels", "y_stride")),
        *((name, ctypes.c_int64) for name in ("padding", "m", "tile", "chunk", "relu", "threads")),
    ]
    channels: int
    kernels: int
    tile: int
    chunk: int


def _shape(input: Tensor, weight: Tensor, out: Tensor, geometry: _Geometry, threads: int) -> _Shape:
    (n, c, h, w), (_, k, out_h, out_w), size = input.shape, out.shape, weight.shape[2]
    channels, kernels = c // geometry.groups, k // geometry.groups
    tile = _tile_size(n, out_h, out_w, size)
    tiles = _tile_count(n, out_h, out_w, size, tile)
    max_chunk = _CHUNK if channels * kernels <= 64 * 64 else 2 * _CHUNK
    chunks = -(-tiles // max_chunk)
    if chunks > 1:  # the same number for each thread
        chunks = -(-chunks // threads) * threads
    chunk = _round_up_to_8(-(-tiles // chunks))
    sizes = n, h, w, channels, c, out_h, out_w, kernels, k
    return _Shape(*sizes, geometry.padding, tile + 1 - size, tile, chunk, geometry.relu, threads)


def _tile_size(images: int, out_height: int, out_width: int, size: int) -> int:
    """6, 7 or 8: the tile size with the fewest multiplications for feature maps of this size and filters of ``size``.

    A larger tile must save a tenth of the multiplications, since it doubles the rounding error. Tiles of 8 are for
    filters of 5 pixels only; with filters of 3 pixels they rarely save that much.
    """
    best, fewest = 6, math.inf
    for tile in (6, 7, 8) if size == 5 else (6, 7):
        multiplications = _round_up_to_8(_tile_count(images, out_height, out_width, size, tile)) * tile**2
        if multiplications < 0.9 * fewest:
            best, fewest = tile, multiplications
    return best


def _tile_count(images: int, out_height: int, out_width: int, size: int, tile: int) -> int:
    m = tile + 1 - size
    return images * -(-out_height // m) * -(-out_width // m)


def _round_up_to_8(tiles: int) -> int:
    """The kernel multiplies eight tiles together."""
    return -(-tiles // 8) * 8


def _scratch_size(shape: _Shape) -> int:
    """float32 values of a thread's working memory (``scratch_size`` of ``winograd.c``)."""
    return shape.tile**2 * (shape.chunk * (shape.channels + shape.kernels) + 32)


def _transformed_groups(weight: Tensor, groups: int, tile: int) -> list[Tensor]:
    return [transformed(filters, tile) for filters in weight.detach().chunk(groups)]


def transformed(filters: Tensor, tile: int) -> Tensor:
    """Filters [K, C, r, r] -> their values at the points, [tile², K / width, C, width] (``u`` of ``winograd.c``)."""
    kernels, channels, size, _ = filters.shape
    width = _panel_width(kernels)
    packed = filters.reshape(kernels // width, width, channels, size * size).permute(3, 0, 2, 1)
    return _points(size, tile) @ packed.reshape(size * size, -1)


def filter_gradient(d_points: Tensor, filters: Tensor) -> Tensor:
    """The transpose of :func:`transformed`: gradients at the points [tile², ...] -> gradients of ``filters``."""
    kernels, channels, size, _ = filters.shape
    width, tile = _panel_width(kernels), math.isqrt(len(d_points))
    packed = (_points(size, tile).T @ d_points.view(tile**2, -1)).view(size, size, kernels // width, channels, width)
    return packed.permute(2, 4, 3, 0, 1).reshape(kernels, channels, size, size)


def _panel_width(kernels: int) -> int:
    """Filters that are computed together: a row of them fits three registers."""
    return next(width for width in (48, 32, 16) if kernels % width == 0)


@functools.cache
def _points(size: int, tile: int) -> Tensor:
    """[tile², r·r]: evaluates a filter, as a polynomial in both directions, at the points, with Lagrange's divisors.

    The points are 0, ±3/4, ±3/2 and infinity for tiles of 6; 0, ±1/2, ±5/4 and ±5/2 for tiles of 7; 0, ±1/2, ±1, ±9/4
    and infinity for tiles of 8.
    """
    pairs = {6: (0.75, 1.5), 7: (0.5, 1.25, 2.5), 8: (0.5, 1.0, 2.25)}[tile]
    values = [0.0, *(sign * value for value in pairs for sign in (1, -1))]
    rows = []
    for value in values:
        divisor = math.prod(value - other for other in values if other != value)
        rows.append([value**power / divisor for power in range(size)])
    if len(rows) < tile:  # infinity
        rows.append([0.0] * (size - 1) + [1.0])
    matrix = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(matrix, matrix).float()


def _group_pointer(tensor: Tensor | None, group: int, channels: int) -> ctypes.c_void_p:
    """Address of a group's first channel in channels-last feature maps [N, C, H, W] or in a vector [C]."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr() + group * channels * tensor.element_size())
