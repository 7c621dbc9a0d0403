"""Reader of Caffe's ``.caffemodel`` and ``.binaryproto`` files, without Caffe, by the field numbers of its schema.

Both forms of a network are read: the current one (``layer``, field 100) and the form of 2014 (``layers``, field 2) of
the two published AlexNets, where every shape has four dimensions. Caffe's weight layout is that of PyTorch; only the
channels of conv1 are reversed, from BGR to RGB.

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
from alexnet.weights import files
from alexnet.weights.files import DamagedError, fields, integer, integers, message, numbers, read_bytes, text
from alexnet.weights.matching import ImportedWeights, Step, as_float32

# Fields of a layer by number: name, type, blobs, and the parameters of its kind.
_CURRENT = {1: "name", 2: "type", 7: "blob", 106: "convolution", 118: "norm", 121: "pool"}
_2014 = {4: "name", 5: "type", 6: "blob", 10: "convolution", 18: "norm", 19: "pool"}
_TYPES_2014 = {4: "Convolution", 14: "InnerProduct", 15: "LRN", 17: "Pooling", 18: "ReLU", 6: "Dropout"}
_IGNORED = {"Data", "Input", "Softmax", "SoftmaxWithLoss", "Accuracy", "ImageData", "Split", "HDF5Data", "DummyData"}
_MAX_DIMENSIONS = 32  # of a blob: Caffe allows no more
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


def read(path: Path) -> ImportedWeights:
    """Read the learned layers of a ``.caffemodel``, with conv1 for RGB inputs. Raises :class:`BundleError`."""
    layers = _read(path, _network)
    arrays: dict[str, NDArray[Any]] = {}
    for layer in layers:
        for name, blob in zip(("weight", "bias"), layer.blobs, strict=False):
            arrays[f"{layer.name}.{name}"] = _trim_shape(blob, layer, name)
        if len(layer.blobs) > 2:
            raise BundleError(f"{path}: layer {layer.name} has {len(layer.blobs)} blobs", "at most weights and biases")
    if not arrays:
        raise BundleError(f"{path} holds no weights", "a .caffemodel with learned layers", "is it the right file?")
    return ImportedWeights(to_rgb(arrays), [_step(layer) for layer in layers])


def read_mean(path: Path) -> NDArray[np.float32]:
    """Read the mean image of a ``.binaryproto``: RGB [S, S, 3], gray levels. Raises :class:`BundleError`."""
    return mean_image(_read(path, _blob), str(path))


def mean_image(blob: NDArray[Any], file: str) -> NDArray[np.float32]:
    """Convert Caffe's mean image, BGR [3, S, S], to RGB [S, S, 3].

    Args:
        blob: The mean image; leading dimensions of size 1 are dropped.
        file: Name of the file for messages.

    Raises:
        BundleError: The shape is another one, or a value is not finite.
    """
    shape = [size for i, size in enumerate(blob.shape) if i >= blob.ndim - 3 or size != 1]
    blob = as_float32(blob)
    if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2] or not np.isfinite(blob).all():
        raise BundleError(f"{file} is {list(blob.shape)}", "a mean image [3, S, S] of finite numbers")
    image = blob.reshape(shape)[::-1].transpose(1, 2, 0)
    return image.copy()


def to_rgb(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Reverse the input channels of conv1 from BGR to RGB; other arrays are unchanged."""
    first = arrays.get("conv1.weight")
    reversed_conv1 = {} if first is None or first.ndim != 4 else {"conv1.weight": first[:, ::-1]}
    return arrays | reversed_conv1


def _read(path: Path, parse: Callable[[memoryview], Any]) -> Any:
    try:
        return parse(memoryview(read_bytes(path)))
    except DamagedError as error:
        raise BundleError(f"{path} is damaged or not a Caffe file: {error}", "", "use another copy") from error


def _network(net: memoryview) -> list[_Layer]:
    layers = []
    for part in fields(net):
        if part.number == 100:
            layers.append(_layer(message(part), _CURRENT))
        elif part.number == 2:
            layers.append(_layer(message(part), _2014))
        if len(layers) > 10_000:
            raise DamagedError("more than 10,000 layers")
    return [layer for layer in layers if layer.type not in _IGNORED]


def _layer(part: memoryview, names: dict[int, str]) -> _Layer:
    layer = _Layer()
    for entry in fields(part):
        key = names.get(entry.number)
        if key == "name":
            layer.name = text(entry)
        elif key == "type":
            layer.type = text(entry) if names is _CURRENT else _type_2014(integer(entry))
        elif key == "blob":
            layer.blobs.append(_blob(message(entry)))
        elif key is not None:
            layer.numbers |= _READERS[key](message(entry))
        elif entry.number == 1:  # the form of 2014 can wrap one of 2013
            raise DamagedError("a layer in the form of 2013: convert the file by Caffe's upgrade_net_proto_binary")
    return layer


def _type_2014(number: int) -> str:
    return "Data" if number in _IGNORED_2014 else _TYPES_2014.get(number, f"type {number}")


def _values(part: memoryview, names: dict[int, str], defaults: dict[str, float]) -> dict[str, float]:
    result = dict(defaults)
    for entry in fields(part):
        name = names.get(entry.number)
        if name is None:
            continue
        is_float = entry.kind == files.FOUR
        values = numbers(entry, files.FOUR).tolist() if is_float else integers(entry)
        if values:
            result[name] = values[-1]
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
    chunks: list[NDArray[Any]] = []
    for entry in fields(part):
        if entry.number in (1, 2, 3, 4):
            legacy[entry.number] = integer(entry)
        elif entry.number == 7:
            shape = [size for dim in fields(message(entry)) if dim.number == 1 for size in integers(dim)]
        elif entry.number in (5, 8):
            chunks.append(numbers(entry, files.FOUR if entry.number == 5 else files.EIGHT))
    values = chunks[0] if len(chunks) == 1 else np.concatenate([np.zeros(0, np.float32), *chunks])
    shape = [legacy.get(i, 1) for i in (1, 2, 3, 4)] if legacy or shape is None else shape
    if len(shape) > _MAX_DIMENSIONS or not all(0 <= size < 1 << 31 for size in shape):
        raise DamagedError(
            f"a blob whose shape is {str(shape)[:60]}: a shape has at most {_MAX_DIMENSIONS} dimensions below 2³¹"
        )
    if math.prod(shape) != len(values):
        raise DamagedError(f"a blob of {shape} with {len(values):,} numbers")
    return values.reshape(shape)


def _trim_shape(blob: NDArray[Any], layer: _Layer, name: str) -> NDArray[Any]:
    """Drop the leading dimensions of size 1 that fill the four dimensions of the 2014 form."""
    dimensions = 1 if name == "bias" else 2 if layer.type == "InnerProduct" else 4
    shape = list(blob.shape)
    while len(shape) > dimensions and shape[0] == 1:
        shape = shape[1:]
    return blob.reshape(shape)


def _step(layer: _Layer) -> Step:
    kind, numbers = _KINDS.get(layer.type, layer.type), dict(layer.numbers)
    if layer.type == "Pooling" and numbers.pop("pool", 0) != 0:
        kind = "average pool" if layer.numbers["pool"] == 1 else "random pool"
    if layer.type == "LRN":
        kind = "norm" if numbers.pop("region", 0) == 0 else "spatial norm"
        numbers["towers"] = 1
    return Step(kind, layer.name, numbers)
