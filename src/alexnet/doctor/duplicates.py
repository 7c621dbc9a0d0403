"""Check of duplicates: the same image more than once in one split, in two splits, or with two labels.

Near duplicates are found by a perceptual hash of real numbers and confirmed on the thumbnails. A thumbnail without its
mean color, scaled to unit length, is a point; copies that were resized and encoded again are close to each other. Its
24 lowest luminance frequencies (an orthonormal DCT) never increase a distance, so a k-d tree over them misses no pair
within reach, unlike a binary hash (100,000 images take 22 s). Each pair is then compared on all 24 × 24 × 3 values,
in its mean color, and in the field that differs most.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.doctor.findings import Example, Finding, Severity
from alexnet.doctor.images import SIDE, ImageInfo, Progress, Seen, thumbs_of
from alexnet.errors import counted

REACH = 0.15  # distance of unit thumbnails; 95 % of copies: docs/doctor.md; others: 0.56 at least
REACH_SMALL = 0.03  # of those made from fewer pixels: two different digits of 8 × 8 lie 0.093 apart
COLOR = 8.0  # maximum difference of the mean color, gray levels
SPOT = 48.0  # maximum difference of one of the 24 × 24 fields, gray levels: copies differ a little everywhere
PLAIN = 4.0  # standard deviation below which a thumbnail has no content to compare, gray levels
NEIGHBORS = 16  # that an image is compared with; larger groups are joined through chains of pairs

Pairs = NDArray[np.int64]  # [P, 2], the smaller index first


class _Units(NamedTuple):
    shapes: NDArray[np.float32]  # [N, S·S·3] of unit length
    means: NDArray[np.float32]  # [N, 3]
    contrast: NDArray[np.float32]  # [N] gray levels


def near_duplicates(
    thumbs: NDArray[np.uint8],
    small: NDArray[np.bool_] | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Pairs:
    """The pairs among ``thumbs`` [N, S, S, 3] that show the same image; a crowd is chained.

    ``small`` [N] says which were made from fewer pixels than a thumbnail has: these must be nearer.
    """
    points, contrast = _points(thumbs)
    useful = np.flatnonzero(contrast >= PLAIN)
    if len(useful) < 2:
        return np.zeros((0, 2), np.int64)
    rows = thumbs[useful].reshape(len(useful), -1)
    _, first, same = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    copies = np.stack([first[same.reshape(-1)], np.arange(len(useful))], axis=1)  # equal thumbnails: to their first
    near = first[_neighbors(points[useful[first]], workers, progress)]
    tiny = np.zeros(len(thumbs), bool) if small is None else small
    result = np.concatenate([useful[copies[copies[:, 0] != copies[:, 1]]], _confirmed(thumbs, useful[near], tiny)])
    return np.unique(np.sort(result, axis=1), axis=0)


def frequencies(count: int) -> NDArray[np.float64]:
    """The first ``count`` rows of the orthonormal DCT-II of SIDE points: [count, SIDE]."""
    k = np.arange(SIDE)
    table = np.cos(np.pi * (2 * k[None, :] + 1) * k[:count, None] / (2 * SIDE)) * np.sqrt(2 / SIDE)
    table[0] /= np.sqrt(2)
    return np.asarray(table)


def unit(thumbs: NDArray[np.uint8]) -> _Units:
    """Thumbnails [N, S, S, 3] without mean color and contrast, and these two."""
    values = thumbs.astype(np.float32)
    means = values.mean(axis=(1, 2))  # [N, 3]
    values -= means[:, None, None]
    contrast = np.sqrt((values**2).mean(axis=(1, 2, 3)))  # [N]
    size = np.float32(np.sqrt(3) * SIDE)
    flat = values.reshape(len(values), 3 * SIDE * SIDE)
    return _Units(flat / np.maximum(contrast * size, 1e-6)[:, None], means, contrast)


def _points(thumbs: NDArray[np.uint8], part: int = 1024) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """([N, 24] low frequencies, [N] contrast), a part at a time: all thumbnails as floats would fill the memory."""
    table = frequencies(5).astype(np.float32)
    points, contrasts = [np.zeros((0, 24), np.float32)], [np.zeros(0, np.float32)]
    for start in range(0, len(thumbs), part):
        shapes, _, contrast = unit(thumbs[start : start + part])
        gray = shapes.reshape(-1, SIDE, SIDE, 3).sum(axis=3) / np.float32(np.sqrt(3))  # [n, S, S] onto (1, 1, 1)/√3
        points.append((table @ gray @ table.T).reshape(len(gray), 25)[:, 1:])  # without the mean, which is zero
        contrasts.append(contrast)
    return np.concatenate(points), np.concatenate(contrasts)


def _neighbors(points: NDArray[np.float32], workers: int, progress: Progress | None = None, part: int = 4096) -> Pairs:
    from scipy.spatial import cKDTree  # comes with scikit-learn

    count = min(NEIGHBORS + 1, len(points))
    if count < 2:
        return np.zeros((0, 2), np.int64)
    tree, parts = cKDTree(points), []
    for start in range(0, len(points), part):
        reach, near = tree.query(points[start : start + part], k=count, distance_upper_bound=REACH, workers=workers)
        row, column = np.nonzero(np.isfinite(reach))
        parts.append(np.stack([start + row, near[row, column]], axis=1).astype(np.int64))
        if progress is not None:
            progress(min(start + part, len(points)), len(points))
    pairs = np.concatenate(parts)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _confirmed(thumbs: NDArray[np.uint8], pairs: Pairs, small: NDArray[np.bool_], part: int = 1024) -> Pairs:
    """Those of ``pairs`` that are alike in everything that a thumbnail shows."""
    kept = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(pairs), part):
        own = pairs[start : start + part]
        a, b = unit(thumbs[own[:, 0]]), unit(thumbs[own[:, 1]])
        far = np.linalg.norm(a.shapes - b.shapes, axis=1)
        color = np.abs(a.means - b.means).max(axis=1)
        spot = np.abs(thumbs[own[:, 0]].astype(np.int16) - thumbs[own[:, 1]]).max(axis=(1, 2, 3))
        reach = np.where(small[own].any(axis=1), REACH_SMALL, REACH)
        kept.append(own[(far <= reach) & (color <= COLOR) & (spot <= SPOT)])
    return np.concatenate(kept)


_KEPT_FIRST = {"test": 0, "validation": 1, "train": 2}  # the copy in the smallest split is kept


def check_duplicates(seen: Seen, crowds: list[list[ImageInfo]]) -> Iterator[Finding]:
    """Findings about copies, which ``crowds`` are: byte-identical by SHA-256, near-identical by what they show."""
    two_labels = [own for own in crowds if len({look.image.label for look in own}) > 1]
    rest = [own for own in crowds if len({look.image.label for look in own}) == 1]
    across = [own for own in rest if len({look.split for look in own}) > 1]
    cut = [own for own in across if seen.validation_drawn and {look.split for look in own} == {"train", "validation"}]
    leaks = [own for own in across if own not in cut]
    if two_labels:
        what = f"{_images(two_labels)} with two labels: at least one label of each group is wrong"
        todo = "keep the copy with the correct label and remove the others; the exclusion list removes all copies"
        yield _finding("two-labels", "error", what, todo, seen, two_labels, keep=False)
    todo = "exclude the copies: alexnet doctor DATA --exclude-list LIST, then train DATA --exclude LIST"
    if leaks:
        as_drawn = ", as training would draw them" if seen.drawn else ""
        what = f"{_images(leaks)} in two splits{as_drawn}: test accuracy will be too high"
        yield _finding("leak", "error", what, todo, seen, leaks)
    if cut:
        what = f"{_images(cut)} both in train and in validation, which training would cut from train: "
        what += "validation accuracy will be too high"
        yield _finding("leak-validation", "warning", what, todo, seen, cut)
    yield from _within(seen, [own for own in rest if own not in across])


def same_images(looks: list[ImageInfo], workers: int = 1, progress: Progress | None = None) -> list[list[ImageInfo]]:
    """Crowds of two or more looks at one image."""
    up = list(range(len(looks)))  # a forest: each look points towards the one that stands for its crowd

    def top(index: int) -> int:
        while up[index] != index:
            up[index] = up[up[index]]
            index = up[index]
        return index

    first: dict[str, int] = {}
    pairs = [(first.setdefault(look.sha256, index), index) for index, look in enumerate(looks)]
    small = np.array([min(look.width, look.height) < SIDE for look in looks], bool)
    pairs += [(int(a), int(b)) for a, b in near_duplicates(thumbs_of(looks), small, workers, progress)]
    for a, b in pairs:
        up[max(top(a), top(b))] = min(top(a), top(b))
    crowds: dict[int, list[ImageInfo]] = defaultdict(list)
    for index, look in enumerate(looks):
        crowds[top(index)].append(look)
    return [own for own in crowds.values() if len(own) > 1]


def _within(seen: Seen, crowds: list[list[ImageInfo]]) -> Iterator[Finding]:
    exact = [own for own in crowds if len({look.sha256 for look in own}) == 1]
    near = [own for own in crowds if len({look.sha256 for look in own}) > 1]
    if exact:
        todo = "exclude the copies: they count twice"
        yield _finding("duplicate", "warning", f"{_images(exact)} in one split", todo, seen, exact)
    if near:
        todo = "exclude the copies" + (": another seed may put them in two splits" if seen.drawn else "")
        yield _finding("near-duplicate", "warning", f"{_images(near)} in one split", todo, seen, near)


def _finding(
    check: str, severity: Severity, what: str, todo: str, seen: Seen, crowds: list[list[ImageInfo]], keep: bool = True
) -> Finding:
    ordered = [sorted(own, key=lambda look: _KEPT_FIRST[look.split]) for own in crowds]
    examples = tuple(Example(tuple(look.origin for look in own), _why(seen, own)) for own in ordered)
    exclude = tuple(look.origin for own in ordered for look in own[1 if keep else 0 :])
    images, identical = sum(map(len, crowds)), sum(map(_identical, crowds))
    numbers = {"groups": len(crowds), "images": images, "byte_identical": identical}
    numbers["near_identical"] = images - identical
    return Finding(check, severity, what, todo, examples, exclude, numbers)


def _why(seen: Seen, own: list[ImageInfo]) -> str:
    kind = "byte-identical" if len({look.sha256 for look in own}) == 1 else "near-identical"
    places = " and ".join(dict.fromkeys(f"{seen.classes[look.image.label]} in {look.split}" for look in own))
    return f"{kind}: {places}"


def _identical(own: list[ImageInfo]) -> int:
    """How many images of a crowd have the bytes of another one in it."""
    counts = Counter(look.sha256 for look in own)
    return sum(count for count in counts.values() if count > 1)


def _images(crowds: list[list[ImageInfo]]) -> str:
    """How many images, in how many groups of copies, and of which kind."""
    images, identical = sum(map(len, crowds)), sum(map(_identical, crowds))
    kinds = [f"{identical:,} byte-identical"] * bool(identical)
    kinds += [f"{images - identical:,} near-identical"] * (images > identical)
    return f"{images:,} images ({counted(len(crowds), 'group')} of copies: {', '.join(kinds)})"


def crowd_numbers(
    looks: list[ImageInfo], crowds: list[list[ImageInfo]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """For each look the number of its crowd, its own where it has none: [N]."""
    number = {id(look): len(looks) + index for index, own in enumerate(crowds) for look in own}
    return np.array([number.get(id(look), index) for index, look in enumerate(looks)], np.int64)
