"""Check of duplicates: the same image more than once in one split, in two splits, or with two labels.

Near duplicates are found by a perceptual hash of real numbers and confirmed on the thumbnails. A thumbnail without its
mean color, scaled to unit length, is a point; copies that were resized and encoded again are close to each other. Its
24 lowest luminance frequencies (an orthonormal DCT) never increase a distance, so a search for the neighbors in them
misses no pair within reach, unlike a binary hash. Each pair is then compared on all 24 × 24 × 3 values,
in its mean color, and in the field that differs most.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.doctor.findings import Example, Finding, Severity
from alexnet.doctor.images import THUMBNAIL_SIZE, ImageDataset, ImageInfo, Thumbnails
from alexnet.errors import counted
from alexnet.terminal import Progress

MAX_DISTANCE = 0.15  # between unit thumbnails: holds for 95 % of copies (docs/doctor.md); other images: at least 0.56
MAX_DISTANCE_SMALL = 0.03  # for images smaller than a thumbnail: two different digits of 8 × 8 have a distance of 0.093
MAX_COLOR_DIFF = 8.0  # maximum difference of the mean color, gray levels
MAX_PIXEL_DIFF = 48.0  # maximum difference of one of the 24 × 24 pixels, gray levels: copies differ little everywhere
MIN_CONTRAST = 4.0  # standard deviation below which a thumbnail has no content to compare, gray levels
NEIGHBORS = 16  # neighbors that an image is compared with; chains of pairs join larger groups

_REACH = 1.001 * MAX_DISTANCE  # of the search: its distances are rounded

Pairs = NDArray[np.int64]  # [P, 2], the smaller index first


class _UnitVectors(NamedTuple):
    shapes: NDArray[np.float32]  # [N, S·S·3] of unit length
    means: NDArray[np.float32]  # [N, 3]
    contrast: NDArray[np.float32]  # [N] gray levels


def near_duplicates(
    thumbnails: NDArray[np.uint8] | Thumbnails,
    small: NDArray[np.bool_] | None = None,
    progress: Progress | None = None,
) -> Pairs:
    """Find the pairs of thumbnails that show the same image. Many copies of one image form a chain of pairs.

    Args:
        thumbnails: uint8 [N, S, S, 3].
        small: [N], which images have fewer pixels than a thumbnail. Their distance must be smaller. None: none.

    Returns:
        int64 [P, 2], the smaller index first.
    """
    points, contrast = _points(thumbnails)
    useful = np.flatnonzero(contrast >= MIN_CONTRAST)
    if len(useful) < 2:
        return np.zeros((0, 2), np.int64)
    _, first, same = np.unique(_digests(thumbnails, useful), axis=0, return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[same.reshape(-1)] != np.arange(len(useful)))
    identical = np.stack([first[same.reshape(-1)[copies]], copies], axis=1)  # equal thumbnails: to their first
    del same, copies, contrast  # arrays of the length of the data set
    first.sort()
    for start in range(0, len(first), 1024):  # in place, since a copy would have as many bytes again
        rows = useful[first[start : start + 1024]]  # never before the rows that they replace
        points[start : start + len(rows)] = points[rows]
    near = first[_neighbors(points[: len(first)], progress)]
    tiny = np.zeros(len(thumbnails), bool) if small is None else small
    result = np.concatenate([useful[identical], _confirmed(thumbnails, useful[near], tiny)])
    return np.unique(np.sort(result, axis=1), axis=0)


def _digests(
    thumbnails: NDArray[np.uint8] | Thumbnails, useful: NDArray[np.int64], batch_size: int = 1024
) -> NDArray[np.uint64]:
    """A digest of 128 bits of each useful thumbnail: [U, 2]. Sorting the thumbnails themselves would copy them."""
    digests = bytearray()
    for start in range(0, len(useful), batch_size):
        for thumbnail in thumbnails[useful[start : start + batch_size]]:
            digests += hashlib.blake2b(thumbnail.tobytes(), digest_size=16).digest()
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def frequencies(count: int) -> NDArray[np.float64]:
    """The first ``count`` rows of the orthonormal DCT-II of SIDE points: [count, SIDE]."""
    k = np.arange(THUMBNAIL_SIZE)
    table = np.cos(np.pi * (2 * k[None, :] + 1) * k[:count, None] / (2 * THUMBNAIL_SIZE)) * np.sqrt(2 / THUMBNAIL_SIZE)
    table[0] /= np.sqrt(2)
    return np.asarray(table)


def unit(thumbnails: NDArray[np.uint8]) -> _UnitVectors:
    """Thumbnails uint8 [N, S, S, 3] as unit vectors without their mean color, and their mean colors and contrasts."""
    values = thumbnails.astype(np.float32)
    means = values.mean(axis=(1, 2))  # [N, 3]
    values -= means[:, None, None]
    contrast = np.sqrt((values**2).mean(axis=(1, 2, 3)))  # [N]
    size = np.float32(np.sqrt(3) * THUMBNAIL_SIZE)
    flat = values.reshape(len(values), 3 * THUMBNAIL_SIZE * THUMBNAIL_SIZE)
    return _UnitVectors(flat / np.maximum(contrast * size, 1e-6)[:, None], means, contrast)


def _points(
    thumbnails: NDArray[np.uint8] | Thumbnails, batch_size: int = 1024
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Low frequencies [N, 24] and contrasts [N], computed in batches to limit memory."""
    table = frequencies(5).astype(np.float32)
    points, contrasts = np.zeros((len(thumbnails), 24), np.float32), np.zeros(len(thumbnails), np.float32)
    for start in range(0, len(thumbnails), batch_size):
        shapes, _, contrast = unit(thumbnails[start : start + batch_size])
        gray = shapes.reshape(-1, THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3).sum(axis=3) / np.float32(
            np.sqrt(3)
        )  # [n, S, S] onto (1, 1, 1)/√3
        end = start + len(gray)
        points[start:end] = (table @ gray @ table.T).reshape(len(gray), 25)[:, 1:]  # without the mean, which is zero
        contrasts[start:end] = contrast
    return points, contrasts


