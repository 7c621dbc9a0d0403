"""The layers that the web page shows: a network as elementary steps, and what each of them computes.

A residual block or an inception module becomes its convolutions, batch norms, ReLUs, sums and concatenations, so that
the page can show the arithmetic of each. The network of a layer file is already a graph of such steps. ``page.js`` does
the same arithmetic from what :func:`describe` gives.
"""

from collections.abc import Callable, Sequence
from functools import partial
from graphlib import TopologicalSorter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet.cuda_convnet import GraphNetwork
from alexnet.cuda_convnet.grammar import Layer
from alexnet.cuda_convnet.image_layers import Wrapped
from alexnet.cuda_convnet.modules import Pool, weight_name
from alexnet.cuda_convnet.network import kind as layer_kind
from alexnet.models.alexnet_variants import AdaptiveAveragePool
from alexnet.models.comparisons import Block, TowerLinear
from alexnet.models.layers import AveragePool, LocallyConnected, LocalResponseNorm, MaxPool, SpatialNorm
from alexnet.models.lenet import ScaledTanh, Subsampling, TableConvolution
from alexnet.models.network import Network
from alexnet.models.summary import ReceptiveField, Row, describe_layer, field_after, field_after_window, geometry


class Step(NamedTuple):
    """One operation of a network."""

    name: str  # that of its parameters: layer1_0.conv1
    layer: nn.Module
    inputs: tuple[int, ...]  # the steps whose outputs it reads; -1 is the network's input


class ShortcutSum(nn.Module):
    """The sum of a residual block: of the second input every ``stride``-th pixel, new channels are zeros."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, input: Tensor, shortcut: Tensor) -> Tensor:
        shortcut = shortcut[:, :, :: self.stride, :: self.stride]
        return input + F.pad(shortcut, (0, 0, 0, 0, 0, input.shape[1] - shortcut.shape[1]))


class Concatenation(nn.Module):
    """Feature maps of several inputs, one after another: [N, c, H, W], ... -> [N, Σc, H, W]."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, 1)


def steps_of(network: nn.Module) -> list[Step]:
    """The operations of a network, in the order of computation."""
    if isinstance(network, GraphNetwork):
        return _graph_steps(network)
    steps: list[Step] = []
    source = -1
    for name, layer in network.named_children():
        source = _expand(steps, name, layer, source)
    return steps


def _expand(steps: list[Step], name: str, layer: nn.Module, source: int) -> int:
    """Append the steps of ``layer``, which reads step ``source``; returns the number of its last step."""

    def add(part: str, module: nn.Module, *inputs: int) -> int:
        module = nn.ReLU() if isinstance(module, nn.ReLU) else module  # not in place: the output before it is shown
        steps.append(Step(f"{name}.{part}" if part else name, module, inputs))
        return len(steps) - 1

    def inner(part: str, source: int) -> int:
        return _expand(steps, f"{name}.{part}", layer.get_submodule(part), source)

    def normalized(number: int, source: int) -> int:
        return add(f"bn{number}", layer.get_submodule(f"bn{number}"), inner(f"conv{number}", source))

    kind = type(layer).__name__ if type(layer).__module__.startswith("torchvision.") else ""
    if isinstance(layer, nn.Sequential):
        for part, _ in layer.named_children():
            source = inner(part, source)
        return source
    if isinstance(layer, Block) or kind in ("BasicBlock", "Bottleneck"):
        x, last = source, 3 if kind == "Bottleneck" else 2
        for number in range(1, last + 1):
            x = add(f"relu{number - 1}", nn.ReLU(), x) if number > 1 else x
            x = normalized(number, x)
        if isinstance(layer, Block):
            x = add("sum", ShortcutSum(layer.stride), x, source) if layer.shortcut else x
        else:
            shortcut = source if layer.downsample is None else inner("downsample", source)
            x = add("sum", ShortcutSum(), x, shortcut)
        return add(f"relu{last}", nn.ReLU(), x)
    if kind == "BasicConv2d":
        return add("relu", nn.ReLU(), add("bn", layer.get_submodule("bn"), inner("conv", source)))
    if kind == "Inception":
        return add("concat", Concatenation(), *(inner(f"branch{number}", source) for number in range(1, 5)))
    return add("", layer, source)


