"""Tables and lists of images → a source: CSV, TSV, or a text file with a path and a label on each line.

Paths are relative to the table's folder and stay inside it. Every wrong row is named by its line.
"""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from alexnet.data.atomic_io import read_regular
from alexnet.data.sources.layout import LayoutOptions
from alexnet.data.sources.source import (
    SPLITS,
    SUFFIXES,
    Problems,
    Row,
    Sample,
    Source,
    class_name,
    is_image_name,
    is_text_name,
    is_tool_folder,
    make_source,
    path_text,
    read_image,
    refuse,
    split_words,
    stamp_of,
)
from alexnet.errors import DataError, counted

IMAGE_COLUMNS = (
    *("path", "file_name", "filename", "filepath", "file_path", "file", "image_path", "image_name", "image", "img"),
    *("image_id", "imageid", "id"),
)
LABEL_COLUMNS = ("label", "class", "class_name", "label_name", "category", "target", "species", "breed")
_DELIMITERS = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ",", "semicolon": ";"}
MISSING = frozenset(("nan", "null", "<na>", "n/a", "#n/a", "nat"))  # how programs write a missing value
_EXPECTED_COLUMNS = "path,label[,group,split]"
MAX_TABLE = 1 << 30  # bytes; a table of ImageNet-21k has about 800 MB
_PROBE = 20  # lines that are used to find the folder of relative paths


class Line(NamedTuple):
    """One row of the table."""

    number: int  # of its last line in the file, from 1
    path: str  # as written in the table
    label: str
    split: str  # "all" where the table has no column for it
    cells: Mapping[str, str]  # the other columns


def is_table(path: Path) -> bool:
    """Whether the name is that of a table or list."""
    return is_text_name(path.name)


def read_table(table: Path, options: LayoutOptions | None = None, problems: Problems | None = None) -> Source:
    """The images that ``table`` lists. A column ``group`` is the group; other columns are kept with the image.

    A file that does not exist is a bad image, as in a folder.

    Args:
        table: the table or list.
        options: names of the columns, and the delimiter.
        problems: a list to which recoverable errors are added, such as an image listed twice. None: they raise.

    Raises:
        DataError: missing columns, empty labels, unknown splits, or paths outside the table's folder.
    """
    return read_tables({"": table}, options, problems)


def read_tables(
    tables: Mapping[str, Path], options: LayoutOptions | None = None, problems: Problems | None = None
) -> Source:
    """As ``read_table``, with a table for each split; for the key "" the table's own split column is used."""
    options, notes, rows = options or LayoutOptions(), list[str](), list[tuple[str, Row]]()
    for split, table in tables.items():
        lines = lines_of(_content(table), path_text(table), options, problems, notes)
        if not lines:
            raise DataError(f"{path_text(table)}: no rows", f"rows of {_EXPECTED_COLUMNS}", "fill it")
        lines = [line._replace(split=split or line.split) for line in lines]
        lines = _complete_paths(table, lines, notes)
        origins = _origins(table, lines, problems)
        rows += [(line.label, _row(table.parent, line, origin)) for line, origin in zip(lines, origins, strict=True)]
    splits = {row.split for _, row in rows}
    first = next(iter(tables.values()))
    if splits != {"all"} and ("train" not in splits or len(splits) < 2):
        expected = "train and test, or train, validation and test, or none"
        raise DataError(f"{path_text(first)}: splits {', '.join(sorted(splits))}", expected, "mend the column split")
    classes = sorted({label for label, _ in rows})
    number = {title: label for label, title in enumerate(classes)}
    numbered = [row._replace(image=replace(row.image, label=number[label])) for label, row in rows]
    name = path_text(first.resolve().stem if "" in tables else first.parent.resolve().name)
    return make_source(name, classes, numbered, notes=notes, problems=problems)


def _content(table: Path) -> bytes:
    try:
        return read_regular(table, MAX_TABLE)
    except OSError as error:
        raise DataError(
            f"{path_text(table)}: cannot be read ({error.strerror})", "a readable table", "mend it"
        ) from error


