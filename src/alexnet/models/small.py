"""The paper's networks for small images: eight layers scaled to 32 and 64 pixels, and the four layers of Figure 1.

:data:`SMALL` follows section 3 with a quarter of the feature maps and an eighth of the hidden units, for 24-pixel crops
of 32-pixel images (as Krizhevsky's CIFAR-10 networks crop). :data:`MEDIUM` has half of the feature maps and a quarter
of the hidden units, for 56-pixel crops of 64-pixel images such as Tiny ImageNet's. Each variant differs from its
network in one thing, which is what a claim of the paper is about.

Weights are drawn from N(0, std²) with std = s·√(the paper's fan-in / this fan-in), where s is 0.01 (section 5), and
0.03 in conv3 to conv5 as in the 2012 code. So activations start with the variance of the large network; with a std of
0.01 they would vanish.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

from torch import nn

from alexnet.models.layers import Convolution, Dropout, Flatten, LocalResponseNorm, MaxPool
from alexnet.models.network import Network, NormalInit, checked_output_size

Nonlinearity = Literal["relu", "tanh", "sigmoid"]
Widths = tuple[int, int, int, int, int]  # feature maps of conv1 to conv5


class Scale(NamedTuple):
    """The sizes of a scaled AlexNet."""

    conv1: tuple[int, int, int]  # kernel, stride and padding, pixels
    widths: Widths
    half_widths: Widths  # half of the kernels in all but the last, as in the one-GPU network of section 3.2
    single_widths: Widths  # one tower with the multiply-adds of the two towers, within 1 %
    hidden: int  # units of fc6 and fc7
    no_overlap_padding: int  # of conv2 where pooling windows do not overlap: conv3 gets feature maps of the same size


SMALL = Scale(  # every pool has input of even size, so that windows of 2 and of 3 pixels give outputs of the same size
    conv1=(5, 1, 2),
    widths=(24, 64, 96, 96, 64),
    half_widths=(12, 32, 48, 48, 64),
    single_widths=(20, 44, 72, 72, 64),
    hidden=512,
    no_overlap_padding=2,
)
MEDIUM = Scale(  # feature maps of 27, 13, 6 and 3 pixels; the paper's of 55, 27, 13 and 6
    conv1=(7, 2, 1),
    widths=(48, 128, 192, 192, 128),
    half_widths=(24, 64, 96, 96, 128),
    single_widths=(40, 88, 144, 144, 128),
    hidden=1024,
    no_overlap_padding=1,
)
PAPER_FAN_IN_STD = {  # fan-in of each layer of the paper's network, and its standard deviation
    "conv1": (363, 0.01),
    "conv2": (1200, 0.01),
    "conv3": (2304, 0.03),
    "conv4": (1728, 0.03),
    "conv5": (1728, 0.03),
    "fc6": (9216, 0.01),
    "fc7": (4096, 0.01),
    "fc8": (4096, 0.01),
}
BIAS_ONE = {"conv2", "conv4", "conv5", "fc6", "fc7"}  # initial biases of 1 give the ReLUs positive inputs (section 5)
FIGURE1_STD = {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc4": 0.01}  # standard deviations of layers-18pct.cfg
_LAYERS: dict[Nonlinearity, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def scaled_alexnet(
    name: str,
    scale: Scale,
    num_classes: int,
    image_size: int,
    in_channels: int = 3,
    *,
    widths: Widths | None = None,
    towers: int = 2,
    norm: bool = True,
    overlap: bool = True,
    nonlinearity: Nonlinearity = "relu",
) -> Network:
    """Eight learned layers for small images.

    Args:
        name: Name of the network.
        scale: Its sizes.
        num_classes: Classes.
        image_size: Size of the square input, pixels.
        in_channels: 3 for color, 1 for gray.
        widths: Feature maps of conv1 to conv5, in place of those of ``scale``.
        towers: 2 as in the paper; 1 connects every kernel to all feature maps.
        norm: Whether LRN follows conv1 and conv2 (section 3.3).
        overlap: Whether pooling windows overlap (section 3.4): 3×3 at stride 2, else 2×2 at stride 2.
        nonlinearity: With another than ReLU (section 3.1), all initial biases are 0.
    """
    widths = widths or scale.widths
    pool = partial(MaxPool, 3 if overlap else 2, 2)
    kernel, stride, padding = scale.conv1
    first = Convolution(in_channels, widths[0], kernel, stride, padding)
    padding = 2 if overlap else scale.no_overlap_padding
    second = Convolution(widths[0], widths[1], 5, padding=padding, groups=towers)
    layers: list[tuple[str, nn.Module]] = []
    for number, convolution in ((1, first), (2, second)):
        layers += [(f"conv{number}", convolution), (f"{nonlinearity}{number}", _LAYERS[nonlinearity]())]
        layers += [(f"norm{number}", LocalResponseNorm(towers))] if norm else []
        layers.append((f"pool{number}", pool()))
    # conv3 reads the feature maps of both towers, conv4 and conv5 those of their own tower
    channels = widths[1]
    for number, width, groups in ((3, widths[2], 1), (4, widths[3], towers), (5, widths[4], towers)):
        layers.append((f"conv{number}", Convolution(channels, width, 3, padding=1, groups=groups)))
        layers.append((f"{nonlinearity}{number}", _LAYERS[nonlinearity]()))
        channels = width
    layers.append(("pool5", pool()))
    size = checked_output_size(name, layers, image_size)  # 3 for 24 and for 56 pixels
    layers += [
        ("flatten", Flatten(size)),
        ("fc6", nn.Linear(channels * size * size, scale.hidden)),
        (f"{nonlinearity}6", _LAYERS[nonlinearity]()),
        ("drop6", Dropout(0.5)),
        ("fc7", nn.Linear(scale.hidden, scale.hidden)),
        (f"{nonlinearity}7", _LAYERS[nonlinearity]()),
        ("drop7", Dropout(0.5)),
        ("fc8", nn.Linear(scale.hidden, num_classes)),
    ]
    return Network(
        name,
        layers,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features=f"{nonlinearity}7",
        initial=_initial(layers, biases=nonlinearity == "relu"),
        towers=towers,
    )


def _initial(layers: list[tuple[str, nn.Module]], *, biases: bool) -> dict[str, NormalInit]:
    initial = {}
    for name, layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in, std = PAPER_FAN_IN_STD[name]
            scaled = std * (fan_in / layer.weight[0].numel()) ** 0.5
            initial[name] = NormalInit(scaled, float(name in BIAS_ONE and biases))
    return initial


def figure1(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    *,
    nonlinearity: Nonlinearity = "relu",
    wide: bool = False,
) -> Network:
    """The four-layer convolutional network of Figure 1 for CIFAR-10, with ReLU, tanh or sigmoid: ``figure1_relu`` etc.

    Figure 1 gives neither sizes nor initial weights. They are those of Krizhevsky's own four-layer CIFAR-10 network
    (``layers-18pct.cfg``), without its norms, and with max pooling throughout, since its average pools would be a
    second nonlinearity. It expects gray levels minus the mean.

    Args:
        num_classes: Classes.
        in_channels: 3 for color, 1 for gray.
        image_size: Size of the square input, pixels.
        nonlinearity: That of every convolution.
        wide: Whether weights are drawn from N(0, 1/fan-in), which LeCun et al. (1998) found best *for tanh*. The
            network then expects inputs divided by 64 (recipe: ``divide``).
    """
    name = f"figure1_{nonlinearity}{'_wide' * wide}"
    layers: list[tuple[str, nn.Module]] = []
    channels = in_channels
    for number, width in enumerate((32, 32, 64), 1):
        layers.append((f"conv{number}", Convolution(channels, width, 5, padding=2)))
        layers += [(f"{nonlinearity}{number}", _LAYERS[nonlinearity]()), (f"pool{number}", MaxPool(3, 2))]
        channels = width
    size = checked_output_size(name, layers, image_size)  # 4 for 32 pixels
    layers += [("flatten", Flatten(size)), ("fc4", nn.Linear(channels * size * size, num_classes))]
    learned = [(key, layer) for key, layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
    std = {key: layer.weight[0].numel() ** -0.5 if wide else FIGURE1_STD[key] for key, layer in learned}
    return Network(
        name,
        layers,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features="flatten",
        initial={key: NormalInit(value) for key, value in std.items()},
    )
