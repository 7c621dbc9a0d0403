"""The networks for small and medium images: what stays the same in each variant, and what is different."""

import pytest
import torch
from torch import nn

from alexnet.models import create_model, list_models
from alexnet.models.layers import Convolution, LocalResponseNorm, MaxPool
from alexnet.models.summary import summarize


def make(name, **options):
    return create_model(name, generator=torch.Generator().manual_seed(0), **options).eval()


def learned(network):
    return {name: layer for name, layer in network.named_children() if next(layer.parameters(), None) is not None}


@pytest.mark.parametrize(
    ("name", "side", "maps", "hidden"), [("alexnet_small", 24, 4, 8), ("alexnet_medium", 56, 2, 4)]
)
def test_the_plan_is_the_papers(name, side, maps, hidden):
    """The order of layers is that of ``alexnet``; maps are a quarter or half, hidden units an eighth or a quarter."""
    with torch.device("meta"):  # shapes alone
        big = create_model("alexnet")
    few = make(name)
    assert list(few.outputs(torch.zeros(1, 3, side, side))) == [name for name, _ in big.named_children()]
    for name, layer in learned(few).items():
        big_layer = big.get_submodule(name)
        assert type(layer) is type(big_layer)
        if isinstance(layer, Convolution):
            assert (maps * layer.out_channels, layer.groups) == (big_layer.out_channels, big_layer.groups)
        assert (layer.bias == big.initial[name].bias).all()
    assert (few.fc6.out_features * hidden, few.fc7.out_features * hidden) == (4096, 4096)
    assert (few.towers, few.features) == (2, "relu7")


def test_maps_are_even_where_they_are_pooled():
    for name in ("alexnet_small", "alexnet_small_no_overlap"):
        outputs = make(name).outputs(torch.zeros(1, 3, 24, 24))
        assert [outputs[f"pool{i}"].shape[-1] for i in (1, 2, 5)] == [12, 6, 3]


def test_maps_of_medium_are_of_the_same_size_without_overlap_before_conv3():
    for name, sizes in (
        ("alexnet_medium", [27, 13, 13, 6, 6, 3]),
        ("alexnet_medium_no_overlap", [27, 14, 12, 6, 6, 3]),
    ):
        outputs = make(name).outputs(torch.zeros(1, 3, 56, 56))
        layers = ("conv1", "pool1", "conv2", "pool2", "conv5", "pool5")
        assert [outputs[layer].shape[-1] for layer in layers] == sizes


def test_parameters_by_hand():
    """conv1 24·(75+1), conv2 64·(300+1), conv3 96·(576+1), conv4 96·(432+1), conv5 64·(432+1), then 576, 512, 512."""
    assert summarize(make("alexnet_small")).parameters == (
        24 * 76 + 64 * 301 + 96 * 577 + 96 * 433 + 64 * 433 + 512 * 577 + 512 * 513 + 10 * 513
    )
    medium = summarize(make("alexnet_medium"))
    assert medium.multiply_adds == (
        27 * 27 * 48 * 147 + 169 * 128 * 600 + 36 * (192 * 1152 + 192 * 864 + 128 * 864) + 1024 * (1152 + 1024 + 200)
    )
    assert summarize(make("figure1_relu")).parameters == 32 * 76 + 32 * 801 + 64 * 801 + 10 * 1025


@pytest.mark.parametrize("name", ["alexnet_small", "alexnet_medium"])
def test_each_variant_leaves_out_what_it_says(name):
    base = make(name)
    kinds = [type(layer) for layer in base.children()]
    no_norm = [type(layer) for layer in make(f"{name}_no_norm").children()]
    assert no_norm == [kind for kind in kinds if kind is not LocalResponseNorm]
    pools = [m.window[:2] for m in make(f"{name}_no_overlap").children() if isinstance(m, MaxPool)]
    assert pools == [(2, 2)] * 3
    for suffix, kind in (("tanh", nn.Tanh), ("sigmoid", nn.Sigmoid)):
        other = make(f"{name}_{suffix}")
        assert [nn.ReLU if type(m) is kind else type(m) for m in other.children()] == kinds
        assert all((layer.bias == 0).all() for layer in learned(other).values())


