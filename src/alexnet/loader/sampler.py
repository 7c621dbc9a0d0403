"""Which image comes when, and its random numbers: pure functions of (seed, epoch) and (seed, epoch, image index).

Nothing here has a state, so the number of workers, processes or restarts can not change a run.
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
    """As many places as there are images, each class equally often, as nearly as it divides: a pure function too.

    Within a class no image comes once more than another: rare ones come again, of frequent ones some wait for another
    epoch. An image's second place is numbered index + N, its third index + 2·N: other numbers, so other crops.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 1]))
    count, classes = len(labels), np.unique(labels)
    if not count:
        return np.zeros(0, np.int64)
    places = np.full(len(classes), count // len(classes))
    places[generator.permutation(len(classes))[: count % len(classes)]] += 1
    drawn = []
    for label, wanted in zip(classes, places.tolist(), strict=True):
        members = generator.permutation(np.flatnonzero(labels == label))
        rounds, rest = divmod(wanted, len(members))
        drawn += [members + count * again for again in range(rounds)] + [members[:rest] + count * rounds]
    return generator.permutation(np.concatenate(drawn)).astype(np.int64)


def windowed_order(counts: Sequence[int], seed: int, epoch: int, window: int) -> NDArray[np.int64]:
    """The order of an epoch that has only about ``window`` shards in use at a time; ``counts`` [M] images in each.

    Shards follow each other in a drawn order, a unit of time each. The images of the shard at place j have times
    spread evenly and at random over ``window`` units about j + 1/2, turned back at the ends of the epoch, and come in
    the order of their times. So each moment mixes ``window`` shards evenly, at the ends half as many. A pure function:
    an image's time depends on (seed, epoch, its number) and its shard's place. With a window of M or more it is
    ``epoch_order``.
    """
    shards = len(counts)
    if window >= shards:
        return epoch_order(sum(counts), seed, epoch)
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 2]))
    place = np.empty(shards)
    place[generator.permutation(shards)] = np.arange(shards)
    images = np.arange(sum(counts), dtype=np.int64)
    drawn = uniforms(step_seed(seed, epoch, stream=4), epoch, images, 1)[:, 0]  # [n]
    times = np.repeat(place, counts) + 0.5 + window * (drawn - 0.5)
    times = np.abs(times)
    times = np.where(times > shards, 2 * shards - times, times)
    return np.argsort(times, kind="stable").astype(np.int64)


def batches(order: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """The order cut into batches; the last one is smaller where the count does not divide. Every image once."""
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def uniforms(seed: int, epoch: int, indices: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """Random numbers in [0, 1) for each image: [N] -> [N, draws], from (seed, epoch, image index) alone.

    A counter-based generator: each number is a hash (SplitMix64's finalizer, applied after each word of the key) of
    its coordinates, so any image's numbers can be had without any other's.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
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
    """Uniform numbers in pairs -> standard normal ones (Box and Muller 1958): [N, 2n] -> [N, n]."""
    first, second = uniform[:, 0::2], uniform[:, 1::2]
    drawn: NDArray[np.float64] = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)
    return drawn


def step_seed(seed: int, step: int, stream: int = 0) -> int:
    """A 63-bit seed for what is drawn anew in every step (dropout masks, mixing), from (seed, step, stream)."""
    with np.errstate(over="ignore"):
        return int(_mix(_mix(_mix(np.uint64(seed)) + np.uint64(step)) + np.uint64(stream))) >> 1
