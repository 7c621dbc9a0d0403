"""CSV and TSV → a source: a row a picture, with the columns ``path,label[,group,split]`` and any others.

Paths are relative to the table's folder and stay inside it. Every wrong row is named by its line.
"""

import csv
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from alexnet.data.folders import read_picture
from alexnet.data.listing import SPLITS, Faults, Picture, Row, Source, refuse, shown, source_of, stamp_of
from alexnet.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_FORM = "path,label[,group,split]"


class _Line(NamedTuple):
    """One row of the table."""

    number: int  # of its last line in the file, from 1
    path: str  # relative to the table's folder, normal form
    label: str
    split: str
    cells: Mapping[str, str]  # all that is not path, label or split


def is_table(path: Path) -> bool:
    """Does the name end like a table's?"""
    return path.suffix.lower() in DELIMITERS


def read_table(table: Path, faults: Faults | None = None) -> Source:
    """The pictures that ``table`` lists; a column ``group`` keeps pictures together, others are carried along.

    Raises DataError for anything else: no such columns, empty labels, unknown splits, paths that leave the folder. A
    picture listed twice is refused, or added to ``faults``; one that is not there is a bad picture, as in a folder.
    """
    lines = list(_lines(table))
    if not lines:
        raise DataError(f"{shown(table)}: no rows", f"rows of {_FORM}", "fill it")
    root = table.parent
    if not any(_exists(root / line.path) for line in lines):
        what = f"{shown(table)}: none of its {len(lines)} files exist, such as {shown(lines[0].path)}"
        raise DataError(what, f"paths relative to {shown(root.resolve())}", "move the table or mend its paths")
    classes = sorted({line.label for line in lines})
    origins = _origins(table, lines, faults)
    rows = [_row(root, line, origin, classes) for line, origin in zip(lines, origins, strict=True)]
    found = {row.split for row in rows}
    if found != {"all"} and ("train" not in found or len(found) < 2):
        must = "train and test, or train, validation and test, or none"
        raise DataError(f"{shown(table)}: splits {', '.join(sorted(found))}", must, "mend the column split")
    return source_of(shown(table.resolve().stem), classes, rows, faults=faults)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for a name
        return False


def _lines(table: Path) -> Iterator[_Line]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=DELIMITERS[table.suffix.lower()], strict=True)
            head = _head(table, next(rows, []))
            for cells in rows:
                if any(cells):
                    yield _line(table, rows.line_num, head, cells)
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(table)}: byte {error.start} is no UTF-8", "UTF-8", "save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{shown(table)}: can not be read ({reason})", "a readable table", "mend it") from error


def _head(table: Path, cells: list[str]) -> list[str]:
    names = [cell.strip().lower() for cell in cells]
    if "path" not in names or "label" not in names:
        found = ", ".join(map(shown, cells[:8])) or "nothing"
        raise DataError(f"{shown(table)}: first line holds {found}", _FORM, "name the columns in the first line")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{shown(table)}: column {twice[0]!r} twice", "once each", "rename one")
    return names


def _line(table: Path, number: int, head: list[str], cells: list[str]) -> _Line:
    place = f"{shown(table)}, line {number}"
    if len(cells) != len(head):
        raise DataError(f"{place}: {len(cells)} cells", f"{len(head)}, as the first line has", "mend the line")
    row = {name: cell.strip() for name, cell in zip(head, cells, strict=True)}
    path, label, split = row.pop("path"), row.pop("label"), row.pop("split", None)
    if not path or not label or "\0" in path:
        raise DataError(f"{place}: empty path or label", "both", "fill or remove the line")
    if split is not None and split.lower() not in SPLITS:
        raise DataError(f"{place}: split {shown(split)!r}", f"one of {', '.join(SPLITS)}", "mend the line")
    return _Line(number, _inside(table, place, path), shown(label), SPLITS[split.lower()] if split else "all", row)


def _inside(table: Path, place: str, path: str) -> str:
    """``path`` relative to the table's folder. A list from elsewhere must not make anyone read another file."""
    root = table.parent.resolve()
    below = os.path.relpath(path, root) if Path(path).is_absolute() else os.path.normpath(path)
    if Path(below).parts[:1] in ((), ("..",)):
        todo = "move the table to the pictures' folder or mend the path"
        raise DataError(f"{place}: path {shown(path)!r} leads out of {shown(root)}", "inside", todo)
    return below


def _origins(table: Path, lines: list[_Line], faults: Faults | None) -> list[str]:
    """A name for each picture, unique: a path that comes twice is a fault and gets its line's number."""
    first: dict[str, _Line] = {}
    names = []
    for line in lines:
        origin, before = shown(line.path), first.setdefault(line.path, line)
        if before is not line:
            where = f"{shown(table)}, lines {before.number} and {line.number}"
            other = f" ({before.label}, then {line.label})" if before.label != line.label else ""
            refuse(DataError(f"{where}: {origin} twice{other}", "once each", "remove one of the lines"), faults)
            origin += f" (line {line.number})"
        names.append(origin)
    return names


def _row(root: Path, line: _Line, origin: str, classes: list[str]) -> Row:
    path, label = root / line.path, classes.index(line.label)
    picture = Picture(label, origin, partial(read_picture, path), line.cells.get("group", ""), line.cells)
    return Row(line.split, picture, stamp_of(path))
