"""Imported weights are compared with a network of this package and loaded into it.

The five AlexNets have nearly the same weight shapes. They differ in the layers without weights: which normalization,
before or after pooling, over one tower or both. If a file describes these layers they must match too, so that weights
are never loaded into a network that computes something else.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alexnet.errors import BundleError
from alexnet.models import create_model
from alexnet.models.layers import AveragePool, LocalResponseNorm, MaxPool, SpatialNorm
from alexnet.models.network import Network

_LEARNED = ("convolution", "fully connected", "local")


@dataclass(frozen=True)
class Step:
    """One layer of a network.

    Attributes:
        kind: convolution, fully connected, local, relu, tanh, sigmoid, norm, spatial norm, max pool, average pool or
            dropout; a file may have other kinds.
        name: Its name in the file or in the network.
        numbers: Its known parameters, such as kernel and stride.
    """

    kind: str
    name: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ImportedWeights:
    """The content of a file of weights.

    Attributes:
        arrays: Arrays in PyTorch's layout, by the names of the state dict (``conv1.weight``).
        steps: The layers in the order of computation, if the file describes them.
        classes: Class names, if the file has them.
    """

    arrays: Mapping[str, NDArray[Any]]
    steps: Sequence[Step] = ()
    classes: tuple[str, ...] = ()


def load_into_model(model: str, imported: ImportedWeights, file: str) -> Network:
    """Create the network ``model`` with the imported weights.

    Args:
        model: Name of the network.
        imported: The weights; the number of rows of the last layer is the number of classes.
        file: Name of the file for messages.

    Raises:
        BundleError: A layer differs; the message has the first one, with both shapes.
        ModelError: The network does not exist.
    """
    with torch.device("meta"):  # only names are needed
        draft = create_model(model)
    last = f"{last_layer(draft)}.weight"
    if last not in imported.arrays:
        raise _other_layers(draft, imported, file)
    classes = int(imported.arrays[last].shape[0]) if imported.arrays[last].ndim == 2 else 0
    if not 2 <= classes <= 1_000_000:
        raise BundleError(
            f"{file}: layer {last} is {list(imported.arrays[last].shape)}", "one row per class, at least 2"
        )
    if set(draft.state_dict()) != set(imported.arrays):
        raise _other_layers(draft, imported, file)
    if any(step.kind not in _LEARNED for step in imported.steps):  # some files describe the learned layers only
        _same_steps(draft, imported.steps, file)
    network = create_model(model, num_classes=classes)
    _same_sizes(network, imported, file)
    return _filled(network, imported)


def last_layer(network: nn.Module) -> str:
    """Name of the last layer with weights, the classifier, as in the state dict: ``fc8``."""
    return next(reversed(list(network.state_dict()))).rpartition(".")[0]


def as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """Convert to float32, without a copy if it is float32. Numbers beyond float32 become infinite."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _filled(network: Network, imported: ImportedWeights) -> Network:
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(torch.tensor(np.ascontiguousarray(as_float32(imported.arrays[name]))))
    return network.eval()


def _same_sizes(network: Network, imported: ImportedWeights, file: str) -> None:
    for name, tensor in network.state_dict().items():
        array = imported.arrays[name]
        if list(array.shape) != list(tensor.shape):
            raise BundleError(
                f"{file}: layer {name} is {list(array.shape)}",
                f"{list(tensor.shape)}, as in {network.name}",
                "another --model may fit",
            )
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(as_float32(array)).all():
            raise BundleError(
                f"{file}: layer {name} holds non-finite or integer values", "finite floating-point numbers"
            )


def _other_layers(network: nn.Module, imported: ImportedWeights, file: str) -> BundleError:
    names = list(network.state_dict())
    missing = [name for name in names if name not in imported.arrays]
    extra = [name for name in imported.arrays if name not in names]
    differences = [f"lacks {_abbreviate(missing)}"] if missing else []
    differences += [f"also has {_abbreviate(extra)}"] if extra else []
    return BundleError(
        f"{file} {' and '.join(differences)}",
        f"the layers of {getattr(network, 'name', 'the network')}: {_abbreviate(names, 16)}",
        "another --model may fit",
    )


def _abbreviate(names: list[str], maximum: int = 4) -> str:
    return ", ".join(names[:maximum]) + (f" and {len(names) - maximum} more" if len(names) > maximum else "")


def steps_of(network: Network) -> list[Step]:
    """The layers of a network of this package, except flattening and dropout."""
    return [step for name, layer in network.named_children() if (step := _step(name, layer)) is not None]


def _step(name: str, layer: nn.Module) -> Step | None:
    if isinstance(layer, nn.Conv2d):
        numbers: dict[str, float] = {
            "kernel": layer.kernel_size[0],
            "stride": layer.stride[0],
            "padding": int(layer.padding[0]),
            "groups": layer.groups,
        }
        return Step("convolution", name, numbers)
    if isinstance(layer, nn.Linear):
        return Step("fully connected", name)
    if isinstance(layer, nn.ReLU | nn.Tanh | nn.Sigmoid):
        return Step(type(layer).__name__.lower(), name)
    if isinstance(layer, LocalResponseNorm):
        numbers = {"size": layer.size, "alpha": layer.alpha, "beta": layer.beta, "k": layer.k, "towers": layer.towers}
        return Step("norm", name, numbers)
    if isinstance(layer, SpatialNorm):
        return Step("spatial norm", name, {"size": layer.size, "alpha": layer.scale, "beta": layer.beta, "k": layer.k})
    if isinstance(layer, MaxPool | AveragePool):
        kind = "average pool" if isinstance(layer, AveragePool) else "max pool"
        window = layer.window
        return Step(kind, name, {"kernel": window.kernel, "stride": window.stride, "padding": window.padding})
    if next(layer.parameters(), None) is not None:
        return Step("local", name)
    return None  # flattening and dropout change nothing in inference


def _same_steps(network: Network, steps: Sequence[Step], file: str) -> None:
    """Compare both sequences of layers. Max pooling and an adjacent ReLU commute, so their order is ignored."""
    imported = _canonical_order([step for step in steps if step.kind != "dropout"])
    expected = _canonical_order(steps_of(network))
    for a, b in zip(imported, expected, strict=False):
        if a.kind != b.kind:
            raise BundleError(
                f"{file}: after {_before(imported, a)} comes {a.name}, {_a(a.kind)}",
                f"{b.name}, {_a(b.kind)}, as in {network.name}",
                "another --model may fit",
            )
        for key in a.numbers.keys() & b.numbers.keys():
            if not math.isclose(a.numbers[key], b.numbers[key], rel_tol=1e-3):
                raise BundleError(
                    f"{file}: layer {a.name} has {key} {a.numbers[key]:g}",
                    f"{b.numbers[key]:g}, as {b.name} in {network.name}",
                    "another --model may fit",
                )
    if len(imported) != len(expected):
        longer = imported if len(imported) > len(expected) else expected
        names = ", ".join(step.name for step in longer[min(len(imported), len(expected)) :][:4])
        difference = "has" if longer is imported else "lacks"
        raise BundleError(f"{file} {difference} {names}", f"the layers of {network.name}", "another --model may fit")


def _a(kind: str) -> str:
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"


def _before(steps: list[Step], step: Step) -> str:
    at = next(i for i, other in enumerate(steps) if other is step)
    return steps[at - 1].name if at else "the image"


def _canonical_order(steps: list[Step]) -> list[Step]:
    result = list(steps)
    for i in range(len(result) - 1):
        if (result[i].kind, result[i + 1].kind) == ("max pool", "relu"):
            result[i], result[i + 1] = result[i + 1], result[i]
    return result
