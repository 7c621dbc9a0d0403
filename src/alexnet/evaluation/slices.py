"""Numbers by a column of the table that the pictures came from: camera, hospital, age, light."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alexnet.data.store import Split
from alexnet.errors import DataError
from alexnet.evaluation.intervals import Estimate, share
from alexnet.evaluation.responses import Responses

EMPTY = "(empty)"


@dataclass(frozen=True)
class Slice:
    """The pictures with one value of a column: top-1 with its interval; ``groups`` among them, 0 without groups."""

    value: str
    pictures: int
    groups: int
    top1: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"value": self.value, "pictures": self.pictures, "groups": self.groups, "top1": self.top1.to_dict()}


def column(split: Split, name: str) -> tuple[str, ...]:
    """The value that each picture of a split has in a column; raises :class:`DataError` where there is no such."""
    rows = split.origins()
    if name == "group" and not any("group" in row.get("columns", {}) for row in rows):
        found = [row.get("group") for row in rows]  # by a pattern, or of another column
    else:
        found = [row.get("columns", {}).get(name.lower()) for row in rows]
    if all(value is None for value in found):
        known = sorted({key for row in rows for key in row.get("columns", {})})
        must = f"one of {', '.join(known)}" if known else "a column of the CSV or TSV that the pictures came from"
        todo = "choose another" if known else "prepare the pictures from a table; folders have no columns"
        raise DataError(f"{split.name}: no column {name!r} in {split.place.address}", must, todo)
    return tuple(value or EMPTY for value in found)


def slices(responses: Responses, values: Sequence[str], *, seed: int = 0) -> tuple[Slice, ...]:
    """Top-1 of the pictures of each value, in the order of the values' names."""
    every, correct = np.asarray(values), responses.correct
    found = []
    for value in sorted(set(values)):
        own = np.flatnonzero(every == value)
        groups = [responses.groups[i] for i in own] if responses.groups else []
        found.append(Slice(value, len(own), len(set(groups)), share(correct[own], groups, seed=seed)))
    return tuple(found)
