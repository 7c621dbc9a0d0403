"""The paper's own comparisons: ``alexnet`` with exactly one thing changed.

The paper compares the network with others that it tells in a sentence each (sections 3.1 to 3.5); the 2012 code has
their definitions as nets 145-half, 147, 148 and 150. Sizes, widths and connections here are those of that code; what
lies between the layers is the paper's, so that each differs from ``alexnet`` in its one thing. "No dropout" and "no
augmentation" are numbers of a recipe, not networks.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.models.alexnet import CODE_2012, PAPER, build, convolutional_layers, fully_connected_layers
from alexnet.models.layers import Convolution, Dropout, Flatten, MaxPool
from alexnet.models.network import Initial, Layers, Network


def alexnet_half(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """Section 3.2's one-GPU net (145-half): one tower, half the kernels in conv1 to conv4. 59,798,312 parameters.

    conv5, fc6 and fc7 keep their full width, since most parameters are in fc6; so it is not half of the network.
    """
    maps = _with(convolutional_layers(in_channels, towers=1), {
        "conv1": Convolution(in_channels, 48, 11, stride=4),
        "conv2": Convolution(48, 128, 5, padding=2),
        "conv3": Convolution(128, 192, 3, padding=1),
        "conv4": Convolution(192, 192, 3, padding=1),
        "conv5": Convolution(192, 256, 3, padding=1),
    })  # fmt: skip
    return build("alexnet_half", maps, num_classes, in_channels, image_size, towers=1)


def alexnet_no_norm(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """Without response normalization (section 3.3, net 148)."""
    maps = [(name, layer) for name, layer in convolutional_layers(in_channels, 2) if not name.startswith("norm")]
    return build("alexnet_no_norm", maps, num_classes, in_channels, image_size, towers=2)


def alexnet_no_overlap(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """Pooling 2×2 with stride 2 (section 3.4, net 147): maps of 55, 28, 26, 13 and 11 pixels, 6 before fc6.

    conv2 is padded by 1 instead of 2 and conv5 not at all, which brings the last maps to the same 6×6.
    """
    maps = _with(convolutional_layers(in_channels, towers=2), {
        "pool1": MaxPool(2, 2),
        "conv2": Convolution(96, 256, 5, padding=1, groups=2),
        "pool2": MaxPool(2, 2),
        "conv5": Convolution(384, 256, 3, padding=0, groups=2),
        "pool5": MaxPool(2, 2),
    })  # fmt: skip
    return build("alexnet_no_overlap", maps, num_classes, in_channels, image_size, towers=2)


def alexnet_separate(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """Towers that never talk before fc8 (net 150; the paper has no number for it). 60,714,408 parameters.

    To keep the number of parameters, conv2 has 160 kernels a tower instead of 128, fc6 4096 units instead of 2048.
    """
    maps = _with(convolutional_layers(in_channels, towers=2), {
        "conv2": Convolution(96, 320, 5, padding=2, groups=2),
        "conv3": Convolution(320, 384, 3, padding=1, groups=2),
    })  # fmt: skip
    return build("alexnet_separate", maps, num_classes, in_channels, image_size, towers=2, rest=_separate_layers)


def alexnet_tanh(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """tanh in place of every ReLU (section 3.1 shows it on CIFAR-10). All biases start at 0.

    The paper starts some at 1 to give ReLUs positive inputs; a tanh there would only lose slope (0.42 of 1).
    """
    return build(
        "alexnet_tanh", _squashed(convolutional_layers(in_channels, towers=2)), num_classes, in_channels, image_size,
        towers=2, initial=TANH_PAPER, features="tanh7",
        rest=lambda side, classes: _squashed(fully_connected_layers(side, classes)),
    )  # fmt: skip


TANH_PAPER = {name: Initial(start.std) for name, start in PAPER.items()}
TANH_2012 = {name: Initial(start.std) for name, start in CODE_2012.items()}


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
