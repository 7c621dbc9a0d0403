"""Confidence intervals by the bootstrap over images or groups of images, and the comparison of two classifiers.

A resample draws as many images as there are, with replacement (Efron 1979). Where images belong to groups (patients,
videos) it draws whole groups, since images of one group are not independent. The interval is the middle 95 % of the
metric over the resamples.

The bootstrap's interval is too narrow for few images, and empty where all resamples have one value: Wilson's interval
is used there. Two classifiers are compared on the same images by McNemar's exact test (1947).

Shapes: N images, B resamples.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
FEW = 40  # images (or groups) below which the bootstrap's interval is too narrow: at 20 it covers 87 to 92 %
FEW_GROUPS = 20  # below that no interval over groups can be trusted
_CHUNK = 20_000_000  # counts held in memory at once

Statistic = Callable[[NDArray[np.float32]], NDArray[np.float64]]  # weights [b, N] -> values [b, ...]


@dataclass(frozen=True)
class Estimate:
    """A number, and where the truth lies with 95 % confidence. ``count``: images that it rests on."""

    value: float
    low: float
    high: float
    count: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain values: ``value``, ``interval`` and ``count``; None where there is no number."""
        numbers = [None if np.isnan(x) else float(x) for x in (self.value, self.low, self.high)]
        return {"value": numbers[0], "interval": numbers[1:], "count": self.count}


