"""Splits of a source (train, validation, test), and the color statistics of the training split.

The split is stratified by class and a function of image names and seed only. The statistics are mean image, mean color
and principal axes of color, from exact integer sums.

Images of one group (a patient, a camera, a video) are never separated. Excluded images are removed last, so that they
move no other image. Splits that a source brings are kept. The test split is taken first, from all images; validation
is taken from the remaining training images. ``all_as_test`` makes a source that is only evaluated.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data.sources.source import Sample, Source
from alexnet.errors import DataError


def cut_groups(
    images: tuple[Sample, ...], classes: int, fraction: float, seed: Sequence[int]
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Split images so that no group is separated.

    Groups are tried in a drawn order. A group is cut if that brings the classes nearer to ``fraction`` and leaves every
    class an image for training.

    Returns:
        The remaining images and the cut images.

    Raises:
        DataError: no group can be cut.
    """
    members = _members(images, seed)
    table = np.zeros((len(members), classes), np.int64)  # [G, K] images of each class in each group
    for number, indices in enumerate(members.values()):
        np.add.at(table[number], [images[index].label for index in indices], 1)
    remaining = table.sum(axis=0)  # [K]
    target = np.array(shares_of(remaining, fraction))  # [K]
    cut: set[int] = set()
    for row, indices in zip(table, members.values(), strict=True):
        nearer = np.abs(target - row).sum() < np.abs(target).sum()
        if nearer and not ((remaining > 0) & (remaining == row)).any():
            target, remaining = target - row, remaining - row
            cut.update(indices)
    if fraction > 0 and not cut and len(images) >= 3:
        problem = f"no group of {len(members)} can be kept apart: too large, or all that a class has"
        raise DataError(problem, "several groups in each class", "group otherwise, or bring splits of your own")
    halves = [tuple(p for index, p in enumerate(images) if (index in cut) == is_cut) for is_cut in (False, True)]
    return halves[0], halves[1]


def _members(images: tuple[Sample, ...], seed: Sequence[int]) -> dict[str, list[int]]:
    """Group → its images, in the order in which groups are tried. An image without a group is one of its own."""
    results: dict[str, list[int]] = {}
    for index, image in enumerate(images):
        results.setdefault(f"g{image.group}" if image.group else f"p{image.origin}", []).append(index)
    names = sorted(results)
    order = np.random.Generator(np.random.PCG64(list(seed))).permutation(len(names))
    return {names[index]: results[names[index]] for index in order}


def shares_of(counts: NDArray[np.int64], fraction: float) -> list[int]:
    """The number of images to cut from each class: largest remainders; at least 1 of 3, and 1 remains for training."""
    exact = counts * fraction
    shares = np.floor(exact).astype(np.int64)
    remainders = exact - shares
    more = round(float(exact.sum())) - int(shares.sum())
    for label in np.argsort(-remainders, kind="stable")[:more]:
        shares[label] += remainders[label] > 0
    if fraction > 0:
        shares = np.where(counts >= 3, np.maximum(shares, 1), shares)
    return [int(share) for share in np.minimum(shares, np.maximum(counts - 1, 0))]


_CUTS = {"test": 0, "validation": 1}  # each cut of each class has a generator of its own


def assign_splits(
    source: Source, *, validation: float, test: float, seed: int, strict: bool = True
) -> dict[str, tuple[Sample, ...]]:
    """The images of train, validation (may be empty) and test, each sorted by origin.

    ``validation`` and ``test`` are fractions in [0, 1) of the images being cut from; ``test`` counts only for an
    unsplit source, ``validation`` only where the source has none. Each class gives its share, rounded up or down so
    that the whole is nearest, at least one if it has three images or more, and always keeps one for training. A train
    split that comes empty stays so. With groups the shares are only near, and a class of one group is in train alone.
    Raises DataError for other fractions and seeds, and, if ``strict``, for a class without a training image where
    there are some.
    """
    for name, fraction in (("validation", validation), ("test", test)):
        if not 0 <= fraction < 1:
            raise DataError(f"{name} fraction {fraction}", "at least 0 and less than 1", "change it")
    if seed < 0:
        raise DataError(f"seed {seed}", "at least 0", "change it")
    source_splits = {name: tuple(sorted(images, key=_by_origin)) for name, images in source.splits.items()}
    splits = _complete_splits(source, source_splits, validation, test, seed)
    splits = {name: source.corrected(images) for name, images in splits.items()}
    splits["train"] = tuple(sorted((*splits["train"], *source.added), key=_by_origin))
    if strict and source_splits.get("train") != ():
        _check_training(source, splits["train"])
    return {name: splits[name] for name in ("train", "validation", "test")}


def all_as_test(source: Source) -> Source:
    """``source`` to be evaluated entirely: all its images are the test split, and train is empty.

    The fingerprint is another one, so that a store of the whole is never taken for a store of the parts.
    """
    images = tuple(chain.from_iterable(source.splits.values()))
    fingerprint = hashlib.sha256(f"whole {source.fingerprint}".encode()).hexdigest()
    return replace(source, splits={"train": (), "test": images}, fingerprint=fingerprint, added=())


