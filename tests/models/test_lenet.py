import itertools

import pytest
import torch
import torch.nn.functional as F

from alexnet.models import create_model
from alexnet.models.lenet import TABLE_I, ScaledTanh, Subsampling, TableConvolution


def make(**options):
    return create_model("lenet5", generator=torch.Generator().manual_seed(0), **options).eval()


def test_parameters_are_the_papers():
    network = make()
    counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in network.named_children()}
    assert {name: count for name, count in counts.items() if count} == {
        "c1": 156,
        "s2": 12,
        "c3": 1516,
        "s4": 32,
        "c5": 48_120,
        "f6": 10_164,
        "output": 850,
    }
    assert sum(counts.values()) - counts["output"] == 60_000  # section II.B: "60,000 trainable free parameters"


def test_shapes_are_the_papers():
    shapes = {name: tuple(out.shape[1:]) for name, out in make().outputs(torch.zeros(1, 1, 32, 32)).items()}
    assert shapes["c1"] == (6, 28, 28) and shapes["s2"] == (6, 14, 14)
    assert shapes["c3"] == (16, 10, 10) and shapes["s4"] == (16, 5, 5)
    assert shapes["c5"] == (120, 1, 1) and shapes["f6"] == (84,) and shapes["output"] == (10,)


def test_table_i_as_the_paper_words_it():
    """Six triples and six fours of neighbors (cyclic), three of other fours, one of all; 60 connections in ten rows."""
    cyclic = [[tuple(sorted((start + i) % 6 for i in range(length))) for start in range(6)] for length in (3, 4)]
    assert list(TABLE_I[:6]) == cyclic[0] and list(TABLE_I[6:12]) == cyclic[1]
    assert all(len(row) == 4 and row not in cyclic[1] for row in TABLE_I[12:15])
    assert TABLE_I[15] == (0, 1, 2, 3, 4, 5)
    assert [sum(source in row for row in TABLE_I) for source in range(6)] == [10] * 6


def test_table_convolution_is_a_sum_over_its_connections():
    layer = TableConvolution(6, TABLE_I, 5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
        layer.bias.normal_(generator=generator)
    x = torch.randn(2, 6, 14, 13, generator=generator)
    out, position = layer(x), itertools.count()
    for target, sources in enumerate(TABLE_I):
        right = layer.bias[target].double() + sum(
            F.conv2d(x[:, [source]].double(), layer.weight[[next(position)]][:, None].double())[:, 0]
            for source in sources
        )
        assert torch.allclose(out[:, target].double(), right, atol=1e-5)  # 150 float32 multiplications
    assert next(position) == len(layer.weight) == 60


def test_subsampling_is_sum_times_coefficient_plus_bias():
    layer = Subsampling(2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -2.0]))
        layer.bias.copy_(torch.tensor([1.0, 3.0]))
    x = torch.arange(2 * 3 * 4.0).reshape(1, 2, 3, 4)
    sums = torch.tensor([[[10.0, 18.0], [17.0, 21.0]], [[58.0, 66.0], [41.0, 45.0]]])  # the last row has one pixel row
    assert torch.equal(layer(x)[0], torch.stack([sums[0] * 0.5 + 1, sums[1] * -2 + 3]))


def test_squashing_passes_through_plus_and_minus_one():
    x = torch.tensor([-1.0, 0.0, 1.0, 100.0])
    assert ScaledTanh()(x).tolist() == pytest.approx([-1, 0, 1, 1.7159], abs=1e-4)


FAN_IN = {"c1": 25, "s2": 4, "s4": 4, "c5": 400, "f6": 120, "output": 84}


def test_initial_weights_lie_within_their_fan_in():
    network = make()
    for name, fan_in in FAN_IN.items():
        layer = network.get_submodule(name)
        assert layer.weight.abs().max().item() <= 2.4 / fan_in
        assert (layer.bias == 0).all()
    for name in ("c1", "c5", "f6", "output"):  # and fill it
        assert network.get_submodule(name).weight.abs().max().item() > 0.95 * 2.4 / FAN_IN[name]
        assert network.get_submodule(name).weight.std().item() == pytest.approx(2.4 / FAN_IN[name] / 3**0.5, rel=0.15)


def test_initial_weights_of_c3_follow_each_maps_fan_in():
    weight, start = make().c3.weight, 0
    for sources in TABLE_I:
        limit = 2.4 / (25 * len(sources))
        kernels = weight[start : start + len(sources)]
        assert 0.9 * limit < kernels.abs().max().item() <= limit
        start += len(sources)


def test_more_channels_and_larger_images():
    network = make(in_channels=3, image_size=40, num_classes=26)
    assert network.c1.weight.shape == (6, 3, 5, 5)
    assert network.outputs(torch.zeros(1, 3, 40, 40))["c5"].shape == (1, 120, 3, 3)
    assert network(torch.zeros(2, 3, 40, 40)).shape == (2, 26)


def test_weights_load_into_a_new_network():
    network = make()
    other = create_model("lenet5", generator=torch.Generator().manual_seed(9)).eval()
    x = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    assert not torch.equal(network(x), other(x))
    other.load_state_dict(network.state_dict())
    assert torch.equal(network(x), other(x))
