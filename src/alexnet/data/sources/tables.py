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

from alexnet.data.sources.layout import LayoutOptions
from alexnet.data.sources.names import SPLITS, SUFFIXES, is_image_name, is_text_name, is_tool_folder, split_words
from alexnet.data.sources.source import (
    Problems,
    Row,
    Sample,
    Source,
    class_name,
    make_source,
    path_text,
    read_image,
    refuse,
    stamp_of,
)
from alexnet.errors import DataError, counted

IMAGE_COLUMNS = (
    *("path", "file_name", "filename", "filepath", "file_path", "file", "image_path", "image_name", "image", "img"),
    *("image_id", "imageid", "id"),
)
LABEL_COLUMNS = ("label", "class", "class_name", "label_name", "category", "target", "species", "breed")
_DELIMITERS = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ",", "semicolon": ";"}
_MISSING = frozenset(("nan", "null", "<na>", "n/a", "#n/a", "nat"))  # how programs write a value that is not there
_FORM = "path,label[,group,split]"
_PROBE = 20  # lines that decide where paths begin


class Line(NamedTuple):
    """One row of the table."""

    number: int  # of its last line in the file, from 1
    path: str  # as it is written
    label: str
    split: str  # "all" where the table has no column for it
    cells: Mapping[str, str]  # all that is not path, label or split


def is_table(path: Path) -> bool:
    """Does the name end like a table's or a list's?"""
    return is_text_name(path.name)


def read_table(table: Path, options: LayoutOptions | None = None, problems: Problems | None = None) -> Source:
    """The images that ``table`` lists; a column ``group`` keeps images together, others are carried along.

    Raises DataError for anything else: no such columns, empty labels, unknown splits, paths that leave the folder. A
    image listed twice is refused, or added to ``problems``; one that is not there is a bad image, as in a folder.
    """
    return read_tables({"": table}, options, problems)


def read_tables(
    tables: Mapping[str, Path], options: LayoutOptions | None = None, problems: Problems | None = None
) -> Source:
    """As ``read_table``, of a table for each split; the split "" stands for the table's own column."""
    options, notes, rows = options or LayoutOptions(), list[str](), list[tuple[str, Row]]()
    for split, table in tables.items():
        lines = lines_of(_content(table), path_text(table), options, problems, notes)
        if not lines:
            raise DataError(f"{path_text(table)}: no rows", f"rows of {_FORM}", "fill it")
        lines = [line._replace(split=split or line.split) for line in lines]
        lines = _located(table, lines, notes)
        origins = _origins(table, lines, problems)
        rows += [(line.label, _row(table.parent, line, origin)) for line, origin in zip(lines, origins, strict=True)]
    splits = {row.split for _, row in rows}
    first = next(iter(tables.values()))
    if splits != {"all"} and ("train" not in splits or len(splits) < 2):
        must = "train and test, or train, validation and test, or none"
        raise DataError(f"{path_text(first)}: splits {', '.join(sorted(splits))}", must, "mend the column split")
    classes = sorted({label for label, _ in rows})
    number = {title: label for label, title in enumerate(classes)}
    numbered = [row._replace(image=replace(row.image, label=number[label])) for label, row in rows]
    name = path_text(first.resolve().stem if "" in tables else first.parent.resolve().name)
    return make_source(name, classes, numbered, notes=notes, problems=problems)


def _content(table: Path) -> bytes:
    try:
        return table.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path_text(table)}: can not be read ({error.strerror})", "a readable table", "mend it"
        ) from error


