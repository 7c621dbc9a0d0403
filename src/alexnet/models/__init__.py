"""The networks by name: batches to logits. They know no files, no devices and no processes."""

import functools
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch

from alexnet.errors import ModelError, did_you_mean
from alexnet.kernels import native_kernels
from alexnet.models import (
    alexnet,
    caffe,
    cifar,
    comparisons,
    lenet,
    one_weird_trick,
    residual,
    small,
    torchvision_models,
)
from alexnet.models.network import Network, NormalInit

__all__ = [
    "Initialization",
    "Network",
    "blank_model",
    "create_model",
    "describe",
    "list_models",
    "list_peers",
    "recipe_fields",
]

Initialization = Literal["paper", "2012"]
Starts = Mapping[str, Mapping[str, NormalInit]]  # initialization -> layer -> how it starts
_OWN: Starts = {}  # no other start than its own

native_kernels.warm_up_vector_math()


class _Model(NamedTuple):
    """``inputs``: fields of a recipe that bring gray levels to the range that the network expects."""

    build: Callable[..., Network]
    about: str
    starts: Starts = _OWN
    inputs: Mapping[str, float | bool] = {}


_ALEXNETS: Starts = {"paper": alexnet.PAPER, "2012": alexnet.CODE_2012}
_UNIT_VARIANCE = {"divide_std": True}
_TANH: Starts = {"paper": comparisons.TANH_PAPER, "2012": comparisons.TANH_2012}
_MODELS = {
    "alexnet": _Model(
        alexnet.alexnet,
        "the AlexNet of the 2012 paper: two towers, 224 pixels (Krizhevsky, Sutskever, Hinton, NIPS 2012)",
        _ALEXNETS,
    ),
    "alexnet_2012": _Model(
        alexnet.alexnet_2012,
        "the AlexNet that ran: norm before the first ReLU, spatial norm in layer 2 (net 145 of the 2012 code)",
        _ALEXNETS,
    ),
    "alexnet_caffe": _Model(
        caffe.alexnet_caffe,
        "Caffe's AlexNet: 227 pixels, groups, one norm over all channels, k = 1 (bvlc_alexnet, BVLC 2014)",
    ),
    "alexnet_half": _Model(
        comparisons.alexnet_half,
        "the paper's one-GPU comparison (section 3.2): one tower, 48-128-192-192-256 maps (net 145-half)",
        _ALEXNETS,
    ),
    "alexnet_no_norm": _Model(
        comparisons.alexnet_no_norm,
        "the paper's AlexNet without response normalization (section 3.3; net 148 of the 2012 code)",
        _ALEXNETS,
    ),
    "alexnet_no_overlap": _Model(
        comparisons.alexnet_no_overlap,
        "the paper's AlexNet with 2×2 pooling that does not overlap (section 3.4; net 147 of the 2012 code)",
        _ALEXNETS,
    ),
    "alexnet_owt": _Model(
        one_weird_trick.alexnet_owt,
        "torchvision's alexnet: one tower, 64-192-384-256-256 maps, no norm (One weird trick, Krizhevsky 2014)",
    ),
    "alexnet_separate": _Model(
        comparisons.alexnet_separate,
        "the paper's AlexNet with towers that meet only in fc8 (net 150 of the 2012 code)",
        _ALEXNETS,
    ),
    "alexnet_single": _Model(
        alexnet.alexnet_single,
        "the AlexNet of the textbooks: the paper's widths in one tower, no groups, 227 pixels",
        _ALEXNETS,
    ),
    "alexnet_tanh": _Model(
        comparisons.alexnet_tanh, "the paper's AlexNet with tanh for every ReLU, biases from 0 (section 3.1)", _TANH
    ),
    "caffenet": _Model(
        caffe.caffenet,
        "Caffe's AlexNet with pools before norms (bvlc_reference_caffenet, BVLC 2013)",
    ),
    "cifar_11pct": _Model(
        cifar.cifar_11pct,
        "Krizhevsky's CIFAR-10 net with 11 % test error: channel norms, local layers, 24 pixels (cuda-convnet2)",
    ),
    "cifar_13pct": _Model(
        cifar.cifar_13pct,
        "Krizhevsky's CIFAR-10 net with 13 % test error: local layers, 24 pixels (layers-conv-local-13pct.cfg)",
    ),
    "cifar_18pct": _Model(
        cifar.cifar_18pct,
        "Krizhevsky's CIFAR-10 net with 18 % test error, 32 pixels (layers-18pct.cfg of cuda-convnet)",
    ),
    "cifar_19pct": _Model(
        cifar.cifar_19pct,
        "Krizhevsky's CIFAR-10 net with 19 % test error: 18pct without norms (layers-19pct.cfg of cuda-convnet)",
    ),
    "cifar_80sec": _Model(
        cifar.cifar_80sec,
        "Krizhevsky's CIFAR-10 net with 26 % test error after 80 seconds (layers-80sec.cfg of cuda-convnet)",
    ),
    "lenet5": _Model(
        lenet.lenet5, "LeNet-5 for gray digits, 32 pixels, with a linear output layer (LeCun et al., Proc. IEEE 1998)"
    ),
    "lenet5_shrunk": _Model(
        lenet.lenet5_shrunk,
        "LeNet-5 behind a mean over pixels that brings images of any size to its 32",
        inputs=_UNIT_VARIANCE,
    ),
}
_MODELS |= {name: _Model(build, about) for name, (build, about) in small.MODELS.items()}
_MODELS |= {
    name: _MODELS[name]._replace(inputs={"divide": 64.0}) for name in ("figure1_relu_wide", "figure1_tanh_wide")
}
_MODELS |= {
    name: _Model(build, about, comparisons.STARTS.get(name, _OWN))
    for name, (build, about) in comparisons.MODELS.items()
}
_MODELS |= {name: _Model(build, about, inputs=_UNIT_VARIANCE) for name, (build, about) in residual.MODELS.items()}
_PEERS = {
    name: _Model(
        functools.partial(torchvision_models.build, name), torchvision_models.about(name), inputs=_UNIT_VARIANCE
    )
    for name in torchvision_models.names()
}


