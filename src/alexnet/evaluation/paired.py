"""Two classifiers on the same pictures: is one better, or was it luck? McNemar's exact test (1947)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.evaluation.intervals import Estimate, bootstrap, limits, share


@dataclass(frozen=True)
class Paired:
    """Both accuracies, the pictures on which the two differ, and how likely such a difference is by luck alone.

    ``difference`` is the second accuracy minus the first; its interval is the bootstrap's over pictures or groups.
    ``p_value``: two-sided, exact; it takes pictures for independent, so with groups the interval is what counts.
    """

    count: int
    first: Estimate
    second: Estimate
    only_first: int  # right by the first alone
    only_second: int
    both: int
    neither: int
    difference: Estimate
    p_value: float
    groups: int = 0  # 0: each picture is one of its own

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {k: v.to_dict() if isinstance(v, Estimate) else v for k, v in vars(self).items()}


def compare(
    first: NDArray[np.bool_], second: NDArray[np.bool_], groups: Sequence[str] = (), *, seed: int = 0
) -> Paired:
    """Which of the same pictures each has right: [N] and [N]."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    better = (second.astype(np.float32) - first.astype(np.float32)) if len(first) else np.zeros(0, np.float32)

    def of(weights: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray((weights @ better).astype(np.float64) / weights.sum(1))

    low, high = (float(x) for x in limits(bootstrap(of, len(first), groups, seed=seed)))
    return Paired(
        count=len(first),
        first=share(first, groups, seed=seed),
        second=share(second, groups, seed=seed),
        only_first=only_first,
        only_second=only_second,
        both=int((first & second).sum()),
        neither=int((~first & ~second).sum()),
        difference=Estimate(float(better.mean()), low, high, len(first)),
        p_value=mcnemar(only_first, only_second),
        groups=len(set(groups)),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value: of the pictures on which two differ, each is as likely to be either's."""
    from scipy.stats import binomtest

    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)
