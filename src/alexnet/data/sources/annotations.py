"""The labels of a flat split, from an annotation file beside its images.

``val_annotations.txt`` (Tiny ImageNet), ``val.txt`` (name, then class or its number from 0 in sorted order),
``LOC_val_solution.csv`` (Kaggle), ``ILSVRC2012_validation_ground_truth.txt`` with ``meta.mat``, or any table.
"""

import csv
import io
from collections.abc import Callable, Mapping
from typing import Any

from alexnet.data.sources.layout import File, LayoutOptions, Node
from alexnet.data.sources.names import is_image_name, split_words
from alexnet.data.sources.source import path_text
from alexnet.data.sources.tables import lines_of
from alexnet.errors import DataError

TRUTHS = ("val.txt", "LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt")
_META = "meta.mat"


def labels_of(
    split: str, places: list[Node], images: list[File], classes: list[str], options: LayoutOptions
) -> tuple[dict[File, str], str] | None:
    """(image → class, the file's name) by the first file of ``places`` that lists the images; None where none does.

    Raises DataError for a file of ILSVRC that does not fit.
    """
    for place in places:
        truth = next((name for name in TRUTHS if name in place.texts), None) if split == "validation" else None
        if truth:
            return _ground_truth(place, truth, images, classes), truth
        for name in sorted(place.texts, key=lambda name: (split_words(name.rsplit(".", 1)[0]) is None, name)):
            pair = split_words(name.rsplit(".", 1)[0])
            if pair is None or pair[0] == split:
                labels = _table(place.texts[name], name, images, classes, options)
                if labels:
                    return labels, name
    return None


def _table(
    read: Callable[[], bytes], name: str, images: list[File], classes: list[str], options: LayoutOptions
) -> dict[File, str]:
    try:
        lines = lines_of(read(), name, options)
    except DataError:
        return {}
    listed = {line.path.replace("\\", "/").removeprefix("./"): line.label for line in lines}
    if classes and not set(listed.values()) & set(classes) and all(label.isdecimal() for label in listed.values()):
        listed = {path: classes[int(n)] if int(n) < len(classes) else n for path, n in listed.items()}
    last: dict[str, set[str]] = {}
    for path, label in listed.items():
        last.setdefault(path.rsplit("/", 1)[-1], set()).add(label)
    unique = {path: labels.pop() for path, labels in last.items() if len(labels) == 1}
    labels = {file: _lookup(file, listed, unique) for file in images}
    return {file: label for file, label in labels.items() if label is not None}


def _lookup(file: File, listed: Mapping[str, str], unique: Mapping[str, str]) -> str | None:
    """By the longest end of the image's path that is listed, with its suffix or without."""
    for start in range(len(file.parts)):
        path = "/".join(file.parts[start:])
        for key in (path, path.rsplit(".", 1)[0]):
            if key in listed:
                return listed[key]
    name = file.parts[-1]
    return unique.get(name) or unique.get(name.rsplit(".", 1)[0])


def _ground_truth(place: Node, truth: str, images: list[File], classes: list[str]) -> dict[File, str]:
    samples = sorted((file for file in images if is_image_name(file.parts[-1])), key=lambda file: file.parts)
    names = [file.parts[-1].rsplit(".", 1)[0] for file in samples]
    try:
        label_of = _read_truth(place, truth, names, classes)
    except (OSError, ValueError, IndexError, KeyError, csv.Error) as error:
        what = f"{path_text(truth)}: can not be read ({type(error).__name__}: {error})"
        raise DataError(what, "a line for each image", "get it again") from error
    for name in names:
        if label_of.get(name) not in classes:
            what = f"{path_text(truth)}: {path_text(name)} is {label_of.get(name, 'not listed')}"
            raise DataError(what, f"one of the {len(classes)} classes of train", "get the file that fits the images")
    return {file: label_of[name] for file, name in zip(samples, names, strict=True)}


def _read_truth(place: Node, truth: str, names: list[str], classes: list[str]) -> dict[str, str]:
    """Image name without its ending → class."""
    text = place.texts[truth]().decode("utf-8")
    if truth.endswith(".csv"):
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(text.splitlines())}
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if truth == "val.txt":
        named = {name.rsplit("/", 1)[-1].rsplit(".", 1)[0]: label for name, label in rows}
        return {name: classes[int(label)] if label.isdecimal() else label for name, label in named.items()}
    if len(rows) != len(names):
        raise ValueError(f"{len(rows)} lines for {len(names)} images")
    ids = _wordnet_ids(place)
    return {name: ids[int(row[0])] for name, row in zip(names, rows, strict=True)}


def _wordnet_ids(place: Node) -> dict[int, str]:
    """ILSVRC's numbers of classes → WordNet numbers: they are sorted differently, so the file can not be guessed."""
    if _META not in place.texts:
        raise DataError(f"{_META}: not there", "the development kit's file, beside the ground truth", "add it")
    from scipy.io import loadmat  # comes with scikit-learn

    synsets: Any = loadmat(io.BytesIO(place.texts[_META]()), squeeze_me=True, struct_as_record=True)["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
