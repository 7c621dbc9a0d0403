"""The paper's own comparisons: ``alexnet`` with exactly one thing changed.

The paper compares the network with others that it tells in a sentence each (sections 3.1 to 3.5); the 2012 code has
their definitions as nets 145-half, 147, 148 and 150. Sizes, widths and connections here are those of that code; what
lies between the layers is the paper's, so that each differs from ``alexnet`` in its one thing. "No dropout" and "no
augmentation" are numbers of a recipe, not networks.


Networks with one middle layer left out: section 7 of the paper says that each of them is needed.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.models.alexnet import CODE_2012, PAPER, alexnet, build, convolutional_layers, fully_connected_layers
from alexnet.models.layers import Convolution, Dropout, Flatten, MaxPool
from alexnet.models.network import Layers, Network, NormalInit, Start
from alexnet.models.small import alexnet_small


def alexnet_half(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """Section 3.2's one-GPU net (145-half): one tower, half the kernels in conv1 to conv4. 59,798,312 parameters.

    conv5, fc6 and fc7 keep their full width, since most parameters are in fc6; so it is not half of the network.
    """
    maps = _with(
        convolutional_layers(in_channels, towers=1),
        {
            "conv1": Convolution(in_channels, 48, 11, stride=4),
            "conv2": Convolution(48, 128, 5, padding=2),
            "conv3": Convolution(128, 192, 3, padding=1),
            "conv4": Convolution(192, 192, 3, padding=1),
            "conv5": Convolution(192, 256, 3, padding=1),
        },
    )
    return build("alexnet_half", maps, num_classes, in_channels, image_size, towers=1)


def alexnet_no_norm(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """Without response normalization (section 3.3, net 148)."""
    maps = [(name, layer) for name, layer in convolutional_layers(in_channels, 2) if not name.startswith("norm")]
    return build("alexnet_no_norm", maps, num_classes, in_channels, image_size, towers=2)


def alexnet_no_overlap(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """Pooling 2×2 with stride 2 (section 3.4, net 147): maps of 55, 28, 26, 13 and 11 pixels, 6 before fc6.

    conv2 is padded by 1 instead of 2 and conv5 not at all, which brings the last maps to the same 6×6.
    """
    maps = _with(
        convolutional_layers(in_channels, towers=2),
        {
            "pool1": MaxPool(2, 2),
            "conv2": Convolution(96, 256, 5, padding=1, groups=2),
            "pool2": MaxPool(2, 2),
            "conv5": Convolution(384, 256, 3, padding=0, groups=2),
            "pool5": MaxPool(2, 2),
        },
    )
    return build("alexnet_no_overlap", maps, num_classes, in_channels, image_size, towers=2)


def alexnet_separate(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """Towers that never talk before fc8 (net 150; the paper has no number for it). 60,714,408 parameters.

    To keep the number of parameters, conv2 has 160 kernels a tower instead of 128, fc6 4096 units instead of 2048.
    """
    maps = _with(
        convolutional_layers(in_channels, towers=2),
        {
            "conv2": Convolution(96, 320, 5, padding=2, groups=2),
            "conv3": Convolution(320, 384, 3, padding=1, groups=2),
        },
    )
    return build("alexnet_separate", maps, num_classes, in_channels, image_size, towers=2, rest=_separate_layers)


def alexnet_tanh(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """tanh in place of every ReLU (section 3.1 shows it on CIFAR-10). All biases start at 0.

    The paper starts some at 1 to give ReLUs positive inputs; a tanh there would only lose slope (0.42 of 1).
    """
    return build(
        "alexnet_tanh",
        _squashed(convolutional_layers(in_channels, towers=2)),
        num_classes,
        in_channels,
        image_size,
        towers=2,
        initial=TANH_PAPER,
        features="tanh7",
        rest=lambda side, classes: _squashed(fully_connected_layers(side, classes)),
    )


TANH_PAPER = {name: NormalInit(start.std) for name, start in PAPER.items()}
TANH_2012 = {name: NormalInit(start.std) for name, start in CODE_2012.items()}


def _with(layers: Layers, changes: Mapping[str, nn.Module]) -> Layers:
    return [(name, changes.get(name, layer)) for name, layer in layers]


def _squashed(layers: Layers) -> Layers:
    return [
        (name.replace("relu", "tanh"), nn.Tanh() if isinstance(layer, nn.ReLU) else layer) for name, layer in layers
    ]


def _separate_layers(side: int, num_classes: int) -> Layers:
    return [
        ("flatten", Flatten(side)),
        ("fc6", TowerLinear(256 * side * side, 2 * 4096, towers=2)),
        ("relu6", nn.ReLU(inplace=True)),
        ("drop6", Dropout(0.5)),
        ("fc7", TowerLinear(2 * 4096, 2 * 2048, towers=2)),
        ("relu7", nn.ReLU(inplace=True)),
        ("drop7", Dropout(0.5)),
        ("fc8", nn.Linear(2 * 2048, num_classes)),
    ]


class TowerLinear(nn.Linear):
    """A fully connected layer in which each tower's outputs see its own inputs: [N, D] -> [N, K].

    ``weight`` [K, D / towers] and ``bias`` [K]; rows and inputs are tower *a* first.
    """

    def __init__(self, in_features: int, out_features: int, towers: int) -> None:
        super().__init__(in_features // towers, out_features)
        self.towers = towers

    def forward(self, input: Tensor) -> Tensor:
        inputs, weights, biases = (
            input.chunk(self.towers, 1),
            self.weight.chunk(self.towers),
            self.bias.chunk(self.towers),
        )
        return torch.cat([F.linear(*own) for own in zip(inputs, weights, biases, strict=True)], 1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, towers={self.towers}"


def without(build: Callable[..., Network], number: int, name: str, **values: int) -> Network:
    """``build(**given)`` without convolution ``number`` (3, 4 or 5) and the nonlinearity behind it.

    The next learned layer takes its place: it sees what the lost one saw, both towers in place of conv3. Its weights
    are drawn so that its sums start as wide as before. All other layers are as they were.
    """
    whole = build(**values)
    lost = whole.get_submodule(f"conv{number}")
    assert isinstance(lost, Convolution)
    layers: list[tuple[str, nn.Module]] = []
    changed, side = "", 0
    for key, layer in whole.named_children():
        if key.endswith(str(number)) and not key.startswith("pool"):
            continue
        side = layer.side if isinstance(layer, Flatten) else side
        if isinstance(layer, Convolution | nn.Linear) and not changed and key > f"conv{number}":
            fan_in, changed = layer.weight[0].numel(), key
            layer = _instead(layer, lost, side)
            scale = (fan_in / layer.weight[0].numel()) ** 0.5
        layers.append((key, layer))
    initial: dict[str, Start] = {k: v for k, v in whole.initial.items() if k != f"conv{number}"}
    start = initial[changed]
    assert isinstance(start, NormalInit)
    return Network(
        name,
        layers,
        num_classes=whole.num_classes,
        in_channels=whole.in_channels,
        image_size=whole.image_size,
        features=whole.features,
        initial=initial | {changed: start._replace(std=start.std * scale)},
        towers=whole.towers,
    )


def _instead(layer: Convolution | nn.Linear, lost: Convolution, side: int) -> Convolution | nn.Linear:
    """``layer`` with the inputs of ``lost``; of a fully connected one, maps of ``side`` pixels."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(lost.in_channels * side * side, layer.out_features)
    kernel, stride, padding, _ = layer.window
    return Convolution(lost.in_channels, layer.out_channels, kernel, stride, padding, groups=lost.groups)


