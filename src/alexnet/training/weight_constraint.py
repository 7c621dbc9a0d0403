"""The interface of a constraint on weights, which the training loop calls at each step."""

from typing import Protocol

import torch
from torch import nn


class WeightConstraint(Protocol):
    """What a step may not change."""

    def begin(
        self, network: nn.Module, others: "list[nn.Module]", optimizer: torch.optim.Optimizer, done: float
    ) -> None:
        """Before a step, ``done`` (0 … 1) of the training being over; ``others`` follow the network (its average)."""

    def gradients(self, network: nn.Module) -> None:
        """Between the backward pass and the update."""
