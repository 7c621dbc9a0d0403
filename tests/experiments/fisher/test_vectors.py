"""The Fisher vector against its definition, written out slowly, and against scikit-image's."""

import math

import numpy as np
import pytest

from alexnet.experiments.fisher.features import Mixture, fisher_vectors, normalized, posteriors, regions

ALL = np.ones((1, 40), bool)


def example(seed=0, count=40, words=3, length=5):
    random = np.random.default_rng(seed)
    weights = random.dirichlet(np.ones(words) * 3)
    mixture = Mixture(
        *(
            np.asarray(a, np.float32)
            for a in (weights, random.normal(size=(words, length)), random.uniform(0.3, 2, (words, length)))
        )
    )
    return random.normal(size=(count, length)).astype(np.float32), mixture


def density(x, mean, variance):
    return math.prod(
        math.exp(-((a - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
        for a, m, v in zip(x, mean, variance, strict=True)
    )


def slowly(descriptors, mixture):
    """Perronnin et al. 2010, equations 9 and 10, with float64 and loops: the definition, descriptor by descriptor."""
    weights, means, variances = (a.astype(np.float64) for a in mixture)
    by_mean, by_deviation = np.zeros(means.shape), np.zeros(means.shape)
    for x in descriptors.astype(np.float64):
        likely = [w * density(x, m, v) for w, m, v in zip(weights, means, variances, strict=True)]
        for k, share in enumerate(value / sum(likely) for value in likely):
            for d in range(len(x)):
                z = (x[d] - means[k, d]) / math.sqrt(variances[k, d])
                by_mean[k, d] += share * z
                by_deviation[k, d] += share * (z * z - 1)
    for k, weight in enumerate(weights):
        by_mean[k] /= len(descriptors) * math.sqrt(weight)
        by_deviation[k] /= len(descriptors) * math.sqrt(2 * weight)
    return np.concatenate([by_mean.ravel(), by_deviation.ravel()])


@pytest.mark.parametrize("seed", range(4))
def test_it_is_its_definition(seed):
    descriptors, mixture = example(seed)
    found = fisher_vectors(descriptors, mixture, ALL)
    assert found.shape == (1, mixture.length) == (1, 2 * 3 * 5)
    np.testing.assert_allclose(found[0], slowly(descriptors, mixture), rtol=2e-4, atol=2e-6)  # float32


def test_it_is_that_of_scikit_image():
    """scikit-image 0.26 has gradients by the weights before, which are left out here, and those by the deviations with
    the other sign: to a linear classifier that is the same."""
    feature = pytest.importorskip("skimage.feature")
    from sklearn.mixture import GaussianMixture

    descriptors, mixture = example(7)
    theirs = GaussianMixture(3, covariance_type="diag")
    theirs.weights_, theirs.means_, theirs.covariances_ = (a.astype(np.float64) for a in mixture)
    theirs.precisions_cholesky_ = 1 / np.sqrt(theirs.covariances_)
    turned = np.repeat([1, -1], 15)
    plain = turned * feature.fisher_vector(descriptors.astype(np.float64), theirs)[3:]
    ours = fisher_vectors(descriptors, mixture, ALL)
    np.testing.assert_allclose(ours[0], plain, rtol=1e-3, atol=1e-5)
    improved = turned * feature.fisher_vector(descriptors.astype(np.float64), theirs, improved=True, alpha=0.5)[3:]
    np.testing.assert_allclose(normalized(ours)[0], improved / np.linalg.norm(improved), rtol=1e-3, atol=1e-5)


def test_posteriors_far_from_every_gaussian_are_shares_still():
    descriptors, mixture = example()
    shares = posteriors(1000 * descriptors, mixture)
    assert np.isfinite(shares).all() and np.allclose(shares.sum(1), 1, atol=1e-6)


def test_a_region_is_a_image_of_its_own():
    descriptors, mixture = example()
    members = np.zeros((3, 40), bool)
    members[0, :10], members[1, 10:] = True, True  # the third region is empty
    found = fisher_vectors(descriptors, mixture, members)
    np.testing.assert_allclose(found[0], slowly(descriptors[:10], mixture), rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(found[1], slowly(descriptors[10:], mixture), rtol=2e-4, atol=2e-6)
    assert not found[2].any()


def test_the_gradient_vanishes_where_the_mixture_fits():
    """At the maximum of the likelihood the gradient is zero: one Gaussian with the descriptors' own moments."""
    descriptors, _ = example(3)
    one = Mixture(np.ones(1, np.float32), descriptors.mean(0)[None], descriptors.var(0)[None])
    assert np.abs(fisher_vectors(descriptors, one, ALL)).max() < 1e-6


def test_power_and_length():
    vectors = np.array([[4.0, -9.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    np.testing.assert_allclose(normalized(vectors)[0], np.array([2, -3, 0]) / math.sqrt(13), rtol=1e-6)
    assert not normalized(vectors)[1].any()


def test_the_pyramid():
    places = np.array([[0.1, 0.1], [0.1, 0.9], [0.9, 0.1], [0.9, 0.9], [1.0, 1.0]], np.float32)
    found = regions(places, (1, 2))
    assert found.shape == (5, 5) and found[0].all()
    assert found[1:].sum(0).tolist() == [1] * 5  # each patch in one quarter
    assert [row.nonzero()[0].tolist() for row in found[1:]] == [[0], [1], [2], [3, 4]]
    assert regions(places, (1,)).shape == (1, 5)
