"""Labeled images that are not loaded yet. Readers list rows; ``make_source`` checks and fingerprints them."""

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError, counted, printable
from alexnet.schema import class_fault

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjpg", ".pjp", ".png", ".apng", ".webp"),
        *(".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
        *(".avif", ".avifs", ".heic", ".heif", ".hif", ".heics", ".heifs"),
    )
)

_TOOL_FOLDERS = frozenset(
    (
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@__thumb", "@sharebin", "@transcode"),  # NAS
        *("#recycle", "#snapshot", "~snapshot"),
        *("__macosx", "network trash folder", "temporary items"),  # macOS
        *("$recycle.bin", "recycler", "recycled", "system volume information", "found.000", "_vti_cnf"),  # Windows
        *("lost+found", "__pycache__", "_gsdata_", "paxheader"),
    )
)
_TOOL_FILES = (
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r", "folder.jpg.ini"),
    *("synofile_thumb_*", "synophoto_thumb_*", "*@synoeastream", "*@synoresource", "zbthumbnail.info", "~$*"),
)


def is_tool_folder(name: str) -> bool:
    """Whether the folder is hidden, or made by a NAS, a desktop, a file system or an archiver for its own use."""
    return name.startswith((".", "PaxHeaders.")) or name.lower() in _TOOL_FOLDERS


def is_tool_file(name: str) -> bool:
    """Whether the file is hidden (``.DS_Store``, ``._a.jpg``), or an index, thumbnail or lock of another program."""
    return name.startswith(".") or any(fnmatchcase(name.lower(), pattern) for pattern in _TOOL_FILES)


_OUTPUTS = (  # file names by which a folder that this program wrote is known
    *({"run.json", "recipe.toml"}, {"dataset.json", "skipped.jsonl"}, {"config.json", "model.safetensors"}),
    *({"plan.json", "*/run.json"}, {"probes.json", "probes.png"}, {"compression.json", "bundle"}),
    {"metadata.json", "model.onnx.gz"},
)


def is_output_folder(parts: Sequence[str], names: Collection[str]) -> bool:
    """Whether a folder is a run, store, bundle, study or exported page: its plots and samples are no data.

    Args:
        parts: the path of the folder.
        names: the names in it; with ``*/run.json`` where a folder in it holds a run.
    """
    return any(output <= set(names) for output in _OUTPUTS) or tuple(parts[-2:]) == ("runs", "lr-find")


