"""Labeled images that are not loaded yet. Readers list rows; ``make_source`` checks and fingerprints them."""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError, printable
from alexnet.schema import class_fault


@dataclass(frozen=True)
class Sample:
    """One labeled image that is not loaded yet."""

    label: int  # index into the source's classes
    origin: str  # where it comes from, unique in its source, for people and for splitting
    load: Callable[[], bytes | NDArray[np.uint8]] = field(repr=False)  # the file's bytes, or uint8 [H, W, 3]
    group: str = ""  # patient, camera, video: what must not stand in two splits; "" is a group of its own
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)  # what else a table says of it


@dataclass(frozen=True)
class Source:
    """Labeled images, in given splits or unsplit. With an empty train split it is only evaluated."""

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]  # train and test, or train, validation and test, or only "all"
    fingerprint: str  # SHA-256 over classes, splits, origins, labels, stamps of files, content of arrays
    allow_hflip: bool = True  # may an image be mirrored? not a digit: that is another sign
    notes: tuple[str, ...] = ()  # for people
    excluded: frozenset[str] = frozenset()  # origins that are left out after the splits are drawn
    sequential: bool = False  # read well only in its own order? parquet files give a whole row group at a time
    grouping: str = ""  # how the person grouped images: "column NAME" or "pattern REGEX"

    def selection(self) -> dict[str, str]:
        """What decides the splits beside the fingerprint; empty where nothing was grouped or excluded."""
        digest = hashlib.sha256(json.dumps(sorted(self.excluded)).encode()).hexdigest()
        excluded = {"excluded": digest} if self.excluded else {}
        return excluded | ({"grouping": self.grouping} if self.grouping else {})


Problems = list[DataError]  # what would stop training, for those who want to see all of it at once


class Row(NamedTuple):
    """One image as a reader lists it, for ``source_of``."""

    split: str
    image: Sample
    stamp: str  # what changes when the image does: see stamp_of


def make_source(
    name: str,
    classes: Iterable[str],
    rows: Iterable[Row],
    *,
    allow_hflip: bool = True,
    notes: Iterable[str] = (),
    problems: Problems | None = None,
) -> Source:
    """The source of these rows: grouped by split, checked, fingerprinted. Raises DataError, or adds to ``problems``."""
    classes, notes = tuple(classes), list(notes)
    digest = hashlib.sha256(json.dumps(classes).encode())
    splits: dict[str, list[Sample]] = {}
    for split, image, stamp in rows:
        splits.setdefault(split, []).append(image)
        grouped = [image.group] if image.group else []
        digest.update(json.dumps([split, image.origin, image.label, stamp, *grouped]).encode())
    if len(classes) < 2:
        raise DataError(f"{name}: {len(classes)} class", "at least 2 classes", "add a folder of other images")
    if fault := class_fault(classes):
        raise DataError(f"{name}: {fault}", "", "rename the class")
    if set(splits) == {"train", "validation"}:  # of two, the second is the test split, whatever it is called
        notes.append("two splits: validation is used as test, and validation is cut from train")
        splits["test"] = splits.pop("validation")
    _check_names(name, classes, splits, problems)
    notes += _check_classes(name, classes, splits, problems)
    order = sorted(splits, key=["all", "train", "validation", "test"].index)
    fixed = {split: tuple(splits[split]) for split in order}
    return Source(name, classes, fixed, digest.hexdigest(), allow_hflip, tuple(notes))


def refuse(fault: DataError, problems: Problems | None) -> None:
    """Raise ``fault``, or add it to the list that a reader was given to go on reading."""
    if problems is None:
        raise fault
    problems.append(fault)


def _check_classes(
    name: str, classes: tuple[str, ...], splits: Mapping[str, list[Sample]], problems: Problems | None
) -> list[str]:
    """Every class needs training images; a class that another split lacks is a note."""
    first = "all" if "all" in splits else "train"
    present = {split: {image.label for image in images} for split, images in splits.items()}
    for label, title in enumerate(classes):
        if label not in present.get(first, ()):
            others = [split for split in present if label in present[split]]
            where = f"only in {', '.join(others)}" if others else "without an image"
            todo = "add training images or remove it (a folder that is no class: --ignore)"
            refuse(DataError(f"{name}: class {title!r} is {where}", "in train", todo), problems)
    missing = ((split, set(range(len(classes))) - labels) for split, labels in present.items())
    return [f"{split} has no image of {classes[label]!r}" for split, gone in missing for label in sorted(gone)]


def class_name(name: str) -> str:
    """A class's name in one Unicode form: macOS writes é as two characters, most others as one."""
    return unicodedata.normalize("NFC", name)


def _check_names(
    name: str, classes: tuple[str, ...], splits: Mapping[str, list[Sample]], problems: Problems | None
) -> None:
    """Two names that a person would call one class are refused. Letters as classes (A, a) are two."""
    spelled: dict[str, list[int]] = {}
    for label, title in enumerate(classes):
        spelled.setdefault(_spelling(title), []).append(label)
    for labels in spelled.values():
        if len(labels) < 2:
            continue
        where = {
            label: [split for split, images in splits.items() if any(p.label == label for p in images)]
            for label in labels
        }
        titles = " and ".join(f"{classes[label]!r} (in {', '.join(where[label]) or 'no split'})" for label in labels)
        one, two = (classes[label] for label in labels[:2])
        numbers = _number(one) is not None
        cause = (
            "are one number" if numbers else "differ in case only" if one.lower() == two.lower() else "look the same"
        )
        refuse(DataError(f"{name}: classes {titles} {cause}", "one spelling for each class", "rename one"), problems)


def _spelling(title: str) -> str:
    number = _number(title)
    if number is not None:
        return repr(number)
    if len(title) == 1:
        return title
    return re.sub(r"[\s_]+", " ", unicodedata.normalize("NFKC", title)).strip().casefold()


def _number(title: str) -> float | None:
    """1, 01 and 1.0 → 1.0; None for other names."""
    return float(title) if re.fullmatch(r"[+-]?[0-9]{1,15}(\.[0-9]{1,15})?", title) else None


def path_text(path: str | os.PathLike[str]) -> str:
    """A path for people: UTF-8, on one line."""
    return printable(os.fsencode(path).decode("utf-8", "backslashreplace"))


def stamp_of(path: Path) -> str:
    """What changes when the file does: its size, time, inode and time of the last change of its inode.

    Size and time alone are equal for two files of one archive; a rename or a copy changes one of the other two, since
    no program can set them. Where they change and the content does not, a data set is prepared again or, where the
    store has a name of its own, compared by hash.
    """
    try:
        status = path.stat()
    except OSError:  # a dangling link: listed, and excluded with its reason when it is read
        return "unreadable"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino} {status.st_ctime_ns}"


def read_image(path: Path) -> bytes:
    """The bytes of the file. Raises ImageError."""
    from alexnet.data.decode import read  # here: listing images needs no decoder

    return read(path)


def group_similar(lines: Iterable[str]) -> list[list[str]]:
    """Lines that differ in quoted names, paths and numbers alone are put together."""
    alike: dict[str, list[str]] = {}
    for line in lines:
        alike.setdefault(re.sub(r"'[^']*'|\"[^\"]*\"|\S*[\d/.\\]\S*", "*", line), []).append(line)
    return list(alike.values())


def summarize(own: list[str]) -> str:
    """The first of lines that are alike, and how many more there are."""
    return own[0] + (f" (and {len(own) - 1:,} more like this)" if len(own) > 1 else "")
