"""A layer file as a table: one row a layer of the file, in its order."""

from typing import Any

from alexnet.cuda_convnet.definition import Definition, Layer
from alexnet.cuda_convnet.parameters import LayerParameters, Parameters, Rates
from alexnet.models.summary import Table


def render(definition: Definition, parameters: Parameters | None) -> Table:
    """As text; with a parameter file, with the column of what it says."""
    columns = ["layer", "type", "inputs", "output", "size", "parameters", "gpu", "line"]
    rows = [_cells(layer, definition) for layer in definition.layers.values()]
    totals = ["total", "", "", "", "", f"{definition.parameters:,}", "", ""]
    if parameters is not None:
        columns.append("learning and constants")
        results = [parameters.layers.get(name) for name in definition.layers]
        rows = [
            [*row, _learning(layer, of)]
            for row, layer, of in zip(rows, definition.layers.values(), results, strict=True)
        ]
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
    """The type with what it does: ``conv 5×5, stride 2``, ``pool max 3×3``, ``neuron relu``."""
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


def _learning(layer: Layer, results: LayerParameters | None) -> str:
    if results is None:
        return ""
    if results.bias is not None:
        weights = " | ".join(dict.fromkeys(map(_rates, results.weights)))
        return f"{weights}; biases {_rates(results.bias)}"
    if layer.is_cost:
        sizes = (f", topk {results.topk}" if results.topk > 1 else "", f", setSize {results.set_size}")
        return f"coeff {results.coeff:g}" + sizes[layer.type == "cost.msm"]
    if layer.type == "hs":
        return "enabled" if results.enable else "not enabled"
    if layer.type == "pool":
        return "drawn" if not results.do_max else "max throughout"
    return f"scale {results.scale:g}, pow {results.pow:g}" + (
        f", minDiv {results.min_div:g}" if results.min_div != 1 else ""
    )


def _rates(rates: Rates) -> str:
    text = f"{rates.base:g}, momentum {rates.momentum:g}" if rates.base else "frozen"
    for name, value in (("decay", rates.decay), ("wball", rates.ball), ("wcNormMax", rates.norm_max)):
        text += f", {name} {value:g}" if value else ""
    schedule = rates.schedule
    return text if schedule.kind == "default" else f"{text}, {schedule.kind} to 1/{schedule.target:g}"
