"""A peer must compute the same network, or the ratio says nothing."""

import pytest
import torch

from alexnet.benchmark import peers
from alexnet.benchmark.runner import Skipped
from alexnet.models import create_model
from alexnet.models.summary import summarize


@pytest.mark.parametrize("name", ["cifar_18pct", "cifar_80sec", "alexnet_small"])
def test_plain_modules_answer_alike(name):
    network = create_model(name, generator=torch.Generator().manual_seed(0))
    images = torch.randn(3, network.in_channels, network.image_size, network.image_size) * 60
    other = peers.plain(network)
    assert peers.max_relative_diff(other, network, images) < 1e-5
    assert all(type(module).__module__.startswith(("torch.nn", "alexnet.benchmark")) for module in other.modules())


def test_the_two_towers_and_the_last_window_are_there():
    """224 pixels: the last of 55 windows reads past the edge, so a pad stands before the first convolution."""
    network = create_model("alexnet", num_classes=5, image_size=64, generator=torch.Generator().manual_seed(0))
    images = torch.randn(2, 3, 64, 64) * 60
    other = peers.plain(network)
    assert type(other[0]) is torch.nn.ZeroPad2d and any(isinstance(layer, peers.TowerNorm) for layer in other)
    assert peers.max_relative_diff(other, network, images) < 1e-5
    with torch.no_grad():
        other[-1].weight[0] += 0.1
    assert peers.max_relative_diff(other, create_model("alexnet", num_classes=5, image_size=64), images) > 1e-3


def test_what_torch_has_not_is_left_out():
    with pytest.raises(Skipped, match="LocallyConnected"):
        peers.plain(create_model("cifar_13pct"))


def test_torchvisions_network_has_the_multiplications_that_are_counted():
    counted = summarize(peers.build_on_meta(peers.TORCHVISION)).parameters
    with torch.device("meta"):
        assert sum(p.numel() for p in peers.torchvision_alexnet().parameters()) == counted == 61_100_840
