"""Response normalization of rows of channels, with its analytic gradient: by PyTorch's operations, or compiled."""

from typing import Any

import torch
from torch import Tensor

from alexnet.kernels import native_kernels


def channels_last_rows(input: Tensor, towers: int) -> Tensor:
    """[N, C, H, W] -> [N·H·W·T, C/T]: a view where memory is channels-last, a copy elsewhere."""
    return input.permute(0, 2, 3, 1).reshape(-1, input.shape[1] // towers)


def rows_to_maps(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`channels_last_rows`: [N·H·W·T, C/T] -> [N, C, H, W], channels-last in memory."""
    n, c, h, w = like.shape
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


def channel_window(channels: int, size: int, weight: float, device: torch.device) -> Tensor:
    """[C, C]: ``weight`` in row *j* and column *i* where *j* is in the window of ``size`` channels around *i*, else 0.

    An even window reaches one channel further down than up, as in the 2012 code.
    """
    index = torch.arange(channels, device=device)
    offset = index[:, None] - index[None, :]
    near = (offset >= -(size // 2)) & (offset < (size + 1) // 2)
    return near.float().mul_(weight)


class NormalizeRowsCompiled(torch.autograd.Function):
    """What :class:`NormalizeRows` computes, by the compiled kernel: about a fifth of its time."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, size: int, weight: float, beta: float, k: float) -> Tensor:
        out, sums = native_kernels.forward(rows, size, weight, k, beta)
        ctx.save_for_backward(rows, sums)
        ctx.size, ctx.weight, ctx.beta = size, weight, beta
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        rows, sums = ctx.saved_tensors
        grad = native_kernels.backward(rows, sums, grad_outputs[0], ctx.size, ctx.weight, ctx.beta)
        return grad, None, None, None, None


# Rows per piece: about a megabyte of float32 that stays in a core's cache between the operations on it.
_PIECE_ELEMENTS = 1 << 18


class NormalizeRows(torch.autograd.Function):
    """x · s^−β with s = k + x² · window, row by row, with the analytic gradient.

    The window sum is a product with a banded matrix: it costs 1 % of the network's arithmetic and a tenth of the
    time of the pooling by which ``torch.nn.LocalResponseNorm`` sums.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, window: Tensor, beta: float, k: float) -> Tensor:
        out = torch.empty_like(rows)
        sums = torch.empty_like(rows, dtype=torch.float32)
        with torch.autocast(rows.device.type, enabled=False):
            for x, s, y in zip(*(_pieces(t) for t in (rows, sums, out)), strict=True):
                x = x.float()
                torch.addmm(window.new_full((1,), k), x * x, window, out=s)
                y.copy_(_negative_power(s, beta).mul_(x))
        ctx.save_for_backward(rows, sums, window)
        ctx.beta = beta
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        # dx_j = g_j·s_j^−β − 2β·x_j·Σ_i window_ji·(g_i·x_i·s_i^(−β−1))
        rows, sums, window = ctx.saved_tensors
        grad_rows = torch.empty_like(rows)
        grad = grad_outputs[0].contiguous()
        with torch.autocast(rows.device.type, enabled=False):
            for x, s, g, out in zip(*(_pieces(t) for t in (rows, sums, grad, grad_rows)), strict=True):
                x = x.float()
                direct = _negative_power(s, ctx.beta).mul_(g)
                shared = torch.mul(direct, x).div_(s) @ window.T
                out.copy_(torch.addcmul(direct, shared, x, value=-2 * ctx.beta))
        return grad_rows, None, None, None


def normalize_rows(rows: Tensor, window: Tensor, beta: float, k: float) -> Tensor:
    """What :class:`NormalizeRows` computes, of operations whose every derivative PyTorch has."""
    with torch.autocast(rows.device.type, enabled=False):
        x = rows.float()
        s = k + x.square() @ window
        root = s.rsqrt()
        return (x * (root.rsqrt() * root * root if beta == 0.75 else s.pow(-beta))).to(rows.dtype)


def _pieces(rows: Tensor) -> tuple[Tensor, ...]:
    if rows.device.type != "cpu":
        return (rows,)
    return torch.split(rows, max(1, _PIECE_ELEMENTS // rows.shape[1]))


def _negative_power(s: Tensor, beta: float) -> Tensor:
    """s^−β as a new tensor; for the paper's β = 0.75 by two reciprocal square roots, which are ten times as fast.

    Not by ``torch.sqrt``: its first parallel call in a process sometimes has half of its numbers right to 12 bits only
    (docs/log.md).
    """
    if beta == 0.75:
        root = s.rsqrt()  # s^−1/2, whose own is s^1/4
        return root.rsqrt().mul_(root).mul_(root)
    return s.pow(-beta)