def _neighbors(points: NDArray[np.float32], progress: Progress | None = None) -> Pairs:
    """The pairs of points within MAX_DISTANCE: of each point, the NEIGHBORS nearest ones."""
    pairs, done = [np.zeros((0, 2), np.int64)], 0
    everything = np.arange(len(points), dtype=np.int32)  # of which a part of each level is in memory at a time
    for part, within in _parts(points, everything, everything):
        pairs.append(_nearest(points, part, within))
        done += len(part)
        if progress is not None:
            progress(done, len(points))
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)


def _parts(
    points: NDArray[np.float32], part: NDArray[np.int32], within: NDArray[np.int32], most: int = 512
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Parts of ``part`` of at most ``most`` points, halved along their widest axis; with each, the points of ``within``
    that are within reach of its box along these axes."""
    if len(part) <= most:
        if len(part):
            yield part, within
        return
    axis = int(np.argmax([points[part, axis].std() for axis in range(points.shape[1])]))
    half = np.argpartition(points[part, axis], len(part) // 2)
    for indices in (half[: len(part) // 2], half[len(part) // 2 :]):
        own, others = points[part[indices], axis], points[within, axis]
        near = (others >= own.min() - _REACH) & (others <= own.max() + _REACH)
        yield from _parts(points, part[indices], within[near], most)


def _nearest(
    points: NDArray[np.float32], part: NDArray[np.int32], within: NDArray[np.int32], block: int = 2048
) -> Pairs:
    """Of each point of ``part``, the pairs with the NEIGHBORS nearest points of ``within`` in MAX_DISTANCE.

    One multiplication gives the squares of all distances, |a|² + |b|² - 2ab. A k-d tree takes hours for a million
    images whose axes have the same spread.
    """
    own, limit = points[part], np.float32(_REACH**2)
    left = np.column_stack([own, (own**2).sum(axis=1), np.ones_like(own[:, 0])])
    rows, columns, squares = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    for start in range(0, len(within), block):
        others = points[within[start : start + block]]
        table = left @ np.column_stack([-2 * others, np.ones_like(others[:, 0]), (others**2).sum(axis=1)]).T
        row, column = np.divmod(np.flatnonzero(table <= limit), len(others))  # nonzero is slow in two dimensions
        other = within[start + column] != part[row]  # a point is no neighbor of its own
        row, column = row[other], column[other]
        if not len(row):
            continue
        rows, columns = np.concatenate([rows, row]), np.concatenate([columns, within[start + column]])
        squares = np.concatenate([squares, table[row, column]])
        order = np.lexsort((squares, rows))
        rank = np.arange(len(rows)) - np.searchsorted(rows[order], rows[order])  # by distance from the row's point
        kept = order[rank < NEIGHBORS]  # the nearest only, so that a crowd of copies takes no memory
        rows, columns, squares = rows[kept], columns[kept], squares[kept]
    return np.stack([part[rows], columns], axis=1)


def _confirmed(
    thumbnails: NDArray[np.uint8] | Thumbnails, pairs: Pairs, small: NDArray[np.bool_], batch_size: int = 1024
) -> Pairs:
    """The pairs whose thumbnails agree in shape, mean color and every pixel."""
    confirmed = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        left, right = thumbnails[batch[:, 0]], thumbnails[batch[:, 1]]
        a, b = unit(left), unit(right)
        distance = np.linalg.norm(a.shapes - b.shapes, axis=1)
        color_diff = np.abs(a.means - b.means).max(axis=1)
        pixel_diff = np.abs(left.astype(np.int16) - right).max(axis=(1, 2, 3))
        limit = np.where(small[batch].any(axis=1), MAX_DISTANCE_SMALL, MAX_DISTANCE)
        confirmed.append(batch[(distance <= limit) & (color_diff <= MAX_COLOR_DIFF) & (pixel_diff <= MAX_PIXEL_DIFF)])
    return np.concatenate(confirmed)


_KEPT_FIRST = {"test": 0, "validation": 1, "train": 2}  # the copy in the smallest split is kept


def check_duplicates(dataset: ImageDataset, duplicate_sets: list[list[ImageInfo]]) -> Iterator[Finding]:
    """Findings about duplicates: byte-identical by SHA-256, near-identical by their thumbnails."""
    two_labels = [copies for copies in duplicate_sets if len({info.sample.label for info in copies}) > 1]
    rest = [copies for copies in duplicate_sets if len({info.sample.label for info in copies}) == 1]
    across = [copies for copies in rest if len({info.split for info in copies}) > 1]
    drawn_leaks = [
        copies
        for copies in across
        if dataset.validation_drawn and {info.split for info in copies} == {"train", "validation"}
    ]
    leaks = [copies for copies in across if copies not in drawn_leaks]
    if two_labels:
        what = f"{_images(two_labels)} with two labels: at least one label of each group is wrong"
        todo = "keep the copy with the correct label and remove the others; the exclusion list removes all copies"
        yield _finding("two-labels", "error", what, todo, dataset, two_labels, keep=False)
    todo = "exclude the copies: alexnet doctor DATA --exclude-list LIST, then train DATA --exclude LIST"
    if leaks:
        as_drawn = ", as training would draw them" if dataset.drawn else ""
        what = f"{_images(leaks)} in two splits{as_drawn}: test accuracy will be too high"
        yield _finding("leak", "error", what, todo, dataset, leaks)
    if drawn_leaks:
        what = f"{_images(drawn_leaks)} both in train and in validation, which training would cut from train: "
        what += "validation accuracy will be too high"
        yield _finding("leak-validation", "warning", what, todo, dataset, drawn_leaks)
    yield from _within(dataset, [copies for copies in rest if copies not in across])


def find_duplicates(infos: list[ImageInfo], progress: Progress | None = None) -> list[list[ImageInfo]]:
    """Sets of two or more images that show the same, as lists in the order of ``infos``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(infos)
    if not count:
        return []
    digests = np.fromiter((info.digest for info in infos), "S32", count)
    _, first, same = np.unique(digests, return_index=True, return_inverse=True)
    identical = np.stack([first[same], np.arange(count)])  # [2, N]: equal bytes, to the first image with them
    del digests, first, same  # arrays of the length of the data set
    small = np.array([min(info.width, info.height) < THUMBNAIL_SIZE for info in infos], bool)
    pairs = np.concatenate([identical, near_duplicates(Thumbnails(infos), small, progress).T], axis=1)
    _, number = connected_components(coo_array((np.ones(pairs.shape[1], bool), pairs), (count, count)), directed=False)
    several = np.bincount(number) > 1
    duplicate_sets: dict[int, list[ImageInfo]] = defaultdict(list)
    for index in np.flatnonzero(several[number]).tolist():
        duplicate_sets[int(number[index])].append(infos[index])
    return list(duplicate_sets.values())


def _within(dataset: ImageDataset, duplicate_sets: list[list[ImageInfo]]) -> Iterator[Finding]:
    exact = [copies for copies in duplicate_sets if len({info.sha256 for info in copies}) == 1]
    near = [copies for copies in duplicate_sets if len({info.sha256 for info in copies}) > 1]
    if exact:
        todo = "exclude the copies: such an image counts more than once"
        yield _finding("duplicate", "warning", f"{_images(exact)} in one split", todo, dataset, exact)
    if near:
        todo = "exclude the copies" + (": another seed may put them in two splits" if dataset.drawn else "")
        yield _finding("near-duplicate", "warning", f"{_images(near)} in one split", todo, dataset, near)


def _finding(
    check: str,
    severity: Severity,
    what: str,
    todo: str,
    dataset: ImageDataset,
    duplicate_sets: list[list[ImageInfo]],
    keep: bool = True,
) -> Finding:
    ordered = [sorted(copies, key=lambda info: _KEPT_FIRST[info.split]) for copies in duplicate_sets]
    examples = tuple(Example(tuple(info.origin for info in copies), _why(dataset, copies)) for copies in ordered)
    exclude = tuple(info.origin for copies in ordered for info in copies[1 if keep else 0 :])
    images, identical = sum(map(len, duplicate_sets)), sum(map(_identical, duplicate_sets))
    numbers = {"groups": len(duplicate_sets), "images": images, "byte_identical": identical}
    numbers["near_identical"] = images - identical
    return Finding(check, severity, what, todo, examples, exclude, numbers)


def _why(dataset: ImageDataset, copies: list[ImageInfo]) -> str:
    kind = "byte-identical" if len({info.sha256 for info in copies}) == 1 else "near-identical"
    places = " and ".join(dict.fromkeys(f"{dataset.classes[info.sample.label]} in {info.split}" for info in copies))
    return f"{kind}: {places}"


def _identical(copies: list[ImageInfo]) -> int:
    """The number of images in a set that have the bytes of another image in it."""
    counts = Counter(info.sha256 for info in copies)
    return sum(count for count in counts.values() if count > 1)


def _images(duplicate_sets: list[list[ImageInfo]]) -> str:
    """The numbers of images, groups and kinds of copies, as text."""
    images, identical = sum(map(len, duplicate_sets)), sum(map(_identical, duplicate_sets))
    kinds = [f"{identical:,} byte-identical"] * bool(identical)
    kinds += [f"{images - identical:,} near-identical"] * (images > identical)
    return f"{images:,} images ({counted(len(duplicate_sets), 'group')} of copies: {', '.join(kinds)})"


def duplicate_ids(
    infos: list[ImageInfo], duplicate_sets: list[list[ImageInfo]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The number of each image's set of duplicates [N]; an image without copies has its own number."""
    number = {id(info): len(infos) + index for index, copies in enumerate(duplicate_sets) for info in copies}
    return np.array([number.get(id(info), index) for index, info in enumerate(infos)], np.int64)
