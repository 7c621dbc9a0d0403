"""Has what a server sees changed? Counts of its predictions by day, and two-sample tests between days.

A :class:`DayCounts` holds counts only: no image, no name. Counts of several processes are added. Each day is compared
with the first days of the same model by chi-squared tests of homogeneity, one for each quantity; so are as many last
days together. The p-values are adjusted by Holm's method: if nothing has changed, a day raises an alarm with at most
the stated probability. The tests take images for independent: a thousand images of one scene are not.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from alexnet.data.atomic_io import read_regular
from alexnet.errors import DataError, reason
from alexnet.evaluation.comparison import holm
from alexnet.schema import check, parse_json

FALSE_ALARMS = 0.01  # probability of an alarm on a day on which nothing has changed
FEW = 50  # images of a day, or of the first days, below which nothing is tested
CONFIDENCE = tuple(i / 20 for i in range(1, 20))  # inner edges of the bins
BRIGHTNESS = tuple(16.0 * i for i in range(1, 16))  # mean gray level of an image, 0 to 255
PIXELS = tuple(4.0**i for i in range(4, 14))  # height × width of an image as it was sent
DISTANCE = (*(i / 10 for i in range(1, 10)), 0.95, 0.99)  # fraction of the validation images with nearer features
HISTOGRAMS = {"confidence": CONFIDENCE, "brightness": BRIGHTNESS, "pixels": PIXELS, "distance": DISTANCE}

Count = Annotated[int, Meta(ge=0)]


class DayCounts(msgspec.Struct):
    """The counts of one day, model and process; one JSON file. ``date`` is a day of UTC."""

    date: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\d$")]
    model_sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    classes: list[str]
    predicted: list[Count]
    confidence: list[Count] = msgspec.field(default_factory=lambda: [0] * (len(CONFIDENCE) + 1))
    brightness: list[Count] = msgspec.field(default_factory=lambda: [0] * (len(BRIGHTNESS) + 1))
    pixels: list[Count] = msgspec.field(default_factory=lambda: [0] * (len(PIXELS) + 1))
    distance: list[Count] = msgspec.field(default_factory=lambda: [0] * (len(DISTANCE) + 1))  # 0: no reference
    abstained: Count = 0
    failed: Count = 0  # images that could not be read
    format: Literal["alexnet-monitor-1"] = "alexnet-monitor-1"

    @property
    def images(self) -> int:
        """Images with a prediction."""
        return sum(self.predicted)

    def add(
        self,
        label: int,
        score: float,
        brightness: float,
        pixels: int,
        abstained: bool,
        distance: float | None = None,
    ) -> None:
        """Count one image: its prediction, the probability of it, mean gray level, height × width, feature distance."""
        self.predicted[label] += 1
        self.abstained += abstained
        for (name, edges), value in zip(HISTOGRAMS.items(), (score, brightness, pixels, distance), strict=True):
            if value is not None:
                getattr(self, name)[int(np.searchsorted(edges, value, side="right"))] += 1

    def to_json(self) -> bytes:
        """The contents of the file."""
        return json.dumps(msgspec.structs.asdict(self), ensure_ascii=False).encode()


def read_days(folder: Path) -> list[DayCounts]:
    """The counts in a folder, one for each day and model, in the order of time. Raises :class:`DataError`."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder", "the FOLDER of: alexnet serve RUN --monitor FOLDER")
    days: dict[tuple[str, str], DayCounts] = {}
    classes: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            one = _read(path)
            if classes.setdefault(one.model_sha256, one.classes) != one.classes:
                raise ValueError("its classes are not those that the same model has in other files")
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is damaged: {reason(error):.200}", "", "delete it") from error
        key = one.date, one.model_sha256
        days[key] = merge([days[key], one]) if key in days else one
    if not days:
        raise DataError(
            f"{folder} holds no counts yet", "at least one day", "they are written while images are predicted"
        )
    return [days[key] for key in sorted(days)]


def _read(path: Path) -> DayCounts:
    one = check(parse_json(read_regular(path)), DayCounts)
    lengths = tuple(len(counts) for counts in (one.predicted, *(getattr(one, name) for name in HISTOGRAMS)))
    if lengths != (len(one.classes), *(len(edges) + 1 for edges in HISTOGRAMS.values())):
        raise ValueError(f"it has {lengths} counts")
    return one


