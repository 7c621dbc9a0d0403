"""Where labeled pictures come from: a folder, parquet files, torchvision's sets, the digits of scikit-learn.

A source only lists pictures and knows how to get each one's bytes (or array); nothing is decoded here. Heavy libraries
are imported by the one function that needs them.
"""

import difflib
import hashlib
import json
import os
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError

SETS = ("cifar10", "digits", "fashion_mnist", "imagenette", "mnist")
SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
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
    """Labeled pictures, in given splits or unsplit."""

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Picture, ...]]  # train and test, or train, validation and test, or only "all"
    fingerprint: str  # SHA-256 over classes, splits, origins, labels, sizes and times of files, content of arrays
    mirror: bool = True  # may a picture be mirrored? not a digit: that is another sign
    notes: tuple[str, ...] = ()  # for people


class _Row(NamedTuple):
    split: str
    picture: Picture
    stamp: str  # what changes when the picture does: size and time of its file


def is_picture_name(name: str) -> bool:
    """Does the name end like a picture's? What the file holds is seen when it is decoded."""
    return Path(name).suffix.lower() in SUFFIXES


def is_store(path: str | Path) -> bool:
    """True if ``path`` is a prepared store: a folder that contains dataset.json."""
    return (Path(path) / "dataset.json").is_file()


def open_source(data: str | Path, *, data_root: Path | None = None, download: bool = False) -> Source:
    """The pictures that ``data`` names: one of SETS, or a folder of class folders, split folders or parquet files.

    ``data_root`` is where torchvision's sets lie or go (default ~/.cache/alexnet); only ``download`` fetches them. A
    folder that has a set's name is written ``./name``. Raises DataError that says what to do.
    """
    if isinstance(data, str) and data in SETS:
        return _digits() if data == "digits" else _torchvision(data, data_root, download)
    root = Path(data)
    if not root.is_dir():
        raise _no_such(str(data), root)
    if is_store(root):
        raise DataError(f"{_shown(root)}: is a prepared store", "a source of pictures", "open it with Store.open")
    files = _parquet_files(root)
    return _parquet(root, files) if files else _folder(root)


def _no_such(data: str, root: Path) -> DataError:
    must = f"a folder, or one of {', '.join(SETS)}"
    if root.exists():
        return DataError(f"{_shown(data)}: is a file", must, "name its folder")
    near = difflib.get_close_matches(data.lower(), SETS, n=1)
    return DataError(f"{_shown(data)}: no such data", must, f"did you mean {near[0]}?" if near else "check the path")


