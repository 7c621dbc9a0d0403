"""A layer file as a network: a graph of modules, pictures to scores, and the costs of its file."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.errors import ModelError
from alexnet.models import kernel
from alexnet.models.cuda_convnet import costs, modules
from alexnet.models.cuda_convnet.definition import LEARNED, Definition, Layer
from alexnet.models.cuda_convnet.parameters import LayerParameters, Parameters
from alexnet.models.cuda_convnet.pointwise import Neuron
from alexnet.models.cuda_convnet.pools import Pool
from alexnet.models.cuda_convnet.products import Learned, ScaleGradient, weight_name
from alexnet.models.cuda_convnet.shaping import RandomScale
from alexnet.models.layers import Dropout
from alexnet.models.network import Network

Function = Callable[..., object]  # what initWFunc, initBFunc and initCFunc name, given by a caller
Matrix = tuple[str, int]  # a layer's name and one of its inputs


@dataclass(frozen=True)
class Files:
    """A layer file and its parameter file as text, the name under which the network goes, and what errors call them."""

    name: str
    layers: str
    parameters: str
    layers_file: str = "layers.cfg"
    parameters_file: str = "layer-params.cfg"


@dataclass(frozen=True)
class Answer:
    """What in the graph says which class a picture is: ``layer``'s output, read as ``kind`` of scores."""

    kind: str  # "softmax": before it; "logistic": before the neuron; "probability"; "score"
    layer: str


@dataclass
class _Pass:
    """One pass through the graph: outputs by layer, and what the costs compare with."""

    found: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None


