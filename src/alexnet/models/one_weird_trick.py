"""The network of "One weird trick for parallelizing convolutional neural networks" (Krizhevsky 2014), as torchvision
has it: what most people load today as ``alexnet``.

One tower, 64-192-384-256-256 maps, no response normalization, dropout on the *inputs* of fc6 and fc7, 61,100,840
parameters. Its state dict has torchvision's keys, ``features.0.weight`` to ``classifier.6.bias``, so that weights go
either way; its layers have the names that all networks here have.
"""

from typing import Any

from torch import nn

from alexnet.models.layers import Convolution, Dropout, Flatten, MaxPool
from alexnet.models.network import Layers, Network, RootFanInInit, usable_side

SIDE = 6  # what fc6 was built for, whatever the image's size


def alexnet_owt(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> Network:
    """torchvision's ``alexnet``: images from 63 pixels; maps are averaged to 6×6 before fc6."""
    maps = _convolutional_layers(in_channels)
    usable_side("alexnet_owt", maps, image_size)
    rest = _fully_connected_layers(num_classes)
    keys = {name: f"features.{index}" for index, (name, _) in enumerate(maps)}
    keys |= {name: f"classifier.{index}" for index, (name, _) in enumerate(rest)}
    layers = [*maps, ("avgpool", AdaptiveAveragePool(SIDE)), ("flatten", Flatten(SIDE)), *rest]
    learned = [name for name, layer in layers if next(layer.parameters(), None) is not None]
    return _Keyed(
        "alexnet_owt",
        layers,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features="relu7",
        initial=dict.fromkeys(learned, RootFanInInit()),
    ).use_keys({name: keys[name] for name in learned})


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
        ("fc6", nn.Linear(256 * SIDE * SIDE, 4096)),
        ("relu6", nn.ReLU(inplace=True)),
        ("drop7", Dropout(0.5)),
        ("fc7", nn.Linear(4096, 4096)),
        ("relu7", nn.ReLU(inplace=True)),
        ("fc8", nn.Linear(4096, num_classes)),
    ]


class AdaptiveAveragePool(nn.AdaptiveAvgPool2d):
    """``side``×``side`` means of maps of any size: [N, C, H, W] -> [N, C, side, side].

    The i-th mean of a column covers its pixels from ⌊i·H / side⌋ up to ⌈(i + 1)·H / side⌉. Maps smaller than ``side``
    repeat pixels; maps of ``side`` pixels pass unchanged.
    """

    def __init__(self, side: int) -> None:
        super().__init__(side)
        self.side = side


class _Keyed(Network):
    """A network whose state dict goes by another library's keys; its layers and parameters keep their names."""

    keys: dict[str, str]  # parameter -> its key: conv1.weight -> features.0.weight

    def use_keys(self, prefixes: dict[str, str]) -> "_Keyed":
        """``prefixes``: layer -> what its keys begin with, for every learned layer. Returns itself."""
        self.keys = {f"{name}.{kind}": f"{key}.{kind}" for name, key in prefixes.items() for kind in ("weight", "bias")}
        self.register_state_dict_post_hook(_give_keys)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_take_keys)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_name_missing)  # type: ignore[no-untyped-call]
        return self


def _give_keys(network: _Keyed, state: dict[str, Any], prefix: str, _metadata: dict[str, Any]) -> None:
    for name, key in network.keys.items():  # each in turn, so that their order stays
        state[prefix + key] = state.pop(prefix + name)


def _take_keys(network: _Keyed, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, key in network.keys.items():
        if prefix + key in state:
            state[prefix + name] = state.pop(prefix + key)


def _name_missing(network: _Keyed, incompatible: Any) -> None:
    """Tell what is missing by the keys that the state dict should have had."""
    missing: list[str] = incompatible.missing_keys
    missing[:] = [network.keys.get(name, name) for name in missing]
