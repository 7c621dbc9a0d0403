"""Large fully connected layers in float32 on a CPU with AVX2 and without AVX-512, computed by ``linear_f32.c``.

For the rows of a batch, PyTorch's matrix multiplications reach a third to two thirds of the rate that these processors
have, on those of AMD at least (docs/performance.md). ``torch.nn.functional.linear`` is the reference implementation.
"""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.kernels import native_kernels
from alexnet.kernels.backend import first_derivative_only
from alexnet.kernels.native_kernels import LinearShape, pointer

_LARGE = 1 << 20  # weights from which the time for them matters
_MIN_ROWS = 5  # fewer rows wait for the memory: linear.c


def fits(input: Tensor, weight: Tensor) -> bool:
    """Whether :func:`linear` computes this by the kernel. Input [N, F], weight [K, F], both float32."""
    return is_product(input, weight) and weight.is_contiguous() and input.shape[1] == weight.shape[1]


def is_product(input: Tensor, matrix: Tensor) -> bool:
    """Whether ``input`` are enough rows, and ``matrix`` is large enough, for the kernel; whether it can be used."""
    if not (native_kernels.in_use("linear_f32") and native_kernels.is_fast("linear_f32")):
        return False
    if torch.is_autocast_enabled("cpu") or input.dtype != torch.float32 or matrix.dtype != torch.float32:
        return False
    if not (native_kernels.is_cpu_tensor(input) and native_kernels.is_cpu_tensor(matrix)):
        return False
    return input.dim() == matrix.dim() == 2 and len(input) >= _MIN_ROWS and matrix.numel() >= _LARGE


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[N, F] times weight [K, F] transposed, plus bias [K] -> [N, K], with gradients."""
    if not fits(input, weight):
        return F.linear(input, weight, bias)
    out: Tensor = _Linear.apply(input, weight, bias)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input = input.contiguous()
        ctx.save_for_backward(input, weight)
        ctx.has_bias = bias is not None
        return outputs(input, weight, bias)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        grad = grad.contiguous()
        d_input = product(grad, weight) if ctx.needs_input_grad[0] else None
        d_weight = weight_gradient(grad, input) if ctx.needs_input_grad[1] else None
        return d_input, d_weight, grad.sum(0) if ctx.has_bias else None


def outputs(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[N, F] times weight [K, F] transposed, plus bias [K] -> [N, K]. All are contiguous."""
    (size, features), out = weight.shape, input.new_empty(len(input), len(weight))
    return _call("linear_f32_forward", (len(input), features, size), input, weight, bias, out)


def product(input: Tensor, matrix: Tensor) -> Tensor:
    """[N, K] times [K, F] -> [N, F]. Both are contiguous."""
    (size, features), out = matrix.shape, input.new_empty(len(input), matrix.shape[1])
    return _call("linear_f32_input_gradient", (len(input), features, size), input, matrix, out)


def weight_gradient(grad: Tensor, input: Tensor) -> Tensor:
    """``grad`` [N, K] transposed times ``input`` [N, F] -> [K, F]. Both are contiguous."""
    out = input.new_empty(grad.shape[1], input.shape[1])
    return _call("linear_f32_weight_gradient", (len(input), input.shape[1], grad.shape[1]), grad, input, out)


def _call(symbol: str, sizes: tuple[int, int, int], *tensors: Tensor | None) -> Tensor:
    """Call a function of ``linear_f32.c``; the last of ``tensors`` is its result."""
    shape, out = LinearShape(*sizes, torch.get_num_threads()), tensors[-1]
    assert out is not None
    scratch = out.new_empty(native_kernels.scratch_size("linear_f32", "linear_f32_scratch_size", shape))
    native_kernels.function("linear_f32", symbol)(ctypes.byref(shape), *map(pointer, (*tensors, scratch)))
    return out
