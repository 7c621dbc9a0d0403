"""When to say "I don't know": answers below a threshold of the first guess's probability are withheld.

*Coverage* is the share of pictures that are answered, *risk* the error among those (El-Yaniv and Wiener 2010).

Glossary: N pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.evaluation.intervals import share

TARGETS = (0.01, 0.02, 0.05, 0.1)  # errors among answered pictures for which a bundle carries thresholds
LEVEL = 0.95  # of the one-sided bound


@dataclass(frozen=True)
class Answered:
    """What a threshold does: ``answered`` of ``count`` pictures, ``errors`` among them, with the error's 95 % CI."""

    threshold: float
    count: int
    answered: int
    errors: int
    low: float
    high: float

    @property
    def coverage(self) -> float:
        """Share of the pictures that are answered."""
        return self.answered / self.count

    @property
    def error(self) -> float:
        """Share of wrong answers among those given; nan where none is."""
        return self.errors / self.answered if self.answered else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        found = {"threshold": self.threshold, "count": self.count, "answered": self.answered, "errors": self.errors}
        error = {"error": self.error, "error_interval": [self.low, self.high]} if self.answered else {"error": None}
        return found | {"coverage": self.coverage} | error


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
    """Confidences from the highest down, at the last picture of each run of equal ones: counts, thresholds, errors."""
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    return last + 1, falling[last], np.cumsum(~correct[order])[last]


def risk_coverage(confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_]) -> RiskCoverage:
    """The whole curve of a split: probabilities of the first guesses [N], and whether those are right [N]."""
    counts, thresholds, errors = _sorted(confidence, correct)
    coverage, risk = counts / len(correct), errors / counts
    area = float((risk * np.diff(coverage, prepend=0.0)).sum())
    return RiskCoverage(tuple(coverage.tolist()), tuple(risk.tolist()), tuple(thresholds.tolist()), area)


def at_threshold(
    confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_], threshold: float, groups: Sequence[str] = ()
) -> Answered:
    """What a threshold does: a picture is answered if its first guess has at least that probability.

    ``groups`` [N] of the pictures, where they are known.
    """
    given = np.flatnonzero(confidence >= threshold)
    error = share(~correct[given], [groups[i] for i in given.tolist()] if groups else ())
    errors = int((~correct[given]).sum())
    return Answered(float(threshold), len(correct), len(given), errors, error.low, error.high)


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
    """The threshold with which the error among answered pictures is at most ``target``, ``level`` sure; else None.

    Fixed-sequence testing (Angelopoulos et al. 2021, *Learn then Test*): counts of the surest pictures, growing by a
    tenth, are tried in an order that no label has any part in, and the last one before the first whose Clopper-Pearson
    bound exceeds the target is taken. So many tests cost no more confidence than one; the best of all thresholds,
    picked freely, broke its promise in up to 8 % of simulations, this in under 4. It begins with as many as forgive one
    error, or half of the pictures if that is fewer, but never less than can prove anything.
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
