"""Caffe's two AlexNets of 2013 and 2014: the same convolutions, with other arithmetic around them.

Both take 227 pixels, compute output sizes of convolutions by floor and those of pools by ceil, and normalize over
**all** channels with k = 1. So they have groups, but no independent towers: LRN next to the border between the groups
(channels 46 to 49 of conv1) includes channels of the other group. Their published weights expect BGR pixels 0–255 minus
the mean image. Definitions: ``models/bvlc_alexnet`` and ``models/bvlc_reference_caffenet`` of BVLC/caffe.
"""

from torch import nn

from alexnet.models.alexnet import build
from alexnet.models.layers import Convolution, LocalResponseNorm, MaxPool
from alexnet.models.network import Layers, Network, NormalInit


def alexnet_caffe(num_classes: int = 1000, in_channels: int = 3, image_size: int = 227) -> Network:
    """``bvlc_alexnet``: LRN after the ReLU, as in the paper. 42.9 % top-1 and 19.8 % top-5 error, center crop."""
    layers = [*_first(in_channels), _norm(1), _pool(1), *_second(), _norm(2), _pool(2), *_third_to_fifth()]
    return build("alexnet_caffe", layers, num_classes, in_channels, image_size, towers=1, initial=BVLC_ALEXNET)


def caffenet(num_classes: int = 1000, in_channels: int = 3, image_size: int = 227) -> Network:
    """``bvlc_reference_caffenet``: pooling before LRN, which reduces its work to a quarter. 42.6 % and 19.6 %."""
    layers = [*_first(in_channels), _pool(1), _norm(1), *_second(), _pool(2), _norm(2), *_third_to_fifth()]
    return build("caffenet", layers, num_classes, in_channels, image_size, towers=1, initial=CAFFENET)


def _first(in_channels: int) -> Layers:
    return [("conv1", Convolution(in_channels, 96, 11, stride=4, ceil=False)), ("relu1", nn.ReLU(inplace=True))]


def _second() -> Layers:
    return [("conv2", Convolution(96, 256, 5, padding=2, groups=2, ceil=False)), ("relu2", nn.ReLU(inplace=True))]


def _norm(layer: int) -> tuple[str, nn.Module]:
    return f"norm{layer}", LocalResponseNorm(1, k=1.0)


def _pool(layer: int) -> tuple[str, nn.Module]:
    return f"pool{layer}", MaxPool(3, 2)


def _third_to_fifth() -> Layers:
    return [
        ("conv3", Convolution(256, 384, 3, padding=1, ceil=False)),
        ("relu3", nn.ReLU(inplace=True)),
        ("conv4", Convolution(384, 384, 3, padding=1, groups=2, ceil=False)),
        ("relu4", nn.ReLU(inplace=True)),
        ("conv5", Convolution(384, 256, 3, padding=1, groups=2, ceil=False)),
        ("relu5", nn.ReLU(inplace=True)),
        _pool(5),
    ]


def _fillers(bias: float) -> dict[str, NormalInit]:
    """The weight and bias fillers of both networks; ``bias`` replaces the paper's 1."""
    return {
        "conv1": NormalInit(0.01),
        "conv2": NormalInit(0.01, bias),
        "conv3": NormalInit(0.01),
        "conv4": NormalInit(0.01, bias),
        "conv5": NormalInit(0.01, bias),
        "fc6": NormalInit(0.005, bias),
        "fc7": NormalInit(0.005, bias),
        "fc8": NormalInit(0.01),
    }


BVLC_ALEXNET = _fillers(0.1)
CAFFENET = _fillers(1)
