import numpy as np

from alexnet.experiments.fisher import features


def clouds(count=900):
    random = np.random.default_rng(0)
    centers = random.normal(size=(3, 6)) * 4
    which = random.integers(0, 3, count)
    return (centers[which] + random.normal(size=(count, 6)) * 0.3).astype(np.float32), which


def test_axes_are_principal_and_of_unit_variance_on_the_whole():
    x, _ = clouds()
    book = features.learn(x, 4, 3, seed=0)
    found = book.project(x)
    covariance = np.cov(found.T)
    assert np.abs(found.mean(0)).max() < 1e-3
    off = covariance - np.diag(np.diag(covariance))
    assert np.abs(off).max() < 1e-3  # along principal axes nothing goes together
    assert np.all(np.diff(np.diag(covariance)) <= 1e-6)  # the longest first
    assert abs(np.diag(covariance).mean() - 1) < 1e-3
    values = np.linalg.eigvalsh(np.cov(x.T.astype(np.float64)))[::-1][:4]
    np.testing.assert_allclose(np.diag(covariance), values / values.mean(), rtol=1e-3)


def test_three_clouds_are_found_again():
    x, which = clouds()
    book = features.learn(x, 6, 3, seed=0)
    from alexnet.experiments.fisher.features import posteriors

    owners = posteriors(book.project(x), book.mixture).argmax(1)
    pairs = {(a, b) for a, b in zip(which, owners, strict=True)}
    assert len(pairs) == 3  # each cloud has one Gaussian
    assert abs(float(book.mixture.weights.sum()) - 1) < 1e-5 and book.mixture.variances.min() > 0


def test_the_same_seed_gives_the_same():
    x, _ = clouds()
    first, second = features.learn(x, 4, 5, seed=3), features.learn(x, 4, 5, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(first.mixture, second.mixture, strict=True))


def test_axes_without_variance_are_left_out():
    """Gray images: colors that are three times the same have a third of the axes."""
    x, _ = clouds()
    book = features.learn(np.concatenate([x, x, x], 1), 18, 3, seed=0)
    assert book.axes.shape == (18, 6)


def test_few_descriptors_have_few_gaussians():
    x, _ = clouds(20)
    assert len(features.learn(x, 6, 64, seed=0).mixture.weights) == 5
    flat = features.learn(np.ones((50, 6), np.float32), 4, 8, seed=0)  # all alike
    assert np.isfinite(flat.project(np.ones((2, 6), np.float32))).all()
