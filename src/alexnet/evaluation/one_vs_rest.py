"""One class against the rest: sensitivity, specificity, PPV, NPV, ROC and precision-recall curves, thresholds by cost.

The *positive* class is the one that is looked for: a disease, a defect. An image is called positive if the calibrated
probability of that class, its *score*, reaches a threshold, or without a threshold if the class is the top-1
prediction. Sensitivity is the recall of the class, PPV (positive predictive value) its precision.

A threshold is chosen by cost on the validation split; its expected cost is reported on another split. The expected
cost, PPV and NPV hold for images with the same fraction of positives as the split; sensitivity, specificity and the
ROC curve do not depend on it.

Shapes: N images, B resamples, G points of a curve.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import RecipeError
from alexnet.evaluation.intervals import (
    Estimate,
    estimate,
    proportion_ci,
    rate_ci,
    resamples,
    units_among,
)

RESAMPLES = 500  # of the bands: half a second for 1,000 images and one class
GRID = np.linspace(0, 1, 101)  # false positive rates, or recalls, at which a curve has a confidence band


@dataclass(frozen=True)
class BinaryRates:
    """The decisions for N images at one threshold.

    Attributes:
        threshold: Scores from which on an image is called positive; None: top-1 prediction.
        counts: True positives, false positives, false negatives, true negatives.
        sensitivity: Fraction of the positive images that are called positive.
        specificity: Fraction of the negative images that are called negative.
        ppv: Fraction of the images called positive that are positive.
        npv: Fraction of the images called negative that are negative.
    """

    threshold: float | None
    counts: tuple[int, int, int, int]
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        names = ("true_positives", "false_positives", "false_negatives", "true_negatives")
        rates = {name: getattr(self, name).to_dict() for name in ("sensitivity", "specificity", "ppv", "npv")}
        return {"threshold": self.threshold} | dict(zip(names, self.counts, strict=True)) | rates


def binary_rates(
    called: NDArray[np.bool_], positive: NDArray[np.bool_], groups: Sequence[str] = (), threshold: float | None = None
) -> BinaryRates:
    """The rates of decisions.

    Args:
        called: Images that are called positive, [N].
        positive: Images that are positive, [N].
        groups: The groups of the images, [N]; empty if unknown.
        threshold: The threshold that led to ``called``.
    """
    pairs = (called & positive, called & ~positive, ~called & positive, ~called & ~positive)
    return BinaryRates(
        threshold,
        (int(pairs[0].sum()), int(pairs[1].sum()), int(pairs[2].sum()), int(pairs[3].sum())),
        sensitivity=rate_ci(called, positive, groups),
        specificity=rate_ci(~called, ~positive, groups),
        ppv=rate_ci(positive, called, groups),
        npv=rate_ci(~positive, ~called, groups),
    )


# Curves


@dataclass(frozen=True)
class Curve:
    """A curve with a pointwise 95 % confidence band.

    Attributes:
        x: The curve, by falling threshold: false positive rate, or recall.
        y: The same: true positive rate, or precision.
        low: The band's lower end at the points of :data:`GRID`, NaN where the curve has no value: [G].
        high: Its upper end: [G].
        area: Area under the ROC curve, or average precision, with its 95 % CI.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    area: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As plain values: the area and the curve itself."""
        return {"area": self.area.to_dict(), "x": list(self.x), "y": list(self.y)}


@dataclass(frozen=True)
class Curves:
    """The curves of one class against the rest; ``prevalence``: the fraction of images of the class."""

    name: str
    prevalence: float
    roc: Curve
    precision_recall: Curve

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        curves = {"roc": self.roc.to_dict(), "precision_recall": self.precision_recall.to_dict()}
        return {"class": self.name, "prevalence": self.prevalence} | curves


def curves(
    name: str,
    scores: NDArray[np.floating[Any]],
    positive: NDArray[np.bool_],
    groups: Sequence[str] = (),
    *,
    number: int = RESAMPLES,
    seed: int = 0,
) -> Curves | None:
    """ROC and precision-recall curves of one class, with bands by the bootstrap over images or groups.

    The band of the ROC curve is that of the sensitivity at a false positive rate of at most x, the band of the other
    that of the precision at the highest threshold with a recall of at least x.

    Args:
        name: The class.
        scores: Its probability for each image, [N].
        positive: Images of the class, [N].
        groups: The groups of the images, [N]; empty if unknown.
        number: Resamples.
        seed: Seed of the bootstrap.

    Returns:
        The curves, or None where all images are of the class, or none is.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    if not positive.any() or positive.all():
        return None
    order, ends = _by_falling_score(scores)
    parts = [
        _on_grid(weights, positive, order, ends) for weights in resamples(len(scores), groups, number=number, seed=seed)
    ]
    tpr, precision, auc, average = (np.concatenate(part) for part in zip(*parts, strict=True))
    seen = _on_grid(np.ones((1, len(scores)), np.float32), positive, order, ends)
    sides = [units_among(side, groups) for side in (positive, ~positive)]
    fpr, hits, _ = roc_curve(positive, scores)
    precisions, recalls, _ = precision_recall_curve(positive, scores)
    area = estimate(float(roc_auc_score(positive, scores)), auc, min(sides))
    mean_precision = estimate(float(average_precision_score(positive, scores)), average, sides[0])
    return Curves(
        name,
        float(positive.mean()),
        Curve(tuple(fpr.tolist()), tuple(hits.tolist()), *_band(seen[0][0], tpr, sides[0]), area),
        Curve(
            tuple(recalls[::-1].tolist()),
            tuple(precisions[::-1].tolist()),
            *_band(seen[1][0], precision, sides[0]),
            mean_precision,
        ),
    )


