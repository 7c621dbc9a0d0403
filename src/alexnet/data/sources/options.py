"""Options that select, group and read the images of a data set; they are not part of a recipe."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from alexnet.data.atomic_io import read_regular
from alexnet.data.sources import open_source
from alexnet.data.sources.corrections import apply_corrections
from alexnet.data.sources.layout import LayoutOptions
from alexnet.data.sources.source import Problems, Sample, Source, group_similar, path_text, summarize
from alexnet.errors import DataError, counted
from alexnet.terminal import Progress


def group_images(source: Source, *, column: str = "", pattern: str = "") -> Source:
    """``source`` with a group for each image. Pass either ``column`` or ``pattern``.

    An image without a match, or with an empty cell, is a group of one image.

    Args:
        source: the images.
        column: name of a table's column whose value is the group.
        pattern: a regular expression, searched in each image's origin. Its capture groups, or without one the whole
            match, are the group.

    Raises:
        DataError: if the column does not exist, or the expression is invalid or matches nothing.
    """
    if column and pattern:
        raise DataError("--group-column and --group-pattern exclude each other", "", "leave one out")
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
        lines = read_regular(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path_text(path)}: cannot be read ({error})", "a list of images", "check the path") from error
    origins = {image.origin for images in source.splits.values() for image in images}
    names = [(line, line.split("\t")[0]) for line in lines if line.strip()]
    listed = {name for line, name in names if name in origins or not line.startswith("#")}  # a class may be "#1"
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
    return lambda image: matched_group(expression, image.origin)


def matched_group(expression: re.Pattern[str], origin: str) -> str:
    """The group of an image by a pattern: what its capture groups match, or without one the whole; may be empty."""
    match = expression.search(origin)
    return "|".join(part or "" for part in match.groups() or (match[0],)).strip("|") if match else ""


_FLAGS = ("--download", "--allow-truncated")  # options without a value


@dataclass(frozen=True)
class DataOptions:
    """Options of the data set itself.

    Attributes:
        data_root: folder of torchvision's data sets; default ``~/.cache/alexnet``.
        download: fetch a missing data set of torchvision or ``hf:OWNER/NAME``.
        cache: folder in which stores are prepared; default ``~/.cache/alexnet``.
        bad: ``exclude`` images that cannot be decoded, or ``fail`` at the first one.
        allow_truncated: decode the existing part of a truncated image.
        progress: receives the number of processed images and of all images.
        log: receives one line of text for the user.
        group_column: a table's column whose value is the group.
        group_pattern: a regular expression over the origins of images; its match is the group.
        exclude: a file that lists images to leave out.
        corrections: a file with corrected labels, and images to leave out or to add.
        include_training_images: evaluate on images that the classifier was trained on, too.
        layout: how to read an ambiguous layout.
    """

    data_root: Path | None = None
    download: bool = False
    cache: Path | None = None
    bad: Literal["exclude", "fail"] = "exclude"
    allow_truncated: bool = False
    progress: Progress | None = None
    log: Callable[[str], None] | None = None
    group_column: str | None = None
    group_pattern: str | None = None
    exclude: Path | None = None
    corrections: Path | None = None
    include_training_images: bool = False
    layout: LayoutOptions = field(default_factory=LayoutOptions)

    def to_args(self) -> list[str]:
        """Command-line arguments that select the same images, so that a run can be repeated."""
        options = {
            "--data-root": self.data_root,
            "--group-column": self.group_column,
            "--group-pattern": self.group_pattern,
            "--exclude": self.exclude,
            "--corrections": self.corrections,
            "--bad": None if self.bad == "exclude" else self.bad,
        }
        layout = self.layout
        options |= {
            "--classes": None if layout.classes == "auto" else layout.classes,
            "--image-column": layout.image_column,
            "--label-column": layout.label_column,
            "--delimiter": layout.delimiter,
        }
        args = [arg for name, value in options.items() if value is not None for arg in (name, str(value))]
        args += [arg for pattern in layout.ignore for arg in ("--ignore", pattern)]
        return args + [flag for flag, used in zip(_FLAGS, (self.download, self.allow_truncated), strict=True) if used]

    def with_recorded(self, args: Sequence[str], directory: Path, *, only_layout: bool = False) -> "DataOptions":
        """These options, with defaults replaced by recorded values.

        Args:
            args: recorded arguments, the result of :meth:`to_args`.
            directory: the folder that relative paths in ``args`` refer to.
            only_layout: take only the options of the layout from ``args``.
        """
        recorded = _parse(args, directory)
        if self.group_column or self.group_pattern:
            recorded = replace(recorded, group_column=None, group_pattern=None)
        layout = _completed(self.layout, recorded.layout)
        layout = replace(layout, recorded=layout != self.layout)
        return replace(self if only_layout else _completed(self, recorded), layout=layout)

    def log_once(self) -> "DataOptions":
        """These options, where a line that several classifiers on the same images cause is logged once."""
        logged: set[str] = set()

        def log(text: str) -> None:
            if text not in logged:
                logged.add(text)
                self.log_line(text)

        return replace(self, log=log)

    def log_line(self, text: str) -> None:
        """Log one line, if there is a ``log`` function."""
        if self.log is not None:
            self.log(text)

    def open(self, data: str | Path, problems: Problems | None = None) -> Source:
        """The images of ``data``, grouped and corrected. Logs the notes of the source. Raises DataError."""
        source = open_source(
            data, data_root=self.data_root, download=self.download, layout=self.layout, problems=problems
        )
        if self.group_column or self.group_pattern:
            source = group_images(source, column=self.group_column or "", pattern=self.group_pattern or "")
        if self.exclude is not None:
            source = exclude_images(source, self.exclude)
        if self.corrections is not None:
            source = apply_corrections(source, self.corrections)
        for lines in group_similar(source.notes):
            self.log_line(summarize(lines))
        return source


def _completed(options: Any, recorded: Any) -> Any:
    """The dataclass ``options``; fields that have their default value are taken from ``recorded``."""
    default = type(options)()
    defaults = [f.name for f in fields(options) if getattr(options, f.name) == getattr(default, f.name)]
    return replace(options, **{name: getattr(recorded, name) for name in defaults})


def _parse(args: Sequence[str], directory: Path) -> DataOptions:
    """The options of which ``args`` is the result of :meth:`DataOptions.to_args`."""
    pairs = [arg for arg in args if arg not in _FLAGS]
    values = dict(zip(pairs[::2], pairs[1::2], strict=False))
    layout = LayoutOptions(
        classes=values.get("--classes", "auto"),  # type: ignore[arg-type]
        ignore=tuple(value for name, value in zip(pairs[::2], pairs[1::2], strict=False) if name == "--ignore"),
        image_column=values.get("--image-column"),
        label_column=values.get("--label-column"),
        delimiter=values.get("--delimiter"),
    )
    root, exclude, corrections = (
        directory / values[name] if name in values else None for name in ("--data-root", "--exclude", "--corrections")
    )
    return DataOptions(
        root,
        "--download" in args,
        group_column=values.get("--group-column"),
        group_pattern=values.get("--group-pattern"),
        exclude=exclude,
        corrections=corrections,
        bad="fail" if values.get("--bad") == "fail" else "exclude",
        allow_truncated="--allow-truncated" in args,
        layout=layout,
    )
