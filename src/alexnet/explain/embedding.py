"""Features of many images brought to two dimensions, and how much of what was near stays near."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError

Method = Literal["auto", "pca", "umap"]
NEAR = 10  # neighbors by which a map is judged


@dataclass(frozen=True)
class Embedding:
    """``points`` [N, 2], by ``method``. ``explained``: share of the features' variance, of PCA alone, else nan.

    ``kept`` is the share of each image's ten nearest on the map that are among its ten nearest in feature space, and
    ``by_chance`` what a random map would keep: 10 / (N − 1).
    """

    points: NDArray[np.float64]
    method: str
    explained: float
    kept: float
    by_chance: float


def embed(features: NDArray[np.floating[Any]], method: Method = "auto", seed: int = 0) -> Embedding:
    """A map of ``features`` [N, D] by PCA, or by UMAP where umap-learn is installed (``auto`` takes it then).

    Raises :class:`DataError` for fewer than 3 images, or for UMAP where it is not installed.
    """
    if features.ndim != 2 or len(features) < 3 or not np.isfinite(features).all():
        raise DataError(f"features {list(features.shape)} for a map", "[N, D] of at least 3 images, finite")
    rows = features.astype(np.float64)
    umap = None if method == "pca" else _umap()
    if method == "umap" and umap is None:
        raise DataError("umap-learn is not installed", "", "pip install umap-learn, or draw the map by PCA")
    explained = float("nan")
    if umap is not None and len(rows) > 15:
        points = np.asarray(umap.UMAP(random_state=seed, n_jobs=1).fit_transform(rows), np.float64)
    else:
        points, explained = _pca(rows, seed)
    near = min(NEAR, len(rows) - 1)
    kept = float(
        np.mean([len(set(a) & set(b)) / near for a, b in zip(_near(rows, near), _near(points, near), strict=True)])
    )
    return Embedding(points, "umap" if np.isnan(explained) else "pca", explained, kept, near / (len(rows) - 1))


def _pca(rows: NDArray[np.float64], seed: int) -> tuple[NDArray[np.float64], float]:
    from sklearn.decomposition import PCA

    if rows.shape[1] < 2 or not rows.std(0).any():  # all alike: one point
        flat = np.zeros((len(rows), 2))
        flat[:, : rows.shape[1]] = (rows - rows.mean(0))[:, :2]
        return flat, 1.0
    made = PCA(2, random_state=seed)
    points = np.asarray(made.fit_transform(rows), np.float64)
    return points, float(made.explained_variance_ratio_.sum())


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
