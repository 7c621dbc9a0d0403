"""The paper's comparisons: each is ``alexnet`` but for its one thing."""

import pytest
import torch
from torch import nn

from alexnet.models import Network, create_model
from alexnet.models.alexnet import PAPER
from alexnet.models.comparisons import TowerLinear
from alexnet.models.layers import Convolution

CHANGED = {  # layers that are not as in alexnet
    "alexnet_half": {"conv1", "norm1", "conv2", "norm2", "conv3", "conv4", "conv5"},
    "alexnet_no_norm": {"norm1", "norm2"},
    "alexnet_no_overlap": {"pool1", "conv2", "pool2", "conv5", "pool5"},
    "alexnet_separate": {"conv2", "conv3", "fc6", "fc7"},
    "alexnet_tanh": {f"{kind}{i}" for kind in ("relu", "tanh") for i in range(1, 8)},
}
PARAMETERS = {
    "alexnet_half": [17_472, 153_728, 221_376, 331_968, 442_624, 37_752_832, 16_781_312, 4_097_000],
    "alexnet_no_norm": [34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000],
    "alexnet_separate": [34_944, 384_320, 553_344, 663_936, 442_624, 37_756_928, 16_781_312, 4_097_000],
}
PARAMETERS["alexnet_no_overlap"] = PARAMETERS["alexnet_tanh"] = PARAMETERS["alexnet_no_norm"]
TOTALS = dict.fromkeys(CHANGED, 60_965_224) | {"alexnet_half": 59_798_312, "alexnet_separate": 60_714_408}
SIDE = 67


def shapes_only(name: str) -> Network:
    with torch.device("meta"):
        return create_model(name)


def small(name: str) -> Network:
    return create_model(name, num_classes=3, image_size=SIDE, generator=torch.Generator().manual_seed(0)).eval()


def image() -> torch.Tensor:
    return 255 * torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) - 127


@pytest.mark.parametrize("name", CHANGED)
def test_it_differs_in_its_one_thing(name):
    paper = {key: repr(layer) for key, layer in shapes_only("alexnet").named_children()}
    other = {key: repr(layer) for key, layer in shapes_only(name).named_children()}
    assert {key for key in paper | other if paper.get(key) != other.get(key)} == CHANGED[name]


@pytest.mark.parametrize("name", CHANGED)
def test_parameters(name):
    layers = [layer for layer in shapes_only(name).children() if next(layer.parameters(), None) is not None]
    counts = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    assert counts == PARAMETERS[name] and sum(counts) == TOTALS[name]


def test_sides_without_overlap():
    network, side, sides = shapes_only("alexnet_no_overlap"), 224, []
    for layer in network.children():
        if hasattr(layer, "window"):
            side = layer.window.out_size(side)
            sides.append(side)
    assert sides == [55, 28, 26, 13, 13, 13, 11, 6]
    assert [network.get_submodule(f"pool{i}").window[:2] for i in (1, 2, 5)] == [(2, 2)] * 3


def test_towers_never_talk():
    """Other filters in tower b's conv1: tower a stays as it was up to fc7, bit for bit; every part of b moves."""
    network, x = small("alexnet_separate"), image()
    with torch.no_grad():
        before = network.outputs(x)
        network.conv1.weight[48:] *= -3
        after = network.outputs(x)
    for name in ("conv1", "norm1", "pool1", "conv2", "norm2", "conv3", "conv4", "conv5", "flatten", "fc6", "fc7"):
        (a, b), (a_after, b_after) = (found[name].chunk(2, 1) for found in (before, after))
        assert torch.equal(a, a_after) and not torch.equal(b, b_after), name
    assert not torch.equal(before["fc8"], after["fc8"])


def test_the_papers_towers_talk_in_conv3():
    network, x = small("alexnet"), image()
    with torch.no_grad():
        before = network.outputs(x)
        network.conv1.weight[48:] *= -3
        after = network.outputs(x)
    assert torch.equal(before["pool2"].chunk(2, 1)[0], after["pool2"].chunk(2, 1)[0])
    assert not torch.equal(before["conv3"].chunk(2, 1)[0], after["conv3"].chunk(2, 1)[0])


def test_tower_linear_is_a_block_diagonal_matrix():
    layer, x = TowerLinear(6, 8, towers=2), torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    g = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).double()
    dense = torch.block_diag(*layer.weight.detach().double().chunk(2))  # [8, 6]
    right = x.detach().double() @ dense.T + layer.bias.detach().double()
    ours = layer(x)
    gx, gw, gb = torch.autograd.grad((ours * g).sum(), [x, layer.weight, layer.bias])
    full = g.T @ x.detach().double()  # [8, 6]: of the dense matrix, whose own blocks are the layer's
    assert torch.allclose(ours.double(), right, atol=1e-6) and torch.allclose(gx.double(), g @ dense, atol=1e-6)
    assert torch.allclose(gw.double(), torch.cat([full[:4, :3], full[4:, 3:]]), atol=1e-5)
    assert torch.allclose(gb.double(), g.sum(0), atol=1e-5)
    assert isinstance(layer, nn.Linear)  # decays as fully connected weights do
    assert repr(layer) == "TowerLinear(in_features=3, out_features=8, bias=True, towers=2)"


