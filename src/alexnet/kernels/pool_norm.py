"""Pooling, normalization across pixels, and LRN fused with the max pool after it, computed by ``pool_norm.c``.

Each is one pass over channels-last memory. ``MaxPool``, ``AveragePool``, ``SpatialNorm`` and ``LocalResponseNorm``
(models/layers.py) define what they compute and hold the reference implementations in PyTorch operations. Pooling in
float32 gives PyTorch's bits, gradients included; norms agree to rounding.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alexnet.kernels import native_kernels
from alexnet.kernels.backend import first_derivative_only
from alexnet.kernels.native_kernels import pointer

_MAX_PIXELS = 4096  # of a feature map that is normalized: its sums lie on the stack, 64 bytes per pixel
_MAX_WINDOW = 15  # a position in a window is one byte, and 255 stands for none


class PoolGeometry(NamedTuple):
    """Windows of ``size``×``size`` pixels, ``stride`` apart."""

    size: int
    stride: int
    out_height: int
    out_width: int
    relu: bool = False  # ReLU before the pool; for a max pool, before and after are the same


class ChannelNorm(NamedTuple):
    """LRN: x · (k + weight · Σ x²)^−3/4, the sum over ``window`` channels of the same tower."""

    towers: int
    window: int
    weight: float
    k: float


NO_NORM = ChannelNorm(1, 0, 0, 1)


def fits(input: Tensor) -> bool:
    """Whether the kernels take these feature maps [N, C, H, W]: CPU, float32 or bfloat16, C a multiple of 16."""
    if not (native_kernels.in_use("pool_norm") and native_kernels.is_cpu_tensor(input)):
        return False
    if input.dim() != 4 or not input.numel():
        return False
    return input.dtype in native_kernels.DTYPE_NAMES and input.shape[1] % 16 == 0


def fits_pool(input: Tensor, size: int, stride: int) -> bool:
    """Whether :func:`max_pool` and :func:`avg_pool` take these feature maps. Windows must leave no gaps."""
    return fits(input) and stride <= size <= min(_MAX_WINDOW, *input.shape[2:])


def fits_spatial_norm(input: Tensor, beta: float) -> bool:
    """Whether :func:`spatial_norm` takes these feature maps. Its exponent is −3/4, that of all published networks."""
    return fits(input) and beta == 0.75 and input.shape[2] * input.shape[3] <= _MAX_PIXELS


def fits_lrn(norm: ChannelNorm, channels: int, beta: float) -> bool:
    """Whether LRN of so many channels can be fused with a pool: the kernel computes 16 channels of a tower at once."""
    return channels % norm.towers == 0 and channels // norm.towers % 16 == 0 and norm.window <= 16 and beta == 0.75


def max_pool(input: Tensor, pool: PoolGeometry) -> Tensor:
    """[N, C, H, W] -> [N, C, H', W']: maximum of each window; the gradient goes to the first of equal values."""
    out: Tensor = _MaxPool.apply(input, pool)
    return out


def avg_pool(input: Tensor, pool: PoolGeometry) -> Tensor:
    """[N, C, H, W] -> [N, C, H', W']: mean over those pixels of each window that exist."""
    out: Tensor = _AvgPool.apply(input, pool)
    return out


def spatial_norm(input: Tensor, size: int, weight: float, k: float) -> Tensor:
    """[N, C, H, W] -> the same: x · (k + weight · Σ x²)^−3/4, the sum over size×size pixels of the same channel."""
    out: Tensor = _SpatialNorm.apply(input, size, weight, k)
    return out


def lrn_max_pool(input: Tensor, norm: ChannelNorm, pool: PoolGeometry) -> Tensor:
    """[N, C, H, W] -> [N, C, H', W']: LRN, then the maximum of each window.

    ``pool.relu``: a ReLU before the LRN, in bfloat16 only. bfloat16 values are normalized in float32 and rounded before
    the pool, as layer by layer.
    """
    out: Tensor = _LRNMaxPool.apply(input, norm, pool)
    return out


class _Shape(ctypes.Structure):
    """``Shape`` of ``pool_norm.c``."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "threads")),
        *((name, ctypes.c_int64) for name in ("height", "width", "channels", "out_height", "out_width")),
        *((name, ctypes.c_int64) for name in ("size", "stride", "relu")),
        *((name, ctypes.c_int64) for name in ("towers", "window")),
        *((name, ctypes.c_float) for name in ("weight", "k")),
    ]


def _shape(input: Tensor, pool: PoolGeometry, norm: ChannelNorm = NO_NORM) -> _Shape:
    n, c, h, w = input.shape
    threads = torch.get_num_threads()
    return _Shape(n, threads, h, w, c, pool.out_height, pool.out_width, pool.size, pool.stride, pool.relu, *norm)


