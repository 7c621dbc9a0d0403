"""A layer file as a table: one row per layer of the file, in its order."""

from typing import Any

from alexnet.cuda_convnet.definition import Definition, Layer
from alexnet.cuda_convnet.parameters import LayerParameters, Parameters, Rates
from alexnet.models.summary import Table


def render(definition: Definition, parameters: Parameters | None) -> Table:
    """As text; a parameter file adds a column."""
    columns = ["layer", "type", "inputs", "output", "size", "parameters", "gpu", "line"]
    rows = [_cells(layer, definition) for layer in definition.layers.values()]
    totals = ["total", "", "", "", "", f"{definition.parameters:,}", "", ""]
    if parameters is not None:
        columns.append("learning and constants")
        learning = [_learning(layer, parameters.layers.get(layer.name)) for layer in definition.layers.values()]
        rows = [[*row, cell] for row, cell in zip(rows, learning, strict=True)]
        totals.append("")
    data = definition.data
    title = f"{definition.file}, images {data.channels}·{data.image_size}·{data.image_size}"
    return Table(title, tuple(columns), [tuple(row) for row in rows], tuple(totals))


def as_dict(definition: Definition, parameters: Parameters | None) -> dict[str, Any]:
    """As numbers, strings and lists, for JSON."""
    layers = [
        {
            "layer": layer.name,
            "type": layer.type,
            "inputs": list(layer.inputs),
            "outputs": layer.outputs,
            "channels": layer.channels,
            "side": layer.side,
            "formula": layer.formula,
            "parameters": layer.parameters,
            "gpu": layer.gpu,
            "line": layer.line,
            "learning": _learning(layer, parameters.layers.get(layer.name)) if parameters else None,
        }
        for layer in definition.layers.values()
    ]
    notes = [*definition.notes, *(parameters.notes if parameters else ())]
    return {"file": definition.file, "parameters": definition.parameters, "layers": layers, "notes": notes}


def _cells(layer: Layer, definition: Definition) -> list[str]:
    size = f"{layer.channels}·{layer.side}·{layer.side}" if layer.side else f"{layer.outputs:,}"
    tower = "" if layer.gpu < 0 else str(layer.gpu)
    number = f"{layer.parameters:,}" if layer.parameters else ""
    shared = [f"= {m.source[0]}[{m.source[1]}]" for m in layer.matrices if m.source]
    numbers = " ".join(filter(None, [number, *shared]))
    inputs, output = ", ".join(layer.inputs), "" if layer.is_cost else size
    return [layer.name, kind(layer), inputs, output, layer.formula, numbers, tower, str(layer.line)]


def kind(layer: Layer) -> str:
    """The type with its main options: ``conv 5×5, stride 2``, ``pool max 3×3``, ``neuron relu``."""
    options = layer.options
    if layer.type in ("conv", "local"):
        kernels = " and ".join(dict.fromkeys(f"{k}×{k}" for k in options["filterSize"]))
        strides = " and ".join(dict.fromkeys(map(str, options["stride"])))
        groups = max(options["groups"])
        text = f"{layer.type} {kernels}" + (f", stride {strides}" if strides != "1" else "")
        return text + (f", {groups} {'random ' * any(options['randSparse'])}groups" if groups > 1 else "")
    if layer.type == "pool":
        return f"pool {options['pool']} {options['sizeX']}×{options['sizeX']}, stride {options['stride']}"
    if layer.type == "neuron":
        numbers = ",".join(f"{number:g}" for number in options["numbers"])
        return f"neuron {options['neuron']}" + (f"[{numbers}]" if numbers else "")
    for key, text_value in (("size", "{}"), ("keep", "{}"), ("filterSize", "{0}×{0}"), ("stride", "{}")):
        if key in options:
            return f"{layer.type} {text_value.format(options[key])}"
    return layer.type


def _learning(layer: Layer, parameters: LayerParameters | None) -> str:
    if parameters is None:
        return ""
    if parameters.bias is not None:
        weights = " | ".join(dict.fromkeys(map(_rates, parameters.weights)))
        return f"{weights}; biases {_rates(parameters.bias)}"
    if layer.is_cost:
        sizes = (f", topk {parameters.topk}" if parameters.topk > 1 else "", f", setSize {parameters.set_size}")
        return f"coeff {parameters.coeff:g}" + sizes[layer.type == "cost.msm"]
    if layer.type == "hs":
        return "enabled" if parameters.enable else "not enabled"
    if layer.type == "pool":
        return "drawn" if not parameters.do_max else "max throughout"
    return f"scale {parameters.scale:g}, pow {parameters.pow:g}" + (
        f", minDiv {parameters.min_div:g}" if parameters.min_div != 1 else ""
    )


def _rates(rates: Rates) -> str:
    text = f"{rates.base:g}, momentum {rates.momentum:g}" if rates.base else "frozen"
    for name, value in (("decay", rates.decay), ("wball", rates.ball), ("wcNormMax", rates.norm_max)):
        text += f", {name} {value:g}" if value else ""
    schedule = rates.schedule
    return text if schedule.kind == "default" else f"{text}, {schedule.kind} to 1/{schedule.target:g}"
