"""Networks with a middle layer left out: the others are as they were, and the next one sees what the lost one saw."""

import pytest
import torch
from torch import nn

from alexnet.models import create_model
from alexnet.models.layers import Convolution


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
