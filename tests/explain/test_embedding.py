"""Maps of features: PCA against the eigenvectors of the covariance, what stays near against a loop."""

import sys
import types

import numpy as np
import pytest

from alexnet.errors import DataError
from alexnet.explain.embedding import embed


def features(count: int = 60) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, 6)) * [9, 4, 1, 1, 0.5, 0.1] @ generator.normal(size=(6, 6))


def test_pca_is_along_the_largest_eigenvectors():
    rows = features()
    values, axes = np.linalg.eigh(np.cov(rows.T))
    expected = (rows - rows.mean(0)) @ axes[:, [-1, -2]]
    found = embed(rows, "pca")
    for column in range(2):
        assert abs(np.corrcoef(found.points[:, column], expected[:, column])[0, 1]) == pytest.approx(1)
        assert np.ptp(found.points[:, column]) == pytest.approx(np.ptp(expected[:, column]))
    assert found.explained == pytest.approx(values[-2:].sum() / values.sum()) and found.method == "pca"


def test_what_stays_near_is_counted():
    rows = features()

    def nearest(table: np.ndarray, one: int) -> set[int]:
        others = sorted((np.linalg.norm(table[one] - table[k]), k) for k in range(len(table)) if k != one)
        return {k for _, k in others[:10]}

    found = embed(rows, "pca")
    expected = np.mean([len(nearest(rows, i) & nearest(found.points, i)) / 10 for i in range(60)])
    assert found.kept == pytest.approx(expected) and found.by_chance == pytest.approx(10 / 59)
    assert 0.3 < found.kept < 1 and embed(rows[:, :2], "pca").kept == 1  # two dimensions lose nothing


def test_umap_is_used_where_it_is_and_told_where_it_is_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(DataError, match="--method umap needs umap-learn; must be installed; pip install umap-learn"):
        embed(features(), "umap")
    assert embed(features(), "auto").method == "pca"

    class UMAP:
        def __init__(self, random_state, n_jobs):
            assert (random_state, n_jobs) == (0, 1)

        def fit_transform(self, rows):
            return rows[:, :2].astype(np.float32)

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    found = embed(features(), "auto")
    assert (
        found.method == "umap" and np.isnan(found.explained) and (found.points == features()[:, :2].astype("f4")).all()
    )


def test_too_little_and_all_alike():
    with pytest.raises(DataError, match=r"features \[2, 6\] to embed; must be \[N, D\] of at least 3"):
        embed(features(2))
    assert embed(np.ones((5, 4)), "pca").points.tolist() == [[0.0, 0.0]] * 5
