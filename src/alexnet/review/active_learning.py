"""Which unlabeled images to label next: those that a classifier is least certain of, and that differ from each other.

Uncertainty is one minus the margin between the two highest class probabilities. Of the ``POOL`` times ``count`` most
uncertain images, a greedy k-center search (Sener, Savarese 2018) chooses those whose features (fc7) differ most.
More candidates, or a distance from the labeled images too, chose more unusual images and were less accurate
(docs/review.md).
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Method = Literal["uncertain-diverse", "uncertain", "random"]
METHODS: tuple[Method, ...] = get_args(Method)
POOL = 2  # candidates for each image that is chosen


def uncertainty(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """One minus the margin between the two highest probabilities: [N, K] -> [N], 0 certain to 1 undecided."""
    highest = np.sort(np.asarray(probabilities, np.float64), axis=1)[:, -2:]
    return np.asarray(1 - (highest[:, 1] - highest[:, 0]))


def candidates(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The indices of the ``POOL`` times ``count`` most uncertain images, the most uncertain first."""
    return np.argsort(-scores, kind="stable")[: POOL * count]


def k_center(features: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Choose images one after the other: the first one, then each the farthest from all that are chosen.

    Args:
        features: of the candidates [N, D].
        count: the number of images to choose.

    Returns:
        Indices of the chosen candidates [min(count, N)], in the order in which they were chosen.
    """
    points = np.asarray(features, np.float64)
    nearest = np.full(len(points), np.inf)  # distance to the nearest chosen image
    chosen: list[int] = []
    for _ in range(min(count, len(points))):
        index = int(nearest.argmax())
        chosen.append(index)
        nearest = np.minimum(nearest, np.linalg.norm(points - points[index], axis=1))
        nearest[chosen] = -1
    return np.array(chosen, np.int64)
