"""Krizhevsky's CIFAR-10 networks of 2011–2014, as his published layer files define them.

Inputs are pixel values 0–255 minus the training set's mean image, not divided by a standard deviation, which is why the
first layer's weights are small (0.0001). Names are those of the files: the training time in seconds, or the error on
the test images.
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
from alexnet.models.network import Layers, Network, NormalInit, checked_output_size


def cifar_80sec(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> Network:
    """``layers-80sec.cfg``: 26 % test error after 80 seconds of 2011, without augmentation. 145,578 parameters."""
    layers = _convolutions(in_channels, norm=False)
    size = checked_output_size("cifar_80sec", layers, image_size)  # 4 for 32 pixels
    layers += [
        ("flatten", Flatten(size)),
        ("fc64", nn.Linear(64 * size * size, 64)),
        ("relu64", nn.ReLU(inplace=True)),
        ("fc10", nn.Linear(64, num_classes)),
    ]
    return Network(
        "cifar_80sec",
        layers,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features="relu64",
        initial=CONVOLUTIONS | {"fc64": NormalInit(0.1), "fc10": NormalInit(0.1)},
    )


def cifar_18pct(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> Network:
    """``layers-18pct.cfg``: 18 % test error on CIFAR-10 in 20 minutes of 2012, without augmentation.

    89,578 parameters. Feature maps of 32, 16, 8 and 4 pixels, by ceil. Pooling is before the first ReLU.
    """
    return _with_linear_layer(
        "cifar_18pct", _convolutions(in_channels, norm=True), num_classes, in_channels, image_size
    )


def cifar_19pct(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> Network:
    """``layers-19pct.cfg``: ``cifar_18pct`` without norms, and with the first ReLU before its pool (the same outputs).

    19 % test error, and 14.2 % with random translations and no weight decay.
    """
    return _with_linear_layer(
        "cifar_19pct", _convolutions(in_channels, norm=False), num_classes, in_channels, image_size
    )


def _convolutions(in_channels: int, norm: bool) -> Layers:
    """Layers 1 to 3 of 80sec, 18pct and 19pct. ``norm`` (18pct) adds norms, and pools before the first ReLU."""
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


def _with_linear_layer(name: str, layers: Layers, num_classes: int, in_channels: int, image_size: int) -> Network:
    """``layers`` and one fully connected layer."""
    size = checked_output_size(name, layers, image_size)  # 4 for 32 pixels
    return Network(
        name,
        [*layers, ("flatten", Flatten(size)), ("fc10", nn.Linear(64 * size * size, num_classes))],
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features="flatten",
        initial=CONVOLUTIONS | {"fc10": NormalInit(0.01)},
    )


def cifar_13pct(num_classes: int = 10, in_channels: int = 3, image_size: int = 24) -> Network:
    """``layers-conv-local-13pct.cfg``: 13 % in 25 minutes, trained on crops of 24 pixels, tested on nine crops.

    Its locally connected layers have 6×6 positions with crops of 24 pixels (1,116,490 parameters) and 8×8 positions
    with images of 32 pixels (1,901,386 parameters).
    """
    layers: Layers = [
        ("conv1", Convolution(in_channels, 64, 5, padding=2)),
        ("relu1", nn.ReLU(inplace=True)),
        ("pool1", MaxPool(3, 2)),
        ("conv2", Convolution(64, 64, 5, padding=2)),
        ("relu2", nn.ReLU(inplace=True)),
        ("pool2", MaxPool(3, 2)),
    ]
    return _with_local_layers("cifar_13pct", layers, 32, num_classes, in_channels, image_size)


def cifar_11pct(num_classes: int = 10, in_channels: int = 3, image_size: int = 24) -> Network:
    """cuda-convnet2's network of 11 % test error: ``cifar_13pct`` with LRN, and 64 feature maps in local3.

    LRN is after pool1 and before pool2. 2,112,970 parameters at 24 pixels. The first cuda-convnet has an earlier
    network of this name: LRN of size 5 before both pools, 32 feature maps in local3.
    """
    layers: Layers = [
        ("conv1", Convolution(in_channels, 64, 5, padding=2)),
        ("relu1", nn.ReLU(inplace=True)),
        ("pool1", MaxPool(3, 2)),
        ("norm1", LocalResponseNorm(1, size=9, alpha=1e-3, k=1.0)),
        ("conv2", Convolution(64, 64, 5, padding=2)),
        ("relu2", nn.ReLU(inplace=True)),
        ("norm2", LocalResponseNorm(1, size=9, alpha=1e-3, k=1.0)),
        ("pool2", MaxPool(3, 2)),
    ]
    return _with_local_layers("cifar_11pct", layers, 64, num_classes, in_channels, image_size)


def _with_local_layers(
    name: str, layers: Layers, width: int, num_classes: int, in_channels: int, image_size: int
) -> Network:
    """``layers``, two locally connected layers of ``width`` and 32 feature maps, and a fully connected layer."""
    size = checked_output_size(name, layers, image_size)  # 6 for 24 pixels, 8 for 32
    layers = [
        *layers,
        ("local3", LocallyConnected(64, width, size, 3, padding=1)),
        ("relu3", nn.ReLU(inplace=True)),
        ("local4", LocallyConnected(width, 32, size, 3, padding=1)),
        ("relu4", nn.ReLU(inplace=True)),
        ("flatten", Flatten(size)),
        ("fc10", nn.Linear(32 * size * size, num_classes)),
    ]
    return Network(
        name,
        layers,
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
