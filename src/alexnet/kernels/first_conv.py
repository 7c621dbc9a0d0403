"""A first convolution, with the ReLU, response norm and max pool behind it where they are, compiled from ``stem.c``.

It sees few channels (the colors), needs no gradient for the images, and makes the largest maps of a network: here
they never leave a core's cache. PyTorch's operations are the reference implementation: ``kernel.use(False)``.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alexnet.kernels import bf16_autocast, native_kernels
from alexnet.kernels import pool as maps

_MOST_CHANNELS = 4
_MOST_NUMBERS = 1 << 19  # of an image's maps: two megabytes, a core's second cache
_MOST_ENTRIES = 1 << 12  # of a filter: where each lies is kept on the stack


class Filters(NamedTuple):
    """The convolution's geometry; ``out_height`` and ``out_width`` are those of the maps that it makes."""

    stride: int
    padding: int
    out_height: int
    out_width: int


_NO_POOL = maps.Pool(0, 1, 0, 0)


def fits(input: Tensor, weight: Tensor, filters: Filters, groups: int) -> bool:
    """Will :func:`convolve` compute this? Input [N, C, H, W] without a gradient, weight [K, C, r, r], all float32;
    under autocast to bfloat16 where :mod:`alexnet.kernels.bf16_autocast` serves it."""
    if (
        not (native_kernels.in_use("stem") and native_kernels.plain(input) and native_kernels.plain(weight))
        or input.requires_grad
    ):
        return False
    if not bf16_autocast.in_float32(input, weight):
        return False
    kernels, channels, side, across = weight.shape
    if groups != 1 or side != across or channels > _MOST_CHANNELS or kernels % 16 or not len(input):
        return False
    if side * side * channels > _MOST_ENTRIES:
        return False
    numbers = filters.out_height * filters.out_width * kernels
    return filters.out_width >= 8 and numbers <= _MOST_NUMBERS and bool(native_kernels.library("stem").stem_pays())


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    filters: Filters,
    pool: maps.Pool | None,
    relu: bool,
    norm: maps.Norm | None = None,
) -> Tensor:
    """[N, C, H, W] -> the convolution's maps [N, K, H', W'] or the pooled ones, negative numbers as 0 with ``relu``.

    ``norm`` comes between ReLU and pool, and not without a pool.
    """
    assert norm is None or pool is not None
    pool = (pool or _NO_POOL)._replace(relu=relu)
    return bf16_autocast.compute(_Stem, input, weight, bias, filters, pool, norm or maps.NO_NORM)


class _Shape(ctypes.Structure):
    """``Shape`` of ``stem.c``."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "images",
            "threads",
            "height",
            "width",
            "channels",
            "kernels",
            "size",
            "stride",
            "padding",
            "out_height",
            "out_width",
            "out_channels",
            "pooled_height",
            "pooled_width",
            "pool",
            "pool_stride",
            "relu",
            "towers",
            "window",
        )
    ] + [("weight", ctypes.c_float), ("k", ctypes.c_float)]


def _shape(input: Tensor, weight: Tensor, filters: Filters, pool: maps.Pool, norm: maps.Norm, threads: int) -> _Shape:
    (n, c, h, w), kernels = input.shape, len(weight)
    return _Shape(
        n,
        threads,
        h,
        w,
        c,
        kernels,
        weight.shape[2],
        filters.stride,
        filters.padding,
        filters.out_height,
        filters.out_width,
        kernels,
        pool.out_height,
        pool.out_width,
        pool.size,
        pool.stride,
        pool.relu,
        *norm,
    )


def _scratch(shape: _Shape, threads: int) -> Tensor:
    room = native_kernels.library("stem").stem_room
    room.restype = ctypes.c_int64
    return torch.empty(threads, room(ctypes.byref(shape)))


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, filters: Filters, pool: maps.Pool, norm: maps.Norm
    ) -> Tensor:
        input = input.contiguous(memory_format=torch.channels_last)
        threads, (kernels, n) = torch.get_num_threads(), (len(weight), len(input))
        shape = _shape(input, weight, filters, pool, norm, threads)
        height, width = (pool.out_height, pool.out_width) if pool.size else (filters.out_height, filters.out_width)
        out = torch.empty((n, kernels, height, width), memory_format=torch.channels_last)
        places = torch.empty(out.numel() if pool.size else 0, dtype=torch.uint8)
        keep = norm.window and any(ctx.needs_input_grad)
        values = torch.empty(n * filters.out_height * filters.out_width * kernels) if keep else None  # to the norm
        packed, own = _packed(weight.detach()), None if bias is None else bias.detach().contiguous()
        scratch = _scratch(shape, threads)
        native_kernels.function("stem", "stem_forward")(
            ctypes.byref(shape), *(native_kernels.at(t) for t in (input, packed, own, out, places, values, scratch))
        )
        ctx.save_for_backward(input, weight, places, out if pool.relu and not pool.size else None, values)
        ctx.geometry, ctx.biased = (filters, pool, norm), bias is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor | None, None, None, None]:
        input, weight, places, out, values = ctx.saved_tensors
        grad = grad.float().contiguous(memory_format=torch.channels_last)
        threads = min(torch.get_num_threads(), len(input))
        (filters, pool, norm), (kernels, channels, side, _) = ctx.geometry, weight.shape
        shape = _shape(input, weight, filters, pool, norm, threads)
        entries, width = side * side * channels, _panel(kernels)
        deep = -(-entries // 8) * 8
        sums, d_bias = torch.zeros(threads, kernels * deep), torch.zeros(threads, kernels)
        scratch = _scratch(shape, threads)
        native_kernels.function("stem", "stem_backward")(
            ctypes.byref(shape),
            *(native_kernels.at(t) for t in (input, grad, places, out, values, sums, d_bias, scratch)),
        )
        panels = sums[0].view(kernels // width, deep, width)[:, :entries]
        d_weight = panels.reshape(-1, side, side, channels, width).permute(0, 4, 3, 1, 2).reshape(weight.shape)
        return None, d_weight, d_bias[0] if ctx.biased else None, None, None, None


def _packed(weight: Tensor) -> Tensor:
    """[K, C, r, r] -> [K / width, r·r·C, width]."""
    kernels, channels, side, _ = weight.shape
    width = _panel(kernels)
    return weight.view(kernels // width, width, channels, side, side).permute(0, 3, 4, 2, 1).contiguous()


def _panel(kernels: int) -> int:
    return next(width for width in (48, 32, 16) if kernels % width == 0)
