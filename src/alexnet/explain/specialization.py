"""Specialization of the first layer's filters on color, for each tower (section 6.1 of the paper), as a number.

"The kernels on GPU 1 are largely color-agnostic, while the kernels on GPU 2 are largely color-specific". The color
share of a filter is the part of its energy (the sum of its squared weights) that a gray image does not activate. At
each position the three weights are split into their mean, which responds to gray, and the remainder, which responds
to color alone.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNTRAINED = 2 / 3  # expected color share of three independent weights: two of three directions are color
SHUFFLES = 2000


@dataclass(frozen=True)
class Specialization:
    """The color shares of a first layer. 0: only gray; 1: only color; untrained weights: 2/3.

    Attributes:
        filters: The color share of each filter, [K].
        towers: That of each tower, weighted by energy, so that untrained filters weigh little.
        colored: Number of filters in each tower with a color share above 1/2.
        difference: The largest difference between two towers.
        by_chance: Fraction of random divisions of the filters into towers with at least this difference (p-value).
    """

    filters: tuple[float, ...]
    towers: tuple[float, ...]
    colored: tuple[int, ...]
    difference: float
    by_chance: float

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON values, with the expectation of untrained weights."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()} | {
            "untrained": UNTRAINED
        }


def specialization(weights: NDArray[np.floating[Any]], towers: int, seed: int = 0) -> Specialization | None:
    """The color shares of filters [K, C, H, W] in ``towers`` equal parts of dimension 0.

    None unless there are 3 channels, and for filters that are 0 or not finite.
    """
    if weights.ndim != 4 or weights.shape[1] != 3 or towers < 1 or len(weights) % towers:
        return None
    w = weights.astype(np.float64)
    energy = np.square(w).sum((1, 2, 3))  # [K]
    color = np.square(w - w.mean(1, keepdims=True)).sum((1, 2, 3))  # [K]
    if not np.isfinite(energy).all() or not energy.all():
        return None
    shares, each = color / energy, _by_tower(np.arange(len(w))[None], energy, color, towers)[0]
    difference = float(np.ptp(each))
    generator = np.random.Generator(np.random.Philox(key=seed))
    shuffled = generator.permuted(np.tile(np.arange(len(w)), (SHUFFLES, 1)), axis=1)
    drawn = np.ptp(_by_tower(shuffled, energy, color, towers), axis=1)  # [SHUFFLES]
    chance = (1 + int((drawn >= difference - 1e-12).sum())) / (1 + SHUFFLES)
    colored = (shares > 0.5).reshape(towers, -1).sum(1)
    return Specialization(tuple(shares.tolist()), tuple(each.tolist()), tuple(colored.tolist()), difference, chance)


def _by_tower(
    order: NDArray[np.int64], energy: NDArray[np.float64], color: NDArray[np.float64], towers: int
) -> NDArray[np.float64]:
    """The color share of each tower for each order [b, K] of the filters: [b, towers]."""
    sums = [part[order].reshape(len(order), towers, -1).sum(2) for part in (color, energy)]
    return np.asarray(sums[0] / sums[1])