def describe(network: Network, names: Sequence[str]) -> list[dict[str, Any]]:
    """The steps ``names`` of ``network``: their table, receptive fields and what :func:`_operation` gives.

    The steps that are left out (dropout, auxiliary classifiers) pass their input on.
    """
    if isinstance(network, GraphNetwork):
        return _describe_graph(network)
    image = (network.in_channels, network.image_size, network.image_size)
    shapes: dict[int, tuple[int, ...]] = {-1: image}
    fields: dict[int, ReceptiveField | None] = {-1: ReceptiveField(1, 1, 0.5)}
    numbers = {-1: -1}  # step of the network -> step that is described
    result: list[dict[str, Any]] = []
    for index, step in enumerate(steps_of(network)):
        first, *others = step.inputs
        if step.name not in names:
            shapes[index], fields[index], numbers[index] = shapes[first], fields[first], numbers[first]
            continue
        if others:
            row = _joined(step, [shapes[source] for source in step.inputs])
            known = [fields[source] for source in step.inputs]
            fields[index] = None if None in known else max(field for field in known if field)
        else:
            row = describe_layer(step.name, step.layer, shapes[first], network.towers)
            fields[index] = field_after(fields[first], step.layer, network.image_size)
        shapes[index], numbers[index] = row.output, len(result)
        field = fields[index]
        entry: dict[str, Any] = {"name": row.layer, "kind": row.kind, "output": list(row.output)}
        entry |= {"kernel": row.kernel, "parameters": row.parameters, "field": list(field) if field else None}
        result.append(entry | {"inputs": [numbers[source] for source in step.inputs]} | _operation(step.layer))
    return result


def _joined(step: Step, shapes: Sequence[tuple[int, ...]]) -> Row:
    """The row of a sum or a concatenation."""
    channels, *size = shapes[0]
    if isinstance(step.layer, Concatenation):
        channels = sum(shape[0] for shape in shapes)
    kind = "concatenation" if isinstance(step.layer, Concatenation) else "sum"
    return Row(step.name, kind, (channels, *size), "", "", 0, 0, 0, 0)


def _operation(layer: nn.Module) -> dict[str, Any]:
    """What a layer computes, for ``page.js``: the operation ``op`` and its hyperparameters."""
    window = geometry(layer)
    sizes = dict(zip(("size", "stride", "padding"), window, strict=True)) if window else {}
    match layer:
        case TableConvolution():
            pairs = list(zip(layer.targets.tolist(), layer.sources.tolist(), strict=True))
            sources = [[[s, i] for i, (t, s) in enumerate(pairs) if t == k] for k in range(layer.out_channels)]
            return {"op": "convolution", "sources": sources} | sizes
        case nn.Conv2d():
            return {"op": "convolution", "groups": layer.groups} | sizes
        case LocallyConnected():
            return {"op": "local"} | sizes
        case nn.Linear():
            return {"op": "linear", "groups": layer.towers if isinstance(layer, TowerLinear) else 1}
        case MaxPool() | nn.MaxPool2d():
            return {"op": "max"} | sizes
        case AveragePool():
            return {"op": "average"} | sizes
        case Subsampling():
            return {"op": "subsampling"} | sizes
        case AdaptiveAveragePool() | nn.AdaptiveAvgPool2d():
            return {"op": "adaptive"}
        case LocalResponseNorm():
            factor = layer.alpha / layer.size
            return {"op": "norm", "size": layer.size, "towers": layer.towers} | _power(factor, layer.beta, layer.k)
        case SpatialNorm():
            return {"op": "spatial", "size": layer.size} | _power(layer.scale / layer.size**2, layer.beta, layer.k)
        case ShortcutSum():
            return {"op": "sum", "stride": layer.stride}
        case Concatenation():
            return {"op": "concat"}
        case nn.BatchNorm2d():
            return {"op": "batch"} | _affine(layer)
    kinds: dict[type[nn.Module], str] = {
        nn.ReLU: "relu",
        nn.Sigmoid: "sigmoid",
        nn.Tanh: "tanh",
        ScaledTanh: "scaled tanh",
    }
    flat = type(layer).__name__ == "Flatten"
    return {"op": "flatten" if flat else kinds.get(type(layer), "block")}


