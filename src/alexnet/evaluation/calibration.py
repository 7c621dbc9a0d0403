"""Selective prediction by a confidence threshold, calibration error, and the temperature that reduces it.

A classifier abstains where the probability of its top-1 prediction is below a threshold. *Coverage* is the fraction of
images with a prediction, *risk* the error among those (El-Yaniv and Wiener 2010). The temperature divides the logits
before the softmax: it is fitted on the validation split, changes the probabilities, and never changes the predicted
class (Guo et al. 2017, *On Calibration of Modern Neural Networks*). Shapes: N images, K classes.
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.evaluation import conformal
from alexnet.evaluation.intervals import proportion_ci

TARGETS = (0.01, 0.02, 0.05, 0.1)  # errors among images with a prediction, for which a bundle has thresholds
LEVEL = 0.95  # confidence of the one-sided bound


@dataclass(frozen=True)
class SelectiveMetrics:
    """The effect of a threshold: ``answered`` of ``count`` images have a prediction, ``errors`` of these are wrong.

    ``low`` and ``high`` are the 95 % CI of the error.
    """

    threshold: float
    count: int
    answered: int
    errors: int
    low: float
    high: float

    @property
    def coverage(self) -> float:
        """The fraction of images with a prediction."""
        return self.answered / self.count

    @property
    def error(self) -> float:
        """The fraction of these predictions that are wrong; NaN where there is none."""
        return self.errors / self.answered if self.answered else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        results = {"threshold": self.threshold, "count": self.count, "answered": self.answered, "errors": self.errors}
        error = {"error": self.error, "error_interval": [self.low, self.high]} if self.answered else {"error": None}
        return results | {"coverage": self.coverage} | error


@dataclass(frozen=True)
class RiskCoverage:
    """Risk and coverage at each threshold, the highest threshold first; all three have one length.

    ``area`` under the curve is the mean risk over all coverages: lower is better.
    """

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    thresholds: tuple[float, ...]
    area: float

    def at(self, coverage: float) -> tuple[float, float]:
        """(threshold, risk) of the first point that covers at least so much."""
        place = next(i for i, c in enumerate(self.coverage) if c >= coverage - 1e-12)
        return self.thresholds[place], self.risk[place]


def _sorted(confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_]) -> tuple[Any, Any, Any]:
    """Counts, thresholds and errors from the highest confidence down, one entry for each distinct confidence."""
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    return last + 1, falling[last], np.cumsum(~correct[order])[last]


def risk_coverage(confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_]) -> RiskCoverage:
    """The curve of a split, from the top-1 probabilities [N] and whether these predictions are correct [N]."""
    counts, thresholds, errors = _sorted(confidence, correct)
    coverage, risk = counts / len(correct), errors / counts
    area = float((risk * np.diff(coverage, prepend=0.0)).sum())
    return RiskCoverage(tuple(coverage.tolist()), tuple(risk.tolist()), tuple(thresholds.tolist()), area)


def at_threshold(
    confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_], threshold: float, groups: Sequence[str] = ()
) -> SelectiveMetrics:
    """The effect of a threshold: an image has a prediction if its top-1 probability is at least the threshold.

    ``groups`` [N] are those of the images; empty if unknown.
    """
    values = np.flatnonzero(confidence >= threshold)
    error = proportion_ci(~correct[values], [groups[i] for i in values.tolist()] if groups else ())
    errors = int((~correct[values]).sum())
    return SelectiveMetrics(float(threshold), len(correct), len(values), errors, error.low, error.high)


@lru_cache(maxsize=100_000)
def upper_bound(errors: int, count: int, level: float = LEVEL) -> float:
    """One-sided upper bound of the error rate with ``errors`` out of ``count`` (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    return float(binomtest(errors, count, alternative="less").proportion_ci(level, "exact").high)


@lru_cache(maxsize=1000)
def min_predictions(target: float, errors: int = 0, level: float = LEVEL) -> int:
    """The fewest predictions with ``errors`` among them whose :func:`upper_bound` is at most ``target``.

    Without an error 299, 149, 59 and 29 for 1, 2, 5 and 10 %.
    """
    high = errors + 1
    while upper_bound(errors, high, level) > target:
        high *= 2
    counts = range(errors + 1, high + 1)
    return counts[bisect.bisect_left(counts, -target, key=lambda count: -upper_bound(errors, count, level))]


def choose_threshold(
    confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_], target: float, level: float = LEVEL
) -> float | None:
    """The threshold at which the error is at most ``target`` with confidence ``level``, or None if there is none.

    Fixed-sequence testing (Angelopoulos et al. 2021, *Learn then Test*): counts of the most confident
    images, each a tenth larger, are tested in an order that does not depend on labels. The result is the last count
    before the first one whose Clopper-Pearson bound exceeds the target. All tests together have the confidence of one.
    The best of all thresholds would exceed its target in up to 8 % of simulations, this one in under 4 %. The first
    count allows one error, or is half of the images if that is fewer, and is at least :func:`min_predictions`.
    """
    counts, thresholds, errors = _sorted(confidence, correct)
    least, total = min_predictions(target, 0, level), len(correct)
    chosen, wanted = None, max(least, min(min_predictions(target, 1, level), total // 2))
    while least <= total:
        place = int(np.searchsorted(counts, min(wanted, total)))
        if upper_bound(int(errors[place]), int(counts[place]), level) > target:
            break
        chosen = float(thresholds[place])
        if counts[place] >= total:
            break
        wanted = max(int(counts[place]) + 1, wanted * 11 // 10)
    return chosen


BINS = 15  # of equal width over the top-1 probability, as in Guo et al.
MIN_IMAGES = 30  # validation images below which nothing is fitted
_RANGE = (0.02, 50.0)  # of temperatures


@dataclass(frozen=True)
class Bin:
    """The images whose top-1 probability is in (``low``, ``high``]: their mean probability and accuracy."""

    low: float
    high: float
    count: int
    confidence: float  # mean top-1 probability; NaN where there is no image
    accuracy: float
    accuracy_low: float  # of its 95 % CI
    accuracy_high: float


@dataclass(frozen=True)
class Reliability:
    """How well probabilities are calibrated on a split.

    Attributes:
        count: Number of images.
        ece: Expected calibration error, Σ count/N · |accuracy − confidence| over the bins.
        ece_by_chance: The ECE that perfectly calibrated probabilities have on so many images, on average.
        nll: Mean negative log-likelihood of the true classes, in nats.
        brier: Brier score, summed over classes.
        confidence: Mean top-1 probability.
        accuracy: Top-1 accuracy.
        bins: The bins over the top-1 probability.
    """

    count: int
    ece: float
    ece_by_chance: float
    nll: float
    brier: float
    confidence: float
    accuracy: float
    bins: tuple[Bin, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values; bins without an image are left out."""
        return vars(self) | {"bins": [vars(one) for one in self.bins if one.count]}


@dataclass(frozen=True)
class Calibration:
    """The calibration of a bundle: the temperature, and a threshold by target error where validation supports one.

    ``conformal``: coverage -> threshold of each class for prediction sets (:mod:`alexnet.evaluation.conformal`).
    """

    temperature: float
    fitted_on: str
    count: int
    ece_before: float
    ece_after: float
    thresholds: Mapping[str, float] = field(default_factory=dict)
    conformal: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As it is in config.json."""
        return vars(self) | {"thresholds": dict(self.thresholds), "conformal": dict(self.conformal)}


NO_TEMPERATURE = "No temperature improved calibration on the validation split: none is applied."


def temperature_warning(temperature: float, before: Reliability, after: Reliability) -> str:
    """A sentence where the temperature, fitted on the validation split, makes the ECE of these images worse; or ""."""
    if temperature == 1.0 or after.ece <= before.ece:
        return ""
    return (
        f"The temperature {temperature:.3f} improved calibration on the validation split, but makes it worse on these "
        f"images: their ECE is {100 * before.ece:.1f} % without it and {100 * after.ece:.1f} % with it."
    )


def probabilities(log_probabilities: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """Logs of probabilities (or logits) [N, K] -> calibrated probabilities, float64 [N, K]."""
    scaled = log_probabilities.astype(np.float64) / temperature
    values = np.exp(scaled - scaled.max(1, keepdims=True))
    return np.asarray(values / values.sum(1, keepdims=True))


def fit_temperature(log_probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    """The temperature that minimizes the mean −ln p of the labels [N], given logs [N, K].

    The loss is convex in 1/T. For a split without a mistake its minimum is at a temperature of 0. There half a mistake
    is added: an average image whose true class is its second prediction (half, as Krichevsky and Trofimov 1981). It is
    not added otherwise: a whole mistake at all times cost 5 % in NLL on the test digits, with 144 images to fit on.
    """
    from scipy.optimize import minimize_scalar

    rows, count = log_probabilities.astype(np.float64), len(labels)
    perfect = bool((rows.argmax(1) == labels).all())

    def loss(log_temperature: float) -> float:
        scaled = rows / np.exp(log_temperature)
        scaled = scaled - scaled.max(1, keepdims=True)
        logs = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))  # [N, K]
        cost = -float(logs[np.arange(count), labels].mean())
        return cost - (float(np.sort(logs, 1)[:, -2].mean()) / (2 * count) if perfect else 0.0)

    solution = minimize_scalar(loss, bounds=tuple(np.log(_RANGE)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(solution.x))


def reliability(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    bins: int = BINS,
    seed: int = 0,
    groups: Sequence[str] = (),
) -> Reliability:
    """The calibration of probabilities [N, K], given the labels [N] and, if known, the ``groups`` of images [N]."""
    rows = probabilities.astype(np.float64)
    confidence, correct = rows.max(1), rows.argmax(1) == labels
    true = rows[np.arange(len(labels)), labels]
    brier = (rows**2).sum(1) - 2 * true + 1
    return Reliability(
        count=len(labels),
        ece=ece(confidence, correct, bins),
        ece_by_chance=expected_ece(confidence, bins, seed),
        nll=float(-np.log(np.maximum(true, 1e-300)).mean()),
        brier=float(brier.mean()),
        confidence=float(confidence.mean()),
        accuracy=float(correct.mean()),
        bins=tuple(_bins(confidence, correct, bins, groups)),
    )


def ece(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al. 2015): Σ count/N · |accuracy − confidence| over ``bins`` of equal
    width, of the top-1 probability [N]."""
    gaps = np.bincount(_bin_of(confidence, bins), correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(correct))


def expected_ece(confidence: NDArray[np.float64], bins: int = BINS, seed: int = 0, times: int = 200) -> float:
    """The mean ECE of perfectly calibrated probabilities with this confidence [N] (Bröcker and Smith 2007)."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    return float(np.mean([ece(confidence, generator.random(len(confidence)) < confidence, bins) for _ in range(times)]))


def _bin_of(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """(0, 1/bins], (1/bins, 2/bins] …: the right edge belongs to the bin."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def _bins(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int, groups: Sequence[str]) -> list[Bin]:
    which, result = _bin_of(confidence, bins), []
    for number in range(bins):
        own = np.flatnonzero(which == number)
        right = proportion_ci(correct[own], [groups[i] for i in own.tolist()] if groups else ())
        sure = float(confidence[own].mean()) if len(own) else float("nan")
        ends = number / bins, (number + 1) / bins
        result.append(Bin(*ends, len(own), sure, right.value, right.low, right.high))
    return result


def calibrate(
    log_probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], groups: Sequence[str] = ()
) -> Calibration | None:
    """Fit temperature and thresholds on the validation split: log probabilities [N, K] at temperature 1, labels [N].

    None where there are fewer than 30 images. Thresholds are of calibrated probabilities, and only for target errors
    that so many images support (:func:`choose_threshold`). Where images belong to ``groups`` [N], thresholds are chosen
    on one random image of each group, since images of one group are not independent.
    """
    if len(labels) < MIN_IMAGES:
        return None
    temperature = fit_temperature(log_probabilities, labels)
    before, after = (probabilities(log_probabilities, t) for t in (1.0, temperature))
    correct = after.argmax(1) == labels
    if ece(after.max(1), correct) > ece(before.max(1), correct):  # worse than without it: not applied
        temperature, after = 1.0, before
    confidence = after.max(1)
    drawn = _one_of_each(groups) if groups else np.arange(len(labels))
    chosen = {str(target): choose_threshold(confidence[drawn], correct[drawn], target) for target in TARGETS}
    sets = {str(level): conformal.thresholds(after, labels, level, groups) for level in conformal.LEVELS}
    return Calibration(
        temperature=temperature,
        fitted_on="validation",
        count=len(labels),
        ece_before=ece(before.max(1), correct),
        ece_after=ece(confidence, correct),
        thresholds={target: threshold for target, threshold in chosen.items() if threshold is not None},
        conformal={level: limits.tolist() for level, limits in sets.items() if limits.any()},
    )


def _one_of_each(groups: Sequence[str]) -> NDArray[np.int64]:
    """The index of one image of each group, drawn at random."""
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(groups))
    return np.asarray(order[np.unique(np.asarray(groups)[order], return_index=True)[1]], np.int64)
