"""Inference in bfloat16: weights of half the bytes, whose multiplications some processors compute faster.

One image at a time takes as long as the weights of the fully connected layers take to be read, on any processor. So
these are stored in bfloat16 everywhere (:mod:`alexnet.kernels.linear` multiplies them in float32 where it can), the
other layers only where the device multiplies bfloat16 faster. A logit changes by about 0.4 % of the largest logit.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.kernels import linear
from alexnet.kernels.tracing import has_hooks
from alexnet.models import layers


class BF16Network(nn.Module):
    """A copy of a network for inference in bfloat16. It cannot be trained.

    Input float32 [N, C, H, W], output float32 [N, K].

    Args:
        network: The network to copy.
        all_layers: Whether all layers compute in bfloat16, or only the fully connected ones.
    """

    def __init__(self, network: nn.Module, all_layers: bool) -> None:
        super().__init__()
        self.all_layers = all_layers
        # Converted parts are handed to the copy as replacements, so that no second float32 copy is ever in memory.
        replacements = _bf16_tensors(network) if all_layers else _bf16_linear_layers(network)
        self.network = layers.cache_filters(layers.copy_with(network, replacements).eval().requires_grad_(False))

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.network(input.to(torch.bfloat16) if self.all_layers else input)
        return out.float()


def _bf16_tensors(network: nn.Module) -> dict[int, Any]:
    tensors: dict[int, Any] = {id(p): nn.Parameter(p.detach().to(torch.bfloat16)) for p in network.parameters()}
    return tensors | {id(b): b.to(torch.bfloat16) for b in network.buffers() if b.is_floating_point()}


def _bf16_linear_layers(network: nn.Module) -> dict[int, Any]:
    modules = (module for module in network.modules() if type(module) is nn.Linear and not has_hooks(module))
    return {id(module): _BF16Linear(module) for module in modules}


class _BF16Linear(nn.Module):
    """A fully connected layer with bfloat16 weights, packed (:func:`linear.packed`) when the kernel first uses them."""

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
            return linear.linear_bf16(input, weight, self.bias, self.outputs)
        unpacked = weight if weight.dim() == 2 else linear.unpacked(weight, self.outputs)
        return F.linear(input.to(torch.bfloat16), unpacked, self.bias).to(input.dtype)
