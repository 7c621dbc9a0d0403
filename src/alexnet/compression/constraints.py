"""Weight constraints of retraining: pruned weights stay 0, and shared weights stay equal.

Both change gradients between the backward pass and the update, so they hold for every optimizer: a weight of 0 with a
zero gradient and zero state stays 0; equal weights with equal gradients and equal state stay equal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from alexnet.compression.pruning import gone, gradual

PRUNE_EVERY = 8  # steps; sorting 57 million magnitudes takes 1 s, a step of 64 images 1.5 s


@dataclass
class Pruning:
    """Prunes weights gradually, then trains the remaining ones.

    Attributes:
        first: Layer -> fraction kept at the beginning.
        last: Layer -> fraction kept from ``until`` on.
        until: Fraction of the training during which weights are pruned.
        steps: Steps so far.
        pruned: Layer -> mask of its pruned weights.
        finished: Are all weights pruned?
    """

    first: Mapping[str, float]
    last: Mapping[str, float]
    until: float = 0.5
    steps: int = 0
    pruned: dict[str, Tensor] = field(default_factory=dict)
    finished: bool = False

    @torch.no_grad()
    def begin(self, network: nn.Module, others: list[nn.Module], optimizer: torch.optim.Optimizer, done: float) -> None:
        due = not self.finished and (self.steps % PRUNE_EVERY == 0 or done >= self.until)
        self.steps += 1
        if not due:
            return
        self.finished = done >= self.until
        for name, last in self.last.items():
            weight = network.get_parameter(name)
            pruned = self.pruned[name] = gone(weight, gradual(done / self.until, self.first[name], last))
            past = [v for v in optimizer.state.get(weight, {}).values() if getattr(v, "shape", None) == weight.shape]
            for tensor in (weight, *(other.get_parameter(name) for other in others), *past):
                tensor.masked_fill_(pruned, 0.0)

    @torch.no_grad()
    def gradients(self, network: nn.Module) -> None:
        for name, pruned in self.pruned.items():
            gradient = network.get_parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(pruned, 0.0)


class TiedCentroids:
    """Weights that share a value are trained as one: each gets the mean of their gradients, pruned ones get 0.

    Han, Mao and Dally 2016 (section 3.3) take the sum, with which the learning rate would depend on the cluster size.
    """

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        self.members: dict[str, tuple[Tensor, Tensor, int]] = {}  # positions [n], cluster of each [n], clusters
        for name in names:
            flat = network.get_parameter(name).detach().contiguous().flatten()
            alive = flat.nonzero()[:, 0]
            values, cluster = torch.unique(flat[alive], return_inverse=True)
            self.members[name] = (alive, cluster, len(values))

    def begin(self, network: nn.Module, others: list[nn.Module], optimizer: torch.optim.Optimizer, done: float) -> None:
        """Does nothing before a step."""

    @torch.no_grad()
    def gradients(self, network: nn.Module) -> None:
        for name, (alive, cluster, count) in self.members.items():
            gradient = network.get_parameter(name).grad
            if gradient is not None:
                means = _means(gradient.contiguous().flatten()[alive], cluster, count)
                gradient.copy_(self._spread(name, means, gradient))

    @torch.no_grad()
    def settle(self, network: nn.Module) -> None:
        """Make the weights of each cluster equal to the last bit: each becomes the mean of its cluster."""
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
