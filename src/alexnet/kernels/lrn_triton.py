"""Response normalization across channels on a GPU, one pass forward and one back: kernels for Triton.

Nothing but the rows themselves is kept for the gradient: five squares are faster added again than read from memory.
:mod:`alexnet.kernels.lrn` is the reference implementation; Triton's interpreter runs these on a processor, which is
how they are
tested where there is no GPU. To be imported only where Triton is: PyTorch brings it along for NVIDIA's and AMD's GPUs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1024  # numbers of a program


@triton.jit  # type: ignore[untyped-decorator]
def _scaled(sums, beta: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """s^−β; for the paper's 0.75 by two roots."""
    if beta == 0.75:
        root = tl.rsqrt(sums)
        return root * tl.sqrt(root)
    return tl.exp(-beta * tl.log(sums))


@triton.jit  # type: ignore[untyped-decorator]
def _inside(at, count, channels, step: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Is there a channel ``step`` further on in the same row?"""
    channel = at % channels + step
    return (at < count) & (channel >= 0) & (channel < channels)


@triton.jit  # type: ignore[untyped-decorator]
def _near(numbers, at, count, channels, step: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """What is ``step`` channels further on, or 0. The same addresses and masks are read once, however often asked."""
    there = _inside(at, count, channels, step)
    return tl.load(numbers + at + step, mask=there, other=0.0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _sums(  # type: ignore[no-untyped-def]  # noqa: ANN202
    rows, at, count, channels, weight, k,  # noqa: ANN001
    below: tl.constexpr, above: tl.constexpr, shift: tl.constexpr,
):  # fmt: skip
    """k + weight · the squares from ``below`` channels under to ``above`` over the channel ``shift`` further on."""
    total = tl.zeros(at.shape, tl.float32)
    for step in tl.static_range(-below, above + 1):
        x = _near(rows, at, count, channels, shift + step)
        total += x * x
    return k + weight * total


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]  # noqa: ANN202
    rows, out, count, channels, weight, k,  # noqa: ANN001
    beta: tl.constexpr, below: tl.constexpr, above: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    sums = _sums(rows, at, count, channels, weight, k, below, above, 0)
    x = _near(rows, at, count, channels, 0)
    tl.store(out + at, (x * _scaled(sums, beta)).to(out.dtype.element_ty), mask=at < count)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]  # noqa: ANN202
    rows, grad, out, count, channels, weight, k,  # noqa: ANN001
    beta: tl.constexpr, below: tl.constexpr, above: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    # dx_j = g_j·s_j^−β − 2β·weight·x_j·Σ_i g_i·x_i·s_i^(−β−1), over the i in whose windows j is
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    direct = tl.zeros(at.shape, tl.float32)
    shared = tl.zeros(at.shape, tl.float32)
    for step in tl.static_range(-above, below + 1):
        sums = _sums(rows, at, count, channels, weight, k, below, above, step)
        sums = tl.where(_inside(at, count, channels, step), sums, 1.0)  # 0 where k is, and 0 · ∞ is no number
        scaled = _near(grad, at, count, channels, step) * _scaled(sums, beta)
        shared += scaled * _near(rows, at, count, channels, step) / sums
        if step == 0:
            direct = scaled
    x = _near(rows, at, count, channels, 0)
    gradient = direct - 2 * beta * weight * x * shared
    tl.store(out + at, gradient.to(out.dtype.element_ty), mask=at < count)


class TritonLRN(torch.autograd.Function):
    """What :class:`alexnet.kernels.lrn.TorchLRN` computes: rows [R, C] -> [R, C], in their own precision, sums in
    float32. The window of a channel reaches size // 2 channels down and (size − 1) // 2 up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, size: int, weight: float, beta: float, k: float) -> Tensor:
        rows = rows.contiguous()
        ctx.save_for_backward(rows)
        ctx.numbers = (rows.numel(), rows.shape[1], weight, k, beta, size // 2, (size - 1) // 2, BLOCK)
        out = torch.empty_like(rows)
        _forward[_programs(rows)](rows, out, *ctx.numbers, enable_fp_fusion=True)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (rows,) = ctx.saved_tensors
        out = torch.empty_like(rows)
        _backward[_programs(rows)](rows, grad.contiguous(), out, *ctx.numbers, enable_fp_fusion=True)
        return out, None, None, None, None


def _programs(rows: Tensor) -> tuple[int]:
    return (-(-rows.numel() // BLOCK),)
