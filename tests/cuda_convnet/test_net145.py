"""Net 145 from its layer file equals the grouped network: the same numbers in two towers give the same numbers out.

The grouped network is ``alexnet_2012`` where the house has it, else it is put together here from the layers of
:mod:`alexnet.models.layers` in the order of the file: conv1, norm1, pool1, relu1, conv2, relu2, norm2, spatial norm,
pool2, conv3 …
"""

import re

import pytest
import torch
import torch.nn.functional as F
from layer_examples import files
from torch import Tensor, nn

from alexnet.cuda_convnet import Data, Files, GraphNetwork, build
from alexnet.models import create_model, list_models
from alexnet.models.layers import Convolution, Dropout, Flatten, LocalResponseNorm, MaxPool, SpatialNorm

SIDE, CLASSES = 67, 10  # one map of 1×1 after pool5: every layer, in a second


def grouped_state(net: GraphNetwork) -> dict[str, Tensor]:
    """The weights of the two towers as those of one grouped network, tower a before tower b.

    ``conv2a.weight`` and ``conv2b.weight`` [128, 48, 5, 5] -> ``conv2.weight`` [256, 48, 5, 5]. A layer that reads
    both towers has a matrix for each in its own order of inputs; they join along the input, the one of tower a first.
    """
    found: dict[str, list[Tensor]] = {}
    for name, layer in net.definition.layers.items():
        if not layer.matrices:
            continue
        stem = re.fullmatch(r"((?:conv|fc)\d)[ab]?", name)[1]
        order = sorted(range(len(layer.inputs)), key=lambda i: net.placement[layer.inputs[i]])
        weight = torch.cat([net.weight_of(name, i).detach() for i in order], 1)
        for key, value in (("weight", weight), ("bias", net.module_of(name).bias.detach())):
            found.setdefault(f"{stem}.{key}", []).append(value)
    return {key: torch.cat(parts) for key, parts in found.items()}


def grouped_gradients(net: GraphNetwork) -> dict[str, Tensor]:
    """The same of the gradients."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.grad)
    return grouped_state(net)


def assembled() -> nn.Sequential:
    layers = [
        ("conv1", Convolution(3, 96, 11, stride=4)),
        ("norm1", LocalResponseNorm(2)),
        ("pool1", MaxPool(3, 2)),
        ("relu1", nn.ReLU()),
        ("conv2", Convolution(96, 256, 5, padding=2, groups=2)),
        ("relu2", nn.ReLU()),
        ("norm2", LocalResponseNorm(2)),
        ("spatial2", SpatialNorm(5, 1e-3)),
        ("pool2", MaxPool(3, 2)),
        ("conv3", Convolution(256, 384, 3, padding=1)),
        ("relu3", nn.ReLU()),
        ("conv4", Convolution(384, 384, 3, padding=1, groups=2)),
        ("relu4", nn.ReLU()),
        ("conv5", Convolution(384, 256, 3, padding=1, groups=2)),
        ("relu5", nn.ReLU()),
        ("pool5", MaxPool(3, 2)),
        ("flatten", Flatten(1)),
        ("fc6", nn.Linear(256, 4096)),
        ("relu6", nn.ReLU()),
        ("drop6", Dropout(0.5)),
        ("fc7", nn.Linear(4096, 4096)),
        ("relu7", nn.ReLU()),
        ("drop7", Dropout(0.5)),
        ("fc8", nn.Linear(4096, CLASSES)),
    ]
    net = nn.Sequential()
    for name, layer in layers:
        net.add_module(name, layer)
    return net


def other() -> nn.Module:
    if "alexnet_2012" in list_models():
        return create_model("alexnet_2012", num_classes=CLASSES, image_size=SIDE)
    return assembled()


@pytest.fixture(scope="module")
def from_file() -> GraphNetwork:
    given = files("net145")
    text = re.sub(r"partialSum=\d+", "partialSum=0", given.layers.replace("outputs=1000", f"outputs={CLASSES}"))
    return build(Files("net145", text, given.parameters), Data(SIDE), generator=torch.Generator().manual_seed(0))


def test_equal_outputs_and_equal_gradients(from_file):
    net, grouped = from_file, other()
    state = grouped_state(net)
    if "alexnet_2012" in list_models():
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in grouped.state_dict().items()}
    # The file multiplies by one half after fc6 and fc7 in a test; the house divides by one half in training.
    state["fc7.weight"] *= 0.5
    state["fc8.weight"] *= 0.5
    grouped.load_state_dict(state)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, SIDE, SIDE, generator=generator) * 60
    labels = torch.tensor([1, 4, 7])
    scores, cost = net.eval().costs(images, labels)
    expected = grouped.eval()(images)
    assert torch.allclose(scores, expected, atol=1e-5 * float(expected.detach().abs().max()))
    cost.backward()
    F.cross_entropy(expected, labels).backward()
    found = grouped_gradients(net)
    for name, parameter in grouped.named_parameters():
        want = parameter.grad * (0.5 if name in ("fc7.weight", "fc8.weight") else 1)
        difference = (found[name] - want).norm() / want.norm()
        assert float(difference) < 1e-4, (name, float(difference))


def test_the_towers_are_joined_in_the_right_order(from_file):
    net = build(from_file.files, Data(SIDE), generator=torch.Generator().manual_seed(0))
    state = grouped_state(net)
    assert {k: tuple(v.shape) for k, v in state.items() if k.endswith("weight")} == {
        "conv1.weight": (96, 3, 11, 11),
        "conv2.weight": (256, 48, 5, 5),
        "conv3.weight": (384, 256, 3, 3),
        "conv4.weight": (384, 192, 3, 3),
        "conv5.weight": (256, 192, 3, 3),
        "fc6.weight": (4096, 256),
        "fc7.weight": (4096, 4096),
        "fc8.weight": (CLASSES, 4096),
    }
    # The b half of fc7 lists its inputs as b, a: its second matrix belongs to tower a.
    assert torch.equal(state["fc7.weight"][2048:, :2048], net.weight_of("fc7b", 1))
    assert torch.equal(state["fc7.weight"][:2048, :2048], net.weight_of("fc7a", 0))
