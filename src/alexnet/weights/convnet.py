"""Reader of cuda-convnet's checkpoints (2011, 2012, and cuda-convnet2).

Checkpoints of 2012 hold layers by name in any order; those of 2011 hold a list in which inputs are indices. The names
are arbitrary, so the graph is followed from the images: the depth of each learned layer, the number of towers side by
side, and the inputs of each layer. ReLU, pooling, normalization and dropout are separate layers. Two towers become one
network: with groups where a layer reads its own tower only, with concatenated inputs where it reads both.

Layouts: the filters of a convolution are columns over (channel, y, x); fully connected weights are [in, out] in the
same order; local filters are stored by position. Dropout of 2012 halves outputs in inference instead of doubling them
in training. Dropout in this package doubles, so the weights that follow dropout are halved once, here.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.errors import BundleError
from alexnet.models import create_model
from alexnet.weights.files import read_pickle
from alexnet.weights.matching import ImportedWeights, Step, as_float32, steps_of
from alexnet.weights.restricted_pickle import Array, readable

LEARNED = {"conv": "convolution", "fc": "fully connected", "local": "local"}
_MAX_LAYERS = 500
_SCALED = ("hs", "dropout2")  # scale outputs in inference; cuda-convnet2's `dropout` scales in training


@dataclass
class Input:
    """One input of a learned layer: its source, the layers between, and its scale in inference."""

    source: str  # name of a learned layer, or of the data layer
    between: list[Step]
    keep: float


class Checkpoint:
    """The layers of a checkpoint by name, with checked access. Raises :class:`BundleError`."""

    def __init__(self, content: Any, file: str) -> None:
        self.file = file
        state = content.get("model_state") if isinstance(content, dict) else None
        layers: Any = state.get("layers") if isinstance(state, dict) else None
        self.numbered: list[Any] = []
        if isinstance(layers, list):  # 2011: in order, inputs are indices
            self.numbered = [layer.get("name") if isinstance(layer, dict) else None for layer in layers]
            layers = {str(name): layer for name, layer in zip(self.numbered, layers, strict=True)}
        if not isinstance(layers, dict) or not all(
            isinstance(name, str) and name == readable(name) and isinstance(layer, dict)
            for name, layer in layers.items()
        ):
            raise BundleError(f"{file} has no model_state with layers", "a checkpoint of cuda-convnet")
        self.layers: dict[str, dict[Any, Any]] = layers
        if len(self.layers) > _MAX_LAYERS:
            raise BundleError(f"{file} has {len(self.layers)} layers", f"at most {_MAX_LAYERS}")
        self.learned = [name for name in self.layers if self.get(name, "type", str) in LEARNED]

    def get(self, name: str, key: str, kind: type | tuple[type, ...]) -> Any:
        value = self.layers[name].get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BundleError(f"{self.file}: layer {name} has no {key}", "a whole checkpoint of cuda-convnet")
        return value

    def number(self, name: str, key: str, default: float | None = None) -> float:
        """A number, or the first of a list of them."""
        value = self.layers[name].get(key, default)
        value = value[0] if isinstance(value, list) and value else value
        if not isinstance(value, int | float) or not abs(value) <= 1e9:  # false for NaN, too
            raise BundleError(f"{self.file}: layer {name} has no number {key}", "a whole checkpoint of cuda-convnet")
        return float(value)

    def inputs(self, name: str) -> list[str]:
        value = self.get(name, "inputs", list)
        if self.numbered:
            value = [self.numbered[i] if isinstance(i, int) and 0 <= i < len(self.numbered) else i for i in value]
        for other in value:
            if not isinstance(other, str) or other not in self.layers:
                raise BundleError(
                    f"{self.file}: layer {name} reads {readable(other)[:50]!r}", "a layer of the checkpoint"
                )
        return list(value)

    def array(self, name: str, key: str, at: int | None = None) -> NDArray[Any]:
        value = self.layers[name].get(key)
        if at is not None and isinstance(value, list) and at < len(value):
            value = value[at]
        if not isinstance(value, Array) or not isinstance(value.values, np.ndarray) or value.values.ndim != 2:
            raise BundleError(f"{self.file}: layer {name} has no {key}", "one matrix per input")
        return value.values

    def step(self, name: str, towers: int) -> Step:
        """A layer without weights as a :class:`Step`."""
        kind = self.get(name, "type", str)
        if kind == "neuron":
            neuron = self.get(name, "neuron", dict).get("type")
            return Step(readable(neuron)[:20], name)
        if kind == "pool":
            pool = {"max": "max pool", "avg": "average pool"}.get(self.get(name, "pool", str), "other pool")
            return Step(pool, name, {"kernel": self.number(name, "sizeX"), "stride": self.number(name, "stride")})
        if kind in ("cmrnorm", "rnorm"):
            size = self.number(name, "size")
            scale = self.number(name, "scale") * (size if kind == "cmrnorm" else size**2)  # stored divided by size
            numbers = {"size": size, "alpha": scale, "beta": self.number(name, "pow")}
            numbers["k"] = self.number(name, "minDiv", 1.0)
            if kind == "rnorm":
                return Step("spatial norm", name, numbers)
            return Step("norm", name, numbers | {"towers": towers})
        return Step("dropout" if kind in (*_SCALED, "dropout") else readable(kind), name)

    def trace(self, name: str, towers: int = 1) -> Input:
        """Follow an input back to the learned layer, or the data layer, that it comes from."""
        between: list[Step] = []
        keep, reader = 1.0, name
        while (kind := self.get(name, "type", str)) not in LEARNED and kind != "data":
            between.insert(0, self.step(name, towers))
            if kind in _SCALED:
                keep *= self.number(name, "keep")
            inputs = self.inputs(name)
            if len(inputs) != 1 or len(between) > _MAX_LAYERS:
                problem = "reads itself" if len(inputs) == 1 else f"reads {len(inputs)} layers"
                raise BundleError(
                    f"{self.file}: layer {name}, {readable(kind)}, {problem}",
                    "one input, of another layer",
                    f"{reader} cannot be imported",
                )
            name = inputs[0]
        return Input(name, between, keep)


def read(path: Path, model: str) -> ImportedWeights:
    """Read the learned layers of a checkpoint.

    Args:
        path: A checkpoint, or a directory of checkpoints, of which the last is read.
        model: The network whose layer names the arrays get.

    Raises:
        BundleError: The checkpoint is damaged, or has another number of layers.
    """
    path = newest(path) if path.is_dir() else path
    checkpoint = Checkpoint(read_pickle(path), str(path))
    stages = _stages(checkpoint)
    with torch.device("meta"):  # only names are needed
        names = [step.name for step in steps_of(create_model(model)) if step.kind in LEARNED.values()]
    if len(names) != len(stages):
        raise BundleError(
            f"{path} has {len(stages)} learned layers ({', '.join('+'.join(stage) for stage in stages)})",
            f"{len(names)} ({', '.join(names)}) as in {model}",
            "another --model may fit",
        )
    arrays: dict[str, NDArray[Any]] = {}
    steps: list[Step] = []
    before: list[str] = []
    for name, stage in zip(names, stages, strict=True):
        stage, weight, between = _joined(checkpoint, stage, before)
        kind = LEARNED[checkpoint.get(stage[0], "type", str)]
        steps += [*between, Step(kind, "+".join(stage), _geometry(checkpoint, stage, kind, before))]
        arrays[f"{name}.weight"] = weight
        arrays[f"{name}.bias"] = np.concatenate([_bias(checkpoint, one, weight) for one in stage])
        before = stage
    _ends_in_classes(checkpoint, before)
    return ImportedWeights(arrays, steps)


def newest(folder: Path) -> Path:
    """The last checkpoint ``<epoch>.<batch>`` of a directory, in numeric order. Raises :class:`BundleError`."""
    checkpoints = [path for path in folder.iterdir() if path.is_file() and re.fullmatch(r"\d+\.\d+", path.name)]
    if not checkpoints:
        raise BundleError(f"{folder} holds no checkpoint", "files named EPOCH.BATCH, as 90.1")
    return max(checkpoints, key=lambda path: [int(part) for part in path.name.split(".")])


def read_meta(path: Path) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Read the mean image, RGB [S, S, 3], and the class names of ``batches.meta``. Raises :class:`BundleError`."""
    meta = read_pickle(path)
    mean = meta.get("data_mean") if isinstance(meta, dict) else None
    names = meta.get("label_names") if isinstance(meta, dict) else None
    values = mean.values if isinstance(mean, Array) else None
    side = int((values.size / 3) ** 0.5 + 0.5) if isinstance(values, np.ndarray) else 0
    values = as_float32(values) if isinstance(values, np.ndarray) else np.zeros(0, np.float32)
    if not side or values.size != 3 * side**2 or not np.isfinite(values).all():
        raise BundleError(f"{path} has no data_mean", "one number for each color of each pixel of a square image")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BundleError(f"{path} has no label_names", "a list of names")
    image = values.reshape(3, side, side).transpose(1, 2, 0)  # (c, y, x)
    return image.copy(), tuple(names)


