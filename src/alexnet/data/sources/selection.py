"""Which images of a source belong together (groups), and which are left out, before it is split."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from alexnet.data.sources.source import Sample, Source, path_text
from alexnet.errors import DataError, counted


def group_images(source: Source, *, column: str = "", pattern: str = "") -> Source:
    """``source`` with a group for each image: the value of a table's ``column``, or what ``pattern`` finds.

    ``pattern`` is a regular expression, searched in each image's origin; its first parenthesis is the group, or else
    all that it matches. An image that it does not match, or whose cell is empty, is a group of its own. Raises
    DataError for a column that is not there, a wrong expression, or one that matches nothing.
    """
    if column and pattern:
        raise DataError("a column and a pattern for groups", "one of them", "leave one out")
    find = _by_column(source, column.lower()) if column else _by_pattern(pattern)
    splits = {name: tuple(replace(p, group=find(p)) for p in images) for name, images in source.splits.items()}
    lone = sum(not image.group for images in splits.values() for image in images)
    total = sum(map(len, splits.values()))
    what = f"column {column}" if column else f"pattern {pattern}"
    if lone == total:
        raise DataError(f"{source.name}: group {what} finds no group", "a group for most images", "mend it")
    notes = (*source.notes, *[f"no group by {what}: {lone:,} of {counted(total, 'image')}"] * bool(lone))
    return replace(source, splits=splits, notes=notes, grouping=what)


def regroup_images(source: Source, grouping: str) -> Source:
    """As ``grouped``, from what ``Source.grouping`` recorded; nothing to do if that is empty."""
    kind, _, what = grouping.partition(" ")
    return group_images(source, **{kind: what}) if what else source


def exclude_images(source: Source, path: Path) -> Source:
    """``source`` without the images that the file lists: a name a line, up to a tab; ``#`` begins a remark.

    The splits are drawn first: leaving images out moves no other. Raises DataError if nothing listed is there.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path_text(path)}: can not be read ({error})", "a list of images", "check the path"
        ) from error
    listed = {line.split("\t")[0] for line in lines if line.strip() and not line.startswith("#")}
    there = {image.origin for images in source.splits.values() for image in images}
    if listed and not listed & there:
        what = f"{path_text(path)}: none of its {len(listed)} names is in {source.name}, such as {min(listed)!r}"
        raise DataError(what, "names as the doctor lists them", "make it again with: alexnet doctor --exclude-list")
    gone = len(listed - there)
    notes = (
        *source.notes,
        *[f"not in {source.name}: {gone:,} of {counted(len(listed), 'name')} in {path_text(path)}"] * bool(gone),
    )
    return replace(source, excluded=source.excluded | (listed & there), notes=notes)


def _by_column(source: Source, column: str) -> Callable[[Sample], str]:
    known = sorted({name for images in source.splits.values() for p in images for name in p.columns})
    if column not in known:
        must = f"one of {', '.join(known)}" if known else "a table with columns (CSV or TSV)"
        raise DataError(f"{source.name}: no column {column!r}", must, "choose another")
    return lambda image: image.columns.get(column, "")


def _by_pattern(pattern: str) -> Callable[[Sample], str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"group pattern {pattern!r}: {error}", "a regular expression", "mend it") from error

    def find(image: Sample) -> str:
        match = expression.search(image.origin)
        return (match[1] if expression.groups else match[0]) or "" if match else ""

    return find