def _call(layer: str, input: Tensor, pool: PoolGeometry, *args: Any, direction: str = "") -> None:
    symbol = f"{layer}_{native_kernels.DTYPE_NAMES[input.dtype]}{direction}"
    native_kernels.function("pool_norm", symbol)(ctypes.byref(_shape(input, pool)), *args)


def _empty(like: Tensor, height: int, width: int) -> Tensor:
    shape = (*like.shape[:2], height, width)
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def _channels_last(feature_maps: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return feature_maps.to(dtype or feature_maps.dtype).contiguous(memory_format=torch.channels_last)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, pool: PoolGeometry) -> Tensor:
        input = _channels_last(input)
        out = _empty(input, pool.out_height, pool.out_width)
        argmax = torch.empty(out.numel(), dtype=torch.uint8)  # [N·H'·W'·C], positions in the windows
        _call("max_pool", input, pool, pointer(input), pointer(out), pointer(argmax))
        ctx.save_for_backward(argmax)
        ctx.pool, ctx.shape, ctx.dtype = pool, input.shape, input.dtype
        return out

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (argmax,) = ctx.saved_tensors
        grad = _channels_last(grad, ctx.dtype)
        d_input = torch.empty(ctx.shape, dtype=ctx.dtype, memory_format=torch.channels_last)
        args = pointer(grad), pointer(argmax), pointer(d_input)
        _call("max_pool", d_input, ctx.pool, *args, direction="_backward")
        return d_input, None


class _AvgPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, pool: PoolGeometry) -> Tensor:
        input = _channels_last(input)
        out = _empty(input, pool.out_height, pool.out_width)
        _call("avg_pool", input, pool, pointer(input), pointer(out))
        ctx.save_for_backward(input if pool.relu else None)
        ctx.pool, ctx.shape, ctx.dtype = pool, input.shape, input.dtype
        return out

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (input,) = ctx.saved_tensors
        grad = _channels_last(grad, ctx.dtype)
        d_input = torch.empty(ctx.shape, dtype=ctx.dtype, memory_format=torch.channels_last)
        args = pointer(grad), pointer(input), pointer(d_input)
        _call("avg_pool", d_input, ctx.pool, *args, direction="_backward")
        return d_input, None


class _SpatialNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, size: int, weight: float, k: float) -> Tensor:
        input = _channels_last(input)
        out = torch.empty_like(input)
        roots = torch.empty_like(input, dtype=torch.float32)  # s^−1/4
        pool = PoolGeometry(size, 1, *input.shape[2:])
        args = pointer(input), pointer(out), pointer(roots), ctypes.c_float(weight), ctypes.c_float(k)
        _call("spatial_norm", input, pool, *args)
        ctx.save_for_backward(input, roots)
        ctx.pool, ctx.weight = pool, weight
        return out

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        input, roots = ctx.saved_tensors
        grad, d_input = _channels_last(grad, input.dtype), torch.empty_like(input)
        args = *map(pointer, (input, roots, grad, d_input)), ctypes.c_float(ctx.weight)
        _call("spatial_norm", input, ctx.pool, *args, direction="_backward")
        return d_input, None, None, None


class _LRNMaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, norm: ChannelNorm, pool: PoolGeometry) -> Tensor:
        input = _channels_last(input)
        out = _empty(input, pool.out_height, pool.out_width)
        argmax = torch.empty(out.numel(), dtype=torch.uint8)
        shape, scratch = _shape_and_scratch(input, pool, norm)
        _lrn_max_pool(input.dtype, "")(ctypes.byref(shape), *map(pointer, (input, out, argmax, scratch)))
        ctx.save_for_backward(input, argmax)
        ctx.geometry = pool, norm
        return out

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        input, argmax = ctx.saved_tensors
        grad, d_input = _channels_last(grad, input.dtype), torch.empty_like(input)
        shape, scratch = _shape_and_scratch(input, *ctx.geometry)
        args = pointer(input), pointer(grad), pointer(argmax), pointer(d_input), pointer(scratch)
        _lrn_max_pool(input.dtype, "_backward")(ctypes.byref(shape), *args)
        return d_input, None, None


def _lrn_max_pool(dtype: torch.dtype, direction: str) -> "ctypes._NamedFuncPointer":
    return native_kernels.function("pool_norm", f"lrn_max_pool_{native_kernels.DTYPE_NAMES[dtype]}{direction}")


def _shape_and_scratch(input: Tensor, pool: PoolGeometry, norm: ChannelNorm) -> tuple[_Shape, Tensor]:
    shape = _shape(input, pool, norm)
    size = native_kernels.scratch_size("pool_norm", "lrn_max_pool_scratch_size", shape)
    return shape, torch.empty(torch.get_num_threads(), size)
