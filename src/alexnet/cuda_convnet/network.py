"""A layer file as a network: a graph of modules, images to scores, the costs of its file, and a table of its layers."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.cuda_convnet import image_layers, modules
from alexnet.cuda_convnet import modules as costs
from alexnet.cuda_convnet.grammar import LEARNED, Definition, Layer
from alexnet.cuda_convnet.image_layers import RandomScale
from alexnet.cuda_convnet.modules import Learned, Neuron, Pool, ScaleGradient, is_recorded, weight_name
from alexnet.cuda_convnet.parameters import NORMS, LayerParameters, Parameters, Rates
from alexnet.errors import ModelError
from alexnet.models.layers import Dropout
from alexnet.models.network import Network
from alexnet.models.summary import Table


def build_module(layer: Layer, definition: Definition, parameters: LayerParameters) -> nn.Module:
    """The module of a layer that is neither data nor cost."""
    kind, options = layer.type, layer.options
    if kind in LEARNED:
        return modules.KINDS[kind](layer)
    if kind in NORMS:
        return image_layers.norm(layer, parameters)
    if kind == "hs":
        return modules.UnscaledDropout(options["keep"], parameters.enable)
    if kind == "neuron":
        return modules.Neuron(options["neuron"], options["numbers"])
    if kind == "concat":
        return modules.Concatenation(bool(layer.side))
    if kind in ("eltsum", "eltmax"):
        return modules.Sum(options["coeffs"]) if kind == "eltsum" else modules.Maximum()
    return modules.Softmax() if kind == "softmax" else _over_feature_maps(layer, definition, parameters)


def _over_feature_maps(layer: Layer, definition: Definition, parameters: LayerParameters) -> nn.Module:
    """A layer over square feature maps; their side follows from the input's outputs and this layer's channels."""
    kind, options = layer.type, layer.options
    channels = options.get("channels", 3)
    side = round((definition.layers[layer.inputs[0]].outputs / channels) ** 0.5)
    if kind == "pool":
        return modules.Pool(layer, side, parameters.do_max)
    if kind == "blur":
        return image_layers.Blur(channels, side, options["filterSize"], options["stdev"])
    if kind == "nailbed":
        return image_layers.NailBed(channels, side, options["start"], options["stride"])
    if kind == "href":
        return image_layers.Mirror(channels, side)
    if kind == "resize":
        return image_layers.Resize(channels, side, options["scale"], layer.side)
    if kind == "rscale":
        return image_layers.RandomScale(channels, side, options["maxScale"], layer.side)
    return image_layers.Yuv(3, side) if kind == "rgb2yuv" else image_layers.Lab(3, side, options["center"])


def call_functions(network: "GraphNetwork", layer: Layer, module: modules.Learned) -> None:
    """Overwrite initial weights with those of the file's initWFunc, initBFunc and initCFunc.

    The functions come from the caller (``network.functions``) and are called as in the 2012 code. Nothing is imported
    by name: a function that the caller did not pass raises :class:`ModelError`.
    """
    options = layer.options
    for i, matrix in enumerate(layer.matrices):
        if "initCFunc" in options and hasattr(module, f"connections{i}"):
            groups, channels, each = (options[key][i] for key in ("groups", "channels", "filterChannels"))
            buffer = module.get_buffer(f"connections{i}")
            result = _call(network, layer, "initCFunc", i, (groups, channels, each))
            numbers = torch.as_tensor(result).flatten().long()
            if numbers.shape != buffer.shape or int(numbers.min()) < 0 or int(numbers.max()) >= channels:
                raise ModelError(
                    f"layer {layer.name!r}: initCFunc gave {list(numbers.shape)} channels",
                    f"{len(buffer)} from 0 to {channels - 1}",
                )
            buffer.copy_(numbers)
        if "initWFunc" in options:
            values = _array(_call(network, layer, "initWFunc", i, (matrix.rows, matrix.columns)))
            _check_shape(layer, "initWFunc", values, (matrix.rows, matrix.columns))
            network.weight_of(layer.name, i).copy_(module.from_file(i, values))
    if "initBFunc" in options:
        total = module.bias.numel()
        shape = (1, total) if layer.type in ("fc", "treefc") else (total, 1)
        name, arguments = options["initBFunc"]
        values = _array(_function(network, layer, name)(layer.name, shape, params=arguments))
        _check_shape(layer, "initBFunc", values, shape)
        module.bias.copy_(values.reshape(module.bias.shape))


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


def _check_shape(layer: Layer, key: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(values.shape) != shape:
        raise ModelError(f"layer {layer.name!r}: {key} gave {list(values.shape)} numbers", f"of shape {list(shape)}")


Function = Callable[..., object]  # for initWFunc, initBFunc and initCFunc, passed by the caller
Matrix = tuple[str, int]  # a layer's name, and the index of one of its inputs


@dataclass(frozen=True)
class Files:
    """A layer file and its parameter file as text, with the network's name and the file names for error messages."""

    name: str
    layers: str
    parameters: str
    layers_file: str = "layers.cfg"
    parameters_file: str = "layer-params.cfg"


