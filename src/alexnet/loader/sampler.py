"""The order of the images in an epoch, and their random numbers.

All are pure functions of (seed, epoch) or (seed, epoch, image index). Nothing has a state, so the number of workers or
processes and restarts do not change a run.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Odd constants of SplitMix64 (Steele, Lea, Flood 2014): increment and the two multipliers of its finalizer.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of ``range(count)``: the order of the images in an epoch."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(count).astype(np.int64)


def balanced_order(labels: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch in which each class comes equally often, to within one image.

    An epoch has as many draws as there are images, N. Within a class, no image is drawn more than once more often than
    another. The second draw of image i has the number i + N, its third i + 2·N, so that each has another crop.

    Args:
        labels: int64 [N], the class of each image.

    Returns:
        int64 [N], the numbers of the draws.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 1]))
    count, classes = len(labels), np.unique(labels)
    if not count:
        return np.zeros(0, np.int64)
    class_counts = np.full(len(classes), count // len(classes))
    class_counts[generator.permutation(len(classes))[: count % len(classes)]] += 1
    parts = []
    for label, draws in zip(classes, class_counts.tolist(), strict=True):
        members = generator.permutation(np.flatnonzero(labels == label))
        rounds, rest = divmod(draws, len(members))
        parts += [members + count * round_number for round_number in range(rounds)] + [members[:rest] + count * rounds]
    return generator.permutation(np.concatenate(parts)).astype(np.int64)


def windowed_order(counts: Sequence[int], seed: int, epoch: int, window: int) -> NDArray[np.int64]:
    """The order of an epoch that uses only about ``window`` shards at a time.

    Shards follow each other in a drawn order, one unit of time each. The images of the shard at position j get times
    that are spread evenly at random over ``window`` units around j + 1/2, reflected at the ends of the epoch. Images
    come in the order of their times. So ``window`` shards are mixed evenly at each moment, half as many at the ends.
    An image's time depends on (seed, epoch, image index) and its shard's position alone.

    Args:
        counts: images in each shard, [M].
        window: shards in use; with M or more the result is ``epoch_order``.

    Returns:
        int64 [N], image indices.
    """
    shards = len(counts)
    if window >= shards:
        return epoch_order(sum(counts), seed, epoch)
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 2]))
    positions = np.empty(shards)
    positions[generator.permutation(shards)] = np.arange(shards)
    images = np.arange(sum(counts), dtype=np.int64)
    draws = uniforms(step_seed(seed, epoch, stream=4), epoch, images, 1)[:, 0]  # [n]
    times = np.repeat(positions, counts) + 0.5 + window * (draws - 0.5)
    times = np.abs(times)
    times = np.where(times > shards, 2 * shards - times, times)
    return np.argsort(times, kind="stable").astype(np.int64)


def batches(order: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Split ``order`` into batches. The last one may be smaller."""
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def uniforms(seed: int, epoch: int, indices: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """Random numbers in [0, 1) for each image: [N] -> [N, draws], from (seed, epoch, image index) alone.

    The generator is counter-based: each number is a hash of its coordinates (SplitMix64's finalizer, applied after each
    word of the key). An image's numbers do not depend on other images.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is intended
        key = _mix(_mix(np.uint64(seed)) + np.uint64(epoch))
        rows = _mix(key + indices.astype(np.uint64))  # [N]
        columns = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
        bits = _mix(rows[:, None] + columns[None, :])  # [N, draws]
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    x = np.asarray(x) + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX_A
    x = (x ^ (x >> np.uint64(27))) * _MIX_B
    return np.asarray(x ^ (x >> np.uint64(31)))


def normals(uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard normal numbers from pairs of uniform ones (Box and Muller 1958): [N, 2n] -> [N, n]."""
    first, second = uniform[:, 0::2], uniform[:, 1::2]
    results: NDArray[np.float64] = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)
    return results


def step_seed(seed: int, step: int, stream: int = 0) -> int:
    """A 63-bit seed for the random numbers of one step (dropout masks, mixup), from (seed, step, stream) alone."""
    with np.errstate(over="ignore"):
        return int(_mix(_mix(_mix(np.uint64(seed)) + np.uint64(step)) + np.uint64(stream))) >> 1
