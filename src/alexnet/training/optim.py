"""Optimizers, their parameter groups, frozen layers, weight constraints and gradient clipping.

``OPTIMIZERS`` in ``recipe/fields.py`` lists the optimizers. Each is a function of (parameter groups, recipe) here.

A recipe names layers as the network does (``conv1``, torchvision's ``features.0``). A name also stands for all layers
inside it (``features``) or for a single parameter (``fc7.bias``).
"""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, overload

import torch
from torch import Tensor, nn

from alexnet.errors import RecipeError, did_you_mean
from alexnet.kernels import linear_amx
from alexnet.kernels import optimizer as optimizer_kernel
from alexnet.recipe import OPTIMIZERS, Recipe, lookup, option, parse_layer_ranges, parse_layer_values


class WeightConstraint(Protocol):
    """What a step may not change."""

    def begin(
        self, network: nn.Module, others: "list[nn.Module]", optimizer: torch.optim.Optimizer, done: float
    ) -> None:
        """Before a step, ``done`` (0 … 1) of the training being over; ``others`` follow the network (its average)."""

    def gradients(self, network: nn.Module) -> None:
        """Between the backward pass and the update."""


Groups = list[dict[str, Any]]


class PlainOptimizer(torch.optim.Optimizer):
    """An optimizer whose bookkeeping does not import ``torch._dynamo``, which takes seconds and 100 MB.

    PyTorch wraps these methods for ``torch.compile``, which we apply to networks only.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class OnePass(PlainOptimizer):
    """An optimizer whose update can be one pass over memory, with clipping (:mod:`alexnet.kernels.optimizer`).

    Attributes:
        one_pass: Whether it does so where the kernel is in use. The results differ from PyTorch's in the last bits.
    """

    one_pass = False
    passes: Callable[..., float | None]  # PyTorch's own update, without its wrapper
    _scale = 1.0  # of the gradients in the next step

    def clip_grad_norm(self, max_norm: float, norm: Tensor | None = None) -> Tensor:
        """As :func:`clip_grad_norm` for all parameters; the next step scales the gradients where it is one pass."""
        weights = self._weights_with_gradients()
        if not self._is_one_pass(weights):
            _float32_gradients(weights)
            return clip_grad_norm(weights, max_norm, norm)
        if norm is None:
            norm = optimizer_kernel.norm([weight.grad for weight in weights if weight.grad is not None])
        self._scale = min(1.0, max_norm / (float(norm) + 1e-6)) if max_norm else 1.0  # as PyTorch clips
        return norm

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient."""
        weights = self._weights_with_gradients()
        if closure is not None or not self._is_one_pass(weights):
            _float32_gradients(weights)
            return self.passes(closure)
        scale, self._scale = self._scale, 1.0
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group, self.state[weight], scale)
        return None

    def _update(self, weight: Tensor, group: dict[str, Any], state: dict[str, Any], scale: float) -> None:
        """One pass over ``weight``, with the state of PyTorch's optimizer."""
        raise NotImplementedError

    def _weights_with_gradients(self) -> list[Tensor]:
        return [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]

    def _is_one_pass(self, weights: list[Tensor]) -> bool:
        return self.one_pass and optimizer_kernel.fits(weights)


def use_bf16_gradients(network: nn.Module, enabled: bool) -> None:
    """Keep gradients of large weights in bfloat16, in which they are computed, or in float32; drops gradients.

    For a :class:`OnePass` optimizer, and only where nothing is added to a gradient.
    """
    for weight in linear_amx.large_weights(network):
        weight.grad = None
        weight.grad_dtype = torch.bfloat16 if enabled else None


def _float32_gradients(weights: list[Tensor]) -> None:
    """PyTorch's optimizers take gradients of the type of the weights only, and clip in that of the gradients."""
    for weight in weights:
        if weight.grad is not None and weight.grad.dtype != weight.dtype:
            grad, weight.grad = weight.grad.to(weight.dtype), None
            weight.grad_dtype = None
            weight.grad = grad


class SGD(OnePass, torch.optim.SGD):
    """``torch.optim.SGD`` with momentum, on its fused kernel or in one pass."""

    passes = inspect.unwrap(torch.optim.SGD.step)

    def _update(self, weight: Tensor, group: dict[str, Any], state: dict[str, Any], scale: float) -> None:
        first = state.get("momentum_buffer") is None
        if first:
            state["momentum_buffer"] = torch.empty_like(weight, requires_grad=False)
        buffer, decay = state["momentum_buffer"], group["weight_decay"]
        optimizer_kernel.sgd_(
            weight, buffer, first=first, lr=group["lr"], momentum=group["momentum"], decay=decay, scale=scale
        )


