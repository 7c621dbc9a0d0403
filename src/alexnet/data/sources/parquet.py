"""Parquet files in the layout of Hugging Face → a source: a column of images (bytes and path), one of labels.

The only door to pyarrow, which is imported when there are such files.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.data.sources.source import SPLITS, Problems, Row, Sample, Source, make_source, path_text, stamp_of
from alexnet.errors import DataError, ImageError, printable
from alexnet.schema import class_fault, parse_json

MAX_CLASSES = 1_000_000  # of a file without class names; its number of classes is its largest label + 1


def parquet_files(root: Path) -> dict[str, list[Path]]:
    """Split → its files in ``root`` or ``root/data``, such as ``train-*.parquet``."""
    files: dict[str, list[Path]] = {}
    for path in sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")]):
        prefix = re.split(r"[-.]", path.name)[0].lower()
        if prefix in SPLITS:
            files.setdefault(SPLITS[prefix], []).append(path)
    return files


def read_parquet(root: Path, files: Mapping[str, list[Path]], problems: Problems | None = None) -> Source:
    """The images of ``files`` in ``root``, the result of :func:`parquet_files`. Raises DataError."""
    try:
        import pyarrow as arrow
    except ImportError as error:
        hint = "pip install 'alexnet[data]'"
        raise DataError(f"{path_text(root)}: parquet files need pyarrow", "installed", hint) from error
    if "train" not in files or len(files) < 2:
        raise DataError(
            f"{path_text(root)}: parquet files of {', '.join(files)}", "of train and test", "add the others"
        )
    try:
        tables = [(split, _Table(path)) for split, paths in files.items() for path in paths]
        rows = [row for split, table in tables for row in table.rows(root, split)]
    except (OSError, arrow.ArrowException) as error:
        problem = f"{path_text(root)}: {' '.join(str(error).split())}"
        raise DataError(problem, "readable parquet files", "get them again") from error
    known = tables[0][1].class_names
    for _, table in tables:  # a label means the same class in every file
        if table.class_names != known:
            problem = f"{path_text(table.path)}: other class names than {path_text(tables[0][1].path.name)}"
            raise DataError(problem, "the same in every file, in one order", "write the files again from one data set")
    names = _names(known, rows)
    return replace(make_source(path_text(root.resolve().name), names, rows, problems=problems), sequential=True)


def _names(known: list[str], rows: list[Row]) -> list[str]:
    """The class names of the files, or numbers if they have none. Raises DataError for a label out of range."""
    count = len(known) or min(MAX_CLASSES, 1 + max((row.image.label for row in rows), default=-1))
    for row in rows:
        if not 0 <= row.image.label < count:
            raise DataError(f"{row.image.origin}: label {row.image.label}", f"0 to {max(0, count - 1)}", "mend it")
    return known or [str(number) for number in range(count)]


class _Table:
    """One parquet file. Labels are read at once, images by row group; the last two groups stay in memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as parquet

        self.path, self.file = path, parquet.ParquetFile(path)
        names = self.file.schema_arrow.names
        self.image = next((name for name in ("img", "image") if name in names), "")
        self.label = next((name for name in ("label", "fine_label") if name in names), "")
        if not self.image or not self.label:
            expected = "img or image, and label or fine_label"
            columns = ", ".join(map(printable, names))
            raise DataError(f"{path_text(path)}: columns {columns:.200}", expected, "rename the columns")
        if names.count(self.image) > 1 or names.count(self.label) > 1:
            duplicate = self.image if names.count(self.image) > 1 else self.label
            raise DataError(f"{path_text(path)}: column {duplicate!r} twice", "once each", "rename one")
        self._check_images()
        self.class_names = self._class_names()
        counts = [self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups)]
        self.starts = np.cumsum([0, *counts])
        self.groups: OrderedDict[int, Any] = OrderedDict()
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the file again."""
        return _Table, (self.path,)

    def _check_images(self) -> None:
        """Raise DataError unless the image column is binary, or a struct with a binary field ``bytes``."""
        import pyarrow as arrow

        kind = self.file.schema_arrow.field(self.image).type
        content = kind
        if arrow.types.is_struct(kind):
            content = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else arrow.null()
        known = arrow.types.is_binary(content) or arrow.types.is_large_binary(content)
        if self.file.metadata.num_rows and not known:
            problem = f"{path_text(self.path)}: column {self.image} holds {kind!s:.80}"
            raise DataError(
                problem, "encoded images: struct<bytes: binary, path: string>, or binary", "convert the column"
            )

    def _class_names(self) -> list[str]:
        """The class names in the schema's metadata; empty if it has none. Raises DataError for invalid names."""
        try:
            metadata = parse_json((self.file.schema_arrow.metadata or {})[b"huggingface"])
            names = metadata["info"]["features"][self.label]["names"]
        except (KeyError, TypeError, ValueError):
            return []
        if names is None:
            return []
        reason = class_fault(names) if isinstance(names, list) else "the class names are not a list"
        if reason:
            raise DataError(
                f"{path_text(self.path)}: {reason}", "the names of at least two classes", "mend the file's metadata"
            )
        return list(names)

    def rows(self, root: Path, split: str) -> Iterator[Row]:
        """A row for each image. The origin is the file's path in ``root`` and the image's index."""
        name, stamp = path_text(self.path.relative_to(root).as_posix()), stamp_of(self.path)
        labels = self.file.read(columns=[self.label]).column(0).to_pylist()
        for index, label in enumerate(labels):
            origin = f"{name}#{index:07d}"
            if not isinstance(label, int):
                raise DataError(f"{origin}: label {printable(repr(label)):.80}", "an integer", "mend the file")
            yield Row(split, Sample(label, origin, partial(self.bytes_of, index)), stamp)

    def bytes_of(self, index: int) -> bytes:
        """The encoded image in row ``index``. Raises ImageError."""
        group = int(np.searchsorted(self.starts, index, "right")) - 1
        with self.lock:
            if group not in self.groups:
                self.groups[group] = self._read_group(group)
                while len(self.groups) > 2:
                    self.groups.popitem(last=False)
            column = self.groups[group]
        cell = column[index - int(self.starts[group])].as_py()
        return (cell.get("bytes") if isinstance(cell, dict) else cell) or b""

    def _read_group(self, group: int) -> Any:
        """The image column of one row group. Raises ImageError: only the images of a damaged group are bad."""
        import pyarrow as arrow

        try:
            return self.file.read_row_group(group, columns=[self.image]).column(0)
        except (OSError, arrow.ArrowException) as error:
            problem = f"{path_text(self.path)}: row group {group} is damaged ({' '.join(str(error).split())})"
            raise ImageError(problem, "readable", "get the file again") from error
