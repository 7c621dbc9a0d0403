"""VGG, GoogLeNet, Inception v3 and ResNet: torchvision's networks as chains of layers, to be compared with AlexNet.

A chain has torchvision's layers in torchvision's order; where those lie in a row inside a layer, their names are joined
(``layer1.0`` is ``layer1_0`` here). Two things are ours: masks of dropout come from a generator that a run can repeat,
and auxiliary classifiers stand beside the chain (:class:`~alexnet.models.network.AuxiliaryHead`), so that the chain
alone
answers. Weights start as torchvision starts them, from a generator that is passed in.

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


class _Peer(NamedTuple):
    """``features``: layer whose output describes an image. ``auxiliary heads``: auxiliary classifier -> the layer
    before it."""

    about: str
    side: int  # of its images, pixels
    least: int  # side of the smallest that leave 2×2 maps to every batch norm
    features: str
    auxiliary_heads: Mapping[str, str] = {}
    weight: float = 0.0  # what the loss of an auxiliary classifier counts
    auxiliary_side: int = 0  # side of the smallest images that its auxiliary classifiers can see


_VGG = "Simonyan, Zisserman 2014"
_RESNET = "He et al. 2015"
_INCEPTIONS = {"aux1": "inception4a", "aux2": "inception4d"}
_PEERS = {
    "googlenet": _Peer(
        "GoogLeNet, the Inception of 2014, with two auxiliary classifiers (Szegedy et al. 2014; torchvision)",
        224,
        47,
        "flatten",
        _INCEPTIONS,
        0.3,
    ),
    "inception_v3": _Peer(
        "Inception v3, with one auxiliary classifier from 299 pixels (Szegedy et al. 2015; torchvision)",
        299,
        107,
        "flatten",
        {"AuxLogits": "Mixed_6e"},
        0.4,
        299,
    ),
    "resnet18": _Peer(f"ResNet of 18 layers ({_RESNET}; torchvision)", 224, 33, "flatten"),
    "resnet50": _Peer(f"ResNet of 50 layers ({_RESNET}; torchvision)", 224, 33, "flatten"),
    "vgg11": _Peer(f"VGG of 11 layers, configuration A ({_VGG}; torchvision)", 224, 32, "classifier_4"),
    "vgg11_bn": _Peer(f"VGG of 11 layers with batch norm ({_VGG}; torchvision)", 224, 32, "classifier_4"),
    "vgg16": _Peer(f"VGG of 16 layers, configuration D ({_VGG}; torchvision)", 224, 32, "classifier_4"),
    "vgg16_bn": _Peer(f"VGG of 16 layers with batch norm ({_VGG}; torchvision)", 224, 32, "classifier_4"),
}


class FixedDropout(Dropout):
    """Dropout whose probability is the network's own, whatever the recipe says."""


class Peer(Network):
    """A network of torchvision's. ``theirs``: layer -> how torchvision's keys of it begin (layer1_0: layer1.0)."""

    theirs: dict[str, str]
    _make: Callable[..., nn.Module]

    def initialize(self, generator: torch.Generator | None = None) -> "Peer":
        """As torchvision draws its weights, from a seed that ``generator`` gives."""
        if next(self.parameters()).is_meta and torch.empty(0).is_meta:  # shapes alone are wanted
            return self
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = self._make().state_dict()
        self.load_state_dict(self.from_torchvision(fresh), assign=True)
        return self

    def from_torchvision(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of torchvision's, by the names that this network has; what it has no layer for is left out."""
        results = {}
        for name in self.state_dict():
            layer, _, rest = name.partition(".")
            rest = rest.removeprefix("head.") if layer in self._auxiliary_heads else rest
            results[name] = state[f"{self.theirs[layer]}.{rest}"]
        return results

    @property
    def _auxiliary_heads(self) -> set[str]:
        return {name for name, layer in self.named_children() if isinstance(layer, AuxiliaryHead)}


def names() -> list[str]:
    """The networks that :func:`build` knows, sorted."""
    return sorted(_PEERS)


def about(name: str) -> str:
    """One line on a network: what it is, and its source."""
    return _PEERS[name].about


def build(name: str, num_classes: int = 1000, in_channels: int = 3, image_size: int = 0) -> Peer:
    """The network called ``name``, without weights until :meth:`Peer.initialize`; ``image_size`` 0 is its own.

    Raises :class:`ModelError` where torchvision can not be imported, for gray images, and for images too small.
    """
    peer = _PEERS[name]
    image_size = image_size or peer.side
    if in_channels != 3:
        raise ModelError(f"in_channels {in_channels} of {name}", "3: torchvision's networks see color")
    if image_size < peer.least:
        raise ModelError(f"image_size {image_size} is too small for {name}", f"at least {peer.least} pixels")
    auxiliary_heads = bool(peer.auxiliary_heads) and image_size >= peer.auxiliary_side
    make = partial(_make, name, num_classes, auxiliary_heads if peer.auxiliary_heads else None)
    with torch.device("meta"):
        layers, theirs = _chain(make(drawn=False), peer)
    result = Peer(
        name, layers, num_classes=num_classes, in_channels=3, image_size=image_size, features=peer.features, initial={}
    )
    result.theirs, result._make = theirs, make
    return result


def _make(name: str, num_classes: int, auxiliary_heads: bool | None, drawn: bool = True) -> nn.Module:
    try:
        from torchvision import models
    except Exception as error:  # a build for another PyTorch fails in many ways: ImportError, RuntimeError, OSError
        reason = " ".join(str(error).split())[:120]
        raise ModelError(
            f"{name} needs torchvision, which can not be imported ({reason})", "the torchvision that matches torch"
        ) from error
    values: dict[str, Any] = {} if name.startswith("resnet") else {"init_weights": drawn}
    values |= {} if auxiliary_heads is None else {"aux_logits": auxiliary_heads}
    network: nn.Module = getattr(models, name)(weights=None, num_classes=num_classes, **values)
    return network


def _chain(network: nn.Module, peer: _Peer) -> tuple[list[tuple[str, nn.Module]], dict[str, str]]:
    """torchvision's layers in the order in which they compute, and how its keys of each begin."""
    _own_dropout(network)
    layers: list[tuple[str, nn.Module]] = []
    theirs: dict[str, str] = {}
    beside = {
        tap: auxiliary_head
        for auxiliary_head, tap in peer.auxiliary_heads.items()
        if getattr(network, auxiliary_head, None) is not None
    }
    for name, child in network.named_children():
        if name in peer.auxiliary_heads:
            continue
        inside = child.named_children() if isinstance(child, nn.Sequential) else [("", child)]
        for number, layer in inside:
            joined = f"{name}_{number}" if number else name
            layers.append((joined, layer))
            theirs[joined] = f"{name}.{number}" if number else name
        if name in beside:
            auxiliary_head = beside[name]
            layers.append((auxiliary_head, AuxiliaryHead(getattr(network, auxiliary_head), peer.weight)))
            theirs[auxiliary_head] = auxiliary_head
        if name == "avgpool":
            layers.append(("flatten", nn.Flatten()))
    return layers, theirs


def _own_dropout(network: nn.Module) -> None:
    """Every dropout of torchvision's becomes one of ours, which draws from a run's generator."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, FixedDropout(child.p))
