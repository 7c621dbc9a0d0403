"""All metrics of one classifier on one split: per class, calibration, risk and coverage, thresholds, slices.

Nothing is chosen on the images that are reported: temperature and thresholds were fitted on the validation split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from alexnet.evaluation.intervals import Estimate, proportion_ci
from alexnet.evaluation.metrics import Scores
from alexnet.evaluation.per_class import PerClass, Slice, per_class, slices

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
    return DetailedScores(
        scores=scores or predictions.scores(),
        classes=per_class(predictions, tuple(classes), temperature=temperature),
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
        slices=slices(predictions, tuple(slice_values)) if len(slice_values) else (),
        ood=tuple(ood_labels),
    )


def fitted_thresholds(thresholds: Mapping[str, float]) -> list[tuple[float, float]]:
    """A bundle's thresholds as pairs of target error and threshold, the smallest target first."""
    return sorted((float(target), threshold) for target, threshold in thresholds.items())
