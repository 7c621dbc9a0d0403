"""All metrics of one classifier on one split: per class, by slice, calibration, risk and coverage, thresholds.

Glossary: N images, K classes, b resamples.

Nothing is chosen on the images that are reported: temperature and thresholds were fitted on the validation split.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.store import Split
from alexnet.errors import DataError
from alexnet.evaluation.calibration import (
    Reliability,
    RiskCoverage,
    SelectiveMetrics,
    at_threshold,
    probabilities,
    reliability,
    risk_coverage,
    temperature_warning,
)
from alexnet.evaluation.evaluate import SplitPredictions
from alexnet.evaluation.intervals import (
    RESAMPLES,
    Estimate,
    bootstrap,
    estimate,
    f1_estimate,
    independent_units,
    proportion_ci,
    units_among,
)
from alexnet.evaluation.metrics import FIVE, Scores, label_ranks
from alexnet.evaluation.one_vs_rest import Curves, shown_curves

_MOST = 4_000_000_000  # images × classes × resamples of the area's bootstrap; fewer resamples beyond


_CLASS_METRICS = ("precision", "recall", "f1", "auroc", "specificity", "npv")


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
    specificity: Estimate  # of the images of other classes: not predicted as this one
    npv: Estimate  # negative predictive value: of the images not predicted as this class, those of other classes

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        numbers = {name: getattr(self, name).to_dict() for name in _CLASS_METRICS}
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
    right, among = responses.correct, label_ranks(responses.log_probabilities, labels) < FIVE
    top5 = proportion_ci(among, groups, seed=seed) if number > FIVE else None

    def of(weights: NDArray[np.float32]) -> NDArray[np.float64]:  # [b, N] -> [b, 3 + 5K]
        counts = weights.sum(1, dtype=np.float64)[:, None]
        counted = (labels[right], weights[:, right]), (predicted, weights), (labels, weights)
        sums = [np.stack([np.bincount(which, row, number) for row in drawn]) for which, drawn in counted]
        own = _ratios(sums[0], sums[1], sums[2], counts)  # 5 of [b, K]
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
        values = [(float(seen[3 + j * number + k]), drawn[:, 3 + j * number + k]) for j in range(5)]

        def rate(j: int, hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> Estimate:  # as rate_ci() computes it
            return estimate(*values[j], units_among(among, groups)) if groups else proportion_ci(hits[among])

        rarer = min(units_among(is_k, groups), units_among(~is_k, groups))
        curve = estimate(float(area[k]), area_drawn[:, k], rarer)
        precision, recall = rate(0, is_k, as_k), rate(1, as_k, is_k)
        f1 = f1_estimate(*values[2], units_among(is_k | as_k, groups))
        specificity, npv = rate(3, ~as_k, ~is_k), rate(4, ~is_k, ~as_k)
        counts = int(is_k.sum()), int(as_k.sum())
        return ClassMetrics(classes[k], *counts, precision, recall, f1, curve, specificity, npv)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means over no class are nan, as they must be
        mean_area = estimate(float(np.nanmean(area)), np.nanmean(area_drawn, 1), independent_units(count, groups))
    top1, of_classes = proportion_ci(right, groups, seed=seed), tuple(numbers(k) for k in range(number))
    return PerClass(top1, top5, whole(0), whole(1), whole(2), mean_area, of_classes)


def _ratios(
    both: NDArray[Any], prediction: NDArray[Any], truth: NDArray[Any], count: NDArray[Any]
) -> tuple[NDArray[np.float64], ...]:
    """Precision, recall, F1, specificity and NPV; NaN where a denominator is 0."""
    neither = count - prediction - truth + both
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = both / prediction, both / truth, 2 * both / (prediction + truth)
        return *rates, neither / (count - truth), neither / (count - prediction)


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
    by_image = np.ascontiguousarray(weights.T, np.float64)  # [N, b]: sorting moves whole rows
    for k in range(scores.shape[1]):
        order = np.argsort(scores[:, k], kind="stable")
        rising, mine = scores[order, k], labels[order] == k
        others = by_image[order]
        positive = others[mine]
        others[mine] = 0
        sums = np.concatenate([np.zeros((1, len(weights))), np.cumsum(others, 0)])  # [N + 1, b]
        below, through = (np.searchsorted(rising, rising[mine], side) for side in ("left", "right"))
        won = (positive * (sums[below] + sums[through])).sum(0) / 2
        pairs = positive.sum(0) * sums[-1]
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


_NO_PROBABILITIES = np.zeros(0, np.float32)


@dataclass(frozen=True)
class ThresholdResult:
    """A confidence threshold and its effect on a split.

    Attributes:
        target: The error that the threshold was fitted for; 0 where the user gave the threshold.
        metrics: Coverage and error of the split at the threshold.
        ood_rejected: The fraction of out-of-distribution images below the threshold; None without such images.
    """

    target: float
    metrics: SelectiveMetrics
    ood_rejected: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        result = {"target": self.target or None} | self.metrics.to_dict()
        return result | ({"ood_rejected": self.ood_rejected.to_dict()} if self.ood_rejected else {})


@dataclass(frozen=True, kw_only=True)
class DetailedScores:
    """All metrics of one classifier on one split.

    Attributes:
        scores: Top-1, top-5, loss and confusion matrix.
        classes: Recall, precision, F1 and AUROC of each class, and their means.
        uncalibrated: Reliability of the network's own probabilities.
        calibrated: Reliability of the probabilities after the bundle's temperature.
        temperature: The divisor of the logits; 1 where none is applied.
        curve: Error against coverage.
        thresholds: The effect of each threshold.
        confidence: The calibrated probability of each top-1 prediction: [N].
        correct: Whether each top-1 prediction is correct: [N].
        majority: Accuracy of always predicting the most frequent class.
        groups: Number of groups of images that belong together; 0 where images are independent.
        curves: ROC and precision-recall curves of the second of two classes, or of the four of lowest AUROC.
        slices: Scores of the images with each value of a column.
        ood: Top-1 predictions for out-of-distribution images.
    """

    scores: Scores
    classes: PerClass
    uncalibrated: Reliability
    calibrated: Reliability
    temperature: float
    curve: RiskCoverage
    thresholds: tuple[ThresholdResult, ...]
    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]
    majority: float
    groups: int
    curves: tuple[Curves, ...] = ()
    slices: tuple[Slice, ...] = ()
    ood: tuple[str, ...] = ()

    @property
    def temperature_warning(self) -> str:
        """A sentence where the temperature makes calibration worse on these images; else empty."""
        return temperature_warning(self.temperature, self.uncalibrated, self.calibrated)

    def confusions(self, count: int = 8) -> list[tuple[int, int, int]]:
        """The ``count`` most frequent confusions: (true class, predicted class, images)."""
        table = self.scores.confusion.numpy().copy()
        np.fill_diagonal(table, 0)
        order = np.argsort(-table, axis=None, kind="stable")
        pairs = [(int(i // len(table)), int(i % len(table))) for i in order[:count]]
        return [(true, predicted, int(table[true, predicted])) for true, predicted in pairs if table[true, predicted]]

    def to_dict(self) -> dict[str, Any]:
        """The metrics as JSON values: the keys of the scores, and a key for each other part."""
        steps = [step / 10 for step in range(1, 11)]
        curve = [dict(zip(("threshold", "risk"), self.curve.at(c), strict=True)) | {"coverage": c} for c in steps]
        parts: dict[str, Any] = {
            "groups": self.groups,
            "per_class": self.classes.to_dict(),
            "confusion": self.scores.confusion.tolist(),
            "curves": [one.to_dict() for one in self.curves],
            "calibration": {"before": self.uncalibrated.to_dict(), "after": self.calibrated.to_dict()},
            "selective": {
                "area": self.curve.area,
                "curve": curve,
                "thresholds": [one.to_dict() for one in self.thresholds],
            },
        }
        parts |= {"slices": [one.to_dict() for one in self.slices]} if self.slices else {}
        parts |= {"ood": {"images": len(self.ood)}} if self.ood else {}
        return self.scores.to_dict() | parts


def detailed_scores(
    predictions: SplitPredictions,
    classes: Sequence[str],
    temperature: float,
    thresholds: Sequence[tuple[float, float]],
    *,
    scores: Scores | None = None,
    slice_values: Sequence[str] = (),
    ood_confidence: NDArray[np.float32] = _NO_PROBABILITIES,
    ood_labels: Sequence[str] = (),
) -> DetailedScores:
    """Compute all metrics from the predictions for a split.

    Args:
        predictions: Log probabilities and labels of N images.
        classes: The class names.
        temperature: The divisor of the logits, fitted on the validation split.
        thresholds: Pairs of target error (0: none) and confidence threshold.
        scores: The scores to report; by default those of ``predictions``.
        slice_values: The value of a column for each image, [N]; empty for no slices.
        ood_confidence: The top-1 probability of each out-of-distribution image, [M].
        ood_labels: The top-1 prediction for each of them, [M].
    """
    uncalibrated, calibrated = (probabilities(predictions.log_probabilities, t) for t in (1.0, temperature))
    confidence, correct = calibrated.max(1).astype(np.float32), predictions.correct
    by_class = per_class(predictions, tuple(classes), temperature=temperature)
    aurocs = [one.auroc.value for one in by_class.classes]
    return DetailedScores(
        scores=scores or predictions.scores(),
        classes=by_class,
        uncalibrated=reliability(uncalibrated, predictions.labels, groups=predictions.groups),
        calibrated=reliability(calibrated, predictions.labels, groups=predictions.groups),
        temperature=temperature,
        curve=risk_coverage(confidence, correct),
        thresholds=tuple(
            ThresholdResult(
                target,
                at_threshold(confidence, correct, threshold, predictions.groups),
                proportion_ci(ood_confidence < threshold) if len(ood_confidence) else None,
            )
            for target, threshold in thresholds
        ),
        confidence=confidence,
        correct=correct,
        majority=float(np.bincount(predictions.labels).max() / len(predictions)),
        groups=len(set(predictions.groups)),
        curves=shown_curves(classes, aurocs, calibrated, predictions.labels, predictions.groups),
        slices=slices(predictions, tuple(slice_values)) if len(slice_values) else (),
        ood=tuple(ood_labels),
    )


def fitted_thresholds(thresholds: Mapping[str, float]) -> list[tuple[float, float]]:
    """A bundle's thresholds as pairs of target error and threshold, the smallest target first."""
    return sorted((float(target), threshold) for target, threshold in thresholds.items())
