"""Weights in whole numbers of 8 or 4 bits, or sharing values: which layers, and what becomes of their weights."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from alexnet.compression import clustering, tensors
from alexnet.compression.file import as_array

Method = Literal["deep", "int8", "int4"]


def layers(network: nn.Module) -> dict[str, Tensor]:
    """The weights that are worth it, by parameter name, in the network's order: all but biases."""
    return {name: p for name, p in network.named_parameters() if p.dim() >= 2}


def bits_of(network: nn.Module, conv: int, fc: int) -> dict[str, int]:
    """Bits of a code: ``fc`` in fully connected layers, ``conv`` in all others (Han et al. 2016: 5 and 8)."""
    return {
        name: fc if isinstance(network.get_submodule(name.rpartition(".")[0]), nn.Linear) else conv
        for name in layers(network)
    }


@torch.no_grad()
def share(network: nn.Module, bits: Mapping[str, int]) -> dict[str, str]:
    """Replace the weights of the named layers, in place, by shared ones; returns layer -> kind for the file."""
    for name, width in bits.items():
        weight = network.get_parameter(name)
        weight.copy_(torch.from_numpy(clustering.share(as_array(weight), width)))
    return dict.fromkeys(bits, "shared")


@torch.no_grad()
def whole(network: nn.Module, kind: Literal["int8", "int4"]) -> dict[str, str]:
    """Round all weights but biases, in place, to whole numbers times a magnitude; returns layer -> kind."""
    for weight in layers(network).values():
        values = as_array(weight)
        largest = tensors.largest_of(values, kind)
        numbers = tensors.whole_numbers(values, largest, kind)
        weight.copy_(torch.from_numpy(tensors.from_whole(numbers, largest, kind, values.shape)))
    return dict.fromkeys(layers(network), kind)
