"""Autocast to bfloat16 on CPUs that multiply float32 faster: values rounded to bfloat16, multiplied in float32.

Autocast rounds a layer's inputs, weights and outputs to bfloat16. Products of bfloat16 numbers are exact in float32,
and both ways sum in float32, so the native convolutions can compute what autocast defines with float32 instructions.
PyTorch's own bfloat16 multiplications are the reference implementation.
"""

from typing import Any

import torch
from torch import Tensor


def bf16_is_faster(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32, by its capabilities and without measuring time.

    GPUs: wherever they support it. CPUs: with AMX, or AMD's AVX-512 (measured: 2.0 times float32). Intel's AVX-512
    bf16 without AMX is slower than float32 (measured: 27 against 43 images/s).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    cpu = torch.cpu.get_capabilities()
    return bool(cpu.get("amx_bf16") or (cpu.get("avx512_bf16") and str(cpu.get("cpu_name", "")).startswith("AMD")))


def computes_in_float32(*tensors: Tensor) -> bool:
    """Whether these tensors are to be multiplied in float32: as float32, or under an autocast to bfloat16."""
    if not torch.is_autocast_enabled("cpu"):
        return all(tensor.dtype == torch.float32 for tensor in tensors)
    if torch.get_autocast_dtype("cpu") != torch.bfloat16 or bf16_is_faster(torch.device("cpu")):
        return False
    return all(tensor.dtype in (torch.float32, torch.bfloat16) for tensor in tensors)


def apply(
    function: type[torch.autograd.Function], input: Tensor, weight: Tensor, bias: Tensor | None, *args: Any
) -> Tensor:
    """``function.apply(input, weight, bias, *args)``; under autocast with rounded tensors, and a bfloat16 result."""
    out: Tensor
    if not torch.is_autocast_enabled("cpu"):
        out = function.apply(input, weight, bias, *args)
        return out
    with torch.autocast("cpu", enabled=False):
        rounded_bias = None if bias is None else _rounded(bias)
        out = function.apply(_rounded(input), _rounded(weight), rounded_bias, *args)
        return out.to(torch.bfloat16)


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16).float()
