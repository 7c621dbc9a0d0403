"""The runner-up learns: codebooks and machines from training pictures, choices by validation pictures, nothing by test.

Pictures are described many at once, a thread a core, and their Fisher vectors wait on disk as 16-bit numbers: of what
grows with the data set, memory holds a table of inner products.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from alexnet.data.store import Split, Store
from alexnet.errors import DataError
from alexnet.history.fisher import margin
from alexnet.history.fisher.classifier import Encoder, FisherClassifier, Settings
from alexnet.history.fisher.descriptors import Local, describe, middle
from alexnet.history.fisher.mixture import Codebook, learn

WITNESSES = 1000  # training pictures at most, from which axes and mixtures are learned
CHUNK = 64  # pictures in memory at once

Say = Callable[[str], None]
T = TypeVar("T")


class Learned(NamedTuple):
    """A classifier, its error on validation, what was tried there ((regions, C) -> error), seconds by step."""

    classifier: FisherClassifier
    validation_error: float
    tried: dict[str, float]
    seconds: dict[str, float]


def train(store: Store, settings: Settings, folder: Path, seed: int = 0, say: Say = lambda _: None) -> Learned:
    """Learn from the store's train split, choose pyramid and C by its validation split. ``folder`` is for what waits.

    Raises :class:`DataError` where OpenCV is missing, or a split.
    """
    clock = _Clock(say)
    train, validation = usable(store.split("train"), seed), np.arange(len(store.split("validation")))
    for name in ("train", "validation"):
        if not len(store.split(name)):
            raise DataError(f"store {store.path} has no {name} split", "one", "prepare another")
    encoder = codebooks(store.split("train"), settings, seed)
    clock.step("axes and mixtures")
    with _waiting(folder) as place:
        vectors = encode(encoder, store.split("train"), train, place / "train.npy")
        others = encode(encoder, store.split("validation"), validation, place / "validation.npy")
        clock.step("Fisher vectors")
        labels = store.split("train").labels[train]
        truths = store.split("validation").labels
        own, across = margin.products(vectors, vectors), margin.products(others, vectors)
        clock.step("inner products")
        found = _choose(own, across, labels, truths, len(store.classes), settings)
        weights = margin.weights(found.counts, vectors, found.used)
        clock.step("linear classifiers")
    classifier = FisherClassifier(
        encoder, store.classes, found.used, weights, found.offsets.astype(np.float32), found.penalty
    )
    return Learned(classifier, found.error, found.tried, clock.seconds)


def usable(split: Split, seed: int) -> NDArray[np.int64]:
    """The training pictures that the linear classifiers learn from: all, or :data:`margin.MOST`, evenly by class."""
    if len(split) <= margin.MOST:
        return np.arange(len(split), dtype=np.int64)
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(split))
    ranks = np.empty(len(split), np.int64)
    for label in np.unique(split.labels):
        mine = order[split.labels[order] == label]
        ranks[mine] = np.arange(len(mine))
    return np.sort(np.lexsort((order, ranks))[: margin.MOST])


def codebooks(split: Split, settings: Settings, seed: int) -> Encoder:
    """Axes and mixtures of SIFT and of colors, from descriptors of training pictures drawn by ``seed``."""
    random = np.random.Generator(np.random.Philox(seed))
    pictures = np.sort(random.permutation(len(split))[:WITNESSES])
    share = -(-settings.sample // len(pictures))
    sift, color = [], []
    for local in _described(split, pictures, settings):
        some = random.permutation(len(local.sift))[:share]
        sift.append(local.sift[some])
        color.append(local.color[some])
    books: list[Codebook] = [
        learn(np.concatenate(parts), settings.length, settings.words, seed) for parts in (sift, color)
    ]
    return Encoder(settings, *books)


def _described(split: Split, pictures: NDArray[np.int64], settings: Settings) -> Iterator[Local]:
    return _parallel(lambda picture: describe(middle(picture, settings.side), settings.grid), split, pictures)


def encode(encoder: Encoder, split: Split, pictures: NDArray[np.int64], path: Path) -> NDArray[np.float16]:
    """Fisher vectors of ``pictures`` [n], float16 [n, R, F] in a file at ``path``, in their order."""
    shape = (len(pictures), encoder.settings.cells, encoder.length)
    out = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    for row, vectors in enumerate(_parallel(encoder.encode, split, pictures)):
        out[row] = vectors
    return out


def answers(classifier: FisherClassifier, split: Split) -> NDArray[np.float32]:
    """Scores of every picture of a split, once: [n, K]."""
    return np.stack(list(_parallel(classifier.scores, split, np.arange(len(split)))))


def _parallel(do: Callable[[NDArray[np.uint8]], T], split: Split, pictures: NDArray[np.int64]) -> Iterator[T]:
    """What ``do`` makes of each picture, in order, a thread a core; few pictures wait at once."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(pictures), CHUNK):
            batch = split.gather(pictures[start : start + CHUNK])
            made: list[Future[T]] = [pool.submit(do, picture) for picture in batch]
            for future in made:
                yield future.result()


class _Found(NamedTuple):
    error: float
    used: tuple[int, ...]
    penalty: float
    counts: NDArray[np.float64]
    offsets: NDArray[np.float64]
    tried: dict[str, float]


def _choose(
    own: NDArray[np.float64], across: NDArray[np.float64], labels: NDArray[np.int64], truths: NDArray[np.int64],
    classes: int, settings: Settings,
) -> _Found:  # fmt: skip
    """The pyramid's depth and C with the lowest validation error; of equals the smaller ones."""
    best: _Found | None = None
    tried: dict[str, float] = {}
    for levels in [settings.levels[: n + 1] for n in range(len(settings.levels))]:
        used = tuple(range(sum(level**2 for level in levels)))
        table, theirs = own[list(used)].sum(0), across[list(used)].sum(0)
        for penalty in settings.penalties:
            counts, offsets = margin.fit(table, labels, classes, penalty)
            error = float(((theirs @ counts + offsets).argmax(1) != truths).mean())
            tried[f"{'+'.join(f'{n}x{n}' for n in levels)}, C {penalty:g}"] = error
            if best is None or error < best.error:
                best = _Found(error, used, penalty, counts, offsets, tried)
    assert best is not None
    return best


@contextmanager
def _waiting(folder: Path) -> Iterator[Path]:
    """A folder for files of this training alone; it is gone afterwards."""
    place = folder / "vectors"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


class _Clock:
    def __init__(self, say: Say) -> None:
        self.seconds: dict[str, float] = {}
        self._say, self._last = say, time.perf_counter()

    def step(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now
        self._say(f"  {name}: {self.seconds[name]:.1f} s")
