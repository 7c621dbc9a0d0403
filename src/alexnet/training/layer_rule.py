"""The update rule of a parameter file of 2012: each matrix and each layer's biases with numbers of their own.

With G the gradient of minus the cost, summed over N images, and e the scheduled rate::

    inc ← mom·inc + e·G/N          and, where wc > 0:   inc ← inc − wc·e·W
    W   ← W + inc                  then the limits: wcNormMin and wcNormMax, wball

A rate of 0 freezes a matrix wholly. Progress runs from 0 to 1 over a run, a minibatch being what the 2012 code had
as a data file.
"""

import math
from typing import Any

import torch
from torch import Tensor

from alexnet.cuda_convnet import GraphNetwork
from alexnet.cuda_convnet.parameters import Rates
from alexnet.errors import ModelError


class LayerRule(torch.optim.Optimizer):
    """Parameter groups, one a matrix or bias vector: ``layer``, ``input`` (−1: biases), ``rates``, ``kind``.

    Call :meth:`begin` before each pass through the network: it draws the rates' noise and tells the network at which
    rates the users of a shared matrix learn. Raises :class:`ModelError` for a network that learns nothing.
    """

    def __init__(self, network: GraphNetwork) -> None:
        self.network, self.generator = network, torch.Generator()
        groups = [group for layer in network.definition.layers for group in _groups(network, layer)]
        if not groups:
            raise ModelError(f"{network.name} has no layer with weights", "a network that can learn")
        if not any(network.parameters_file.layers[cost.name].coeff for cost in network.definition.costs):
            raise ModelError(f"all costs of {network.name} have coeff 0", "one with another, to learn from")
        super().__init__(groups, {})
        self.progress = 0.0
        self.begin(0.0)

    def begin(self, progress: float) -> None:
        """Set every rate for a step at ``progress`` (0 … 1)."""
        self.progress = progress
        for group in self.param_groups:
            rates: Rates = group["rates"]
            group["lr"] = self._noisy(rates)
            group["decay_lr"] = self._noisy(rates) if rates.decay > 0 else group["lr"]
        self._share()

    def largest(self) -> float:
        """The highest rate of any weights at this progress, without noise: what a journal shows."""
        kinds = [g for g in self.param_groups if g["input"] >= 0] or self.param_groups
        return max(float(g["rates"].schedule.rate(g["rates"].base, self.progress)) for g in kinds)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update from the gradients of the mean cost."""
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
            limit(weight, rates, group["kind"])

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of the past; the numbers of the parameter file are read anew."""
        increments = {self._name(g): dict(self.state[g["params"][0]]) for g in self.param_groups}
        return {"layers": increments}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave. Raises ``KeyError`` where it is another network's."""
        for group in self.param_groups:
            weight = group["params"][0]
            value = state_dict["layers"][self._name(group)]
            self.state[weight] = {name: tensor.to(weight.device, copy=True) for name, tensor in value.items()}

    def _name(self, group: dict[str, Any]) -> str:
        return f"{group['layer']}[{group['input']}]"

    def _noisy(self, rates: Rates) -> float:
        """The rate for one use; noise makes it larger by a fresh share each time."""
        rate = rates.schedule.rate(rates.base, self.progress)
        if rates.schedule.noise:
            rate *= 1 + rates.schedule.noise * abs(float(torch.empty(1).normal_(generator=self.generator)))
        return rate

    def _share(self) -> None:
        """Users of another layer's matrix: in fc and local each at its own rate, in conv at the owner's or not."""
        own = {(g["layer"], g["input"]): g["lr"] for g in self.param_groups}
        for layer in self.network.definition.layers.values():
            for i, matrix in enumerate(layer.matrices):
                if matrix.source is None:
                    continue
                rates = self.network.parameters_file.layers[layer.name].weights[i]
                if layer.type == "conv":
                    factor = float(rates.base != 0)
                else:
                    factor = self._noisy(rates) / (own[matrix.source] or math.inf)
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
    result, module = network.parameters_file.layers[name], network.module_of(name)
    groups: list[dict[str, Any]] = [
        {
            "params": [network.weight_of(name, i)],
            "layer": name,
            "input": i,
            "rates": result.weights[i],
            "kind": layer.type,
        }
        for i, matrix in enumerate(layer.matrices)
        if matrix.source is None
    ]
    if layer.type == "treefc":
        groups[0]["leaves"] = [len(classes) for classes in layer.options["leaves"]]
    groups.append({"params": [module.get_parameter("bias")], "input": -1, "rates": result.bias, "kind": "bias"})
    return [group | {"layer": name} for group in groups]


def _tree(group: dict[str, Any], weight: Tensor, gradient: Tensor, increment: Tensor) -> None:
    """A node above k classes: inc ← mom·inc + (e/k)·(G/N − (wc/k)·W). Rows are nodes."""
    rates, k = group["rates"], weight.new_tensor(group["leaves"])[:, None]  # [nodes, 1]
    pull = gradient - rates.decay / k * weight
    increment.mul_(rates.momentum).add_(pull / k, alpha=group["lr"])


def limit(weight: Tensor, rates: Rates, kind: str) -> None:
    """wcNormMin and wcNormMax (conv), then wball, on each filter's or unit's weights, in place.

    ``weight`` as PyTorch has it: conv [F, c, K, K], fc [out, in], local [M², c·K², F].
    """
    if kind not in ("conv", "local", "fc"):
        return
    dims = (1, 2, 3) if kind == "conv" else (1,)  # along which the n numbers of a column lie
    n = math.prod(weight.shape[1:]) if kind == "conv" else weight.shape[1]
    if kind == "conv" and rates.norm_max > 0:
        spread = (weight - weight.mean(dims, keepdim=True)).square().sum(dims, keepdim=True).sqrt() / n
        wanted = spread.clamp(rates.norm_min, rates.norm_max)
        weight.mul_(torch.where(spread > 0, wanted / spread, torch.ones_like(spread)))
    if rates.ball > 0:
        longest = rates.ball * n
        norms = weight.square().sum(dims, keepdim=True).sqrt()
        weight.mul_(torch.where(norms > longest, longest / norms, torch.ones_like(norms)))
