"""Options that select, group and read the images of a data set; they are not part of a recipe."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from alexnet.data.sources import open_source
from alexnet.data.sources.layout import LayoutOptions
from alexnet.data.sources.selection import exclude_images, group_images
from alexnet.data.sources.source import Problems, Source, group_similar, summarize

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DataOptions:
    """Options of the data set itself.

    Attributes:
        data_root: folder of torchvision's data sets; default ``~/.cache/alexnet``.
        download: fetch a torchvision data set that is not in ``data_root``.
        cache: folder for files of remote stores.
        bad: exclude images that cannot be decoded, or fail at the first one.
        allow_truncated: decode the existing part of a truncated image.
        progress: receives the number of processed images and of all images.
        log: receives one line of text for the user.
        group_column: a table's column whose value is the group.
        group_pattern: a regular expression over the origins of images; its match is the group.
        exclude: a file that lists images to leave out.
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
    include_training_images: bool = False
    layout: LayoutOptions = field(default_factory=LayoutOptions)

    def to_args(self) -> list[str]:
        """Command-line arguments that select the same images, so that a run can be repeated."""
        options = {
            "--data-root": self.data_root,
            "--group-column": self.group_column,
            "--group-pattern": self.group_pattern,
            "--exclude": self.exclude,
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
        return args + ["--allow-truncated"] * self.allow_truncated

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
        return replace(self if only_layout else _completed(self, recorded), layout=layout)

    def log_line(self, text: str) -> None:
        """Log one line, if there is a ``log`` function."""
        if self.log is not None:
            self.log(text)

    def open(self, data: str | Path, problems: Problems | None = None) -> Source:
        """The images of ``data``, grouped and without excluded ones. Logs the notes of the source. Raises DataError."""
        source = open_source(
            data, data_root=self.data_root, download=self.download, layout=self.layout, problems=problems
        )
        if self.group_column or self.group_pattern:
            source = group_images(source, column=self.group_column or "", pattern=self.group_pattern or "")
        if self.exclude is not None:
            source = exclude_images(source, self.exclude)
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
    flag = "--allow-truncated"
    pairs = [arg for arg in args if arg != flag]
    values = dict(zip(pairs[::2], pairs[1::2], strict=False))
    layout = LayoutOptions(
        classes=values.get("--classes", "auto"),  # type: ignore[arg-type]
        ignore=tuple(value for name, value in zip(pairs[::2], pairs[1::2], strict=False) if name == "--ignore"),
        image_column=values.get("--image-column"),
        label_column=values.get("--label-column"),
        delimiter=values.get("--delimiter"),
    )
    root, exclude = (directory / values[name] if name in values else None for name in ("--data-root", "--exclude"))
    return DataOptions(
        root,
        group_column=values.get("--group-column"),
        group_pattern=values.get("--group-pattern"),
        exclude=exclude,
        bad="fail" if values.get("--bad") == "fail" else "exclude",
        allow_truncated=flag in args,
        layout=layout,
    )