def lines_of(
    content: bytes, where: str, options: LayoutOptions, problems: Problems | None = None, notes: list[str] | None = None
) -> list[Line]:
    """The rows of a table or a list. Raises DataError for one that is none, or that lacks labels."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} is no UTF-8", "UTF-8", "save it as UTF-8") from error
    first = next(iter(text.splitlines()), "")
    delimiter = _delimiter(where, first, options)
    try:
        return _parsed(text, first, where, delimiter, options, problems, [] if notes is None else notes)
    except csv.Error as error:
        raise DataError(f"{where}: can not be read ({error})", "a readable table", "mend it") from error


def _parsed(
    text: str,
    first: str,
    where: str,
    delimiter: str,
    options: LayoutOptions,
    problems: Problems | None,
    notes: list[str],
) -> list[Line]:
    head = _cells(first, delimiter)
    columns = _columns(where, head, options)
    rows = _list_rows(text, delimiter) if columns is None else _table_rows(text, delimiter)
    if columns is None:
        image, label = _list_columns(head, where)
        names = [{image: "path", label: "label"}.get(n, f"column {n + 1}") for n in range(len(head))]
    else:
        image, label = columns
        names = [cell.strip().lower() for cell in head]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"{where}: column {twice[0]!r} twice", "once each", "rename one")
        if (names[image], names[label]) != ("path", "label"):
            notes.append(f"{where}: images by column {head[image].strip()!r}, labels by {head[label].strip()!r}")
        next(rows)
    lines: list[Line] = []
    lost: list[tuple[int, str]] = []
    for number, cells in rows:
        if not any(cells):
            continue
        place = f"{where}, line {number}"
        if len(cells) != len(names):
            must = f"{len(names)}, as the first line has"
            raise DataError(f"{place}: {len(cells)} cells", must, "mend the line, or pass --delimiter")
        row = {name: cell.strip() for name, cell in zip(names, cells, strict=True)}
        path, title, split = cells[image].strip(), cells[label].strip(), row.get("split") if columns else None
        if not path or not title or "\0" in path:
            raise DataError(f"{place}: empty path or label", "both", "fill or remove the line")
        if title.casefold() in _MISSING:
            lost.append((number, title))
            continue
        if split is not None and split.lower() not in SPLITS:
            raise DataError(f"{place}: split {path_text(split)!r}", f"one of {', '.join(SPLITS)}", "mend the line")
        cells_left = {n: v for i, (n, v) in enumerate(row.items()) if i not in (image, label) and n != "split"}
        lines.append(
            Line(number, path, class_name(path_text(title)), SPLITS[split.lower()] if split else "all", cells_left)
        )
    if lost:
        what = f"{where}, line {lost[0][0]}: label {lost[0][1]!r}, as a program writes a missing value"
        more = f"{len(lost):,} such lines: fill in their labels, or remove them"
        refuse(DataError(what, "a class", more), problems)
    return lines


def _cells(line: str, delimiter: str) -> list[str]:
    rows = _list_rows(line, delimiter) if delimiter == " " else _table_rows(line, delimiter)
    try:
        return next(rows, (0, []))[1]
    except csv.Error:
        return []


def _delimiter(where: str, first: str, options: LayoutOptions) -> str:
    """The person's, or the one that makes the first line a header or a path with a label."""
    if options.delimiter is not None:
        sign = _DELIMITERS.get(options.delimiter.lower(), options.delimiter)
        if len(sign) != 1 or sign in '"\r\n':
            must = "one character, or tab, space, comma, semicolon"
            raise DataError(f"--delimiter is {options.delimiter!r}", must, "for example --delimiter ';'")
        return sign
    order = {".tsv": "\t,;|", ".txt": "\t,;|"}.get(Path(where).suffix.lower(), ",;\t|")
    for sign in order:
        cells = _cells(first, sign)
        if len(cells) > 1 and (_header(cells, options) is not None or any(is_image_name(_plain(c)) for c in cells)):
            return sign
    return " " if Path(where).suffix.lower() == ".txt" else order[0]


def _plain(path: str) -> str:
    return path.strip().replace("\\", "/")


def _header(cells: list[str], options: LayoutOptions) -> tuple[int, int] | None:
    names = [cell.strip().lower() for cell in cells]

    def column(wanted: str | None, usual: tuple[str, ...]) -> int | None:
        choices = (wanted.strip().lower(),) if wanted else usual
        return next((names.index(name) for name in choices if name in names), None)

    image, label = column(options.image_column, IMAGE_COLUMNS), column(options.label_column, LABEL_COLUMNS)
    return None if image is None or label is None or image == label else (image, label)


def _columns(where: str, head: list[str], options: LayoutOptions) -> tuple[int, int] | None:
    """Where path and label are; None for a list without a first line of names."""
    columns = _header(head, options)
    if columns is not None:
        return columns
    wanted = options.image_column or options.label_column
    if not wanted and len(head) > 1 and any(is_image_name(_plain(cell)) for cell in head):
        return None
    if not wanted and Path(where).suffix.lower() == ".txt" and len(head) == 2 and "/" in _plain(head[0]):
        return None
    columns_there = ", ".join(map(path_text, head[:8])) or "nothing"
    must = f"column {wanted!r}" if wanted else _FORM
    todo = "name the columns in the first line, or pass --image-column, --label-column, --delimiter"
    raise DataError(f"{where}: first line holds {columns_there}", must, todo)


def _list_columns(head: list[str], where: str) -> tuple[int, int]:
    """A list's column of paths and that of labels: the next one, or the one before."""
    image = next((n for n, cell in enumerate(head) if is_image_name(_plain(cell))), 0)
    return image, image + 1 if image + 1 < len(head) else image - 1


def _table_rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    for cells in rows:
        yield rows.line_num, cells


