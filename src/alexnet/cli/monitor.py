"""The command ``monitor``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.parser import Flag, option
from alexnet.errors import RecipeError, RunError

if TYPE_CHECKING:
    from alexnet.evaluation.drift import Day


@dataclass(frozen=True)
class MonitorArguments:
    """Compare each day of a server with its first days, and report what has changed.

    Exit status: 0; with --exit-code 1 if the last day has an alarm.
    """

    folder: Positional[Annotated[Path, option("FOLDER")]]
    """the folder of alexnet serve RUN --monitor FOLDER"""
    baseline_days: Annotated[int, option("N")] = 7
    """first days of a model, which later days are compared with"""
    false_alarms: Annotated[float, option("FRACTION")] = 0.01
    """fraction of days that raise an alarm although nothing has changed"""
    html: Annotated[Path | None, option("FILE")] = None
    """write the days to this HTML file"""
    exit_code: Flag = False
    """exit with 1 if the last day has an alarm"""
    json: Flag = False
    """print one JSON list of days"""


def run(argv: list[str]) -> int:
    """Read the counts, test each day, and print the days."""
    args: MonitorArguments = parser.parse(MonitorArguments, argv, "monitor")
    if args.baseline_days < 1:
        raise RecipeError(f"--baseline-days is {args.baseline_days}", "at least 1")
    if not 0 < args.false_alarms < 1:
        raise RecipeError(f"--false-alarms is {args.false_alarms}", "a fraction between 0 and 1, such as 0.01")
    from alexnet.evaluation import drift

    days = drift.examine(drift.read_days(args.folder), args.baseline_days, args.false_alarms)
    columns, rows = (
        ("day", "model", "images", "abstained", "unreadable", "confidence", "brightness", "distance", "changed"),
        _rows(days),
    )
    note = (
        f"Each day is compared with the first {args.baseline_days} days of its model: chi-squared tests with Holm's "
        f"correction; at most {100 * args.false_alarms:g} % of days raise an alarm although nothing has changed."
    )
    if args.html is not None:
        from alexnet import pages
        from alexnet.data.atomic_io import write_file

        classes = [(one, _shares(one, days)) for one in days if "classes" in one.alarms]
        tables = [(one.counts.date, lines) for one, lines in classes]
        page = pages.render(
            "monitor.html", folder=str(args.folder), columns=columns, rows=rows, note=note, tables=tables
        )
        try:
            write_file(args.html, page.encode("utf-8", "replace"))
        except OSError as error:
            raise RunError(
                f"{args.html}: can not be written ({error.strerror})", "a file in a writable folder"
            ) from error
    if args.json:
        print(json.dumps([one.to_dict() for one in days]))
    else:
        output.table(str(args.folder), columns, rows)
        print(note)
    return int(args.exit_code and bool(days[-1].alarms))


def _rows(days: "Sequence[Day]") -> list[tuple[str, ...]]:
    from alexnet.evaluation.drift import BRIGHTNESS, CONFIDENCE, DISTANCE, FEW, mean_of

    rows: list[tuple[str, ...]] = []
    for day in days:
        one = day.counts
        changed = ", ".join(f"{name} (p = {day.p_values[name]:.1g})" for name in day.alarms)
        if day.baseline:
            changed = "first days"
        elif not day.p_values:
            changed = f"fewer than {FEW} images: not tested"
        confidence, brightness = mean_of(one.confidence, CONFIDENCE, 1.0), mean_of(one.brightness, BRIGHTNESS, 256.0)
        distance = mean_of(one.distance, DISTANCE, 1.0)
        rows.append(
            (
                one.date,
                one.model_sha256[:12],
                str(one.images),
                str(one.abstained),
                str(one.failed),
                output.percent(confidence, 1),
                f"{brightness:.0f}" if one.images else "",
                f"{distance:.2f}" if sum(one.distance) else "",
                changed or "–",
            )
        )
    return rows


def _shares(day: "Day", days: "Sequence[Day]") -> list[tuple[str, str, str]]:
    """The fraction of each class on a day, and on the first days of its model; the largest change first."""
    from alexnet.evaluation.drift import merge

    model = day.counts.model_sha256
    first = merge([one.counts for one in days if one.baseline and one.counts.model_sha256 == model])
    shares = [[count / max(1, one.images) for count in one.predicted] for one in (first, day.counts)]
    rows = sorted(zip(day.counts.classes, *shares, strict=True), key=lambda row: -abs(row[1] - row[2]))
    return [(name, output.percent(before, 1), output.percent(now, 1)) for name, before, now in rows[:20]]
