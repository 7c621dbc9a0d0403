"""Trains the Fisher vector classifier: codebooks and SVMs on training images, selection by the validation split.

The test split is not read. Images are described in parallel, one thread per core. Their Fisher vectors are stored on
disk as float16; memory holds only the table of inner products, from which scikit-learn's SVC fits the linear SVMs.

Shapes: N images, R regions, R' used regions, F length of a region's vector, K classes.
"""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from alexnet.data.store import Split, Store
from alexnet.errors import DataError
from alexnet.experiments.fisher.classifier import Encoder, FisherClassifier, FisherSettings
from alexnet.experiments.fisher.features import (
    Descriptors,
    Grid,
    center_crop,
    extract_descriptors,
    fit_codebook,
    num_patches,
)

MAX_TRAINING_IMAGES = 8000  # for the SVMs: their table of inner products has 512 MB
CODEBOOK_IMAGES = 1000  # training images at most, to which the codebooks are fitted
CHUNK = 64  # images in memory at once
BLOCK = 64 << 20  # values of vectors in memory at once, as float32: 256 MB

GRID_STEPS = (2, 3, 4, 5, 6, 8, 10, 12)  # pixels between patches; the smallest that fits into the time is used
MAX_PATCHES = 6000  # in an image; with more, neighboring patches are nearly equal
ENCODING_FACTOR = 1.5  # description with projection, posteriors and sums, relative to description alone
FITTING_SECONDS = 120.0  # for codebooks and SVMs at most; less with few images
TIMED_IMAGES = 4

Log = Callable[[str], None]
T = TypeVar("T")


class TrainedFisher(NamedTuple):
    """A trained classifier."""

    classifier: FisherClassifier
    validation_error: float
    candidates: dict[str, float]  # validation error of each pyramid and C
    seconds: dict[str, float]  # of each step


def train(
    store: Store, settings: FisherSettings, folder: Path, seed: int = 0, log: Log = lambda _: None
) -> TrainedFisher:
    """Train on the train split; select pyramid and C by the validation split.

    Args:
        store: The prepared dataset.
        settings: Hyperparameters.
        folder: For temporary files.
        seed: Seed of the samples and mixtures.
        log: Receives a line for each step.

    Raises:
        DataError: OpenCV or a split is missing.
    """
    steps = _StepTimer(log)
    train_images = training_subset(store.split("train"), seed)
    validation_images = np.arange(len(store.split("validation")))
    for name in ("train", "validation"):
        if not len(store.split(name)):
            raise DataError(f"store {store.path} has no {name} split", "one", "prepare another store")
    encoder = fit_encoder(store.split("train"), settings, seed)
    steps.finish("codebooks")
    with _temporary_folder(folder) as temporary:
        vectors = encode(encoder, store.split("train"), train_images, temporary / "train.npy")
        validation_vectors = encode(encoder, store.split("validation"), validation_images, temporary / "validation.npy")
        steps.finish("Fisher vectors")
        train_products = inner_products(vectors, vectors)
        validation_products = inner_products(validation_vectors, vectors)
        steps.finish("inner products")
        selected = _select(
            train_products,
            validation_products,
            store.split("train").labels[train_images],
            store.split("validation").labels,
            len(store.classes),
            settings,
        )
        weights = svm_weights(selected.coefficients, vectors, selected.used)
        steps.finish("linear classifiers")
    classifier = FisherClassifier(
        encoder, store.classes, selected.used, weights, selected.offsets.astype(np.float32), selected.penalty
    )
    return TrainedFisher(classifier, selected.error, selected.candidates, steps.seconds)


