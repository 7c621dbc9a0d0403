"""Which images of a source belong together (groups), and which are left out, before it is split."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from alexnet.data.sources.source import Sample, Source, path_text
from alexnet.errors import DataError, counted


def group_images(source: Source, *, column: str = "", pattern: str = "") -> Source:
    """``source`` with a group for each image. Pass either ``column`` or ``pattern``.

    An image without a match, or with an empty cell, is a group of one image.

    Args:
        source: the images.
        column: name of a table's column whose value is the group.
        pattern: a regular expression, searched in each image's origin. Its first capture group, or without one the
            whole match, is the group.

    Raises:
        DataError: if the column does not exist, or the expression is invalid or matches nothing.
    """
    if column and pattern:
        raise DataError("a column and a pattern for groups", "one of them", "leave one out")
    group_of = _by_column(source, column.lower()) if column else _by_pattern(pattern)
    splits = {
        name: tuple(replace(image, group=group_of(image)) for image in images) for name, images in source.splits.items()
    }
    ungrouped = sum(not image.group for images in splits.values() for image in images)
    total = sum(map(len, splits.values()))
    grouping = f"column {column}" if column else f"pattern {pattern}"
    if ungrouped == total:
        raise DataError(f"{source.name}: group {grouping} finds no group", "a group for most images", "mend it")
    notes = (*source.notes, *[f"no group by {grouping}: {ungrouped:,} of {counted(total, 'image')}"] * bool(ungrouped))
    return replace(source, splits=splits, notes=notes, grouping=grouping)


def regroup_images(source: Source, grouping: str) -> Source:
    """``source`` grouped again as ``grouping``, the recorded ``Source.grouping``; unchanged if that is empty."""
    kind, _, value = grouping.partition(" ")
    return group_images(source, **{kind: value}) if value else source


def exclude_images(source: Source, path: Path) -> Source:
    """``source`` without the images listed in the file ``path``.

    The images are excluded after the splits are drawn, so that the other images stay in their splits.

    Args:
        source: the images.
        path: a text file with an origin on each line, up to a tab; lines that begin with ``#`` are comments.

    Raises:
        DataError: if the file cannot be read, or the source contains none of the listed images.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path_text(path)}: can not be read ({error})", "a list of images", "check the path"
        ) from error
    listed = {line.split("\t")[0] for line in lines if line.strip() and not line.startswith("#")}
    origins = {image.origin for images in source.splits.values() for image in images}
    if listed and not listed & origins:
        problem = f"{path_text(path)}: none of its {len(listed)} names is in {source.name}, such as {min(listed)!r}"
        raise DataError(problem, "names as the doctor lists them", "make it again with: alexnet doctor --exclude-list")
    absent = len(listed - origins)
    notes = (
        *source.notes,
        *[f"not in {source.name}: {absent:,} of {counted(len(listed), 'name')} in {path_text(path)}"] * bool(absent),
    )
    return replace(source, excluded=source.excluded | (listed & origins), notes=notes)


def _by_column(source: Source, column: str) -> Callable[[Sample], str]:
    known = sorted({name for images in source.splits.values() for image in images for name in image.columns})
    if column not in known:
        expected = f"one of {', '.join(known)}" if known else "a table with columns (CSV or TSV)"
        raise DataError(f"{source.name}: no column {column!r}", expected, "choose another")
    return lambda image: image.columns.get(column, "")


def _by_pattern(pattern: str) -> Callable[[Sample], str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"group pattern {pattern!r}: {error}", "a regular expression", "mend it") from error

    def group_of(image: Sample) -> str:
        match = expression.search(image.origin)
        return (match[1] if expression.groups else match[0]) or "" if match else ""

    return group_of
