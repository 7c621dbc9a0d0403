"""bfloat16 for answers: weights of half the bytes, whose multiplications some processors compute faster.

One image at a time takes as long as the weights of fully connected layers take to be read, on any processor; so those
are halved everywhere (:mod:`alexnet.kernels.linear` multiplies by them in float32 where it can), the rest where
multiplications
are faster too. A logit moves by about 0.4 % of the largest.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.kernels import linear, native_kernels
from alexnet.models import layers


class Halved(nn.Module):
    """A copy of ``network`` that answers in bfloat16: all of it, or its fully connected layers alone.

    Float32 [N, C, H, W] in, float32 [N, K] out. It can not be trained.
    """

    def __init__(self, network: nn.Module, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        # What is halved is handed to the copy as already made: no moment has all of it twice in float32.
        made = _halved_tensors(network) if whole else _halved_layers(network)
        self.network = layers.keep(layers.copied(network, made).eval().requires_grad_(False))

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.network(input.to(torch.bfloat16) if self.whole else input)
        return out.float()


def _halved_tensors(network: nn.Module) -> dict[int, Any]:
    results: dict[int, Any] = {id(p): nn.Parameter(p.detach().to(torch.bfloat16)) for p in network.parameters()}
    return results | {id(b): b.to(torch.bfloat16) for b in network.buffers() if b.is_floating_point()}


def _halved_layers(network: nn.Module) -> dict[int, Any]:
    return {
        id(layer): _HalfLinear(layer)
        for layer in network.modules()
        if type(layer) is nn.Linear and not native_kernels.hooked(layer)
    }


class _HalfLinear(nn.Module):
    """Its weights lie as :func:`thin.packed` has them from the first time on that the kernel multiplies by them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.outputs = nn.Parameter(layer.weight.detach().to(torch.bfloat16)), layer.out_features
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(torch.bfloat16))

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if linear.fits(input, weight):
            if weight.dim() == 2:
                with torch.inference_mode(False):
                    self.weight = weight = nn.Parameter(linear.packed(weight), requires_grad=False)
            return linear.product(input, weight, self.bias, self.outputs)
        plain = weight if weight.dim() == 2 else linear.unpacked(weight, self.outputs)
        return F.linear(input.to(torch.bfloat16), plain, self.bias).to(input.dtype)
