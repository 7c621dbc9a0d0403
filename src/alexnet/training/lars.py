"""Layer-wise adaptive rates: for batches of thousands, whose rates would throw single layers off.

You, Gitman and Ginsburg 2017, "Large batch training of convolutional networks", algorithm 1, for a layer's weights w::

    λ ← trust · |w| / (|∂L/∂w| + decay · |w|)
    v ← momentum·v + ε·λ·(∂L/∂w + decay·w)
    w ← w − v

so that a step is a share of the weights' own length, whatever the gradient's. Biases and other parameters of one
dimension have no length to speak of at the start (0 or 1), and the paper is silent about them: here λ = trust for them,
and wherever w or its gradient is nothing.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor


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
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

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
        decay, trust = group["weight_decay"], group["trust"]
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
        found: Tensor = state["momentum_buffer"]
        return found


def _share(weight: Tensor, length: Tensor, slope: Tensor, decay: float, trust: float) -> Tensor:
    """λ of a parameter, a scalar on its device."""
    plain = torch.full_like(length, trust)
    if weight.dim() < 2:
        return plain
    return torch.where((length > 0) & (slope > 0), trust * length / (slope + decay * length), plain)
