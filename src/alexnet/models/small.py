"""The paper's networks for small images: eight layers scaled to CIFAR-10, and the four-layer network of Figure 1.

``alexnet_small`` follows section 3 with a quarter of the feature maps and an eighth of the hidden units, for 24-pixel
crops of 32-pixel images (as Krizhevsky's CIFAR-10 networks crop). Each variant differs from it in one thing, which is
what a claim of the paper is about. At 24 pixels every pool has input of even size, so that windows of 2 and of 3 pixels
give outputs of the same size, as in section 3.4.

Weights are drawn from N(0, std²) with std = s·√(the paper's fan-in / this fan-in), where s is 0.01 (section 5), and
0.03 in conv3 to conv5 as in the 2012 code. So activations start with the variance of the large network; with a std of
0.01 they would vanish.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from alexnet.models.layers import Convolution, Dropout, Flatten, LocalResponseNorm, MaxPool
from alexnet.models.network import Network, NormalInit, checked_output_size

WIDTHS = (24, 64, 96, 96, 64)  # feature maps of conv1 to conv5: the paper's 96, 256, 384, 384, 256 divided by four
HALF_WIDTHS = (12, 32, 48, 48, 64)  # half of the kernels in all but the last, as in the one-GPU network of section 3.2
SINGLE_WIDTHS = (20, 44, 72, 72, 64)  # one tower with the multiply-adds of the two towers, within 1 %
HIDDEN = 512  # units of fc6 and fc7: the paper's 4096 divided by eight
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


def alexnet_small(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 24,
    *,
    name: str = "alexnet_small",
    widths: tuple[int, int, int, int, int] = WIDTHS,
    towers: int = 2,
    norm: bool = True,
    overlap: bool = True,
    tanh: bool = False,
) -> Network:
    """Eight learned layers for small images.

    Args:
        num_classes: Classes.
        in_channels: 3 for color, 1 for gray.
        image_size: Size of the square input, pixels.
        name: Name of the network.
        widths: Feature maps of conv1 to conv5.
        towers: 2 as in the paper; 1 connects every kernel to all feature maps.
        norm: Whether LRN follows conv1 and conv2 (section 3.3).
        overlap: Whether pooling windows overlap (section 3.4): 3×3 at stride 2, else 2×2 at stride 2.
        tanh: Whether tanh replaces every ReLU (section 3.1), and 0 the initial biases of 1.
    """
    activation_name, activation = _activation(tanh)
    pool = partial(MaxPool, 3 if overlap else 2, 2)
    layers: list[tuple[str, nn.Module]] = []
    channels = in_channels
    for number, width, groups in ((1, widths[0], 1), (2, widths[1], towers)):
        layers.append((f"conv{number}", Convolution(channels, width, 5, padding=2, groups=groups)))
        layers.append((f"{activation_name}{number}", activation()))
        layers += [(f"norm{number}", LocalResponseNorm(towers))] if norm else []
        layers.append((f"pool{number}", pool()))
        channels = width
    # conv3 reads the feature maps of both towers, conv4 and conv5 those of their own tower
    for number, width, groups in ((3, widths[2], 1), (4, widths[3], towers), (5, widths[4], towers)):
        layers.append((f"conv{number}", Convolution(channels, width, 3, padding=1, groups=groups)))
        layers.append((f"{activation_name}{number}", activation()))
        channels = width
    layers.append(("pool5", pool()))
    size = checked_output_size(name, layers, image_size)  # 3 for 24 pixels
    layers += [
        ("flatten", Flatten(size)),
        ("fc6", nn.Linear(channels * size * size, HIDDEN)),
        (f"{activation_name}6", activation()),
        ("drop6", Dropout(0.5)),
        ("fc7", nn.Linear(HIDDEN, HIDDEN)),
        (f"{activation_name}7", activation()),
        ("drop7", Dropout(0.5)),
        ("fc8", nn.Linear(HIDDEN, num_classes)),
    ]
    return Network(
        name,
        layers,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features=f"{activation_name}7",
        initial=_initial(layers, tanh),
        towers=towers,
    )


def _activation(tanh: bool) -> tuple[str, Callable[[], nn.Module]]:
    return ("tanh", nn.Tanh) if tanh else ("relu", partial(nn.ReLU, inplace=True))


def _initial(layers: list[tuple[str, nn.Module]], tanh: bool) -> dict[str, NormalInit]:
    initial = {}
    for name, layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in, std = PAPER_FAN_IN_STD[name]
            scaled = std * (fan_in / layer.weight[0].numel()) ** 0.5
            initial[name] = NormalInit(scaled, float(name in BIAS_ONE and not tanh))
    return initial


def figure1(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    *,
    name: str = "figure1_relu",
    tanh: bool = False,
    wide: bool = False,
) -> Network:
    """The four-layer convolutional network of Figure 1 for CIFAR-10, with ReLU or tanh.

    Figure 1 gives neither sizes nor initial weights. They are those of Krizhevsky's own four-layer CIFAR-10 network
    (``layers-18pct.cfg``), without its norms, and with max pooling throughout, since its average pools would be a
    second nonlinearity. It expects gray levels minus the mean.

    Args:
        num_classes: Classes.
        in_channels: 3 for color, 1 for gray.
        image_size: Size of the square input, pixels.
        name: Name of the network.
        tanh: Whether tanh replaces every ReLU.
        wide: Whether weights are drawn from N(0, 1/fan-in), which LeCun et al. (1998) found best *for tanh*. The
            network then expects inputs divided by 64 (recipe: ``divide``).
    """
    activation_name, activation = _activation(tanh)
    layers: list[tuple[str, nn.Module]] = []
    channels = in_channels
    for number, width in enumerate((32, 32, 64), 1):
        layers.append((f"conv{number}", Convolution(channels, width, 5, padding=2)))
        layers += [(f"{activation_name}{number}", activation()), (f"pool{number}", MaxPool(3, 2))]
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
