"""The paper's update rule, and the optimizer of a recipe.

Paper, section 5::

    v ← 0.9·v − 0.0005·ε·w − ε·∂L/∂w
    w ← w + v

The velocity holds ε inside. ``torch.optim.SGD`` keeps b with w ← w − ε·b instead, so the two agree while ε stays the
same and differ for about ten steps after it changes.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from alexnet.recipe import Recipe
from alexnet.training.groups import parameter_groups
from alexnet.training.lars import LARS


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
    found = parameter_groups(network, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(found, lr=recipe.highest_rate, betas=(recipe.momentum, 0.999), fused=True)
    if recipe.optimizer == "lars":
        return LARS(found, lr=recipe.highest_rate, momentum=recipe.momentum, trust=recipe.trust)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(found, lr=recipe.highest_rate, momentum=recipe.momentum, fused=True)
    return PaperSGD(found, lr=recipe.highest_rate, momentum=recipe.momentum)


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
