"""Folders of pictures → a source: one folder for each class, in split folders or not.

Files are listed, not opened. Names that are not UTF-8 are shown with their bytes; folders must have readable names.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from alexnet.data.listing import SPLITS, Faults, Picture, Row, Source, shown, source_of, stamp_of
from alexnet.errors import DataError

SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))


def is_picture_name(name: str) -> bool:
    """Does the name end like a picture's? What the file holds is seen when it is decoded."""
    return Path(name).suffix.lower() in SUFFIXES


def read_folder(root: Path, faults: Faults | None = None) -> Source:
    """``root/class/*`` or ``root/{train,val,test}/class/*``; classes in the order of their sorted names.

    Raises DataError for a layout that is neither; with ``faults``, classes without pictures are added to that list.
    """
    folders = _folders(root)
    if not folders:
        raise _no_folders(root)
    named = {folder: SPLITS[folder.name.lower()] for folder in folders if folder.name.lower() in SPLITS}
    if named and len(named) < len(folders):
        other = next(folder for folder in folders if folder not in named)
        todo = f"move {other.name!r} away, or rename split-like classes"
        raise DataError(f"{shown(root)}: split folders beside {other.name!r}", "only splits or only classes", todo)
    split_roots = _split_folders(root, named) if named else {"all": root}
    return _read_classes(root, split_roots, faults)


def _split_folders(root: Path, named: Mapping[Path, str]) -> dict[str, Path]:
    counts = Counter(named.values())
    twice = [folder.name for folder, split in named.items() if counts[split] > 1]
    if twice:
        raise DataError(f"{shown(root)}: {' and '.join(twice)} name the same split", "one folder each", "rename one")
    if "train" not in counts or len(counts) < 2:
        found = ", ".join(folder.name for folder in named)
        must = "train and test, or train, validation and test, or class folders only"
        raise DataError(f"{shown(root)}: split folders {found}", must, "name the folder of class folders itself")
    return {split: folder for folder, split in sorted(named.items(), key=lambda entry: list(SPLITS).index(entry[1]))}


def _read_classes(root: Path, split_roots: Mapping[str, Path], faults: Faults | None) -> Source:
    folders = {split: _folders(place) for split, place in split_roots.items()}
    for split, place in split_roots.items():
        if not folders[split]:
            raise _no_folders(place)
    classes = sorted({folder.name for group in folders.values() for folder in group})
    others: Counter[str] = Counter()
    rows: list[Row] = []
    for split, group in folders.items():
        for folder in group:
            found = list(_pictures(root, folder, split, classes.index(folder.name), others))
            if not found and split in ("all", "train") and faults is None:  # else the source's own check adds it
                raise DataError(f"{shown(folder)}: no picture", "at least one", "fill or remove this class folder")
            rows += found
    notes = [f"{count} files that end in {suffix!r} are no pictures" for suffix, count in sorted(others.items())]
    return source_of(shown(root.resolve().name), classes, rows, notes=notes, faults=faults)


def _folders(root: Path) -> list[Path]:
    """The folders in ``root`` by name, hidden ones left out. Raises DataError for names that are not UTF-8."""
    try:
        found = sorted(path for path in root.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError as error:
        raise DataError(f"{shown(root)}: {error.strerror}", "a readable folder", "check the rights") from error
    for path in found:
        if shown(path.name) != path.name:
            raise DataError(f"{shown(path)}: folder name is no printable UTF-8", "UTF-8", "rename the folder")
    return found


def _no_folders(root: Path) -> DataError:
    loose = any(is_picture_name(path.name) for path in root.iterdir())
    what = "pictures but no class folders" if loose else "no class folders and no parquet files"
    return DataError(f"{shown(root)}: {what}", "one folder of pictures for each class", "sort them into folders")


def _pictures(root: Path, folder: Path, split: str, label: int, others: Counter[str]) -> Iterator[Row]:
    """The pictures below ``folder`` by name; what has another extension is counted, what is hidden ignored."""

    def unreadable(error: OSError) -> None:
        raise DataError(f"{shown(error.filename)}: {error.strerror}", "a readable folder", "check the rights")

    for place, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(place, name)
            if is_picture_name(path.name):
                picture = Picture(label, shown(path.relative_to(root).as_posix()), partial(read_picture, path))
                yield Row(split, picture, stamp_of(path))
            else:
                others[shown(path.suffix.lower())] += 1


def read_picture(path: Path) -> bytes:
    """The bytes of the file. Raises PictureError."""
    from alexnet.data.pixels import read  # here: listing pictures needs no decoder

    return read(path)
