"""A table of a network, one row a layer, worked out from the layers themselves without running them."""

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import nn

from alexnet.errors import ModelError
from alexnet.models.alexnet_variants import AdaptiveAveragePool
from alexnet.models.comparisons import TowerLinear
from alexnet.models.layers import (
    AveragePool,
    Convolution,
    Dropout,
    Flatten,
    LocallyConnected,
    LocalResponseNorm,
    MaxPool,
    SpatialNorm,
)
from alexnet.models.lenet import ScaledTanh, Subsampling, TableConvolution
from alexnet.models.network import AuxiliaryHead, Network

KINDS: dict[type[nn.Module], str] = {
    AdaptiveAveragePool: "adaptive average pool",
    AveragePool: "average pool",
    Convolution: "convolution",
    Dropout: "dropout",
    Flatten: "flatten",
    LocallyConnected: "locally connected",
    MaxPool: "max pool",
    LocalResponseNorm: "response norm",
    ScaledTanh: "scaled tanh",
    SpatialNorm: "spatial norm",
    Subsampling: "subsampling",
    TableConvolution: "convolution",
    TowerLinear: "fully connected",
    nn.Linear: "fully connected",
    nn.ReLU: "ReLU",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}
FOREIGN = {  # PyTorch's own, in networks that are not of 2012
    AuxiliaryHead: "auxiliary classifier",
    nn.AdaptiveAvgPool2d: "adaptive average pool",
    nn.BatchNorm2d: "batch norm",
    nn.Conv2d: "convolution",
    nn.Flatten: "flatten",
    nn.MaxPool2d: "max pool",
}


class Row(NamedTuple):
    """One layer, for one image."""

    layer: str
    kind: str
    output: tuple[int, ...]  # (C, H, W) or (D,)
    formula: str  # how the output size comes about; empty where it is the input's
    kernel: str  # what the layer computes with
    parameters: int  # weights and biases
    multiply_adds: int  # of the forward pass, padding included; biases, norms, pools and ReLUs are not counted
    activation_bytes: int  # its output as float32; 0 where it overwrites its input
    receptive_field: int  # size of the square of input pixels that one output depends on; 0: not known


class ReceptiveField(NamedTuple):
    """The square of input pixels that an output of a layer depends on, if it lies within the image.

    The square of the output at row or column i is centered at ``start + i · stride``, in pixels from the left or upper
    edge of the image.
    """

    size: int
    stride: int
    start: float


class Table(NamedTuple):
    """A summary as text, ready to be drawn: every row has one cell a column."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    totals: tuple[str, ...]


class Summary(NamedTuple):
    """All rows of a network, and their sums."""

    name: str
    input: tuple[int, int, int]  # (C, H, W)
    rows: list[Row]

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        return sum(row.multiply_adds for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        return sum(row.activation_bytes for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Everything as numbers, strings and lists, for JSON."""
        totals = {key: getattr(self, key) for key in ("parameters", "multiply_adds", "activation_bytes")}
        rows = [row._asdict() | {"output": list(row.output)} for row in self.rows]
        return {"name": self.name, "input": list(self.input)} | totals | {"layers": rows}

    def render(self) -> Table:
        """Everything as text for people."""
        columns = (
            "layer",
            "kind",
            "output",
            "size",
            "kernel",
            "receptive field",
            "parameters",
            "multiply-adds",
            "memory",
        )
        totals = ("total", "", "", "", "", "", *_numbers(self.parameters, self.multiply_adds, self.activation_bytes))
        return Table(f"{self.name}, input {_times(self.input)}", columns, [_cells(row) for row in self.rows], totals)


def summarize(network: Network) -> Summary:
    """The table of ``network`` at its own image size. Raises :class:`ModelError` on a layer it does not know."""
    shape: tuple[int, ...] = (network.in_channels, network.image_size, network.image_size)
    rows, text, fields = [], _times(shape), receptive_fields(network)
    for name, layer in network.named_children():
        field = fields[name]
        row = describe_layer(name, layer, shape, network.towers, text)
        rows.append(row._replace(receptive_field=min(field.size, network.image_size) if field else 0))
        shape = rows[-1].output
        # A flattened map keeps its three factors until the next layer: 256·6·6 → 4096.
        text = text if isinstance(layer, Flatten) else _times(shape)
    return Summary(network.name, (network.in_channels, network.image_size, network.image_size), rows)


