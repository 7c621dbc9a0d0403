"""Parquet files in the layout of Hugging Face: a column of images (bytes and path), and one of labels for a source.

The only door to pyarrow, which is imported when there are such files.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.data.sources.layout import LayoutOptions
from alexnet.data.sources.source import (
    SPLITS,
    Problems,
    Row,
    Sample,
    Source,
    class_name,
    make_source,
    path_text,
    stamp_of,
)
from alexnet.data.sources.tables import MISSING
from alexnet.errors import DataError, ImageError, printable
from alexnet.schema import class_fault, parse_json

IMAGES, LABELS = ("img", "image"), ("label", "fine_label")  # columns, if no others are requested
_FREE_BYTES, _MAX_RATIO = 64 << 20, 100  # what is read: at most 64 MiB + 100 × the size of the file
MAX_CLASSES = 1_000_000  # of a file without class names; its number of classes is its largest label + 1


def parquet_files(root: Path) -> dict[str, list[Path]]:
    """Split → its files in ``root`` or ``root/data``, such as ``train-*.parquet``."""
    files: dict[str, list[Path]] = {}
    for path in filter(Path.is_file, sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")])):
        prefix = re.split(r"[-.]", path.name)[0].lower()
        if prefix in SPLITS:
            files.setdefault(SPLITS[prefix], []).append(path)
    return files


def read_parquet(
    root: Path,
    files: Mapping[str, list[Path]],
    options: LayoutOptions | None = None,
    problems: Problems | None = None,
) -> Source:
    """The images of ``files`` in ``root``, the result of :func:`parquet_files`. Raises DataError.

    Labels are numbers of the class names in the files' metadata, or the class names themselves.
    """
    options = options or LayoutOptions()
    arrow = _pyarrow(root)
    if "train" not in files or len(files) < 2:
        raise DataError(
            f"{path_text(root)}: parquet files of {', '.join(files)}", "of train and test", "add the others"
        )
    try:
        tables = [
            (split, _Table(path, options.image_column, options.label_column))
            for split, paths in files.items()
            for path in paths
        ]
        names = sorted({name for _, table in tables for name in table.text_labels()})
        number = {name: label for label, name in enumerate(names)}
        rows = [row for split, table in tables for row in table.rows(root, split, number)]
    except (OSError, arrow.ArrowException) as error:
        problem = f"{path_text(root)}: {' '.join(str(error).split())}"
        raise DataError(problem, "readable parquet files", "get them again") from error
    known = names or tables[0][1].class_names
    for _, table in tables:  # a label means the same class in every file
        if table.class_names != tables[0][1].class_names or table.has_text_labels != bool(names):
            problem = f"{path_text(table.path)}: other class names than {path_text(tables[0][1].path.name)}"
            raise DataError(problem, "the same in every file, in one order", "write the files again from one data set")
    classes = _names(known, rows)
    return replace(make_source(path_text(root.resolve().name), classes, rows, problems=problems), sequential=True)


def parquet_images(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The name of each image in a parquet file, and the function that returns its bytes. Raises DataError."""
    arrow = _pyarrow(path)
    try:
        table = _Table(path, labeled=False)
    except (OSError, arrow.ArrowException) as error:
        problem = f"{path_text(path)}: {' '.join(str(error).split())}"
        raise DataError(problem, "a readable parquet file", "get it again") from error
    for index in range(int(table.starts[-1])):
        yield f"{path}#{index:07d}", partial(table.bytes_of, index)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        hint = "pip install 'alexnet[data]'"
        raise DataError(f"{path_text(path)}: parquet files need pyarrow", "installed", hint) from error
    return pyarrow


def _names(known: list[str], rows: list[Row]) -> list[str]:
    """The class names of the files, or numbers if they have none. Raises DataError for a label out of range."""
    count = len(known) or min(MAX_CLASSES, 1 + max((row.image.label for row in rows), default=-1))
    for row in rows:
        if not 0 <= row.image.label < count:
            raise DataError(f"{row.image.origin}: label {row.image.label}", f"0 to {max(0, count - 1)}", "mend it")
    return known or [str(number) for number in range(count)]


