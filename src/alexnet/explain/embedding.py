"""Embedding of features in two dimensions, and the fraction of neighbors that it preserves."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError

Method = Literal["auto", "pca", "umap"]
NEIGHBORS = 10  # nearest neighbors that are compared


@dataclass(frozen=True)
class Embedding:
    """An embedding of N images.

    Attributes:
        points: Positions, [N, 2].
        method: ``pca`` or ``umap``.
        explained: Fraction of the variance that PCA explains; NaN for UMAP.
        kept: Fraction of the ten nearest neighbors in feature space that are among the ten nearest points.
        by_chance: The expectation of ``kept`` for random points: 10 / (N − 1).
    """

    points: NDArray[np.float64]
    method: str
    explained: float
    kept: float
    by_chance: float


def embed(features: NDArray[np.floating[Any]], method: Method = "auto", seed: int = 0) -> Embedding:
    """Embed ``features`` [N, D] by PCA or UMAP; ``auto`` takes UMAP where umap-learn is installed.

    Raises:
        DataError: If there are fewer than 3 images, or umap-learn is required but not installed.
    """
    if features.ndim != 2 or len(features) < 3 or not np.isfinite(features).all():
        raise DataError(f"features {list(features.shape)} to embed", "[N, D] of at least 3 images, finite")
    rows = features.astype(np.float64)
    umap = None if method == "pca" else _umap()
    if method == "umap" and umap is None:
        raise DataError("umap-learn is not installed", "", "pip install umap-learn, or use PCA")
    explained = float("nan")
    if umap is not None and len(rows) > 15:
        points = np.asarray(umap.UMAP(random_state=seed, n_jobs=1).fit_transform(rows), np.float64)
    else:
        points, explained = _pca(rows, seed)
    near = min(NEIGHBORS, len(rows) - 1)
    kept = float(
        np.mean([len(set(a) & set(b)) / near for a, b in zip(_near(rows, near), _near(points, near), strict=True)])
    )
    return Embedding(points, "umap" if np.isnan(explained) else "pca", explained, kept, near / (len(rows) - 1))


def _pca(rows: NDArray[np.float64], seed: int) -> tuple[NDArray[np.float64], float]:
    from sklearn.decomposition import PCA

    if rows.shape[1] < 2 or not rows.std(0).any():  # all features are equal
        flat = np.zeros((len(rows), 2))
        flat[:, : rows.shape[1]] = (rows - rows.mean(0))[:, :2]
        return flat, 1.0
    pca = PCA(2, random_state=seed)
    points = np.asarray(pca.fit_transform(rows), np.float64)
    return points, float(pca.explained_variance_ratio_.sum())


def _umap() -> Any:
    try:
        import umap
    except ImportError:
        return None
    return umap


def _near(rows: NDArray[np.float64], count: int) -> list[list[int]]:
    from sklearn.neighbors import NearestNeighbors

    result = NearestNeighbors(n_neighbors=count).fit(rows).kneighbors(return_distance=False)
    return [list(map(int, row)) for row in result]
