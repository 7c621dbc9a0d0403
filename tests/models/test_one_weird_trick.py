"""torchvision's alexnet, written again: same keys, same numbers, either way."""

import copy
import math

import pytest
import torch
import torchvision
from torch import Tensor

from alexnet.models import Network, create_model
from alexnet.models.alexnet_variants import AdaptiveAveragePool
from alexnet.models.layers import set_generator


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.alexnet(num_classes=7).eval()


@pytest.fixture(scope="module")
def ours() -> Network:
    return create_model("alexnet_owt", num_classes=7, generator=torch.Generator().manual_seed(0)).eval()


def test_it_starts_as_torchvisions(ours, theirs):
    """Same keys, shapes, order and, from the same seed, numbers: PyTorch draws layer by layer, weight, then bias."""
    found, right = ours.state_dict(), theirs.state_dict()
    assert list(found) == list(right)
    assert all(torch.allclose(found[key], right[key], rtol=1e-6, atol=0) for key in right)


@pytest.mark.parametrize("side", [63, 101, 224, 229])
def test_logits_are_torchvisions(ours, theirs, side):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = {key: torch.randn_like(value) * 0.05 for key, value in theirs.state_dict().items()}
    theirs = copy.deepcopy(theirs)
    theirs.load_state_dict(state)
    network = copy.deepcopy(ours)  # the names of its keys go with the copy
    network.load_state_dict(state)
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
    with torch.no_grad():
        found, right = network(x), theirs(x)
    assert (found - right).abs().max() <= 1e-5 * right.abs().max() and right.std() > 0.1


def test_weights_go_back_to_torchvision(ours):
    fresh = torchvision.models.alexnet(num_classes=7).eval()
    fresh.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 99, 99, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.allclose(fresh(x), ours(x), atol=1e-6)


def test_layers_and_parameters_keep_their_names(ours):
    assert [name for name, _ in ours.named_parameters()][:3] == ["conv1.weight", "conv1.bias", "conv2.weight"]
    assert ours.get_submodule("fc8").weight is dict(ours.named_parameters())["fc8.weight"]
    inside = torch.nn.Sequential(ours)  # in another module, as when it is trained on several devices
    keys = list(inside.state_dict())
    assert keys[0] == "0.features.0.weight" and keys[-1] == "0.classifier.6.bias" and len(keys) == 16


def test_what_is_missing_is_told_by_its_key(ours, theirs):
    network, state = copy.deepcopy(ours), theirs.state_dict()
    del state["features.3.bias"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"features\.3\.bias"'):
        network.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"classifier\.9\.weight"'):
        network.load_state_dict(theirs.state_dict() | {"classifier.9.weight": torch.zeros(1)})


def test_parameters_and_sizes():
    with torch.device("meta"):
        network = create_model("alexnet_owt")
    assert sum(p.numel() for p in network.parameters()) == 61_100_840
    assert network.features == "relu7" and network.towers == 1
    names = [name for name, _ in network.named_children()]
    assert names[-10:] == ["pool5", "avgpool", "flatten", "drop6", "fc6", "relu6", "drop7", "fc7", "relu7", "fc8"]


def test_dropout_on_the_inputs_repeats(ours):
    network = copy.deepcopy(ours).train()
    x = torch.randn(1, 3, 63, 63, generator=torch.Generator().manual_seed(3))
    results = []
    for seed in (4, 4, 5):
        set_generator(network, torch.Generator().manual_seed(seed))
        results.append(network.forward_to(x, "drop6"))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def slow_adaptive(x: Tensor, side: int) -> Tensor:
    def parts(size: int) -> list[slice]:
        return [slice(math.floor(i * size / side), math.ceil((i + 1) * size / side)) for i in range(side)]

    rows = [torch.stack([x[:, :, r, c].mean((2, 3)) for c in parts(x.shape[3])], -1) for r in parts(x.shape[2])]
    return torch.stack(rows, -2)


@pytest.mark.parametrize("size", [(1, 1), (4, 7), (6, 6), (8, 13)])
def test_adaptive_pool_follows_its_formula(size):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(AdaptiveAveragePool(6)(x), slow_adaptive(x, 6), atol=1e-12)
