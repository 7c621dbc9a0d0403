"""A folder of tars, one for each split → a source; ILSVRC as its organizers pack it.

``…train….tar`` and ``…val….tar`` hold class folders or a tar for each class. Where the second is flat, as in ILSVRC,
one of these beside it says which picture is of which class: ``val.txt`` (name, then class or its number from 0 in
sorted order), ``LOC_val_solution.csv`` (Kaggle), or ``ILSVRC2012_validation_ground_truth.txt`` with ``meta.mat``.
"""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexnet.data.archives import Piece, pieces_of, source_in, unwrapped
from alexnet.data.folders import is_picture_name
from alexnet.data.listing import SPLITS, Faults, Source, shown
from alexnet.errors import DataError

TRUTHS = ("val.txt", "LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt")


def split_archives(root: Path) -> dict[str, list[Path]]:
    """The tars in ``root`` that have a split's name as one of their words."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*.tar")):
        splits = {SPLITS[word] for word in re.split(r"[-_.]", path.name.lower()) if word in SPLITS}
        for split in splits:
            found.setdefault(split, []).append(path)
    return found


def read_archives(root: Path, found: Mapping[str, list[Path]], faults: Faults | None = None) -> Source:
    """The pictures of the tars that ``split_archives`` found. Raises DataError."""
    for split, paths in found.items():
        if len(paths) > 1:
            names = " and ".join(shown(path.name) for path in paths[:2])
            raise DataError(f"{shown(root)}: {names} are both of {split}", "one tar a split", "move one away")
    if "train" not in found or len(found) < 2:
        raise DataError(f"{shown(root)}: tars of {', '.join(found)}", "of train and validation or test", "add the rest")
    parts = {split: (paths[0], unwrapped(list(pieces_of(paths[0])))) for split, paths in sorted(found.items())}
    classes = sorted({piece.parts[0] for piece in parts["train"][1] if len(piece.parts) > 1})
    for split, (path, inside) in parts.items():
        pieces = _flat(inside, classes)
        if pieces and all(len(piece.parts) == 1 for piece in pieces) and split != "train":
            parts[split] = path, _labeled(root, path, pieces, classes)
    return source_in(parts, shown(root.resolve().name), faults)


def _flat(pieces: list[Piece], classes: list[str]) -> list[Piece]:
    """Without the one folder that holds all pictures and is no class, where there is one."""
    tops = {piece.parts[0] for piece in pieces}
    if len(tops) == 1 and not tops & set(classes) and all(len(piece.parts) == 2 for piece in pieces):
        return [piece._replace(parts=piece.parts[1:]) for piece in pieces]
    return pieces


def _labeled(root: Path, archive: Path, pieces: list[Piece], classes: list[str]) -> list[Piece]:
    """Flat pieces put into the folders of their classes."""
    pictures = sorted((piece for piece in pieces if is_picture_name(piece.parts[-1])), key=lambda piece: piece.parts)
    truth = next((root / name for name in TRUTHS if (root / name).is_file()), None)
    if truth is None:
        what = f"{shown(archive)}: no class folders and no ground truth beside it"
        raise DataError(what, " or ".join(TRUTHS), "put one of them into its folder")
    names = [piece.parts[-1].rsplit(".", 1)[0] for piece in pictures]
    try:
        label_of = _read_truth(truth, names, classes)
    except (OSError, ValueError, IndexError, KeyError, csv.Error) as error:
        what = f"{shown(truth)}: can not be read ({type(error).__name__}: {error})"
        raise DataError(what, "a line for each picture", "get it again") from error
    for name in names:
        if label_of.get(name) not in classes:
            what = f"{shown(truth)}: {shown(name)} is {label_of.get(name, 'not listed')}"
            raise DataError(what, f"one of the {len(classes)} classes of train", "get the file that fits the tars")
    return [
        piece._replace(parts=(label_of[name], piece.parts[-1])) for piece, name in zip(pictures, names, strict=True)
    ]


def _read_truth(truth: Path, names: list[str], classes: list[str]) -> dict[str, str]:
    """Picture name without its ending → class."""
    text = truth.read_text(encoding="utf-8")
    if truth.suffix == ".csv":
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(text.splitlines())}
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if truth.name == "val.txt":
        named = {name.rsplit(".", 1)[0]: label for name, label in rows}
        return {name: classes[int(label)] if label.isdecimal() else label for name, label in named.items()}
    if len(rows) != len(names):
        raise ValueError(f"{len(rows)} lines for {len(names)} pictures")
    ids = _wordnet_ids(truth.with_name("meta.mat"))
    return {name: ids[int(row[0])] for name, row in zip(names, rows, strict=True)}


def _wordnet_ids(meta: Path) -> dict[int, str]:
    """ILSVRC's numbers of classes → WordNet numbers: they are sorted differently, so the file can not be guessed."""
    if not meta.is_file():
        raise DataError(f"{shown(meta)}: not there", "the development kit's file, beside the ground truth", "add it")
    from scipy.io import loadmat  # comes with scikit-learn

    synsets: Any = loadmat(str(meta), squeeze_me=True, struct_as_record=True)["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
