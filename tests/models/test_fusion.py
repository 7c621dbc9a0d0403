"""Layers that are computed together give what they give one by one, and stay alone where somebody looks at them."""

import pytest
import torch
from torch import nn

from alexnet.models import create_model, fusion
from alexnet.models.layers import AveragePool, Convolution, LocalResponseNorm, MaxPool


def taken(layers, input):
    count, output = fusion.forward_fused(layers, input)
    return count, output


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("name", ["cifar_18pct", "cifar_80sec", "cifar_13pct", "alexnet_small", "lenet5"])
def test_a_network_computes_what_its_layers_compute(name):
    """Without kernels to the last bit: the same operations in the same order."""
    network = create_model(name, num_classes=10, generator=torch.Generator().manual_seed(0)).eval()
    side = network.image_size
    input = torch.randn(2, network.in_channels, side, side, generator=torch.Generator().manual_seed(1)) * 50
    with torch.inference_mode():
        assert torch.equal(network(input), list(network.outputs(input).values())[-1])


def test_what_goes_together():
    convolution, relu, pool, mean = Convolution(3, 16, 3), nn.ReLU(inplace=True), MaxPool(2, 2), AveragePool(2, 2)
    input = torch.randn(1, 3, 8, 8)
    assert taken([convolution, relu], input)[0] == 2
    assert taken([convolution, nn.ReLU()], input)[0] == 1, "a ReLU that keeps its input is somebody's choice"
    assert taken([convolution, relu, pool], input)[0] == 1, "the pool takes the ReLU"
    assert taken([relu, mean], input)[0] == 2 and taken([pool, relu], input)[0] == 2
    assert taken([convolution], input)[0] == 1 and taken([relu], input)[0] == 1


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("order", ["pool", "pool relu", "relu pool"])
def test_a_first_convolution_takes_its_pool_along(order):
    convolution, relu, pool = Convolution(3, 16, 3), nn.ReLU(inplace=True), MaxPool(2, 2)
    input = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    if not convolution.fuses_pool(input):
        pytest.skip("no AVX2 here")
    layers = [convolution, *({"pool": pool, "relu": relu}[name] for name in order.split())]
    count, output = taken(layers, input)
    assert count == len(layers)
    assert torch.allclose(output, nn.Sequential(*layers)(input), atol=1e-5)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("watched", [0, 1, 2])
def test_a_layer_with_a_hook_stays_alone(watched):
    network = create_model("cifar_18pct", generator=torch.Generator().manual_seed(0))
    input, seen = torch.randn(32, 3, 32, 32), []
    layer = list(network.children())[watched]
    handle = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.clone()))
    network(input)
    handle.remove()
    right = list(network.outputs(input).values())[watched]
    assert torch.allclose(seen[0], right, atol=1e-5)


@pytest.mark.usefixtures("native")
def test_norms_go_with_the_pools_behind_them():
    network = create_model("alexnet", num_classes=10, generator=torch.Generator().manual_seed(0)).eval()
    layers, input = list(network.children()), torch.randn(2, 3, 224, 224) * 50
    if not network.conv1.fuses_pool(input):
        pytest.skip("no AVX2 here")
    right = network.outputs(input)
    count, output = taken(layers, input)
    assert count == 4 and torch.allclose(output, right["pool1"], atol=1e-4)
    count, output = taken(layers[6:], right["relu2"])
    assert count == 2 and torch.allclose(output, right["pool2"], atol=1e-4)
    network.norm2.register_forward_hook(lambda *_: None)
    assert taken(layers[6:], right["relu2"])[0] == 1
    network.norm1.register_forward_hook(lambda *_: None)
    assert taken(layers, input)[0] == 2
    assert taken([LocalResponseNorm(1, beta=0.5), MaxPool(3, 2)], torch.ones(1, 16, 5, 5))[0] == 1