def merge(parts: Sequence[DayCounts]) -> DayCounts:
    """The sum of counts of one model; its date is the first one's."""
    first, rest = parts[0], parts[1:]
    total = msgspec.structs.replace(first)
    for name in ("predicted", *HISTOGRAMS):
        columns = zip(getattr(first, name), *(getattr(one, name) for one in rest), strict=True)
        setattr(total, name, [sum(column) for column in columns])
    total.abstained = sum(one.abstained for one in parts)
    total.failed = sum(one.failed for one in parts)
    return total


def homogeneity(first: Sequence[int], second: Sequence[int], least: float = 5.0) -> float:
    """P-value of the chi-squared test that two rows of counts come from one distribution.

    Neighboring bins are joined until each is expected to hold ``least`` in both rows (Cochran 1954).
    """
    from scipy.stats import chi2_contingency

    rows = np.array([first, second], np.float64)
    share = rows.sum(1).min() / max(rows.sum(), 1.0)
    joined: list[Any] = []
    for column in rows.T:
        if joined and joined[-1].sum() * share < least:
            joined[-1] = joined[-1] + column
        else:
            joined.append(column.copy())
    if len(joined) > 1 and joined[-1].sum() * share < least:
        last = joined.pop()
        joined[-1] += last
    return float(chi2_contingency(np.stack(joined, 1), correction=False).pvalue) if len(joined) > 1 else 1.0


@dataclass(frozen=True)
class Day:
    """One day of one model, and the last days together, compared with its first days.

    Attributes:
        counts: The counts of the day.
        baseline: Is it one of the first days?
        p_values: Adjusted p-value by quantity; empty where nothing was tested.
        alarms: The quantities that have changed.
    """

    counts: DayCounts
    baseline: bool
    p_values: dict[str, float] = field(default_factory=dict)
    alarms: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        counts = msgspec.structs.asdict(self.counts) | {"images": self.counts.images}
        return counts | {"baseline": self.baseline, "p_values": self.p_values, "alarms": list(self.alarms)}


def examine(days: Iterable[DayCounts], baseline: int = 7, false_alarms: float = FALSE_ALARMS) -> list[Day]:
    """Compare each day, and the last ``baseline`` days together, with the first ``baseline`` days of the same model.

    Several days together show small changes that one day cannot, such as a rare class that vanishes. In
    :attr:`Day.p_values` and :attr:`Day.alarms` their quantities are called ``classes (7 days)``, for example.

    Args:
        days: The counts, in the order of time.
        baseline: Number of first days that others are compared with.
        false_alarms: The probability of an alarm on a day if nothing has changed.
    """
    results: list[Day] = []
    known: dict[str, list[DayCounts]] = {}
    for day in days:
        seen = known.setdefault(day.model_sha256, [])
        seen.append(day)
        if len(seen) <= baseline:
            results.append(Day(day, True))
            continue
        reference, last = merge(seen[:baseline]), seen[baseline:][-baseline:]
        tests = {name: homogeneity(*pair) for name, pair in _pairs(reference, day).items()}
        if len(last) > 1:
            pairs = _pairs(reference, merge(last))
            tests |= {f"{name} ({len(last)} days)": homogeneity(*pair) for name, pair in pairs.items()}
        p_values = dict(zip(tests, holm(list(tests.values())), strict=True))
        alarms = tuple(name for name, p in p_values.items() if p < false_alarms)
        results.append(Day(day, False, p_values, alarms))
    return results


def _pairs(reference: DayCounts, now: DayCounts) -> dict[str, tuple[list[int], list[int]]]:
    """Counts to compare, by quantity; none where one of both has few images."""
    if min(now.images, reference.images) < FEW:
        return {}
    pairs = {
        "classes": (reference.predicted, now.predicted),
        "confidence": (reference.confidence, now.confidence),
        "brightness": (reference.brightness, now.brightness),
        "image size": (reference.pixels, now.pixels),
        "abstention": (_abstentions(reference), _abstentions(now)),
        "unreadable": ([reference.failed, reference.images], [now.failed, now.images]),
    }
    if min(sum(reference.distance), sum(now.distance)) >= FEW:
        pairs["feature distance"] = reference.distance, now.distance
    return pairs


def _abstentions(counts: DayCounts) -> list[int]:
    return [counts.abstained, counts.images - counts.abstained]


def mean_of(counts: Sequence[int], edges: Sequence[float], top: float) -> float:
    """The mean of binned values, by the middles of the bins from 0 to ``top``; NaN of no values."""
    middles = (np.array([0.0, *edges]) + np.array([*edges, top])) / 2
    total = sum(counts)
    return float((middles * np.array(counts)).sum() / total) if total else math.nan