@dataclass(frozen=True)
class ScoreOutput:
    """The layer whose output gives the class scores, and what its values are."""

    kind: str  # "softmax": inputs of a softmax; "logistic": inputs of a logistic neuron; "probability"; "score"
    layer: str


@dataclass
class _Pass:
    """One forward pass through the graph: outputs by layer, and the labels for the costs."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None


class GraphNetwork(Network):
    """Images [N, C, S, S] -> scores [N, K], whose softmax is the class probabilities, through the file's graph.

    Each layer of the file is a child module with the layer's name (dots become middle dots). Weights have PyTorch's
    layout, see :mod:`alexnet.cuda_convnet.modules`.

    Attributes:
        definition: The checked layer file.
        parameters_file: The checked parameter file.
        placement: Layer -> its tower (``gpu`` in the file), without effect on the numbers.
        rates: (layer, input) -> factor on the gradient that one user of a shared matrix adds; 1 unless a training rule
            sets it.
        functions: Python functions that initWFunc, initBFunc and initCFunc of the file may name. Nothing is ever
            imported by name.
    """

    def __init__(
        self, definition: Definition, parameters: Parameters, files: Files, functions: Mapping[str, Function] | None
    ) -> None:
        score_output = _score_output(definition)
        children = {
            layer.name: build_module(layer, definition, parameters.layers.get(layer.name, LayerParameters()))
            for layer in definition.layers.values()
            if layer.type != "data" and not layer.is_cost
        }
        keys = _keys(list(children))
        super().__init__(
            files.name,
            [(keys[name], module) for name, module in children.items()],
            num_classes=definition.layers[score_output.layer].outputs,
            in_channels=definition.data.channels,
            image_size=definition.data.image_size,
            features="+".join(definition.layers[score_output.layer].inputs),
            initial={},
            towers=len({layer.gpu for layer in definition.layers.values() if layer.type in LEARNED} or {0}),
        )
        self.definition, self.parameters_file, self.files = definition, parameters, files
        self.score_output = score_output
        self.functions = dict(functions or {})
        self.keys = keys
        self.placement = {layer.name: layer.gpu for layer in definition.layers.values()}
        self.rates: dict[Matrix, float] = {}

    def module_of(self, layer: str) -> nn.Module:
        """The module of a layer by its name in the file."""
        return self.get_submodule(self.keys[layer])

    def weight_of(self, layer: str, index: int = 0) -> nn.Parameter:
        """The weights of one input of a layer: its own or shared ones."""
        name, j = self.definition.layers[layer].matrices[index].source or (layer, index)
        weight: nn.Parameter = getattr(self.module_of(name), weight_name(self.definition.layers[name], j))
        return weight

    def forward(self, input: Tensor) -> Tensor:
        """Scores [N, K] of images [N, C, S, S], which are pixel values minus the mean."""
        if isinstance(input, torch.fx.Proxy):
            raise ModelError(f"torch.fx cannot trace {self.name}", "", "use torch.jit.trace or torch.export")
        run = _Pass()
        return self.scores(self._value(self.score_output.layer, input, run))

    def costs(self, input: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [N, K], and the file's costs times their ``coeff``, summed and divided by N: a scalar.

        ``labels`` int64 [N]. Costs with ``coeff`` 0 are not computed.
        """
        run = _Pass(labels=labels)
        total = input.new_zeros(())
        for cost in self.definition.costs:
            coefficient = self.parameters_file.layers[cost.name].coeff
            if coefficient:
                total = total + coefficient * self._cost(cost, input, run)
        return self.scores(self._value(self.score_output.layer, input, run)), total / len(labels)

    @torch.no_grad()
    def report(self, input: Tensor, labels: Tensor) -> dict[str, list[float]]:
        """Every cost by its name, divided by N.

        ``cost.logreg`` is followed by its top-1 and top-``topk`` errors, ``cost.msm`` by its top-1 and top-``setSize``.
        """
        run, report = _Pass(labels=labels), {}
        for cost in self.definition.costs:
            values = [float(self._cost(cost, input, run))]
            if cost.type in ("cost.logreg", "cost.msm"):
                scores, parameters = self._value(cost.inputs[1], input, run), self.parameters_file.layers[cost.name]
                most = parameters.topk if cost.type == "cost.logreg" else parameters.set_size
                values += [costs.errors(labels, scores.flatten(1), k) for k in (1, most)]
            report[cost.name] = [value / len(labels) for value in values]
        return report

    def outputs(self, input: Tensor) -> "OrderedDict[str, Tensor]":
        """The output of every layer that is neither data nor cost, in the file's order, by the layer's name."""
        run = _Pass()
        needs_labels: set[str] = set()  # layers that cannot be computed without labels
        for layer in self.definition.layers.values():
            labels = layer.type == "data" and layer.options["dataIdx"] != 0
            if labels or not needs_labels.isdisjoint(layer.inputs):
                needs_labels.add(layer.name)
        return OrderedDict((name, self._value(name, input, run)) for name in self.keys if name not in needs_labels)

    def forward_to(self, input: Tensor, layer: str) -> Tensor:
        """Compute the output of a layer, and only the layers it needs; ``a+b`` concatenates the features of a and b."""
        names = [layer] if layer in self.keys else layer.split("+")
        for name in names:
            if name not in self.definition.layers or self.definition.layers[name].is_cost:
                raise ModelError(f"layer {name!r} is not in {self.name}", f"one of {', '.join(self.keys)}")
        run = _Pass()
        parts = [self._value(name, input, run) for name in names]
        return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], 1)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> "GraphNetwork":
        """Draw all weights with the file's initializers, in its order of layers; returns itself."""
        for layer in self.definition.layers.values():
            module = self.module_of(layer.name) if layer.type in LEARNED else None
            if isinstance(module, Learned):
                module.draw(generator)
                call_functions(self, layer, module)
        return self

    def set_generator(self, generator: torch.Generator | None) -> None:
        """Make dropout, noisy neurons, random pools and random scaling draw from ``generator`` in training."""
        for module in self.modules():
            if isinstance(module, Dropout | Neuron | Pool | RandomScale):
                module.generator = generator

    def first_filters(self) -> Tensor:
        """First-layer filters [K, C, H, W], tower by tower. Raises :class:`ModelError` if no layer reads the images."""
        filters = []
        for layer in self.definition.layers.values():
            values = self.definition.layers[layer.inputs[0]] if layer.inputs else layer
            if layer.type in LEARNED and not values.learns and values.side:
                weight = self.weight_of(layer.name).detach()
                if layer.type == "local":  # the filters at the middle position
                    kernel = layer.options["filterSize"][0]
                    weight = weight[len(weight) // 2].T.reshape(weight.shape[2], -1, kernel, kernel)
                elif weight.dim() == 2:
                    weight = weight.view(-1, values.channels, values.side, values.side)
                filters.append(weight)
        if not filters:
            raise ModelError(f"{self.name} has no layer with weights over images", "", "there are no filters to draw")
        return torch.cat([weight for weight in filters if weight.shape == filters[0].shape])

    def _value(self, name: str, input: Tensor, run: _Pass) -> Tensor:
        """The output of a layer; missing inputs are computed first."""
        todo = [name]
        while todo:
            layer = self.definition.layers[todo[-1]]
            missing = [source for source in layer.inputs if source not in run.outputs]
            if layer.name in run.outputs or not missing:
                todo.pop()
                if layer.name not in run.outputs:
                    run.outputs[layer.name] = self._compute(layer, input, run)
            else:
                todo += missing
        return run.outputs[name]

    def _compute(self, layer: Layer, input: Tensor, run: _Pass) -> Tensor:
        if layer.type == "data":
            return self._data(layer, input, run)
        return self.compute(layer.name, *(run.outputs[name] for name in layer.inputs))

    def compute(self, name: str, *inputs: Tensor) -> Tensor:
        """The output of one layer that is neither data nor cost, from those of the layers that it reads."""
        layer, module = self.definition.layers[name], self.module_of(name)
        if not isinstance(module, Learned):
            out: Tensor = module(*inputs)
            return out
        weights, lists = [], []
        for i in range(len(layer.inputs)):
            owner, j = layer.matrices[i].source or (name, i)
            weight: Tensor = self.weight_of(name, i)
            factor = self.rates.get((name, i), 1.0)
            weights.append(weight if factor == 1.0 or is_recorded() else ScaleGradient.apply(weight, factor))
            lists.append(getattr(self.module_of(owner), f"connections{j}", None))
        return module(inputs, weights, lists)  # type: ignore[no-any-return]

    def _data(self, layer: Layer, input: Tensor, run: _Pass) -> Tensor:
        index = layer.options["dataIdx"]
        if index == 0:
            return input
        if run.labels is None:
            raise ModelError(f"layer {layer.name!r} holds labels", "a layer that images alone reach")
        if index == 1:
            return run.labels[:, None].to(input.dtype)  # [N, 1]
        return F.one_hot(run.labels, layer.outputs).to(input.dtype)  # [N, K]

    def _cost(self, cost: Layer, input: Tensor, run: _Pass) -> Tensor:
        assert run.labels is not None
        if cost.type == "cost.sum2":
            return costs.sum2(self._value(cost.inputs[0], input, run))
        target, other = (self._value(name, input, run).flatten(1) for name in cost.inputs)
        if cost.type == "cost.msm":
            return costs.msm(target[:, 0].long(), other, self.parameters_file.layers[cost.name].set_size)
        if cost.type in ("cost.logreg", "cost.crossent"):
            scores = run.outputs[self.definition.layers[cost.inputs[1]].inputs[0]].flatten(1)
            labels = target[:, 0].long()
            return costs.logreg(labels, scores) if cost.type == "cost.logreg" else costs.crossent(target, scores)
        if cost.type == "cost.crossent2":
            logistic = logistic_for(self.definition, cost)
            values = run.outputs[self.definition.layers[cost.inputs[1]].inputs[0]].flatten(1) if logistic else other
            return costs.crossent2(target, values, logistic)
        return costs.rflickr(target, other) if cost.type == "cost.rflickr" else costs.gsum2(target, other)

    def scores(self, value: Tensor) -> Tensor:
        """Scores [N, K] from the output of ``score_output.layer``."""
        value = value.flatten(1)
        if self.score_output.kind == "logistic":
            return F.logsigmoid(value)
        return value.clamp(min=1e-30).log() if self.score_output.kind == "probability" else value


def logistic_for(definition: Definition, cost: Layer) -> bool:
    """Whether cost.crossent2 combines its gradient with that of its input: a logistic neuron of its own, on its gpu."""
    y = definition.layers[cost.inputs[1]]
    alone = definition.readers(y.name) == [cost] and y.gpu == cost.gpu
    return y.type == "neuron" and y.options["neuron"] == "logistic" and alone


def _score_output(definition: Definition) -> ScoreOutput:
    """From the first cost that compares with classes, in the order of preference below."""
    order = ("cost.logreg", "cost.msm", "cost.crossent", "cost.crossent2", "cost.rflickr", "cost.sum2")
    for cost in sorted((c for c in definition.costs if c.type in order), key=lambda c: order.index(c.type)):
        name = _compared_by_difference(definition, cost) if cost.type == "cost.sum2" else cost.inputs[1]
        if not name:
            continue
        last = definition.layers[name]
        if cost.type in ("cost.logreg", "cost.crossent"):
            return ScoreOutput("softmax", last.inputs[0])
        logistic = last.type == "neuron" and last.options["neuron"] == "logistic"
        if logistic and cost.type in ("cost.crossent2", "cost.sum2"):
            return ScoreOutput("logistic", last.inputs[0])
        return ScoreOutput("probability" if cost.type == "cost.crossent2" else "score", name)
    must = f"a file with one of {', '.join(order[:-1])}, or cost.sum2 of indicators less outputs"
    raise ModelError(f"{definition.file}: no cost tells classes apart", must)


def _compared_by_difference(definition: Definition, cost: Layer) -> str:
    """The layer that cost.sum2 compares with the indicators, by an eltsum of opposite signs; "" if there is none."""
    difference = definition.layers[cost.inputs[0]]
    if difference.type != "eltsum" or len(difference.inputs) != 2:
        return ""
    first, second = difference.options["coeffs"]
    labels = [definition.layers[name].options.get("dataIdx") == 2 for name in difference.inputs]
    return difference.inputs[labels.index(False)] if first * second < 0 and sum(labels) == 1 else ""


def _keys(names: list[str]) -> dict[str, str]:
    """Layer -> name of its module. PyTorch allows no dots, and no names of attributes."""
    keys: dict[str, str] = {}
    for name in names:
        key = name.replace(".", "·")
        while key in keys.values() or hasattr(nn.Sequential, key) or hasattr(GraphNetwork, key) or key in _ATTRIBUTES:
            key += "·"
        keys[name] = key
    return keys


_ATTRIBUTES = {
    "training",
    "name",
    "num_classes",
    "in_channels",
    "image_size",
    "towers",
    "features",
    "initial",
    "definition",
    "parameters_file",
    "files",
    "score_output",
    "functions",
    "keys",
    "placement",
    "rates",
}


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
