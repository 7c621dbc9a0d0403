"""Plain and residual networks against the sizes that He et al. print, and their shortcut against its definition."""

import pytest
import torch
from torch import nn

from alexnet.errors import ModelError
from alexnet.models import create_model, list_models
from alexnet.models.comparisons import DEPTHS, Block, model_name
from alexnet.models.summary import summarize


def built(depth, shortcut, **options):
    return create_model(model_name(depth, shortcut), generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_parameters_are_those_of_table_6(depth, millions):
    both = [sum(p.numel() for p in built(depth, shortcut).parameters()) for shortcut in (False, True)]
    assert both[0] == both[1] and round(both[0] / 1e6, 2) == millions


@pytest.mark.parametrize("depth", DEPTHS)
def test_they_are_as_deep_as_their_names(depth):
    network = built(depth, True)
    learned = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(learned) == depth
    maps = [tuple(output.shape[1:]) for output in network.eval().outputs(torch.zeros(1, 3, 32, 32)).values()]
    assert maps[0] == (16, 32, 32) and (32, 16, 16) in maps and maps[-4] == (64, 8, 8) and maps[-1] == (10,)


def test_the_shortcut_is_every_second_pixel_and_zeros():
    block = Block(2, 4, 2, shortcut=True).eval()
    for convolution in (block.conv1, block.conv2):
        nn.init.zeros_(convolution.weight)
    x = torch.rand(1, 2, 6, 6)
    out = block(x)
    assert torch.equal(out[:, :2], x[:, :, ::2, ::2]) and not out[:, 2:].any()
    plain = Block(2, 4, 2, shortcut=False).eval()
    plain.load_state_dict(block.state_dict())
    assert not plain(x).any()


def test_only_the_sum_differs():
    plain, residual = built(14, False), built(14, True)
    assert {k: tuple(v.shape) for k, v in plain.state_dict().items()} == {
        k: tuple(v.shape) for k, v in residual.state_dict().items()
    }
    assert summarize(plain).multiply_adds == summarize(residual).multiply_adds
    assert not torch.equal(plain.eval()(torch.ones(1, 3, 32, 32)), residual.eval()(torch.ones(1, 3, 32, 32)))


def test_weights_start_for_rectifiers():
    """N(0, 2 / fan-in) from the generator that is passed in; batch norms at one and zero."""
    network = built(20, False)
    weight = network.block3_2.conv1.weight
    assert float(weight.detach().std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert (network.block3_2.bn1.weight == 1).all() and (network.block3_2.bn1.bias == 0).all()
    assert torch.equal(weight, built(20, False).block3_2.conv1.weight)
    with pytest.raises(ModelError, match="image_size 4 is too small for plain_8; must be at least 5 pixels"):
        built(8, False, image_size=4)
    assert len(DEPTHS) == 6 and {model_name(d, s) for d in DEPTHS for s in (True, False)} <= set(list_models())
