"""Pools, the response norm across pixels, and a pool with the norm across channels before it, compiled from ``maps.c``.

Each is one pass over channels-last memory. :mod:`alexnet.models.layers` says what they compute and computes the same by
PyTorch's operations where these do not fit or ``kernel.use(False)`` was said. Pools in float32 give PyTorch's bits,
gradients too; norms agree to rounding.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alexnet.kernels import native_kernels

_MOST_PIXELS = 4096  # of a map that is normalized: its sums lie on the stack, 64 bytes a pixel
_LARGEST_WINDOW = 15  # a place in it is one byte, and 255 is no place


class Pool(NamedTuple):
    """How maps are made smaller: windows of ``size`` pixels a side, ``stride`` apart, counted by ceil."""

    size: int
    stride: int
    out_height: int
    out_width: int
    relu: bool = False  # with ReLU: of the largest after, of the mean before; for the largest that is the same


class Norm(NamedTuple):
    """in · (k + weight · Σ in²)^−3/4, the sum over ``window`` channels of the same tower."""

    towers: int
    window: int
    weight: float
    k: float


NO_NORM = Norm(1, 0, 0, 1)


def fits(input: Tensor) -> bool:
    """Can the kernels take these maps [N, C, H, W]? Float32 or bfloat16 in a processor's memory, C a multiple of 16."""
    if not (native_kernels.in_use("maps") and native_kernels.plain(input) and input.dim() == 4 and input.numel()):
        return False
    return input.dtype in native_kernels.NAMES and input.shape[1] % 16 == 0


def fits_pool(input: Tensor, size: int, stride: int) -> bool:
    """Will :func:`largest` and :func:`mean` take these maps? Windows must leave no pixel between them out."""
    return fits(input) and stride <= size <= min(_LARGEST_WINDOW, *input.shape[2:])


def fits_norm(input: Tensor, beta: float) -> bool:
    """Will :func:`normalize` take these maps? Its power is −3/4, that of all published nets."""
    return fits(input) and beta == 0.75 and input.shape[2] * input.shape[3] <= _MOST_PIXELS


def fits_channels(norm: Norm, channels: int, beta: float) -> bool:
    """Can a norm of so many channels be computed 16 at a time, with the pool behind it?"""
    return channels % norm.towers == 0 and channels // norm.towers % 16 == 0 and norm.window <= 16 and beta == 0.75


def max_pool(input: Tensor, pool: Pool) -> Tensor:
    """[N, C, H, W] -> [N, C, H', W']: the largest of each window; its gradient goes to the first of equal ones."""
    out: Tensor = _Largest.apply(input, pool)
    return out


def mean(input: Tensor, pool: Pool) -> Tensor:
    """[N, C, H, W] -> [N, C, H', W']: the mean over each window's pixels that exist."""
    out: Tensor = _Mean.apply(input, pool)
    return out


def normalize(input: Tensor, size: int, weight: float, k: float) -> Tensor:
    """[N, C, H, W] -> the same: in · (k + weight · Σ in²)^−3/4, the sum over size×size pixels of the same map."""
    out: Tensor = _Normalize.apply(input, size, weight, k)
    return out


def norm_max_pool(input: Tensor, norm: Norm, pool: Pool) -> Tensor:
    """[N, C, H, W] -> [N, C, H', W']: normalized across channels, then the largest of each window. Float32."""
    out: Tensor = _NormedLargest.apply(input, norm, pool)
    return out