def _stages(checkpoint: Checkpoint) -> list[list[str]]:
    """Learned layers by depth: the number of learned layers before them."""
    sources = {
        name: {checkpoint.trace(other).source for other in checkpoint.inputs(name)} for name in checkpoint.learned
    }
    depth: dict[str, int] = {}
    while len(depth) < len(sources):
        ready = {
            name: 1 + max((depth.get(other, 0) for other in result), default=0)
            for name, result in sources.items()
            if name not in depth and all(other in depth or other not in sources for other in result)
        }
        if not ready:
            raise BundleError(f"{checkpoint.file}: layers read each other in a circle", "a network without one")
        depth |= ready
    if not depth:
        raise BundleError(f"{checkpoint.file} has no layer that learns", "a checkpoint of a convolutional net")
    return [sorted(n for n, d in depth.items() if d == stage) for stage in range(1, 1 + max(depth.values()))]


def _joined(checkpoint: Checkpoint, stage: list[str], before: list[str]) -> tuple[list[str], NDArray[Any], list[Step]]:
    """Join parallel layers into one: their order, the joined weights, and the layers before them."""
    traced = {name: [checkpoint.trace(one, max(1, len(before))) for one in checkpoint.inputs(name)] for name in stage}
    for name, inputs in traced.items():
        sources = [one.source for one in inputs]
        known = before or [one.source for one in inputs[:1]]
        if len(set(sources)) < len(sources) or not set(sources) <= set(known):
            raise BundleError(
                f"{checkpoint.file}: layer {name} reads {', '.join(sources)}",
                f"each of {', '.join(known)} at most once",
                "no network of this package has such inputs",
            )
    separate = len(before) > 1 and all(len(inputs) == 1 for inputs in traced.values())
    if separate:  # each layer reads its own tower: sort them by tower
        stage = sorted(stage, key=lambda name: before.index(traced[name][0].source))
    elif any(len(inputs) != max(1, len(before)) for inputs in traced.values()):
        raise BundleError(f"{checkpoint.file}: {', '.join(stage)} read different towers", "all the same way")
    rows = []
    for name in stage:
        inputs = traced[name]
        order = sorted(range(len(inputs)), key=lambda i: before.index(inputs[i].source) if before else 0)
        rows.append(np.concatenate([_weight(checkpoint, name, i) * np.float32(inputs[i].keep) for i in order], axis=1))
    between = [one.between for inputs in traced.values() for one in inputs]
    if any([(s.kind, s.numbers) for s in b] != [(s.kind, s.numbers) for s in between[0]] for b in between):
        raise BundleError(f"{checkpoint.file}: the towers before {', '.join(stage)} differ", "both alike")
    if len({row.shape[1:] for row in rows}) > 1:
        raise BundleError(f"{checkpoint.file}: {', '.join(stage)} are {[list(r.shape) for r in rows]}", "of one size")
    return stage, np.concatenate(rows), between[0]


