"""Convolutions of 3×3 and 5×5 pixels by minimal filtering, compiled from ``winograd.c``: a third of the
multiplications.

The sum that a convolution is, regrouped: 36 multiplications give 4×4 outputs of a 3×3 filter, or 2×2 of a 5×5 one,
in place
of 144 or 100, 49 give 5×5 or 3×3 in place of 225, and 64 give 4×4 of a 5×5 filter in place of 400 (Winograd 1980;
Lavin and Gray 2015); the maps' size says which. Its rounding is two, four or eight times that of the plain sum in
float32, more than two decimal digits finer than bfloat16's.
PyTorch's own convolution is the reference implementation: ``kernel.use(False)``.

The same number of threads gives the same bits; PyTorch's own multiplications promise no more.
"""

import ctypes
import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alexnet.kernels import bf16_autocast, native_kernels

_FEWEST_OUTPUTS = 1024  # pixels of a batch's maps; the filters' transform has to pay for itself, where it is not kept
_CHUNK = 64  # tiles that a thread holds at a time: a multiple of 8


class _Geometry(NamedTuple):
    """What a convolution is, beside its numbers. Stride is 1."""

    padding: int
    groups: int
    relu: bool = False  # and what is negative in its output becomes 0


class Kept:
    """The transformed filters of a convolution that only answers, kept from one answer to the next.

    They are made anew where PyTorch has counted a change of the weights, or others took their place. What writes past
    PyTorch (through ``weight.data``) is not seen: no network that is trained has them.
    """

    def __init__(self) -> None:
        self._made: dict[int, tuple[Tensor, tuple[int, int], list[Tensor]]] = {}  # by the tiles' side

    def of(self, weight: Tensor, groups: int, tile: int) -> list[Tensor]:
        """:func:`transformed`, of each group's filters."""
        now, made = (weight.data_ptr(), 0 if weight.is_inference() else weight._version), self._made.get(tile)
        if made is None or made[0] is not weight or made[1] != now:  # two threads may both: they come to the same
            made = self._made[tile] = weight, now, _groups(weight, groups, tile)
        return made[2]


def fits(input: Tensor, weight: Tensor, stride: int, padding: int, groups: int, kept: Kept | None = None) -> bool:
    """Will :func:`convolve` compute this, and faster than PyTorch? Input [N, C, H, W], weight [K, C/groups, r, r]."""
    if not (
        native_kernels.in_use("winograd") and native_kernels.plain(input) and native_kernels.plain(weight) and _pays()
    ):
        return False
    kernels, channels, side, across = weight.shape
    if stride != 1 or side != across or side not in (3, 5) or channels % 16 or kernels // groups % 16:
        return False
    if not bf16_autocast.in_float32(input, weight):
        return False
    images, (height, width) = len(input), (size + 2 * padding - side + 1 for size in input.shape[2:])
    if min(height, width) < 7 - side:
        return False
    return images * height * width >= (_FEWEST_OUTPUTS if kept is None else 1)


def usable() -> bool:
    """Can this processor do it, and was it compiled? Compiles where that was not done."""
    native_kernels.build()
    return "winograd" in native_kernels.sources() and _pays()


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    groups: int = 1,
    relu: bool = False,
    kept: Kept | None = None,
) -> Tensor:
    """[N, C, H, W] -> [N, K, H', W'], channels-last in memory, H' = H + 2·padding − r + 1."""
    return bf16_autocast.compute(_Convolve, input, weight, bias, _Geometry(padding, groups, relu), kept)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry, kept: Kept | None
    ) -> Tensor:
        input = input.contiguous(memory_format=torch.channels_last)
        n, _, h, w = input.shape
        grown = 2 * geometry.padding - weight.shape[2] + 1
        size = (n, len(weight), h + grown, w + grown)
        out = torch.empty(size, memory_format=torch.channels_last)
        threads = torch.get_num_threads()
        shape = _shape(input, weight, out, geometry, threads)
        scratch = input.new_empty(threads, _room(shape))
        own = None if bias is None else bias.detach().contiguous()
        if kept is None:
            filters = _groups(weight, geometry.groups, shape.side)
        else:
            filters = kept.of(weight, geometry.groups, shape.side)
        for group, points in enumerate(filters):
            native_kernels.function("winograd", "winograd_forward")(
                ctypes.byref(shape),
                _part(input, group, shape.channels),
                native_kernels.at(points),
                _part(own, group, shape.kernels),
                _part(out, group, shape.kernels),
                native_kernels.at(scratch),
            )
        ctx.save_for_backward(input, weight, out if geometry.relu else None)
        ctx.geometry, ctx.biased = geometry, bias is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        input, weight, out = ctx.saved_tensors
        grad = grad.float().contiguous(memory_format=torch.channels_last)
        wanted_input, wanted_weight = ctx.needs_input_grad[:2]
        threads = min(torch.get_num_threads(), len(input))
        shape = _shape(input, weight, grad, ctx.geometry, threads)
        d_input = torch.empty_like(input) if wanted_input else None
        scratch = input.new_empty(threads, _room(shape))
        d_weight, d_bias = [], []
        for group, filters in enumerate(weight.detach().chunk(ctx.geometry.groups)):
            d_points = (
                input.new_zeros(threads, shape.side**2, shape.channels * shape.kernels) if wanted_weight else None
            )
            sums = input.new_zeros(threads, shape.kernels)
            turned = transformed(filters.transpose(0, 1), shape.side) if wanted_input else None
            native_kernels.function("winograd", "winograd_backward")(
                ctypes.byref(shape),
                _part(input, group, shape.channels),
                _part(grad, group, shape.kernels),
                _part(out, group, shape.kernels),
                native_kernels.at(turned),
                _part(d_input, group, shape.channels),
                native_kernels.at(d_points),
                native_kernels.at(sums),
                native_kernels.at(scratch),
            )
            d_bias.append(sums[0])
            if d_points is not None:
                d_weight.append(untransformed(d_points[0], filters))
        weights, biases = torch.cat(d_weight) if wanted_weight else None, torch.cat(d_bias) if ctx.biased else None
        return d_input, weights, biases, None, None


