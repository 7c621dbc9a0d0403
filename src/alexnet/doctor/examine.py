"""The doctor: every check on one data set, in the order in which a person should read them."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from alexnet.data.sources.source import Sample, Source, group_similar, summarize
from alexnet.data.splits import assign_splits
from alexnet.doctor.duplicates import check_duplicates, find_duplicates
from alexnet.doctor.findings import Example, Finding, Report, by_severity, without_reviewed
from alexnet.doctor.groups import check_groups, find_pattern
from alexnet.doctor.images import ImageDataset, Phases, check_contents, check_files, check_shapes, inspect_all
from alexnet.doctor.labels import check_classes, check_labels, counts_of
from alexnet.doctor.shortcuts import check_colors, check_shortcuts
from alexnet.errors import DataError

Embed = Callable[[list[Sample]], NDArray[np.floating]]  # images → features [N, D]


def examine(
    source: Source,
    problems: list[DataError] | None = None,
    *,
    splits: Mapping[str, tuple[Sample, ...]] | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    allow_truncated: bool = False,
    embed: Embed | None = None,
    workers: int | None = None,
    progress: Phases | None = None,
) -> Report:
    """Examine every image of ``source`` and list what is wrong. Nothing is changed.

    Args:
        problems: what ``open_source`` collected while it read the source.
        validation: fraction of the validation split that training would cut, if the data brings none.
        test: fraction of the test split, likewise.
        seed: of the splits, likewise.
        splits: the splits of an existing run, in place of those that training would make.
        allow_truncated: whether truncated images are decoded.
        embed: a function that computes feature vectors, with which labels are checked too.
        workers: threads.
        progress: makes the progress bar of a phase from its name.

    Raises:
        DataError: for wrong arguments only.
    """
    splits = splits or assign_splits(source, validation=validation, test=test, seed=seed, strict=False)
    bar: Phases = progress or (lambda _phase: None)
    infos = inspect_all(splits, workers, bar("looking"))
    unsplit = "all" in source.splits
    dataset = ImageDataset(
        source.name, source.classes, infos, unsplit, unsplit or "validation" not in source.splits, allow_truncated
    )
    good = dataset.good()
    duplicate_sets = find_duplicates(good, bar("comparing"))
    pattern = find_pattern(good)  # after it: its many small objects leave memory that arrays cannot use
    findings = [
        *check_classes(dataset, problems or []),
        *check_duplicates(dataset, duplicate_sets),
        *check_groups(dataset, pattern),
    ]
    findings += [*check_files(dataset), *check_shapes(dataset), *check_contents(dataset)]
    findings += [*check_shortcuts(dataset, duplicate_sets, bar("looking for shortcuts"), pattern)]
    findings += check_colors(dataset)
    if embed is not None:
        features = embed([info.sample for info in good])
        findings += check_labels(dataset, good, duplicate_sets, features)
    findings = [left for finding in findings if (left := without_reviewed(finding, source.reviewed)) is not None]
    for lines in group_similar(source.notes):
        findings.append(
            Finding("reading", "note", summarize(lines), "", tuple(Example((), line) for line in lines[1:]))
        )
    return Report(source.name, source.classes, counts_of(dataset), dataset.drawn, by_severity(findings))
