"""The layers that the web page shows: a network as elementary steps, and what each of them computes.

A residual block or an inception module becomes its convolutions, batch norms, ReLUs, sums and concatenations, so that
the page can show the arithmetic of each. ``page.js`` does the same arithmetic from what :func:`describe` gives.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet.models.alexnet_variants import AdaptiveAveragePool
from alexnet.models.comparisons import Block, TowerLinear
from alexnet.models.layers import AveragePool, LocallyConnected, LocalResponseNorm, MaxPool, SpatialNorm
from alexnet.models.lenet import ScaledTanh, Subsampling, TableConvolution
from alexnet.models.network import Network
from alexnet.models.summary import ReceptiveField, Row, describe_layer, field_after, geometry


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
    """The operations of a sequence of layers, in the order of computation."""
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
