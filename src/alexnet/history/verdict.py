"""What so many seeds can say: Student's interval, and whether a claim holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["holds", "does not hold", "cannot tell"]


@dataclass(frozen=True)
class Finding:
    """One thing that was measured, a value a seed; greater is more in the claim's favor.

    ``points`` are differences of percentages, neutral at 0; a ``ratio`` is neutral at 1 and judged by its logarithm,
    so that three times as fast and a third as fast weigh alike. ``at_least``: some values are lower bounds.
    ``primary`` findings decide the claim.
    """

    what: str
    paper: str  # the paper's figure; empty where it has none
    values: tuple[float, ...]
    unit: Literal["points", "ratio"] = "points"
    primary: bool = False
    at_least: bool = False
    note: str = ""

    @property
    def mean(self) -> float | None:
        """Mean of the values, of a ratio the geometric one; None without values."""
        if not self.values:
            return None
        return self._out(sum(self._in()) / len(self.values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the mean lies with 95 % confidence; None from fewer than two seeds."""
        found = t_interval(self._in())
        return None if found is None else (self._out(found[0]), self._out(found[1]))

    @property
    def verdict(self) -> Verdict:
        """``holds`` or ``does not hold`` where the interval lies on one side of the neutral value."""
        return judge(t_interval(self._in()))

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "what": self.what,
            "paper": self.paper,
            "unit": self.unit,
            "primary": self.primary,
            "values": list(self.values),
            "mean": self.mean,
            "interval": None if self.interval is None else list(self.interval),
            "at_least": self.at_least,
            "verdict": self.verdict,
            "note": self.note,
        }

    def _in(self) -> list[float]:
        return [math.log(v) for v in self.values] if self.unit == "ratio" else list(self.values)

    def _out(self, value: float) -> float:
        return math.exp(value) if self.unit == "ratio" else value


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval for the mean of independent values: mean ± t·s/√n with n − 1 degrees of freedom."""
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    reach = float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n)
    return mean - reach, mean + reach


def judge(interval: tuple[float, float] | None) -> Verdict:
    """By where an interval lies: above 0, below 0, or about it (or there is none)."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "cannot tell"
    return "holds" if interval[0] > 0 else "does not hold"


def overall(findings: Sequence[Finding]) -> Verdict:
    """Of a claim: it holds if each primary finding does, and does not if one does not."""
    verdicts = {finding.verdict for finding in findings if finding.primary}
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if verdicts == {"holds"} else "cannot tell"
