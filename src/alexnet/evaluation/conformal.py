"""Conformal prediction sets: for each image a set of classes that holds its true class with a stated probability.

Split conformal prediction (Vovk et al. 2005; Sadinle, Lei and Wasserman 2019): a class is in the set of an image if
its probability reaches a threshold, the quantile of the true class's probability over the validation images. Here each
class has its own threshold (class-conditional, Vovk 2012), so that the guarantee holds for images of each class.

The guarantee is an average over validation splits: it holds for images of the same kind as these. A class with too few
validation images has no threshold and is in every set: at 90 %, 9 images are needed. Where images belong to groups,
one image of each group and class is used, and the guarantee is about an image of a new group.

Shapes: N images, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import RecipeError
from alexnet.evaluation.intervals import Estimate, proportion_ci

LEVELS = (0.9, 0.95)  # coverages for which a bundle has thresholds


def check_level(level: float | None) -> None:
    """Raise :class:`RecipeError` unless ``level`` is a probability between 0.5 and 1."""
    if level is not None and not 0.5 <= level < 1:
        raise RecipeError(
            f"--conformal is {level}", "the fraction of images whose set holds the true class: 0.5 to 0.999"
        )


def least_images(level: float) -> int:
    """The fewest validation images of a class that give it a threshold: those with ⌈(n + 1) · level⌉ ≤ n."""
    return math.ceil(level / (1 - level) - 1e-9)


def thresholds(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    level: float,
    groups: Sequence[str] = (),
    *,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The threshold of each class [K] from validation images: probabilities [N, K] and labels [N]; 0 where none is.

    It is the ⌈(n + 1) · level⌉-th largest probability of the class among its n validation images.
    """
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(labels))
    result = np.zeros(probabilities.shape[1])
    for k in range(len(result)):
        chosen = order[labels[order] == k]
        if groups:
            chosen = np.array(list({groups[i]: i for i in chosen.tolist()}.values()), np.int64)
        falling, rank = -np.sort(-probabilities[chosen, k]), math.ceil((len(chosen) + 1) * level - 1e-9)
        if 0 < rank <= len(falling):
            result[k] = falling[rank - 1]
    return result


@dataclass(frozen=True)
class PredictionSets:
    """The prediction sets of a split.

    Attributes:
        level: The requested coverage.
        fitted_count: Validation images (or one of each group and class) that gave the thresholds.
        thresholds: The probability from which on a class is in a set, by class; 0: too few validation images.
        coverage: Fraction of the images whose set holds the true class.
        classes: Name, images and coverage of each class.
        mean_size: Mean number of classes in a set.
        sizes: Number of images whose set has 0, 1, 2, … classes: [K + 1].
    """

    level: float
    fitted_count: int
    thresholds: tuple[float, ...]
    coverage: Estimate
    classes: tuple[tuple[str, int, Estimate], ...]
    mean_size: float
    sizes: tuple[int, ...]

    @property
    def without_threshold(self) -> tuple[str, ...]:
        """Classes that are in every set."""
        return tuple(name for (name, _, _), t in zip(self.classes, self.thresholds, strict=True) if t == 0)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "level": self.level,
            "fitted_count": self.fitted_count,
            "coverage": self.coverage.to_dict(),
            "mean_size": self.mean_size,
            "sizes": list(self.sizes),
            "classes": [
                {"class": name, "images": images, "threshold": threshold, "coverage": one.to_dict()}
                for (name, images, one), threshold in zip(self.classes, self.thresholds, strict=True)
            ],
        }


def prediction_sets(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    level: float,
    validation: tuple[NDArray[np.floating[Any]], NDArray[np.int64], Sequence[str]],
    groups: Sequence[str] = (),
) -> PredictionSets:
    """The sets of a split and how often they hold the true class.

    Args:
        probabilities: Probabilities of the reported split, [N, K].
        labels: Its labels, [N].
        classes: The class names.
        level: The requested coverage.
        validation: Probabilities, labels and groups of the validation split.
        groups: Groups of the reported split, [N]; empty if unknown.
    """
    known, own, their_groups = validation
    limits = thresholds(known, own, level, their_groups)
    count = len({(their_groups[i], own[i]) for i in range(len(own))}) if their_groups else len(own)
    return sets_of(probabilities, labels, classes, level, limits, count, groups)


def sets_of(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    level: float,
    limits: NDArray[np.float64],
    fitted_count: int,
    groups: Sequence[str] = (),
) -> PredictionSets:
    """As :func:`prediction_sets`, with the thresholds ``limits`` [K], which ``fitted_count`` validation images gave."""
    inside = probabilities >= limits  # [N, K]
    hits, sizes = inside[np.arange(len(labels)), labels], inside.sum(1)

    def coverage(k: int) -> tuple[str, int, Estimate]:
        chosen = np.flatnonzero(labels == k)
        its_groups = [groups[i] for i in chosen.tolist()] if groups else ()
        return classes[k], len(chosen), proportion_ci(hits[chosen], its_groups)

    return PredictionSets(
        level,
        fitted_count,
        tuple(limits.tolist()),
        proportion_ci(hits, groups),
        tuple(coverage(k) for k in range(len(classes))),
        float(sizes.mean()),
        tuple(np.bincount(sizes, minlength=len(classes) + 1).tolist()),
    )
