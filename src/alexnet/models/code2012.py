"""Net 145 of the 2012 code: the program behind the paper's numbers, where it differs from the paper's text.

Its logged results are the paper's, digit for digit: 40.664 % and 18.210 % on ILSVRC-2012's validation pictures, ten
views. Definition: ``layers/layers-145.cfg`` and ``layer-params-145.cfg`` of the source that the Computer History
Museum published in 2025.
"""

from torch import nn

from alexnet.models.alexnet import CODE_2012, build
from alexnet.models.layers import Convolution, MaxPool, ResponseNorm, SpatialNorm
from alexnet.models.network import Layers, Network


def alexnet_2012(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """The network that ran: the paper's sizes and 60,965,224 parameters, other arithmetic between the layers."""
    maps = convolutional_layers(in_channels)
    return build("alexnet_2012", maps, num_classes, in_channels, image_size, towers=2, initial=CODE_2012)


def convolutional_layers(in_channels: int) -> Layers:
    """Layers 1 to 5. A ReLU behind a max pool gives what it gives before one; a norm's place changes the result."""
    return [
        ("conv1", Convolution(in_channels, 96, 11, stride=4)),
        ("norm1", ResponseNorm(2)),  # the paper normalizes after the ReLU
        ("pool1", MaxPool(3, 2)),
        ("relu1", nn.ReLU(inplace=True)),
        ("conv2", Convolution(96, 256, 5, padding=2, groups=2)),
        ("relu2", nn.ReLU(inplace=True)),
        ("norm2", ResponseNorm(2)),
        ("spatial2", SpatialNorm(5, 1e-3)),  # not in the paper: 5×5 pixels of the same map
        ("pool2", MaxPool(3, 2)),
        ("conv3", Convolution(256, 384, 3, padding=1)),
        ("relu3", nn.ReLU(inplace=True)),
        ("conv4", Convolution(384, 384, 3, padding=1, groups=2)),
        ("relu4", nn.ReLU(inplace=True)),
        ("conv5", Convolution(384, 256, 3, padding=1, groups=2)),
        ("pool5", MaxPool(3, 2)),
        ("relu5", nn.ReLU(inplace=True)),
    ]
