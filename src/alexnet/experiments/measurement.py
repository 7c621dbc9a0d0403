"""A measured quantity with one value per seed, its confidence interval over seeds, and the verdict from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["holds", "does not hold", "inconclusive"]


@dataclass(frozen=True)
class Measurement:
    """One measured quantity, one value per seed. Greater values speak for the claim.

    ``points`` are differences of percentages; no difference is 0. A ``ratio`` is averaged and judged by its logarithm,
    so that 3 times as fast and 1/3 as fast have the same weight; no difference is 1.
    """

    quantity: str
    published: str  # the paper's figure; empty where it has none
    values: tuple[float, ...]
    unit: Literal["points", "ratio"] = "points"
    primary: bool = False  # decides the verdict of the claim
    lower_bound: bool = False  # some values are lower bounds
    note: str = ""

    @property
    def mean(self) -> float | None:
        """Mean of the values (geometric mean for a ratio); None without values."""
        if not self.values:
            return None
        return self._from_linear(sum(self._linear_values()) / len(self.values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean over seeds; None with fewer than two seeds."""
        interval = t_interval(self._linear_values())
        return None if interval is None else (self._from_linear(interval[0]), self._from_linear(interval[1]))

    @property
    def verdict(self) -> Verdict:
        """The verdict from where the interval lies relative to "no difference"."""
        return judge(t_interval(self._linear_values()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "quantity": self.quantity,
            "published": self.published,
            "unit": self.unit,
            "primary": self.primary,
            "values": list(self.values),
            "mean": self.mean,
            "interval": None if self.interval is None else list(self.interval),
            "lower_bound": self.lower_bound,
            "verdict": self.verdict,
            "note": self.note,
        }

    def _linear_values(self) -> list[float]:
        return [math.log(v) for v in self.values] if self.unit == "ratio" else list(self.values)

    def _from_linear(self, value: float) -> float:
        return math.exp(value) if self.unit == "ratio" else value


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's confidence interval for the mean of independent values: mean ± t·s/√n with n − 1 degrees of freedom.

    Returns:
        The lower and upper end, or None with fewer than two values.
    """
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half_width = float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n)
    return mean - half_width, mean + half_width


def judge(interval: tuple[float, float] | None) -> Verdict:
    """Judge by where the interval of a difference lies: above 0, below 0, or around it (or there is no interval)."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "inconclusive"
    return "holds" if interval[0] > 0 else "does not hold"


def overall_verdict(measurements: Sequence[Measurement]) -> Verdict:
    """A claim holds if all its primary measurements do; it does not hold if one of them does not."""
    verdicts = {measurement.verdict for measurement in measurements if measurement.primary}
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if verdicts == {"holds"} else "inconclusive"
