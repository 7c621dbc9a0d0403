"""One linear support vector machine for each class against all others, from the vectors' inner products.

The vectors are long and few, so the machines are found from a table of inner products (scikit-learn's SVC), which is
exactly the linear machine, and written out as weights. Glossary: N vectors, R regions, F length, K classes.


The runner-up as a classifier: an image in, a score for each class out; and as two files on disk.

Format version 1: ``fisher.npz`` (axes, mixtures, weights as plain arrays) and ``fisher.json`` (settings, classes).


The runner-up learns: codebooks and machines from training images, choices by validation images, nothing by test.

Images are described many at once, a thread a core, and their Fisher vectors wait on disk as 16-bit numbers: of what
grows with the data set, memory holds a table of inner products.


How densely the runner-up can look at images in the time that it has: measured on a few of them.
"""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from alexnet.data.atomic_io import atomic_write, json_bytes, write_file
from alexnet.data.store import Split, Store
from alexnet.errors import BundleError, DataError
from alexnet.experiments.fisher.features import (
    COLOR_LENGTH,
    SIFT_LENGTH,
    Codebook,
    Grid,
    Local,
    Mixture,
    count,
    describe,
    fisher_vectors,
    learn,
    middle,
    normalized,
    regions,
)
from alexnet.schema import check, read_json

MOST = 8000  # training vectors: a table of 8000² numbers has 512 MB
BLOCK = 64 << 20  # numbers of vectors in memory at once, as float32: 256 MB


