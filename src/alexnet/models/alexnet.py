"""AlexNet: the network of Krizhevsky, Sutskever and Hinton, 2012; reads like section 3 of the paper.

Two networks, named for what they are:

* ``alexnet`` is the paper's: two towers that meet at conv3, fc6, fc7 and fc8, 224-pixel input, response
  normalization inside each tower. 60,965,224 parameters at 1000 classes.
* ``alexnet_single`` is the textbook's: one tower, no groups, 227-pixel input. 62,378,344 parameters.

What the 2012 code, Caffe and torchvision call AlexNet is in ``code2012.py``, ``caffe.py`` and ``one_weird_trick.py``;
the paper's comparisons are in ``comparisons.py``.
"""

from collections.abc import Callable, Mapping

from torch import nn

from alexnet.models.layers import Convolution, Dropout, Flatten, MaxPool, ResponseNorm
from alexnet.models.network import Initial, Layers, Network, usable_side


def alexnet(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """The paper's network: two towers as groups, norm after ReLU, sizes by ceil (224 gives 55)."""
    maps = convolutional_layers(in_channels, towers=2)
    return build("alexnet", maps, num_classes, in_channels, image_size, towers=2)


def alexnet_single(num_classes: int = 1000, in_channels: int = 3, image_size: int = 227) -> Network:
    """The same widths in one tower: every layer sees all channels; 227 pixels, as the textbooks count."""
    maps = convolutional_layers(in_channels, towers=1)
    return build("alexnet_single", maps, num_classes, in_channels, image_size, towers=1)


def convolutional_layers(in_channels: int, towers: int) -> Layers:
    """Layers 1 to 5."""
    # Section 3.5: the kernels of conv2, conv4 and conv5 see only the maps of their own tower; conv3 sees all.
    # Sections 3.3 and 3.4: normalization and overlapping pooling follow layers 1 and 2; layer 5 is pooled too.
    return [
        ("conv1", Convolution(in_channels, 96, 11, stride=4)),
        ("relu1", nn.ReLU(inplace=True)),
        ("norm1", ResponseNorm(towers)),
        ("pool1", MaxPool(3, 2)),
        ("conv2", Convolution(96, 256, 5, padding=2, groups=towers)),
        ("relu2", nn.ReLU(inplace=True)),
        ("norm2", ResponseNorm(towers)),
        ("pool2", MaxPool(3, 2)),
        ("conv3", Convolution(256, 384, 3, padding=1)),
        ("relu3", nn.ReLU(inplace=True)),
        ("conv4", Convolution(384, 384, 3, padding=1, groups=towers)),
        ("relu4", nn.ReLU(inplace=True)),
        ("conv5", Convolution(384, 256, 3, padding=1, groups=towers)),
        ("relu5", nn.ReLU(inplace=True)),
        ("pool5", MaxPool(3, 2)),
    ]


def fully_connected_layers(side: int, num_classes: int) -> Layers:
    """Layers 6 to 8, behind 256 maps of ``side`` pixels: 6 for 224 and 227 pixels."""
    # Section 4.2: dropout of one half on the outputs of the first two fully connected layers.
    return [
        ("flatten", Flatten(side)),
        ("fc6", nn.Linear(256 * side * side, 4096)),
        ("relu6", nn.ReLU(inplace=True)),
        ("drop6", Dropout(0.5)),
        ("fc7", nn.Linear(4096, 4096)),
        ("relu7", nn.ReLU(inplace=True)),
        ("drop7", Dropout(0.5)),
        ("fc8", nn.Linear(4096, num_classes)),
    ]


# Section 5: weights from N(0, 0.01²); biases 1 in the layers that feed ReLUs early on (2, 4, 5, 6, 7), 0 elsewhere.
PAPER = {
    "conv1": Initial(0.01), "conv2": Initial(0.01, 1), "conv3": Initial(0.01), "conv4": Initial(0.01, 1),
    "conv5": Initial(0.01, 1), "fc6": Initial(0.01, 1), "fc7": Initial(0.01, 1), "fc8": Initial(0.01),
}  # fmt: skip

# The 2012 code (net 145) draws conv3, conv4 and conv5 with 0.03: its first logits differ between pictures by 0.141
# (standard deviation) where the paper's text gives 0.0095, from which training starts an order of magnitude later.
CODE_2012 = PAPER | {"conv3": Initial(0.03), "conv4": Initial(0.03, 1), "conv5": Initial(0.03, 1)}


def build(
    name: str,
    maps: Layers,
    num_classes: int,
    in_channels: int,
    image_size: int,
    *,
    towers: int,
    initial: Mapping[str, Initial] = PAPER,
    rest: Callable[[int, int], Layers] = fully_connected_layers,
    features: str = "relu7",
) -> Network:
    """``maps`` and ``rest(side of the last maps, num_classes)`` as one network. Raises :class:`ModelError`."""
    side = usable_side(name, maps, image_size)
    return Network(
        name, [*maps, *rest(side, num_classes)], num_classes=num_classes, in_channels=in_channels,
        image_size=image_size, features=features, initial=initial, towers=towers,
    )  # fmt: skip
