"""Which weights go: by magnitude, layer by layer, as many of each as the validation loss says it can spare.

Han, Pool, Tran and Dally 2015: small weights go, the others learn again. How much of each layer: its *curve* is the
validation loss after that layer alone was pruned. The shares are those at which another byte in the file would lower
the loss by as much in one layer as in any other; how much that is, the wanted size decides.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

SHARES = (0.7, 0.5, 0.35, 0.25, 0.16, 0.1, 0.06, 0.035, 0.02)  # kept, at which a curve is measured
HOPELESS = 1.5  # nats above the unpruned loss: no need to measure further
GRID = tuple(float(SHARES[-1] ** (step / 120)) for step in range(121))  # from 1 down to the least of them


@dataclass(frozen=True)
class Curve:
    """What pruning one layer costs: share of its weights kept, falling -> validation loss, nats."""

    count: int  # weights of the layer
    bits: int  # of a code when they are shared
    base: float  # loss before
    losses: Mapping[float, float]

    def rise(self, share: float) -> float:
        """Nats by which the loss is up at ``share``: between measured shares by their logarithm, infinite below them.

        Noise may lower a loss; a curve does not fall.
        """
        last, last_rise = 1.0, 0.0
        for measured, loss in self.losses.items():
            now = max(last_rise, loss - self.base)
            if share >= measured:
                part = math.log(last / share) / math.log(last / measured) if share < last else 0.0
                return last_rise + part * (now - last_rise)
            last, last_rise = measured, now
        return math.inf

    def bytes(self, share: float) -> float:
        """Bytes in the file, about: positions at their entropy, codes at 1.3 bits below their width."""
        share = min(max(share, 1e-9), 1 - 1e-9)
        where = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
        return self.count * (where + share * max(1.0, self.bits - 1.3)) / 8

    def best(self, price: float) -> float:
        """The share at which the loss plus the bytes, at ``price`` nats a byte, are least."""
        return min(GRID, key=lambda share: self.rise(share) + price * self.bytes(share))


def allocate(curves: Mapping[str, Curve], budget: float) -> dict[str, float]:
    """Layer -> share kept, all at the same price of a byte, so that the layers take about ``budget`` bytes in the file.

    What the curves do not reach is reached by cutting all layers alike.
    """
    low, high = 1e-15, 1e3
    for _ in range(80):
        middle = math.sqrt(low * high)
        fits = estimate(curves, {name: curve.best(middle) for name, curve in curves.items()}) <= budget
        low, high = (low, middle) if fits else (middle, high)
    shares = {name: curve.best(high) for name, curve in curves.items()}
    while estimate(curves, shares) > budget and min(shares.values()) > 1e-6:
        shares = {name: 0.97 * share for name, share in shares.items()}
    return shares


def estimate(curves: Mapping[str, Curve], shares: Mapping[str, float]) -> float:
    """Bytes that the layers take in the file, about."""
    return sum(curve.bytes(shares[name]) for name, curve in curves.items())


def threshold(weights: Tensor, share: float) -> float:
    """The magnitude that about ``share`` of the weights reach; at least one does. Equal ones stay or go together."""
    count = weights.numel()
    stay = min(count, max(1, round(share * count)))
    return float(weights.detach().abs().flatten().kthvalue(count - stay + 1).values)


def gone(weights: Tensor, share: float) -> Tensor:
    """Which weights go, so that about ``share`` stay: bool, as ``weights``. What is 0 has gone."""
    return (weights.detach().abs() < threshold(weights, share)) | (weights == 0)


def gradual(progress: float, first: float, last: float) -> float:
    """The share kept at ``progress`` (0 … 1): from ``first`` to ``last``, fast while there is much to lose (Zhu and
    Gupta 2017, cubic)."""
    return last + (first - last) * (1 - min(max(progress, 0.0), 1.0)) ** 3