def receptive_fields(network: Network) -> dict[str, ReceptiveField | None]:
    """Layer name -> the receptive field of its outputs; None after a layer of several layers.

    A layer of k×k windows with stride s after a layer of receptive field r and stride t has r + (k − 1)·t and s·t.
    Layers after :class:`Flatten` depend on the whole image.
    """
    field: ReceptiveField | None = ReceptiveField(1, 1, 0.5)
    fields: dict[str, ReceptiveField | None] = {}
    for name, layer in network.named_children():
        field = fields[name] = field_after(field, layer, network.image_size)
    return fields


def field_after(field: ReceptiveField | None, layer: nn.Module, image_size: int) -> ReceptiveField | None:
    """The receptive field after ``layer``, whose inputs have the receptive field ``field``; None if it is not known."""
    window = geometry(layer)
    if isinstance(layer, Flatten | nn.Flatten | AdaptiveAveragePool | nn.AdaptiveAvgPool2d):
        return ReceptiveField(image_size, image_size, image_size / 2)
    if field is not None and window is not None:
        return field_after_window(field, *window)
    if isinstance(layer, SpatialNorm) and field is not None:
        return field._replace(size=field.size + (layer.size - 1) * field.stride)
    if next(layer.children(), None) is not None and not isinstance(layer, AuxiliaryHead):
        return None
    return field


def field_after_window(field: ReceptiveField, size: int, stride: int, padding: int) -> ReceptiveField:
    """The receptive field after windows of ``size`` pixels."""
    start = field.start + ((size - 1) / 2 - padding) * field.stride
    return ReceptiveField(field.size + (size - 1) * field.stride, stride * field.stride, start)


def geometry(layer: nn.Module) -> tuple[int, int, int] | None:
    """Size, stride and padding of a layer's windows; None for a layer without windows."""
    window = getattr(layer, "window", None)
    if window is not None:
        return window.kernel, window.stride, window.padding
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return None
    k, s, p = (
        value[0] if isinstance(value, tuple) else int(value)
        for value in (layer.kernel_size, layer.stride, layer.padding)
    )
    return k, s, p


def work(network: nn.Module) -> int:
    """Multiply-adds for an image; 0 where nothing is known of them."""
    try:
        return summarize(network).multiply_adds if isinstance(network, Network) else 0
    except ModelError:
        return 0


def describe_layer(name: str, layer: nn.Module, shape: tuple[int, ...], towers: int, items: str = "") -> Row:
    """The row of one layer.

    Args:
        name: Its name.
        layer: The layer.
        shape: Shape of its input for one image.
        towers: Towers of its network.
        items: ``shape`` as text, for the formula.

    Raises:
        ModelError: The layer is of an unknown kind.
    """
    if type(layer) in FOREIGN or (type(layer) not in KINDS and next(layer.children(), None) is not None):
        return _measured(name, layer, shape)
    if isinstance(layer, Dropout) or type(layer) is nn.Identity:
        return Row(name, "dropout", shape, "", layer.extra_repr(), 0, 0, 4 * math.prod(shape), 0)
    if type(layer) not in KINDS:
        raise ModelError(f"layer {name!r} is a {type(layer).__name__}", "of a kind that alexnet.models.summary knows")
    output = _output(layer, shape)
    learned = {key: parameter.numel() for key, parameter in layer.named_parameters()}
    # A weight is used once for each pixel of the output map; a locally connected one belongs to a single pixel.
    uses = 1 if isinstance(layer, LocallyConnected) else math.prod(output[1:])
    multiply_adds = learned.get("weight", 0) * uses
    memory = 0 if getattr(layer, "inplace", False) else 4 * math.prod(output)
    formula = _formula(layer, shape, items, output)
    return Row(
        name,
        KINDS[type(layer)],
        output,
        formula,
        _kernel(layer, shape, towers),
        sum(learned.values()),
        multiply_adds,
        memory,
        0,
    )