def wilson(correct: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Confidence interval of a share of which ``correct`` out of ``count`` were seen (Wilson 1927); z = 1.96: 95 %."""
    share, weight = correct / count, z * z / count
    middle = (share + weight / 2) / (1 + weight)
    reach = z * math.sqrt(share * (1 - share) / count + weight / (4 * count)) / (1 + weight)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def resamples(
    count: int, groups: Sequence[str] = (), *, number: int = RESAMPLES, seed: int = 0
) -> Iterator[NDArray[np.float32]]:
    """How often each of ``count`` images is in each resample: float32 [b, N], some resamples at a time."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    units, member = (count, np.arange(count)) if not groups else _units(groups)
    chunk = max(1, _CHUNK // max(count, 1))
    for start in range(0, number, chunk):
        size = min(chunk, number - start)
        drawn = generator.multinomial(units, np.full(units, 1 / units), size)  # [b, U]
        yield drawn.astype(np.float32)[:, member]


def _units(groups: Sequence[str]) -> tuple[int, NDArray[np.int64]]:
    """How many groups there are, and the number of each image's: [N]."""
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    return len(names), member.astype(np.int64)


def bootstrap(
    statistic: Statistic, count: int, groups: Sequence[str] = (), *, number: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """What ``statistic`` becomes over the resamples: [B, ...]. The same seed gives the same resamples."""
    return np.concatenate([statistic(weights) for weights in resamples(count, groups, number=number, seed=seed)])


def percentile_interval(
    values: NDArray[np.float64], level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The middle ``level`` of the resamples [B, ...], along the first axis; a resample without a number is left out."""
    tail = 50 * (1 - level)
    empty = np.isnan(values).all(0)
    low, high = np.nanpercentile(np.where(empty, 0.0, values), [tail, 100 - tail], axis=0)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def estimate(value: float, values: NDArray[np.float64], count: int) -> Estimate:
    """``value`` with the interval of its resamples [B]; Wilson's where those are few or all alike.

    ``value`` must lie in [0, 1]; ``count`` is the number of independent images, or groups, that it rests on. For an
    area under a curve that is the rarer side: no variance exceeds A·(1 − A) / count (Birnbaum and Klose 1957).
    """
    if np.isnan(value) or not count:
        return Estimate(float("nan"), float("nan"), float("nan"), count)
    low, high = (float(x) for x in percentile_interval(values))
    if count < FEW or not high > low:
        low, high = wilson(value * count, count)
    return Estimate(float(value), min(low, value), max(high, value), count)


def proportion_ci(hits: NDArray[np.bool_], groups: Sequence[str] = (), *, seed: int = 0) -> Estimate:
    """The share of ``hits`` [N] among images, with its interval: Wilson's, or the bootstrap's over groups."""
    if not len(hits):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    if not groups:
        return Estimate(float(hits.mean()), *wilson(int(hits.sum()), len(hits)), len(hits))
    return grouped_proportion_ci(*count_by_group(hits, groups), seed=seed)


def rate_ci(hits: NDArray[np.bool_], among: NDArray[np.bool_], groups: Sequence[str] = ()) -> Estimate:
    """The share of ``hits`` [N] among the images ``among`` [N], with its interval.

    It is Wilson's, or the bootstrap's over all groups: the same resamples for each rate, so that a number has one
    interval wherever it is computed.
    """
    if not groups or not among.any():
        return proportion_ci(hits[among])
    counts = np.stack([hits & among, among], 1).astype(np.float32)  # [N, 2]

    def of(weights: NDArray[np.float32]) -> NDArray[np.float64]:
        numbers = (weights @ counts).astype(np.float64)
        with np.errstate(invalid="ignore"):
            return np.asarray(numbers[:, 0] / numbers[:, 1])

    return estimate(float(hits[among].mean()), bootstrap(of, len(hits), groups), units_among(among, groups))


def count_by_group(hits: NDArray[np.bool_], groups: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many hits and how many images each group has: [U] and [U]."""
    units, member = _units(groups)
    return np.bincount(member[hits], minlength=units), np.bincount(member, minlength=units)


def grouped_proportion_ci(hits: NDArray[np.int64], counts: NDArray[np.int64], *, seed: int = 0) -> Estimate:
    """The share of ``hits`` [U] among the ``counts`` [U] of images in groups; whole groups are resampled."""

    def of(weights: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray((weights @ hits) / (weights @ counts))

    return estimate(float(hits.sum() / counts.sum()), bootstrap(of, len(counts), seed=seed), len(counts))


def f1_estimate(value: float, values: NDArray[np.float64], count: int) -> Estimate:
    """As :func:`estimate`, for an F1 over ``count`` images that are of the class or called so.

    F1 = 2J / (1 + J), where J is the share of those images that are both: Wilson's interval is J's.
    """
    result = estimate(value, values, count)
    if np.isnan(value) or not count or (count >= FEW and np.ptp(values[~np.isnan(values)]) > 0):
        return result
    low, high = wilson(value / (2 - value) * count, count)
    return Estimate(value, 2 * low / (1 + low), 2 * high / (1 + high), count)


def independent_units(count: int, groups: Sequence[str] = ()) -> int:
    """How many witnesses there are: groups, or images where there are none."""
    return len(set(groups)) if groups else count


def units_among(among: NDArray[np.bool_], groups: Sequence[str] = ()) -> int:
    """As :func:`independent_units`, of the images ``among`` [N] only."""
    return len({groups[i] for i in np.flatnonzero(among).tolist()}) if groups else int(among.sum())


@dataclass(frozen=True)
class PairedComparison:
    """Both accuracies, the images on which the two differ, and how likely such a difference is by luck alone.

    ``difference`` is the new accuracy minus the old one; its interval is the bootstrap's over images or groups.
    ``p_value``: two-sided, exact; it takes images for independent, so with groups the interval is what counts.
    """

    count: int
    old: Estimate
    new: Estimate
    only_old: int  # right by the old one alone
    only_new: int
    both: int
    neither: int
    difference: Estimate
    p_value: float
    groups: int = 0  # 0: each image is one of its own

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {k: v.to_dict() if isinstance(v, Estimate) else v for k, v in vars(self).items()}


def compare(
    old: NDArray[np.bool_], new: NDArray[np.bool_], groups: Sequence[str] = (), *, seed: int = 0
) -> PairedComparison:
    """Which of the same images each has right: [N] and [N]."""
    only_old, only_new = int((old & ~new).sum()), int((new & ~old).sum())
    better = (new.astype(np.float32) - old.astype(np.float32)) if len(old) else np.zeros(0, np.float32)

    def of(weights: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray((weights @ better).astype(np.float64) / weights.sum(1))

    low, high = (float(x) for x in percentile_interval(bootstrap(of, len(old), groups, seed=seed)))
    return PairedComparison(
        count=len(old),
        old=proportion_ci(old, groups, seed=seed),
        new=proportion_ci(new, groups, seed=seed),
        only_old=only_old,
        only_new=only_new,
        both=int((old & new).sum()),
        neither=int((~old & ~new).sum()),
        difference=Estimate(float(better.mean()), low, high, len(old)),
        p_value=mcnemar(only_old, only_new),
        groups=len(set(groups)),
    )


def mcnemar(only_old: int, only_new: int) -> float:
    """Two-sided exact p-value: of the images on which two differ, each is as likely to be either's."""
    from scipy.stats import binomtest

    if only_old + only_new == 0:
        return 1.0
    return float(binomtest(only_old, only_old + only_new, 0.5).pvalue)
