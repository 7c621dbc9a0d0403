"""Which unlabeled images to label next: those that a classifier is least certain of, and that differ from each other.

Uncertainty is one minus the margin between the two highest class probabilities. Of the ``POOL`` times ``count`` most
uncertain images, a greedy k-center search (Sener, Savarese 2018) chooses the images whose features (fc7) are far from
those that are labeled and from each other.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Method = Literal["uncertain-diverse", "uncertain", "random"]
METHODS: tuple[Method, ...] = get_args(Method)
POOL = 5  # candidates for each image that is chosen
BLOCK = 1024  # rows of a table of distances


def uncertainty(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """One minus the margin between the two highest probabilities: [N, K] -> [N], 0 certain to 1 undecided."""
    highest = np.sort(np.asarray(probabilities, np.float64), axis=1)[:, -2:]
    return np.asarray(1 - (highest[:, 1] - highest[:, 0]))


def candidates(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The indices of the ``POOL`` times ``count`` most uncertain images, the most uncertain first."""
    return np.argsort(-scores, kind="stable")[: POOL * count]


def k_center(features: NDArray[np.float32], count: int, labeled: NDArray[np.float32]) -> NDArray[np.int64]:
    """Choose images one after the other, each the farthest from all labeled and all chosen ones.

    Args:
        features: of the candidates [N, D]. The first one starts if there are no labeled images.
        count: the number of images to choose.
        labeled: features of the labeled images [L, D], L may be 0.

    Returns:
        Indices of the chosen candidates [min(count, N)], in the order in which they were chosen.
    """
    points = features.astype(np.float64)
    nearest = np.full(len(points), np.inf)  # squared distance to the nearest center
    for start in range(0, len(labeled), BLOCK):
        nearest = np.minimum(nearest, _squared_distances(points, labeled[start : start + BLOCK]).min(axis=1))
    chosen: list[int] = []
    for _ in range(min(count, len(points))):
        index = int(nearest.argmax())
        chosen.append(index)
        nearest = np.minimum(nearest, _squared_distances(points, points[index : index + 1])[:, 0])
        nearest[chosen] = -1
    return np.array(chosen, np.int64)


def _squared_distances(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """[N, D] and [M, D] -> [N, M]."""
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * left @ right.T
    return np.asarray(np.maximum(squares, 0))
