"""VGG, GoogLeNet, Inception v3 and ResNet of torchvision as :class:`Network` objects, for comparison with AlexNet.

A network has torchvision's layers in torchvision's order; names of layers inside a ``Sequential`` are joined
(``layer1.0`` is ``layer1_0`` here). Two things differ: dropout masks come from the run's generator, and auxiliary
classifiers are :class:`~alexnet.models.network.AuxiliaryHead` layers, so that their results are used in training only.
Weights are initialized by torchvision, from the generator that is passed in.

torchvision is imported when one of these networks is built.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alexnet.errors import ModelError
from alexnet.models.layers import Dropout
from alexnet.models.network import AuxiliaryHead, Network


class Spec(NamedTuple):
    """One of torchvision's networks."""

    description: str
    source: str
    image_size: int
    """default size of its images, pixels"""
    min_image_size: int
    """smallest images that leave 2×2 feature maps to every batch norm"""
    features: str
    """layer whose output describes an image"""
    auxiliary_heads: Mapping[str, str] = {}
    """auxiliary classifier -> the layer before it"""
    auxiliary_weight: float = 0.0
    """weight of an auxiliary classifier's loss"""
    auxiliary_min_image_size: int = 0
    """smallest images for the auxiliary classifiers"""


_VGG = "Simonyan, Zisserman 2014; torchvision"
_RESNET = "He et al. 2015; torchvision"
SPECS: dict[str, Spec] = {
    "vgg11": Spec("VGG of 11 layers, configuration A", _VGG, 224, 32, "classifier_4"),
    "vgg11_bn": Spec("VGG of 11 layers with batch norm", _VGG, 224, 32, "classifier_4"),
    "vgg16": Spec("VGG of 16 layers, configuration D", _VGG, 224, 32, "classifier_4"),
    "vgg16_bn": Spec("VGG of 16 layers with batch norm", _VGG, 224, 32, "classifier_4"),
    "googlenet": Spec(
        "GoogLeNet with two auxiliary classifiers",
        "Szegedy et al. 2014; torchvision",
        224,
        47,
        "flatten",
        {"aux1": "inception4a", "aux2": "inception4d"},
        0.3,
    ),
    "inception_v3": Spec(
        "Inception v3 with one auxiliary classifier from 299 pixels",
        "Szegedy et al. 2015; torchvision",
        299,
        107,
        "flatten",
        {"AuxLogits": "Mixed_6e"},
        0.4,
        299,
    ),
    "resnet18": Spec("ResNet of 18 layers", _RESNET, 224, 33, "flatten"),
    "resnet50": Spec("ResNet of 50 layers", _RESNET, 224, 33, "flatten"),
}


class FixedDropout(Dropout):
    """Dropout whose probability is part of the network; a recipe does not change it."""


class TorchvisionNetwork(Network):
    """One of torchvision's networks.

    Attributes:
        key_prefixes: Layer name -> prefix of its keys in torchvision's state dict (``layer1_0`` -> ``layer1.0``).
    """

    key_prefixes: dict[str, str]
    _make: Callable[..., nn.Module]

    def initialize(self, generator: torch.Generator | None = None) -> "TorchvisionNetwork":
        """Draw the weights as torchvision does, from a seed that ``generator`` gives; returns itself."""
        if next(self.parameters()).is_meta and torch.empty(0).is_meta:  # only shapes are needed
            return self
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            initial = self._make().state_dict()
        self.load_state_dict(self.from_torchvision(initial), assign=True)
        return self

    def from_torchvision(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of torchvision's state dict; entries without a layer in this network are dropped."""
        heads = {name for name, layer in self.named_children() if isinstance(layer, AuxiliaryHead)}
        renamed = {}
        for name in self.state_dict():
            layer, _, rest = name.partition(".")
            rest = rest.removeprefix("head.") if layer in heads else rest
            renamed[name] = state[f"{self.key_prefixes[layer]}.{rest}"]
        return renamed


def build(name: str, num_classes: int = 1000, in_channels: int = 3, image_size: int = 0) -> TorchvisionNetwork:
    """Build a network of :data:`SPECS`, without weights until :meth:`TorchvisionNetwork.initialize`.

    Args:
        name: Key of :data:`SPECS`.
        num_classes: Classes.
        in_channels: Must be 3.
        image_size: Size of the square input, pixels; 0 is the network's default.

    Raises:
        ModelError: torchvision cannot be imported, the images are gray, or they are too small.
    """
    spec = SPECS[name]
    image_size = image_size or spec.image_size
    if in_channels != 3:
        raise ModelError(f"in_channels {in_channels} of {name}", "3: torchvision's networks expect color images")
    if image_size < spec.min_image_size:
        raise ModelError(f"image_size {image_size} is too small for {name}", f"at least {spec.min_image_size} pixels")
    auxiliary_heads = image_size >= spec.auxiliary_min_image_size if spec.auxiliary_heads else None
    make = partial(_make, name, num_classes, auxiliary_heads)
    with torch.device("meta"):
        layers, key_prefixes = _flattened(make(init_weights=False), spec)
    network = TorchvisionNetwork(
        name, layers, num_classes=num_classes, in_channels=3, image_size=image_size, features=spec.features, initial={}
    )
    network.key_prefixes, network._make = key_prefixes, make
    return network


def _make(name: str, num_classes: int, auxiliary_heads: bool | None, init_weights: bool = True) -> nn.Module:
    """torchvision's own module. ``auxiliary_heads`` is None for networks that have none."""
    try:
        from torchvision import models
    except Exception as error:  # a torchvision for another PyTorch raises ImportError, RuntimeError or OSError
        reason = " ".join(str(error).split())[:120]
        raise ModelError(
            f"{name} needs torchvision, which cannot be imported ({reason})", "the torchvision that matches torch"
        ) from error
    kwargs: dict[str, Any] = {} if name.startswith("resnet") else {"init_weights": init_weights}
    kwargs |= {} if auxiliary_heads is None else {"aux_logits": auxiliary_heads}
    network: nn.Module = getattr(models, name)(weights=None, num_classes=num_classes, **kwargs)
    return network


def _flattened(network: nn.Module, spec: Spec) -> tuple[list[tuple[str, nn.Module]], dict[str, str]]:
    """torchvision's layers in the order of computation, and the key prefix of each."""
    replace_dropout(network)
    layers: list[tuple[str, nn.Module]] = []
    key_prefixes: dict[str, str] = {}
    heads = {before: head for head, before in spec.auxiliary_heads.items() if getattr(network, head, None) is not None}
    for name, child in network.named_children():
        if name in spec.auxiliary_heads:
            continue
        children = child.named_children() if isinstance(child, nn.Sequential) else [("", child)]
        for number, layer in children:
            joined = f"{name}_{number}" if number else name
            layers.append((joined, layer))
            key_prefixes[joined] = f"{name}.{number}" if number else name
        if name in heads:
            head = heads[name]
            layers.append((head, AuxiliaryHead(getattr(network, head), spec.auxiliary_weight)))
            key_prefixes[head] = head
        if name == "avgpool":
            layers.append(("flatten", nn.Flatten()))
    return layers, key_prefixes


def replace_dropout(network: nn.Module) -> None:
    """Replace every dropout of torchvision by one that draws from the run's generator."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, FixedDropout(child.p))
