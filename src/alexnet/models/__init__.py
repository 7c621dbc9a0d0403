"""The networks: batches of images to logits. They know no files, no devices and no processes.

:mod:`alexnet.models.registry` lists them; :func:`create_model` builds one by its name.
"""

from typing import Literal

import torch

from alexnet.errors import ModelError
from alexnet.kernels import native_kernels
from alexnet.models import registry
from alexnet.models.network import Network

__all__ = [
    "Initialization",
    "Network",
    "create_model",
    "describe",
    "list_models",
    "list_torchvision_models",
    "meta_model",
    "recipe_fields",
]

Initialization = Literal["paper", "2012"]

native_kernels.warm_up_vector_math()


def list_models() -> list[str]:
    """Names of this project's networks, sorted. See also :func:`list_torchvision_models`."""
    return sorted(registry.MODELS)


def list_torchvision_models() -> list[str]:
    """Names of torchvision's networks for comparison, sorted. Building one needs torchvision."""
    return sorted(registry.TORCHVISION_MODELS)


def describe(name: str) -> str:
    """One line about a network: what it is, and its source. Raises :class:`ModelError` for an unknown name."""
    model = registry.find(name)
    return f"{model.description} ({model.source})"


def recipe_fields(name: str) -> dict[str, str | float | bool]:
    """Recipe fields whose value follows from the network ``name``. Raises :class:`ModelError` for an unknown name.

    ``initialization`` is "own" for a network with only one initialization; ``divide`` and ``divide_std`` scale the
    input.
    """
    model = registry.find(name)
    return ({} if model.initializations else {"initialization": "own"}) | dict(model.recipe)


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    generator: torch.Generator | None = None,
    initialization: Initialization | None = None,
) -> Network:
    """Build a network and initialize its weights.

    Args:
        name: A name of :func:`list_models` or :func:`list_torchvision_models`.
        num_classes: Classes; None is the network's default: 1000 for the AlexNets, 10 for small images.
        in_channels: 3 for color, 1 for gray; None is the network's default: 1 for LeNet-5, else 3.
        image_size: Size of the square input, pixels; None is the network's default.
        generator: Source of the weights; None is PyTorch's default generator, which nothing else here draws from.
        initialization: For the paper's networks and their comparisons: "paper" (standard deviation 0.01 everywhere) or
            "2012" (0.03 in conv3 to conv5, as in the code of 2012). None is the network's default: "2012" for
            ``alexnet_2012``, "paper" for the others. Networks with one initialization refuse it.

    Raises:
        ModelError: The name is unknown, or the network cannot be built with these arguments.
    """
    model = registry.find(name)
    if initialization is not None and initialization not in model.initializations:
        allowed = " or ".join(map(repr, (*model.initializations, None)))
        hint = "" if model.initializations else f"{name} has one initialization; a recipe calls it 'own'"
        raise ModelError(f"initialization {initialization!r} of {name}", allowed, hint)
    network = _build(model, num_classes, in_channels, image_size)
    if initialization is not None:
        network.initial |= model.initializations[initialization]
    return network.initialize(generator)


def meta_model(name: str, *, num_classes: int, in_channels: int, image_size: int) -> Network:
    """Build a network on PyTorch's meta device: names and shapes, and a place to load weights into.

    No weights are drawn and none are in memory. Raises :class:`ModelError` as :func:`create_model` does.
    """
    with torch.device("meta"):
        return _build(registry.find(name), num_classes, in_channels, image_size)


_MINIMUM = {"num_classes": 2, "in_channels": 1, "image_size": 1}


def _build(model: registry.Model, num_classes: int | None, in_channels: int | None, image_size: int | None) -> Network:
    values = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    kwargs = {key: value for key, value in values.items() if value is not None}
    for key, value in kwargs.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < _MINIMUM[key]:
            raise ModelError(f"{key} {value!r}", f"an integer of at least {_MINIMUM[key]}")
    with torch.random.fork_rng(devices=[]):  # PyTorch's layers draw weights that will be replaced
        return model.build(**kwargs)
