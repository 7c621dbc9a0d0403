"""Caffe's ``.caffemodel`` and ``.binaryproto`` without Caffe: what is in them, by the numbers of its schema.

Both forms of a network are read: the current one (``layer``, 100) and that of 2014 (``layers``, 2), in which the two
published AlexNets came, with four-sided shapes. The blobs need no rearranging: Caffe's groups, features and rows are
those of PyTorch. Only conv1's channels turn around, from blue, green, red to ours.

Source: Caffe's ``caffe.proto`` for the numbers of the fields, and its layers for the arithmetic.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import BundleError
from alexnet.weights import protobuf_reader
from alexnet.weights.files import read_bytes
from alexnet.weights.matching import ImportedWeights, Step, as_float32
from alexnet.weights.protobuf_reader import DamagedError, fields, integer, integers, message, numbers, text

# Of a layer: name, type, blobs, then its parameters by what they are for.
_NOW = {1: "name", 2: "type", 7: "blob", 106: "convolution", 118: "norm", 121: "pool"}
_2014 = {4: "name", 5: "type", 6: "blob", 10: "convolution", 18: "norm", 19: "pool"}
_TYPES_2014 = {4: "Convolution", 14: "InnerProduct", 15: "LRN", 17: "Pooling", 18: "ReLU", 6: "Dropout"}
_IGNORED = {"Data", "Input", "Softmax", "SoftmaxWithLoss", "Accuracy", "ImageData", "Split", "HDF5Data", "DummyData"}
_MAX_SIDES = 32  # of a blob: Caffe itself allows no more
_IGNORED_2014 = {1, 5, 12, 20, 21, 22, 29}
_KINDS = {
    "Convolution": "convolution",
    "InnerProduct": "fully connected",
    "LRN": "norm",
    "ReLU": "relu",
    "Dropout": "dropout",
    "Pooling": "max pool",
}


@dataclass
class _Layer:
    name: str = ""
    type: str = ""
    blobs: list[NDArray[Any]] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    about: dict[str, memoryview] = field(default_factory=dict)


def read(path: Path) -> ImportedWeights:
    """The learned layers of a ``.caffemodel``, conv1 turned to RGB. Raises :class:`BundleError`."""
    layers = _read(path, _network)
    arrays: dict[str, NDArray[Any]] = {}
    for layer in layers:
        for name, blob in zip(("weight", "bias"), layer.blobs, strict=False):
            arrays[f"{layer.name}.{name}"] = _sides(blob, layer, name)
        if len(layer.blobs) > 2:
            raise BundleError(f"{path}: layer {layer.name} has {len(layer.blobs)} blobs", "at most weights and biases")
    if not arrays:
        raise BundleError(f"{path} holds no weights", "a .caffemodel with learned layers", "is it the right file?")
    return ImportedWeights(to_rgb(arrays), [_step(layer) for layer in layers])


def read_mean(path: Path) -> NDArray[np.float32]:
    """The mean image of a ``.binaryproto``: RGB [S, S, 3], gray levels. Raises :class:`BundleError`."""
    return mean_image(_read(path, _blob), str(path))


def mean_image(blob: NDArray[Any], file: str) -> NDArray[np.float32]:
    """Caffe's mean, blue, green, red [3, S, S], as RGB [S, S, 3]. Raises :class:`BundleError`."""
    sides = [side for i, side in enumerate(blob.shape) if i >= blob.ndim - 3 or side != 1]
    blob = as_float32(blob)
    if len(sides) != 3 or sides[0] != 3 or sides[1] != sides[2] or not np.isfinite(blob).all():
        raise BundleError(f"{file} is {list(blob.shape)}", "a mean image [3, S, S] of finite numbers")
    image = blob.reshape(sides)[::-1].transpose(1, 2, 0)
    return image.copy()