def _by_falling_score(scores: NDArray[np.floating[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The images by falling score [N], and the place of the last image of each distinct score."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    return order, np.flatnonzero(np.append(falling[1:] != falling[:-1], True))


def _on_grid(
    weights: NDArray[np.float32], positive: NDArray[np.bool_], order: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """TPR [b, G] and precision [b, G] at :data:`GRID`, AUROC [b] and average precision [b] of weights [b, N]."""
    own = weights[:, order].astype(np.float64)
    start = np.zeros((len(own), 1))
    tp = np.concatenate([start, np.cumsum(own * positive[order], 1)[:, ends]], 1)  # [b, T + 1], from no prediction on
    fp = np.concatenate([start, np.cumsum(own * ~positive[order], 1)[:, ends]], 1)
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample without images of one side has no rates
        tpr, fpr, precision = tp / tp[:, -1:], fp / fp[:, -1:], tp[:, 1:] / (tp + fp)[:, 1:]
    auc = (np.diff(fpr, axis=1) * (tpr[:, 1:] + tpr[:, :-1]) / 2).sum(1)
    average = (np.diff(tpr, axis=1) * np.where(np.isnan(precision), 0.0, precision)).sum(1)
    at_fpr, at_recall = np.empty((len(own), len(GRID))), np.empty((len(own), len(GRID)))
    for row in range(len(own)):  # counts are exact: compared with a margin below one image
        place = np.searchsorted(fp[row], GRID * fp[row, -1] + 1e-6, side="right") - 1
        at_fpr[row] = tpr[row, place]
        reached = np.searchsorted(tp[row, 1:], GRID * tp[row, -1] - 1e-6, side="left")
        at_recall[row] = precision[row, np.minimum(reached, precision.shape[1] - 1)]
    return at_fpr, at_recall, auc, average


def _band(
    seen: NDArray[np.float64], drawn: NDArray[np.float64], count: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The lower and the upper end of the band [G] around the values ``seen`` [G], from those of resamples [B, G]."""
    points = [estimate(float(value), drawn[:, i], count) for i, value in enumerate(seen)]
    return tuple(one.low for one in points), tuple(one.high for one in points)


# Thresholds by cost


@dataclass(frozen=True)
class Cost:
    """What a mistake costs, in any unit: a false positive and a false negative."""

    false_positive: float
    false_negative: float

    @classmethod
    def parse(cls, text: str) -> "Cost":
        """``FP=1,FN=20``. Raises :class:`RecipeError` for anything else."""
        number = r"(\d+\.?\d*|\.\d+)"
        values = dict(re.findall(rf"(?:^|,)(FP|FN)={number}(?=,|$)", text.replace(" ", "")))
        if set(values) != {"FP", "FN"} or not re.fullmatch(rf"F[PN]={number},F[PN]={number}", text.replace(" ", "")):
            raise RecipeError(f"--cost is {text!r}", "the cost of a false positive and a false negative: FP=1,FN=20")
        cost = cls(float(values["FP"]), float(values["FN"]))
        if min(cost.false_positive, cost.false_negative) <= 0:
            raise RecipeError(f"--cost is {text!r}", "two costs above 0")
        return cost

    def of(self, called: NDArray[np.bool_], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The cost of each decision: [N] and [N] -> [N]."""
        return np.asarray((called & ~positive) * self.false_positive + (~called & positive) * self.false_negative)

    def expected(self, called: NDArray[np.bool_], positive: NDArray[np.bool_], groups: Sequence[str] = ()) -> Estimate:
        """The mean cost of an image, with its 95 % CI.

        The intervals of the two fractions of mistakes are combined (MOVER, Zou and Donner 2008). The bootstrap would
        be too narrow: with 200 images and one expensive mistake among them it contains the truth in 70 % of cases.
        """
        value, below, above = 0.0, 0.0, 0.0
        for wrong, cost in ((called & ~positive, self.false_positive), (~called & positive, self.false_negative)):
            rate = proportion_ci(wrong, groups)
            value += cost * rate.value
            below += (cost * (rate.value - rate.low)) ** 2
            above += (cost * (rate.high - rate.value)) ** 2
        return Estimate(value, max(0.0, value - below**0.5), value + above**0.5, len(positive))

    @property
    def bayes_threshold(self) -> float:
        """The threshold with the lowest expected cost if the scores were perfectly calibrated: FP / (FP + FN)."""
        return self.false_positive / (self.false_positive + self.false_negative)


def threshold_by_cost(scores: NDArray[np.floating[Any]], positive: NDArray[np.bool_], cost: Cost) -> float:
    """The threshold with the lowest cost on these images: scores [N], images of the positive class [N].

    Candidates are the middles between neighboring scores, 0 (all images are positive) and 1 + ε (none is). Of several
    with the lowest cost it is the one nearest to the threshold for calibrated scores, FP / (FP + FN).
    """
    order, ends = _by_falling_score(scores)
    called = np.concatenate([[0], ends + 1])  # images called positive at each candidate
    true = np.concatenate([[0], np.cumsum(positive[order])])[called]
    costs = (called - true) * cost.false_positive + (positive.sum() - true) * cost.false_negative
    distinct = scores[order][ends].astype(np.float64)
    edges = np.concatenate([[np.nextafter(1.0, 2.0)], (distinct[:-1] + distinct[1:]) / 2, [0.0]])
    best = np.flatnonzero(costs <= costs.min() + 1e-9)
    return float(edges[best[np.abs(edges[best] - cost.bayes_threshold).argmin()]])


@dataclass(frozen=True)
class CostResult:
    """The expected cost per image of a threshold that was chosen on other images, and of simpler decisions.

    Attributes:
        cost: The costs.
        threshold: The chosen threshold.
        chosen_on: The split that chose it, and its number of images.
        chosen_cost: Its mean cost on that split, which is optimistic.
        rates: Sensitivity and the other rates of the threshold on the reported split.
        expected: Mean cost of an image of the reported split.
        others: The same for other decisions: the top-1 prediction, the threshold for calibrated scores, all images
            positive, none.
    """

    cost: Cost
    threshold: float
    chosen_on: tuple[str, int]
    chosen_cost: float
    rates: BinaryRates
    expected: Estimate
    others: tuple[tuple[str, Estimate], ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "cost": vars(self.cost),
            "threshold": self.threshold,
            "chosen_on": {"split": self.chosen_on[0], "count": self.chosen_on[1], "expected_cost": self.chosen_cost},
            "expected_cost": self.expected.to_dict(),
            "rates": self.rates.to_dict(),
            "others": {name: one.to_dict() for name, one in self.others},
        }


@dataclass(frozen=True)
class OneVsRest:
    """One class against the rest on a split: rates of the top-1 decision, curves, and a threshold by cost."""

    positive: str
    top1: BinaryRates
    curves: Curves | None
    by_cost: CostResult | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "positive": self.positive,
            "top1": self.top1.to_dict(),
            "curves": self.curves and self.curves.to_dict(),
            "by_cost": self.by_cost and self.by_cost.to_dict(),
        }


MOST_CURVES = 4  # classes in one plot


def shown_curves(
    classes: Sequence[str],
    aurocs: Sequence[float],
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    groups: Sequence[str] = (),
) -> tuple[Curves, ...]:
    """The curves that a plot shows: of two classes the second one's, else those of the four classes of lowest AUROC.

    Args:
        classes: The class names, K.
        aurocs: The area under the ROC curve of each class; NaN where it has none.
        probabilities: Calibrated probabilities, [N, K].
        labels: The labels, [N].
        groups: The groups, [N]; empty if unknown.
    """
    lowest = [int(k) for k in np.argsort(aurocs, kind="stable") if not np.isnan(aurocs[k])]
    chosen = [1] if len(classes) == 2 else lowest[:MOST_CURVES]
    results = [curves(classes[k], probabilities[:, k], labels == k, groups) for k in chosen]
    return tuple(one for one in results if one is not None)


def one_vs_rest(
    name: str,
    index: int,
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    groups: Sequence[str] = (),
    *,
    cost: Cost | None = None,
    validation: tuple[NDArray[np.floating[Any]], NDArray[np.int64]] | None = None,
) -> OneVsRest:
    """All numbers of one class.

    Args:
        name: The class.
        index: Its index.
        probabilities: Calibrated probabilities of the reported split, [N, K].
        labels: Its labels, [N].
        groups: Its groups, [N]; empty if unknown.
        cost: Costs for which a threshold is chosen.
        validation: Calibrated probabilities and labels of the split that chooses it; required with ``cost``.
    """
    scores, positive = probabilities[:, index], labels == index
    called = probabilities.argmax(1) == index
    by_cost = None
    if cost is not None and validation is not None:
        known, own = validation[0][:, index], validation[1] == index
        threshold = threshold_by_cost(known, own, cost)
        decisions = {
            "top-1 prediction": called,
            f"score of {cost.bayes_threshold:.3g}, FP / (FP + FN)": scores >= cost.bayes_threshold,
            "all positive": np.ones(len(labels), bool),
            "none positive": np.zeros(len(labels), bool),
        }
        by_cost = CostResult(
            cost,
            threshold,
            ("validation", len(own)),
            float(cost.of(known >= threshold, own).mean()),
            binary_rates(scores >= threshold, positive, groups, threshold),
            cost.expected(scores >= threshold, positive, groups),
            tuple((title, cost.expected(decision, positive, groups)) for title, decision in decisions.items()),
        )
    return OneVsRest(name, binary_rates(called, positive, groups), curves(name, scores, positive, groups), by_cost)
