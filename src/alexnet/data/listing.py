"""Labeled pictures that are not loaded yet: what every kind of source lists, checked and fingerprinted in one way."""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError, printable
from alexnet.schema import class_fault

SPLITS = {  # folder or file name, lower case → split
    **dict.fromkeys(("train", "training", "trn", "trainset", "traindata", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval", "evaluation", "dev", "valset", "valdata"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "testset", "testdata"), "test"),
}
_FILLERS = frozenset((  # words beside a split's name that carry no meaning: training_set, train_images, test2017
    *("set", "sets", "data", "dataset", "split", "splits", "image", "images", "img", "imgs", "picture", "pictures"),
    *("photo", "photos", "jpg", "jpeg", "png", "folder"),
))  # fmt: skip


def split_words(name: str) -> tuple[str, str] | None:
    """The split that ``name`` stands for, and the rest of the name: ``seg_train`` → ("train", "seg").

    None for a name with no split word, or with two.
    """
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    splits = [SPLITS[word] for word in words if word in SPLITS]
    rest = [word for word in words if word not in SPLITS and word not in _FILLERS]
    return (splits[0], " ".join(rest)) if len(splits) == 1 else None


@dataclass(frozen=True)
class LayoutOptions:
    """How DATA is read where its layout leaves it open."""

    classes: Literal["auto", "top", "leaves"] = "auto"  # top folders, or every folder that contains images
    ignore: tuple[str, ...] = ()  # patterns of folder and file names that are not read
    image_column: str | None = None  # of a table: the image paths
    label_column: str | None = None  # of a table: the classes
    delimiter: str | None = None  # of a table

    def ignores(self, parts: Sequence[str]) -> bool:
        """Does a pattern match the name, or the path from DATA on?"""
        path = "/".join(parts)
        return any(fnmatchcase(name, pattern.rstrip("/")) for pattern in self.ignore for name in (parts[-1], path))


@dataclass(frozen=True)
class Picture:
    """One labeled picture that is not loaded yet."""

    label: int  # index into the source's classes
    origin: str  # where it comes from, unique in its source, for people and for splitting
    load: Callable[[], bytes | NDArray[np.uint8]] = field(repr=False)  # the file's bytes, or uint8 [H, W, 3]
    group: str = ""  # patient, camera, video: what must not stand in two splits; "" is a group of its own
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)  # what else a table says of it


@dataclass(frozen=True)
class Source:
    """Labeled pictures, in given splits or unsplit. With an empty train split it is only evaluated."""

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Picture, ...]]  # train and test, or train, validation and test, or only "all"
    fingerprint: str  # SHA-256 over classes, splits, origins, labels, stamps of files, content of arrays
    mirror: bool = True  # may a picture be mirrored? not a digit: that is another sign
    notes: tuple[str, ...] = ()  # for people
    excluded: frozenset[str] = frozenset()  # origins that are left out after the splits are drawn
    in_order: bool = False  # read well only in its own order? parquet files give a whole row group at a time
    grouping: str = ""  # how the person grouped pictures: "column NAME" or "pattern REGEX"

    def selection(self) -> dict[str, str]:
        """What decides the splits beside the fingerprint; empty where nothing was grouped or excluded."""
        digest = hashlib.sha256(json.dumps(sorted(self.excluded)).encode()).hexdigest()
        excluded = {"excluded": digest} if self.excluded else {}
        return excluded | ({"grouping": self.grouping} if self.grouping else {})


def alike_lines(lines: Iterable[str]) -> list[list[str]]:
    """Lines that differ in quoted names, paths and numbers alone are put together."""
    alike: dict[str, list[str]] = {}
    for line in lines:
        alike.setdefault(re.sub(r"'[^']*'|\"[^\"]*\"|\S*[\d/.\\]\S*", "*", line), []).append(line)
    return list(alike.values())


def summed(own: list[str]) -> str:
    """The first of lines that are alike, and how many more there are."""
    return own[0] + (f" (and {len(own) - 1:,} more like this)" if len(own) > 1 else "")


Faults = list[DataError]  # what would stop training, for those who want to see all of it at once