def _shown(path: str | os.PathLike[str]) -> str:
    """A path for people: UTF-8, on one line."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _source(
    name: str, classes: Iterable[str], rows: Iterable[_Row], *, mirror: bool = True, notes: Iterable[str] = ()
) -> Source:
    """Group, check and fingerprint the rows."""
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


# -- folders


def _folder(root: Path) -> Source:
    """``root/class/*`` or ``root/{train,val,test}/class/*``; classes in the order of their sorted names."""
    folders = _folders(root)
    if not folders:
        raise _no_folders(root)
    named = {folder: SPLITS[folder.name.lower()] for folder in folders if folder.name.lower() in SPLITS}
    if named and len(named) < len(folders):
        other = next(folder for folder in folders if folder not in named)
        todo = f"move {other.name!r} away, or rename split-like classes"
        raise DataError(f"{_shown(root)}: split folders beside {other.name!r}", "only splits or only classes", todo)
    split_roots = _split_folders(root, named) if named else {"all": root}
    return _read_classes(root, split_roots)


def _split_folders(root: Path, named: Mapping[Path, str]) -> dict[str, Path]:
    counts = Counter(named.values())
    twice = [folder.name for folder, split in named.items() if counts[split] > 1]
    if twice:
        raise DataError(f"{_shown(root)}: {' and '.join(twice)} name the same split", "one folder each", "rename one")
    if "train" not in counts or len(counts) < 2:
        found = ", ".join(folder.name for folder in named)
        must = "train and test, or train, validation and test, or class folders only"
        raise DataError(f"{_shown(root)}: split folders {found}", must, "name the folder of class folders itself")
    return {split: folder for folder, split in sorted(named.items(), key=lambda entry: list(SPLITS).index(entry[1]))}


def _read_classes(root: Path, split_roots: Mapping[str, Path]) -> Source:
    folders = {split: _folders(place) for split, place in split_roots.items()}
    for split, place in split_roots.items():
        if not folders[split]:
            raise _no_folders(place)
    classes = sorted({folder.name for group in folders.values() for folder in group})
    others: Counter[str] = Counter()
    rows: list[_Row] = []
    for split, group in folders.items():
        for folder in group:
            found = list(_files(root, folder, split, classes.index(folder.name), others))
            if not found and split in ("all", "train"):
                raise DataError(f"{_shown(folder)}: no picture", "at least one", "fill or remove this class folder")
            rows += found
    notes = [f"{count} files that end in {suffix!r} are no pictures" for suffix, count in sorted(others.items())]
    return _source(_shown(root.resolve().name), classes, rows, notes=notes)


def _folders(root: Path) -> list[Path]:
    """The folders in ``root`` by name, hidden ones left out. Raises DataError for names that are not UTF-8."""
    try:
        found = sorted(path for path in root.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError as error:
        raise DataError(f"{_shown(root)}: {error.strerror}", "a readable folder", "check the rights") from error
    for path in found:
        if _shown(path.name) != path.name:
            raise DataError(f"{_shown(path)}: folder name is no printable UTF-8", "UTF-8", "rename the folder")
    return found


def _no_folders(root: Path) -> DataError:
    loose = any(is_picture_name(path.name) for path in root.iterdir())
    what = "pictures but no class folders" if loose else "no class folders and no parquet files"
    return DataError(f"{_shown(root)}: {what}", "one folder of pictures for each class", "sort them into folders")


def _files(root: Path, folder: Path, split: str, label: int, others: Counter[str]) -> Iterator[_Row]:
    """The pictures below ``folder`` by name; what has another extension is counted, what is hidden ignored."""

    def unreadable(error: OSError) -> None:
        raise DataError(f"{_shown(error.filename)}: {error.strerror}", "a readable folder", "check the rights")

    for place, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(place, name)
            if is_picture_name(path.name):
                picture = Picture(label, _shown(path.relative_to(root).as_posix()), partial(_read, path))
                yield _Row(split, picture, _stamp(path))
            else:
                others[_shown(path.suffix.lower())] += 1


def _read(path: Path) -> bytes:
    from alexnet.data.pixels import read  # here: listing pictures needs no decoder

    return read(path)


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:  # a dangling link: listed, and excluded with its reason when it is read
        return "unreadable"
    return f"{status.st_size} {status.st_mtime_ns}"


# -- arrays


def _array_rows(split: str, images: NDArray[np.uint8], labels: Iterable[int]) -> Iterator[_Row]:
    """Rows of ``images`` uint8 [N, H, W] or [N, H, W, 3]; the content stamps the first."""
    stamp = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    for index, label in enumerate(labels):
        yield _Row(split, Picture(int(label), f"{split}#{index:07d}", partial(_rgb, images, index)), stamp)
        stamp = ""


def _rgb(images: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    image = images[index]
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def _digits() -> Source:
    """1,797 handwritten digits of scikit-learn, 8 × 8, 17 gray levels; it ships with them: no download."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
    return _source("digits", map(str, range(10)), _array_rows("all", images, bunch.target), mirror=False)


def _torchvision(name: str, data_root: Path | None, download: bool) -> Source:
    """One of torchvision's sets, through its own classes (which check MD5 sums before they unpickle anything)."""
    root = data_root or Path.home() / ".cache" / "alexnet"
    try:
        return _imagenette(root, download) if name == "imagenette" else _torchvision_arrays(name, root, download)
    except DataError:
        raise
    except Exception as error:  # torchvision raises RuntimeError, OSError, URLError, and what tar and zlib raise
        if download:
            todo = "check the network, or fetch it elsewhere and pass --data-root"
            raise DataError(
                f"{name}: download to {_shown(root)} failed ({' '.join(str(error).split())})", "", todo
            ) from error
        todo = "pass --download to fetch it, or --data-root for the folder where it lies"
        raise DataError(f"{name}: not found in {_shown(root)}", "downloaded once", todo) from error


def _torchvision_arrays(name: str, root: Path, download: bool) -> Source:
    import warnings

    from torchvision import datasets

    kinds = {"cifar10": datasets.CIFAR10, "mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy ≥ 2.4 warns about the pickles of CIFAR-10, written by NumPy 1
        sets = {split: kinds[name](root, train=split == "train", download=download) for split in ("train", "test")}
    classes = [str(digit) for digit in range(10)] if name == "mnist" else sets["train"].classes
    rows = [
        row for split, part in sets.items() for row in _array_rows(split, np.asarray(part.data), map(int, part.targets))
    ]
    return _source(name, classes, rows, mirror=name != "mnist")


def _imagenette(root: Path, download: bool) -> Source:
    """Ten classes of ImageNet as JPEG files; torchvision fetches and names them, its decoder is not used."""
    from torchvision.datasets import Imagenette

    folders = {"full": "imagenette2", "320px": "imagenette2-320", "160px": "imagenette2-160"}
    size = next((size for size, folder in folders.items() if (root / folder).is_dir()), "320px")
    names = [title[0] for title in Imagenette(root, "train", size, download=download).classes]
    source = _folder(root / folders[size])  # classes in the order of their WordNet numbers, as torchvision's
    return Source("imagenette", tuple(names), source.splits, source.fingerprint, True, source.notes)


# -- parquet, in the layout of Hugging Face


def _parquet_files(root: Path) -> dict[str, list[Path]]:
    """``train-*.parquet`` and its like in ``root`` or ``root/data``, by split."""
    found: dict[str, list[Path]] = {}
    for path in sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")]):
        word = re.split(r"[-.]", path.name)[0].lower()
        if word in SPLITS:
            found.setdefault(SPLITS[word], []).append(path)
    return found


def _parquet(root: Path, files: Mapping[str, list[Path]]) -> Source:
    try:
        import pyarrow as arrow
    except ImportError as error:
        todo = "pip install 'alexnet[data]'"
        raise DataError(f"{_shown(root)}: parquet files need pyarrow", "installed", todo) from error
    if "train" not in files or len(files) < 2:
        raise DataError(f"{_shown(root)}: parquet files of {', '.join(files)}", "of train and test", "add the others")
    try:
        tables = [(split, _Parquet(path)) for split, paths in files.items() for path in paths]
        rows = [row for split, table in tables for row in table.rows(root, split)]
    except (OSError, arrow.ArrowException) as error:
        raise DataError(
            f"{_shown(root)}: {' '.join(str(error).split())}", "readable parquet files", "get them again"
        ) from error
    names = tables[0][1].class_names or [str(number) for number in range(1 + max(row.picture.label for row in rows))]
    for row in rows:
        if not 0 <= row.picture.label < len(names):
            raise DataError(f"{row.picture.origin}: label {row.picture.label}", f"0 to {len(names) - 1}", "mend it")
    return _source(_shown(root.resolve().name), names, rows)


class _Parquet:
    """One parquet file: labels read at once, pictures by row group, the last few groups kept (threads walk in step)."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as parquet

        self.path, self.file = path, parquet.ParquetFile(path)
        names = self.file.schema_arrow.names
        self.image = next((name for name in ("img", "image") if name in names), "")
        self.label = next((name for name in ("label", "fine_label") if name in names), "")
        if not self.image or not self.label:
            must = "img or image, and label or fine_label"
            raise DataError(f"{_shown(path)}: columns {', '.join(names)}", must, "rename the columns")
        self.class_names = self._class_names()
        counts = [self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups)]
        self.starts = np.cumsum([0, *counts])
        self.groups: OrderedDict[int, Any] = OrderedDict()
        self.lock = threading.Lock()

    def _class_names(self) -> list[str]:
        """From the schema's metadata; empty where it has none."""
        try:
            about = json.loads((self.file.schema_arrow.metadata or {})[b"huggingface"])
            return [str(name) for name in about["info"]["features"][self.label]["names"]]
        except (KeyError, TypeError, ValueError):
            return []

    def rows(self, root: Path, split: str) -> Iterator[_Row]:
        name, stamp = _shown(self.path.relative_to(root).as_posix()), _stamp(self.path)
        labels = self.file.read(columns=[self.label]).column(0).to_pylist()
        for index, label in enumerate(labels):
            origin = f"{name}#{index:07d}"
            if not isinstance(label, int):
                raise DataError(f"{origin}: label {label!r}", "a whole number", "mend the file")
            yield _Row(split, Picture(label, origin, partial(self.bytes_of, index)), stamp)

    def bytes_of(self, index: int) -> bytes:
        """The bytes of the picture in row ``index``, as they are in the file."""
        group = int(np.searchsorted(self.starts, index, "right")) - 1
        with self.lock:
            if group not in self.groups:
                self.groups[group] = self.file.read_row_group(group, columns=[self.image]).column(0)
                while len(self.groups) > 2:
                    self.groups.popitem(last=False)
            column = self.groups[group]
        cell = column[index - int(self.starts[group])].as_py()
        return bytes((cell or {}).get("bytes") or b"")
