"""Layer-wise adaptive rates: for batches of thousands, whose rates would throw single layers off.

You, Gitman and Ginsburg 2017, "Large batch training of convolutional networks", algorithm 1, for a layer's weights w::

    λ ← trust · |w| / (|∂L/∂w| + decay · |w|)
    v ← momentum·v + ε·λ·(∂L/∂w + decay·w)
    w ← w − v

so that a step is a share of the weights' own length, whatever the gradient's. Biases and other parameters of one
dimension have no length to speak of at the start (0 or 1), and the paper is silent about them: here λ = trust for them,
and wherever w or its gradient is nothing.


Which parameter learns how: rate, decay, and whether at all; by layer, as the recipe says.

A layer is named as in the network (``conv1``, torchvision's ``features.0``); a name also means what is inside
(``features``) or a single parameter (``fc7.bias``).


The paper's update rule, and the optimizer of a recipe.

Paper, section 5::

    v ← 0.9·v − 0.0005·ε·w − ε·∂L/∂w
    w ← w + v

The velocity holds ε inside. ``torch.optim.SGD`` keeps b with w ← w − ε·b instead, so the two agree while ε stays the
same and differ for about ten steps after it changes.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from alexnet.errors import RecipeError, did_you_mean
from alexnet.recipe import Recipe, parse_layer_ranges, parse_layer_values


class LARS(torch.optim.Optimizer):
    """Group options: ``lr`` ε, ``momentum``, ``weight_decay``, ``trust``."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
        trust: float = 0.001,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust}
        )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient. No number of it is read, so a GPU is not waited for."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(group, weights)
        return loss

    def _update(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        decay, trust = group["weight_decay"], group["trust_coefficient"]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        lengths, slopes = torch._foreach_norm(weights), torch._foreach_norm(gradients)
        steps = torch._foreach_add(gradients, weights, alpha=decay) if decay else [g.clone() for g in gradients]
        shares = [
            _share(weight, length, slope, decay, trust) * group["lr"]
            for weight, length, slope in zip(weights, lengths, slopes, strict=True)
        ]
        torch._foreach_mul_(steps, shares)
        velocities = [self._velocity(weight) for weight in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, steps)
        torch._foreach_sub_(weights, velocities)

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        value: Tensor = state["momentum_buffer"]
        return value


def _share(weight: Tensor, length: Tensor, slope: Tensor, decay: float, trust: float) -> Tensor:
    """λ of a parameter, a scalar on its device."""
    plain = torch.full_like(length, trust)
    if weight.dim() < 2:
        return plain
    return torch.where((length > 0) & (slope > 0), trust * length / (slope + decay * length), plain)


class Kind(NamedTuple):
    """How a parameter learns: ``scale`` its rate as a multiple of the schedule's, ``decay``, ``lowered`` by drops.

    From epoch ``milestone`` on the rate is divided by 10.
    """

    scale: float
    decay: float
    lowered: bool
    milestone: float


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, every parameter of ``network`` in one; raises :class:`RecipeError`.

    A rate of 0 is for :func:`freeze`, not for the groups: velocity and decay would still move the weights.
    """
    kinds: dict[Kind, list[Tensor]] = {}
    for name, kind in _kinds(network, recipe).items():
        kinds.setdefault(kind, []).append(network.get_parameter(name))
    return [
        {
            "params": result,
            "scale": kind.scale,
            "weight_decay": kind.decay,
            "lowered": kind.lowered,
            "milestone": kind.milestone,
        }
        for kind, result in kinds.items()
    ]


def _kinds(network: nn.Module, recipe: Recipe) -> dict[str, Kind]:
    rates = _by_parameter(network, parse_layer_values(recipe.layer_lr_mult, "--layer-lr-mult"), "--layer-lr-mult")
    decays = _by_parameter(
        network, parse_layer_values(recipe.layer_weight_decay, "--layer-weight-decay"), "--layer-weight-decay"
    )
    milestones = _by_parameter(
        network, parse_layer_values(recipe.layer_lr_milestones, "--layer-lr-milestones"), "--layer-lr-milestones"
    )
    fc_weight_decay = recipe.weight_decay if recipe.fc_weight_decay < 0 else recipe.fc_weight_decay
    results = {}
    for name, _ in network.named_parameters():
        layer = network.get_submodule(name.rpartition(".")[0])
        rate, milestone = rates.get(name, 1.0), milestones.get(name, math.inf)
        if name.endswith("bias"):
            decay = recipe.weight_decay if recipe.bias_weight_decay else 0.0
            results[name] = Kind(rate * recipe.bias_lr_mult, decay, recipe.schedule_bias_lr, milestone)
        else:
            decay = fc_weight_decay if isinstance(layer, nn.Linear) else recipe.weight_decay
            results[name] = Kind(rate, decays.get(name, decay), True, milestone)
    return results


def freeze(network: nn.Module, recipe: Recipe, epoch: int) -> None:
    """Let learn in this epoch (from 0) what the recipe lets learn. The rest gets no gradient, so the optimizer leaves
    it alone, momentum and decay too.

    That is how a base rate of 0 works in the 2012 code. A function of the epoch alone, so that a resumed run needs
    nothing else. Raises :class:`RecipeError` for unknown layers, and where nothing is left to learn.
    """
    frozen = _frozen(network, recipe, epoch)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
        if name in frozen:
            parameter.grad = None


def check(network: nn.Module, recipe: Recipe) -> None:
    """Raise :class:`RecipeError` if the recipe names layers that ``network`` has not, or lets nothing learn."""
    _kinds(network, recipe)
    _frozen(network, recipe, recipe.freeze_from_epoch)


def _frozen(network: nn.Module, recipe: Recipe, epoch: int) -> set[str]:
    names = [name for name, _ in network.named_parameters()]
    rates = _by_parameter(network, parse_layer_values(recipe.layer_lr_mult, "--layer-lr-mult"), "--layer-lr-mult")
    results = {name for name, rate in rates.items() if rate == 0}
    if epoch >= recipe.freeze_from_epoch:
        for first, last in parse_layer_ranges(recipe.freeze, "--freeze"):
            begin, end = _inside(network, first, "--freeze"), _inside(network, last, "--freeze")
            if names.index(begin[0]) > names.index(end[-1]):
                raise RecipeError(f"--freeze names {first}..{last}, which is backwards", f"{last}..{first}")
            results.update(names[names.index(begin[0]) : names.index(end[-1]) + 1])
    if len(results) == len(names):
        raise RecipeError("--freeze and --layer-lr-mult leave nothing to learn", "at least one layer that learns")
    return results


def _by_parameter(network: nn.Module, layers: dict[str, float], option: str) -> dict[str, float]:
    """Layer -> number becomes parameter -> number; the longer name wins (fc7.bias over fc7)."""
    results: dict[str, float] = {}
    for layer in sorted(layers, key=lambda name: len(name.split("."))):
        results |= dict.fromkeys(_inside(network, layer, option), layers[layer])
    return results


def _inside(network: nn.Module, layer: str, option: str) -> list[str]:
    """Names of the parameters that ``layer`` means, in the network's order."""
    names = [name for name, _ in network.named_parameters()]
    results = [name for name in names if f"{name}.".startswith(f"{layer}.")]
    if not results:
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
        raise RecipeError(f"{option}: no layer {layer!r} with parameters. {did_you_mean(layer, layers)}")
    return results


class PaperSGD(torch.optim.SGD):
    """The update rule of the 2012 paper on PyTorch's fused kernel.

    With v = −ε·b the rule reads b ← (0.9·ε_before/ε)·b + ∂L/∂w + 0.0005·w ; w ← w − ε·b: PyTorch's own rule with the
    momentum scaled by the last change of the rate. One pass over memory instead of four; ``tests`` hold it against
    the rule as printed, step by step, in float64.

    Group options: ``lr`` ε, ``momentum`` (0.9), ``weight_decay`` (0.0005, multiplied by ε).
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0005
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
        for group in self.param_groups:
            group.setdefault("lr_before", None)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update. A rate of zero would lose the velocity, so it is taken as the smallest float32 above zero."""
        own_momentum = [group["momentum"] for group in self.param_groups]
        for group in self.param_groups:
            rate = group["lr"] = max(group["lr"], 1e-30)
            group["momentum"] *= (group["lr_before"] or rate) / rate
            group["lr_before"] = rate
        loss: float | None = super().step(closure)
        for group, momentum in zip(self.param_groups, own_momentum, strict=True):
            group["momentum"] = momentum
        return loss


def build(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer. Every group carries ``scale``, its rate as a multiple of the schedule's, ``lowered``:
    does the schedule lower it?, and ``milestone``, the epoch from which its rate is divided by 10."""
    result = parameter_groups(network, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(result, lr=recipe.peak_lr, betas=(recipe.momentum, 0.999), fused=True)
    if recipe.optimizer == "lars":
        return LARS(result, lr=recipe.peak_lr, momentum=recipe.momentum, trust=recipe.trust_coefficient)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(result, lr=recipe.peak_lr, momentum=recipe.momentum, fused=True)
    return PaperSGD(result, lr=recipe.peak_lr, momentum=recipe.momentum)


def load(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put back a state. Every momentum gets its weight's order in memory (channels last): PyTorch's fused kernels go
    through both together as they lie, and a network that was cut among processes was written down in another order."""
    optimizer.load_state_dict(state)
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def set_rate(optimizer: torch.optim.Optimizer, rate: float, unlowered: float | None = None, epoch: int = 0) -> None:
    """Give every group the schedule's rate times its own ``scale``; ``unlowered`` to those that it does not lower.

    Groups whose ``milestone`` is at or before ``epoch`` (from 0) get a tenth of it.
    """
    for group in optimizer.param_groups:
        lowered = unlowered is None or group["lowered"]
        scale = group["scale"] * (0.1 if epoch >= group["milestone"] else 1.0)
        group["lr"] = (rate if lowered else unlowered) * scale


def clip(parameters: list[Tensor], longest: float, norm: Tensor | None = None) -> Tensor:
    """Shorten the whole gradient to ``longest`` where it is longer (0: never); returns its norm before, a scalar.

    ``norm`` is given where ``parameters`` are only a piece of what is learned.
    """
    if norm is None:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if longest and norm > longest:
        nn.utils.clip_grads_with_norm_(parameters, longest, norm)
    return norm
