"""Centers as scikit-learn's k-means finds them from the same start; each weight at its nearest center."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from alexnet.bundle.compressed_weights import kmeans, nearest, share


def weights(seed, count=3000):
    random = np.random.default_rng(seed)
    return (0.02 * random.laplace(size=count)).astype(np.float32)


@pytest.mark.parametrize("k", [2, 7, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_centers_against_scikit_learn(seed, k):
    values = np.sqrt(np.abs(weights(seed)))  # no long tails: a cluster that starts empty is treated otherwise there
    start = np.linspace(values.min(), values.max(), k)
    counts = np.bincount(np.abs(values[:, None] - start).argmin(1), minlength=k)
    assert counts.all()
    theirs = KMeans(k, init=start[:, None], n_init=1, max_iter=1000, tol=0, algorithm="lloyd")
    theirs.fit(values[:, None].astype(np.float64))
    assert kmeans(values, k) == pytest.approx(np.sort(theirs.cluster_centers_[:, 0]), abs=1e-7)


@pytest.mark.parametrize("k", [1, 2, 32, 256])
def test_each_center_is_the_mean_of_what_is_nearest_to_it(k):
    values = weights(4)
    centers = kmeans(values, k)
    slow = np.abs(values[:, None].astype(np.float64) - centers[None]).argmin(1)
    assert np.array_equal(nearest(values, centers), slow)
    for cluster in range(len(centers)):
        members = values[slow == cluster].astype(np.float64)
        assert len(members)
        assert members.mean() == pytest.approx(centers[cluster], abs=1e-6)


def test_sharing_keeps_zeros_shape_and_sign():
    values = weights(2, 1200).reshape(30, 40)
    values[np.abs(values) < 0.01] = 0
    found = share(values, 5)
    assert found.shape == (30, 40)
    assert np.array_equal(found == 0, values == 0)
    assert len(np.unique(found[found != 0])) <= 32
    assert np.abs(found - values).max() < (values.max() - values.min()) / 31  # no farther than a step of the start
    assert values.dtype == found.dtype == np.float32


def test_few_or_no_weights():
    assert not share(np.zeros((3, 3), np.float32), 5).any()
    assert share(np.array([0, 2.5, 0], np.float32), 8).tolist() == [0, 2.5, 0]
    few = np.array([1, -1, 3, 0, 3], np.float32)
    assert share(few, 2).tolist() == few.tolist()
    assert len(kmeans(np.zeros(0, np.float32), 4)) == 0


def test_no_center_is_zero():
    """0 means pruned: a cluster around it keeps the least float that is not."""
    centers = kmeans(np.array([-1, -1, 1, 1, -0.25, 0.25], np.float32), 3)
    assert (centers != 0).all()
    assert len(centers) == 3
    assert abs(centers[1]) < 1e-30
