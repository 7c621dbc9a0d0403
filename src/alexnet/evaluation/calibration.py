"""When to say "I don't know": answers below a threshold of the first prediction's probability are withheld.

*Coverage* is the share of images that are answered, *risk* the error among those (El-Yaniv and Wiener 2010).

Glossary: N images.


Is what is called 90 % sure right in 90 of 100? Reliability, its error, and the temperature that mends it.

A temperature divides the logits before the softmax: one number, fitted on the validation split, changes how sure the
answers are and never which class comes first (Guo et al. 2017, *On Calibration of Modern Neural Networks*).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.evaluation.intervals import proportion_ci

TARGETS = (0.01, 0.02, 0.05, 0.1)  # errors among answered images for which a bundle carries thresholds
LEVEL = 0.95  # of the one-sided bound


@dataclass(frozen=True)
class SelectiveMetrics:
    """What a threshold does: ``answered`` of ``count`` images, ``errors`` among them, with the error's 95 % CI."""

    threshold: float
    count: int
    answered: int
    errors: int
    low: float
    high: float

    @property
    def coverage(self) -> float:
        """Share of the images that are answered."""
        return self.answered / self.count

    @property
    def error(self) -> float:
        """Share of wrong answers among those given; nan where none is."""
        return self.errors / self.answered if self.answered else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        results = {"threshold": self.threshold, "count": self.count, "answered": self.answered, "errors": self.errors}
        error = {"error": self.error, "error_interval": [self.low, self.high]} if self.answered else {"error": None}
        return results | {"coverage": self.coverage} | error


