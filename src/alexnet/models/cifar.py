"""Krizhevsky's CIFAR-10 networks of 2011–2014, as his published layer files define them.

Inputs are pixel values 0–255 minus the training set's mean image, not divided by a standard deviation; the first
layer's small weights (0.0001) go with that. Names are those of the files, which are named by what they reach: seconds,
or the error on the test images.
"""

from torch import nn

from alexnet.models.layers import (
    AveragePool,
    Convolution,
    Flatten,
    LocallyConnected,
    LocalResponseNorm,
    MaxPool,
    SpatialNorm,
)
from alexnet.models.network import Layers, Network, NormalInit, usable_side


def cifar_80sec(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> Network:
    """``layers-80sec.cfg``: 26 % test error after 80 seconds of 2011, without augmentation. 145,578 parameters."""
    maps = _convolutions(in_channels, norm=False)
    side = usable_side("cifar_80sec", maps, image_size)  # 4 for 32 pixels
    rest: Layers = [
        ("flatten", Flatten(side)),
        ("fc64", nn.Linear(64 * side * side, 64)),
        ("relu64", nn.ReLU(inplace=True)),
        ("fc10", nn.Linear(64, num_classes)),
    ]
    return Network(
        "cifar_80sec",
        [*maps, *rest],
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features="relu64",
        initial=CONVOLUTIONS | {"fc64": NormalInit(0.1), "fc10": NormalInit(0.1)},
    )


def cifar_18pct(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> Network:
    """``layers-18pct.cfg``: 18 % test error on CIFAR-10 in 20 minutes of 2012, without augmentation.

    89,578 parameters. Maps of 32, 16, 8 and 4 pixels, by ceil. Pooling comes before the first ReLU.
    """
    return _one_layer("cifar_18pct", _convolutions(in_channels, norm=True), num_classes, in_channels, image_size)


def cifar_19pct(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> Network:
    """``layers-19pct.cfg``: ``cifar_18pct`` without norms, the first ReLU before its pool (the same outputs).

    19 %, and 14.2 % with translations and no decay.
    """
    return _one_layer("cifar_19pct", _convolutions(in_channels, norm=False), num_classes, in_channels, image_size)


def _convolutions(in_channels: int, norm: bool) -> Layers:
    """What 80sec, 18pct and 19pct share; norms, and the first ReLU behind its pool, are 18pct's."""
    first: Layers = [("pool1", MaxPool(3, 2)), ("relu1", nn.ReLU(inplace=True))]
    layers: Layers = [
        ("conv1", Convolution(in_channels, 32, 5, padding=2)),
        *(first if norm else reversed(first)),
        ("norm1", SpatialNorm(3, 5e-5)),
        ("conv2", Convolution(32, 32, 5, padding=2)),
        ("relu2", nn.ReLU(inplace=True)),
        ("pool2", AveragePool(3, 2)),
        ("norm2", SpatialNorm(3, 5e-5)),
        ("conv3", Convolution(32, 64, 5, padding=2)),
        ("relu3", nn.ReLU(inplace=True)),
        ("pool3", AveragePool(3, 2)),
    ]
    return [(name, layer) for name, layer in layers if norm or not name.startswith("norm")]


CONVOLUTIONS = {"conv1": NormalInit(1e-4), "conv2": NormalInit(0.01), "conv3": NormalInit(0.01)}


def _one_layer(name: str, maps: Layers, num_classes: int, in_channels: int, image_size: int) -> Network:
    """``maps`` and one fully connected layer."""
    side = usable_side(name, maps, image_size)  # 4 for 32 pixels
    rest: Layers = [("flatten", Flatten(side)), ("fc10", nn.Linear(64 * side * side, num_classes))]
    return Network(
        name,
        [*maps, *rest],
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features="flatten",
        initial=CONVOLUTIONS | {"fc10": NormalInit(0.01)},
    )


def cifar_13pct(num_classes: int = 10, in_channels: int = 3, image_size: int = 24) -> Network:
    """``layers-conv-local-13pct.cfg``: 13 % in 25 minutes, trained on crops of 24 pixels, tested on nine of them.

    Locally connected layers see 6×6 pixels of a crop: 1,116,490 parameters. Of 32-pixel images they see 8×8, which
    gives the 1,901,386 that are counted for this file without crops.
    """
    maps: Layers = [
        ("conv1", Convolution(in_channels, 64, 5, padding=2)),
        ("relu1", nn.ReLU(inplace=True)),
        ("pool1", MaxPool(3, 2)),
        ("conv2", Convolution(64, 64, 5, padding=2)),
        ("relu2", nn.ReLU(inplace=True)),
        ("pool2", MaxPool(3, 2)),
    ]
    return _local("cifar_13pct", maps, 32, num_classes, in_channels, image_size)


def cifar_11pct(num_classes: int = 10, in_channels: int = 3, image_size: int = 24) -> Network:
    """cuda-convnet2's net of 11 % test error: ``cifar_13pct`` with channel norms, and 64 maps in local3.

    The norms stand after pool1 and before pool2. 2,112,970 parameters at 24 pixels. The first cuda-convnet has an
    earlier net of this name: norms of size 5 before both pools, 32 maps in local3.
    """
    maps: Layers = [
        ("conv1", Convolution(in_channels, 64, 5, padding=2)),
        ("relu1", nn.ReLU(inplace=True)),
        ("pool1", MaxPool(3, 2)),
        ("norm1", LocalResponseNorm(1, size=9, alpha=1e-3, k=1.0)),
        ("conv2", Convolution(64, 64, 5, padding=2)),
        ("relu2", nn.ReLU(inplace=True)),
        ("norm2", LocalResponseNorm(1, size=9, alpha=1e-3, k=1.0)),
        ("pool2", MaxPool(3, 2)),
    ]
    return _local("cifar_11pct", maps, 64, num_classes, in_channels, image_size)


def _local(name: str, maps: Layers, width: int, num_classes: int, in_channels: int, image_size: int) -> Network:
    """``maps`` (64 of them) and two locally connected layers of ``width`` and 32 maps."""
    side = usable_side(name, maps, image_size)  # 6 for 24 pixels, 8 for 32
    rest: Layers = [
        ("local3", LocallyConnected(64, width, side, 3, padding=1)),
        ("relu3", nn.ReLU(inplace=True)),
        ("local4", LocallyConnected(width, 32, side, 3, padding=1)),
        ("relu4", nn.ReLU(inplace=True)),
        ("flatten", Flatten(side)),
        ("fc10", nn.Linear(32 * side * side, num_classes)),
    ]
    return Network(
        name,
        [*maps, *rest],
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features="flatten",
        initial=LOCAL,
    )


LOCAL = {
    "conv1": NormalInit(1e-4),
    "conv2": NormalInit(0.01),
    "local3": NormalInit(0.04),
    "local4": NormalInit(0.04),
    "fc10": NormalInit(0.01),
}
