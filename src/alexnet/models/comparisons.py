"""The paper's own comparisons, ``alexnet`` with exactly one thing changed, and plain and residual networks by depth.

A 3×3 convolution with 16 feature maps, then three stages of n blocks with 16, 32 and 64 feature maps, the second and
third starting at stride 2, a global average pool, and a fully connected layer: 6n + 2 learned layers. A block is two
3×3 convolutions, each with batch norm and ReLU. In residual networks a block's input is added to its output before the
last ReLU; where the resolution is halved, the shortcut takes every second pixel and pads the new channels with zeros
(option A of the paper). So plain and residual networks have the same parameters and multiply-adds, and differ in that
sum only.

The paper describes each comparison in one sentence (sections 3.1 to 3.5, and 7 for a missing layer); the 2012 code
defines most of them as nets 145-half, 147, 148 and 150. Sizes, widths and connections here are those of that code; the
layers in between are the paper's, so that each network differs from ``alexnet`` in one thing only. "No dropout" and "no
augmentation" are hyperparameters of a recipe, not networks.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.errors import ModelError
from alexnet.models.alexnet import CODE_2012, PAPER, build, convolutional_layers, fully_connected_layers
from alexnet.models.alexnet_variants import AdaptiveAveragePool
from alexnet.models.layers import Convolution, Dropout, Flatten, MaxPool
from alexnet.models.network import Initializer, KaimingNormalInit, Layers, Network, NormalInit

DEPTHS = (8, 14, 20, 32, 44, 56)
MIN_SIZE = 5  # pixels: leaves 2×2 feature maps for the last batch norms


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm, plus the input if ``shortcut``: [N, C, H, W] -> [N, K, ⌈H/s⌉, ⌈W/s⌉]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.stride, self.new_channels, self.shortcut = stride, out_channels - in_channels, shortcut
        self.conv1, self.bn1 = _convolution(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels)
        self.conv2, self.bn2 = _convolution(out_channels, out_channels), nn.BatchNorm2d(out_channels)

    def forward(self, input: Tensor) -> Tensor:
        output = F.relu(self.bn1(self.conv1(input)))
        output = self.bn2(self.conv2(output))
        if self.shortcut:
            identity = input[:, :, :: self.stride, :: self.stride]
            output = output + F.pad(identity, (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(output)


def _convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)


def residual_network(
    depth: int, shortcut: bool, name: str, num_classes: int = 10, in_channels: int = 3, image_size: int = 32
) -> Network:
    """The network of ``depth`` = 6n + 2 learned layers; ``shortcut`` makes it residual, else it is plain."""
    if image_size < MIN_SIZE:
        raise ModelError(f"image_size {image_size} is too small for {name}", f"at least {MIN_SIZE} pixels")
    blocks, channels = (depth - 2) // 6, 16
    layers: list[tuple[str, nn.Module]] = [
        ("stem", nn.Sequential(_convolution(in_channels, channels), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)))
    ]
    for stage, width in enumerate((16, 32, 64), 1):
        for number in range(1, blocks + 1):
            stride = 2 if stage > 1 and number == 1 else 1
            layers.append((f"block{stage}_{number}", Block(channels, width, stride, shortcut)))
            channels = width
    layers += [("pool", AdaptiveAveragePool(1)), ("flatten", Flatten(1)), ("fc", nn.Linear(channels, num_classes))]
    return Network(
        name,
        layers,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features="flatten",
        initial={key: KaimingNormalInit() for key, layer in layers if next(layer.parameters(), None) is not None},
    )


def model_name(depth: int, shortcut: bool) -> str:
    """``residual_20`` or ``plain_20``."""
    return f"{'residual' if shortcut else 'plain'}_{depth}"


def alexnet_half(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """The one-GPU network of section 3.2 (net 145-half): one tower, half the kernels in conv1 to conv4.

    conv5, fc6 and fc7 keep their full width, since most parameters are in fc6: 59,798,312 parameters, not half.
    """
    layers = _replaced(
        convolutional_layers(in_channels, towers=1),
        {
            "conv1": Convolution(in_channels, 48, 11, stride=4),
            "conv2": Convolution(48, 128, 5, padding=2),
            "conv3": Convolution(128, 192, 3, padding=1),
            "conv4": Convolution(192, 192, 3, padding=1),
            "conv5": Convolution(192, 256, 3, padding=1),
        },
    )
    return build("alexnet_half", layers, num_classes, in_channels, image_size, towers=1)


def alexnet_no_norm(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """Without response normalization (section 3.3, net 148)."""
    layers = [(name, layer) for name, layer in convolutional_layers(in_channels, 2) if not name.startswith("norm")]
    return build("alexnet_no_norm", layers, num_classes, in_channels, image_size, towers=2)


def alexnet_no_overlap(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """Pooling 2×2 with stride 2 (section 3.4, net 147): feature maps of 55, 28, 26, 13, 11 and, before fc6, 6 pixels.

    conv2 is padded by 1 instead of 2 and conv5 not at all, which gives the same 6×6 before fc6.
    """
    layers = _replaced(
        convolutional_layers(in_channels, towers=2),
        {
            "pool1": MaxPool(2, 2),
            "conv2": Convolution(96, 256, 5, padding=1, groups=2),
            "pool2": MaxPool(2, 2),
            "conv5": Convolution(384, 256, 3, padding=0, groups=2),
            "pool5": MaxPool(2, 2),
        },
    )
    return build("alexnet_no_overlap", layers, num_classes, in_channels, image_size, towers=2)


def alexnet_separate(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """Towers that are connected in fc8 only (net 150; the paper has no result of it). 60,714,408 parameters.

    To keep the number of parameters, conv2 has 160 kernels per tower instead of 128, fc6 4096 units instead of 2048.
    """
    layers = _replaced(
        convolutional_layers(in_channels, towers=2),
        {
            "conv2": Convolution(96, 320, 5, padding=2, groups=2),
            "conv3": Convolution(320, 384, 3, padding=1, groups=2),
        },
    )
    return build(
        "alexnet_separate", layers, num_classes, in_channels, image_size, towers=2, fully_connected=_separate_layers
    )


def alexnet_tanh(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """tanh in place of every ReLU (section 3.1 shows it on CIFAR-10). All biases start at 0.

    The paper initializes some to 1 to give ReLUs positive inputs; at 1, the slope of tanh is only 0.42.
    """
    return build(
        "alexnet_tanh",
        _with_tanh(convolutional_layers(in_channels, towers=2)),
        num_classes,
        in_channels,
        image_size,
        towers=2,
        initial=TANH_PAPER,
        features="tanh7",
        fully_connected=lambda size, classes: _with_tanh(fully_connected_layers(size, classes)),
    )


TANH_PAPER = {name: NormalInit(init.std) for name, init in PAPER.items()}
TANH_2012 = {name: NormalInit(init.std) for name, init in CODE_2012.items()}


def _replaced(layers: Layers, changes: Mapping[str, nn.Module]) -> Layers:
    return [(name, changes.get(name, layer)) for name, layer in layers]


def _with_tanh(layers: Layers) -> Layers:
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
    """A fully connected layer in which each tower reads its own inputs only: [N, D] -> [N, K].

    ``weight`` [K, D / towers] and ``bias`` [K]; rows and inputs are tower *a* first.
    """

    def __init__(self, in_features: int, out_features: int, towers: int) -> None:
        super().__init__(in_features // towers, out_features)
        self.towers = towers

    def forward(self, input: Tensor) -> Tensor:
        inputs, weights = input.chunk(self.towers, 1), self.weight.chunk(self.towers)
        biases = self.bias.chunk(self.towers)
        return torch.cat([F.linear(*args) for args in zip(inputs, weights, biases, strict=True)], 1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, towers={self.towers}"


def without_convolution(build: Callable[..., Network], number: int, name: str, **kwargs: int) -> Network:
    """A network without one of its middle layers (section 7).

    The next learned layer takes the place of the missing one: it reads the inputs of the missing one, both towers in
    place of conv3. Its weights are drawn so that its activations start with the same variance. All other layers stay.

    Args:
        build: Builds the complete network.
        number: 3, 4 or 5: the convolution that is left out with the nonlinearity after it.
        name: Name of the result.
        kwargs: Arguments of ``build``.
    """
    complete = build(**kwargs)
    missing = complete.get_submodule(f"conv{number}")
    assert isinstance(missing, Convolution)
    layers: list[tuple[str, nn.Module]] = []
    successor, side = "", 0
    for key, layer in complete.named_children():
        if key.endswith(str(number)) and not key.startswith("pool"):
            continue
        side = layer.side if isinstance(layer, Flatten) else side
        if isinstance(layer, Convolution | nn.Linear) and not successor and key > f"conv{number}":
            fan_in, successor = layer.weight[0].numel(), key
            layer = _with_inputs_of(missing, layer, side)
            scale = (fan_in / layer.weight[0].numel()) ** 0.5
        layers.append((key, layer))
    initial: dict[str, Initializer] = {k: v for k, v in complete.initial.items() if k != f"conv{number}"}
    initializer = initial[successor]
    assert isinstance(initializer, NormalInit)
    return Network(
        name,
        layers,
        num_classes=complete.num_classes,
        in_channels=complete.in_channels,
        image_size=complete.image_size,
        features=complete.features,
        initial=initial | {successor: initializer._replace(std=initializer.std * scale)},
        towers=complete.towers,
    )


def _with_inputs_of(missing: Convolution, layer: Convolution | nn.Linear, side: int) -> Convolution | nn.Linear:
    """``layer`` with the inputs of ``missing``; a fully connected one reads feature maps of ``side`` pixels."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(missing.in_channels * side * side, layer.out_features)
    kernel, stride, padding, _ = layer.window
    return Convolution(missing.in_channels, layer.out_channels, kernel, stride, padding, groups=missing.groups)


def _without_layer(number: int, successor: str, fan_in: int, fan_in_before: int) -> dict[str, dict[str, NormalInit]]:
    """Initializations of the paper and of the 2012 code without conv``number``, whose inputs ``successor`` reads."""
    scale = (fan_in_before / fan_in) ** 0.5
    initializations = {"paper": dict(PAPER), "2012": dict(CODE_2012)}
    for layers in initializations.values():
        del layers[f"conv{number}"]
        layers[successor] = layers[successor]._replace(std=layers[successor].std * scale)
    return initializations


NO_CONV_INITIALIZATIONS: Mapping[int, Mapping[str, Mapping[str, NormalInit]]] = {  # for 6×6 feature maps before fc6
    3: _without_layer(3, "conv4", fan_in=256 * 9, fan_in_before=192 * 9),
    4: _without_layer(4, "conv5", fan_in=192 * 9, fan_in_before=192 * 9),
    5: _without_layer(5, "fc6", fan_in=384 * 36, fan_in_before=256 * 36),
}
