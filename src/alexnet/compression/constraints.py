"""What compression has fixed in a network that learns again: weights that are gone, and weights that share a value.

Both work on gradients, between the backward pass and the update, so that every update rule holds them: a weight of 0
with a gradient of 0 and no past stays 0; weights that are equal, with equal gradients and an equal past, stay equal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from alexnet.compression.pruning import gone, gradual

EVERY = 8  # steps between two cuts; sorting 57 million magnitudes takes a second, a step of 64 images one and a half


@dataclass
class Pruning:
    """Cut weights little by little, then let the rest learn on.

    ``first`` and ``last``: layer -> share kept at the beginning and from ``until`` (a share of the training) on.
    """

    first: Mapping[str, float]
    last: Mapping[str, float]
    until: float = 0.5
    steps: int = 0
    dead: dict[str, Tensor] = field(default_factory=dict)
    settled: bool = False

    @torch.no_grad()
    def begin(self, network: nn.Module, others: list[nn.Module], optimizer: torch.optim.Optimizer, done: float) -> None:
        due = not self.settled and (self.steps % EVERY == 0 or done >= self.until)
        self.steps += 1
        if not due:
            return
        self.settled = done >= self.until
        for name, last in self.last.items():
            weight = network.get_parameter(name)
            dead = self.dead[name] = gone(weight, gradual(done / self.until, self.first[name], last))
            past = [v for v in optimizer.state.get(weight, {}).values() if getattr(v, "shape", None) == weight.shape]
            for tensor in (weight, *(other.get_parameter(name) for other in others), *past):
                tensor.masked_fill_(dead, 0.0)

    @torch.no_grad()
    def gradients(self, network: nn.Module) -> None:
        for name, dead in self.dead.items():
            gradient = network.get_parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(dead, 0.0)


class TiedCentroids:
    """Weights that share a value learn as one: each gets the mean of their gradients, and pruned ones none.

    Han, Mao and Dally 2016 (section 3.3) take the sum; a rate would then mean something else in each cluster.
    """

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        self.members: dict[str, tuple[Tensor, Tensor, int]] = {}  # positions [n], cluster of each [n], clusters
        for name in names:
            flat = network.get_parameter(name).detach().contiguous().flatten()
            alive = flat.nonzero()[:, 0]
            values, cluster = torch.unique(flat[alive], return_inverse=True)
            self.members[name] = (alive, cluster, len(values))

    def begin(self, network: nn.Module, others: list[nn.Module], optimizer: torch.optim.Optimizer, done: float) -> None:
        """Nothing changes by itself."""

    @torch.no_grad()
    def gradients(self, network: nn.Module) -> None:
        for name, (alive, cluster, count) in self.members.items():
            gradient = network.get_parameter(name).grad
            if gradient is not None:
                means = _means(gradient.contiguous().flatten()[alive], cluster, count)
                gradient.copy_(self._spread(name, means, gradient))

    @torch.no_grad()
    def settle(self, network: nn.Module) -> None:
        """Make equal again, to the last bit, what rounding may have parted: each weight becomes its cluster's mean."""
        for name, (alive, cluster, count) in self.members.items():
            weight = network.get_parameter(name)
            weight.copy_(self._spread(name, _means(weight.contiguous().flatten()[alive], cluster, count), weight))

    def _spread(self, name: str, each: Tensor, like: Tensor) -> Tensor:
        alive, cluster, _ = self.members[name]
        flat = torch.zeros(like.numel(), dtype=like.dtype, device=like.device)
        flat[alive] = each.to(like.dtype)[cluster]
        return flat.view(like.shape)


def _means(values: Tensor, cluster: Tensor, count: int) -> Tensor:
    """Mean of the values of each cluster, float64 [clusters]."""
    sums = torch.bincount(cluster, weights=values.double(), minlength=count)
    return sums / torch.bincount(cluster, minlength=count).clamp(min=1)
