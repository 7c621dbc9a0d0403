"""The labels of a flat split, from an annotation file next to its images.

``val_annotations.txt`` (Tiny ImageNet), ``val.txt`` (name, then class or its number from 0 in sorted order),
``LOC_val_solution.csv`` (Kaggle), ``ILSVRC2012_validation_ground_truth.txt`` with ``meta.mat``, or any table.
"""

import csv
import io
import re
from collections.abc import Callable, Mapping
from typing import Any

from alexnet.data.sources.layout import File, LayoutOptions, Node
from alexnet.data.sources.source import is_image_name, path_text, split_words
from alexnet.data.sources.tables import lines_of
from alexnet.errors import DataError

TRUTHS = ("val.txt", "LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt")
_META = "meta.mat"


def labels_of(
    split: str, folders: list[Node], images: list[File], classes: list[str], options: LayoutOptions
) -> tuple[dict[File, str], str] | None:
    """The labels of the images of a flat split, from the first annotation file that lists them.

    Args:
        split: name of the split.
        folders: folders that may contain the annotation file, in order of preference.
        images: the images of the split.
        classes: the classes of the training split.
        options: how to read an ambiguous table.

    Returns:
        (image → class, name of the annotation file), or None if no file lists the images.

    Raises:
        DataError: if an ILSVRC annotation file does not match the images.
    """
    for folder in folders:
        truth = next((name for name in TRUTHS if name in folder.texts), None) if split == "validation" else None
        if truth:
            return _ground_truth(folder, truth, images, classes), truth
        for name in sorted(folder.texts, key=lambda name: (split_words(name.rsplit(".", 1)[0]) is None, name)):
            split_and_rest = split_words(name.rsplit(".", 1)[0])
            if split_and_rest is None or split_and_rest[0] == split:
                labels = _table(folder.texts[name], name, images, classes, options)
                if labels:
                    return labels, name
    return None


def _table(
    read: Callable[[], bytes], name: str, images: list[File], classes: list[str], options: LayoutOptions
) -> dict[File, str]:
    try:
        lines = lines_of(read(), name, options)
    except (DataError, OSError):
        return {}
    listed = {line.path.replace("\\", "/").removeprefix("./"): line.label for line in lines}
    if classes and not set(listed.values()) & set(classes) and all(label.isdecimal() for label in listed.values()):
        listed = {path: classes[int(label)] if int(label) < len(classes) else label for path, label in listed.items()}
    labels_by_name: dict[str, set[str]] = {}
    for path, label in listed.items():
        labels_by_name.setdefault(path.rsplit("/", 1)[-1], set()).add(label)
    unique = {path: labels.pop() for path, labels in labels_by_name.items() if len(labels) == 1}
    labels = {file: _lookup(file, listed, unique) for file in images}
    return {file: label for file, label in labels.items() if label is not None}


def _lookup(file: File, listed: Mapping[str, str], unique: Mapping[str, str]) -> str | None:
    """The label listed for the longest tail of the image's path, with or without its suffix."""
    for start in range(len(file.parts)):
        path = "/".join(file.parts[start:])
        for key in (path, path.rsplit(".", 1)[0]):
            if key in listed:
                return listed[key]
    name = file.parts[-1]
    return unique.get(name) or unique.get(name.rsplit(".", 1)[0])


def _ground_truth(folder: Node, truth: str, images: list[File], classes: list[str]) -> dict[File, str]:
    samples = sorted((file for file in images if is_image_name(file.parts[-1])), key=lambda file: file.parts)
    names = [file.parts[-1].rsplit(".", 1)[0] for file in samples]
    try:
        label_of = _read_truth(folder, truth, names, classes)
    except (OSError, ValueError, IndexError, KeyError, csv.Error) as error:
        problem = f"{path_text(truth)}: cannot be read ({type(error).__name__}: {error})"
        raise DataError(problem, "a line for each image", "get it again") from error
    for name in names:
        if label_of.get(name) not in classes:
            problem = f"{path_text(truth)}: {path_text(name)} is {label_of.get(name, 'not listed')}"
            raise DataError(problem, f"one of the {len(classes)} classes of train", "get the file that fits the images")
    return {file: label_of[name] for file, name in zip(samples, names, strict=True)}


def _read_truth(folder: Node, truth: str, names: list[str], classes: list[str]) -> dict[str, str]:
    """Image name without its suffix → class."""
    text = folder.texts[truth]().decode("utf-8-sig")
    if truth.endswith(".csv"):
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(text.splitlines())}
    lines = [line for line in text.splitlines() if line.strip()]
    if truth == "val.txt":
        pairs = [re.split(r"[,;|\t]", line) if re.search(r"[,;|\t]", line) else line.rsplit(None, 1) for line in lines]
        if short := next((line for line, cells in zip(lines, pairs, strict=True) if len(cells) < 2), None):
            raise ValueError(f"no class in the line {short[:80]!r}")
        labels = {name.strip().rsplit("/", 1)[-1].rsplit(".", 1)[0]: label.strip() for name, label, *_ in pairs}
        if set(labels.values()) & set(classes):  # also names such as 10
            return labels
        for name, label in labels.items():
            if label.isdecimal() and int(label) >= len(classes):
                raise ValueError(f"{name} has the class number {label}, and the numbers are 0 to {len(classes) - 1}")
        return {name: classes[int(label)] if label.isdecimal() else label for name, label in labels.items()}
    rows = [line.split() for line in lines]
    if len(rows) != len(names):
        raise ValueError(f"{len(rows)} lines for {len(names)} images")
    ids = _wordnet_ids(folder)
    return {name: ids[int(row[0])] for name, row in zip(names, rows, strict=True)}


def _wordnet_ids(folder: Node) -> dict[int, str]:
    """ILSVRC class number → WordNet ID. The two orders differ, so the file is required."""
    if _META not in folder.texts:
        raise DataError(f"{_META}: not there", "the development kit's file, beside the ground truth", "add it")
    from scipy.io import loadmat  # comes with scikit-learn

    try:
        synsets: Any = loadmat(io.BytesIO(folder.texts[_META]()), squeeze_me=True, struct_as_record=True)["synsets"]
    except Exception as error:  # SciPy raises many types of errors for other and damaged files
        raise ValueError(f"{_META}: {' '.join(str(error).split())}") from error
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