class _Shape(ctypes.Structure):
    """``Shape`` of ``winograd.c``."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "images",
            "height",
            "width",
            "channels",
            "x_stride",
            "out_height",
            "out_width",
            "kernels",
            "y_stride",
            "padding",
            "m",
            "side",
            "chunk",
            "relu",
            "threads",
        )
    ]
    channels: int
    kernels: int
    side: int
    chunk: int


def _shape(input: Tensor, weight: Tensor, out: Tensor, geometry: _Geometry, threads: int) -> _Shape:
    (n, c, h, w), (_, k, out_h, out_w) = input.shape, out.shape
    channels, kernels = c // geometry.groups, k // geometry.groups
    side = _tile(n, out_h, out_w, weight.shape[2])
    chunk = _CHUNK if channels * kernels <= 64 * 64 else 2 * _CHUNK
    tiles = _tiles(n, out_h, out_w, weight.shape[2], side)
    pieces = -(-tiles // chunk)
    if pieces > 1:  # as many for each thread
        pieces = -(-pieces // threads) * threads
    return _Shape(
        n,
        h,
        w,
        channels,
        c,
        out_h,
        out_w,
        kernels,
        k,
        geometry.padding,
        side + 1 - weight.shape[2],
        side,
        _rows(-(-tiles // pieces)),
        geometry.relu,
        threads,
    )


def _tile(images: int, height: int, width: int, side: int) -> int:
    """6, 7 or 8: the side of the tiles with which maps of this size need fewest multiplications. ``side``: that of a
    filter.

    A larger one only where it saves a tenth, since its rounding is twice that of the one before; 8 for filters of 5
    pixels alone: with those of 3 it hardly ever does.
    """
    best, fewest = 6, math.inf
    for tile in (6, 7, 8) if side == 5 else (6, 7):
        multiplications = _rows(_tiles(images, height, width, side, tile)) * tile**2
        if multiplications < 0.9 * fewest:
            best, fewest = tile, multiplications
    return best


def _tiles(images: int, height: int, width: int, side: int, tile: int) -> int:
    m = tile + 1 - side
    return images * -(-height // m) * -(-width // m)


def _rows(tiles: int) -> int:
    """Eight are multiplied together."""
    return -(-tiles // 8) * 8


def _room(shape: _Shape) -> int:
    """Numbers of a thread's own memory (``room`` of ``winograd.c``)."""
    return shape.side**2 * (shape.chunk * (shape.channels + shape.kernels) + 32)


def _groups(weight: Tensor, groups: int, tile: int) -> list[Tensor]:
    return [transformed(filters, tile) for filters in weight.detach().chunk(groups)]


def transformed(filters: Tensor, tile: int) -> Tensor:
    """Filters [K, C, r, r] -> their values at the points, [tile², K / width, C, width] (``u`` of ``winograd.c``)."""
    kernels, channels, side, _ = filters.shape
    width = _panel(kernels)
    packed = filters.reshape(kernels // width, width, channels, side * side).permute(3, 0, 2, 1)
    return _points(side, tile) @ packed.reshape(side * side, -1)


def untransformed(points: Tensor, filters: Tensor) -> Tensor:
    """The transpose of :func:`transformed`: gradients at the points [tile², ...] -> gradients of ``filters``."""
    kernels, channels, side, _ = filters.shape
    width, tile = _panel(kernels), math.isqrt(len(points))
    packed = (_points(side, tile).T @ points.view(tile**2, -1)).view(side, side, kernels // width, channels, width)
    return packed.permute(2, 4, 3, 0, 1).reshape(kernels, channels, side, side)


def _panel(columns: int) -> int:
    """Columns that are computed together: a row of them fits three registers."""
    return next(width for width in (48, 32, 16) if columns % width == 0)


@functools.cache
def _points(side: int, tile: int) -> Tensor:
    """[tile², r·r]: a filter's polynomial in both directions at the points, divided as Lagrange has it.

    0, ±3/4, ±3/2 and infinity for tiles of 6; 0, ±1/2, ±5/4 and ±5/2 for tiles of 7; 0, ±1/2, ±1, ±9/4 and infinity
    for tiles of 8.
    """
    pairs = {6: (0.75, 1.5), 7: (0.5, 1.25, 2.5), 8: (0.5, 1.0, 2.25)}[tile]
    values = [0.0, *(sign * value for value in pairs for sign in (1, -1))]
    rows = []
    for value in values:
        divisor = math.prod(value - other for other in values if other != value)
        rows.append([value**power / divisor for power in range(side)])
    if len(rows) < tile:  # infinity
        rows.append([0.0] * (side - 1) + [1.0])
    line = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(line, line).float()


def _part(maps: Tensor | None, group: int, wide: int) -> ctypes.c_void_p:
    """Where a group's channels begin in channels-last maps [N, C, H, W], or its numbers in a list [C]."""
    return ctypes.c_void_p(None if maps is None else maps.data_ptr() + group * wide * maps.element_size())


def _pays() -> bool:
    return bool(native_kernels.library("winograd").winograd_pays())
