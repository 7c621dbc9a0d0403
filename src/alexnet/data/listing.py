"""Labeled pictures that are not loaded yet: what every kind of source lists, checked and fingerprinted in one way."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError

SPLITS = {  # folder or file name, lower case → split
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class Picture:
    """One labeled picture that is not loaded yet."""

    label: int  # index into the source's classes
    origin: str  # where it comes from, unique in its source, for people and for splitting
    load: Callable[[], bytes | NDArray[np.uint8]] = field(repr=False)  # the file's bytes, or uint8 [H, W, 3]


@dataclass(frozen=True)
class Source:
    """Labeled pictures, in given splits or unsplit. With an empty train split it is only evaluated."""

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Picture, ...]]  # train and test, or train, validation and test, or only "all"
    fingerprint: str  # SHA-256 over classes, splits, origins, labels, sizes and times of files, content of arrays
    mirror: bool = True  # may a picture be mirrored? not a digit: that is another sign
    notes: tuple[str, ...] = ()  # for people


class Row(NamedTuple):
    """One picture as a reader lists it, for ``source_of``."""

    split: str
    picture: Picture
    stamp: str  # what changes when the picture does: size and time of its file


def source_of(
    name: str, classes: Iterable[str], rows: Iterable[Row], *, mirror: bool = True, notes: Iterable[str] = ()
) -> Source:
    """The source of these rows: grouped by split, checked, fingerprinted. Raises DataError."""
    classes, notes = tuple(classes), list(notes)
    digest = hashlib.sha256(json.dumps(classes).encode())
    splits: dict[str, list[Picture]] = {}
    for split, picture, stamp in rows:
        splits.setdefault(split, []).append(picture)
        digest.update(json.dumps([split, picture.origin, picture.label, stamp]).encode())
    if len(classes) < 2:
        raise DataError(f"{name}: {len(classes)} class", "at least 2 classes", "add a folder of other pictures")
    if set(splits) == {"train", "validation"}:  # of two, the second is the test split, whatever it is called
        notes.append("two splits: validation is used as test, and validation is cut from train")
        splits["test"] = splits.pop("validation")
    notes += _check_classes(name, classes, splits)
    order = sorted(splits, key=["all", "train", "validation", "test"].index)
    fixed = {split: tuple(splits[split]) for split in order}
    return Source(name, classes, fixed, digest.hexdigest(), mirror, tuple(notes))


def _check_classes(name: str, classes: tuple[str, ...], splits: Mapping[str, list[Picture]]) -> list[str]:
    """Every class needs training pictures; a class that another split lacks is a note."""
    first = "all" if "all" in splits else "train"
    present = {split: {picture.label for picture in pictures} for split, pictures in splits.items()}
    for label, title in enumerate(classes):
        if label not in present.get(first, ()):
            others = [split for split in present if label in present[split]]
            where = f"only in {', '.join(others)}" if others else "without a picture"
            raise DataError(f"{name}: class {title!r} is {where}", "in train", "add training pictures or remove it")
    missing = ((split, set(range(len(classes))) - labels) for split, labels in present.items())
    return [f"{split} has no picture of {classes[label]!r}" for split, gone in missing for label in sorted(gone)]


def shown(path: str | os.PathLike[str]) -> str:
    """A path for people: UTF-8, on one line."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def stamp_of(path: Path) -> str:
    """What changes when the file does: its size and time."""
    try:
        status = path.stat()
    except OSError:  # a dangling link: listed, and excluded with its reason when it is read
        return "unreadable"
    return f"{status.st_size} {status.st_mtime_ns}"
