"""A checked layer -> its module; start values from functions that a caller gives."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from alexnet.errors import ModelError
from alexnet.models.cuda_convnet import pointwise, pools, products, shaping
from alexnet.models.cuda_convnet.definition import LEARNED, Definition, Layer
from alexnet.models.cuda_convnet.parameters import NORMS, LayerParameters

if TYPE_CHECKING:
    from alexnet.models.cuda_convnet.network import GraphNetwork


def build(layer: Layer, definition: Definition, parameters: LayerParameters) -> nn.Module:
    """The module of a layer that is neither data nor cost."""
    kind, options = layer.type, layer.options
    if kind in LEARNED:
        return products.KINDS[kind](layer)
    if kind in NORMS:
        return shaping.norm(layer, parameters)
    if kind == "hs":
        return pointwise.Keep(options["keep"], parameters.enable)
    if kind == "neuron":
        return pointwise.Neuron(options["neuron"], options["numbers"])
    if kind == "concat":
        return pointwise.Concatenation(bool(layer.side))
    if kind in ("eltsum", "eltmax"):
        return pointwise.Sum(options["coeffs"]) if kind == "eltsum" else pointwise.Maximum()
    return pointwise.Softmax() if kind == "softmax" else _over_maps(layer, definition, parameters)


def _over_maps(layer: Layer, definition: Definition, parameters: LayerParameters) -> nn.Module:
    """Layers over square maps; the side is the input's, as this layer counts its channels."""
    kind, options = layer.type, layer.options
    channels = options.get("channels", 3)
    side = round((definition.layers[layer.inputs[0]].outputs / channels) ** 0.5)
    if kind == "pool":
        return pools.Pool(layer, side, parameters.do_max)
    if kind == "blur":
        return shaping.Blur(channels, side, options["filterSize"], options["stdev"])
    if kind == "nailbed":
        return shaping.NailBed(channels, side, options["start"], options["stride"])
    if kind == "href":
        return shaping.Mirror(channels, side)
    if kind == "resize":
        return shaping.Resize(channels, side, options["scale"], layer.side)
    if kind == "rscale":
        return shaping.RandomScale(channels, side, options["maxScale"], layer.side)
    return shaping.Yuv(3, side) if kind == "rgb2yuv" else shaping.Lab(3, side, options["center"])


def call_functions(network: "GraphNetwork", layer: Layer, module: products.Learned) -> None:
    """Overwrite drawn start values with those of the file's initWFunc, initBFunc and initCFunc.

    The functions are the caller's (``network.functions``), called as the 2012 code did; a file that names one that
    was not given is a :class:`ModelError`: nothing is imported by name.
    """
    options = layer.options
    for i, matrix in enumerate(layer.matrices):
        if "initCFunc" in options and hasattr(module, f"connections{i}"):
            groups, channels, each = (options[key][i] for key in ("groups", "channels", "filterChannels"))
            buffer = module.get_buffer(f"connections{i}")
            found = _call(network, layer, "initCFunc", i, (groups, channels, each))
            numbers = torch.as_tensor(found).flatten().long()
            if numbers.shape != buffer.shape or int(numbers.min()) < 0 or int(numbers.max()) >= channels:
                raise ModelError(f"layer {layer.name!r}: initCFunc gave {list(numbers.shape)} channels",
                                 f"{len(buffer)} from 0 to {channels - 1}")  # fmt: skip
            buffer.copy_(numbers)
        if "initWFunc" in options:
            given = _array(_call(network, layer, "initWFunc", i, (matrix.rows, matrix.columns)))
            _check_shape(layer, "initWFunc", given, (matrix.rows, matrix.columns))
            network.weight_of(layer.name, i).copy_(module.from_file(i, given))
    if "initBFunc" in options:
        total = module.bias.numel()
        shape = (1, total) if layer.type in ("fc", "treefc") else (total, 1)
        name, arguments = options["initBFunc"]
        given = _array(_function(network, layer, name)(layer.name, shape, params=arguments))
        _check_shape(layer, "initBFunc", given, shape)
        module.bias.copy_(given.reshape(module.bias.shape))


def _call(network: "GraphNetwork", layer: Layer, key: str, index: int, shape: tuple[int, ...]) -> object:
    name, arguments = layer.options[key]
    return _function(network, layer, name)(layer.name, index, shape, params=arguments)


def _function(network: "GraphNetwork", layer: Layer, name: str) -> Callable[..., object]:
    if name not in network.functions:
        what = f"layer {layer.name!r} (line {layer.line}) starts from the function {name!r}, which is code"
        raise ModelError(what, "given", "build the network from Python with functions={name: function}")
    return network.functions[name]


def _array(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)


def _check_shape(layer: Layer, key: str, given: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(given.shape) != shape:
        raise ModelError(f"layer {layer.name!r}: {key} gave {list(given.shape)} numbers", f"of shape {list(shape)}")