def lines_of(
    content: bytes, name: str, options: LayoutOptions, problems: Problems | None = None, notes: list[str] | None = None
) -> list[Line]:
    """The rows of a table or list. Raises DataError for an invalid table, or one without labels."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: byte {error.start} is no UTF-8", "UTF-8", "save it as UTF-8") from error
    first = next(iter(text.splitlines()), "")
    delimiter = _delimiter(name, first, options)
    try:
        return _parse_lines(text, first, name, delimiter, options, problems, [] if notes is None else notes)
    except csv.Error as error:
        raise DataError(f"{name}: cannot be read ({error})", "a readable table", "mend it") from error


def _parse_lines(
    text: str,
    first: str,
    name: str,
    delimiter: str,
    options: LayoutOptions,
    problems: Problems | None,
    notes: list[str],
) -> list[Line]:
    header = _cells(first, delimiter)
    columns = _columns(name, header, options, first)
    rows = _list_rows(text, delimiter) if columns is None else _table_rows(text, delimiter)
    if columns is None:
        image, label = _list_columns(header, name)
        names = [{image: "path", label: "label"}.get(n, f"column {n + 1}") for n in range(len(header))]
    else:
        image, label = columns
        names = [cell.strip().lower() for cell in header]
        duplicates = sorted({column for column in names if names.count(column) > 1})
        if duplicates:
            raise DataError(f"{name}: column {duplicates[0]!r} twice", "once each", "rename one")
        if (names[image], names[label]) != ("path", "label"):
            notes.append(f"{name}: images by column {header[image].strip()!r}, labels by {header[label].strip()!r}")
        next(rows)
    lines: list[Line] = []
    without_label: list[tuple[int, str]] = []
    for number, cells in rows:
        if not any(cells):
            continue
        location = f"{name}, line {number}"
        if len(cells) != len(names):
            expected = f"{len(names)}, as the first line has"
            raise DataError(
                f"{location}: {counted(len(cells), 'cell')}", expected, "mend the line, or pass --delimiter"
            )
        row = {column: cell.strip() for column, cell in zip(names, cells, strict=True)}
        path, title, split = cells[image].strip(), cells[label].strip(), row.get("split") if columns else None
        if not path or not title or "\0" in path:
            raise DataError(f"{location}: empty path or label", "both", "fill or remove the line")
        if title.casefold() in MISSING:
            without_label.append((number, title))
            continue
        if split is not None and split.lower() not in SPLITS:
            raise DataError(f"{location}: split {path_text(split)!r}", f"one of {', '.join(SPLITS)}", "mend the line")
        other_cells = {n: v for i, (n, v) in enumerate(row.items()) if i not in (image, label) and n != "split"}
        lines.append(
            Line(number, path, class_name(path_text(title)), SPLITS[split.lower()] if split else "all", other_cells)
        )
    if without_label:
        problem = (
            f"{name}, line {without_label[0][0]}: label {without_label[0][1]!r}, as a program writes a missing value"
        )
        hint = f"{counted(len(without_label), 'such line')}: fill in the labels, or remove the lines"
        refuse(DataError(problem, "a class", hint), problems)
    if "split" not in names and (column := _split_column(lines)):
        notes.append(f"{name}: column {column!r} seems to hold splits and is not used: call it 'split'")
    return lines


def _split_column(lines: list[Line]) -> str:
    """The column that seems to say to which split an image belongs: by its values, or its name; empty without any."""
    for column in lines[0].cells if lines else ():
        splits = {SPLITS.get(line.cells[column].lower(), "") for line in lines}
        words = split_words(column)
        if {"train"} < splits <= set(SPLITS.values()) or (words and words[1] in ("", "is") and splits == {""}):
            return column
    return ""


def _cells(line: str, delimiter: str) -> list[str]:
    rows = _list_rows(line, delimiter) if delimiter == " " else _table_rows(line, delimiter)
    try:
        return next(rows, (0, []))[1]
    except csv.Error:
        return []


def _delimiter(name: str, first: str, options: LayoutOptions) -> str:
    """The delimiter of the options, or the first one with which the first line is a header, or a path and a label."""
    if options.delimiter is not None:
        delimiter = _DELIMITERS.get(options.delimiter.lower(), options.delimiter)
        if len(delimiter) != 1 or delimiter in '"\r\n':
            expected = "one character, or tab, space, comma, semicolon"
            raise DataError(f"--delimiter is {options.delimiter!r}", expected, "for example --delimiter ';'")
        return delimiter
    order = {".tsv": "\t,;|", ".txt": "\t,;|"}.get(Path(name).suffix.lower(), ",;\t|")
    for delimiter in order:
        cells = _cells(first, delimiter)
        if len(cells) > 1 and (
            _header(cells, options) is not None or any(is_image_name(_normalize_slashes(c)) for c in cells)
        ):
            return delimiter
    return " " if Path(name).suffix.lower() == ".txt" else order[0]


def _normalize_slashes(path: str) -> str:
    return path.strip().replace("\\", "/")


def _header(cells: list[str], options: LayoutOptions) -> tuple[int, int] | None:
    names = [cell.strip().lower() for cell in cells]

    def column(requested: str | None, defaults: tuple[str, ...]) -> int | None:
        choices = (requested.strip().lower(),) if requested else defaults
        return next((names.index(name) for name in choices if name in names), None)

    image, label = column(options.image_column, IMAGE_COLUMNS), column(options.label_column, LABEL_COLUMNS)
    return None if image is None or label is None or image == label else (image, label)


def _columns(name: str, header: list[str], options: LayoutOptions, first: str) -> tuple[int, int] | None:
    """Indices of the path and label columns; None for a list without a header."""
    columns = _header(header, options)
    if columns is not None:
        return columns
    requested = options.image_column or options.label_column
    if not requested and len(header) > 1 and any(is_image_name(_normalize_slashes(cell)) for cell in header):
        return None
    if (
        not requested
        and Path(name).suffix.lower() == ".txt"
        and len(header) == 2
        and "/" in _normalize_slashes(header[0])
    ):
        return None
    found_columns = (", ".join(map(path_text, header[:8])) or path_text(first) or "nothing")[:200]
    expected = f"column {requested!r}" if requested else _EXPECTED_COLUMNS
    hint = "name the columns in the first line, or pass --image-column, --label-column, --delimiter"
    raise DataError(f"{name}: first line holds {found_columns}", expected, hint)


def _list_columns(header: list[str], name: str) -> tuple[int, int]:
    """Indices of the path and label columns of a list: labels are in the next column, or in the one before."""
    image = next((n for n, cell in enumerate(header) if is_image_name(_normalize_slashes(cell))), 0)
    return image, image + 1 if image + 1 < len(header) else image - 1


def _table_rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    for cells in rows:
        yield rows.line_num, cells


def _list_rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Lines of a list. With the delimiter " ", the last word is the label, and paths may contain spaces."""
    if delimiter != " ":
        yield from _table_rows(text, delimiter)
        return
    for number, line in enumerate(text.splitlines(), 1):
        cells = line.rsplit(None, 1)
        if len(cells) == 2 and is_image_name(cells[1]) and not is_image_name(cells[0]):
            cells = line.split(None, 1)  # the label is first
        yield number, cells


