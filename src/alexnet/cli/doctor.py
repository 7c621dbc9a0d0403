"""``alexnet doctor``: what is wrong with a data set, before a day of training."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from alexnet.cli import arguments, show
from alexnet.errors import DataError, counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from alexnet.data.doctor.examine import Embed
    from alexnet.data.doctor.findings import Finding, Report
    from alexnet.data.listing import Picture

_SHOWN = 3  # examples of a finding on the terminal


@dataclass(frozen=True)
class DoctorArguments:
    """Say what is wrong with a data set. Changes nothing.

    Exit status 0: can be trained on, perhaps with warnings; 1: a result of training would be wrong or useless.
    """

    data: Positional[str]  # folder | CSV or TSV table | tar | parquet files | digits, cifar10, mnist, imagenette, …
    bundle: Path | None = None  # a trained run or bundle: find likely wrong labels by what its network sees
    html: Path | None = None  # write the report with thumbnails to this file
    exclude_list: Path | None = None  # write the pictures to leave out to this file, for train and prepare --exclude
    json: bool = False  # print everything as one JSON object
    validation: float = 0.1  # fraction for validation, as training would be told
    test: float = 0.2  # fraction for the test, as training would be told
    seed: int = 0  # of the splits, as training would be told
    device: str = "auto"  # for --bundle: auto | cpu | cuda | cuda:N
    source: arguments.SourceArguments = field(default_factory=arguments.SourceArguments)


def doctor(words: list[str]) -> int:
    """what is wrong with a data set, before a day of training"""
    given: DoctorArguments = arguments.parse(DoctorArguments, words, "doctor")
    from alexnet.data.doctor.examine import examine
    from alexnet.data.options import DataOptions

    options = DataOptions(
        given.source.data_root, given.source.download, group_column=given.source.group_column,
        group_pattern=given.source.group_pattern, exclude=given.source.exclude,
        layout=arguments.layout_options(given.source),
    )  # fmt: skip
    faults: list[DataError] = []
    source = options.open(given.data, faults)
    report = examine(
        source, faults, validation=given.validation, test=given.test, seed=given.seed,
        embed=None if given.bundle is None else _embed(given.bundle, given.device), progress=show.Progress,
    )  # fmt: skip
    if given.html is not None:
        from alexnet.data.doctor.page import write_page

        write_page(report, source, given.html)
    if given.exclude_list is not None:
        _write_list(report, given.exclude_list)
    print(json.dumps(report.to_dict(), indent=1)) if given.json else _print(report)
    return 0 if report.honest else 1


def _embed(bundle: Path, device: str) -> "Embed":
    """What the network of ``bundle`` sees, 64 pictures at a time."""
    import numpy as np

    from alexnet import api

    classifier = api.load(bundle, device)

    def embed(pictures: "list[Picture]") -> "NDArray[np.float32]":
        bar = show.Progress("asking the network")
        rows = []
        for start in range(0, len(pictures), 64):
            rows.append(classifier.embed([picture.load() for picture in pictures[start : start + 64]]))
            bar(min(start + 64, len(pictures)), len(pictures))
        return np.concatenate(rows) if rows else classifier.embed([])

    return embed


def _write_list(report: "Report", path: Path) -> None:
    from alexnet.data.writing import write_file

    try:
        write_file(path, report.exclusion_list().encode())
    except OSError as error:
        raise DataError(f"{path}: can not be written ({error.strerror})", "a file in a writable folder", "") from error


def _print(report: "Report") -> None:
    rows = [
        (title, *(f"{counts[label]:,}" for counts in report.counts.values()))
        for label, title in enumerate(report.classes)
    ]
    if len(rows) > 20:  # a thousand classes: the sums alone
        rows = []
    rows.append(("all", *(f"{sum(counts):,}" for counts in report.counts.values())))
    drawn = ", splits as training would draw them" if report.drawn else ""
    show.table(f"{report.name}: {len(report.classes)} classes{drawn}", ("class", *report.counts), rows)
    for finding in report.findings:
        _print_finding(finding)
    excluded = len(report.exclusions())
    if excluded:
        print(f"{counted(excluded, 'image')} would be left out by: alexnet doctor DATA --exclude-list LIST\n")
    print(report.verdict)


def _print_finding(finding: "Finding") -> None:
    paint = sys.stdout.isatty()
    color: dict[Any, str] = {"error": "\033[31m", "warning": "\033[33m", "note": "\033[32m"}
    kind = f"{color[finding.severity]}{finding.severity:<8}\033[0m" if paint else f"{finding.severity:<8}"
    print(f"{kind} {finding.check}: {finding.what}")
    if finding.todo:
        print(f"         → {finding.todo}")
    for example in finding.examples[:_SHOWN]:
        names = ", ".join(example.origins[:4])
        names += f", +{len(example.origins) - 4:,} more" if len(example.origins) > 4 else ""
        print(f"           {names}" + (f"   ({example.why})" if names and example.why else example.why))
    if len(finding.examples) > _SHOWN:
        print(f"           and {len(finding.examples) - _SHOWN:,} more")