class Row(NamedTuple):
    """One picture as a reader lists it, for ``source_of``."""

    split: str
    picture: Picture
    stamp: str  # what changes when the picture does: see stamp_of


def source_of(
    name: str,
    classes: Iterable[str],
    rows: Iterable[Row],
    *,
    mirror: bool = True,
    notes: Iterable[str] = (),
    faults: Faults | None = None,
) -> Source:
    """The source of these rows: grouped by split, checked, fingerprinted. Raises DataError, or adds to ``faults``."""
    classes, notes = tuple(classes), list(notes)
    digest = hashlib.sha256(json.dumps(classes).encode())
    splits: dict[str, list[Picture]] = {}
    for split, picture, stamp in rows:
        splits.setdefault(split, []).append(picture)
        grouped = [picture.group] if picture.group else []
        digest.update(json.dumps([split, picture.origin, picture.label, stamp, *grouped]).encode())
    if len(classes) < 2:
        raise DataError(f"{name}: {len(classes)} class", "at least 2 classes", "add a folder of other pictures")
    if fault := class_fault(classes):
        raise DataError(f"{name}: {fault}", "", "rename the class")
    if set(splits) == {"train", "validation"}:  # of two, the second is the test split, whatever it is called
        notes.append("two splits: validation is used as test, and validation is cut from train")
        splits["test"] = splits.pop("validation")
    _check_names(name, classes, splits, faults)
    notes += _check_classes(name, classes, splits, faults)
    order = sorted(splits, key=["all", "train", "validation", "test"].index)
    fixed = {split: tuple(splits[split]) for split in order}
    return Source(name, classes, fixed, digest.hexdigest(), mirror, tuple(notes))


def refuse(fault: DataError, faults: Faults | None) -> None:
    """Raise ``fault``, or add it to the list that a reader was given to go on reading."""
    if faults is None:
        raise fault
    faults.append(fault)


def _check_classes(
    name: str, classes: tuple[str, ...], splits: Mapping[str, list[Picture]], faults: Faults | None
) -> list[str]:
    """Every class needs training pictures; a class that another split lacks is a note."""
    first = "all" if "all" in splits else "train"
    present = {split: {picture.label for picture in pictures} for split, pictures in splits.items()}
    for label, title in enumerate(classes):
        if label not in present.get(first, ()):
            others = [split for split in present if label in present[split]]
            where = f"only in {', '.join(others)}" if others else "without a picture"
            todo = "add training pictures or remove it (a folder that is no class: --ignore)"
            refuse(DataError(f"{name}: class {title!r} is {where}", "in train", todo), faults)
    missing = ((split, set(range(len(classes))) - labels) for split, labels in present.items())
    return [f"{split} has no picture of {classes[label]!r}" for split, gone in missing for label in sorted(gone)]


def class_name(name: str) -> str:
    """A class's name in one Unicode form: macOS writes é as two characters, most others as one."""
    return unicodedata.normalize("NFC", name)


def _check_names(
    name: str, classes: tuple[str, ...], splits: Mapping[str, list[Picture]], faults: Faults | None
) -> None:
    """Two names that a person would call one class are refused. Letters as classes (A, a) are two."""
    spelled: dict[str, list[int]] = {}
    for label, title in enumerate(classes):
        spelled.setdefault(_spelling(title), []).append(label)
    for labels in spelled.values():
        if len(labels) < 2:
            continue
        where = {
            label: [split for split, pictures in splits.items() if any(p.label == label for p in pictures)]
            for label in labels
        }
        titles = " and ".join(f"{classes[label]!r} (in {', '.join(where[label]) or 'no split'})" for label in labels)
        one, two = (classes[label] for label in labels[:2])
        numbers = _number(one) is not None
        cause = (
            "are one number" if numbers else "differ in case only" if one.lower() == two.lower() else "look the same"
        )
        refuse(DataError(f"{name}: classes {titles} {cause}", "one spelling for each class", "rename one"), faults)


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


def shown(path: str | os.PathLike[str]) -> str:
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


def read_picture(path: Path) -> bytes:
    """The bytes of the file. Raises PictureError."""
    from alexnet.data.pixels import read  # here: listing pictures needs no decoder

    return read(path)