class _Shape(ctypes.Structure):
    """``Shape`` of ``maps.c``."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "images",
            "threads",
            "height",
            "width",
            "channels",
            "out_height",
            "out_width",
            "size",
            "stride",
            "relu",
            "towers",
            "window",
        )
    ] + [("weight", ctypes.c_float), ("k", ctypes.c_float)]


def _shape(input: Tensor, pool: Pool, norm: Norm = NO_NORM) -> Any:
    n, c, h, w = input.shape
    threads = torch.get_num_threads()
    shape = _Shape(n, threads, h, w, c, pool.out_height, pool.out_width, pool.size, pool.stride, pool.relu, *norm)
    return ctypes.byref(shape)


def _call(name: str, input: Tensor, pool: Pool, *arguments: Any) -> None:
    native_kernels.function("maps", f"{native_kernels.NAMES[input.dtype]}_{name}")(_shape(input, pool), *arguments)


def _empty(like: Tensor, height: int, width: int) -> Tensor:
    shape = (*like.shape[:2], height, width)
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def _last(maps: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return maps.to(dtype or maps.dtype).contiguous(memory_format=torch.channels_last)


class _Largest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, pool: Pool) -> Tensor:
        input = _last(input)
        out = _empty(input, pool.out_height, pool.out_width)
        places = torch.empty(out.numel(), dtype=torch.uint8)  # [N·H'·W'·C]
        _call("largest", input, pool, native_kernels.at(input), native_kernels.at(out), native_kernels.at(places))
        ctx.save_for_backward(places)
        ctx.pool, ctx.shape, ctx.dtype = pool, input.shape, input.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = _last(grad, ctx.dtype)
        d_input = torch.empty(ctx.shape, dtype=ctx.dtype, memory_format=torch.channels_last)
        _call(
            "largest_backward",
            d_input,
            ctx.pool,
            native_kernels.at(grad),
            native_kernels.at(ctx.saved_tensors[0]),
            native_kernels.at(d_input),
        )
        return d_input, None


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, pool: Pool) -> Tensor:
        input = _last(input)
        out = _empty(input, pool.out_height, pool.out_width)
        _call("mean", input, pool, native_kernels.at(input), native_kernels.at(out))
        ctx.save_for_backward(input if pool.relu else None)
        ctx.pool, ctx.shape, ctx.dtype = pool, input.shape, input.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = _last(grad, ctx.dtype)
        d_input = torch.empty(ctx.shape, dtype=ctx.dtype, memory_format=torch.channels_last)
        input = ctx.saved_tensors[0]
        _call(
            "mean_backward",
            d_input,
            ctx.pool,
            native_kernels.at(grad),
            native_kernels.at(input),
            native_kernels.at(d_input),
        )
        return d_input, None


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, size: int, weight: float, k: float) -> Tensor:
        input = _last(input)
        out = torch.empty_like(input)
        roots = torch.empty_like(input, dtype=torch.float32)  # s^−1/4
        pool = Pool(size, 1, *input.shape[2:])
        numbers = ctypes.c_float(weight), ctypes.c_float(k)
        _call("norm", input, pool, native_kernels.at(input), native_kernels.at(out), native_kernels.at(roots), *numbers)
        ctx.save_for_backward(input, roots)
        ctx.pool, ctx.weight = pool, weight
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        input, roots = ctx.saved_tensors
        grad, d_input = _last(grad, input.dtype), torch.empty_like(input)
        where = [native_kernels.at(maps) for maps in (input, roots, grad, d_input)]
        _call("norm_backward", input, ctx.pool, *where, ctypes.c_float(ctx.weight))
        return d_input, None, None, None


class _NormedLargest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, norm: Norm, pool: Pool) -> Tensor:
        input = _last(input)
        out = _empty(input, pool.out_height, pool.out_width)
        places = torch.empty(out.numel(), dtype=torch.uint8)
        shape, scratch = _with_scratch(input, pool, norm)
        native_kernels.function("maps", "normed_largest")(shape, *map(native_kernels.at, (input, out, places, scratch)))
        ctx.save_for_backward(input, places)
        ctx.geometry = pool, norm
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        input, places = ctx.saved_tensors
        grad, d_input = _last(grad, input.dtype), torch.empty_like(input)
        shape, scratch = _with_scratch(input, *ctx.geometry)
        native_kernels.function("maps", "normed_largest_backward")(
            shape, *map(native_kernels.at, (input, grad, places, d_input, scratch))
        )
        return d_input, None, None


def _with_scratch(input: Tensor, pool: Pool, norm: Norm) -> tuple[Any, Tensor]:
    shape, room = _shape(input, pool, norm), native_kernels.library("maps").normed_room
    room.restype = ctypes.c_int64
    return shape, torch.empty(torch.get_num_threads(), room(shape))
