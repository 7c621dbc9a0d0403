"""The images to explain, and the embedding of their features in two dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alexnet.data import decode
from alexnet.data.store import Split
from alexnet.doctor.duplicates import near_duplicates
from alexnet.doctor.images import THUMBNAIL_SIZE
from alexnet.errors import DataError, RunError
from alexnet.evaluation.calibration import probabilities
from alexnet.evaluation.evaluate import SplitPredictions
from alexnet.explain.opened_run import OpenedRun
from alexnet.export.classifier import Classifier
from alexnet.export.prediction import ImageInput, named

DUPLICATE_CANDIDATES = 20  # mistakes that are searched for near-duplicates, for each one that is shown


class Samples:
    """N images with names and true classes.

    Attributes:
        images: uint8 [N, S, S, 3], in the stored form.
        names: File names, or origins in the data.
        labels: Indices of the true classes; None where unknown.
    """

    def __init__(self, images: NDArray[np.uint8], names: Sequence[str], labels: Sequence[int | None]) -> None:
        self.images, self.names, self.labels = images, list(names), list(labels)

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of_inputs(cls, classifier: Classifier, inputs: ImageInput | Sequence[ImageInput]) -> "Samples":
        """Images that the user gave. Raises :class:`alexnet.errors.ImageError`."""
        pairs = named(inputs)
        images = np.stack([classifier.prepare(image, name) for name, image in pairs])
        return cls(images, [Path(name).name for name, _ in pairs], [None] * len(pairs))

    @classmethod
    def of_split(cls, split: Split, indices: NDArray[np.int64]) -> "Samples":
        """The images of a split at ``indices``."""
        origins = split.origins()
        return cls(split.gather(indices), [str(origins[i]["origin"]) for i in indices], split.labels[indices].tolist())


def test_split(run: OpenedRun) -> Split:
    """The test images of a run. Raises :class:`RunError` if there are none."""
    split = run.store.split("test")
    if not len(split):
        raise RunError(f"{run.folder} has no test images", "at least one", "name images, or train with a test split")
    return split


def test_samples(run: OpenedRun, count: int) -> Samples:
    """``count`` random test images, the same ones in each call. Raises :class:`RunError` if there are none."""
    split = test_split(run)
    return Samples.of_split(split, np.random.default_rng(0).permutation(len(split))[:count].astype(np.int64))


def most_confident_mistakes(
    split: Split, predictions: SplitPredictions, temperature: float, count: int
) -> tuple[Samples, list[int]]:
    """The wrong predictions with the highest probability, highest first, without near-duplicates.

    Args:
        split: The split that was predicted.
        predictions: The predictions for it.
        temperature: The divisor of the logits.
        count: The maximal number of images.

    Returns:
        The images, and for each one how many near-duplicates of it are mistakes too.
    """
    wrong = np.flatnonzero(~predictions.correct)
    confidence = probabilities(predictions.log_probabilities[wrong], temperature).max(1) if len(wrong) else np.zeros(0)
    order = np.asarray(wrong[np.argsort(-confidence, kind="stable")], np.int64)[: DUPLICATE_CANDIDATES * count]
    images = split.gather(order)
    thumbnails = [decode.fit(image, THUMBNAIL_SIZE, "squash") for image in images]
    is_small = np.full(len(order), min(images.shape[1:3]) < THUMBNAIL_SIZE)
    first = np.arange(len(order))  # the most confident mistake that each image is a near-duplicate of
    for a, b in near_duplicates(np.stack(thumbnails), is_small) if thumbnails else ():
        low, high = sorted((first[a], first[b]))
        first[first == high] = low
    kept, times = np.unique(first, return_counts=True)
    return Samples.of_split(split, order[kept[:count]]), (times[:count] - 1).tolist()


Method = Literal["auto", "pca", "tsne", "umap"]
NEIGHBORS = 10  # nearest neighbors that are compared


@dataclass(frozen=True)
class Embedding:
    """An embedding of N images.

    Attributes:
        points: Positions, [N, 2].
        method: ``pca``, ``tsne`` or ``umap``.
        explained: Fraction of the variance that PCA explains; NaN for the others.
        kept: Fraction of the ten nearest neighbors in feature space that are among the ten nearest points.
        by_chance: The expectation of ``kept`` for random points: 10 / (N − 1).
    """

    points: NDArray[np.float64]
    method: str
    explained: float
    kept: float
    by_chance: float


def embed(features: NDArray[np.floating[Any]], method: Method = "auto", seed: int = 0) -> Embedding:
    """Embed ``features`` [N, D] by PCA, t-SNE or UMAP; ``auto`` takes UMAP where umap-learn is installed, else PCA.

    With 15 images or fewer PCA is always used.

    Raises:
        DataError: If there are fewer than 3 images, or umap-learn is required but not installed.
    """
    if features.ndim != 2 or len(features) < 3 or not np.isfinite(features).all():
        raise DataError(f"features {list(features.shape)} to embed", "[N, D] of at least 3 images, finite")
    rows = features.astype(np.float64)
    umap = None if method in ("pca", "tsne") else _umap()
    if method == "umap" and umap is None:
        raise DataError("--method umap needs umap-learn", "installed", "pip install umap-learn, or pass --method pca")
    explained = float("nan")
    if len(rows) <= 15 or (umap is None and method != "tsne"):
        method, (points, explained) = "pca", _pca(rows, seed)
    elif method == "tsne":
        points = _tsne(rows, seed)
    else:
        assert umap is not None
        method, points = "umap", np.asarray(umap.UMAP(random_state=seed, n_jobs=1).fit_transform(rows), np.float64)
    near = min(NEIGHBORS, len(rows) - 1)
    kept = float(
        np.mean([len(set(a) & set(b)) / near for a, b in zip(_near(rows, near), _near(points, near), strict=True)])
    )
    return Embedding(points, method, explained, kept, near / (len(rows) - 1))


def _pca(rows: NDArray[np.float64], seed: int) -> tuple[NDArray[np.float64], float]:
    from sklearn.decomposition import PCA

    if rows.shape[1] < 2 or not rows.std(0).any():  # all features are equal
        flat = np.zeros((len(rows), 2))
        flat[:, : rows.shape[1]] = (rows - rows.mean(0))[:, :2]
        return flat, 1.0
    pca = PCA(2, random_state=seed)
    points = np.asarray(pca.fit_transform(rows), np.float64)
    return points, float(pca.explained_variance_ratio_.sum())


def _tsne(rows: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """t-SNE (van der Maaten and Hinton 2008) of the first 50 principal components, as its authors do."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    components = PCA(min(50, *rows.shape), random_state=seed).fit_transform(rows)
    perplexity = min(30.0, (len(rows) - 1) / 3)
    return np.asarray(TSNE(perplexity=perplexity, random_state=seed, n_jobs=1).fit_transform(components), np.float64)


def _umap() -> Any:
    try:
        with decode.capture_warnings():  # about ipywidgets, as captum
            import umap
    except ImportError:
        return None
    return umap


def _near(rows: NDArray[np.float64], count: int) -> list[list[int]]:
    from sklearn.neighbors import NearestNeighbors

    result = NearestNeighbors(n_neighbors=count).fit(rows).kneighbors(return_distance=False)
    return [list(map(int, row)) for row in result]