class GraphNetwork(Network):
    """Pictures [N, C, S, S] -> scores [N, K] whose softmax are the class probabilities, through the file's graph.

    Each layer of the file is a child module of the layer's name (dots become middle dots); ``definition`` and
    ``parameters`` are its checked files, ``placement`` the tower (``gpu``) of each layer: it has no numeric meaning.
    Weights lie as PyTorch has them, see :mod:`alexnet.models.cuda_convnet.products`.

    ``rates`` (layer, input) -> factor on the gradient that a user of a shared matrix adds; 1 unless a training rule
    sets it. ``functions`` are Python functions that a file's initWFunc, initBFunc and initCFunc may name: nothing is
    ever imported by name.
    """

    def __init__(
        self, definition: Definition, parameters: Parameters, files: Files, functions: Mapping[str, Function] | None
    ) -> None:
        answer = _answer(definition)
        children = {
            layer.name: modules.build(layer, definition, parameters.layers.get(layer.name, LayerParameters()))
            for layer in definition.layers.values()
            if layer.type != "data" and not layer.is_cost
        }
        keys = _keys(list(children))
        super().__init__(
            files.name, [(keys[name], module) for name, module in children.items()],
            num_classes=definition.layers[answer.layer].outputs, in_channels=definition.data.channels,
            image_size=definition.data.image_size, features="+".join(definition.layers[answer.layer].inputs),
            initial={}, towers=len({layer.gpu for layer in definition.layers.values() if layer.type in LEARNED} or {0}),
        )  # fmt: skip
        self.definition, self.parameters_file, self.files, self.answer = definition, parameters, files, answer
        self.functions = dict(functions or {})
        self.keys = keys
        self.placement = {layer.name: layer.gpu for layer in definition.layers.values()}
        self.rates: dict[Matrix, float] = {}

    def module_of(self, layer: str) -> nn.Module:
        """The module of the layer called so in the file."""
        return self.get_submodule(self.keys[layer])

    def weight_of(self, layer: str, index: int = 0) -> nn.Parameter:
        """The weights of a layer's input: its own, or those that it shares."""
        name, j = self.definition.layers[layer].matrices[index].source or (layer, index)
        return self.module_of(name).get_parameter(weight_name(self.definition.layers[name], j))

    def forward(self, input: Tensor) -> Tensor:
        """Scores [N, K] of pictures [N, C, S, S]: the file's pixels, gray levels minus the mean."""
        run = _Pass()
        return self._scores(self._value(self.answer.layer, input, run))

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
        return self._scores(self._value(self.answer.layer, input, run)), total / len(labels)

    @torch.no_grad()
    def report(self, input: Tensor, labels: Tensor) -> dict[str, list[float]]:
        """Every cost by its name, divided by N.

        ``cost.logreg`` is followed by its top-1 and top-``topk`` errors, ``cost.msm`` by its top-1 and top-``setSize``.
        """
        run, found = _Pass(labels=labels), {}
        for cost in self.definition.costs:
            values = [float(self._cost(cost, input, run))]
            if cost.type in ("cost.logreg", "cost.msm"):
                scores, parameters = self._value(cost.inputs[1], input, run), self.parameters_file.layers[cost.name]
                most = parameters.topk if cost.type == "cost.logreg" else parameters.set_size
                values += [costs.errors(labels, scores.flatten(1), k) for k in (1, most)]
            found[cost.name] = [value / len(labels) for value in values]
        return found

    def outputs(self, input: Tensor) -> "OrderedDict[str, Tensor]":
        """The output of every layer that is neither data nor cost, in the file's order, by the layer's name."""
        run = _Pass()
        blind: set[str] = set()  # what can not be computed without labels
        for layer in self.definition.layers.values():
            labels = layer.type == "data" and layer.options["dataIdx"] != 0
            if labels or not blind.isdisjoint(layer.inputs):
                blind.add(layer.name)
        return OrderedDict((name, self._value(name, input, run)) for name in self.keys if name not in blind)

    def until(self, input: Tensor, layer: str) -> Tensor:
        """The output of a layer, and only what it needs; ``a+b`` are the features of a and b side by side."""
        names = [layer] if layer in self.keys else layer.split("+")
        for name in names:
            if name not in self.definition.layers or self.definition.layers[name].is_cost:
                raise ModelError(f"layer {name!r} is not in {self.name}", f"one of {', '.join(self.keys)}")
        run = _Pass()
        parts = [self._value(name, input, run) for name in names]
        return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], 1)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> "GraphNetwork":
        """Draw all weights as the file says, layer by layer in its order; returns itself."""
        for layer in self.definition.layers.values():
            module = self.module_of(layer.name) if layer.type in LEARNED else None
            if isinstance(module, Learned):
                module.draw(generator)
                modules.call_functions(self, layer, module)
        return self

    def set_generator(self, generator: torch.Generator | None) -> None:
        """What is drawn while training (dropout, noisy neurons, random pools) comes from ``generator``."""
        for module in self.modules():
            if isinstance(module, Dropout | Neuron | Pool | RandomScale):
                module.generator = generator

    def first_filters(self) -> Tensor:
        """Weights over the pixels themselves, [K, C, H, W], towers one after the other. Raises :class:`ModelError`."""
        found = []
        for layer in self.definition.layers.values():
            given = self.definition.layers[layer.inputs[0]] if layer.inputs else layer
            if layer.type in LEARNED and not given.learns and given.side:
                weight = self.weight_of(layer.name).detach()
                if layer.type == "local":  # the filters of the middle
                    kernel = layer.options["filterSize"][0]
                    weight = weight[len(weight) // 2].T.reshape(weight.shape[2], -1, kernel, kernel)
                elif weight.dim() == 2:
                    weight = weight.view(-1, given.channels, given.side, given.side)
                found.append(weight)
        if not found:
            raise ModelError(f"{self.name} has no layer with weights over pictures", "", "there are no filters to draw")
        return torch.cat([weight for weight in found if weight.shape == found[0].shape])

    def _value(self, name: str, input: Tensor, run: _Pass) -> Tensor:
        """The output of a layer; whatever it needs and has not been computed yet is computed first."""
        todo = [name]
        while todo:
            layer = self.definition.layers[todo[-1]]
            missing = [below for below in layer.inputs if below not in run.found]
            if layer.name in run.found or not missing:
                todo.pop()
                if layer.name not in run.found:
                    run.found[layer.name] = self._compute(layer, input, run)
            else:
                todo += missing
        return run.found[name]

    def _compute(self, layer: Layer, input: Tensor, run: _Pass) -> Tensor:
        if layer.type == "data":
            return self._data(layer, input, run)
        inputs, module = [run.found[name] for name in layer.inputs], self.module_of(layer.name)
        if not isinstance(module, Learned):
            out: Tensor = module(*inputs)
            return out
        weights, lists = [], []
        for i in range(len(layer.inputs)):
            name, j = layer.matrices[i].source or (layer.name, i)
            weight: Tensor = self.weight_of(layer.name, i)
            factor = self.rates.get((layer.name, i), 1.0)
            weights.append(weight if factor == 1.0 or kernel.jit_tracing() else ScaleGradient.apply(weight, factor))
            lists.append(getattr(self.module_of(name), f"connections{j}", None))
        return module(inputs, weights, lists)  # type: ignore[no-any-return]

    def _data(self, layer: Layer, input: Tensor, run: _Pass) -> Tensor:
        index = layer.options["dataIdx"]
        if index == 0:
            return input
        if run.labels is None:
            raise ModelError(f"layer {layer.name!r} holds labels", "a layer that pictures alone reach")
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
            scores = run.found[self.definition.layers[cost.inputs[1]].inputs[0]].flatten(1)
            labels = target[:, 0].long()
            return costs.logreg(labels, scores) if cost.type == "cost.logreg" else costs.crossent(target, scores)
        if cost.type == "cost.crossent2":
            logistic = logistic_for(self.definition, cost)
            values = run.found[self.definition.layers[cost.inputs[1]].inputs[0]].flatten(1) if logistic else other
            return costs.crossent2(target, values, logistic)
        return costs.rflickr(target, other) if cost.type == "cost.rflickr" else costs.gsum2(target, other)

    def _scores(self, value: Tensor) -> Tensor:
        value = value.flatten(1)
        if self.answer.kind == "logistic":
            return F.logsigmoid(value)
        return value.clamp(min=1e-30).log() if self.answer.kind == "probability" else value


def logistic_for(definition: Definition, cost: Layer) -> bool:
    """Does cost.crossent2 read a logistic neuron that nothing else reads, on its own gpu? Then gradients join."""
    y = definition.layers[cost.inputs[1]]
    alone = definition.readers(y.name) == [cost] and y.gpu == cost.gpu
    return y.type == "neuron" and y.options["neuron"] == "logistic" and alone


def _answer(definition: Definition) -> Answer:
    """By the first cost that compares with classes; logreg before the others."""
    order = ("cost.logreg", "cost.msm", "cost.crossent", "cost.crossent2", "cost.rflickr", "cost.sum2")
    for cost in sorted((c for c in definition.costs if c.type in order), key=lambda c: order.index(c.type)):
        name = _compared_by_difference(definition, cost) if cost.type == "cost.sum2" else cost.inputs[1]
        if not name:
            continue
        last = definition.layers[name]
        if cost.type in ("cost.logreg", "cost.crossent"):
            return Answer("softmax", last.inputs[0])
        logistic = last.type == "neuron" and last.options["neuron"] == "logistic"
        if logistic and cost.type in ("cost.crossent2", "cost.sum2"):
            return Answer("logistic", last.inputs[0])
        return Answer("probability" if cost.type == "cost.crossent2" else "score", name)
    must = f"a file with one of {', '.join(order[:-1])}, or cost.sum2 of indicators less outputs"
    raise ModelError(f"{definition.file}: no cost tells classes apart", must)


def _compared_by_difference(definition: Definition, cost: Layer) -> str:
    """The layer that cost.sum2 draws towards the indicators, by an eltsum of the two of opposite signs; or none."""
    difference = definition.layers[cost.inputs[0]]
    if difference.type != "eltsum" or len(difference.inputs) != 2:
        return ""
    first, second = difference.options["coeffs"]
    labels = [definition.layers[name].options.get("dataIdx") == 2 for name in difference.inputs]
    return difference.inputs[labels.index(False)] if first * second < 0 and sum(labels) == 1 else ""


def _keys(names: list[str]) -> dict[str, str]:
    """Layer -> name of its module: PyTorch allows no dots there, and no names of its own."""
    keys: dict[str, str] = {}
    for name in names:
        key = name.replace(".", "·")
        while key in keys.values() or hasattr(nn.Sequential, key) or hasattr(GraphNetwork, key) or key in _OWN:
            key += "·"
        keys[name] = key
    return keys


_OWN = {
    "training", "name", "num_classes", "in_channels", "image_size", "towers", "features", "initial", "definition",
    "parameters_file", "files", "answer", "functions", "keys", "placement", "rates",
}  # fmt: skip
