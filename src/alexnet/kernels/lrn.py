"""Local response normalization of rows of channels, with its analytic gradient.

:class:`NativeLRN` calls ``lrn.c``, :class:`TorchLRN` is the reference implementation in PyTorch operations,
:func:`differentiable_lrn` is for tracing and for derivatives of any order. ``LocalResponseNorm`` (models/layers.py)
selects one of them and lists when.
"""

import ctypes
import functools
import importlib.util
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from alexnet.kernels import backend, native_kernels
from alexnet.kernels.backend import is_differentiated_again, is_traced_or_compiled

_MAX_CHANNELS = 8192  # of a row; lrn.c keeps its buffers on the stack
_CHUNK_ELEMENTS = 1 << 18  # one megabyte of float32, which stays in a core's cache between operations


def fits(rows: Tensor) -> bool:
    """Whether ``lrn.c`` computes these rows: float32 or bfloat16 in CPU memory, and the kernel is in use."""
    if not (native_kernels.in_use("lrn") and native_kernels.is_cpu_tensor(rows)):
        return False
    return rows.dtype in native_kernels.DTYPE_NAMES and rows.shape[1] <= _MAX_CHANNELS


def fits_triton(rows: Tensor) -> bool:
    """Whether ``lrn_triton.py`` computes these rows: in GPU memory, where Triton is installed."""
    if not (type(rows) is Tensor and rows.device.type == "cuda" and backend.enabled("lrn_triton")):
        return False
    dtypes = (*native_kernels.DTYPE_NAMES, torch.float16)
    return rows.dtype in dtypes and _has_triton() and not is_traced_or_compiled()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def channels_last_rows(input: Tensor, towers: int) -> Tensor:
    """[N, C, H, W] -> [N·H·W·T, C/T]: a view of channels-last memory, a copy otherwise."""
    return input.permute(0, 2, 3, 1).reshape(-1, input.shape[1] // towers)


def rows_to_feature_maps(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`channels_last_rows`: [N·H·W·T, C/T] -> [N, C, H, W], channels-last in memory."""
    n, c, h, w = like.shape
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


def channel_window(channels: int, size: int, weight: float, device: torch.device) -> Tensor:
    """[C, C]: ``weight`` in row *j* and column *i* where *j* is in the window of ``size`` channels around *i*, else 0.

    A window of even size reaches one channel further down than up, as in the 2012 code.
    """
    index = torch.arange(channels, device=device)
    offset = index[:, None] - index[None, :]
    in_window = (offset >= -(size // 2)) & (offset < (size + 1) // 2)
    return in_window.float().mul_(weight)


class NativeLRN(torch.autograd.Function):
    """:class:`TorchLRN` computed by ``lrn.c``, in about a fifth of its time. Rows [R, C] -> [R, C]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, size: int, weight: float, beta: float, k: float) -> Tensor:
        input, rows = rows, rows.contiguous()
        out, sums = torch.empty_like(rows), torch.empty_like(rows, dtype=torch.float32)
        native_kernels.function("lrn", f"lrn_{native_kernels.DTYPE_NAMES[rows.dtype]}_forward")(
            *map(native_kernels.pointer, (rows, out, sums)),
            ctypes.c_int64(rows.shape[0]),
            rows.shape[1],
            size,
            *map(ctypes.c_float, (weight, k, beta)),
        )
        ctx.save_for_backward(input, sums)
        ctx.size, ctx.weight, ctx.beta, ctx.k = size, weight, beta, k
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        rows, sums = ctx.saved_tensors
        if is_differentiated_again():
            window = channel_window(rows.shape[1], ctx.size, ctx.weight, rows.device)
            return _differentiable_gradient(rows, grad_outputs[0], window, ctx.beta, ctx.k), None, None, None, None
        rows, grad = rows.contiguous(), grad_outputs[0].to(rows.dtype).contiguous()
        grad_rows = torch.empty_like(rows)
        native_kernels.function("lrn", f"lrn_{native_kernels.DTYPE_NAMES[rows.dtype]}_backward")(
            *map(native_kernels.pointer, (rows, sums, grad, grad_rows)),
            ctypes.c_int64(rows.shape[0]),
            rows.shape[1],
            ctx.size,
            *map(ctypes.c_float, (ctx.weight, ctx.beta)),
        )
        return grad_rows, None, None, None, None


class TorchLRN(torch.autograd.Function):
    """x · s^−β with s = k + x² · window, row by row, with the analytic gradient. Rows [R, C] -> [R, C].

    The window sum is a product with a banded matrix. It costs 1 % of the network's arithmetic and a tenth of the time
    of the pooling by which ``torch.nn.LocalResponseNorm`` sums.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, window: Tensor, beta: float, k: float) -> Tensor:
        out = torch.empty_like(rows)
        sums = torch.empty_like(rows, dtype=torch.float32)
        with _without_autocast(rows.device.type):
            for x, s, y in zip(*map(_chunks, (rows, sums, out)), strict=True):
                x = x.float()
                torch.addmm(window.new_full((1,), k), x * x, window, out=s)
                y.copy_(_negative_power(s, beta).mul_(x))
        ctx.save_for_backward(rows, sums, window)
        ctx.beta, ctx.k = beta, k
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        # dx_j = g_j·s_j^−β − 2β·x_j·Σ_i window_ji·(g_i·x_i·s_i^(−β−1))
        rows, sums, window = ctx.saved_tensors
        if is_differentiated_again():
            return _differentiable_gradient(rows, grad_outputs[0], window, ctx.beta, ctx.k), None, None, None
        grad_rows = torch.empty_like(rows)
        grad = grad_outputs[0].contiguous()
        with _without_autocast(rows.device.type):
            for x, s, g, out in zip(*map(_chunks, (rows, sums, grad, grad_rows)), strict=True):
                x = x.float()
                direct = _negative_power(s, ctx.beta).mul_(g)
                shared = torch.mul(direct, x).div_(s) @ window.T
                out.copy_(torch.addcmul(direct, shared, x, value=-2 * ctx.beta))
        return grad_rows, None, None, None


def differentiable_lrn(rows: Tensor, window: Tensor, beta: float, k: float) -> Tensor:
    """:class:`TorchLRN` in operations for which PyTorch has every derivative."""
    with _without_autocast(rows.device.type):
        x = rows.float()
        s = k + x.square() @ window
        root = s.rsqrt()
        return (x * (root.rsqrt() * root * root if beta == 0.75 else s.pow(-beta))).to(rows.dtype)


def _differentiable_gradient(rows: Tensor, grad: Tensor, window: Tensor, beta: float, k: float) -> Tensor:
    """The gradient in operations that can be differentiated again, as for a gradient penalty."""
    (gradient,) = torch.autograd.grad(differentiable_lrn(rows, window, beta, k), rows, grad, create_graph=True)
    return gradient


def _without_autocast(device: str) -> AbstractContextManager[None]:
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)  # meta has no autocast


def _chunks(rows: Tensor) -> tuple[Tensor, ...]:
    if rows.device.type != "cpu":
        return (rows,)
    return torch.split(rows, max(1, _CHUNK_ELEMENTS // rows.shape[1]))


def _negative_power(s: Tensor, beta: float) -> Tensor:
    """s^−β as a new tensor; the paper's β = 0.75 by two reciprocal square roots, which are ten times as fast.

    ``torch.sqrt`` is avoided: its first parallel call in a process sometimes computes half of its values to 12 bits
    only.
    """
    if beta == 0.75:
        root = s.rsqrt()  # s^−1/2; its own reciprocal square root is s^1/4
        return root.rsqrt().mul_(root).mul_(root)
    return s.pow(-beta)
