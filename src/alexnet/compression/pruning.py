"""Magnitude pruning: which weights become 0, and how many of each layer.

Han, Pool, Tran and Dally 2015: small weights become 0, the others are retrained. The *curve* of a layer is the
validation loss after that layer alone was pruned. The kept shares are those at which one more byte in the file lowers
the loss equally in every layer; the target size sets that price.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

SHARES = (0.7, 0.5, 0.35, 0.25, 0.16, 0.1, 0.06, 0.035, 0.02)  # fractions kept, at which a curve is measured
MAX_RISE = 1.5  # nats above the unpruned loss at which the measurement ends
GRID = tuple(float(SHARES[-1] ** (step / 120)) for step in range(121))  # from 1 down to the least of them


@dataclass(frozen=True)
class Curve:
    """The cost of pruning one layer: fraction of its weights kept, decreasing -> validation loss in nats."""

    count: int  # weights of the layer
    bits: int  # of a code when they are shared
    base: float  # loss before
    losses: Mapping[float, float]

    def rise(self, share: float) -> float:
        """Increase of the loss in nats at ``share``: log-linear between measured shares, infinite below them.

        Noise may lower a loss; the curve is made monotonic.
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
        """Estimated bytes in the file: positions at their entropy, codes at 1.3 bits below their width."""
        share = min(max(share, 1e-9), 1 - 1e-9)
        where = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
        return self.count * (where + share * max(1.0, self.bits - 1.3)) / 8

    def best(self, price: float) -> float:
        """The share that minimizes loss plus bytes, at ``price`` nats per byte."""
        return min(GRID, key=lambda share: self.rise(share) + price * self.bytes(share))


def allocate(curves: Mapping[str, Curve], budget: float) -> dict[str, float]:
    """Layer -> share kept, at one price per byte for all, so that the layers take about ``budget`` bytes in the file.

    Below the measured shares all layers are pruned by the same factor.
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
    """Estimated bytes of the layers in the file."""
    return sum(curve.bytes(shares[name]) for name, curve in curves.items())


def threshold(weights: Tensor, share: float) -> float:
    """The magnitude that about ``share`` of the weights reach, at least one; equal magnitudes are treated alike."""
    count = weights.numel()
    stay = min(count, max(1, round(share * count)))
    return float(weights.detach().abs().flatten().kthvalue(count - stay + 1).values)


def gone(weights: Tensor, share: float) -> Tensor:
    """The mask of the weights to prune so that about ``share`` remain: bool, as ``weights``; zeros are pruned."""
    return (weights.detach().abs() < threshold(weights, share)) | (weights == 0)


def gradual(progress: float, first: float, last: float) -> float:
    """The share kept at ``progress`` (0 to 1), from ``first`` to ``last``: the cubic schedule of Zhu and Gupta 2017."""
    return last + (first - last) * (1 - min(max(progress, 0.0), 1.0)) ** 3
