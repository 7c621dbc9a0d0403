"""Corrections of a data set: a small file beside the data, in place of moving, changing or deleting images.

A corrections file is a CSV table with the columns ``path,decision,label,was``, one row for each image that a person has
decided on::

    path,decision,label,was
    cats/17.jpg,relabel,dogs,cats        the image is of the class dogs
    cats/18.jpg,exclude,,cats            the image is left out
    cats/19.jpg,keep,,cats               the image is correct as it is: it is not reported again
    ../new/1.jpg,add,dogs,               an image that is not in the data set is added to the training images

``path`` is the image's name in the data set. For ``add`` it is a path relative to the folder of the corrections file.
``was`` is the class that the image had when it was decided on.

Corrections are applied after the splits are drawn. No image changes its split, so the results before and after a
correction are measured on the same images.
"""

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from alexnet.data.atomic_io import read_regular, write_file, written
from alexnet.data.sources.source import Sample, Source, class_name, path_text, read_image, stamp_of
from alexnet.errors import DataError, counted, did_you_mean
from alexnet.terminal import csv_cell

COLUMNS = ("path", "decision", "label", "was")
Action = Literal["keep", "relabel", "exclude", "add"]
ACTIONS: tuple[Action, ...] = get_args(Action)


class Decision(NamedTuple):
    """What a person has decided about one image."""

    action: Action
    label: str = ""  # the image's class, for relabel and add
    was: str = ""  # its class in the data set when it was decided on


def corrections_file(data: str | Path) -> Path:
    """The default corrections file of ``data``: next to it, ``images.labels.csv`` for the folder ``images``.

    It is not in the folder, where a file with this name could be a table that lists the images.
    """
    path = Path(data)
    if not path.exists():  # the name of a known data set
        return Path(f"{path.name}.labels.csv")
    path = path.resolve()
    return path.with_name(f"{path.name if path.is_dir() else path.stem}.labels.csv")


def read_corrections(path: Path) -> dict[str, Decision]:
    """The decisions in the file ``path``, by the path of the image.

    Raises:
        DataError: the file cannot be read, or a row is invalid. The message has the number of the line.
    """
    try:
        text = read_regular(path).decode("utf-8-sig")
    except OSError as error:
        problem = f"{path_text(path)}: cannot be read ({error.strerror})"
        raise DataError(problem, "a corrections file", "alexnet review DATA writes one") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path_text(path)}: byte {error.start} is no UTF-8", "UTF-8", "save it as UTF-8") from error
    reader, results = csv.reader(io.StringIO(text, newline=""), strict=True), dict[str, Decision]()
    try:
        header = tuple(cell.strip() for cell in next(reader, []))
        if header != COLUMNS:
            first = path_text(",".join(header))[:80]
            raise DataError(
                f"{path_text(path)}: first line is {first!r}",
                ",".join(COLUMNS),
                "name a file that alexnet review wrote",
            )
        for cells in reader:
            if any(cells):
                origin, decision = _row(f"{path_text(path)}, line {reader.line_num}", cells)
                if origin in results:
                    problem = f"{path_text(path)}, line {reader.line_num}: {origin!r} is listed twice"
                    raise DataError(problem, "one decision for each image", "remove one of the lines")
                results[origin] = decision
    except csv.Error as error:
        problem = f"{path_text(path)}, line {reader.line_num}: {error}"
        raise DataError(problem, "a CSV table", "repair the line") from error
    return results


def _row(place: str, cells: list[str]) -> tuple[str, Decision]:
    if len(cells) != len(COLUMNS):
        raise DataError(f"{place}: {counted(len(cells), 'cell')}", ",".join(COLUMNS), "repair the line")
    origin, action = _cell(cells[0]), cells[1].strip().lower()
    label, was = class_name(_cell(cells[2].strip())), class_name(_cell(cells[3].strip()))
    known = next((known for known in ACTIONS if known == action), None)
    if not origin or known is None:
        problem = f"decision {path_text(action)!r:.60}" if origin else "no path"
        hint = did_you_mean(action, list(ACTIONS)) if origin else "repair the line"
        raise DataError(f"{place}: {problem}", ", ".join(ACTIONS) if origin else "the name of an image", hint)
    if bool(label) != (known in ("relabel", "add")):
        must = "a class" if known in ("relabel", "add") else "empty"
        raise DataError(f"{place}: label {path_text(label)!r:.60} for {known}", must, "repair the line")
    return origin, Decision(known, label, was)


