"""Weights that share values: k-means in one dimension, begun at equal steps from the least to the largest weight.

That start keeps the large weights, which are few and matter most (Han, Mao and Dally 2016, section 3.2). In one
dimension a cluster is an interval, so sums over the sorted weights give each round in k steps, whatever their number.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
ROUNDS = 300  # most; converges after fewer unless thousands of weights lie on a border


def kmeans(values: Floats, k: int) -> Floats:
    """At most ``k`` centers of ``values`` [n], ascending, none of them 0; fewer where clusters stay empty."""
    if not len(values):
        return np.zeros(0, np.float32)
    ordered = np.sort(values).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centers = np.linspace(ordered[0], ordered[-1], k)
    for _ in range(ROUNDS):
        before = centers
        counts, totals = _members(ordered, sums, centers)
        centers = np.where(counts > 0, totals / np.maximum(counts, 1), centers)
        if np.array_equal(before, centers):
            break
    counts, _ = _members(ordered, sums, centers)
    found = np.unique(centers[counts > 0].astype(np.float32))
    found[found == 0] = np.finfo(np.float32).tiny  # 0 means: pruned
    return found


def nearest(values: Floats, centers: Floats) -> NDArray[np.int64]:
    """Which of the ascending ``centers`` each value is nearest to: [n]. In the middle: the lower one."""
    between = (centers[1:].astype(np.float64) + centers[:-1]) / 2
    return np.searchsorted(between, values.astype(np.float64))


def share(values: Floats, bits: int) -> Floats:
    """``values`` of any shape with each weight that is not 0 replaced by the nearest of at most 2^``bits`` centers."""
    flat = np.array(values, np.float32).reshape(-1)  # a copy
    alive = np.flatnonzero(flat)
    centers = kmeans(flat[alive], 2**bits)
    flat[alive] = centers[nearest(flat[alive], centers)] if len(alive) else flat[alive]
    return flat.reshape(values.shape)


def _members(
    ordered: NDArray[np.float64], sums: NDArray[np.float64], centers: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How many weights each center has, and their sum: [k] and [k]."""
    inner = np.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2, side="right")
    ends = np.concatenate([[0], inner, [len(ordered)]])
    return np.diff(ends), np.diff(sums[ends])
