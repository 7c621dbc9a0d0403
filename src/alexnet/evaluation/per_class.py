"""Each class by itself: precision, recall, F1 and the area under its curve, each with an interval; and their means.

Glossary: N images, K classes, b resamples.


Numbers by a column of the table that the images came from: camera, hospital, age, light.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.store import Split
from alexnet.errors import DataError
from alexnet.evaluation.evaluate import SplitPredictions
from alexnet.evaluation.intervals import (
    RESAMPLES,
    Estimate,
    bootstrap,
    estimate,
    f1_estimate,
    independent_units,
    proportion_ci,
)
from alexnet.evaluation.metrics import FIVE

_MOST = 4_000_000_000  # images × classes × resamples of the area's bootstrap; fewer resamples beyond


@dataclass(frozen=True)
class ClassMetrics:
    """One class: ``images`` of it, ``predicted`` as it, and what came of them; nan where nothing can be said."""

    name: str
    images: int
    predicted: int
    precision: Estimate
    recall: Estimate
    f1: Estimate
    auroc: Estimate  # this class against all others, by its probability

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        numbers = {name: getattr(self, name).to_dict() for name in ("precision", "recall", "f1", "auroc")}
        return {"class": self.name, "images": self.images, "predicted": self.predicted} | numbers


@dataclass(frozen=True)
class PerClass:
    """All classes, and their plain means over the classes that have images. Balanced accuracy is mean recall."""

    top1: Estimate
    top5: Estimate | None  # None of five classes or fewer
    balanced_accuracy: Estimate
    macro_precision: Estimate
    macro_f1: Estimate
    macro_auroc: Estimate
    classes: tuple[ClassMetrics, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values; ``classes`` is a list."""
        return {
            name: [one.to_dict() for one in self.classes] if name == "classes" else value and value.to_dict()
            for name, value in vars(self).items()
        }


