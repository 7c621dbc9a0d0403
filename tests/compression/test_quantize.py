"""Which layers, how many bits, and what is left of their weights."""

import copy

import pytest
import torch
from torch import nn

from alexnet.compression import stages
from alexnet.models import create_model


@pytest.fixture
def network():
    return create_model("lenet5", generator=torch.Generator().manual_seed(0))


def test_weights_but_no_biases(network):
    names = list(stages.weight_tensors(network))
    assert names == [name for name, p in network.named_parameters() if p.dim() > 1]
    bits = stages.code_bits(network, 8, 5)
    kinds = {name: type(network.get_submodule(name.removesuffix(".weight"))) for name in names}
    assert {name: 5 if issubclass(kind, nn.Linear) else 8 for name, kind in kinds.items()} == bits
    assert set(bits.values()) == {5, 8}


def test_shared_and_whole_weights(network):
    before = copy.deepcopy(network)
    coding = stages.share_weights(network, stages.code_bits(network, 6, 3))
    for name, weight in stages.weight_tensors(network).items():
        assert coding[name] == "shared"
        assert 1 < len(weight.unique()) <= (8 if name.startswith(("f6", "output")) else 64)
        assert torch.nn.functional.cosine_similarity(weight.flatten(), before.get_parameter(name).flatten(), 0) > 0.9
    for kind, steps in (("int8", 127), ("int4", 7)):
        rounded = copy.deepcopy(before)
        assert set(stages.round_to_integers(rounded, kind).values()) == {kind}
        for name, weight in stages.weight_tensors(rounded).items():
            original = before.get_parameter(name)
            assert (weight - original).abs().max() <= original.abs().max() / steps / 2 * 1.001
    for (name, a), (_, b) in zip(network.named_parameters(), before.named_parameters(), strict=True):
        if a.dim() < 2:
            assert torch.equal(a, b), name
