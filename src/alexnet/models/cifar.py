"""Krizhevsky's CIFAR-10 networks of 2011–2012, as his published layer files define them.

Inputs are pixel values 0–255 minus the training set's mean image, not divided by a standard deviation; the first
layer's small weights (0.0001) go with that.
"""

from torch import nn

from alexnet.models.layers import AveragePool, Convolution, Flatten, MaxPool, SpatialNorm
from alexnet.models.network import Initial, Network, usable_side


def cifar_18pct(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> Network:
    """``layers-18pct.cfg``: 18 % test error on CIFAR-10 in 20 minutes of 2012, without augmentation.

    89,578 parameters. Maps of 32, 16, 8 and 4 pixels, by ceil. Pooling comes before the first ReLU.
    """
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", Convolution(in_channels, 32, 5, padding=2)),
        ("pool1", MaxPool(3, 2)),
        ("relu1", nn.ReLU(inplace=True)),
        ("norm1", SpatialNorm(3, 5e-5)),
        ("conv2", Convolution(32, 32, 5, padding=2)),
        ("relu2", nn.ReLU(inplace=True)),
        ("pool2", AveragePool(3, 2)),
        ("norm2", SpatialNorm(3, 5e-5)),
        ("conv3", Convolution(32, 64, 5, padding=2)),
        ("relu3", nn.ReLU(inplace=True)),
        ("pool3", AveragePool(3, 2)),
    ]
    side = usable_side("cifar_18pct", layers, image_size)  # 4 for 32 pixels
    layers += [("flatten", Flatten(side)), ("fc10", nn.Linear(64 * side * side, num_classes))]
    return Network(
        "cifar_18pct", layers, num_classes=num_classes, in_channels=in_channels, image_size=image_size,
        features="flatten", initial=INITIAL_18PCT,
    )  # fmt: skip


INITIAL_18PCT = {"conv1": Initial(1e-4), "conv2": Initial(0.01), "conv3": Initial(0.01), "fc10": Initial(0.01)}
