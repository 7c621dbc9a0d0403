"""bfloat16 for answers: weights of half the bytes, whose products some processors compute sooner.

One picture at a time takes as long as the weights of fully connected layers take to be read, on any processor; so those
are halved everywhere, the rest where products are faster too. A logit moves by about 0.4 % of the largest.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def faster(device: torch.device) -> bool:
    """Are products in bfloat16 faster than in float32 there? By what the processor is, never by a stopwatch.

    GPUs: wherever they support it. Processors: with AMX, or AMD's AVX-512 (measured: 2.0 times float32). Intel's
    AVX-512 bf16 without AMX is slower than float32 (measured: 27 against 43 images/s).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    cpu = torch.cpu.get_capabilities()
    return bool(cpu.get("amx_bf16") or (cpu.get("avx512_bf16") and str(cpu.get("cpu_name", "")).startswith("AMD")))


class Halved(nn.Module):
    """A copy of ``network`` that answers in bfloat16: all of it, or its fully connected layers alone.

    Float32 [N, C, H, W] in, float32 [N, K] out. It can not be trained.
    """

    def __init__(self, network: nn.Module, whole: bool) -> None:
        super().__init__()
        self.network, self.whole = copy.deepcopy(network).eval().requires_grad_(False), whole
        if whole:
            self.network.to(torch.bfloat16)
            return
        for parent in list(self.network.modules()):
            for name, layer in list(parent.named_children()):
                if type(layer) is nn.Linear:
                    setattr(parent, name, _HalfLinear(layer))

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.network(input.to(torch.bfloat16) if self.whole else input)
        return out.float()


class _HalfLinear(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.to(torch.bfloat16)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.to(torch.bfloat16), self.layer.weight, self.layer.bias).to(input.dtype)