class _Table:
    """One parquet file. Labels are read at once, images by row group; the last two groups stay in memory.

    A column that names its values by their places in a dictionary can have a long value in every row of a small file.
    So columns are read in parts, whose sizes are added up.
    """

    def __init__(
        self, path: Path, image_column: str | None = None, label_column: str | None = None, labeled: bool = True
    ) -> None:
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        self.path, self.file = path, parquet.ParquetFile(path)
        self.budget = _FREE_BYTES + _MAX_RATIO * path.stat().st_size  # bytes
        names = self.file.schema_arrow.names
        self.arguments = path, image_column, label_column, labeled
        images, labels = [image_column] if image_column else IMAGES, [label_column] if label_column else LABELS
        self.image = next((name for name in images if name in names), "")
        self.label = next((name for name in labels if name in names), "") if labeled else ""
        if not self.image or (labeled and not self.label):
            labels_expected = f", and {' or '.join(map(printable, labels))}" if labeled else ""
            columns = ", ".join(map(printable, names))
            hint = "name others by --image-column and --label-column" if labeled else "rename the column"
            expected = f"{' or '.join(map(printable, images))}{labels_expected}"
            raise DataError(f"{path_text(path)}: columns {columns:.200}", expected, hint)
        self._check_size()
        if names.count(self.image) > 1 or names.count(self.label) > 1:
            duplicate = self.image if names.count(self.image) > 1 else self.label
            raise DataError(f"{path_text(path)}: column {duplicate!r} twice", "once each", "rename one")
        self._check_images()
        kind = self.file.schema_arrow.field(self.label).type if labeled else arrow.null()
        kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
        self.has_text_labels = arrow.types.is_string(kind) or arrow.types.is_large_string(kind)
        self.class_names = self._class_names() if labeled and not self.has_text_labels else []
        counts = [self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups)]
        self.starts = np.cumsum([0, *counts])
        self.groups: OrderedDict[int, Any] = OrderedDict()
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the file again."""
        return _Table, self.arguments

    def _check_size(self) -> None:
        """Raise DataError for a small file that expands to far more rows or bytes than images have."""
        metadata, size = self.file.metadata, self.path.stat().st_size
        columns = [
            metadata.row_group(g).column(c) for g in range(metadata.num_row_groups) for c in range(metadata.num_columns)
        ]
        expanded = sum(column.total_uncompressed_size for column in columns)
        if metadata.num_rows > size or expanded > self.budget:
            raise self._too_large(f"{metadata.num_rows:,} rows, {expanded:,} bytes")

    def _too_large(self, content: str) -> DataError:
        problem = f"{path_text(self.path)}: {content} in a file of {self.path.stat().st_size:,}"
        return DataError(problem, "images, which hardly compress", "get it again from a source that you trust")

    def _column(self, name: str, groups: Iterable[int]) -> Any:
        """The column ``name`` (``image.bytes``: a field of it) of row groups. Raises DataError if it is too large."""
        import pyarrow as arrow

        chunks, used = [], 0
        for group in groups:
            metadata = self.file.metadata.row_group(group)
            parts = [metadata.column(c) for c in range(metadata.num_columns)]
            stored = sum(
                c.total_uncompressed_size for c in parts if c.path_in_schema.split(".")[0] == name.split(".")[0]
            )
            rows = max(1, self.budget // max(1, stored))  # of a part: no value is longer than the whole column
            for batch in self.file.iter_batches(min(rows, 1 << 16), row_groups=[group], columns=[name]):
                chunks.append(batch.column(0))
                used += batch.nbytes
                if used > self.budget:
                    raise self._too_large(f"more than {self.budget:,} bytes in column {printable(name)}")
        return arrow.chunked_array(chunks) if chunks else arrow.chunked_array([], arrow.null())

    def _check_images(self) -> None:
        """Raise DataError unless the image column is binary, or a struct with a binary field ``bytes``."""
        import pyarrow as arrow

        kind = self.file.schema_arrow.field(self.image).type
        content, self.content = kind, self.image
        if arrow.types.is_struct(kind):
            content = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else arrow.null()
            self.content = f"{self.image}.bytes"  # without the path
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

    def _labels(self) -> list[Any]:
        """The labels as they are in the file; class names without spaces around them, None where one is missing."""
        labels: list[Any] = []
        for chunk in self._column(self.label, range(self.file.num_row_groups)).chunks:
            if hasattr(chunk, "dictionary"):
                values = chunk.dictionary.to_pylist()  # each once, however often it comes
                labels += [None if index is None else values[index] for index in chunk.indices.to_pylist()]
            else:
                labels += chunk.to_pylist()
        if not self.has_text_labels:
            return labels
        names = {label: class_name(path_text((label or "").strip())) for label in set(labels)}
        absent = {label for label, name in names.items() if not name or name.casefold() in MISSING}
        return [None if label in absent else names[label] for label in labels]

    def text_labels(self) -> set[str]:
        """The class names in the label column, if it holds text."""
        return {label for label in self._labels() if label is not None} if self.has_text_labels else set()

    def rows(self, root: Path, split: str, number: Mapping[str, int]) -> Iterator[Row]:
        """A row for each image. The origin is the file's path in ``root`` and the image's index.

        ``number`` has the label of each class name, where the label column holds text.
        """
        name, stamp = path_text(self.path.relative_to(root).as_posix()), stamp_of(self.path)
        for index, label in enumerate(self._labels()):
            origin = f"{name}#{index:07d}"
            if self.has_text_labels and label is not None:
                label = number[label]
            if not isinstance(label, int) or isinstance(label, bool):
                raise DataError(
                    f"{origin}: label {printable(repr(label)):.80}", "an integer or a class name", "mend the file"
                )
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
            return self._column(self.content, [group])
        except (OSError, arrow.ArrowException) as error:
            problem = f"{path_text(self.path)}: row group {group} is damaged ({' '.join(str(error).split())})"
            raise ImageError(problem, "readable", "get the file again") from error
