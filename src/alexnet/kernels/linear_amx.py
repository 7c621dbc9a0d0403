"""Large fully connected layers in bfloat16 training on a CPU with AMX.

They multiply the bfloat16 copies of weights that the optimizer keeps (:mod:`alexnet.kernels.optimizer`), in place of a
cast per step, and ``linear_amx.c`` computes the gradient of the weights, in bfloat16 like PyTorch's autocast, whose
``torch.nn.functional.linear`` is the reference implementation.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.kernels import native_kernels, optimizer
from alexnet.kernels.backend import first_derivative_only
from alexnet.kernels.native_kernels import LinearShape, pointer

_LARGE = 1 << 20  # weights from which a cast per step matters
_BLOCK = 32  # outputs and features are multiples of it


def fits(input: Tensor, weight: Tensor) -> bool:
    """Whether :func:`linear` computes this. Input [N, F] in training under autocast to bfloat16, weight [K, F]."""
    if not (torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
        return False
    if torch.get_autocast_dtype("cpu") != torch.bfloat16 or not native_kernels.is_cpu_tensor(input):
        return False
    return input.dim() == 2 and input.shape[1] == weight.shape[1] and len(input) > 0 and fits_weight(weight)


def fits_weight(weight: Tensor) -> bool:
    """Whether layers with this weight [K, F] train here: a large leaf in float32, and tiles can be used."""
    if not (native_kernels.in_use("linear_amx") and native_kernels.is_fast("linear_amx")):
        return False
    if not native_kernels.is_cpu_tensor(weight) or weight.dtype != torch.float32 or not weight.requires_grad:
        return False
    if not weight.is_leaf or not weight.is_contiguous() or weight.numel() < _LARGE:
        return False
    return all(size % _BLOCK == 0 for size in weight.shape)


def large_weights(model: nn.Module) -> Iterator[Tensor]:
    """The weights of ``model`` that :func:`fits_weight` accepts."""
    for module in model.modules():
        if type(module) is nn.Linear and fits_weight(module.weight):
            yield module.weight


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[N, F] times weight [K, F] transposed, plus bias [K] -> [N, K] in bfloat16."""
    out: Tensor = _Linear.apply(input, weight, bias)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, copy = input.to(torch.bfloat16).contiguous(), optimizer.bf16_copy(weight)
        ctx.save_for_backward(rows, copy)
        ctx.dtype, ctx.has_bias = input.dtype, bias is not None
        return F.linear(rows, copy, None if bias is None else bias.to(torch.bfloat16))

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, copy = ctx.saved_tensors
        grad = grad.to(torch.bfloat16).contiguous()
        d_input = (grad @ copy).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        d_weight = weight_gradient(grad, rows) if ctx.needs_input_grad[1] else None
        return d_input, d_weight, grad.sum(0) if ctx.has_bias else None


def weight_gradient(grad: Tensor, input: Tensor) -> Tensor:
    """``grad`` [N, K] transposed times ``input`` [N, F] -> [K, F], all bfloat16; K and F are multiples of 32."""
    (rows, outputs), features = grad.shape, input.shape[1]
    shape = LinearShape(rows, features, outputs, torch.get_num_threads())
    out = torch.empty(outputs, features, dtype=torch.bfloat16)
    scratch = torch.empty(native_kernels.scratch_size("linear_amx", "linear_amx_scratch_size", shape))
    function = native_kernels.function("linear_amx", "linear_amx_weight_gradient")
    function(ctypes.byref(shape), *map(pointer, (grad, input, out, scratch)))
    return out