def output_folders(paths: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """The folders that this program wrote, by the paths of all files in an archive or below an address."""
    known = {name for output in _OUTPUTS for name in output}
    names: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for parts in paths:
        for depth in range(1, len(parts)):
            if parts[depth] in known or parts[depth].endswith(".json"):
                names[parts[:depth]].add(parts[depth])
        if parts[-1] == "run.json" and len(parts) > 2:
            names[parts[:-2]].add("*/run.json")
    return {folder for folder, inner in names.items() if is_output_folder(folder, inner)}


def is_in_output(parts: tuple[str, ...], outputs: Collection[tuple[str, ...]]) -> int:
    """How many leading names of the path ``parts`` name a folder of ``outputs``; 0 if it is in none."""
    return next((n for n in range(1, len(parts)) if parts[:n] in outputs), 0)


def is_image_name(name: str) -> bool:
    """Whether the name has an image suffix. The content is checked when it is decoded."""
    return PurePath(name).suffix.lower() in SUFFIXES


def is_text_name(name: str) -> bool:
    """Whether the name is that of a table or list, which may hold labels."""
    return PurePath(name).suffix.lower() in (".txt", ".csv", ".tsv")


def is_label_file(name: str) -> bool:
    """Whether the file may hold labels: a table, a list, or ILSVRC's ``meta.mat``."""
    return is_text_name(name) or name == "meta.mat"


SPLITS = {  # folder or file name, lower case → split
    **dict.fromkeys(("train", "training", "trn", "trainset", "traindata", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval", "evaluation", "dev", "valset", "valdata"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "testset", "testdata"), "test"),
}
_FILLERS = frozenset(
    (  # words next to a split word that have no meaning: training_set, train_images, test2017
        *("set", "sets", "data", "dataset", "split", "splits", "image", "images", "img", "imgs", "image", "images"),
        *("photo", "photos", "jpg", "jpeg", "png", "folder"),
    )
)


PREVIEWS = frozenset(
    ("thumb", "thumbs", "thumbnail", "thumbnails", "preview", "previews", "recycle", "trash", "backup")
)


def split_words(name: str) -> tuple[str, str] | None:
    """The split that ``name`` contains, and the rest of the name: ``seg_train`` → ("train", "seg").

    None for a name with no split word, or with more than one.
    """
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    splits = [SPLITS[word] for word in words if word in SPLITS]
    rest = [word for word in words if word not in SPLITS and word not in _FILLERS]
    return (splits[0], " ".join(rest)) if len(splits) == 1 else None


_NO_COLUMNS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)  # without a dict of its own: there may be a million
class Sample:
    """One labeled image that is not loaded yet."""

    label: int  # index into the source's classes
    origin: str  # its path or name, unique in the source; used in messages and to draw the splits
    load: Callable[[], bytes | NDArray[np.uint8]] = field(repr=False)  # the file's bytes, or uint8 [H, W, 3]
    group: str = ""  # patient, camera, video: a group is never divided among splits; "" is a group of one image
    columns: Mapping[str, str] = field(default_factory=lambda: _NO_COLUMNS, hash=False)  # the other columns of a table


@dataclass(frozen=True)
class Source:
    """Labeled images, with their own splits or unsplit. Without training images it is for evaluation only."""

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]  # train and test, or train, validation and test, or only "all"
    fingerprint: str  # SHA-256 over classes, splits, origins, labels, stamps of files, content of arrays
    allow_hflip: bool = True  # False where a mirrored image has another meaning, such as a digit
    notes: tuple[str, ...] = ()  # messages to the user
    excluded: frozenset[str] = frozenset()  # origins that are left out after the splits are drawn
    relabeled: Mapping[str, int] = field(default_factory=dict)  # origin → corrected label, likewise
    added: tuple[Sample, ...] = ()  # images that are added to the training images, likewise
    reviewed: frozenset[str] = frozenset()  # origins that a person has decided to keep as they are
    corrections: str = ""  # SHA-256 of ``relabeled`` and ``added``
    sequential: bool = False  # True where only reading in order is fast: parquet files are read by row group
    grouping: str = ""  # how the user grouped the images: "column NAME" or "pattern REGEX"

    def selection(self) -> dict[str, str]:
        """The choices that decide the splits together with the fingerprint; empty without groups and corrections."""
        digest = hashlib.sha256(json.dumps(sorted(self.excluded)).encode()).hexdigest()
        excluded = {"excluded": digest} if self.excluded else {}
        corrections = {"corrections": self.corrections} if self.corrections else {}
        return excluded | ({"grouping": self.grouping} if self.grouping else {}) | corrections

    def corrected(self, images: Iterable[Sample]) -> tuple[Sample, ...]:
        """``images`` without those that are excluded, with corrected labels."""
        return tuple(
            replace(image, label=self.relabeled[image.origin]) if image.origin in self.relabeled else image
            for image in images
            if image.origin not in self.excluded
        )


Problems = list[DataError]  # collects all errors that would stop training, instead of raising the first


class Row(NamedTuple):
    """One image as a reader lists it, for ``make_source``."""

    split: str
    image: Sample
    stamp: str  # changes when the file changes: see stamp_of


def make_source(
    name: str,
    classes: Iterable[str],
    rows: Iterable[Row],
    *,
    allow_hflip: bool = True,
    notes: Iterable[str] = (),
    problems: Problems | None = None,
) -> Source:
    """Group ``rows`` by split, check them and compute the fingerprint.

    Args:
        name: name of the source, for messages and stores.
        classes: class names, in the order of their labels.
        rows: the images.
        allow_hflip: whether an image may be mirrored.
        notes: messages to the user.
        problems: a list to which recoverable errors are added. None: they raise.

    Raises:
        DataError: fewer than two classes, an invalid or ambiguous class name, or a class without training images.
    """
    classes, notes = tuple(classes), list(notes)
    digest = hashlib.sha256(json.dumps(classes).encode())
    splits: dict[str, list[Sample]] = {}
    escaped: set[str] = set()
    for split, image, stamp in rows:
        if "\\" in image.origin:  # only such names can be equal: a line feed, and a backslash with x0a
            if image.origin in escaped:
                problem = f"{name}: two files are called {image.origin} when control characters are escaped"
                refuse(DataError(problem, "one name each", "rename one"), problems)
            escaped.add(image.origin)
        splits.setdefault(split, []).append(image)
        grouped = [image.group] if image.group else []
        digest.update(json.dumps([split, image.origin, image.label, stamp, *grouped]).encode())
    if len(classes) < 2:
        raise DataError(f"{name}: {len(classes)} class", "at least 2 classes", "add a folder of other images")
    if reason := class_fault(classes):
        raise DataError(f"{name}: {reason}", "", "rename the class")
    if set(splits) == {"train", "validation"}:  # with two splits, the second is the test split, whatever its name
        notes.append("two splits: validation is used as test, and validation is cut from train")
        splits["test"] = splits.pop("validation")
    _check_names(name, classes, splits, problems)
    notes += _check_classes(name, classes, splits, problems)
    notes += [*_missing_labels(classes, splits), *_joined_labels(classes)]
    order = sorted(splits, key=["all", "train", "validation", "test"].index)
    ordered = {split: tuple(splits[split]) for split in order}
    return Source(name, classes, ordered, digest.hexdigest(), allow_hflip, tuple(notes))


def refuse(error: DataError, problems: Problems | None) -> None:
    """Raise ``error``, or add it to ``problems`` so that reading continues."""
    if problems is None:
        raise error
    problems.append(error)


def _check_classes(
    name: str, classes: tuple[str, ...], splits: Mapping[str, list[Sample]], problems: Problems | None
) -> list[str]:
    """Check that every class has training images. Returns a note for each class that another split lacks."""
    first = "all" if "all" in splits else "train"
    present = {split: {image.label for image in images} for split, images in splits.items()}
    for label, title in enumerate(classes):
        if label not in present.get(first, ()):
            others = [split for split in present if label in present[split]]
            where = f"only in {', '.join(others)}" if others else "without an image"
            hint = "add training images or remove it (a folder that is no class: --ignore)"
            refuse(DataError(f"{name}: class {title!r} is {where}", "in train", hint), problems)
    missing = ((split, set(range(len(classes))) - labels) for split, labels in present.items())
    return [f"{split} has no image of {classes[label]!r}" for split, absent in missing for label in sorted(absent)]


# How programs and people write that there is no label, where a reader has not refused it already.
_NO_LABEL = frozenset(
    (
        *("na", "n.a.", "n/a", "#n/a", "<na>", "nan", "nat", "nil", "none", "null", "(null)"),
        *("?", "??", "-", "--", ".", "-1", "blank", "missing", "tbd", "todo", "undefined", "unk", "unknown"),
        *("unlabeled", "unlabelled"),
    )
)


def _missing_labels(classes: tuple[str, ...], splits: Mapping[str, list[Sample]]) -> list[str]:
    """A note about classes whose name may mean a missing label, as NA, None and ? do; empty without any."""
    counts = Counter(image.label for images in splits.values() for image in images)
    titles = [
        f"{title!r} ({counted(counts[label], 'image')})"
        for label, title in enumerate(classes)
        if title.strip().casefold() in _NO_LABEL
    ]
    if not titles:
        return []
    are, their = ("is a class", "its") if len(titles) == 1 else ("are classes", "their")
    return [f"{' and '.join(titles)} {are} here; if the name means a missing label, leave out {their} images"]


def _joined_labels(classes: tuple[str, ...]) -> list[str]:
    """A note about classes that are several other classes, as tables with several labels an image have them."""
    known = frozenset(classes)
    joined = [
        title for title in classes if len(parts := re.split(r"\s*[,;|]\s*", title)) > 1 and known.issuperset(parts)
    ]
    joined += [title for title in classes if re.fullmatch(r"[\[({].*[\])}]", title)]
    if not joined:
        return []
    names = f"{joined[0]!r}" + (f" and {counted(len(joined) - 1, 'other class', 'other classes')}" * (len(joined) > 1))
    several = "is a class" if len(joined) == 1 else "are classes"
    return [f"{names} {several} here; if the name means several labels, choose one: an image has one class"]


def class_name(name: str) -> str:
    """A class name in Unicode form NFC. macOS writes é as two characters, most other systems as one."""
    return unicodedata.normalize("NFC", name)


_UNSEEN = re.compile(
    "[\N{SOFT HYPHEN}\u200b-\u200d\u2060\ufe00-\ufe0f]"
)  # without a width, such as the zero-width space


def _check_names(
    name: str, classes: tuple[str, ...], splits: Mapping[str, list[Sample]], problems: Problems | None
) -> None:
    """Refuse two class names that differ only in spelling (case, spaces, leading zeros).

    Single letters (A, a) are two classes.
    """
    spelled: dict[str, list[int]] = {}
    for label, title in enumerate(classes):
        spelled.setdefault(_spelling(title), []).append(label)
    for labels in spelled.values():
        if len(labels) < 2:
            continue
        where = {
            label: [split for split, images in splits.items() if any(sample.label == label for sample in images)]
            for label in labels
        }
        titles = " and ".join(f"{classes[label]!r} (in {', '.join(where[label]) or 'no split'})" for label in labels)
        first_name, second_name = (classes[label] for label in labels[:2])
        if _number(first_name) is not None:
            cause = "are one number"
        elif first_name.lower() == second_name.lower():
            cause = "differ in case only"
        else:
            cause = "look the same"
        refuse(DataError(f"{name}: classes {titles} {cause}", "one spelling for each class", "rename one"), problems)


def _spelling(title: str) -> str:
    number = _number(title)
    if number is not None:
        return f"\0{number}"
    if len(title) == 1:
        return title
    title = _UNSEEN.sub("", unicodedata.normalize("NFKC", title))
    return re.sub(r"[\s_]+", " ", title).strip().casefold()


def _number(title: str) -> Fraction | None:
    """The number that a class name is: 1, 01, 1.0, 1e0, +1 and the digits of other scripts → 1; else None."""
    title = unicodedata.normalize("NFKC", title).strip().replace("\N{MINUS SIGN}", "-")
    title = "".join(str(unicodedata.decimal(c, c)) for c in title)
    is_number = re.fullmatch(r"[+-]?([0-9]{1,99}(\.[0-9]{0,99})?|\.[0-9]{1,99})(e[+-]?[0-9]{1,2})?", title, re.I)
    return Fraction(title) if is_number else None


def path_text(path: str | os.PathLike[str]) -> str:
    """A path for messages: UTF-8, on one line."""
    try:
        data = os.fsencode(path)
    except UnicodeEncodeError:  # a name in a tar, in a locale without its letters
        data = str(path).encode("utf-8", "surrogateescape")
    return printable(data.decode("utf-8", "backslashreplace"))


def stamp_of(path: str | Path) -> str:
    """A text that changes when the file changes: its size, modification time, inode number and inode change time.

    Size and modification time are not enough: they are equal for two files of one archive. A rename or a copy changes
    the inode number or the inode change time, which no program can set. If the stamp changes and the content does not,
    the data set is prepared again, or, if the store has its own name, compared by hash.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path costs memory for each of a million names
    except OSError:  # a dangling link is listed; reading it fails with the reason
        return "unreadable"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino} {status.st_ctime_ns}"


def read_image(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file. Raises ImageError."""
    from alexnet.data.decode import read  # imported here: listing images needs no decoder

    return read(path)


def group_similar(lines: Iterable[str]) -> list[list[str]]:
    """Group lines that differ only in quoted names, paths and numbers."""
    groups: dict[str, list[str]] = {}
    for line in lines:
        groups.setdefault(re.sub(r"'[^']*'|\"[^\"]*\"|\S*[\d/.\\]\S*", "*", line), []).append(line)
    return list(groups.values())


def summarize(lines: list[str]) -> str:
    """The first of similar lines, and the number of the others."""
    return lines[0] + (f" (and {len(lines) - 1:,} more like this)" if len(lines) > 1 else "")