class _StepTimer:
    def __init__(self, log: Log) -> None:
        self.seconds: dict[str, float] = {}
        self._log, self._last = log, time.perf_counter()

    def finish(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now
        self._log(f"  {name}: {self.seconds[name]:.1f} s")


def training_subset(split: Split, seed: int) -> NDArray[np.int64]:
    """Indices of the images for the SVMs: all, or :data:`MAX_TRAINING_IMAGES`, evenly from each class."""
    if len(split) <= MAX_TRAINING_IMAGES:
        return np.arange(len(split), dtype=np.int64)
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(split))
    ranks = np.empty(len(split), np.int64)
    for label in np.unique(split.labels):
        of_class = order[split.labels[order] == label]
        ranks[of_class] = np.arange(len(of_class))
    return np.sort(np.lexsort((order, ranks))[:MAX_TRAINING_IMAGES])


def fit_encoder(split: Split, settings: FisherSettings, seed: int) -> Encoder:
    """Fit the codebooks to descriptors of randomly drawn training images."""
    random = np.random.Generator(np.random.Philox(seed))
    images = np.sort(random.permutation(len(split))[:CODEBOOK_IMAGES])
    per_image = -(-settings.sample // len(images))
    sift, color = [], []
    for descriptors in _describe(split, images, settings):
        sampled = random.permutation(len(descriptors.sift))[:per_image]
        sift.append(descriptors.sift[sampled])
        color.append(descriptors.color[sampled])
    codebooks = [
        fit_codebook(np.concatenate(parts), settings.axes, settings.gaussians, seed) for parts in (sift, color)
    ]
    return Encoder(settings, *codebooks)


def _describe(split: Split, images: NDArray[np.int64], settings: FisherSettings) -> Iterator[Descriptors]:
    def describe(image: NDArray[np.uint8]) -> Descriptors:
        return extract_descriptors(center_crop(image, settings.image_size), settings.grid)

    return _parallel(describe, split, images)


def encode(encoder: Encoder, split: Split, images: NDArray[np.int64], path: Path) -> NDArray[np.float16]:
    """Fisher vectors of the images with indices ``images``, as a memory-mapped file: float16 [N, R, F]."""
    shape = (len(images), encoder.settings.regions, encoder.length)
    out = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    for row, vectors in enumerate(_parallel(encoder.encode, split, images)):
        out[row] = vectors
    return out


def predict(classifier: FisherClassifier, split: Split) -> NDArray[np.float32]:
    """Scores of all images of a split: [N, K]."""
    return np.stack(list(_parallel(classifier.scores, split, np.arange(len(split)))))


def _parallel(function: Callable[[NDArray[np.uint8]], T], split: Split, images: NDArray[np.int64]) -> Iterator[T]:
    """Apply ``function`` to each image, in order, one thread per core, with at most :data:`CHUNK` images in memory."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(images), CHUNK):
            batch = split.gather(images[start : start + CHUNK])
            futures: list[Future[T]] = [pool.submit(function, image) for image in batch]
            for future in futures:
                yield future.result()


def inner_products(a: NDArray[np.float16], b: NDArray[np.float16]) -> NDArray[np.float64]:
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


class _Selected(NamedTuple):
    error: float
    used: tuple[int, ...]
    penalty: float
    coefficients: NDArray[np.float64]
    offsets: NDArray[np.float64]
    candidates: dict[str, float]


def _select(
    train_products: NDArray[np.float64],
    validation_products: NDArray[np.float64],
    train_labels: NDArray[np.int64],
    validation_labels: NDArray[np.int64],
    num_classes: int,
    settings: FisherSettings,
) -> _Selected:
    """Select the pyramid and C with the lowest validation error; with equal errors the smaller ones."""
    best: _Selected | None = None
    candidates: dict[str, float] = {}
    for levels in [settings.levels[: n + 1] for n in range(len(settings.levels))]:
        used = tuple(range(sum(level**2 for level in levels)))
        train_table, validation_table = train_products[list(used)].sum(0), validation_products[list(used)].sum(0)
        for penalty in settings.penalties:
            coefficients, offsets = fit_svms(train_table, train_labels, num_classes, penalty)
            predicted = (validation_table @ coefficients + offsets).argmax(1)
            error = float((predicted != validation_labels).mean())
            candidates[f"{'+'.join(f'{n}x{n}' for n in levels)}, C {penalty:g}"] = error
            if best is None or error < best.error:
                best = _Selected(error, used, penalty, coefficients, offsets, candidates)
    assert best is not None
    return best


def fit_svms(
    products: NDArray[np.float64], labels: NDArray[np.int64], num_classes: int, penalty: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit one linear SVM per class (one against the rest) from inner products.

    Args:
        products: Inner products of the training vectors [N, N].
        labels: Labels [N].
        num_classes: K.
        penalty: C.

    Returns:
        Coefficients of the training vectors [N, K] and offsets [K]. A class with no image, or with all images, always
        scores −1.
    """
    from sklearn.svm import SVC

    def fit_one(label: int) -> tuple[NDArray[np.float64], float]:
        coefficients, targets = np.zeros(len(labels)), labels == label
        if targets.all() or not targets.any():
            return coefficients, -1.0
        svm = SVC(C=penalty, kernel="precomputed", cache_size=50).fit(products, targets)
        coefficients[svm.support_] = svm.dual_coef_[0]
        return coefficients, float(svm.intercept_[0])

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # libsvm releases the interpreter's lock
        svms = list(pool.map(fit_one, range(num_classes)))
    return np.stack([coefficients for coefficients, _ in svms], 1), np.array([offset for _, offset in svms])


def svm_weights(
    coefficients: NDArray[np.float64], vectors: NDArray[np.float16], used: Sequence[int]
) -> NDArray[np.float32]:
    """Weights of the linear SVMs in the used regions: [N, K], [N, R, F] -> [K, R', F]."""
    out = np.zeros((coefficients.shape[1], len(used), vectors.shape[2]), np.float32)
    rows = max(1, BLOCK // max(1, vectors.shape[2]))
    for index, region in enumerate(used):
        for i in range(0, len(vectors), rows):
            block = vectors[i : i + rows, region].astype(np.float32)
            out[:, index] += coefficients[i : i + rows].T.astype(np.float32) @ block
    return out


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """An empty folder for the vectors, deleted afterwards."""
    temporary = folder / "vectors"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fit_settings(settings: FisherSettings, store: Store, seconds: float) -> FisherSettings:
    """Return ``settings`` with the densest grid that fits into ``seconds``, measured on a few training images."""
    patch_seconds = measure_patch(settings, store)
    size = min(settings.image_size or store.size, store.size)
    for step in GRID_STEPS:
        grid = dataclasses.replace(settings.grid, step=step)
        fitted = dataclasses.replace(settings, grid=grid)
        patches = num_patches(size, grid)
        if patches <= MAX_PATCHES and training_seconds(patches, patch_seconds, store) <= seconds:
            return fitted
    return fitted


def training_seconds(patches: int, patch_seconds: float, store: Store) -> float:
    """Seconds for training and prediction, with ``patches`` patches in an image and ``patch_seconds`` for each."""
    train, validation, test = (len(store.split(name)) for name in ("train", "validation", "test"))
    images = min(train, CODEBOOK_IMAGES) + min(train, MAX_TRAINING_IMAGES) + validation + test
    fitting = min(FITTING_SECONDS, FITTING_SECONDS * train / 2000)
    return fitting + images * patches * patch_seconds * ENCODING_FACTOR / (os.cpu_count() or 1)


def measure_patch(settings: FisherSettings, store: Store) -> float:
    """Seconds to describe a patch on one core."""
    split, grid = store.split("train"), Grid(4, settings.grid.patch, settings.grid.scales)
    images = split.gather(np.arange(min(TIMED_IMAGES, len(split))))
    crops = [center_crop(image, settings.image_size) for image in images]
    extract_descriptors(crops[0], grid)  # warm-up
    started = time.perf_counter()
    patches = sum(len(extract_descriptors(crop, grid).sift) for crop in crops)
    return (time.perf_counter() - started) / patches
