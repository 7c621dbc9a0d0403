"""Training in bfloat16 on a processor that multiplies float32 faster: its values, multiplied in float32.

Autocast rounds what a layer is given, its weights and what it answers to bfloat16; multiplications of such numbers
are exact
in float32, and summed in it here as there. So convolutions of this package's kernels compute what autocast means.
PyTorch's own multiplications in bfloat16 are the reference implementation: ``kernel.use(False)``, and
``--convolution plain`` for those that
need fewer multiplications.
"""

from typing import Any

import torch
from torch import Tensor


def bf16_is_faster(device: torch.device) -> bool:
    """Are multiplications in bfloat16 faster than in float32 there? By what the processor is, never by a stopwatch.

    GPUs: wherever they support it. Processors: with AMX, or AMD's AVX-512 (measured: 2.0 times float32). Intel's
    AVX-512 bf16 without AMX is slower than float32 (measured: 27 against 43 images/s).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    cpu = torch.cpu.get_capabilities()
    return bool(cpu.get("amx_bf16") or (cpu.get("avx512_bf16") and str(cpu.get("cpu_name", "")).startswith("AMD")))


def in_float32(*tensors: Tensor) -> bool:
    """Are these to be multiplied in float32? They are of it, or under an autocast that :func:`compute` meets."""
    if not torch.is_autocast_enabled("cpu"):
        return all(tensor.dtype == torch.float32 for tensor in tensors)
    if torch.get_autocast_dtype("cpu") != torch.bfloat16 or bf16_is_faster(torch.device("cpu")):
        return False
    return all(tensor.dtype in (torch.float32, torch.bfloat16) for tensor in tensors)


def compute(
    function: type[torch.autograd.Function], input: Tensor, weight: Tensor, bias: Tensor | None, *how: Any
) -> Tensor:
    """What ``function`` makes of these and of ``how``; under autocast of their rounded values, and rounded itself."""
    out: Tensor
    if not torch.is_autocast_enabled("cpu"):
        out = function.apply(input, weight, bias, *how)
        return out
    with torch.autocast("cpu", enabled=False):
        own = None if bias is None else _rounded(bias)
        out = function.apply(_rounded(input), _rounded(weight), own, *how)
        return out.to(torch.bfloat16)


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16).float()