@pytest.mark.parametrize("name", ["alexnet_small", "alexnet_medium"])
def test_one_tower_of_equal_cost_and_one_of_half_the_kernels(name):
    two, one, half = (summarize(make(f"{name}{suffix}")) for suffix in ("", "_single", "_half"))
    assert one.multiply_adds == pytest.approx(two.multiply_adds, rel=0.01)
    assert half.multiply_adds < 0.6 * two.multiply_adds
    for suffix in ("_single", "_half"):
        network = make(name + suffix)
        assert network.towers == 1
        assert all(layer.groups == 1 for layer in network.children() if isinstance(layer, Convolution))


def test_towers_do_not_talk_in_their_own_layers():
    network = make("alexnet_small")
    x = torch.randn(1, 24, 12, 12, generator=torch.Generator().manual_seed(1))
    other = x.clone()
    other[:, 12:] += 1  # tower b
    assert torch.equal(network.conv2(x)[:, :32], network.conv2(other)[:, :32])
    assert not torch.equal(network.conv2(x)[:, 32:], network.conv2(other)[:, 32:])


@pytest.mark.parametrize("network", ["alexnet_small", "alexnet_medium"])
def test_sums_start_as_wide_as_in_the_big_network(network):
    """Weight std times the root of the fan-in is that of the paper's layer; conv3 to conv5 as in the 2012 code."""
    for name, layer in learned(make(network)).items():
        fan_in, std = {
            "conv1": (363, 0.01),
            "conv2": (1200, 0.01),
            "conv3": (2304, 0.03),
            "conv4": (1728, 0.03),
            "conv5": (1728, 0.03),
            "fc6": (9216, 0.01),
            "fc7": (4096, 0.01),
            "fc8": (4096, 0.01),
        }[name]
        spread = layer.weight.std().item() * layer.weight[0].numel() ** 0.5
        assert spread == pytest.approx(std * fan_in**0.5, rel=0.06)  # 1,800 draws in the smallest: 3.6 sigma


def test_figure1_differs_in_its_neurons_alone():
    relu, tanh, sigmoid = (make(f"figure1_{name}") for name in ("relu", "tanh", "sigmoid"))
    assert len(learned(relu)) == 4
    for network, kind in ((tanh, nn.Tanh), (sigmoid, nn.Sigmoid)):
        for (name, a), (other, b) in zip(learned(relu).items(), learned(network).items(), strict=True):
            assert name == other and torch.equal(a.weight, b.weight) and (a.bias == 0).all() and (b.bias == 0).all()
        kinds = [nn.ReLU if type(m) is kind else type(m) for m in network.children()]
        assert kinds == [type(m) for m in relu.children()]
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        slow = x
        for conv in (tanh.conv1, tanh.conv2, tanh.conv3):
            slow = nn.functional.conv2d(slow, conv.weight, conv.bias, padding=2).tanh()
            slow = nn.functional.max_pool2d(slow, 3, 2, ceil_mode=True)
        slow = nn.functional.linear(slow.flatten(1), tanh.fc4.weight, tanh.fc4.bias)
        assert torch.allclose(tanh(x), slow, atol=1e-6)


def test_figure1_starts_as_the_net_of_2012_or_wide():
    for name, expected in {
        "figure1_tanh": {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc4": 0.01},
        "figure1_relu_wide": {"conv1": 75**-0.5, "conv2": 800**-0.5, "conv3": 800**-0.5, "fc4": 1024**-0.5},
    }.items():
        for layer, module in learned(make(name)).items():
            assert module.weight.std().item() == pytest.approx(expected[layer], rel=0.05)


def test_all_are_registered():
    for prefix, side, count in (("alexnet_small", 16, 10), ("alexnet_medium", 26, 10), ("figure1", 16, 5)):
        names = [name for name in list_models() if name.startswith(prefix)]
        assert len(names) == count
        for name in names:
            x = torch.zeros(2, 1, side, side)
            assert make(name, num_classes=3, in_channels=1, image_size=side)(x).shape == (2, 3)
