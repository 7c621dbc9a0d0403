import pytest
import torch

from alexnet.models import create_model


@pytest.fixture
def network():
    return create_model("cifar_18pct", generator=torch.Generator().manual_seed(0)).eval()


def test_parameters(network):
    counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in network.named_children()}
    assert {name: count for name, count in counts.items() if count} == {
        "conv1": 2_432, "conv2": 25_632, "conv3": 51_264, "fc10": 10_250,
    }  # fmt: skip
    assert sum(counts.values()) == 89_578


def test_order_and_shapes(network):
    outputs = network.outputs(torch.zeros(1, 3, 32, 32))
    assert list(outputs) == [
        "conv1", "pool1", "relu1", "norm1", "conv2", "relu2", "pool2", "norm2", "conv3", "relu3", "pool3",
        "flatten", "fc10",
    ]  # fmt: skip
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


def test_other_pictures():
    network = create_model("cifar_18pct", num_classes=7, in_channels=1, image_size=24).eval()
    assert network(torch.zeros(2, 1, 24, 24)).shape == (2, 7)
