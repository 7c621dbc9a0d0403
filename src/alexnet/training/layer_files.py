"""Training of a layer file: its recipe, and the optimizer of cuda-convnet.

Each weight matrix and bias vector has the settings of a parameter file of 2012.

G is the gradient of minus the cost, summed over N images, and e the scheduled learning rate::

    inc ← mom·inc + e·G/N          and, where wc > 0:   inc ← inc − wc·e·W
    W   ← W + inc                  then the limits: wcNormMin and wcNormMax, wball

A base learning rate of 0 freezes a matrix: neither momentum nor decay change it. Progress runs from 0 to 1 over a run.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alexnet.cuda_convnet import Data, Files, GraphNetwork, decode, define, parameters
from alexnet.cuda_convnet.parameters import Rates
from alexnet.errors import ModelError, RecipeError
from alexnet.recipe import LAYER_FILE_FIELDS, Recipe, get_recipe, option
from alexnet.training.finetune import PretrainedWeights


def read(path: str | Path) -> str:
    """The text of a layer or parameter file; raises :class:`ModelError`."""
    try:
        return decode(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise ModelError(f"layer file {path} cannot be read: {error.strerror}", "a file") from error


def of_training(layers: str | Path | None, parameters: str | Path | None) -> Files | None:
    """Both files, or None where none is given; one without the other raises :class:`RecipeError`."""
    if layers is None and parameters is None:
        return None
    if layers is None:
        raise RecipeError("--layer-params without --layers", "", "pass both")
    if parameters is None:
        raise RecipeError("--layers without --layer-params", "", "pass both")
    texts = read(layers), read(parameters)
    return Files(Path(layers).stem, *texts, Path(layers).name, Path(parameters).name)


def data_of(recipe: Recipe, classes: int) -> Data:
    """What the files leave to the data: 224 pixels, or the whole stored image where that is smaller."""
    return Data(recipe.image_size or min(224, recipe.stored_size), recipe.in_channels or 3, classes)


def check(files: Files, recipe: Recipe, classes: int) -> tuple[str, ...]:
    """Raise :class:`ModelError` for files that are wrong or do not fit the data; returns what is to be noted."""
    definition = define(files.layers, data_of(recipe, classes), files.layers_file)
    return *definition.notes, *parameters.read(files.parameters, definition, files.parameters_file).notes


def fitting(recipe: Recipe, files: Files, start: PretrainedWeights | None = None) -> Recipe:
    """The recipe under the files' name; raises :class:`RecipeError` for a field that the files define."""
    if start is not None:
        raise RecipeError("--init-from and --layers both define the network", "", "leave one out")
    own = get_recipe("layer_file")
    for name in LAYER_FILE_FIELDS:
        if getattr(recipe, name) not in (getattr(own, name), files.name if name == "model" else None):
            what = f"{option(name)} has no effect on a layer file"
            raise RecipeError(what, "left out", "its parameter file and --recipe layer_file say how it learns")
    return recipe.replace(model=files.name)