def test_half_is_one_tower_until_they_meet():
    half, whole, x = small("alexnet_half"), small("alexnet"), image()
    with torch.no_grad():
        for name in ("conv1", "conv2"):
            for kind in ("weight", "bias"):
                source = whole.get_submodule(name).get_parameter(kind)
                half.get_submodule(name).get_parameter(kind).copy_(source.chunk(2)[0])
        one, two = half.outputs(x)["pool2"], whole.outputs(x)["pool2"].chunk(2, 1)[0]
    assert (one - two).abs().max() < 2e-5 * two.abs().max()  # the grouped product sums in another order


def test_tanh_and_its_slope():
    network = small("alexnet_tanh")
    assert not any(isinstance(layer, nn.ReLU) for layer in network.modules()) and network.features == "tanh7"
    assert all((p == 0).all() for name, p in network.named_parameters() if name.endswith("bias"))
    assert {name: start.std for name, start in network.initial.items()} == {n: s.std for n, s in PAPER.items()}
    x = torch.linspace(-3, 3, 25).requires_grad_()
    y = network.tanh3(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    right = (x.double().exp() - (-x.double()).exp()) / (x.double().exp() + (-x.double()).exp())
    assert torch.allclose(y.double(), right, atol=1e-6) and torch.allclose(slope.double(), 1 - right**2, atol=1e-6)
    outputs = network.outputs(image())
    assert torch.equal(outputs["tanh1"], outputs["conv1"].tanh())


@pytest.mark.parametrize("name", CHANGED)
def test_both_initializations(name):
    with torch.device("meta"):
        first = create_model(name, initialization="paper").initial
        second = create_model(name, initialization="2012").initial
    assert {layer for layer in first if first[layer] != second[layer]} == {"conv3", "conv4", "conv5"}
    assert all(second[layer].std == 0.03 for layer in ("conv3", "conv4", "conv5"))
    assert {start.bias for start in second.values()} == ({0.0} if name == "alexnet_tanh" else {0.0, 1.0})


# ---- Networks with a middle layer left out: the others are as they were, and the next one sees what the lost one saw.


def learned(network):
    return {name: layer for name, layer in network.named_children() if isinstance(layer, Convolution | nn.Linear)}


@pytest.mark.parametrize("number", [3, 4, 5])
@pytest.mark.parametrize("name", ["alexnet", "alexnet_small"])
def test_one_layer_is_gone_and_the_next_takes_its_place(name, number):
    with torch.device("meta"):  # shapes alone
        whole, less = learned(create_model(name)), learned(create_model(f"{name}_no_conv{number}"))
        network = create_model(f"{name}_no_conv{number}")
    assert set(whole) - set(less) == {f"conv{number}"}
    changed = {key for key in less if less[key].weight.shape != whole[key].weight.shape or _groups(less, whole, key)}
    assert changed <= {{3: "conv4", 4: "conv5", 5: "fc6"}[number]}
    assert not any(key.endswith(str(number)) and "pool" not in key for key, _ in network.named_children())


def _groups(less, whole, key):
    return getattr(less[key], "groups", 0) != getattr(whole[key], "groups", 0)


def test_the_sizes_by_hand():
    with torch.device("meta"):
        shapes = {n: learned(create_model(f"alexnet_no_conv{n}")) for n in (3, 4, 5)}
    assert shapes[3]["conv4"].weight.shape == (384, 256, 3, 3)  # both towers, in place of conv3
    assert shapes[4]["conv5"].weight.shape == (256, 192, 3, 3)  # its own tower: the shape that it had
    assert shapes[5]["fc6"].weight.shape == (4096, 384 * 6 * 6)


def test_sums_start_as_wide_as_before():
    """Standard deviation times the root of the fan-in, in the layer that changed and in one that did not."""
    whole = create_model("alexnet_small", generator=torch.Generator().manual_seed(0))
    less = create_model("alexnet_small_no_conv5", generator=torch.Generator().manual_seed(0))

    def spread(layer):
        return layer.weight.std().item() * layer.weight[0].numel() ** 0.5

    assert less.fc6.weight.shape[1] == 96 * 9 != whole.fc6.weight.shape[1]
    for key in ("fc6", "conv4"):
        assert spread(less.get_submodule(key)) == pytest.approx(spread(whole.get_submodule(key)), rel=0.02)
    assert (less.fc6.bias == 1).all()


def test_it_computes():
    network = create_model("alexnet_small_no_conv3", generator=torch.Generator().manual_seed(0)).eval()
    x = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    kept = [layer for name, layer in network.named_children()]
    slow = x
    for layer in kept:
        slow = layer(slow)
    assert torch.allclose(network(x), slow, atol=1e-5) and slow.shape == (2, 10)
    outputs = network.outputs(x)
    assert outputs["conv4"].shape == (2, 96, 6, 6) and outputs["pool5"].shape == (2, 64, 3, 3)


@pytest.mark.parametrize("number", [3, 4, 5])
def test_both_initializations_of_the_paper_s_networks(number):
    with torch.device("meta"):
        own = create_model(f"alexnet_no_conv{number}").initial
        paper, code = (
            create_model(f"alexnet_no_conv{number}", initialization=kind).initial for kind in ("paper", "2012")
        )
    assert own.keys() == paper.keys() == code.keys()
    for layer, start in own.items():
        assert paper[layer] == pytest.approx(start)
        scale = 3 if layer in ("conv3", "conv4", "conv5") else 1  # 0.03 in place of 0.01
        assert code[layer] == pytest.approx((scale * start.std, start.bias))