def _power(factor: float, beta: float, k: float) -> dict[str, float]:
    return {"factor": factor, "beta": beta, "k": k}


def _affine(layer: nn.BatchNorm2d) -> dict[str, list[float]]:
    """A batch norm in evaluation mode is scale · x + shift for each channel."""
    assert layer.running_var is not None and layer.running_mean is not None
    scale = layer.weight.detach() / (layer.running_var + layer.eps).sqrt()
    return {"scale": scale.tolist(), "shift": (layer.bias.detach() - layer.running_mean * scale).tolist()}


# Layer files


class GraphLayer(nn.Module):
    """A layer of a layer file, whose weights stay those of the network: outputs of the layers it reads -> its output.

    ``name`` None: the scores [N, K] from the output that the costs compare with the classes.
    """

    def __init__(self, network: GraphNetwork, name: str | None) -> None:
        super().__init__()
        self.name = name
        self.compute: Callable[..., Tensor] = network.scores if name is None else partial(network.compute, name)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.compute(*inputs)


def _graph_steps(network: GraphNetwork) -> list[Step]:
    """The layers that the scores need."""
    layers, last = network.definition.layers, network.score_output.layer
    needed, todo = {last}, [last]
    while todo:
        new = set(layers[todo.pop()].inputs) - needed
        needed |= new
        todo += new
    graph = {name: layer.inputs for name, layer in layers.items() if name in needed}
    steps: list[Step] = []
    numbers: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        if layers[name].type == "data":
            numbers[name] = -1
            continue
        numbers[name] = len(steps)
        inputs = tuple(numbers[source] for source in layers[name].inputs)
        steps.append(Step(network.keys[name], GraphLayer(network, name), inputs))
    if network.score_output.kind in ("logistic", "probability") or layers[last].side:
        steps.append(Step("scores", GraphLayer(network, None), (len(steps) - 1,)))
    return steps


def _describe_graph(network: GraphNetwork) -> list[dict[str, Any]]:
    size = network.image_size
    fields: dict[int, ReceptiveField | None] = {-1: ReceptiveField(1, 1, 0.5)}
    shapes: dict[int, list[int]] = {-1: [network.in_channels, size, size]}
    result: list[dict[str, Any]] = []
    for index, step in enumerate(_graph_steps(network)):
        entry: dict[str, Any] = {"name": step.name, "kernel": "", "inputs": list(step.inputs)}
        assert isinstance(step.layer, GraphLayer)
        if step.layer.name is None:
            shapes[index], fields[index] = [network.num_classes], ReceptiveField(size, size, size / 2)
            score = {"logistic": "log of logistic", "probability": "log"}.get(network.score_output.kind, "ident")
            entry |= {"kind": "scores", "parameters": 0}
            if len(shapes[index - 1]) == 1:
                entry |= _neuron(score, [])
            else:
                entry["op"] = "flatten" if score == "ident" else "block"
        else:
            layer = network.definition.layers[step.layer.name]
            shapes[index] = [layer.channels, layer.side, layer.side] if layer.side else [layer.outputs]
            known = [_graph_field(layer, i, fields[source], size) for i, source in enumerate(step.inputs)]
            fields[index] = None if None in known else max(field for field in known if field)
            tower = f", tower {'ab'[layer.gpu]}" if network.towers == 2 and layer.gpu in (0, 1) else ""
            entry |= {"kind": layer_kind(layer) + tower, "parameters": layer.parameters}
            entry |= _graph_operation(network, layer, [shapes[source] for source in step.inputs])
        field = fields[index]
        result.append(entry | {"output": shapes[index], "field": list(field) if field else None})
    return result


