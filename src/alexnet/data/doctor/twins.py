"""Which pictures are the same picture: found by a perceptual hash of real numbers, confirmed on the thumbnails.

A thumbnail without its mean color, scaled to unit length, is a point; copies that were resized and encoded again lie
near each other. Its 24 lowest luminance frequencies (an orthonormal DCT) never make a distance larger, so a k-d tree
over them misses no pair within reach, as a hash of bits with its flips would (100,000 pictures: 22 s). Each pair is
then compared on all 24 × 24 × 3 numbers, in its mean color and in its worst spot.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data.doctor.looking import SIDE, Progress

REACH = 0.15  # distance of unit thumbnails; 95 % of copies: docs/doctor.md; others: 0.56 at least
REACH_SMALL = 0.03  # of those made from fewer pixels: two different digits of 8 × 8 lie 0.093 apart
COLOR = 8.0  # gray levels that the mean color may differ by
SPOT = 48.0  # gray levels that one of the 24 × 24 fields may differ by: copies differ a little everywhere
PLAIN = 4.0  # gray levels of deviation below which a thumbnail shows nothing that two pictures could share
NEIGHBORS = 16  # that a picture is compared with; larger crowds are joined through each other

Pairs = NDArray[np.int64]  # [P, 2], the smaller index first


class _Units(NamedTuple):
    shapes: NDArray[np.float32]  # [N, S·S·3] of unit length
    means: NDArray[np.float32]  # [N, 3]
    contrast: NDArray[np.float32]  # [N] gray levels


def twins(
    thumbs: NDArray[np.uint8], small: NDArray[np.bool_] | None = None, workers: int = 1,
    progress: Progress | None = None,
) -> Pairs:  # fmt: skip
    """The pairs among ``thumbs`` [N, S, S, 3] that show the same picture; a crowd is chained.

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
    found = np.concatenate([useful[copies[copies[:, 0] != copies[:, 1]]], _confirmed(thumbs, useful[near], tiny)])
    return np.unique(np.sort(found, axis=1), axis=0)


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
