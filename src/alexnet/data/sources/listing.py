"""What a file's or folder's name says: an image, a text that may hold labels, or what tools leave beside images.

Labeled images that are not loaded yet: what every kind of source lists, checked and fingerprinted in one way.

What a person says about a source before it is split: which images belong together, which are left out.
"""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError, counted, printable
from alexnet.schema import class_fault

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjpg", ".pjp", ".png", ".apng", ".webp"),
        *(".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    )
)

FOLDERS = frozenset(
    (
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@__thumb", "@sharebin", "#recycle", "#snapshot"),  # NAS
        *("__macosx", "network trash folder", "temporary items"),  # macOS
        *("$recycle.bin", "recycler", "recycled", "system volume information", "found.000", "_vti_cnf"),  # Windows
        *("lost+found", "__pycache__", "_gsdata_"),
    )
)
FILES = (
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r", "folder.jpg.ini"),
    *("synofile_thumb_*", "synophoto_thumb_*", "*@synoeastream", "*@synoresource", "zbthumbnail.info", "~$*"),
)


def is_tool_folder(name: str) -> bool:
    """A hidden folder, or one that a NAS, a desktop or a file system makes for itself."""
    return name.startswith(".") or name.lower() in FOLDERS


def is_tool_file(name: str) -> bool:
    """A hidden file (``.DS_Store``, ``._a.jpg``), or an index, thumbnail or lock of another program."""
    return name.startswith(".") or any(fnmatchcase(name.lower(), pattern) for pattern in FILES)


def is_image_name(name: str) -> bool:
    """Does the name end like an image's? What the file holds is seen when it is decoded."""
    return PurePath(name).suffix.lower() in SUFFIXES


def is_text_name(name: str) -> bool:
    """Does the name end like that of a table or a list, which may hold labels?"""
    return PurePath(name).suffix.lower() in (".txt", ".csv", ".tsv")


def is_label_file(name: str) -> bool:
    """May the file say which image is of which class? Beside tables that is ILSVRC's ``meta.mat``."""
    return is_text_name(name) or name == "meta.mat"


SPLITS = {  # folder or file name, lower case → split
    **dict.fromkeys(("train", "training", "trn", "trainset", "traindata", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval", "evaluation", "dev", "valset", "valdata"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "testset", "testdata"), "test"),
}
_FILLERS = frozenset(
    (  # words beside a split's name that carry no meaning: training_set, train_images, test2017
        *("set", "sets", "data", "dataset", "split", "splits", "image", "images", "img", "imgs", "image", "images"),
        *("photo", "photos", "jpg", "jpeg", "png", "folder"),
    )
)


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


def alike_lines(lines: Iterable[str]) -> list[list[str]]:
    """Lines that differ in quoted names, paths and numbers alone are put together."""
    alike: dict[str, list[str]] = {}
    for line in lines:
        alike.setdefault(re.sub(r"'[^']*'|\"[^\"]*\"|\S*[\d/.\\]\S*", "*", line), []).append(line)
    return list(alike.values())


def summed(own: list[str]) -> str:
    """The first of lines that are alike, and how many more there are."""
    return own[0] + (f" (and {len(own) - 1:,} more like this)" if len(own) > 1 else "")


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


def group_images(source: Source, *, column: str = "", pattern: str = "") -> Source:
    """``source`` with a group for each image: the value of a table's ``column``, or what ``pattern`` finds.

    ``pattern`` is a regular expression, searched in each image's origin; its first parenthesis is the group, or else
    all that it matches. An image that it does not match, or whose cell is empty, is a group of its own. Raises
    DataError for a column that is not there, a wrong expression, or one that matches nothing.
    """
    if column and pattern:
        raise DataError("a column and a pattern for groups", "one of them", "leave one out")
    find = _by_column(source, column.lower()) if column else _by_pattern(pattern)
    splits = {name: tuple(replace(p, group=find(p)) for p in images) for name, images in source.splits.items()}
    lone = sum(not image.group for images in splits.values() for image in images)
    total = sum(map(len, splits.values()))
    what = f"column {column}" if column else f"pattern {pattern}"
    if lone == total:
        raise DataError(f"{source.name}: group {what} finds no group", "a group for most images", "mend it")
    notes = (*source.notes, *[f"no group by {what}: {lone:,} of {counted(total, 'image')}"] * bool(lone))
    return replace(source, splits=splits, notes=notes, grouping=what)


def regroup_images(source: Source, grouping: str) -> Source:
    """As ``grouped``, from what ``Source.grouping`` recorded; nothing to do if that is empty."""
    kind, _, what = grouping.partition(" ")
    return group_images(source, **{kind: what}) if what else source


def exclude_images(source: Source, path: Path) -> Source:
    """``source`` without the images that the file lists: a name a line, up to a tab; ``#`` begins a remark.

    The splits are drawn first: leaving images out moves no other. Raises DataError if nothing listed is there.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path_text(path)}: can not be read ({error})", "a list of images", "check the path"
        ) from error
    listed = {line.split("\t")[0] for line in lines if line.strip() and not line.startswith("#")}
    there = {image.origin for images in source.splits.values() for image in images}
    if listed and not listed & there:
        what = f"{path_text(path)}: none of its {len(listed)} names is in {source.name}, such as {min(listed)!r}"
        raise DataError(what, "names as the doctor lists them", "make it again with: alexnet doctor --exclude-list")
    gone = len(listed - there)
    notes = (
        *source.notes,
        *[f"not in {source.name}: {gone:,} of {counted(len(listed), 'name')} in {path_text(path)}"] * bool(gone),
    )
    return replace(source, excluded=source.excluded | (listed & there), notes=notes)


def _by_column(source: Source, column: str) -> Callable[[Sample], str]:
    known = sorted({name for images in source.splits.values() for p in images for name in p.columns})
    if column not in known:
        must = f"one of {', '.join(known)}" if known else "a table with columns (CSV or TSV)"
        raise DataError(f"{source.name}: no column {column!r}", must, "choose another")
    return lambda image: image.columns.get(column, "")


def _by_pattern(pattern: str) -> Callable[[Sample], str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"group pattern {pattern!r}: {error}", "a regular expression", "mend it") from error

    def find(image: Sample) -> str:
        match = expression.search(image.origin)
        return (match[1] if expression.groups else match[0]) or "" if match else ""

    return find