def _cell(text: str) -> str:
    """``text`` without the apostrophe that ``csv_cell`` puts in front of what a spreadsheet would compute."""
    return text[1:] if text.startswith("'") and csv_cell(text[1:]) == text else text


def write_corrections(path: Path, decisions: Mapping[str, Decision]) -> None:
    """Write the corrections file, atomically, sorted by path. Raises DataError if it cannot be written."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for origin in sorted(decisions):
        action, label, was = decisions[origin]
        writer.writerow((csv_cell(origin), action, csv_cell(label), csv_cell(was)))
    with written(path_text(path), DataError, "choose another with --corrections"):
        write_file(path, buffer.getvalue().encode())


def apply_corrections(source: Source, path: Path) -> Source:
    """``source`` with the decisions in the file ``path``.

    Raises:
        DataError: the file is invalid, it is of another data set, it names an unknown class, or the class of an image
            has changed since it was decided on.
    """
    decisions = read_corrections(path)
    labels = {image.origin: image.label for images in source.splits.values() for image in images}
    known = {origin: decision for origin, decision in decisions.items() if decision.action != "add"}
    absent = sorted(set(known) - set(labels))
    if known and len(absent) == len(known):
        problem = f"{path_text(path)}: none of its {counted(len(known), 'image')} is in {source.name}, such as "
        raise DataError(f"{problem}{path_text(absent[0])!r}", "corrections of these images", "name their own file")
    number = {title: label for label, title in enumerate(source.classes)}
    for origin, (action, label, was) in decisions.items():
        if action in ("relabel", "add") and label not in number:
            problem = f"{path_text(path)}: {path_text(origin)} has the class {path_text(label)!r:.60}"
            raise DataError(problem, "a class of the data", did_you_mean(label, list(number)))
        now = source.classes[labels[origin]] if origin in labels else was
        if was and now not in (was, label):
            problem = f"{path_text(path)}: {path_text(origin)} was of class {was!r:.60} and is of class {now!r:.60} now"
            raise DataError(problem, "as it was decided on", "delete this line and review the image again")
    relabeled = {o: number[d.label] for o, d in known.items() if d.action == "relabel" and o in labels}
    added = tuple(_added(path.parent, o, number[d.label], labels) for o, d in decisions.items() if d.action == "add")
    excluded = {o for o, d in known.items() if d.action == "exclude" and o in labels}
    reviewed = frozenset(o for o, d in known.items() if d.action == "keep" and o in labels)
    notes = [_note(path, len(relabeled), len(excluded), len(added))]
    notes += [f"not in {source.name}: {len(absent):,} of {counted(len(known), 'image')} in {path_text(path)}"] * bool(
        absent
    )
    content = [sorted(relabeled.items()), [(image.origin, image.label, stamp) for image, stamp in added]]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest() if relabeled or added else ""
    return replace(
        source,
        excluded=source.excluded | excluded,
        relabeled=relabeled,
        added=tuple(image for image, _ in added),
        reviewed=reviewed,
        corrections=digest,
        notes=(*source.notes, *notes),
    )


def _added(folder: Path, origin: str, label: int, labels: Mapping[str, int]) -> tuple[Sample, str]:
    """An image that is added, and the stamp of its file."""
    if origin in labels:
        problem = f"{path_text(origin)}: is in the data set and cannot be added"
        raise DataError(problem, "a new image", "change its decision to relabel or keep")
    path = folder / origin
    if not path.is_file():
        problem = f"{path_text(path)}, which is to be added, is {'no file' if path.exists() else 'not there'}"
        raise DataError(problem, "an image file", "delete its line, or put the file back")
    return Sample(label, origin, partial(read_image, path)), stamp_of(path)


def _note(path: Path, relabeled: int, excluded: int, added: int) -> str:
    parts = [f"{relabeled:,} relabeled", f"{excluded:,} excluded", f"{added:,} added"]
    return f"corrections of {path_text(path)}: {', '.join(parts)}"
