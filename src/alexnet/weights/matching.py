"""Foreign weights onto a network of ours: every layer's size is compared, and what the file says of the others.

The five AlexNets agree in nearly all sizes and differ in what stands between: which norm, before or after pooling,
over one tower or both. A file that tells is held to its word, so that weights never end in a network that computes
something else with them.
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


@dataclass(frozen=True)
class Step:
    """One layer that an image goes through: what it does, its name in the file, and the numbers that are known."""

    kind: (
        str  # convolution, fully connected, relu, norm, spatial norm, max pool, average pool, dropout, or a file's own
    )
    name: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ImportedWeights:
    """What a file holds: arrays under our names (``conv1.weight``) in PyTorch's layout, and more where it says more."""

    arrays: Mapping[str, NDArray[Any]]
    steps: Sequence[Step] = ()  # in the order of computing
    classes: tuple[str, ...] = ()


def load_into_model(model: str, results: ImportedWeights, file: str) -> Network:
    """The network called ``model`` with these weights and as many classes as its last layer has rows.

    Raises :class:`BundleError` naming the first layer that differs, with both sizes; :class:`ModelError` for a name
    that does not exist.
    """
    with torch.device("meta"):  # names alone
        draft = create_model(model)
    last = f"{last_layer(draft)}.weight"
    if last not in results.arrays:
        raise _other_layers(draft, results, file)
    classes = int(results.arrays[last].shape[0]) if results.arrays[last].ndim == 2 else 0
    if not 2 <= classes <= 1_000_000:
        raise BundleError(f"{file}: layer {last} is {list(results.arrays[last].shape)}", "a row a class, at least 2")
    if set(draft.state_dict()) != set(results.arrays):
        raise _other_layers(draft, results, file)
    if any(step.kind not in _LEARNED for step in results.steps):  # some files hold nothing but the learned layers
        _same_steps(draft, results.steps, file)
    network = create_model(model, num_classes=classes)
    _same_sizes(network, results, file)
    return _filled(network, results)


def last_layer(network: nn.Module) -> str:
    """The last layer that learns, that of the classes, as its keys in the state dict begin: ``fc8``."""
    return next(reversed(list(network.state_dict()))).rpartition(".")[0]


def as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """As float32, no copy where it is; infinite where a number is too large for it."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _filled(network: Network, results: ImportedWeights) -> Network:
    with torch.no_grad():
        for name, into in network.state_dict().items():
            into.copy_(torch.tensor(np.ascontiguousarray(as_float32(results.arrays[name]))))
    return network.eval()


def _same_sizes(network: Network, results: ImportedWeights, file: str) -> None:
    for name, into in network.state_dict().items():
        array = results.arrays[name]
        if list(array.shape) != list(into.shape):
            raise BundleError(
                f"{file}: layer {name} is {list(array.shape)}",
                f"{list(into.shape)}, as in {network.name}",
                "another --model may fit",
            )
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(as_float32(array)).all():
            raise BundleError(f"{file}: layer {name} holds what is no number", "finite floating-point numbers")


def _other_layers(network: nn.Module, results: ImportedWeights, file: str) -> BundleError:
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in results.arrays]
    extra = [name for name in results.arrays if name not in wanted]
    parts = [f"{file} lacks {_few(missing)}"] if missing else [f"{file}"]
    parts += [f"has {_few(extra)} besides"] if extra else []
    return BundleError(
        " and ".join(parts),
        f"the layers of {getattr(network, 'name', 'the network')}: {_few(list(wanted), 16)}",
        "another --model may fit",
    )


def _few(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


_LEARNED = ("convolution", "fully connected", "local")


def steps_of(network: Network) -> list[Step]:
    """What a network of ours does with an image, in the words of :class:`Step`."""
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
    if isinstance(layer, nn.ReLU | nn.Tanh):
        return Step("relu" if isinstance(layer, nn.ReLU) else "tanh", name)
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
    return None  # flattening and dropout compute nothing in a test


def _same_steps(network: Network, steps: Sequence[Step], file: str) -> None:
    """Both in one order: a maximum and a ReLU next to it give the same whichever comes first."""
    theirs = _ordered([step for step in steps if step.kind != "dropout"])
    ours = _ordered(steps_of(network))
    for a, b in zip(theirs, ours, strict=False):
        if a.kind != b.kind:
            raise BundleError(
                f"{file}: after {_before(theirs, a)} comes {a.name}, {_a(a.kind)}",
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
    if len(theirs) != len(ours):
        longer = theirs if len(theirs) > len(ours) else ours
        what = ", ".join(step.name for step in longer[min(len(theirs), len(ours)) :][:4])
        has = "has" if longer is theirs else "lacks"
        raise BundleError(f"{file} {has} {what}", f"the layers of {network.name}", "another --model may fit")


def _a(kind: str) -> str:
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"


def _before(steps: list[Step], step: Step) -> str:
    at = next(i for i, other in enumerate(steps) if other is step)
    return steps[at - 1].name if at else "the image"


def _ordered(steps: list[Step]) -> list[Step]:
    result = list(steps)
    for i in range(len(result) - 1):
        if (result[i].kind, result[i + 1].kind) == ("max pool", "relu"):
            result[i], result[i + 1] = result[i + 1], result[i]
    return result