@dataclass(frozen=True)
class RiskCoverage:
    """Risk against coverage over all thresholds, the surest answers first: ``coverage`` and ``risk``, equally long.

    ``area`` under the curve is the mean risk over all coverages; less is better.
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
    """Confidences from the highest down, at the last image of each run of equal ones: counts, thresholds, errors."""
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    return last + 1, falling[last], np.cumsum(~correct[order])[last]


def risk_coverage(confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_]) -> RiskCoverage:
    """The whole curve of a split: probabilities of the first predictions [N], and whether those are right [N]."""
    counts, thresholds, errors = _sorted(confidence, correct)
    coverage, risk = counts / len(correct), errors / counts
    area = float((risk * np.diff(coverage, prepend=0.0)).sum())
    return RiskCoverage(tuple(coverage.tolist()), tuple(risk.tolist()), tuple(thresholds.tolist()), area)


def at_threshold(
    confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_], threshold: float, groups: Sequence[str] = ()
) -> SelectiveMetrics:
    """What a threshold does: an image is answered if its first prediction has at least that probability.

    ``groups`` [N] of the images, where they are known.
    """
    values = np.flatnonzero(confidence >= threshold)
    error = proportion_ci(~correct[values], [groups[i] for i in values.tolist()] if groups else ())
    errors = int((~correct[values]).sum())
    return SelectiveMetrics(float(threshold), len(correct), len(values), errors, error.low, error.high)


@lru_cache(maxsize=100_000)
def upper_bound(errors: int, count: int, level: float = LEVEL) -> float:
    """The largest error that is not refuted by ``errors`` out of ``count``, one-sided (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    return 1.0 if errors >= count else float(beta.ppf(level, errors + 1, count - errors))


def fewest(target: float, errors: int = 0, level: float = LEVEL) -> int:
    """How many answers with so many errors among them prove that the error is at most ``target``: 299, 149, 59 and 29
    for 1, 2, 5 and 10 % without an error."""
    count = errors + 1
    while upper_bound(errors, count, level) > target:
        count += 1
    return count


def choose_threshold(
    confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_], target: float, level: float = LEVEL
) -> float | None:
    """The threshold with which the error among answered images is at most ``target``, ``level`` sure; else None.

    Fixed-sequence testing (Angelopoulos et al. 2021, *Learn then Test*): counts of the surest images, growing by a
    tenth, are tried in an order that no label has any part in, and the last one before the first whose Clopper-Pearson
    bound exceeds the target is taken. So many tests cost no more confidence than one; the best of all thresholds,
    picked freely, broke its promise in up to 8 % of simulations, this in under 4. It begins with as many as forgive one
    error, or half of the images if that is fewer, but never less than can prove anything.
    """
    counts, thresholds, errors = _sorted(confidence, correct)
    least, total = fewest(target, 0, level), len(correct)
    chosen, wanted = None, max(least, min(fewest(target, 1, level), total // 2))
    while least <= total:
        place = int(np.searchsorted(counts, min(wanted, total)))
        if upper_bound(int(errors[place]), int(counts[place]), level) > target:
            break
        chosen = float(thresholds[place])
        if counts[place] >= total:
            break
        wanted = max(int(counts[place]) + 1, wanted * 11 // 10)
    return chosen


BINS = 15  # of equal width over the first prediction's probability, as Guo et al. had them
FEWEST = 30  # validation images below which nothing is fitted
_RANGE = (0.02, 50.0)  # of temperatures


@dataclass(frozen=True)
class Bin:
    """The images whose first prediction has a probability in (``low``, ``high``]: how sure it was, how often right."""

    low: float
    high: float
    count: int
    confidence: float  # mean probability of the first prediction; nan where there is no image
    accuracy: float
    accuracy_low: float  # of its 95 % CI
    accuracy_high: float


@dataclass(frozen=True)
class Reliability:
    """How honest probabilities are on a split.

    ``ece`` is the expected calibration error, Σ count/N · |accuracy − confidence| over the bins; ``ece_by_chance`` what
    perfectly honest probabilities would show on so many images; ``nll`` in nats; ``brier`` Σ over classes.
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
    """What a bundle carries: the temperature, and the thresholds that validation supports, by target error."""

    temperature: float
    fitted_on: str
    count: int
    ece_before: float
    ece_after: float
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As it is in config.json."""
        return vars(self) | {"thresholds": dict(self.thresholds)}


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
    risen = np.exp(scaled - scaled.max(1, keepdims=True))
    return np.asarray(risen / risen.sum(1, keepdims=True))


def fit_temperature(log_probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    """The temperature that minimizes the mean −ln p of the labels [N], given logs [N, K].

    The loss is convex in 1/T. A split without a mistake would ask for a temperature of 0, and for certainty: there half
    a mistake is added, an average image whose truth is its second prediction (half, as Krichevsky and Trofimov 1981).
    Never otherwise: a whole one at all times cost 5 % in NLL on the test digits, with 144 to fit on.
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
    """How honest probabilities [N, K] are, given the labels [N], and ``groups`` [N] where they are known."""
    rows = probabilities.astype(np.float64)
    confidence, correct = rows.max(1), rows.argmax(1) == labels
    true = rows[np.arange(len(labels)), labels]
    brier = (rows**2).sum(1) - 2 * true + 1
    return Reliability(
        count=len(labels),
        ece=ece(confidence, correct, bins),
        ece_by_chance=by_chance(confidence, bins, seed),
        nll=float(-np.log(np.maximum(true, 1e-300)).mean()),
        brier=float(brier.mean()),
        confidence=float(confidence.mean()),
        accuracy=float(correct.mean()),
        bins=tuple(_bins(confidence, correct, bins, groups)),
    )


def ece(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al. 2015): Σ count/N · |accuracy − confidence| over ``bins`` of equal
    width, of the first prediction's probability [N]."""
    gaps = np.bincount(_bin_of(confidence, bins), correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(correct))


def by_chance(confidence: NDArray[np.float64], bins: int = BINS, seed: int = 0, times: int = 200) -> float:
    """The mean ECE of answers that are right exactly as often as they say (Bröcker and Smith 2007)."""
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
    """What the validation split says of a network: logs [N, K] of temperature 1, labels [N].

    None where there are fewer than 30 images. Thresholds are of calibrated probabilities, and only for those target
    errors that so many images can support (:func:`alexnet.evaluation.calibration.choose_threshold`). Where images
    belong to ``groups``, one of each, drawn, chooses them: images of one patient are not two witnesses.
    """
    if len(labels) < FEWEST:
        return None
    temperature = fit_temperature(log_probabilities, labels)
    before, after = (probabilities(log_probabilities, t) for t in (1.0, temperature))
    correct = after.argmax(1) == labels
    if ece(after.max(1), correct) > ece(before.max(1), correct):  # it would make calibration worse: not applied
        temperature, after = 1.0, before
    confidence = after.max(1)
    drawn = _one_of_each(groups) if groups else np.arange(len(labels))
    chosen = {str(target): choose_threshold(confidence[drawn], correct[drawn], target) for target in TARGETS}
    return Calibration(
        temperature=temperature,
        fitted_on="validation",
        count=len(labels),
        ece_before=ece(before.max(1), correct),
        ece_after=ece(confidence, correct),
        thresholds={target: threshold for target, threshold in chosen.items() if threshold is not None},
    )


def _one_of_each(groups: Sequence[str]) -> NDArray[np.int64]:
    """The place of one image of each group."""
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(groups))
    return np.asarray(order[np.unique(np.asarray(groups)[order], return_index=True)[1]], np.int64)