_WORDS = {3: "third", 4: "fourth", 5: "fifth"}
MODELS: dict[str, tuple[Callable[..., Network], str]] = {
    f"{name}_no_conv{number}": (
        partial(without, build, number, f"{name}_no_conv{number}"),
        f"{name} without its {word} layer (section 7 of the paper)",
    )
    for name, build in (("alexnet", alexnet), ("alexnet_small", alexnet_small))
    for number, word in _WORDS.items()
}


def _starts(number: int, layer: str, fan_in: int, fan_in_before: int) -> dict[str, dict[str, NormalInit]]:
    """The paper's and the 2012 code's initialization without convolution ``number``, whose inputs ``layer`` has now."""
    scale = (fan_in_before / fan_in) ** 0.5
    starts = {"paper": dict(PAPER), "2012": dict(CODE_2012)}
    for layers in starts.values():
        del layers[f"conv{number}"]
        layers[layer] = layers[layer]._replace(std=layers[layer].std * scale)
    return starts


STARTS: Mapping[str, Mapping[str, Mapping[str, NormalInit]]] = {  # of 6x6 feature maps before fc6
    "alexnet_no_conv3": _starts(3, "conv4", fan_in=256 * 9, fan_in_before=192 * 9),
    "alexnet_no_conv4": _starts(4, "conv5", fan_in=192 * 9, fan_in_before=192 * 9),
    "alexnet_no_conv5": _starts(5, "fc6", fan_in=384 * 36, fan_in_before=256 * 36),
}