def multiplications(a: NDArray[np.float16], b: NDArray[np.float16]) -> NDArray[np.float64]:
    """Inner products by region: [n, R, F] and [m, R, F] -> [R, n, m]."""
    regions = a.shape[1]
    out = np.zeros((regions, len(a), len(b)))
    rows = max(1, BLOCK // max(1, a.shape[2]))
    for r in range(regions):
        for i in range(0, len(a), rows):
            left = a[i : i + rows, r].astype(np.float32)
            for j in range(0, len(b), rows):
                out[r, i : i + rows, j : j + rows] = left @ b[j : j + rows, r].astype(np.float32).T
    return out


def fit(
    table: NDArray[np.float64], labels: NDArray[np.int64], classes: int, penalty: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Machines from inner products [N, N]: what each vector counts in each class's weights [N, K], and offsets [K].

    ``penalty`` is C, what an image on the wrong side costs. A class of which there is no image, or no other, answers
    −1 always.
    """
    from sklearn.svm import SVC

    def one(label: int) -> tuple[NDArray[np.float64], float]:
        counts, mine = np.zeros(len(labels)), labels == label
        if mine.all() or not mine.any():
            return counts, -1.0
        machine = SVC(C=penalty, kernel="precomputed", cache_size=50).fit(table, mine)
        counts[machine.support_] = machine.dual_coef_[0]
        return counts, float(machine.intercept_[0])

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # libsvm computes without the interpreter's lock
        result = list(pool.map(one, range(classes)))
    return np.stack([counts for counts, _ in result], 1), np.array([offset for _, offset in result])


def svm_weights(counts: NDArray[np.float64], vectors: NDArray[np.float16], used: Sequence[int]) -> NDArray[np.float32]:
    """What the machines give to each number of a vector, in the regions ``used``: [N, K], [N, R, F] -> [K, R', F]."""
    out = np.zeros((counts.shape[1], len(used), vectors.shape[2]), np.float32)
    rows = max(1, BLOCK // max(1, vectors.shape[2]))
    for place, r in enumerate(used):
        for i in range(0, len(vectors), rows):
            out[:, place] += counts[i : i + rows].T.astype(np.float32) @ vectors[i : i + rows, r].astype(np.float32)
    return out


FORMAT, VERSION = "alexnet-fisher", 1


@dataclass(frozen=True)
class Settings:
    """Numbers of the runner-up."""

    grid: Grid = field(default_factory=Grid)
    side: int = 0  # of the center view that is described, pixels; 0: the whole stored image
    length: int = 64  # of a descriptor along its principal axes (Perronnin et al. 2010)
    words: int = 64  # Gaussians, for SIFT and for colors each
    sample: int = 100_000  # training descriptors from which axes and mixtures are learned
    levels: tuple[int, ...] = (1, 2)  # of the spatial pyramid: the whole, and quarters where validation wants them
    penalties: tuple[float, ...] = (1.0, 10.0, 100.0)  # C, of which validation chooses

    @property
    def cells(self) -> int:
        """R: regions of the pyramid."""
        return sum(level**2 for level in self.levels)


@dataclass(frozen=True)
class Encoder:
    """Images -> Fisher vectors, by what training images were like."""

    settings: Settings
    sift: Codebook
    color: Codebook

    @property
    def length(self) -> int:
        """F, of a region's vector."""
        return self.sift.mixture.length + self.color.mixture.length

    def encode(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """A stored image uint8 [S, S, 3] -> [R, F]: a region's vector by SIFT, then by colors, each normalized."""
        local = describe(middle(image, self.settings.side), self.settings.grid)
        members = regions(local.places, self.settings.levels)
        parts = [
            normalized(fisher_vectors(book.project(descriptors), book.mixture, members))
            for book, descriptors in ((self.sift, local.sift), (self.color, local.color))
        ]
        return np.concatenate(parts, 1)


@dataclass(frozen=True)
class FisherClassifier:
    """``weights`` [K, R', F] for the regions ``used`` (numbers of the pyramid's cells), ``offsets`` [K]."""

    encoder: Encoder
    classes: tuple[str, ...]
    used: tuple[int, ...]
    weights: NDArray[np.float32]
    offsets: NDArray[np.float32]
    penalty: float

    def scores(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """How far on the side of each class an image lies: [K]. No probabilities."""
        return self.score(self.encoder.encode(image))

    def score(self, vectors: NDArray[Any]) -> NDArray[np.float32]:
        """The same from an image's Fisher vectors [R, F]."""
        mine = vectors[list(self.used)].astype(np.float32)
        return np.asarray(np.tensordot(self.weights, mine, 2) + self.offsets, np.float32)

    @property
    def parameters(self) -> int:
        """Numbers that were learned: axes, mixtures, weights."""
        return sum(array.size for array in self._arrays().values())

    @property
    def multiply_adds(self) -> int:
        """Of the matrix multiplications for one patch (axes, posteriors, sums), SIFT itself not counted."""
        encoder = self.encoder
        each = [book.axes.size + 4 * book.mixture.means.size for book in (encoder.sift, encoder.color)]
        return sum(each)

    def save(self, folder: Path) -> Path:
        """Write both files; returns that of the numbers."""
        settings = asdict(self.encoder.settings)
        about = {"format": FORMAT, "version": VERSION, "classes": list(self.classes), "settings": settings}
        about |= {"used": list(self.used), "penalty": self.penalty}
        with atomic_write(folder / "fisher.npz") as file:
            np.savez(file, allow_pickle=False, **self._arrays())
        write_file(folder / "fisher.json", json_bytes(about))
        return folder / "fisher.npz"

    @classmethod
    def load(cls, folder: Path) -> "FisherClassifier":
        """What :meth:`save` wrote. Raises :class:`BundleError`."""
        try:
            about = check(read_json(folder, "fisher.json"), dict[str, Any])
            if (about["format"], about["version"]) != (FORMAT, VERSION):
                raise BundleError(f"{folder / 'fisher.json'} is of another format", f"{FORMAT}, version {VERSION}")
            with (folder / "fisher.npz").open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            values = dict(about["settings"])
            values |= {"grid": Grid(**values["grid"]), "levels": tuple(values["levels"])}
            values |= {"penalties": tuple(values["penalties"])}
            encoder = Encoder(Settings(**values), *(_codebook(arrays, kind) for kind in ("sift", "color")))
            return cls(
                encoder,
                tuple(about["classes"]),
                tuple(about["used"]),
                arrays["weights"],
                arrays["offsets"],
                about["penalty"],
            )
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise BundleError(f"{folder} holds no whole Fisher classifier: {error}", "", "train it again") from error

    def _arrays(self) -> dict[str, NDArray[np.float32]]:
        books = {"sift": self.encoder.sift, "color": self.encoder.color}
        results = {f"{kind}_{name}": array for kind, book in books.items() for name, array in _parts(book)}
        return results | {"weights": self.weights, "offsets": self.offsets}


def _parts(book: Codebook) -> Iterator[tuple[str, NDArray[np.float32]]]:
    yield from (("mean", book.mean), ("axes", book.axes))
    yield from book.mixture._asdict().items()


def _codebook(arrays: dict[str, NDArray[np.float32]], kind: str) -> Codebook:
    mixture = Mixture(*(arrays[f"{kind}_{name}"] for name in Mixture._fields))
    book = Codebook(arrays[f"{kind}_mean"], arrays[f"{kind}_axes"], mixture)
    length = {"sift": SIFT_LENGTH, "color": COLOR_LENGTH}[kind]
    if book.mean.shape != (length,) or book.axes.shape != (length, mixture.means.shape[1]):
        raise ValueError(f"{kind} of another size")
    return book


WITNESSES = 1000  # training images at most, from which axes and mixtures are learned
CHUNK = 64  # images in memory at once

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
        own, across = multiplications(vectors, vectors), multiplications(others, vectors)
        clock.step("inner products")
        result = _choose(own, across, labels, truths, len(store.classes), settings)
        weights = svm_weights(result.counts, vectors, result.used)
        clock.step("linear classifiers")
    classifier = FisherClassifier(
        encoder, store.classes, result.used, weights, result.offsets.astype(np.float32), result.penalty
    )
    return Learned(classifier, result.error, result.tried, clock.seconds)


def usable(split: Split, seed: int) -> NDArray[np.int64]:
    """The training images that the linear classifiers learn from: all, or :data:`margin.MOST`, evenly by class."""
    if len(split) <= MOST:
        return np.arange(len(split), dtype=np.int64)
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(split))
    ranks = np.empty(len(split), np.int64)
    for label in np.unique(split.labels):
        mine = order[split.labels[order] == label]
        ranks[mine] = np.arange(len(mine))
    return np.sort(np.lexsort((order, ranks))[:MOST])


def codebooks(split: Split, settings: Settings, seed: int) -> Encoder:
    """Axes and mixtures of SIFT and of colors, from descriptors of training images drawn by ``seed``."""
    random = np.random.Generator(np.random.Philox(seed))
    images = np.sort(random.permutation(len(split))[:WITNESSES])
    share = -(-settings.sample // len(images))
    sift, color = [], []
    for local in _described(split, images, settings):
        some = random.permutation(len(local.sift))[:share]
        sift.append(local.sift[some])
        color.append(local.color[some])
    books: list[Codebook] = [
        learn(np.concatenate(parts), settings.length, settings.words, seed) for parts in (sift, color)
    ]
    return Encoder(settings, *books)


def _described(split: Split, images: NDArray[np.int64], settings: Settings) -> Iterator[Local]:
    return _parallel(lambda image: describe(middle(image, settings.side), settings.grid), split, images)


def encode(encoder: Encoder, split: Split, images: NDArray[np.int64], path: Path) -> NDArray[np.float16]:
    """Fisher vectors of ``images`` [n], float16 [n, R, F] in a file at ``path``, in their order."""
    shape = (len(images), encoder.settings.cells, encoder.length)
    out = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    for row, vectors in enumerate(_parallel(encoder.encode, split, images)):
        out[row] = vectors
    return out


def predictions(classifier: FisherClassifier, split: Split) -> NDArray[np.float32]:
    """Scores of every image of a split, once: [n, K]."""
    return np.stack(list(_parallel(classifier.scores, split, np.arange(len(split)))))


def _parallel(do: Callable[[NDArray[np.uint8]], T], split: Split, images: NDArray[np.int64]) -> Iterator[T]:
    """What ``do`` makes of each image, in order, a thread a core; few images wait at once."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(images), CHUNK):
            batch = split.gather(images[start : start + CHUNK])
            made: list[Future[T]] = [pool.submit(do, image) for image in batch]
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
    own: NDArray[np.float64],
    across: NDArray[np.float64],
    labels: NDArray[np.int64],
    truths: NDArray[np.int64],
    classes: int,
    settings: Settings,
) -> _Found:
    """The pyramid's depth and C with the lowest validation error; of equals the smaller ones."""
    best: _Found | None = None
    tried: dict[str, float] = {}
    for levels in [settings.levels[: n + 1] for n in range(len(settings.levels))]:
        used = tuple(range(sum(level**2 for level in levels)))
        table, theirs = own[list(used)].sum(0), across[list(used)].sum(0)
        for penalty in settings.penalties:
            counts, offsets = fit(table, labels, classes, penalty)
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


STEPS = (2, 3, 4, 5, 6, 8, 10, 12)  # pixels from patch to patch, of which the smallest that fits is taken
MANY = 6000  # patches in an image at most: beyond, neighbors say the same
ENCODING = 1.5  # times as long as describing: axes, posteriors and sums come to it
BESIDE = 120.0  # seconds for mixtures and linear classifiers at most; less with few images
TRIED = 4  # images that are described to see how long it takes


def settings_within(settings: Settings, store: Store, seconds: float) -> Settings:
    """``settings`` with the densest grid that can be used in ``seconds``, by a few training images' time."""
    each = patch_seconds(settings, store)
    sides = min(settings.side or store.size, store.size)
    for step in STEPS:
        grid = dataclasses.replace(settings.grid, step=step)
        result = dataclasses.replace(settings, grid=grid)
        patches = count(sides, grid)
        if patches <= MANY and needed(patches, each, store) <= seconds:
            return result
    return result


def needed(patches: int, each: float, store: Store) -> float:
    """Seconds for all images of the store, with so many ``patches`` of ``each`` seconds in every one."""
    train, validation, test = (len(store.split(name)) for name in ("train", "validation", "test"))
    images = min(train, WITNESSES) + min(train, MOST) + validation + test
    beside = min(BESIDE, BESIDE * train / 2000)
    return beside + images * patches * each * ENCODING / (os.cpu_count() or 1)


def patch_seconds(settings: Settings, store: Store) -> float:
    """To describe a patch, on one core."""
    split, grid = store.split("train"), Grid(4, settings.grid.patch, settings.grid.scales)
    images = split.gather(np.arange(min(TRIED, len(split))))
    crops = [middle(image, settings.side) for image in images]
    describe(crops[0], grid)  # what is made once
    started = time.perf_counter()
    patches = sum(len(describe(view, grid).sift) for view in crops)
    return (time.perf_counter() - started) / patches
