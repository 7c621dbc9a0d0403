"""The networks by name: batches to logits. They know no files, no devices and no processes."""

import difflib
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from alexnet.errors import ModelError
from alexnet.models import alexnet, cifar, kernel, lenet
from alexnet.models.network import Network

__all__ = ["Initialization", "Network", "create_model", "describe", "list_models"]

Initialization = Literal["paper", "2012"]

kernel.settle_vector_math()


class _Model(NamedTuple):
    build: Callable[..., Network]
    about: str
    initializations: tuple[str, ...] = ()


_ALEXNETS = ("paper", "2012")
_MODELS = {
    "alexnet": _Model(
        alexnet.alexnet,
        "the AlexNet of the 2012 paper: two towers, 224 pixels (Krizhevsky, Sutskever, Hinton, NIPS 2012)",
        _ALEXNETS,
    ),
    "alexnet_single": _Model(
        alexnet.alexnet_single,
        "the AlexNet of the textbooks: the paper's widths in one tower, no groups, 227 pixels",
        _ALEXNETS,
    ),
    "cifar_18pct": _Model(
        cifar.cifar_18pct,
        "Krizhevsky's CIFAR-10 net with 18 % test error, 32 pixels (layers-18pct.cfg of cuda-convnet)",
    ),
    "lenet5": _Model(
        lenet.lenet5, "LeNet-5 for gray digits, 32 pixels, with a linear output layer (LeCun et al., Proc. IEEE 1998)"
    ),
}


def list_models() -> list[str]:
    """The names that :func:`create_model` knows, sorted."""
    return sorted(_MODELS)


def describe(name: str) -> str:
    """One line on the model called ``name``: which network it is, and its source. Raises :class:`ModelError`."""
    return _find(name).about


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    generator: torch.Generator | None = None,
    initialization: Initialization | None = None,
) -> Network:
    """The network called ``name`` with freshly drawn weights. Raises :class:`ModelError`.

    What is None is the network's own: 1000 classes for the AlexNets and 10 for the others, 3 channels (LeNet-5: 1),
    its picture size in pixels. Weights come from ``generator``, or from PyTorch's default one, which nothing else
    here touches. ``initialization`` is for the AlexNets: "paper" (0.01 everywhere, the default) or "2012" (0.03 in
    conv3 to conv5, as the code of that year).
    """
    model = _find(name)
    arguments = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    given = {key: _checked(key, value) for key, value in arguments.items() if value is not None}
    if initialization is not None and initialization not in model.initializations:
        allowed = " or ".join(map(repr, (*model.initializations, None)))
        raise ModelError(f"initialization {initialization!r} of {name}", allowed)
    with torch.random.fork_rng(devices=[]):  # PyTorch's layers draw weights that are replaced below
        network = model.build(**given)
    if initialization == "2012":
        network.initial |= alexnet.CODE_2012
    return network.initialize(generator)


def _find(name: str) -> _Model:
    if name in _MODELS:
        return _MODELS[name]
    near = difflib.get_close_matches(name, _MODELS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else ""
    raise ModelError(f"model {name!r} does not exist", f"one of {', '.join(list_models())}", hint)


_LEAST = {"num_classes": 2, "in_channels": 1, "image_size": 1}


def _checked(key: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < _LEAST[key]:
        raise ModelError(f"{key} {value!r}", f"a whole number of at least {_LEAST[key]}")
    return value
