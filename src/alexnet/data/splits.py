"""Train, validation, test: stratified by class, and a pure function of the pictures' names and the seed.

Pictures of one group (a patient, a camera, a video) are never cut apart. What is excluded is left out last, so that it
moves no other picture.

Splits that a source brings are kept. A fraction is one of the pictures that are cut from: the test split is cut first,
from all; validation then from what is left for training. ``whole`` makes a source that is only evaluated.
"""

import hashlib
from dataclasses import replace
from itertools import chain

import numpy as np

from alexnet.data.grouping import cut_groups, shares_of
from alexnet.data.listing import Picture, Source
from alexnet.errors import DataError

_CUTS = {"test": 0, "validation": 1}  # each cut of each class has a generator of its own


def assign(
    source: Source, *, validation: float, test: float, seed: int, strict: bool = True
) -> dict[str, tuple[Picture, ...]]:
    """The pictures of train, validation (may be empty) and test, each sorted by origin.

    ``validation`` and ``test`` are fractions in [0, 1) of the pictures being cut from; ``test`` counts only for an
    unsplit source, ``validation`` only where the source has none. Each class gives its share, rounded up or down so
    that the whole is nearest, at least one if it has three pictures or more, and always keeps one for training. A train
    split that comes empty stays so. With groups the shares are only near, and a class of one group is in train alone.
    Raises DataError for other fractions and seeds, and, if ``strict``, for a class without a training picture where
    there are some.
    """
    for name, fraction in (("validation", validation), ("test", test)):
        if not 0 <= fraction < 1:
            raise DataError(f"{name} fraction {fraction}", "at least 0 and less than 1", "change it")
    if seed < 0:
        raise DataError(f"seed {seed}", "at least 0", "change it")
    given = {name: tuple(sorted(pictures, key=_by_origin)) for name, pictures in source.splits.items()}
    splits = _cut_what_lacks(source, given, validation, test, seed)
    splits = {name: tuple(p for p in pictures if p.origin not in source.excluded) for name, pictures in splits.items()}
    if strict and given.get("train") != ():
        _check_training(source, splits["train"])
    return {name: splits[name] for name in ("train", "validation", "test")}


def whole(source: Source) -> Source:
    """``source`` to be evaluated entirely: all its pictures are the test split, and train is empty.

    The fingerprint is another one, so that a store of the whole is never taken for a store of the parts.
    """
    pictures = tuple(chain.from_iterable(source.splits.values()))
    fingerprint = hashlib.sha256(f"whole {source.fingerprint}".encode()).hexdigest()
    return replace(source, splits={"train": (), "test": pictures}, fingerprint=fingerprint)


def _by_origin(picture: Picture) -> tuple[str, int]:
    return picture.origin, picture.label


def _cut_what_lacks(
    source: Source, given: dict[str, tuple[Picture, ...]], validation: float, test: float, seed: int
) -> dict[str, tuple[Picture, ...]]:
    if set(given) == {"train", "validation", "test"}:
        return given
    if set(given) == {"all"}:
        rest, tested = _cut(source, given["all"], test, seed, "test")
    elif set(given) == {"train", "test"}:
        rest, tested = given["train"], given["test"]
    else:
        must = "all, or train and test, or train, validation and test"
        raise DataError(f"{source.name}: splits {', '.join(given)}", must, "rename them")
    train, validated = _cut(source, rest, validation, seed, "validation")
    return {"train": train, "validation": validated, "test": tested}


def _cut(
    source: Source, pictures: tuple[Picture, ...], fraction: float, seed: int, name: str
) -> tuple[tuple[Picture, ...], tuple[Picture, ...]]:
    """(what is left, what is cut)."""
    if any(picture.group for picture in pictures):
        return cut_groups(pictures, len(source.classes), fraction, [seed, _CUTS[name]])
    labels = np.array([picture.label for picture in pictures], np.int64)  # [N]
    counts = np.bincount(labels, minlength=len(source.classes))  # [K]
    cut = np.zeros(len(pictures), bool)
    for label, count in enumerate(shares_of(counts, fraction)):
        draw = np.random.Generator(np.random.PCG64([seed, _CUTS[name], label]))
        members = np.flatnonzero(labels == label) if count else np.zeros(0, np.int64)
        cut[draw.permutation(members)[:count]] = True
    left = tuple(picture for picture, out in zip(pictures, cut, strict=True) if not out)
    return left, tuple(picture for picture, out in zip(pictures, cut, strict=True) if out)


def _check_training(source: Source, train: tuple[Picture, ...]) -> None:
    counts = np.bincount([picture.label for picture in train], minlength=len(source.classes))
    for label, count in enumerate(counts):
        if count == 0:
            total = sum(picture.label == label for pictures in source.splits.values() for picture in pictures)
            what = f"{source.name}: class {source.classes[label]!r} has {total} pictures and none for training"
            raise DataError(what, "at least one", "add pictures or remove the class")
