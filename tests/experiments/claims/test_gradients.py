"""Gradients and slopes by layer against PyTorch's own, and what saturation does to them."""

import pytest
import torch
import torch.nn.functional as F

from alexnet.experiments.claims.gradients import layer_gradients
from alexnet.models import create_model

SLOPES = {"relu": lambda x: (x > 0).float(), "tanh": lambda x: 1 - x.tanh() ** 2, "sigmoid": lambda x: _sigmoid(x)}


def _sigmoid(x):
    return torch.exp(-x) / (1 + torch.exp(-x)) ** 2


def network_of(kind, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    network = create_model(f"alexnet_small_{kind}".removesuffix("_relu"), image_size=16, generator=generator).eval()
    with torch.no_grad():
        network.conv2.weight.mul_(scale)
    x = torch.randn(6, 3, 16, 16, generator=generator)
    return network, x, torch.arange(6) % 3


@pytest.mark.parametrize("kind", SLOPES)
def test_gradients_and_slopes_are_those_of_plain_pytorch(kind):
    network, x, labels = network_of(kind)
    rows = {row.layer: row for row in layer_gradients(network, x, labels)}
    assert list(rows) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert all(parameter.grad is None for parameter in network.parameters())
    F.cross_entropy(network(x), labels).backward()
    with torch.no_grad():
        before = network.outputs(x)
    for name, row in rows.items():
        weight = network.get_submodule(name).weight
        assert row.gradient == pytest.approx(float(weight.grad.norm() / weight.detach().norm()), rel=1e-4)
        expected = None if name == "fc8" else float(SLOPES[kind](before[name]).mean())
        assert row.slope == (None if expected is None else pytest.approx(expected, rel=1e-4))


def test_units_that_saturate_pass_smaller_gradients():
    plain, saturated = ({row.layer: row for row in layer_gradients(*network_of("tanh", k))} for k in (1, 1000))
    assert saturated["conv2"].slope < 0.05 < 0.5 < plain["conv2"].slope
    assert saturated["conv1"].slope == plain["conv1"].slope
