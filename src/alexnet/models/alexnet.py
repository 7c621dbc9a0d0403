"""AlexNet: the network of Krizhevsky, Sutskever and Hinton, 2012; reads like section 3 of the paper.

Two networks:

* ``alexnet`` is the paper's: two towers that are connected at conv3, fc6, fc7 and fc8, 224-pixel input, response
  normalization inside each tower. 60,965,224 parameters at 1000 classes.
* ``alexnet_single`` is the textbook's: one tower, no groups, 227-pixel input. 62,378,344 parameters.

At the end, ``alexnet_2012`` is net 145 of the 2012 code, the program behind the paper's numbers, which differs from
the paper's text in some layers. Caffe's and torchvision's AlexNets are in ``alexnet_variants.py``, the paper's
comparisons in ``comparisons.py``.
"""

from collections.abc import Callable, Mapping

from torch import nn

from alexnet.models.layers import Convolution, Dropout, Flatten, LocalResponseNorm, MaxPool, SpatialNorm
from alexnet.models.network import Layers, Network, NormalInit, checked_output_size


def alexnet(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """The paper's network: two towers as groups, LRN after ReLU, output sizes by ceil (224 gives 55)."""
    layers = convolutional_layers(in_channels, towers=2)
    return build("alexnet", layers, num_classes, in_channels, image_size, towers=2)


def alexnet_single(num_classes: int = 1000, in_channels: int = 3, image_size: int = 227) -> Network:
    """The same widths in one tower: every layer reads all channels; 227 pixels, as in textbooks."""
    layers = convolutional_layers(in_channels, towers=1)
    return build("alexnet_single", layers, num_classes, in_channels, image_size, towers=1)


def convolutional_layers(in_channels: int, towers: int) -> Layers:
    """Layers 1 to 5."""
    # Section 3.5: the kernels of conv2, conv4 and conv5 read the feature maps of their own tower only; conv3 reads all.
    # Sections 3.3 and 3.4: normalization and overlapping pooling follow layers 1 and 2; layer 5 is pooled too.
    return [
        ("conv1", Convolution(in_channels, 96, 11, stride=4)),
        ("relu1", nn.ReLU(inplace=True)),
        ("norm1", LocalResponseNorm(towers)),
        ("pool1", MaxPool(3, 2)),
        ("conv2", Convolution(96, 256, 5, padding=2, groups=towers)),
        ("relu2", nn.ReLU(inplace=True)),
        ("norm2", LocalResponseNorm(towers)),
        ("pool2", MaxPool(3, 2)),
        ("conv3", Convolution(256, 384, 3, padding=1)),
        ("relu3", nn.ReLU(inplace=True)),
        ("conv4", Convolution(384, 384, 3, padding=1, groups=towers)),
        ("relu4", nn.ReLU(inplace=True)),
        ("conv5", Convolution(384, 256, 3, padding=1, groups=towers)),
        ("relu5", nn.ReLU(inplace=True)),
        ("pool5", MaxPool(3, 2)),
    ]


def fully_connected_layers(size: int, num_classes: int) -> Layers:
    """Layers 6 to 8, after 256 feature maps of ``size``×``size`` pixels: 6 for images of 224 and 227 pixels."""
    # Section 4.2: dropout of one half on the outputs of the first two fully connected layers.
    return [
        ("flatten", Flatten(size)),
        ("fc6", nn.Linear(256 * size * size, 4096)),
        ("relu6", nn.ReLU(inplace=True)),
        ("drop6", Dropout(0.5)),
        ("fc7", nn.Linear(4096, 4096)),
        ("relu7", nn.ReLU(inplace=True)),
        ("drop7", Dropout(0.5)),
        ("fc8", nn.Linear(4096, num_classes)),
    ]


# Section 5: weights from N(0, 0.01²); biases 1 in the layers that feed ReLUs early on (2, 4, 5, 6, 7), 0 elsewhere.
PAPER = {
    "conv1": NormalInit(0.01),
    "conv2": NormalInit(0.01, 1),
    "conv3": NormalInit(0.01),
    "conv4": NormalInit(0.01, 1),
    "conv5": NormalInit(0.01, 1),
    "fc6": NormalInit(0.01, 1),
    "fc7": NormalInit(0.01, 1),
    "fc8": NormalInit(0.01),
}

# The 2012 code (net 145) draws conv3, conv4 and conv5 with 0.03: its first logits differ between images by 0.141
# (standard deviation). With the values of the text it is 0.0095, and training takes off an order of magnitude later.
CODE_2012 = PAPER | {"conv3": NormalInit(0.03), "conv4": NormalInit(0.03, 1), "conv5": NormalInit(0.03, 1)}


def build(
    name: str,
    convolutional: Layers,
    num_classes: int,
    in_channels: int,
    image_size: int,
    *,
    towers: int,
    initial: Mapping[str, NormalInit] = PAPER,
    fully_connected: Callable[[int, int], Layers] = fully_connected_layers,
    features: str = "relu7",
) -> Network:
    """``convolutional`` layers, then ``fully_connected(size, num_classes)`` layers on feature maps of ``size`` pixels.

    Raises :class:`ModelError` if the images are too small.
    """
    size = checked_output_size(name, convolutional, image_size)
    return Network(
        name,
        [*convolutional, *fully_connected(size, num_classes)],
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features=features,
        initial=initial,
        towers=towers,
    )


def alexnet_2012(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """Net 145 of the 2012 code: the paper's sizes and 60,965,224 parameters, other layers in between.

    Its logged results are the paper's, digit for digit: 40.664 % and 18.210 % on ILSVRC-2012's validation images, ten
    crops. Definition: ``layers/layers-145.cfg`` and ``layer-params-145.cfg`` of the source that the Computer History
    Museum published in 2025.
    """
    layers = convolutional_layers_2012(in_channels)
    return build("alexnet_2012", layers, num_classes, in_channels, image_size, towers=2, initial=CODE_2012)


def convolutional_layers_2012(in_channels: int) -> Layers:
    """Layers 1 to 5. A ReLU before or after a max pool is the same; the position of a norm changes the result."""
    return [
        ("conv1", Convolution(in_channels, 96, 11, stride=4)),
        ("norm1", LocalResponseNorm(2)),  # the paper normalizes after the ReLU
        ("pool1", MaxPool(3, 2)),
        ("relu1", nn.ReLU(inplace=True)),
        ("conv2", Convolution(96, 256, 5, padding=2, groups=2)),
        ("relu2", nn.ReLU(inplace=True)),
        ("norm2", LocalResponseNorm(2)),
        ("spatial2", SpatialNorm(5, 1e-3)),  # not in the paper: 5×5 pixels of the same feature map
        ("pool2", MaxPool(3, 2)),
        ("conv3", Convolution(256, 384, 3, padding=1)),
        ("relu3", nn.ReLU(inplace=True)),
        ("conv4", Convolution(384, 384, 3, padding=1, groups=2)),
        ("relu4", nn.ReLU(inplace=True)),
        ("conv5", Convolution(384, 256, 3, padding=1, groups=2)),
        ("pool5", MaxPool(3, 2)),
        ("relu5", nn.ReLU(inplace=True)),
    ]