class LayerFileOptimizer(torch.optim.Optimizer):
    """One parameter group per weight matrix or bias vector: ``layer``, ``input`` (−1: biases), ``rates``, ``kind``.

    Call :meth:`set_progress` before each pass through the network: it draws the noise of the learning rates and sets
    the learning rates of layers that share a matrix. Raises :class:`ModelError` if no weight is trained.
    """

    def __init__(self, network: GraphNetwork) -> None:
        self.network, self.generator = network, torch.Generator()
        groups = [group for layer in network.definition.layers for group in _groups(network, layer)]
        if not groups:
            raise ModelError(f"{network.name} has no layer with weights", "a network that can learn")
        if not any(network.parameters_file.layers[cost.name].coeff for cost in network.definition.costs):
            raise ModelError(f"all costs of {network.name} have coeff 0", "at least one with another coeff")
        super().__init__(groups, {})
        self.progress = 0.0
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        """Set all learning rates for a step at ``progress`` (0 to 1)."""
        self.progress = progress
        for group in self.param_groups:
            rates: Rates = group["rates"]
            group["lr"] = self._noisy(rates)
            group["decay_lr"] = self._noisy(rates) if rates.decay > 0 else group["lr"]
        self._share()

    def max_lr(self) -> float:
        """The highest learning rate of any weights at this progress, without noise, for the log."""
        groups = [g for g in self.param_groups if g["input"] >= 0] or self.param_groups
        return max(float(g["rates"].schedule.rate(g["rates"].base, self.progress)) for g in groups)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all weights from the gradients of the mean cost."""
        for group in self.param_groups:
            weight, rates = group["params"][0], group["rates"]
            if rates.base == 0:
                continue
            gradient = torch.zeros_like(weight) if weight.grad is None else -weight.grad  # of minus the cost, over N
            increment = self.state[weight].setdefault("increment", torch.zeros_like(weight))
            if group["kind"] == "treefc":
                _tree(group, weight, gradient, increment)
            elif rates.super_eps > 0:
                self._super(group, weight, gradient, increment)
            else:
                increment.mul_(rates.momentum).add_(gradient, alpha=group["lr"])
            if rates.decay > 0 and group["kind"] != "treefc":
                increment.sub_(weight, alpha=rates.decay * group["decay_lr"])
            weight.add_(increment)
            constrain_norms(weight, rates, group["kind"])

    def state_dict(self) -> dict[str, Any]:
        """The increments of all matrices; the settings of the parameter file are not part of it."""
        increments = {self._name(g): dict(self.state[g["params"][0]]) for g in self.param_groups}
        return {"layers": increments}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the result of :meth:`state_dict`. Raises ``KeyError`` if it belongs to another network."""
        for group in self.param_groups:
            weight = group["params"][0]
            value = state_dict["layers"][self._name(group)]
            self.state[weight] = {name: tensor.to(weight.device, copy=True) for name, tensor in value.items()}

    def _name(self, group: dict[str, Any]) -> str:
        return f"{group['layer']}[{group['input']}]"

    def _noisy(self, rates: Rates) -> float:
        """The learning rate for one use; noise increases it by a new random fraction each time."""
        rate = rates.schedule.rate(rates.base, self.progress)
        if rates.schedule.noise:
            rate *= 1 + rates.schedule.noise * abs(float(torch.empty(1).normal_(generator=self.generator)))
        return rate

    def _share(self) -> None:
        """Set the learning rates of layers that use another layer's matrix, relative to the owner's.

        In fc and local layers each user has its own rate; a conv layer has the owner's rate, or 0.
        """
        owner_lr = {(g["layer"], g["input"]): g["lr"] for g in self.param_groups}
        for layer in self.network.definition.layers.values():
            for i, matrix in enumerate(layer.matrices):
                if matrix.source is None:
                    continue
                rates = self.network.parameters_file.layers[layer.name].weights[i]
                if layer.type == "conv":
                    factor = float(rates.base != 0)
                else:
                    factor = self._noisy(rates) / (owner_lr[matrix.source] or math.inf)
                self.network.rates[layer.name, i] = factor

    def _super(self, group: dict[str, Any], weight: Tensor, gradient: Tensor, increment: Tensor) -> None:
        """superEps: A ← mom·A + (1 − mom)·g, B likewise of g²; inc ← 0.9·inc + e·g/√(B − A + superEps)."""
        rates, state = group["rates"], self.state[weight]
        first = state.setdefault("first", torch.zeros_like(weight))
        second = state.setdefault("second", torch.zeros_like(weight))
        first.lerp_(gradient, 1 - rates.momentum)
        second.lerp_(gradient.square(), 1 - rates.momentum)
        increment.mul_(0.9).add_(gradient / (second - first + rates.super_eps).sqrt(), alpha=group["lr"])


def _groups(network: GraphNetwork, name: str) -> list[dict[str, Any]]:
    layer = network.definition.layers[name]
    if not layer.matrices:
        return []
    settings, module = network.parameters_file.layers[name], network.module_of(name)
    groups: list[dict[str, Any]] = [
        {
            "params": [network.weight_of(name, i)],
            "layer": name,
            "input": i,
            "rates": settings.weights[i],
            "kind": layer.type,
        }
        for i, matrix in enumerate(layer.matrices)
        if matrix.source is None
    ]
    if layer.type == "treefc":
        groups[0]["leaves"] = [len(classes) for classes in layer.options["leaves"]]
    groups.append({"params": [module.get_parameter("bias")], "input": -1, "rates": settings.bias, "kind": "bias"})
    return [group | {"layer": name} for group in groups]


def _tree(group: dict[str, Any], weight: Tensor, gradient: Tensor, increment: Tensor) -> None:
    """The update of a node above k classes: inc ← mom·inc + (e/k)·(G/N − (wc/k)·W). Rows are nodes."""
    rates, k = group["rates"], weight.new_tensor(group["leaves"])[:, None]  # [nodes, 1]
    pull = gradient - rates.decay / k * weight
    increment.mul_(rates.momentum).add_(pull / k, alpha=group["lr"])


def constrain_norms(weight: Tensor, rates: Rates, kind: str) -> None:
    """Constrain the norm of each filter's or unit's weights in place: wcNormMin and wcNormMax (conv), then wball.

    ``weight`` has PyTorch's shape: conv [F, c, K, K], fc [out, in], local [M², c·K², F].
    """
    if kind not in ("conv", "local", "fc"):
        return
    dims = (1, 2, 3) if kind == "conv" else (1,)  # dimensions of the n weights of one filter or unit
    n = math.prod(weight.shape[1:]) if kind == "conv" else weight.shape[1]
    if kind == "conv" and rates.norm_max > 0:
        spread = (weight - weight.mean(dims, keepdim=True)).square().sum(dims, keepdim=True).sqrt() / n
        target = spread.clamp(rates.norm_min, rates.norm_max)
        weight.mul_(torch.where(spread > 0, target / spread, torch.ones_like(spread)))
    if rates.ball > 0:
        max_norm = rates.ball * n
        norms = weight.square().sum(dims, keepdim=True).sqrt()
        weight.mul_(torch.where(norms > max_norm, max_norm / norms, torch.ones_like(norms)))