class AdamW(OnePass, torch.optim.AdamW):
    """``torch.optim.AdamW``, on its fused kernel or in one pass."""

    passes = inspect.unwrap(torch.optim.AdamW.step)

    def _update(self, weight: Tensor, group: dict[str, Any], state: dict[str, Any], scale: float) -> None:
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        optimizer_kernel.adamw_(
            weight,
            state["exp_avg"],
            state["exp_avg_sq"],
            step=int(state["step"]),
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            decay=group["weight_decay"],
            scale=scale,
        )


class PaperSGD(SGD):
    """SGD with the update rule of the paper, section 5, on PyTorch's fused kernel.

    The paper prints::

        v ← 0.9·v − 0.0005·ε·w − ε·∂L/∂w
        w ← w + v

    The velocity v contains the learning rate ε. ``torch.optim.SGD`` keeps b with w ← w − ε·b instead; both rules agree
    while ε is constant and differ for about ten steps after it changes. With v = −ε·b the paper's rule becomes
    b ← (0.9·ε_before/ε)·b + ∂L/∂w + 0.0005·w; w ← w − ε·b, which is PyTorch's rule with the momentum scaled by the last
    change of ε. That takes one pass over memory instead of four.

    Args:
        params: parameters or parameter groups.
        lr: learning rate ε.
        momentum: 0.9 in the paper.
        weight_decay: 0.0005 in the paper; multiplied by ε.
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
        """Update all parameters. A learning rate of 0 would lose the velocity, so it is replaced by 1e-30."""
        momenta = [group["momentum"] for group in self.param_groups]
        for group in self.param_groups:
            lr = group["lr"] = max(group["lr"], 1e-30)
            group["momentum"] *= (group["lr_before"] or lr) / lr
            group["lr_before"] = lr
        loss: float | None = super().step(closure)
        for group, momentum in zip(self.param_groups, momenta, strict=True):
            group["momentum"] = momentum
        return loss


class LARS(PlainOptimizer):
    """Layer-wise adaptive rate scaling, for batches of thousands.

    You, Gitman and Ginsburg 2017, "Large batch training of convolutional networks", algorithm 1, for the weights w of a
    layer::

        λ ← trust · |w| / (|∂L/∂w| + decay · |w|)
        v ← momentum·v + ε·λ·(∂L/∂w + decay·w)
        w ← w − v

    so that the norm of a step is a fraction of the norm of the weights, whatever the norm of the gradient. The paper
    does not say what happens to biases and other parameters of one dimension, which start at 0 or 1: here λ = trust for
    them, and wherever w or its gradient is 0.

    Args:
        params: parameters or parameter groups.
        lr: learning rate ε.
        momentum: momentum of the velocity v.
        weight_decay: weight decay.
        trust_coefficient: the trust coefficient of the formula above.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient. Reads no tensor's value, so the host never waits for a GPU."""
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
        weight_norms, gradient_norms = torch._foreach_norm(weights), torch._foreach_norm(gradients)
        steps = torch._foreach_add(gradients, weights, alpha=decay) if decay else [g.clone() for g in gradients]
        rates = [
            _local_lr(weight, weight_norm, gradient_norm, decay, trust) * group["lr"]
            for weight, weight_norm, gradient_norm in zip(weights, weight_norms, gradient_norms, strict=True)
        ]
        torch._foreach_mul_(steps, rates)
        velocities = [self._velocity(weight) for weight in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, steps)
        torch._foreach_sub_(weights, velocities)

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        velocity: Tensor = state["momentum_buffer"]
        return velocity


def _local_lr(weight: Tensor, weight_norm: Tensor, gradient_norm: Tensor, decay: float, trust: float) -> Tensor:
    """λ of a parameter, a scalar on its device."""
    constant = torch.full_like(weight_norm, trust)
    if weight.dim() < 2:
        return constant
    usable = (weight_norm > 0) & (gradient_norm > 0)
    return torch.where(usable, trust * weight_norm / (gradient_norm + decay * weight_norm), constant)


