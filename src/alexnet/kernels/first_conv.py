"""The first convolution of a network, fused with the ReLU, LRN and max pool after it, computed by ``first_conv.c``.

It has few input channels (colors), needs no gradient for the images, and makes the largest feature maps of a network:
fused, these never leave a core's cache. PyTorch operations are the reference implementation.


A first convolution with a stride, as a convolution of stride 1 on blocks of pixels: the same sums, reordered.

Example: 224×224 pixels of 3 colors become 57×57 blocks of 4×4 pixels with 48 channels; filters of 11×11, padded with
zeros to 12×12, become filters of 3×3 blocks. A GPU's tensor cores multiply 48 channels at once; 3 channels leave most
of them idle. ``torch.nn.functional.conv2d`` is the reference implementation.
"""

import ctypes
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.kernels import backend, native_kernels
from alexnet.kernels.backend import first_derivative_only, is_traced
from alexnet.kernels.native_kernels import pointer
from alexnet.kernels.pool_norm import NO_NORM, ChannelNorm, PoolGeometry

_MAX_CHANNELS = 4
_MAX_OUTPUTS = 1 << 19  # values of an image's feature maps: two megabytes, a core's second-level cache
_MAX_FILTER_SIZE = 1 << 12  # values of a filter: first_conv.c keeps the offset of each on the stack


class ConvGeometry(NamedTuple):
    """A convolution's stride, padding and output size."""

    stride: int
    padding: int
    out_height: int
    out_width: int


_NO_POOL = PoolGeometry(0, 1, 0, 0)


def fits(input: Tensor, weight: Tensor, geometry: ConvGeometry, groups: int) -> bool:
    """Whether :func:`convolve` computes this, and faster than PyTorch.

    Args:
        input: [N, C, H, W] without a gradient, float32, or under an autocast that
            :mod:`alexnet.kernels.backend` computes.
        weight: [K, C, r, r].
        geometry: Of the convolution.
        groups: Of the convolution; must be 1.
    """
    if not native_kernels.in_use("first_conv") or input.requires_grad:
        return False
    if not (native_kernels.is_cpu_tensor(input) and native_kernels.is_cpu_tensor(weight)):
        return False
    if not backend.computes_in_float32(input, weight):
        return False
    kernels, channels, height, width = weight.shape
    if groups != 1 or height != width or channels > _MAX_CHANNELS or kernels % 16 or not len(input):
        return False
    if height * width * channels > _MAX_FILTER_SIZE:
        return False
    outputs = geometry.out_height * geometry.out_width * kernels
    return geometry.out_width >= 8 and outputs <= _MAX_OUTPUTS and native_kernels.is_fast("first_conv")


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    pool: PoolGeometry | None,
    relu: bool,
    norm: ChannelNorm | None = None,
) -> Tensor:
    """Convolution, then ReLU, LRN and max pool where they are requested.

    Args:
        input: Images [N, C, H, W].
        weight: Filters [K, C, r, r].
        bias: [K], or None.
        geometry: Of the convolution.
        pool: The max pool, or None.
        relu: Whether negative values become 0.
        norm: LRN between ReLU and pool, or None; needs a pool.

    Returns:
        [N, K, H', W'], channels-last in memory.
    """
    assert norm is None or pool is not None
    pool = (pool or _NO_POOL)._replace(relu=relu)
    return backend.apply(_FirstConv.apply, input, weight, bias, geometry, pool, norm or NO_NORM)


