"""The CIFAR-10 nets against their layer files."""

import pytest
import torch

from alexnet.models import create_model


@pytest.fixture
def network():
    return create_model("cifar_18pct", generator=torch.Generator().manual_seed(0)).eval()


def test_parameters(network):
    counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in network.named_children()}
    assert {name: count for name, count in counts.items() if count} == {
        "conv1": 2_432,
        "conv2": 25_632,
        "conv3": 51_264,
        "fc10": 10_250,
    }
    assert sum(counts.values()) == 89_578


def test_order_and_shapes(network):
    outputs = network.outputs(torch.zeros(1, 3, 32, 32))
    assert list(outputs) == [
        "conv1",
        "pool1",
        "relu1",
        "norm1",
        "conv2",
        "relu2",
        "pool2",
        "norm2",
        "conv3",
        "relu3",
        "pool3",
        "flatten",
        "fc10",
    ]
    assert [outputs[f"pool{i}"].shape[-1] for i in (1, 2, 3)] == [16, 8, 4]
    assert outputs[network.features].shape == (1, 1024) and outputs["fc10"].shape == (1, 10)


def test_norms_are_those_of_the_file(network):
    for norm in (network.norm1, network.norm2):
        assert (norm.size, norm.scale, norm.beta, norm.k) == (3, 5e-5, 0.75, 1.0)


@pytest.mark.parametrize(("name", "std"), [("conv1", 1e-4), ("conv2", 0.01), ("conv3", 0.01), ("fc10", 0.01)])
def test_initial_weights(network, name, std):
    layer = network.get_submodule(name)
    assert layer.weight.std().item() == pytest.approx(std, rel=0.05)  # 2,400 draws in the smallest: 3.5 sigma
    assert (layer.bias == 0).all()


def test_other_images():
    network = create_model("cifar_18pct", num_classes=7, in_channels=1, image_size=24).eval()
    assert network(torch.zeros(2, 1, 24, 24)).shape == (2, 7)


# Layers in order, and parameters by layer: what the layer files say.
CONVOLUTIONS = {"conv1": 2_432, "conv2": 25_632, "conv3": 51_264}
FILES = {
    "cifar_80sec": (
        32,
        "conv1 relu1 pool1 conv2 relu2 pool2 conv3 relu3 pool3 flatten fc64 relu64 fc10",
        CONVOLUTIONS | {"fc64": 65_600, "fc10": 650},
        {"fc64": 0.1, "fc10": 0.1},
    ),
    "cifar_19pct": (
        32,
        "conv1 relu1 pool1 conv2 relu2 pool2 conv3 relu3 pool3 flatten fc10",
        CONVOLUTIONS | {"fc10": 10_250},
        {"fc10": 0.01},
    ),
    "cifar_13pct": (
        24,
        "conv1 relu1 pool1 conv2 relu2 pool2 local3 relu3 local4 relu4 flatten fc10",
        {"conv1": 4_864, "conv2": 102_464, "local3": 664_704, "local4": 332_928, "fc10": 11_530},
        {"local3": 0.04, "local4": 0.04, "fc10": 0.01},
    ),
    "cifar_11pct": (
        24,
        "conv1 relu1 pool1 norm1 conv2 relu2 norm2 pool2 local3 relu3 local4 relu4 flatten fc10",
        {"conv1": 4_864, "conv2": 102_464, "local3": 1_329_408, "local4": 664_704, "fc10": 11_530},
        {"local3": 0.04, "local4": 0.04, "fc10": 0.01},
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_layers_parameters_and_start(name):
    side, order, parameters, starts = FILES[name]
    network = create_model(name, generator=torch.Generator().manual_seed(0))
    assert network.image_size == side and [layer for layer, _ in network.named_children()] == order.split()
    counts = {layer: sum(p.numel() for p in module.parameters()) for layer, module in network.named_children()}
    assert {layer: count for layer, count in counts.items() if count} == parameters
    for layer, std in ({"conv1": 1e-4, "conv2": 0.01} | starts).items():
        module = network.get_submodule(layer)
        assert module.weight.std().item() == pytest.approx(std, rel=0.1)  # 640 draws in the smallest: 3.5 sigma
        assert (module.bias == 0).all()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("cifar_80sec", 145_578), ("cifar_18pct", 89_578), ("cifar_19pct", 89_578), ("cifar_13pct", 1_901_386)],
)
def test_published_counts_are_of_32_pixels(name, parameters):
    with torch.device("meta"):
        network = create_model(name, image_size=32)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_pools_are_max_then_average():
    with torch.device("meta"):
        for name in ("cifar_80sec", "cifar_18pct", "cifar_19pct"):
            network = create_model(name)
            kinds = [type(network.get_submodule(f"pool{i}")).__name__ for i in (1, 2, 3)]
            assert kinds == ["MaxPool", "AveragePool", "AveragePool"]


def test_19pct_is_18pct_without_norms(network):
    other = create_model("cifar_19pct").eval()
    other.load_state_dict(network.state_dict())
    x = 255 * torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    network.norm1.scale = network.norm2.scale = 0.0
    assert torch.equal(network(x), other(x))


def test_channel_norms_of_11pct():
    with torch.device("meta"):
        network = create_model("cifar_11pct")
    for norm in (network.norm1, network.norm2):
        assert (norm.towers, norm.size, norm.alpha, norm.beta, norm.k) == (1, 9, 1e-3, 0.75, 1.0)


def test_local_nets_learn_from_smaller_crops():
    """Maps of smaller crops are stretched where filters belong to places."""
    network = create_model("cifar_13pct", generator=torch.Generator().manual_seed(0))
    network(torch.zeros(1, 3, 16, 16)).sum().backward()
    assert network(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
    assert all(p.grad is not None for p in network.parameters())
