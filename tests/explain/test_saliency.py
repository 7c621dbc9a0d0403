"""Where a network looks, against finite differences in float64 and loops over squares."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from alexnet.errors import ModelError
from alexnet.explain import saliency
from alexnet.models import create_model, list_models
from alexnet.models.layers import LocalResponseNorm
from alexnet.models.network import Network

sys.path.append(str(Path(__file__).parents[1] / "models"))
import layer_examples

STEP = 1e-4


def test_progress_bars_of_captum_do_not_warn_in_notebooks(tmp_path, monkeypatch):
    """A captum that warns as tqdm does where ipywidgets is missing; here warnings are errors."""
    (tmp_path / "captum").mkdir()
    (tmp_path / "captum" / "__init__.py").write_text("import warnings\nwarnings.warn('IProgress not found', Warning)\n")
    (tmp_path / "captum" / "attr.py").touch()
    for name in [name for name in sys.modules if name.partition(".")[0] == "captum"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    assert saliency._captum().__file__ == str(tmp_path / "captum" / "attr.py")
    del sys.modules["captum"], sys.modules["captum.attr"]


def smooth(name: str, **sizes: int) -> Network:
    """A network without corners, in float64, whose answers differ: weights of a spread that no layer loses."""
    return create_model(name, generator=torch.Generator().manual_seed(3), **sizes).double().eval()


def images(network: Network, count: int = 2) -> torch.Tensor:
    shape = (count, network.in_channels, network.image_size, network.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@torch.no_grad()
def slopes(score, values: torch.Tensor) -> np.ndarray:
    """The derivative of ``score`` (a batch -> [B]) by each of ``values``, by central differences."""
    flat = values.flatten()
    moves = STEP * torch.eye(len(flat), dtype=torch.float64)
    up, down = ((flat + sign * moves).view(-1, *values.shape) for sign in (1, -1))
    found = torch.cat([score(a) - score(b) for a, b in zip(up.split(256), down.split(256), strict=True)])
    return (found / (2 * STEP)).view(values.shape).numpy()


@pytest.mark.parametrize(("name", "sizes"), [("lenet5", {}), ("figure1_tanh_wide", {"image_size": 16})])
def test_the_data_gradient_is_the_slope_of_the_score(name, sizes):
    network, classes = smooth(name, **sizes), [3]
    inputs = images(network, 1)
    found = saliency.data_gradient(network, inputs, classes)
    assert found.dtype == torch.float32 and found.shape == (1, network.image_size, network.image_size)
    for image, label, row in zip(inputs, classes, found.numpy(), strict=True):
        expected = np.abs(slopes(lambda x, label=label: network(x)[:, label], image)).max(0)  # over the channels
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-6 * expected.max())


def stretch(small: np.ndarray, side: int) -> np.ndarray:
    """Bilinear, by the centers of pixels, edges repeated."""
    at = np.clip((np.arange(side) + 0.5) * len(small) / side - 0.5, 0, len(small) - 1)
    low = np.floor(at).astype(int)
    high, part = np.minimum(low + 1, len(small) - 1), at - low
    rows = small[low] * (1 - part)[:, None] + small[high] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, high] * part


def behind(network: Network, layer: str) -> nn.Sequential:
    names = [name for name, _ in network.named_children()]
    return nn.Sequential(*list(network.children())[names.index(layer) + 1 :])


@pytest.mark.parametrize(("name", "sizes"), [("lenet5", {}), ("figure1_tanh_wide", {"image_size": 16})])
def test_grad_cam_weighs_each_map_by_its_mean_slope(name, sizes):
    network, classes = smooth(name, **sizes), [1, 5]
    (layer,) = saliency.last_maps(network)
    inputs, rest = images(network), behind(network, layer)
    found = saliency.grad_cam(network, inputs, classes).numpy()
    for image, label, row in zip(inputs, classes, found, strict=True):
        maps = network.forward_to(image[None], layer)[0].detach()  # [K, h, w]
        weights = slopes(lambda x, label=label: rest(x)[:, label], maps).mean((1, 2))
        cam = np.maximum((weights[:, None, None] * maps.numpy()).sum(0), 0)
        assert cam.max() > 0
        np.testing.assert_allclose(row, stretch(cam, network.image_size), rtol=1e-4, atol=1e-6 * cam.max())


@torch.no_grad()
def test_occlusion_is_a_loop_over_gray_squares():
    network, classes = smooth("figure1_tanh_wide", image_size=16), [2, 7]
    inputs = images(network)
    found = saliency.occlusion(network, inputs, classes).numpy()
    side, step = 2, 1  # a seventh of 16, and half of that
    for image, label, row in zip(inputs, classes, found, strict=True):
        before = network(image[None]).softmax(1)[0, label]
        total, covered = np.zeros((16, 16)), np.zeros((16, 16))
        for top in range(0, 16 - side + 1, step):
            for left in range(0, 16 - side + 1, step):
                hidden = image.clone()
                hidden[:, top : top + side, left : left + side] = 0
                total[top : top + side, left : left + side] += float(
                    before - network(hidden[None]).softmax(1)[0, label]
                )
                covered[top : top + side, left : left + side] += 1
        np.testing.assert_allclose(row, total / covered, atol=1e-6)
    assert np.abs(found).max() > 1e-5


def test_hiding_what_the_answer_rests_on_takes_the_probability_away():
    """A network that looks at one corner alone: all three say so."""
    network = smooth("figure1_tanh_wide", image_size=16)
    inputs = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    inputs[0, :, :4, :4] = 3.0  # elsewhere nothing differs from the gray of the square
    label = int(network(inputs).argmax())
    found = saliency.occlusion(network, inputs, [label])[0]
    assert found[6:, 6:].abs().max() < 1e-14 < 1e-6 < found[:4, :4].abs().max()  # batches round differently


def test_the_layer_of_grad_cam_is_found_in_every_network(monkeypatch):
    monkeypatch.setattr(LocalResponseNorm, "forward", lambda _norm, maps: maps)  # it does not compute with shapes alone
    expected = {
        "alexnet": "relu5",
        "alexnet_no_conv5": "relu4",
        "lenet5": "squash4",
        "alexnet_small_tanh": "tanh5",
        "cifar_13pct": "relu4",
        "alexnet_2012": "conv5",
        "cifar_18pct": "relu3",
    }
    with torch.device("meta"):
        found = {name: saliency.last_maps(create_model(name)) for name in list_models()}
    assert all(len(layers) == 1 for layers in found.values())
    assert {name: layers[0] for name, layers in found.items() if name in expected} == expected


def test_a_graph_of_two_towers_is_looked_at_in_both():
    """The maps of both towers side by side, with autograd's own gradients."""
    graph = layer_examples.network("towers").eval()
    layers = saliency.last_maps(graph)
    assert layers == ["c2a_neuron", "c2b_neuron"]
    inputs = 40 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    kept = {}
    hooks = [
        graph.get_submodule(n).register_forward_hook(lambda _m, _i, out, n=n: kept.update({n: out})) for n in layers
    ]
    score = graph(inputs)[[0, 1], [0, 4]].sum()
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(score, [kept[n] for n in layers])
    maps, slope = torch.cat([kept[n] for n in layers], 1).detach(), torch.cat(gradients, 1)
    cams = (slope.mean((2, 3), keepdim=True) * maps).sum(1).relu().numpy()
    found = saliency.grad_cam(graph, inputs, [0, 4]).numpy()
    assert cams.max() > 0
    for row, cam in zip(found, cams, strict=True):
        np.testing.assert_allclose(row, stretch(cam, 32), rtol=1e-4, atol=1e-5 * cams.max())


def test_the_network_is_left_as_it_came():
    network = create_model("figure1_relu", image_size=16).train()
    saliency.data_gradient(network, images(network).float(), [0, 1])
    assert network.training and all(p.grad is None for p in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_what_does_not_fit_is_said():
    network = create_model("figure1_relu", image_size=16)
    inputs = torch.zeros(2, 3, 16, 16)
    with pytest.raises(ModelError, match=r"class 10 of figure1_relu; must be from 0 to 9"):
        saliency.data_gradient(network, inputs, [0, 10])
    with pytest.raises(ModelError, match="one for each image"):
        saliency.grad_cam(network, inputs, [0])
    with pytest.raises(ModelError, match=r"inputs \[2, 3, 8, 8\] of figure1_relu; must be \[N, 3, 16, 16\]"):
        saliency.occlusion(network, inputs[..., :8, :8], [0, 1])