def to_rgb(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """conv1's channels from blue, green, red to red, green, blue; the rest as it is."""
    first = arrays.get("conv1.weight")
    turned = {} if first is None or first.ndim != 4 else {"conv1.weight": first[:, ::-1]}
    return arrays | turned


def _read(path: Path, how: Callable[[memoryview], Any]) -> Any:
    try:
        return how(memoryview(read_bytes(path)))
    except DamagedError as error:
        raise BundleError(f"{path} is damaged or no file of Caffe: {error}", "", "use another copy") from error


def _network(net: memoryview) -> list[_Layer]:
    layers = []
    for part in fields(net):
        if part.number == 100:
            layers.append(_layer(message(part), _NOW))
        elif part.number == 2:
            layers.append(_layer(message(part), _2014))
        if len(layers) > 10_000:
            raise DamagedError("more than 10,000 layers")
    return [layer for layer in layers if layer.type not in _IGNORED]


def _layer(part: memoryview, names: dict[int, str]) -> _Layer:
    layer = _Layer()
    for result in fields(part):
        what = names.get(result.number)
        if what == "name":
            layer.name = text(result)
        elif what == "type":
            layer.type = text(result) if names is _NOW else _type_2014(integer(result))
        elif what == "blob":
            layer.blobs.append(_blob(message(result)))
        elif what is not None:
            layer.numbers |= _READERS[what](message(result))
        elif result.number == 1:  # of 2014, which wrapped one of 2013
            raise DamagedError("a layer in the form of 2013, which Caffe's upgrade_net_proto_binary turns into a newer")
    return layer


def _type_2014(number: int) -> str:
    return "Data" if number in _IGNORED_2014 else _TYPES_2014.get(number, f"type {number}")


def _values(part: memoryview, names: dict[int, str], defaults: dict[str, float]) -> dict[str, float]:
    result = dict(defaults)
    for one in fields(part):
        name = names.get(one.number)
        if name is None:
            continue
        many = numbers(one, protobuf_reader.FOUR).tolist() if one.kind == protobuf_reader.FOUR else integers(one)
        if many:
            result[name] = many[-1]
    return result


def _convolution(part: memoryview) -> dict[str, float]:
    names = {3: "padding", 9: "padding", 4: "kernel", 11: "kernel", 5: "groups", 6: "stride", 13: "stride"}
    return _values(part, names, {"padding": 0, "groups": 1, "stride": 1})


def _norm(part: memoryview) -> dict[str, float]:
    names = {1: "size", 2: "alpha", 3: "beta", 4: "region", 5: "k"}
    return _values(part, names, {"size": 5, "alpha": 1, "beta": 0.75, "k": 1, "region": 0})


def _pool(part: memoryview) -> dict[str, float]:
    return _values(part, {1: "pool", 2: "kernel", 3: "stride", 4: "padding"}, {"stride": 1, "pool": 0})


_READERS = {"convolution": _convolution, "norm": _norm, "pool": _pool}


def _blob(part: memoryview) -> NDArray[Any]:
    legacy: dict[int, int] = {}
    shape: list[int] | None = None
    rows: list[NDArray[Any]] = []
    for result in fields(part):
        if result.number in (1, 2, 3, 4):
            legacy[result.number] = integer(result)
        elif result.number == 7:
            shape = [side for one in fields(message(result)) if one.number == 1 for side in integers(one)]
        elif result.number in (5, 8):
            rows.append(numbers(result, protobuf_reader.FOUR if result.number == 5 else protobuf_reader.EIGHT))
    values = rows[0] if len(rows) == 1 else np.concatenate([np.zeros(0, np.float32), *rows])
    sides = [legacy.get(i, 1) for i in (1, 2, 3, 4)] if legacy or shape is None else shape
    if len(sides) > _MAX_SIDES or not all(0 <= side < 1 << 31 for side in sides):
        raise DamagedError(f"a blob whose shape is {str(sides)[:60]}: a shape has at most {_MAX_SIDES} sides below 2³¹")
    if math.prod(sides) != len(values):
        raise DamagedError(f"a blob of {sides} with {len(values):,} numbers")
    return values.reshape(sides)


def _sides(blob: NDArray[Any], layer: _Layer, name: str) -> NDArray[Any]:
    """The shape of 2014 has four sides, the first of them 1 where there are fewer."""
    wanted = 1 if name == "bias" else 2 if layer.type == "InnerProduct" else 4
    sides = list(blob.shape)
    while len(sides) > wanted and sides[0] == 1:
        sides = sides[1:]
    return blob.reshape(sides)


def _step(layer: _Layer) -> Step:
    kind, known = _KINDS.get(layer.type, layer.type), dict(layer.numbers)
    if layer.type == "Pooling" and known.pop("pool", 0) != 0:
        kind = "average pool" if layer.numbers["pool"] == 1 else "random pool"
    if layer.type == "LRN":
        kind = "norm" if known.pop("region", 0) == 0 else "spatial norm"
        known["towers"] = 1
    return Step(kind, layer.name, known)