def _complete_paths(table: Path, lines: list[Line], notes: list[str]) -> list[Line]:
    """Lines whose paths are normalized, relative to the table's folder, and complete (folder and suffix)."""
    root, slashes = table.parent, 0
    normalized: list[Line] = []
    for line in lines:
        path = line.path
        if "\\" in path and not _exists(root / path):
            path, slashes = path.replace("\\", "/"), slashes + 1
        normalized.append(line._replace(path=_path_inside(table, f"{path_text(table)}, line {line.number}", path)))
    if slashes:
        notes.append(f"{path_text(table)}: {counted(slashes, 'path')} with \\ read with /")
    prefix = "" if any(_exists(root / line.path) for line in normalized) else _prefix(root, normalized[:_PROBE])
    if prefix is None:
        problem = f"{path_text(table)}: none of its {len(lines)} files exist, such as {path_text(normalized[0].path)}"
        raise DataError(problem, f"paths relative to {path_text(root.resolve())}", "move the table or mend its paths")
    completed: list[Line] = []
    suffixes: Counter[str] = Counter()
    for line in normalized:
        path = str(Path(prefix, line.path))
        suffix = _missing_suffix(root, path, suffixes)
        if suffix:
            suffixes[suffix] += 1
        completed.append(line._replace(path=path + suffix))
    if prefix or suffixes:
        notes.append(f"{path_text(table)}: paths are completed, such as {normalized[0].path} to {completed[0].path}")
    return completed


