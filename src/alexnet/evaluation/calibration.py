"""Is what is called 90 % sure right in 90 of 100? Reliability, its error, and the temperature that mends it.

A temperature divides the logits before the softmax: one number, fitted on the validation split, changes how sure the
answers are and never which class comes first (Guo et al. 2017, *On Calibration of Modern Neural Networks*).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.evaluation.abstention import TARGETS, choose_threshold
from alexnet.evaluation.intervals import share

BINS = 15  # of equal width over the first guess's probability, as Guo et al. had them
FEWEST = 30  # validation pictures below which nothing is fitted
_RANGE = (0.02, 50.0)  # of temperatures


@dataclass(frozen=True)
class Bin:
    """The pictures whose first guess has a probability in (``low``, ``high``]: how sure it was, how often right."""

    low: float
    high: float
    count: int
    confidence: float  # mean probability of the first guess; nan where there is no picture
    accuracy: float
    accuracy_low: float  # of its 95 % CI
    accuracy_high: float


@dataclass(frozen=True)
class Reliability:
    """How honest probabilities are on a split.

    ``ece`` is the expected calibration error, Σ count/N · |accuracy − confidence| over the bins; ``ece_by_chance`` what
    perfectly honest probabilities would show on so many pictures; ``nll`` in nats; ``brier`` Σ over classes.
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
        """As plain values; bins without a picture are left out."""
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
        """As it stands in config.json."""
        return vars(self) | {"thresholds": dict(self.thresholds)}


def probabilities(log_probabilities: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """Logs of probabilities (or logits) [N, K] -> calibrated probabilities, float64 [N, K]."""
    scaled = log_probabilities.astype(np.float64) / temperature
    risen = np.exp(scaled - scaled.max(1, keepdims=True))
    return np.asarray(risen / risen.sum(1, keepdims=True))


def fit_temperature(log_probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    """The temperature that minimizes the mean −ln p of the labels [N], given logs [N, K].

    The loss is convex in 1/T. A split without a mistake would ask for a temperature of 0, and for certainty: there half
    a mistake is added, an average picture whose truth is its second guess (half, as Krichevsky and Trofimov 1981).
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

    found = minimize_scalar(loss, bounds=tuple(np.log(_RANGE)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def reliability(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], bins: int = BINS, seed: int = 0,
    groups: Sequence[str] = (),
) -> Reliability:  # fmt: skip
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
    width, of the first guess's probability [N]."""
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
    which, found = _bin_of(confidence, bins), []
    for number in range(bins):
        own = np.flatnonzero(which == number)
        right = share(correct[own], [groups[i] for i in own.tolist()] if groups else ())
        sure = float(confidence[own].mean()) if len(own) else float("nan")
        ends = number / bins, (number + 1) / bins
        found.append(Bin(*ends, len(own), sure, right.value, right.low, right.high))
    return found


def calibrate(
    log_probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], groups: Sequence[str] = ()
) -> Calibration | None:
    """What the validation split says of a network: logs [N, K] of temperature 1, labels [N].

    None where there are fewer than 30 pictures. Thresholds are of calibrated probabilities, and only for those target
    errors that so many pictures can support (:func:`alexnet.evaluation.abstention.choose_threshold`). Where pictures
    belong to ``groups``, one of each, drawn, chooses them: pictures of one patient are not two witnesses.
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
    """The place of one picture of each group."""
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(groups))
    return np.asarray(order[np.unique(np.asarray(groups)[order], return_index=True)[1]], np.int64)