def per_class(
    responses: SplitPredictions,
    classes: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    temperature: float = 1.0,
) -> PerClass:
    """Numbers by class, their intervals from one set of resamples: of images, or of groups where there are some.

    ``temperature`` matters to the areas alone: they compare a class's probability between images.
    """
    labels, predicted, groups = responses.labels, responses.predicted, responses.groups
    count, number = len(labels), len(classes)
    truth, prediction = (_one_hot(x, number) for x in (labels, predicted))  # [N, K]
    both = truth * prediction
    among = np.argsort(-responses.log_probabilities, 1, kind="stable")[:, :5] == labels[:, None]
    top5 = proportion_ci(among.any(1), groups, seed=seed) if number > FIVE else None

    def of(weights: NDArray[np.float32]) -> NDArray[np.float64]:  # [b, N] -> [b, 3 + 3K]
        sums = [(weights @ table).astype(np.float64) for table in (both, prediction, truth)]
        own = _ratios(*sums)  # 3 of [b, K]
        present = sums[2] > 0
        means = [_mean(part, present) for part in (own[1], np.where(np.isnan(own[0]), 0.0, own[0]), own[2])]
        return np.concatenate([np.stack(means, 1), *own], 1)

    seen = of(np.ones((1, count), np.float32))[0]
    drawn = bootstrap(of, count, groups, number=resamples, seed=seed)
    scores = _scores(responses.log_probabilities, temperature)
    area = areas(scores, labels, np.ones((1, count), np.float32))[0]  # [K]
    fewer = min(resamples, max(100, _MOST // (count * number)))
    area_drawn = bootstrap(lambda w: areas(scores, labels, w), count, groups, number=fewer, seed=seed)

    def whole(place: int) -> Estimate:
        return estimate(float(seen[place]), drawn[:, place], independent_units(count, groups))

    def numbers(k: int) -> ClassMetrics:
        is_k, as_k = labels == k, predicted == k
        bases = [_independent(mask, groups) for mask in (as_k, is_k, is_k | as_k)]
        values = [(float(seen[3 + j * number + k]), drawn[:, 3 + j * number + k]) for j in range(3)]
        rarer = min(_independent(is_k, groups), _independent(~is_k, groups))
        curve = estimate(float(area[k]), area_drawn[:, k], rarer)
        precision, recall = (estimate(*values[j], bases[j]) for j in range(2))
        f1 = f1_estimate(*values[2], bases[2])
        return ClassMetrics(classes[k], int(is_k.sum()), int(as_k.sum()), precision, recall, f1, curve)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means over no class are nan, as they must be
        mean_area = estimate(float(np.nanmean(area)), np.nanmean(area_drawn, 1), independent_units(count, groups))
    top1, of_classes = proportion_ci(responses.correct, groups, seed=seed), tuple(numbers(k) for k in range(number))
    return PerClass(top1, top5, whole(0), whole(1), whole(2), mean_area, of_classes)


def _one_hot(which: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    return np.asarray(which[:, None] == np.arange(classes), np.float32)


def _independent(mask: NDArray[np.bool_], groups: Sequence[str]) -> int:
    return len({groups[i] for i in np.flatnonzero(mask).tolist()}) if groups else int(mask.sum())


def _ratios(both: NDArray[Any], prediction: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[np.float64], ...]:
    """Precision, recall and F1 = 2·both / (prediction + truth); nan where nothing was guessed, or is there."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return both / prediction, both / truth, 2 * both / (prediction + truth)


def _mean(values: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The mean over the classes that have images: [b, K] -> [b]."""
    return np.asarray(np.where(present, values, 0.0).sum(1) / np.maximum(present.sum(1), 1))


def _scores(log_probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    from alexnet.evaluation.calibration import probabilities

    return probabilities(log_probabilities, temperature)


def areas(scores: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Area under the curve of each class against all others, by scores [N, K]: weights [b, N] -> [b, K].

    It is the probability that an image of the class has a higher score than one of another class, ties counting half
    (Mann and Whitney 1947); nan where one of the two sides has no image.
    """
    result = np.full((len(weights), scores.shape[1]), np.nan)
    for k in range(scores.shape[1]):
        order = np.argsort(scores[:, k], kind="stable")
        rising, mine = scores[order, k], labels[order] == k
        own = weights[:, order]
        others = np.cumsum(np.where(mine, 0, own), 1, dtype=np.float64)  # [b, N]
        others = np.concatenate([np.zeros((len(own), 1)), others], 1)
        below, through = (np.searchsorted(rising, rising[mine], side) for side in ("left", "right"))
        positive = own[:, mine]
        won = (positive * (others[:, below] + others[:, through])).sum(1) / 2
        pairs = positive.sum(1, dtype=np.float64) * others[:, -1]
        result[:, k] = np.divide(won, pairs, out=np.full(len(won), np.nan), where=pairs > 0)
    return result


EMPTY = "(empty)"


@dataclass(frozen=True)
class Slice:
    """The images with one value of a column: top-1 with its interval; ``groups`` among them, 0 without groups."""

    value: str
    images: int
    groups: int
    top1: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"value": self.value, "images": self.images, "groups": self.groups, "top1": self.top1.to_dict()}


def column(split: Split, name: str) -> tuple[str, ...]:
    """The value that each image of a split has in a column; raises :class:`DataError` where there is no such."""
    rows = split.origins()
    if name == "group" and not any("group" in row.get("columns", {}) for row in rows):
        results = [row.get("group") for row in rows]  # by a pattern, or of another column
    else:
        results = [row.get("columns", {}).get(name.lower()) for row in rows]
    if all(value is None for value in results):
        known = sorted({key for row in rows for key in row.get("columns", {})})
        must = f"one of {', '.join(known)}" if known else "a column of the CSV or TSV that the images came from"
        todo = "choose another" if known else "prepare the images from a table; folders have no columns"
        raise DataError(f"{split.name}: no column {name!r} in {split.backend.address}", must, todo)
    return tuple(value or EMPTY for value in results)


def slices(responses: SplitPredictions, values: Sequence[str], *, seed: int = 0) -> tuple[Slice, ...]:
    """Top-1 of the images of each value, in the order of the values' names."""
    every, correct = np.asarray(values), responses.correct
    results = []
    for value in sorted(set(values)):
        own = np.flatnonzero(every == value)
        groups = [responses.groups[i] for i in own] if responses.groups else []
        results.append(Slice(value, len(own), len(set(groups)), proportion_ci(correct[own], groups, seed=seed)))
    return tuple(results)