def _list_rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Lines of a list; without another delimiter the last word is the label, and paths may hold spaces."""
    if delimiter != " ":
        yield from _table_rows(text, delimiter)
        return
    for number, line in enumerate(text.splitlines(), 1):
        cells = line.rsplit(None, 1)
        if len(cells) == 2 and is_image_name(cells[1]) and not is_image_name(cells[0]):
            cells = line.split(None, 1)  # the label comes first
        yield number, cells


def _located(table: Path, lines: list[Line], notes: list[str]) -> list[Line]:
    """Lines with paths relative to the table's folder, in normal form, as the files are called there."""
    root, slashes = table.parent, 0
    plain: list[Line] = []
    for line in lines:
        path = line.path
        if "\\" in path and not _exists(root / path):
            path, slashes = path.replace("\\", "/"), slashes + 1
        plain.append(line._replace(path=_inside(table, f"{path_text(table)}, line {line.number}", path)))
    if slashes:
        notes.append(f"{path_text(table)}: {counted(slashes, 'path')} with \\ read with /")
    prefix = "" if any(_exists(root / line.path) for line in plain) else _prefix(root, plain[:_PROBE])
    if prefix is None:
        what = f"{path_text(table)}: none of its {len(lines)} files exist, such as {path_text(plain[0].path)}"
        raise DataError(what, f"paths relative to {path_text(root.resolve())}", "move the table or mend its paths")
    done: list[Line] = []
    ends: Counter[str] = Counter()
    for line in plain:
        path = str(Path(prefix, line.path))
        end = _end(root, path, ends)
        if end:
            ends[end] += 1
        done.append(line._replace(path=path + end))
    if prefix or ends:
        notes.append(f"{path_text(table)}: paths are completed, such as {plain[0].path} to {done[0].path}")
    return done


def _end(root: Path, path: str, before: Counter[str]) -> str:
    """What is missing at the end of a path that is written without its suffix."""
    if is_image_name(path) or _exists(root / path):
        return ""
    usual = [end for end, _ in before.most_common()]
    rest = sorted({*SUFFIXES, *map(str.upper, SUFFIXES), ".Jpg"} - set(usual))
    return next((end for end in (*usual, *rest) if _exists(root / (path + end))), "")


def _prefix(root: Path, lines: list[Line]) -> str | None:
    """The folder below ``root``, at most two levels, in which the paths begin; None where there is none."""
    places = [""]
    for pattern in ("*", "*/*"):
        places += [
            str(path.relative_to(root))
            for path in sorted(root.glob(pattern))
            if path.is_dir() and not any(is_tool_folder(part) for part in path.relative_to(root).parts)
        ]
    none: Counter[str] = Counter()
    for place in places:
        paths = [str(Path(place, line.path)) for line in lines]
        if all(_exists(root / path) or _end(root, path, none) for path in paths):
            return place
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for a name
        return False


def _inside(table: Path, place: str, path: str) -> str:
    """``path`` relative to the table's folder. A list from elsewhere must not make anyone read another file."""
    root = table.parent.resolve()
    if re.match(r"[A-Za-z]:[\\/]", path):
        what = f"{place}: path {path_text(path)!r} begins with a drive of another machine"
        raise DataError(what, "relative to the table's folder", "mend the paths")
    below = os.path.relpath(path, root) if Path(path).is_absolute() else os.path.normpath(path)
    if Path(below).parts[:1] in ((), ("..",)):
        todo = "move the table to the images' folder or mend the path"
        raise DataError(f"{place}: path {path_text(path)!r} leads out of {path_text(root)}", "inside", todo)
    return below


def _origins(table: Path, lines: list[Line], problems: Problems | None) -> list[str]:
    """A name for each image, unique: a path that comes twice is a fault and gets its line's number."""
    first: dict[str, Line] = {}
    names = []
    for line in lines:
        origin, before = path_text(line.path), first.setdefault(line.path, line)
        if before is not line:
            where = f"{path_text(table)}, lines {before.number} and {line.number}"
            other = f" ({before.label}, then {line.label})" if before.label != line.label else ""
            refuse(DataError(f"{where}: {origin} twice{other}", "once each", "remove one of the lines"), problems)
            origin += f" (line {line.number})"
        names.append(origin)
    return names


def _row(root: Path, line: Line, origin: str) -> Row:
    path = root / line.path
    image = Sample(-1, origin, partial(read_image, path), line.cells.get("group", ""), line.cells)
    return Row(line.split, image, stamp_of(path))


def split_tables(root: Path, names: list[str], options: LayoutOptions) -> dict[str, Path]:
    """Which of the texts ``names`` in a flat folder lists its images: one for each split, or {"": the table}.

    Empty where none does. Raises DataError for a table that can not be read, and for two that could be meant.
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
