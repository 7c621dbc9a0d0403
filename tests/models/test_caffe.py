"""Caffe's two networks against their layer definitions, written here again in NumPy."""

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from alexnet.models import Network, create_model
from alexnet.models.layers import LocalResponseNorm

# Layers in order, as their prototxt files list them; numbers are kernel, stride, padding and groups.
GEOMETRY = {
    "conv1": (11, 4, 0, 1),
    "conv2": (5, 1, 2, 2),
    "conv3": (3, 1, 1, 1),
    "conv4": (3, 1, 1, 2),
    "conv5": (3, 1, 1, 2),
}
END = "conv3 relu3 conv4 relu4 conv5 relu5 pool5 fc6 relu6 fc7 relu7 fc8"
ORDERS = {
    "alexnet_caffe": f"conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 {END}",
    "caffenet": f"conv1 relu1 pool1 norm1 conv2 relu2 pool2 norm2 {END}",
}
SIDE = 105  # conv1's last window would stick out (dropped: 24), the first pool's does (kept: 12)


def convolution(x: np.ndarray, w: np.ndarray, b: np.ndarray, stride: int, padding: int, groups: int) -> np.ndarray:
    """[C, H, W] -> [K, H', W']; windows that do not fit are dropped."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = sliding_window_view(x, w.shape[2:], (1, 2))[:, ::stride, ::stride]  # [C, H', W', k, k]
    parts = [
        np.tensordot(part_w, part_x, ((1, 2, 3), (0, 3, 4)))
        for part_w, part_x in zip(np.split(w, groups), np.split(windows, groups), strict=True)
    ]
    return np.concatenate(parts) + b[:, None, None]


def norm(x: np.ndarray) -> np.ndarray:
    """x / (1 + 1e-4 / 5 · Σ x²)^0.75 over five neighbors of all channels."""
    sums = np.stack([(x[max(0, c - 2) : c + 3] ** 2).sum(0) for c in range(len(x))])
    return x / (1 + 1e-4 / 5 * sums) ** 0.75


def pool(x: np.ndarray) -> np.ndarray:
    """Windows of 3 every 2 pixels until one has reached the end; what sticks out is not there."""
    starts = range(0, max(x.shape[1] - 3, 0) + 2, 2)
    starts = [s for s in starts if s == 0 or s - 2 + 3 < x.shape[1]]
    return np.stack([np.stack([x[:, r : r + 3, c : c + 3].max((1, 2)) for c in starts], 1) for r in starts], 1)


def forward(x: np.ndarray, weights: dict[str, np.ndarray], order: str) -> dict[str, np.ndarray]:
    found = {}
    for layer in order.split():
        w, b = weights.get(f"{layer}.weight"), weights.get(f"{layer}.bias")
        match layer[:-1]:
            case "conv":
                x = convolution(x, w, b, *GEOMETRY[layer][1:])
            case "relu":
                x = np.maximum(x, 0)
            case "norm":
                x = norm(x)
            case "pool":
                x = pool(x)
            case "fc":
                x = w @ x.reshape(-1) + b
        found[layer] = x
    return found


def lively(name: str) -> Network:
    """Weights of such a size that every layer's outputs, and norms, matter; biases of all kinds."""
    network = create_model(name, num_classes=3, image_size=SIDE).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            std = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3
            parameter.normal_(0, 1.4 * std, generator=generator)
    return network


@pytest.mark.parametrize("name", ORDERS)
def test_it_computes_what_its_definition_says(name):
    network = lively(name)
    x = 255 * torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(6)) - 120
    weights = {key: value.double().numpy() for key, value in network.state_dict().items()}
    right = forward(x[0].double().numpy(), weights, ORDERS[name])
    with torch.no_grad():
        ours = network.outputs(x)
    assert [layer for layer in ours if layer[:4] not in ("flat", "drop")] == ORDERS[name].split()
    for layer, value in right.items():
        difference = np.abs(ours[layer][0].numpy() - value).max() / np.abs(value).max()
        assert difference < 2e-5, f"{layer}: {difference}"  # float32 through eight layers; observed 2e-6


@pytest.mark.parametrize(("name", "bias"), [("alexnet_caffe", 0.1), ("caffenet", 1.0)])
def test_fillers(name, bias):
    network = create_model(name, num_classes=50, image_size=105, generator=torch.Generator().manual_seed(0))
    for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        module = network.get_submodule(layer)
        std = 0.005 if layer in ("fc6", "fc7") else 0.01
        assert module.weight.std().item() == pytest.approx(std, rel=0.02)  # 34,848 draws in the smallest: 5 sigma
        biased = layer in ("conv2", "conv4", "conv5", "fc6", "fc7")
        assert (module.bias == torch.tensor(bias if biased else 0.0)).all()


def test_one_norm_over_all_differs_from_the_papers_at_channels_46_to_49():
    with torch.device("meta"):
        caffe, paper = create_model("alexnet_caffe").norm1, create_model("alexnet").norm1
    assert (caffe.towers, caffe.k, paper.towers, paper.k) == (1, 1.0, 2, 2.0)
    assert (caffe.size, caffe.alpha, caffe.beta) == (paper.size, paper.alpha, paper.beta)
    x = 100 + 100 * torch.rand(1, 96, 4, 4, generator=torch.Generator().manual_seed(0))
    differ = (LocalResponseNorm(caffe.towers)(x) != LocalResponseNorm(paper.towers)(x)).any(3).any(2)[0]
    assert differ.nonzero().flatten().tolist() == [46, 47, 48, 49]


@pytest.mark.parametrize("name", ORDERS)
def test_sizes_and_parameters(name):
    with torch.device("meta"):
        network = create_model(name)
    assert network.image_size == 227 and network.flatten.side == 6 and network.towers == 1
    assert sum(p.numel() for p in network.parameters()) == 60_965_224
    assert [network.get_submodule(f"conv{i}").groups for i in range(1, 6)] == [1, 2, 1, 2, 2]