def _weight(checkpoint: Checkpoint, name: str, at: int) -> NDArray[Any]:
    """The weights of one input in PyTorch's layout."""
    matrix, kind = checkpoint.array(name, "weights", at), checkpoint.get(name, "type", str)
    if kind == "fc":
        return matrix.T  # [in, out] -> [out, in]
    _plain_channels(checkpoint, name, at)
    filters, kernel = matrix.shape[1], int(_of(checkpoint, name, "filterSize", at))
    positions = checkpoint.array(name, "biases").size // max(1, filters) if kind == "local" else 1
    side = int(positions**0.5 + 0.5)
    channels = matrix.shape[0] // max(1, positions * kernel * kernel)
    if matrix.shape[0] != side * side * channels * kernel * kernel or 0 in matrix.shape:
        raise BundleError(
            f"{checkpoint.file}: layer {name} is {list(matrix.shape)} with filters of {kernel}×{kernel}",
            "whole filters",
        )
    if kind == "conv":
        return matrix.T.reshape(filters, channels, kernel, kernel)
    return matrix.reshape(side, side, channels, kernel, kernel, filters).transpose(5, 2, 3, 4, 0, 1)


def _plain_channels(checkpoint: Checkpoint, name: str, at: int) -> None:
    sparse = checkpoint.layers[name].get("randSparse")
    if isinstance(sparse, list) and at < len(sparse) and sparse[at]:
        raise BundleError(f"{checkpoint.file}: layer {name} reads random channels (randSparse)", "all or a run of them")


