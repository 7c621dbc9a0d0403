"""How images are found, grouped and read, beyond what a recipe says."""

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
    """What a person says about the data set itself."""

    data_root: Path | None = None
    download: bool = False
    cache: Path | None = None
    bad: Literal["exclude", "fail"] = "exclude"
    allow_truncated: bool = False
    progress: Progress | None = None
    log: Callable[[str], None] | None = None
    group_column: str | None = None  # of a table
    group_pattern: str | None = None  # a regular expression over the images' names
    exclude: Path | None = None  # a list of images to leave out
    include_training_images: bool = False  # evaluate on images that the classifier was trained on, too
    layout: LayoutOptions = field(default_factory=LayoutOptions)  # what the layout of DATA leaves open

    def to_args(self) -> list[str]:
        """What one types to log the same about which images count: so that a run can be made again."""
        messages = {
            "--data-root": self.data_root,
            "--group-column": self.group_column,
            "--group-pattern": self.group_pattern,
            "--exclude": self.exclude,
            "--bad": None if self.bad == "exclude" else self.bad,
        }
        layout = self.layout
        messages |= {
            "--classes": None if layout.classes == "auto" else layout.classes,
            "--image-column": layout.image_column,
            "--label-column": layout.label_column,
            "--delimiter": layout.delimiter,
        }
        results = [word for name, value in messages.items() if value is not None for word in (name, str(value))]
        results += [word for pattern in layout.ignore for word in ("--ignore", pattern)]
        return results + ["--allow-truncated"] * self.allow_truncated

    def with_recorded(self, words: Sequence[str], directory: Path, *, only_layout: bool = False) -> "DataOptions":
        """These options; each one left at its default takes the value that ``words`` (see there) has for it.

        Relative paths start in ``directory``. ``only_layout``: take no more than how the layout is read.
        """
        recorded = _parse(words, directory)
        if self.group_column or self.group_pattern:
            recorded = replace(recorded, group_column=None, group_pattern=None)
        layout = _completed(self.layout, recorded.layout)
        return replace(self if only_layout else _completed(self, recorded), layout=layout)

    def log_line(self, text: str) -> None:
        """A line for the person, if anyone listens."""
        if self.log is not None:
            self.log(text)

    def open(self, data: str | Path, problems: Problems | None = None) -> Source:
        """The images of ``data``, grouped and without what is excluded; its notes are told. Raises DataError."""
        source = open_source(
            data, data_root=self.data_root, download=self.download, layout=self.layout, problems=problems
        )
        if self.group_column or self.group_pattern:
            source = group_images(source, column=self.group_column or "", pattern=self.group_pattern or "")
        if self.exclude is not None:
            source = exclude_images(source, self.exclude)
        for own in group_similar(source.notes):
            self.log_line(summarize(own))
        return source


def _completed(options: Any, recorded: Any) -> Any:
    """The dataclass ``options``, with each field that has its default taken from ``recorded``."""
    default = type(options)()
    left = [f.name for f in fields(options) if getattr(options, f.name) == getattr(default, f.name)]
    return replace(options, **{name: getattr(recorded, name) for name in left})


def _parse(words: Sequence[str], directory: Path) -> DataOptions:
    """What :meth:`DataOptions.words` wrote, read again."""
    flag = "--allow-truncated"
    pairs = [word for word in words if word != flag]
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
        allow_truncated=flag in words,
        layout=layout,
    )