def paper_sgd(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer ``paper``."""
    return PaperSGD(groups, lr=recipe.peak_lr, momentum=recipe.momentum)


def sgd(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer ``sgd``."""
    return SGD(groups, lr=recipe.peak_lr, momentum=recipe.momentum, fused=True)


def adamw(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer ``adamw``."""
    return AdamW(groups, lr=recipe.peak_lr, betas=(recipe.momentum, 0.999), fused=True)


def lars(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer ``lars``."""
    return LARS(groups, lr=recipe.peak_lr, momentum=recipe.momentum, trust_coefficient=recipe.trust_coefficient)


def create_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of the recipe for all parameters of ``network``, with the groups of :func:`parameter_groups`."""
    optimizer: torch.optim.Optimizer = lookup(OPTIMIZERS, recipe.optimizer)(parameter_groups(network, recipe), recipe)
    return optimizer


class GroupSettings(NamedTuple):
    """How the parameters of a group are updated.

    Args:
        lr_mult: learning rate as a multiple of the schedule's.
        weight_decay: weight decay per step.
        scheduled: False if the learning rate stays at its peak after the warm-up.
        milestone: epoch from which the learning rate is divided by 10; infinity for never.
    """

    lr_mult: float
    weight_decay: float
    scheduled: bool
    milestone: float


def parameter_groups(network: nn.Module, recipe: Recipe) -> Groups:
    """Parameter groups for an optimizer, each with the entries of :class:`GroupSettings`.

    A layer with a learning rate of 0 is left out of an update by :func:`freeze`, not by its group: momentum and decay
    would still change its weights. Raises :class:`RecipeError` for unknown layers.
    """
    groups: dict[GroupSettings, list[Tensor]] = {}
    for name, settings in _settings(network, recipe).items():
        groups.setdefault(settings, []).append(network.get_parameter(name))
    return [{"params": parameters, **settings._asdict()} for settings, parameters in groups.items()]


def _settings(network: nn.Module, recipe: Recipe) -> dict[str, GroupSettings]:
    """Parameter name -> its settings."""
    by_depth, lr_mults = _by_depth(network, recipe), _by_parameter(network, recipe, "layer_lr_mult")
    decays = _by_parameter(network, recipe, "layer_weight_decay")
    milestones = _by_parameter(network, recipe, "layer_lr_milestones")
    fc_weight_decay = recipe.weight_decay if recipe.fc_weight_decay < 0 else recipe.fc_weight_decay
    settings = {}
    for name, _ in network.named_parameters():
        layer = network.get_submodule(name.rpartition(".")[0])
        lr_mult, milestone = lr_mults.get(name, by_depth[name]), milestones.get(name, math.inf)
        if name.endswith("bias"):
            decay = recipe.weight_decay if recipe.bias_weight_decay else 0.0
            settings[name] = GroupSettings(lr_mult * recipe.bias_lr_mult, decay, recipe.schedule_bias_lr, milestone)
        else:
            decay = fc_weight_decay if isinstance(layer, nn.Linear) else recipe.weight_decay
            settings[name] = GroupSettings(lr_mult, decays.get(name, decay), True, milestone)
    return settings


def set_lr(
    optimizer: torch.optim.Optimizer, scheduled_lr: float, constant_lr: float | None = None, epoch: int = 0
) -> None:
    """Set the learning rate of every group for a step.

    Args:
        optimizer: an optimizer with the groups of :func:`parameter_groups`.
        scheduled_lr: the schedule's learning rate; each group multiplies it by its ``lr_mult``.
        constant_lr: the learning rate of groups that are not ``scheduled``; by default the scheduled one.
        epoch: epoch of the step, from 0; groups from their ``milestone`` on get a tenth.
    """
    for group in optimizer.param_groups:
        lr = scheduled_lr if constant_lr is None or group["scheduled"] else constant_lr
        group["lr"] = lr * (group["lr_mult"] * (0.1 if epoch >= group["milestone"] else 1.0))


def freeze(network: nn.Module, recipe: Recipe, epoch: int) -> None:
    """Turn off the gradients of all parameters that the recipe freezes in an epoch (from 0), and turn on the others.

    A parameter without a gradient is not updated at all, neither by momentum nor by decay, as with a base rate of 0 in
    the 2012 code. Depends on the epoch alone, so that a resumed run needs no further state. Raises
    :class:`RecipeError` for unknown layers, and if every parameter is frozen.
    """
    frozen = _frozen(network, recipe, epoch)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
        if name in frozen:
            parameter.grad = None


def check_layer_names(network: nn.Module, recipe: Recipe) -> None:
    """Raise :class:`RecipeError` if the recipe names layers that ``network`` does not have, or freezes all of them."""
    _settings(network, recipe)
    _frozen(network, recipe, recipe.freeze_from_epoch)


def _frozen(network: nn.Module, recipe: Recipe, epoch: int) -> set[str]:
    """Names of the parameters that are frozen in an epoch (from 0)."""
    names = [name for name, _ in network.named_parameters()]
    frozen = {name for name, lr_mult in _by_parameter(network, recipe, "layer_lr_mult").items() if lr_mult == 0}
    if epoch >= recipe.freeze_from_epoch:
        for first, last in parse_layer_ranges(recipe.freeze, "--freeze"):
            begin, end = _parameters_of(network, first, "--freeze"), _parameters_of(network, last, "--freeze")
            if names.index(begin[0]) > names.index(end[-1]):
                raise RecipeError(f"--freeze names {first}..{last}, which is backwards", f"{last}..{first}")
            frozen.update(names[names.index(begin[0]) : names.index(end[-1]) + 1])
    if len(frozen) == len(names):
        raise RecipeError("--freeze and --layer-lr-mult freeze all layers", "", "leave at least one layer to train")
    return frozen


def _by_depth(network: nn.Module, recipe: Recipe) -> dict[str, float]:
    """Parameter name -> learning rate as a multiple of the recipe's, from ``first_layer_lr_mult`` to 1."""
    names = [name for name, _ in network.named_parameters()]
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    steps = max(len(layers) - 1, 1)
    return {name: recipe.first_layer_lr_mult ** (1 - layers.index(name.rpartition(".")[0]) / steps) for name in names}


def _by_parameter(network: nn.Module, recipe: Recipe, field: str) -> dict[str, float]:
    """Parameter name -> number, for a field such as "conv1=0.1,fc8=10". A longer name wins: fc7.bias over fc7."""
    layers = parse_layer_values(getattr(recipe, field), option(field))
    values: dict[str, float] = {}
    for layer in sorted(layers, key=lambda name: len(name.split("."))):
        values |= dict.fromkeys(_parameters_of(network, layer, option(field)), layers[layer])
    return values


def _parameters_of(network: nn.Module, layer: str, label: str) -> list[str]:
    """Names of the parameters of ``layer``, in the network's order."""
    names = [name for name, _ in network.named_parameters()]
    selected = [name for name in names if f"{name}.".startswith(f"{layer}.")]
    if not selected:
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
        raise RecipeError(f"{label}: no layer {layer!r} with parameters. {did_you_mean(layer, layers)}")
    return selected


def clip_grad_norm(parameters: list[Tensor], max_norm: float, norm: Tensor | None = None) -> Tensor:
    """Scale the gradient to ``max_norm`` if it is longer.

    Args:
        parameters: parameters with gradients.
        max_norm: maximum norm over all parameters; 0: no clipping.
        norm: norm of the whole gradient, where ``parameters`` are only this process's part of it.

    Returns:
        The norm before clipping, a scalar.
    """
    if norm is None:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm and norm > max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


_ADAMW = {"step", "exp_avg", "exp_avg_sq"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_alike(value: Any, expected: Any) -> bool:
    """Whether ``value`` may stand in a parameter group where a new optimizer has ``expected``."""
    if expected is None or isinstance(expected, bool):  # None: no choice yet
        return value is None or isinstance(value, bool) or (expected is None and _is_number(value))
    if isinstance(expected, list | tuple):
        return isinstance(value, list | tuple) and len(value) == len(expected) and all(map(_is_alike, value, expected))
    return _is_number(value) if _is_number(expected) else isinstance(value, type(expected))


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state dict and give every momentum the memory layout of its weight (channels last).

    PyTorch's fused kernels need the same layout for both, and a sharded network is saved in another layout.
    Raises ValueError, KeyError or TypeError for the state of another optimizer.
    """
    before = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, expected in zip(optimizer.param_groups, before, strict=True):
        for name, value in expected.items():
            if not _is_alike(group[name], value):
                raise ValueError(f"{name} of the optimizer is {group[name]!r:.60}")
    for parameter, entries in optimizer.state.items():
        if missing := _ADAMW - set(entries) if _ADAMW & set(entries) else set():
            raise ValueError(f"{', '.join(sorted(missing))} of the optimizer is missing")
        for name, value in entries.items():
            shape = value.shape if isinstance(value, Tensor) else ()
            if name == "step":  # one number; all others are as the weights
                if shape or not _is_number(float(value)):
                    raise ValueError(f"{name} of the optimizer is {value!r:.60}")
            elif value is not None and (not isinstance(value, Tensor) or shape != parameter.shape):
                raise ValueError(f"{name} of the optimizer has not the shape of its weights")
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