def _of(checkpoint: Checkpoint, name: str, key: str, at: int) -> float:
    values = checkpoint.layers[name].get(key)
    value = values[at] if isinstance(values, list) and at < len(values) else values
    if not isinstance(value, int | float) or not 1 <= value <= 10_000:
        raise BundleError(f"{checkpoint.file}: layer {name} has no {key}", "one number per input")
    return value


def _bias(checkpoint: Checkpoint, name: str, weight: NDArray[Any]) -> NDArray[Any]:
    biases = checkpoint.array(name, "biases").reshape(-1)
    if weight.ndim == 6 and len(biases) % (weight.shape[4] * weight.shape[5]) == 0:  # local: one bias per position
        return biases.reshape(-1, *weight.shape[4:])
    return biases


def _geometry(checkpoint: Checkpoint, stage: list[str], kind: str, before: list[str]) -> dict[str, float]:
    if kind != "convolution":
        return {}
    name = stage[0]
    numbers = {"kernel": _of(checkpoint, name, "filterSize", 0), "stride": checkpoint.number(name, "stride", 1)}
    separate = len(before) > 1 and len(checkpoint.inputs(name)) == 1
    groups = len(before) if separate else int(checkpoint.number(name, "groups", 1))
    return numbers | {"padding": abs(checkpoint.number(name, "padding", 0)), "groups": groups}  # stored negative


def _ends_in_classes(checkpoint: Checkpoint, last: list[str]) -> None:
    for name, layer in checkpoint.layers.items():
        kind = checkpoint.get(name, "type", str)
        if kind in ("data", "softmax") or kind.startswith("cost.") or "inputs" not in layer:
            continue
        for reads in checkpoint.inputs(name):
            if reads in last:
                raise BundleError(
                    f"{checkpoint.file}: the last layer {reads} goes into {name}, a {readable(kind)}", "a softmax"
                )
