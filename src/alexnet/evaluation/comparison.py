"""Is a new classifier better than an old one, equal, or at least not worse by more than a margin?

McNemar's test (:mod:`alexnet.evaluation.intervals`) asks for a difference. A p-value above 5 % does not show that there
is none. *Non-inferiority* is shown by a one-sided test of "the new one is worse by the margin or more", *equivalence*
by two of them, one on each side (TOST, Schuirmann 1987). For the images of independent classifications the tests are
Tango's score tests for paired proportions (1998). Where images belong to groups they are t tests of the difference
with the variance between groups (Obuchowski 1998).

Classes and slices are many tests: their p-values are adjusted by Holm's method (1979), so that with 95 % confidence
none of the differences that are called significant is due to chance.

Shapes: N images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alexnet.evaluation.intervals import Estimate, count_by_group, mcnemar, proportion_ci

ALPHA = 0.05  # of each one-sided test, and of a family of tests
Verdict = Literal["better", "worse", "not worse", "inconclusive"]


@dataclass(frozen=True)
class Equivalence:
    """The tests of a difference of accuracy against a margin.

    Attributes:
        margin: The largest difference that does not matter, a fraction.
        low: Lower end of the 90 % CI of the difference, new − old. Above −margin: non-inferior at 5 %.
        high: Upper end. Both ends inside ±margin: equivalent at 5 %.
        p_noninferior: P-value of "worse by the margin or more".
        p_equivalent: The larger p-value of "worse by the margin or more" and "better by the margin or more".
    """

    margin: float
    low: float
    high: float
    p_noninferior: float
    p_equivalent: float

    @property
    def noninferior(self) -> bool:
        """Is it shown that the new classifier is not worse by the margin?"""
        return self.p_noninferior < ALPHA

    @property
    def equivalent(self) -> bool:
        """Is it shown that the two differ by less than the margin?"""
        return self.p_equivalent < ALPHA

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        interval = {"interval_90": [self.low, self.high]}
        tests = {"noninferior": self.noninferior, "equivalent": self.equivalent}
        p_values = {"p_noninferior": self.p_noninferior, "p_equivalent": self.p_equivalent}
        return {"margin": self.margin} | interval | p_values | tests


def equivalence(
    old: NDArray[np.bool_], new: NDArray[np.bool_], margin: float, groups: Sequence[str] = ()
) -> Equivalence:
    """Test non-inferiority and equivalence of ``new`` from which of the same images each classifies correctly.

    Args:
        old: Images that the old classifier has right, [N].
        new: Images that the new one has right, [N].
        margin: The largest difference of accuracy that does not matter, a fraction above 0.
        groups: The groups of the images, [N]; empty: images are independent.
    """
    worse, better = (standardized(old, new, shift, groups) for shift in (-margin, margin))
    p_noninferior, p_nonsuperior = _upper_tail(worse), 1 - _upper_tail(better)
    low, high = difference_interval(old, new, groups, level=1 - 2 * ALPHA)
    return Equivalence(margin, low, high, p_noninferior, max(p_noninferior, p_nonsuperior))


@dataclass(frozen=True)
class _Statistic:
    value: float
    freedom: float  # degrees of freedom of Student's t; infinite: normal


def standardized(
    old: NDArray[np.bool_], new: NDArray[np.bool_], shift: float, groups: Sequence[str] = ()
) -> _Statistic:
    """The standardized distance of the difference of accuracy, new − old, from ``shift``."""
    if not groups:
        return _Statistic(tango(len(old), int((new & ~old).sum()), int((old & ~new).sum()), shift), math.inf)
    difference, error, count = _between_groups(old, new, groups)
    if not error > 0:  # all groups alike, or one group: as if each were one image
        ends = round(count * max(difference, 0)), round(count * max(-difference, 0))
        return _Statistic(tango(count, *ends, shift), math.inf)
    return _Statistic((difference - shift) / error, count - 1)


def _between_groups(old: NDArray[np.bool_], new: NDArray[np.bool_], groups: Sequence[str]) -> tuple[float, float, int]:
    """The difference of accuracy, its standard error from the variance between groups, and the number of groups."""
    gained, images = count_by_group(new & ~old, groups)
    lost, _ = count_by_group(old & ~new, groups)
    count, total = len(images), int(images.sum())
    difference = float((gained - lost).sum()) / total
    residuals = gained - lost - images * difference
    variance = count / (count - 1) * float((residuals**2).sum()) / total**2 if count > 1 else 0.0
    return difference, math.sqrt(variance), count


def tango(count: int, only_new: int, only_old: int, shift: float) -> float:
    """Tango's score statistic of "the difference of paired proportions is ``shift``", standard normal under it.

    Args:
        count: Images.
        only_new: Images that the new classifier alone has right.
        only_old: Images that the old one alone has right.
        shift: The difference, new − old, in (−1, 1).
    """
    linear = -only_new - only_old + (2 * count - only_new + only_old) * shift
    constant = -only_old * shift * (1 - shift)
    root = math.sqrt(max(0.0, linear**2 - 8 * count * constant))
    alone = (root - linear) / (4 * count)  # of the old one, most likely under the hypothesis
    variance = count * (2 * alone + shift * (1 - shift))
    distance = only_new - only_old - count * shift
    if variance <= 1e-12 * count:
        return 0.0 if abs(distance) < 1e-9 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _upper_tail(statistic: _Statistic) -> float:
    from scipy.stats import norm, t

    law = norm if math.isinf(statistic.freedom) else t(statistic.freedom)
    return float(law.sf(statistic.value))


def difference_interval(
    old: NDArray[np.bool_], new: NDArray[np.bool_], groups: Sequence[str] = (), *, level: float = 0.95
) -> tuple[float, float]:
    """The differences of accuracy, new − old, that the two-sided test does not reject."""
    from scipy.optimize import brentq
    from scipy.stats import t

    if groups:
        middle, error, count = _between_groups(old, new, groups)
        if error > 0:
            reach = float(t.ppf((1 + level) / 2, count - 1)) * error
            return max(-1.0, middle - reach), min(1.0, middle + reach)
    tail, edge = (1 - level) / 2, 1 - 1e-9
    difference = float(new.mean() - old.mean())

    def excess(shift: float, lower: bool) -> float:
        above = _upper_tail(standardized(old, new, shift, groups))
        return (above if lower else 1 - above) - tail

    low, high = -1.0, 1.0
    if difference > -edge and excess(-edge, True) < 0:
        low = float(brentq(excess, -edge, min(difference, edge), (True,)))
    if difference < edge and excess(edge, False) < 0:
        high = float(brentq(excess, max(difference, -edge), edge, (False,)))
    return low, high


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's method: below α together only with probability α where no difference is real."""
    order, adjusted, largest = np.argsort(p_values, kind="stable"), [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


@dataclass(frozen=True)
class SubsetComparison:
    """Two classifiers on the images of one class, or of one slice.

    Attributes:
        name: The class, or the value of the column.
        images: Number of images.
        old: Accuracy of the old classifier.
        new: Accuracy of the new one.
        difference: New − old, with its 95 % CI, which is not adjusted.
        p_value: Two-sided p-value, adjusted for all subsets.
        p_noninferior: P-value of "worse by the margin or more", adjusted; None without a margin.
    """

    name: str
    images: int
    old: Estimate
    new: Estimate
    difference: Estimate
    p_value: float
    p_noninferior: float | None

    @property
    def verdict(self) -> Verdict:
        """What is shown at 5 %."""
        if self.p_value < ALPHA:
            return "better" if self.difference.value > 0 else "worse"
        return "not worse" if self.p_noninferior is not None and self.p_noninferior < ALPHA else "inconclusive"

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        estimates = {name: getattr(self, name).to_dict() for name in ("old", "new", "difference")}
        tests = {"p_value": self.p_value, "p_noninferior": self.p_noninferior, "verdict": self.verdict}
        return {"name": self.name, "images": self.images} | estimates | tests


def compare_subsets(
    old: NDArray[np.bool_],
    new: NDArray[np.bool_],
    values: Sequence[str],
    margin: float | None = None,
    groups: Sequence[str] = (),
) -> tuple[SubsetComparison, ...]:
    """Compare two classifiers on the images of each value, in the order of the names.

    Args:
        old: Images that the old classifier has right, [N].
        new: Images that the new one has right, [N].
        values: The class or the value of a column of each image, [N].
        margin: As in :func:`equivalence`; None: no test of non-inferiority.
        groups: The groups of the images, [N]; empty: images are independent.
    """
    every = np.asarray(values)
    parts = [_part(old, new, np.flatnonzero(every == name), groups) for name in sorted(set(values))]
    p_values = holm([_p_value(*part) for part in parts])
    against: list[float | None] = [None] * len(parts)
    if margin is not None:
        against = list(holm([equivalence(*part[:2], margin, part[2]).p_noninferior for part in parts]))
    results = []
    for name, (was, now, its_groups), p_value, p_noninferior in zip(
        sorted(set(values)), parts, p_values, against, strict=True
    ):
        difference = Estimate(float(now.mean() - was.mean()), *difference_interval(was, now, its_groups), len(now))
        rates = proportion_ci(was, its_groups), proportion_ci(now, its_groups)
        results.append(SubsetComparison(name, len(now), *rates, difference, p_value, p_noninferior))
    return tuple(results)


def _part(
    old: NDArray[np.bool_], new: NDArray[np.bool_], own: NDArray[np.int64], groups: Sequence[str]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Sequence[str]]:
    return old[own], new[own], [groups[i] for i in own.tolist()] if groups else ()


def _p_value(old: NDArray[np.bool_], new: NDArray[np.bool_], groups: Sequence[str]) -> float:
    """Two-sided p-value of no difference: McNemar's, or the t test's over groups."""
    if not groups:
        return mcnemar(int((old & ~new).sum()), int((new & ~old).sum()))
    above = _upper_tail(standardized(old, new, 0.0, groups))
    return min(1.0, 2 * min(above, 1 - above))