class _Shape(ctypes.Structure):
    """``Shape`` of ``first_conv.c``."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "threads", "height", "width", "channels", "kernels")),
        *((name, ctypes.c_int64) for name in ("size", "stride", "padding")),
        *((name, ctypes.c_int64) for name in ("out_height", "out_width", "out_channels")),
        *((name, ctypes.c_int64) for name in ("pooled_height", "pooled_width", "pool", "pool_stride", "relu")),
        *((name, ctypes.c_int64) for name in ("towers", "window")),
        *((name, ctypes.c_float) for name in ("weight", "k")),
    ]


def _shape(
    input: Tensor, weight: Tensor, geometry: ConvGeometry, pool: PoolGeometry, norm: ChannelNorm, threads: int
) -> _Shape:
    (n, c, h, w), kernels = input.shape, len(weight)
    convolution = weight.shape[2], geometry.stride, geometry.padding, geometry.out_height, geometry.out_width, kernels
    pooling = pool.out_height, pool.out_width, pool.size, pool.stride, pool.relu
    return _Shape(n, threads, h, w, c, kernels, *convolution, *pooling, *norm)


def _scratch(shape: _Shape, threads: int) -> Tensor:
    return torch.empty(threads, native_kernels.scratch_size("first_conv", "first_conv_scratch_size", shape))


class _FirstConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: ConvGeometry,
        pool: PoolGeometry,
        norm: ChannelNorm,
    ) -> Tensor:
        input = input.contiguous(memory_format=torch.channels_last)
        threads, (kernels, n) = torch.get_num_threads(), (len(weight), len(input))
        shape = _shape(input, weight, geometry, pool, norm, threads)
        output = pool if pool.size else geometry
        out_shape = (n, kernels, output.out_height, output.out_width)
        out = torch.empty(out_shape, memory_format=torch.channels_last)
        argmax = torch.empty(out.numel() if pool.size else 0, dtype=torch.uint8)
        save_norm_input = norm.window and any(ctx.needs_input_grad)
        norm_input = torch.empty(n * geometry.out_height * geometry.out_width * kernels) if save_norm_input else None
        packed, own_bias = _packed(weight.detach()), None if bias is None else bias.detach().contiguous()
        scratch = _scratch(shape, threads)
        native_kernels.function("first_conv", "first_conv_forward")(
            ctypes.byref(shape), *map(pointer, (input, packed, own_bias, out, argmax, norm_input, scratch))
        )
        ctx.save_for_backward(input, weight, argmax, out if pool.relu and not pool.size else None, norm_input)
        ctx.geometry, ctx.has_bias = (geometry, pool, norm), bias is not None
        return out

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor | None, None, None, None]:
        input, weight, argmax, out, norm_input = ctx.saved_tensors
        grad = grad.float().contiguous(memory_format=torch.channels_last)
        threads = min(torch.get_num_threads(), len(input))
        (geometry, pool, norm), (kernels, channels, size, _) = ctx.geometry, weight.shape
        shape = _shape(input, weight, geometry, pool, norm, threads)
        filter_size, width = size * size * channels, _panel_width(kernels)
        padded_size = -(-filter_size // 8) * 8
        d_packed, d_bias = torch.zeros(threads, kernels * padded_size), torch.zeros(threads, kernels)
        scratch = _scratch(shape, threads)
        native_kernels.function("first_conv", "first_conv_backward")(
            ctypes.byref(shape), *map(pointer, (input, grad, argmax, out, norm_input, d_packed, d_bias, scratch))
        )
        panels = d_packed[0].view(kernels // width, padded_size, width)[:, :filter_size]
        d_weight = panels.reshape(-1, size, size, channels, width).permute(0, 4, 3, 1, 2).reshape(weight.shape)
        return None, d_weight, d_bias[0] if ctx.has_bias else None, None, None, None


def _packed(weight: Tensor) -> Tensor:
    """[K, C, r, r] -> [K / width, r·r·C, width]."""
    kernels, channels, size, _ = weight.shape
    width = _panel_width(kernels)
    return weight.view(kernels // width, width, channels, size, size).permute(0, 3, 4, 2, 1).contiguous()


def _panel_width(kernels: int) -> int:
    """Filters that are computed together."""
    return next(width for width in (48, 32, 16) if kernels % width == 0)


_MAX_DEPTH_CHANNELS = 4


def fits_space_to_depth(input: Tensor, weight: Tensor, geometry: ConvGeometry, groups: int) -> bool:
    """Whether to convolve :func:`blocks`. Input [N, C, H, W] without a gradient, weight [K, C, r, r].

    Mode "auto" rearranges on GPUs and for bfloat16 on CPUs with AMX, mode "always" on every device.
    """
    mode = backend.mode_of("space_to_depth")
    if mode == "off" or (mode == "auto" and not (input.device.type == "cuda" or _multiplies_tiles(input))):
        return False
    if is_traced() or type(input) is not Tensor or input.requires_grad:
        return False
    return groups == 1 and geometry.stride > 1 and weight.shape[1] <= _MAX_DEPTH_CHANNELS


def blocks(input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """Images [N, C, H, W] -> blocks of stride × stride pixels [N, s·s·C, rows, columns], channels-last in memory.

    The convolution of the blocks with :func:`block_filters`, stride 1 and no padding is that of the images with the
    filters ``weight`` [K, C, r, r].
    """
    blocks_per_filter = -(-weight.shape[2] // geometry.stride)
    return _blocks(input, geometry, *(size - 1 + blocks_per_filter for size in geometry[2:]))


def block_filters(weight: Tensor, stride: int) -> Tensor:
    """Filters [K, C, r, r] -> filters of blocks [K, s·s·C, ⌈r/s⌉, ⌈r/s⌉], channels-last in memory."""
    kernels, channels, size, _ = weight.shape
    blocks_per_filter = -(-size // stride)
    pad_filter = blocks_per_filter * stride - size
    padded = F.pad(weight, (0, pad_filter, 0, pad_filter))
    filters = padded.view(kernels, channels, blocks_per_filter, stride, blocks_per_filter, stride)
    filters = filters.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)  # [K, s·s·C, r, r]
    return filters.contiguous(memory_format=torch.channels_last)


def _multiplies_tiles(input: Tensor) -> bool:
    """Whether the convolution of ``input`` is computed in bfloat16 by AMX."""
    if not (native_kernels.in_use("first_conv") and native_kernels.is_cpu_tensor(input) and backend.has_amx()):
        return False
    return _dtype(input) == torch.bfloat16


def _dtype(input: Tensor) -> torch.dtype:
    """The data type in which autocast computes a convolution of ``input``."""
    device = input.device.type
    has_autocast = not input.is_meta and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if has_autocast else input.dtype


def _blocks(input: Tensor, geometry: ConvGeometry, rows: int, columns: int) -> Tensor:
    """[N, C, H, W] -> [N, s·s·C, rows, columns], channels-last in memory; pixels outside of the image are zeros."""
    (n, channels, height, width), (stride, padding, _, _) = input.shape, geometry
    if _multiplies_tiles(input) and input.dtype in native_kernels.DTYPE_NAMES:
        input, threads = input.contiguous(memory_format=torch.channels_last), torch.get_num_threads()
        shape = _Blocks(n, threads, height, width, channels, stride, padding, rows, columns)
        size = n, stride * stride * channels, rows, columns
        blocks = torch.empty(size, dtype=torch.bfloat16, memory_format=torch.channels_last)
        lines = torch.empty(threads, stride * columns * channels, dtype=torch.bfloat16)
        function = native_kernels.function("first_conv", f"blocks_{native_kernels.DTYPE_NAMES[input.dtype]}")
        function(ctypes.byref(shape), *map(pointer, (input, blocks, lines)))
        return blocks
    input = input.to(_dtype(input))  # before anything is copied
    pad_bottom = rows * stride - height - padding  # negative: pixels that no window reads
    pad_right = columns * stride - width - padding
    pixels = F.pad(input, (padding, pad_right, padding, pad_bottom)).permute(0, 2, 3, 1)  # [N, H, W, C]
    out = pixels.reshape(-1, rows, stride, columns, stride, channels).transpose(2, 3).flatten(3)  # [N, H, W, s·s·C]
    return out.permute(0, 3, 1, 2)


class _Blocks(ctypes.Structure):
    """``Blocks`` of ``first_conv.c``."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("images", "threads", "height", "width", "channels", "stride", "padding", "rows", "columns")
    ]