def _missing_suffix(root: Path, path: str, previous: Counter[str]) -> str:
    """The suffix that a path lacks; "" if the path is complete or no such file exists."""
    if is_image_name(path) or _exists(root / path):
        return ""
    defaults = [suffix for suffix, _ in previous.most_common()]
    others = sorted({*SUFFIXES, *map(str.upper, SUFFIXES), ".Jpg"} - set(defaults))
    return next((suffix for suffix in (*defaults, *others) if _exists(root / (path + suffix))), "")


def _prefix(root: Path, lines: list[Line]) -> str | None:
    """The folder at most two levels below ``root`` to which the paths are relative; None if there is none."""
    folders = [""]
    for pattern in ("*", "*/*"):
        folders += [
            str(path.relative_to(root))
            for path in sorted(root.glob(pattern))
            if path.is_dir() and not any(is_tool_folder(part) for part in path.relative_to(root).parts)
        ]
    no_counts: Counter[str] = Counter()
    for folder in folders:
        paths = [str(Path(folder, line.path)) for line in lines]
        if all(_exists(root / path) or _missing_suffix(root, path, no_counts) for path in paths):
            return folder
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the name is too long
        return False


def _path_inside(table: Path, location: str, path: str) -> str:
    """``path`` relative to the table's folder. A path outside that folder is refused: the table may be untrusted."""
    root = table.parent.resolve()
    if re.match(r"[A-Za-z]:[\\/]", path):
        problem = f"{location}: path {path_text(path)!r} begins with a drive of another machine"
        raise DataError(problem, "relative to the table's folder", "mend the paths")
    below = os.path.relpath(path, root) if Path(path).is_absolute() else os.path.normpath(path)
    if Path(below).parts[:1] in ((), ("..",)):
        hint = "move the table to the images' folder or mend the path"
        raise DataError(f"{location}: path {path_text(path)!r} leads out of {path_text(root)}", "inside", hint)
    return below


def _origins(table: Path, lines: list[Line], problems: Problems | None) -> list[str]:
    """A unique origin for each image. A path that is listed twice is an error; its origin gets the line number."""
    first: dict[str, Line] = {}
    names = []
    for line in lines:
        origin, previous = path_text(line.path), first.setdefault(line.path, line)
        if previous is not line:
            location = f"{path_text(table)}, lines {previous.number} and {line.number}"
            other = f" ({previous.label}, then {line.label})" if previous.label != line.label else ""
            refuse(DataError(f"{location}: {origin} twice{other}", "once each", "remove one of the lines"), problems)
            origin += f" (line {line.number})"
        names.append(origin)
    return names


def _row(root: Path, line: Line, origin: str) -> Row:
    path = root / line.path
    image = Sample(-1, origin, partial(read_image, path), line.cells.get("group", ""), line.cells)
    return Row(line.split, image, stamp_of(path))


def split_tables(root: Path, names: list[str], options: LayoutOptions) -> dict[str, Path]:
    """The text files that list the images of a flat folder.

    Args:
        root: the folder.
        names: names of its text files.
        options: names of the columns, and the delimiter.

    Returns:
        Split → its table; {"": table} for a table of all splits; empty if no file lists images.

    Raises:
        DataError: if a table cannot be read, or more than one lists the images.
    """
    tables: list[Path] = []
    for path in (root / name for name in sorted(names)):
        try:
            if lines_of(_content(path), path_text(path), options):
                tables.append(path)
        except DataError:
            if path.suffix.lower() != ".txt":
                raise
    splits = {pair[0]: path for path in tables if (pair := split_words(path.stem)) and not pair[1]}
    if "train" in splits and len(splits) > 1:
        return splits
    if len(tables) > 1:
        names = [path_text(path.name) for path in tables]
        raise DataError(
            f"{path_text(root)}: {' and '.join(names[:3])} list images", "one table", f"name it: {tables[0]}"
        )
    return {"": tables[0]} if tables else {}
