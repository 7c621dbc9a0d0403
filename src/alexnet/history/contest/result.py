"""What came of a contest: a row a contestant, each compared with AlexNet; for people, as CSV and as Markdown."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alexnet.evaluation.intervals import Estimate, share
from alexnet.evaluation.paired import Paired, compare
from alexnet.history.contest.answers import Answers
from alexnet.history.contest.budget import words
from alexnet.history.contest.entrants import ENTRANTS, FISHER, JUDGE, Entrant
from alexnet.history.contest.entry import Entry
from alexnet.history.contest.speed import Speed

IN_2012 = (
    "on ImageNet in 2012, top-5 test error: AlexNet 15.3 % (the mean of seven networks, two of them trained on more "
    "pictures), the runner-up's Fisher vectors 26.2 %"
)
SURE = 0.05  # a p below it: hardly by chance


@dataclass(frozen=True)
class Row:
    """A contestant's result. Errors are shares of the test pictures; ``top5`` is None with five classes or fewer.

    ``against``: this contestant (second) and AlexNet (first) on the same pictures; None for AlexNet, and without it.
    """

    entrant: Entrant
    entry: Entry
    top1: Estimate | None
    top5: Estimate | None
    against: Paired | None
    speed: Speed | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "name": self.entrant.name,
            "title": self.entrant.title,
            "year": self.entrant.year,
            "published": self.entrant.published,
            "top1_error": self.top1.to_dict() if self.top1 else None,
            "top5_error": self.top5.to_dict() if self.top5 else None,
            "against_alexnet": self.against.to_dict() if self.against else None,
            "milliseconds": self.speed.to_dict() if self.speed else None,
            **{name: value for name, value in vars(self.entry).items() if name != "name"},
        }


def rows(
    entries: Mapping[str, Entry], answers: Mapping[str, Answers], speeds: Mapping[str, Speed], groups: Sequence[str]
) -> list[Row]:
    """A row each, the lowest top-1 error first; who diverged comes last. ``groups``: of the test pictures."""
    found = []
    for name, entry in entries.items():
        mine, judge = answers.get(name), answers.get(JUDGE)
        few = mine is None or mine.scores.shape[1] <= 5
        against = None
        if mine is not None and judge is not None and name != JUDGE:
            against = compare(judge.first, mine.first, groups)
        top1 = None if mine is None else share(~mine.first, groups)
        top5 = None if few or mine is None else share(~mine.among(5), groups)
        found.append(Row(ENTRANTS[name], entry, top1, top5, against, speeds.get(name)))
    return sorted(found, key=lambda row: (row.top1 is None, row.top1.value if row.top1 else 0.0))


def cells(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table for people: columns, and a line each."""
    columns = (
        "contestant", "top-1 error", "top-5 error", "against AlexNet", "p (McNemar)", "parameters", "multiply-adds",
        "epochs", "learning", "all", "ms a picture", "on disk", "its kind at ILSVRC, top-5",
    )  # fmt: skip
    lines = [_cells(row) for row in rows]
    kept = [i for i, _ in enumerate(columns) if i < 2 or any(line[i] != "–" for line in lines)]
    return tuple(columns[i] for i in kept), [tuple(line[i] for i in kept) for line in lines]


def _cells(row: Row) -> tuple[str, ...]:
    entry = row.entry
    if row.top1 is None:
        return (row.entrant.title, f"diverged: {entry.diverged[:60]}", *["–"] * 11)
    return (
        row.entrant.title, _percent(row.top1), _percent(row.top5), _difference(row.against),
        "–" if row.against is None else f"{row.against.p_value:.2g}", _count(entry.parameters),
        _count(entry.multiply_adds), "–" if entry.name == FISHER else str(entry.epochs), words(entry.training_seconds),
        words(entry.seconds), "–" if row.speed is None else f"{row.speed.median:.1f}", f"{entry.bytes / 1e6:.1f} MB",
        row.entrant.published or "–",
    )  # fmt: skip


def _percent(found: Estimate | None) -> str:
    if found is None:
        return "–"
    return f"{100 * found.value:.2f} % ({100 * found.low:.1f}–{100 * found.high:.1f})"


def _difference(found: Paired | None) -> str:
    """Of the errors, in points: what the accuracies differ by, turned round."""
    if found is None:
        return "–"
    difference = found.difference
    value, low, high = (0 - 100 * x for x in (difference.value, difference.high, difference.low))  # never -0.00
    return f"{value:+.2f} ({low:+.1f} to {high:+.1f})"


def _count(number: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)


def verdict(rows: Sequence[Row]) -> str:
    """What these pictures say of the contest of 2012: AlexNet against the runner-up."""
    by_name = {row.entrant.name: row for row in rows}
    if JUDGE not in by_name or FISHER not in by_name:
        return "AlexNet and the runner-up did not both take part"
    ours, theirs = by_name[JUDGE], by_name[FISHER]
    if ours.top1 is None or theirs.top1 is None or theirs.against is None:
        return "AlexNet diverged, so there is no comparison"
    top = f"Top-1 test error: AlexNet {100 * ours.top1.value:.1f} %, Fisher vectors {100 * theirs.top1.value:.1f} %"
    low, high, p = theirs.against.difference.low, theirs.against.difference.high, theirs.against.p_value
    if low <= 0 <= high or p >= SURE:  # where they differ on few pictures, the exact test is the careful one
        return f"{top}: cannot tell which is better (p = {p:.2g})"
    return f"{top}: {'AlexNet' if high < 0 else 'the runner-up'} is better (p = {p:.2g})"


def csv_text(rows: Sequence[Row]) -> str:
    """A line a contestant, numbers as they are."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = (
        "name", "year", "top1_error", "top1_low", "top1_high", "top5_error", "difference_to_alexnet", "p_mcnemar",
        "parameters", "multiply_adds", "epochs", "training_seconds", "seconds", "milliseconds_a_picture", "bytes",
        "diverged",
    )  # fmt: skip
    writer.writerow(names)
    for row in rows:
        entry, one = row.entry, row.top1
        writer.writerow([
            entry.name, row.entrant.year, *((one.value, one.low, one.high) if one else ("", "", "")),
            row.top5.value if row.top5 else "", -row.against.difference.value if row.against else "",
            row.against.p_value if row.against else "", entry.parameters, entry.multiply_adds, entry.epochs,
            round(entry.training_seconds, 2), round(entry.seconds, 2), row.speed.median if row.speed else "",
            entry.bytes, entry.diverged,
        ])  # fmt: skip
    return out.getvalue()


def markdown(title: str, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The table and what is to be kept in mind, for a page."""
    columns, lines = cells(rows)
    table = [columns, tuple("---" for _ in columns), *lines]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table)
    return f"# {title}\n\n{text}\n\n" + "\n".join(f"* {note}" for note in notes) + "\n\n![errors](contest.png)\n"
