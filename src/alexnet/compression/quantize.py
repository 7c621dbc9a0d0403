"""Quantization of a network's weights: to 8- or 4-bit integers, or to a few values that the weights share."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from alexnet.bundle import codec
from alexnet.bundle.compressed_weights import as_array

Method = Literal["deep", "int8", "int4"]


def weight_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The weights that are compressed (all but biases), by parameter name, in the network's order."""
    return {name: p for name, p in network.named_parameters() if p.dim() >= 2}


def code_bits(network: nn.Module, conv: int, fc: int) -> dict[str, int]:
    """Parameter name -> bits of a code: ``fc`` in fully connected layers, ``conv`` in all others.

    Han et al. 2016 take 5 and 8.
    """
    return {
        name: fc if isinstance(network.get_submodule(name.rpartition(".")[0]), nn.Linear) else conv
        for name in weight_tensors(network)
    }


@torch.no_grad()
def share_weights(network: nn.Module, bits: Mapping[str, int]) -> dict[str, str]:
    """Replace the weights of the named layers, in place, by at most 2^bits shared values; returns name -> coding."""
    for name, width in bits.items():
        weight = network.get_parameter(name)
        weight.copy_(torch.from_numpy(codec.share(as_array(weight), width)))
    return dict.fromkeys(bits, "shared")


@torch.no_grad()
def round_to_integers(network: nn.Module, kind: Literal["int8", "int4"]) -> dict[str, str]:
    """Round all weights but biases, in place, to integers times a scale; returns name -> coding."""
    for weight in weight_tensors(network).values():
        values = as_array(weight)
        largest = codec.largest_of(values, kind)
        integers = codec.integers(values, largest, kind)
        weight.copy_(torch.from_numpy(codec.from_whole(integers, largest, kind, values.shape)))
    return dict.fromkeys(weight_tensors(network), kind)
