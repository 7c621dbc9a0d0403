"""The paper's update rule, and the parameter groups of a recipe.

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
    """The recipe's optimizer; every group carries ``scale``, its rate as a multiple of the schedule's."""
    groups = _groups(network, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.momentum, 0.999), fused=True)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, fused=True)
    return PaperSGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)


def _groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    fc_decay = recipe.weight_decay if recipe.fc_decay < 0 else recipe.fc_decay
    kinds: dict[tuple[float, float], list[Tensor]] = {}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                kind = (recipe.bias_rate, recipe.weight_decay if recipe.bias_decay else 0.0)
            else:
                kind = (1.0, fc_decay if isinstance(module, nn.Linear) else recipe.weight_decay)
            kinds.setdefault(kind, []).append(parameter)
    return [{"params": found, "scale": scale, "weight_decay": decay} for (scale, decay), found in kinds.items()]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the schedule's rate times its own ``scale``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def clip(parameters: list[Tensor], longest: float) -> Tensor:
    """Shorten the whole gradient to ``longest`` where it is longer (0: never); returns its norm before, a scalar."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if longest and norm > longest:
        nn.utils.clip_grads_with_norm_(parameters, longest, norm)
    return norm