def _graph_field(layer: Layer, index: int, field: ReceptiveField | None, size: int) -> ReceptiveField | None:
    """The receptive field of a layer by one of its inputs."""
    options = layer.options
    if layer.type in ("fc", "treefc", "softmax"):
        return ReceptiveField(size, size, size / 2)
    if field is None:
        return None
    if layer.type == "pool":
        return field_after_window(field, options["sizeX"], options["stride"], -options["start"])
    if layer.type in ("conv", "local"):
        return field_after_window(field, *(options[key][index] for key in ("filterSize", "stride", "padding")))
    if layer.type == "rnorm":
        return field._replace(size=field.size + (options["size"] - 1) * field.stride)
    return field if layer.type in ("neuron", "hs", "cmrnorm", "eltsum", "eltmax", "concat") else None


def _neuron(name: str, numbers: Sequence[float]) -> dict[str, Any]:
    return {"op": "neuron", "neuron": name, "numbers": list(numbers)}


def _graph_operation(network: GraphNetwork, layer: Layer, shapes: Sequence[list[int]]) -> dict[str, Any]:
    """What a layer of a layer file computes from inputs of ``shapes``, for ``page.js``."""
    options, module = layer.options, network.module_of(layer.name)
    alike = all(shape == shapes[0] for shape in shapes)
    parts = [_part(network, layer, i) for i in range(len(layer.matrices))]
    match layer.type:
        case "fc":
            return {"op": "linear", "parts": parts}
        case "conv" | "local" if all(
            shape == [channels, side, side]
            for shape, channels, side in zip(shapes, options["channels"], options["sides"], strict=True)
        ):
            op = "convolution" if layer.type == "conv" else "local"
            return {"op": op, "parts": parts, "unshared": len(layer.biases) > 1}
        case "pool" if isinstance(module, Pool) and shapes[0] == [module.channels, module.side, module.side]:
            names = {"max": "max", "avg": "average", "maxabs": "maxabs"}
            sizes = {"size": options["sizeX"], "stride": options["stride"], "padding": -options["start"]}
            return {"op": names.get(module.kind, "block")} | sizes
        case "cmrnorm" | "rnorm" if isinstance(module, Wrapped) and shapes[0] == [module.channels, *[module.side] * 2]:
            return _operation(module.module)
        case "neuron":
            return _neuron(options["neuron"], options["numbers"])
        case "hs":
            return _neuron("linear", [options["keep"], 0.0])
        case "eltsum" if alike:
            return {"op": "weighted", "coefficients": options["coeffs"]}
        case "eltmax" if alike:
            return {"op": "largest"}
        case "concat" if layer.side or all(len(shape) == 1 for shape in shapes):
            return {"op": "concat"}
    return {"op": "block"}


def _part(network: GraphNetwork, layer: Layer, index: int) -> dict[str, Any]:
    """The weights that one input of a layer is multiplied with: their tensor, and the geometry of the windows."""
    options = layer.options
    owner, j = layer.matrices[index].source or (layer.name, index)
    weight = f"{network.keys[owner]}.{weight_name(network.definition.layers[owner], j)}"
    if layer.type in ("fc", "treefc"):
        return {"weight": weight, "groups": 1}
    size, stride, padding, groups = (options[key][index] for key in ("filterSize", "stride", "padding", "groups"))
    part = {"weight": weight, "size": size, "stride": stride, "padding": padding, "groups": groups}
    connections = getattr(network.module_of(owner), f"connections{j}", None)
    return part if connections is None else part | {"channels": connections.tolist()}