def _by_origin(image: Sample) -> tuple[str, int]:
    return image.origin, image.label


def _complete_splits(
    source: Source, source_splits: dict[str, tuple[Sample, ...]], validation: float, test: float, seed: int
) -> dict[str, tuple[Sample, ...]]:
    if set(source_splits) == {"train", "validation", "test"}:
        return source_splits
    if set(source_splits) == {"all"}:
        rest, tested = _cut(source, source_splits["all"], test, seed, "test")
    elif set(source_splits) == {"train", "test"}:
        rest, tested = source_splits["train"], source_splits["test"]
    else:
        must = "all, or train and test, or train, validation and test"
        raise DataError(f"{source.name}: splits {', '.join(source_splits)}", must, "rename them")
    train, validated = _cut(source, rest, validation, seed, "validation")
    return {"train": train, "validation": validated, "test": tested}


def _cut(
    source: Source, images: tuple[Sample, ...], fraction: float, seed: int, name: str
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """The remaining images and the cut images."""
    if any(image.group for image in images):
        return cut_groups(images, len(source.classes), fraction, [seed, _CUTS[name]])
    labels = np.array([image.label for image in images], np.int64)  # [N]
    counts = np.bincount(labels, minlength=len(source.classes))  # [K]
    cut = np.zeros(len(images), bool)
    for label, count in enumerate(shares_of(counts, fraction)):
        draw = np.random.Generator(np.random.PCG64([seed, _CUTS[name], label]))
        members = np.flatnonzero(labels == label) if count else np.zeros(0, np.int64)
        cut[draw.permutation(members)[:count]] = True
    remaining = tuple(image for image, is_cut in zip(images, cut, strict=True) if not is_cut)
    return remaining, tuple(image for image, is_cut in zip(images, cut, strict=True) if is_cut)


def _check_training(source: Source, train: tuple[Sample, ...]) -> None:
    counts = np.bincount([image.label for image in train], minlength=len(source.classes))
    for label, count in enumerate(counts):
        if count == 0:
            total = sum(image.label == label for images in source.splits.values() for image in images)
            problem = f"{source.name}: class {source.classes[label]!r} has {total} images and none for training"
            raise DataError(problem, "at least one", "add images or remove the class")


class PixelStatistics(NamedTuple):
    """Statistics of all pixels of the training split, in gray levels 0..255."""

    mean_image: NDArray[np.float32]  # [S, S, 3]
    channel_means: NDArray[np.float64]  # [3]
    color_std: NDArray[np.float64]  # [3], along the axes, largest first
    color_axes: NDArray[np.float64]  # [3, 3], columns


class Sums:
    """Exact integer sums over images, so that no order, chunk or resumption changes a digit."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.image = np.zeros((size, size, 3), np.int64)
        self.products = np.zeros((3, 3), np.int64)  # below 2^63 for 2·10^9 images of 256 × 256

    def add(self, images: NDArray[np.uint8]) -> "Sums":
        """Count ``images`` [N, S, S, 3] in; S² below 10^11, so that the products are exact in float64."""
        self.count += len(images)
        self.image += images.sum(axis=0, dtype=np.uint16 if len(images) <= 257 else np.int64)  # 257 × 255 < 2^16
        for image in images:  # the numbers of one stay in the cache
            values = image.reshape(-1, 3).astype(np.float64)  # [S·S, 3]
            self.products += (values.T @ values).astype(np.int64)
        return self

    def merge(self, other: "Sums") -> None:
        """Count the images of ``other`` in."""
        self.count += other.count
        self.image += other.image
        self.products += other.products

    def statistics(self) -> PixelStatistics:
        """Means, and the principal axes of color. Over no images: means 0, deviations 0, the axes of RGB."""
        if self.count == 0:
            return PixelStatistics(np.zeros(self.image.shape, np.float32), np.zeros(3), np.zeros(3), np.eye(3))
        pixels = self.count * self.image.shape[0] ** 2
        sums = self.image.sum(axis=(0, 1))  # [3]
        exact = [[pixels * int(self.products[i, j]) - int(sums[i]) * int(sums[j]) for j in range(3)] for i in range(3)]
        deviations, axes = _principal(np.array([[value / pixels**2 for value in row] for row in exact]))
        return PixelStatistics((self.image / self.count).astype(np.float32), sums / pixels, deviations, axes)


def _principal(covariance: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Standard deviations [3], largest first, and axes [3, 3], each with its largest component positive: one answer."""
    variances, axes = np.linalg.eigh(covariance)
    variances, axes = variances[::-1], axes[:, ::-1]
    variances = np.where(variances > 1e-12 * variances[0], variances, 0)  # gray images: one axis, no rounding
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), range(3)])
    return np.sqrt(variances), axes * signs