def _measured(name: str, layer: nn.Module, shape: tuple[int, ...]) -> Row:
    """A layer that is several, or PyTorch's own: its sizes by one pass of shapes through a copy without numbers."""
    counted = 0

    def count(module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal counted
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Conv2d | nn.Linear) and weight is not None:
            counted += weight.numel() * (output[0].numel() // len(weight))

    draft = copy.deepcopy(layer).to("meta").eval()  # evaluating: what training alone needs is not counted
    for module in draft.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        output = tuple(draft(torch.empty(1, *shape, device="meta")).shape[1:])
    kind = FOREIGN.get(type(layer)) or _words(type(layer).__name__)
    parameters = sum(p.numel() for p in layer.parameters())
    memory = 0 if isinstance(layer, AuxiliaryHead) else 4 * math.prod(output)
    return Row(name, kind, output, "", "", parameters, counted, memory, 0)


def _words(name: str) -> str:
    """``BasicBlock`` -> ``basic block``."""
    return "".join(f" {c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))


def _output(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    window = getattr(layer, "window", None)
    if window is not None:
        return (getattr(layer, "out_channels", shape[0]), *(window.out_size(size) for size in shape[1:]))
    if isinstance(layer, AdaptiveAveragePool):
        return (shape[0], layer.side, layer.side)
    if isinstance(layer, Flatten):
        return (shape[0] * layer.side**2,)
    return (layer.out_features,) if isinstance(layer, nn.Linear) else shape


def _formula(layer: nn.Module, shape: tuple[int, ...], items: str, output: tuple[int, ...]) -> str:
    window = getattr(layer, "window", None)
    if window is not None:
        return str(window.formula(shape[1]))
    if isinstance(layer, AdaptiveAveragePool):
        return f"{output[1]} from any size"
    if isinstance(layer, Flatten):
        return f"{items} = {output[0]}"
    return f"{items} → {output[0]}" if isinstance(layer, nn.Linear) else ""


def _kernel(layer: nn.Module, shape: tuple[int, ...], towers: int) -> str:
    if isinstance(layer, AdaptiveAveragePool):  # PyTorch's rule for the pixels that the i-th mean covers
        return f"⌊{shape[1]}·i / {layer.side}⌋ to ⌈{shape[1]}·(i + 1) / {layer.side}⌉"
    if isinstance(layer, TowerLinear):
        return f"{layer.towers} towers, {layer.in_features} → {layer.out_features // layer.towers} each"
    window = getattr(layer, "window", None)
    if window is None:
        return layer.extra_repr() if isinstance(layer, LocalResponseNorm | SpatialNorm | Dropout) else ""
    text = f"{window.kernel}×{window.kernel}"
    if isinstance(layer, Convolution):
        text = f"{layer.out_channels} of {text}×{layer.in_channels // layer.groups}"
    elif isinstance(layer, LocallyConnected):
        text = f"{layer.out_channels} of {text}×{layer.in_channels} a pixel"
    elif isinstance(layer, TableConvolution):
        text = f"{len(layer.weight)} of {text}, {layer.out_channels} maps by a table"
    text += f", stride {window.stride}" + (f", padding {window.padding}" if window.padding else "")
    if isinstance(layer, Convolution) and layer.groups > 1:
        text += f", {layer.groups} {'towers' if layer.groups == towers else 'groups'}"
    return text


def _cells(row: Row) -> tuple[str, ...]:
    numbers = _numbers(row.parameters, row.multiply_adds, row.activation_bytes)
    sees = f"{row.receptive_field}×{row.receptive_field}" if row.receptive_field else ""
    return (row.layer, row.kind, _times(row.output), row.formula, row.kernel, sees, *numbers)


def _numbers(parameters: int, multiply_adds: int, memory: int) -> tuple[str, str, str]:
    return _count(parameters), _count(multiply_adds), f"{memory / 1024:,.1f} KiB" if memory else ""


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _times(shape: tuple[int, ...]) -> str:
    return "·".join(map(str, shape))
