"""The NumPy port of Caffe's networks (caffe-tensorflow): a dictionary in a ``.npy`` file, in TensorFlow's layouts.

Convolutions are [height, width, in, out], fully connected weights [in, out], and the first of them reads its maps as
(y, x, channel) where Caffe and PyTorch have (channel, y, x). Colors are still blue, green, red.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import BundleError
from alexnet.weights.caffe import to_rgb
from alexnet.weights.files import read_npy
from alexnet.weights.fitting import Found
from alexnet.weights.naming import readable
from alexnet.weights.pickles import Array


def read(path: Path) -> Found:
    """The layers of a port, in PyTorch's layouts, conv1 turned to RGB. Raises :class:`BundleError`."""
    content = read_npy(path)
    if not isinstance(content, dict) or not content:
        raise BundleError(f"{path} holds {type(content).__name__}", "a dictionary of layers, as caffe-tensorflow wrote")
    arrays: dict[str, NDArray[Any]] = {}
    maps = 0  # channels of the last convolution: what the first fully connected layer reads
    for name in sorted(content, key=str):  # conv1 … fc8
        name, layer = readable(name), content[name]
        weight, bias = _pair(path, name, layer)
        if weight.ndim == 4:
            maps = weight.shape[3]
            weight = weight.transpose(3, 2, 0, 1)
        elif weight.ndim == 2:
            weight = (_channels_first(path, name, weight, maps) if maps else weight).T
            maps = 0
        arrays |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return Found(to_rgb(arrays))


def _pair(path: Path, name: str, layer: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two forms: [weights, biases], and of later converters {"weights": …, "biases": …}. A list may be an array."""
    layer = layer.values if isinstance(layer, Array) else layer
    layer = list(layer) if isinstance(layer, tuple) else layer
    parts = [layer.get("weights"), layer.get("biases")] if isinstance(layer, dict) else layer
    values = [part.values if isinstance(part, Array) else part for part in parts] if isinstance(parts, list) else []
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    if len(arrays) != 2 or len(values) != 2:
        raise BundleError(f"{path}: layer {name} has no weights and biases", "two arrays of numbers")
    return arrays[0], arrays[1]


def _channels_first(path: Path, name: str, weight: NDArray[Any], maps: int) -> NDArray[Any]:
    """Rows (y, x, channel) -> (channel, y, x)."""
    side = int((weight.shape[0] / maps) ** 0.5 + 0.5)
    if side * side * maps != weight.shape[0]:
        raise BundleError(f"{path}: layer {name} reads {weight.shape[0]} numbers", f"a square of {maps} channels")
    return weight.reshape(side, side, maps, -1).transpose(2, 0, 1, 3).reshape(weight.shape)
