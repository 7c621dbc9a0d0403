"""Other networks known as AlexNet: Caffe's two of 2013 and 2014, and that of torchvision.

Both take 227 pixels, compute output sizes of convolutions by floor and those of pools by ceil, and normalize over
**all** channels with k = 1. So they have groups, but no independent towers: LRN next to the border between the groups
(channels 46 to 49 of conv1) includes channels of the other group. Their published weights expect BGR pixels 0–255 minus
the mean image. Definitions: ``models/bvlc_alexnet`` and ``models/bvlc_reference_caffenet`` of BVLC/caffe.

The network of "One weird trick for parallelizing convolutional neural networks" (Krizhevsky 2014) in torchvision's
version, which most people load today as ``alexnet``.

One tower, 64-192-384-256-256 feature maps, no LRN, dropout on the *inputs* of fc6 and fc7, 61,100,840 parameters. Its
state dict has torchvision's keys, ``features.0.weight`` to ``classifier.6.bias``, so that weights can be exchanged in
both directions; its layers are named as in all networks here.
"""

from typing import Any

from torch import nn

from alexnet.models.alexnet import build
from alexnet.models.layers import Convolution, Dropout, Flatten, LocalResponseNorm, MaxPool
from alexnet.models.network import Layers, Network, NormalInit, RootFanInInit, checked_output_size


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


POOLED_SIZE = 6  # size of fc6's feature maps for every image size


def alexnet_owt(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """torchvision's ``alexnet`` for images from 63 pixels; feature maps are averaged to 6×6 before fc6."""
    convolutional = _convolutional_layers(in_channels)
    checked_output_size("alexnet_owt", convolutional, image_size)
    fully_connected = _fully_connected_layers(num_classes)
    prefixes = {name: f"features.{index}" for index, (name, _) in enumerate(convolutional)}
    prefixes |= {name: f"classifier.{index}" for index, (name, _) in enumerate(fully_connected)}
    pool = [("avgpool", AdaptiveAveragePool(POOLED_SIZE)), ("flatten", Flatten(POOLED_SIZE))]
    layers = [*convolutional, *pool, *fully_connected]
    learned = [name for name, layer in layers if next(layer.parameters(), None) is not None]
    network = NetworkWithKeys(
        "alexnet_owt",
        layers,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features="relu7",
        initial=dict.fromkeys(learned, RootFanInInit()),
    )
    network.set_keys({name: prefixes[name] for name in learned})
    return network


def _convolutional_layers(in_channels: int) -> Layers:
    """torchvision's ``features``, in its order."""
    return [
        ("conv1", Convolution(in_channels, 64, 11, stride=4, padding=2, ceil=False)),
        ("relu1", nn.ReLU(inplace=True)),
        ("pool1", MaxPool(3, 2, ceil=False)),
        ("conv2", Convolution(64, 192, 5, padding=2, ceil=False)),
        ("relu2", nn.ReLU(inplace=True)),
        ("pool2", MaxPool(3, 2, ceil=False)),
        ("conv3", Convolution(192, 384, 3, padding=1, ceil=False)),
        ("relu3", nn.ReLU(inplace=True)),
        ("conv4", Convolution(384, 256, 3, padding=1, ceil=False)),
        ("relu4", nn.ReLU(inplace=True)),
        ("conv5", Convolution(256, 256, 3, padding=1, ceil=False)),
        ("relu5", nn.ReLU(inplace=True)),
        ("pool5", MaxPool(3, 2, ceil=False)),
    ]


def _fully_connected_layers(num_classes: int) -> Layers:
    """torchvision's ``classifier``, in its order."""
    return [
        ("drop6", Dropout(0.5)),
        ("fc6", nn.Linear(256 * POOLED_SIZE**2, 4096)),
        ("relu6", nn.ReLU(inplace=True)),
        ("drop7", Dropout(0.5)),
        ("fc7", nn.Linear(4096, 4096)),
        ("relu7", nn.ReLU(inplace=True)),
        ("fc8", nn.Linear(4096, num_classes)),
    ]


class AdaptiveAveragePool(nn.AdaptiveAvgPool2d):
    """``side``×``side`` means of feature maps of any size: [N, C, H, W] -> [N, C, side, side].

    The i-th mean of a column covers its pixels from ⌊i·H / side⌋ to ⌈(i + 1)·H / side⌉. Feature maps smaller than
    ``side`` repeat pixels; feature maps of ``side`` pixels are unchanged.
    """

    def __init__(self, side: int) -> None:
        super().__init__(side)
        self.side = side


class NetworkWithKeys(Network):
    """A network whose state dict has another library's keys. Its layers and parameters keep their names.

    Attributes:
        keys: Parameter name -> its key: ``conv1.weight`` -> ``features.0.weight``.
    """

    keys: dict[str, str]

    def set_keys(self, prefixes: dict[str, str]) -> None:
        """Use the keys that begin with ``prefixes`` (layer name -> prefix) for the learned layers."""
        self.keys = {f"{name}.{kind}": f"{key}.{kind}" for name, key in prefixes.items() for kind in ("weight", "bias")}
        self.register_state_dict_post_hook(_names_to_keys)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_keys_to_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_report_keys)  # type: ignore[no-untyped-call]


def _names_to_keys(network: NetworkWithKeys, state: dict[str, Any], prefix: str, _metadata: dict[str, Any]) -> None:
    for name, key in network.keys.items():  # in this order, so that the order of the entries stays
        if prefix + name in state:  # a classifier that was removed has no entries
            state[prefix + key] = state.pop(prefix + name)


def _keys_to_names(network: NetworkWithKeys, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, key in network.keys.items():
        if prefix + key in state:
            state[prefix + name] = state.pop(prefix + key)


def _report_keys(network: NetworkWithKeys, incompatible: Any) -> None:
    """Report missing entries by their keys in the state dict."""
    missing: list[str] = incompatible.missing_keys
    missing[:] = [network.keys.get(name, name) for name in missing]