def list_models() -> list[str]:
    """The names of this project's networks, sorted; :func:`create_model` knows those of :func:`list_peers` too."""
    return sorted(_MODELS)


def list_peers() -> list[str]:
    """The names of torchvision's networks to compare with, sorted; they need torchvision when they are built."""
    return sorted(_PEERS)


def describe(name: str) -> str:
    """One line on the model called ``name``: which network it is, and its source. Raises :class:`ModelError`."""
    return _find(name).about


def recipe_fields(name: str) -> dict[str, str | float | bool]:
    """Fields of a recipe whose value follows from the model called ``name``. Raises :class:`ModelError`.

    ``initialization`` is "own" where the network has no other; ``divide`` and ``divide_std`` bring gray levels to the
    range that it expects.
    """
    model = _find(name)
    return ({} if model.starts else {"initialization": "own"}) | dict(model.inputs)


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
    its image size in pixels. Weights come from ``generator``, or from PyTorch's default one, which nothing else
    here touches. ``initialization`` is for the paper's networks and their comparisons: "paper" (0.01 everywhere) or
    "2012" (0.03 in conv3 to conv5, as the code of that year); None is "2012" for ``alexnet_2012`` and "paper" for the
    others. All other networks have one start, their own, and refuse it.
    """
    model = _find(name)
    if initialization is not None and initialization not in model.starts:
        allowed = " or ".join(map(repr, (*model.starts, None)))
        hint = "" if model.starts else f"{name} has one start; a recipe calls it 'own'"
        raise ModelError(f"initialization {initialization!r} of {name}", allowed, hint)
    network = _built(model, num_classes, in_channels, image_size)
    if initialization is not None:
        network.initial |= model.starts[initialization]
    return network.initialize(generator)


def blank_model(name: str, *, num_classes: int, in_channels: int, image_size: int) -> Network:
    """The network called ``name`` without numbers (on PyTorch's meta device), to be asked for names and shapes and to
    take weights: nothing is drawn, and no memory holds what would be replaced. Raises :class:`ModelError`."""
    with torch.device("meta"):
        return _built(_find(name), num_classes, in_channels, image_size)


def _built(model: _Model, num_classes: int | None, in_channels: int | None, image_size: int | None) -> Network:
    arguments = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    values = {key: _checked(key, value) for key, value in arguments.items() if value is not None}
    with torch.random.fork_rng(devices=[]):  # PyTorch's layers draw weights that will be replaced
        return model.build(**values)


def _find(name: str) -> _Model:
    known = _MODELS | _PEERS
    if name in known:
        return known[name]
    raise ModelError(f"unknown model {name!r}. {did_you_mean(name, [*list_models(), *list_peers()], cutoff=0.4)}")


_LEAST = {"num_classes": 2, "in_channels": 1, "image_size": 1}


def _checked(key: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < _LEAST[key]:
        raise ModelError(f"{key} {value!r}", f"an integer of at least {_LEAST[key]}")
    return value
