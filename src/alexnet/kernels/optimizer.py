"""Updates of weights in one pass over memory, computed by ``optimizer.c``, and bfloat16 copies of weights.

A training step in PyTorch operations reads the gradients to clip them, reads and writes weights and optimizer state,
and casts the weights to bfloat16 for the next step. Here the update clips and writes the bfloat16 copy too.
``torch.optim`` is the reference implementation; results agree to float32 rounding.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from alexnet.kernels import native_kernels
from alexnet.kernels.native_kernels import pointer

_PART = 1 << 15  # PART of optimizer.c
_copies: Any = WeakIdKeyDictionary()  # weight -> (its version, its bfloat16 copy)


def bf16_copy(weight: Tensor) -> Tensor:
    """The values of ``weight`` in bfloat16, in the memory format of ``weight``; do not write to it.

    It is kept between calls and cast again when PyTorch counts a change of the weight. :func:`sgd_` and :func:`adamw_`
    update it.
    """
    version, copy = _copies.get(weight, (-1, None))
    if copy is None or version != weight._version or copy.shape != weight.shape:
        copy = torch.empty_like(weight, dtype=torch.bfloat16, requires_grad=False)
        with torch.no_grad():
            copy.copy_(weight)
        _copies[weight] = weight._version, copy
    return copy  # type: ignore[no-any-return]


def fits(weights: Sequence[Tensor]) -> bool:
    """Whether the kernels update these weights: float32 in dense CPU memory, gradients in float32 or bfloat16."""
    if not native_kernels.in_use("optimizer"):
        return False
    return all(
        native_kernels.is_cpu_tensor(weight)
        and weight.dtype == torch.float32
        and _is_dense(weight)
        and weight.grad is not None
        and weight.grad.dtype in native_kernels.DTYPE_NAMES
        and not weight.grad.is_sparse
        for weight in weights
    )


def norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, a scalar; squares are summed in float32 parts and added in float64."""
    total = 0.0
    for gradient in gradients:
        dense = gradient if _is_dense(gradient) else gradient.contiguous()
        sums = torch.zeros(-(-dense.numel() // _PART), dtype=torch.float64)
        function = native_kernels.function("optimizer", f"sum_squares_{native_kernels.DTYPE_NAMES[dense.dtype]}")
        function(pointer(dense), *map(ctypes.c_int64, (dense.numel(), torch.get_num_threads())), pointer(sums))
        total += float(sums.sum())
    return torch.tensor(math.sqrt(total))


def sgd_(
    weight: Tensor, momentum_buffer: Tensor, *, first: bool, lr: float, momentum: float, decay: float, scale: float
) -> None:
    """``torch.optim.SGD``'s update of ``weight`` by ``scale`` times its gradient.

    Args:
        weight: The weight, updated in place.
        momentum_buffer: Its momentum, updated in place.
        first: Whether ``momentum_buffer`` has no values yet.
        lr: Learning rate.
        momentum: Factor of the momentum.
        decay: Weight decay.
        scale: Factor of the gradient.
    """
    _update("sgd", weight, (momentum_buffer,), (int(first),), (lr, momentum, decay, scale))


def adamw_(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    scale: float,
) -> None:
    """``torch.optim.AdamW``'s update of ``weight`` by ``scale`` times its gradient.

    Args:
        weight: The weight, updated in place.
        exp_avg: The running mean of gradients, updated in place.
        exp_avg_sq: The running mean of their squares, updated in place.
        step: Number of this update, from 1.
        lr: Learning rate.
        betas: Decay rates of the two means.
        eps: Added to the root of ``exp_avg_sq``.
        decay: Weight decay.
        scale: Factor of the gradient.
    """
    first, second = betas
    corrections = 1 - first**step, math.sqrt(1 - second**step)
    values = lr, 1 - first, second, 1 - second, eps, decay, *corrections, scale
    _update("adamw", weight, (exp_avg, exp_avg_sq), (), values)


def _update(
    rule: str, weight: Tensor, state: tuple[Tensor, ...], flags: tuple[int, ...], values: tuple[float, ...]
) -> None:
    gradient = weight.grad
    assert gradient is not None
    if gradient.stride() != weight.stride():
        gradient = torch.empty_like(weight, dtype=gradient.dtype, requires_grad=False).copy_(gradient)
    version, copy = _copies.get(weight, (-1, None))
    copy = copy if version == weight._version else None
    function = native_kernels.function("optimizer", f"{rule}_{native_kernels.DTYPE_NAMES[gradient.dtype]}")
    function(
        *map(pointer, (weight, gradient, *state, copy)),
        *map(ctypes.c_int64, (weight.numel(), torch.get_num_threads())),
        *map(ctypes.c_int, flags),
        *map(ctypes.c_float, values),
    )
    torch.autograd.graph.increment_version(weight)
    if copy is not None:
        _copies[weight] = weight._version, copy


def _is_dense(tensor: Tensor) -> bool:
    """Whether the values fill a piece of memory without gaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True
