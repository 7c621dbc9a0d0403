"""Local response normalization on a GPU with Triton: one pass forward and one backward.

Only the rows are saved for the gradient: adding five squares again is faster than reading their sum from memory.
:mod:`alexnet.kernels.lrn` is the reference implementation. Tests without a GPU run these kernels on the CPU with
Triton's interpreter. Import this module only where Triton is installed; PyTorch for NVIDIA and AMD GPUs includes it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from alexnet.kernels.backend import first_derivative_only

BLOCK = 1024  # values per program


@triton.jit  # type: ignore[untyped-decorator]
def _negative_power(sums, beta: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """s^−β; the paper's β = 0.75 by two square roots."""
    if beta == 0.75:
        root = tl.rsqrt(sums)
        return root * tl.sqrt(root)
    return tl.exp(-beta * tl.log(sums))


@triton.jit  # type: ignore[untyped-decorator]
def _inside(at, count, channels, step: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Whether the channel ``step`` after this one is in the same row."""
    channel = at % channels + step
    return (at < count) & (channel >= 0) & (channel < channels)


@triton.jit  # type: ignore[untyped-decorator]
def _neighbor(values, at, count, channels, step: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The value ``step`` channels after this one, or 0 outside the row. Triton merges repeated loads."""
    inside = _inside(at, count, channels, step)
    return tl.load(values + at + step, mask=inside, other=0.0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _sums(  # type: ignore[no-untyped-def]  # noqa: ANN202
    rows, at, count, channels, weight, k,  # noqa: ANN001
    below: tl.constexpr, above: tl.constexpr, shift: tl.constexpr,
):  # fmt: skip
    """k + weight · Σ x² over the window, from ``below`` channels before to ``above`` after channel + ``shift``."""
    total = tl.zeros(at.shape, tl.float32)
    for step in tl.static_range(-below, above + 1):
        x = _neighbor(rows, at, count, channels, shift + step)
        total += x * x
    return k + weight * total


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]  # noqa: ANN202
    rows, out, count, channels, weight, k,  # noqa: ANN001
    beta: tl.constexpr, below: tl.constexpr, above: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    sums = _sums(rows, at, count, channels, weight, k, below, above, 0)
    x = _neighbor(rows, at, count, channels, 0)
    tl.store(out + at, (x * _negative_power(sums, beta)).to(out.dtype.element_ty), mask=at < count)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]  # noqa: ANN202
    rows, grad, out, count, channels, weight, k,  # noqa: ANN001
    beta: tl.constexpr, below: tl.constexpr, above: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    # dx_j = g_j·s_j^−β − 2β·weight·x_j·Σ_i g_i·x_i·s_i^(−β−1), over all i whose window contains j
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    direct = tl.zeros(at.shape, tl.float32)
    shared = tl.zeros(at.shape, tl.float32)
    for step in tl.static_range(-above, below + 1):
        sums = _sums(rows, at, count, channels, weight, k, below, above, step)
        sums = tl.where(_inside(at, count, channels, step), sums, 1.0)  # outside, with k = 0: avoids 0 · ∞
        scaled = _neighbor(grad, at, count, channels, step) * _negative_power(sums, beta)
        shared += scaled * _neighbor(rows, at, count, channels, step) / sums
        if step == 0:
            direct = scaled
    x = _neighbor(rows, at, count, channels, 0)
    gradient = direct - 2 * beta * weight * x * shared
    tl.store(out + at, gradient.to(out.dtype.element_ty), mask=at < count)


class TritonLRN(torch.autograd.Function):
    """:class:`alexnet.kernels.lrn.TorchLRN` on a GPU: rows [R, C] -> [R, C] of the same type, sums in float32.

    The window of a channel reaches size // 2 channels down and (size − 1) // 2 up.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, size: int, weight: float, beta: float, k: float) -> Tensor:
        rows = rows.contiguous()
        ctx.save_for_backward(rows)
        ctx.args = (rows.numel(), rows.shape[1], weight, k, beta, size // 2, (size - 1) // 2, BLOCK)
        out = torch.empty_like(rows)
        _forward[_programs(rows)](rows, out, *ctx.args, enable_fp_fusion=True)
        return out

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (rows,) = ctx.saved_tensors
        out = torch.empty_like(rows)
        _backward[_programs(rows)](rows, grad.contiguous(), out, *ctx.args, enable_fp_fusion=True)
        return out, None, None, None, None


def _programs(rows: Tensor) -> tuple[int]:
    return (-(-rows.numel() // BLOCK),)
