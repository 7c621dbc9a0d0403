"""Descriptors, codebooks and Fisher vectors against definitions written out slowly, and against scikit-image."""

import math
import sys

import numpy as np
import pytest

from alexnet.errors import DataError
from alexnet.experiments.fisher.features import (
    Grid,
    Mixture,
    center_crop,
    extract_descriptors,
    fisher_vectors,
    fit_codebook,
    normalize,
    num_patches,
    opencv,
    posteriors,
    pyramid_members,
    scaled_sizes,
)

pytest.importorskip("cv2")
GRID = Grid(step=4, patch=24, scales=3)


def image(seed=0, side=64):
    """Blocks of 8 pixels in random colors."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (side // 8, side // 8, 3)).astype(np.float32)
    return np.kron(small, np.ones((8, 8, 1))).astype(np.uint8)


def test_number_of_patches():
    assert scaled_sizes(64, GRID) == [64, 45, 32]
    descriptors = extract_descriptors(image(), GRID)
    # (64 − 24) / 4 + 1 = 11, (45 − 24) / 4 + 1 = 6, (32 − 24) / 4 + 1 = 3 a side
    assert (
        len(descriptors.sift)
        == len(descriptors.color)
        == len(descriptors.centers)
        == num_patches(64, GRID)
        == 121 + 36 + 9
    )
    assert descriptors.sift.shape[1] == 128 and descriptors.color.shape[1] == 96
    assert descriptors.centers.min() > 0 and descriptors.centers.max() < 1
    assert np.isfinite(descriptors.sift).all() and np.isfinite(descriptors.color).all()


def test_sift_is_of_length_one_and_flat_patches_are_zero():
    lengths = (extract_descriptors(image(), GRID).sift ** 2).sum(1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)
    flat = extract_descriptors(np.full((64, 64, 3), 90, np.uint8), GRID)
    assert not flat.sift.any()
    np.testing.assert_allclose(flat.color[:, :3], 90 / 255, rtol=1e-5)


def test_patches_move_with_the_image():
    """Moved by a step, the same patches lie one place further: the same descriptors, away from the border."""
    one = Grid(4, 24, 1)
    whole = image(1, 80)
    first, second = (extract_descriptors(whole[:64, at : at + 64], one) for at in (0, 4))
    grid = np.arange(121).reshape(11, 11)
    here, there = grid[2:-2, 3:-2].ravel(), grid[2:-2, 2:-3].ravel()
    np.testing.assert_allclose(first.sift[here], second.sift[there], atol=0.02)
    np.testing.assert_allclose(first.color[here], second.color[there], atol=1e-5)


def test_sift_points_where_the_gray_levels_rise():
    """Of a ramp to the right, all gradients are in one of eight directions; of one downwards, a quarter turn away."""
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 3, (64, 1))
    right, down = (extract_descriptors(np.stack([r] * 3, 2), Grid(4, 24, 1)).sift for r in (ramp, ramp.T))
    votes = [(sift[60].reshape(16, 8) ** 2).sum(0) for sift in (right, down)]
    assert votes[0].max() > 0.95 and votes[1].max() > 0.95
    assert (votes[0].argmax() - votes[1].argmax()) % 8 in (2, 6)


def test_colors_are_means_and_deviations_of_cells():
    """Each cell's own pixels, counted out."""
    descriptors, whole = extract_descriptors(image(2), Grid(4, 24, 1)), image(2) / 255
    for patch in (0, 37, 120):
        row, column = divmod(patch, 11)
        square = whole[4 * row : 4 * row + 24, 4 * column : 4 * column + 24]
        cells = square.reshape(4, 6, 4, 6, 3).transpose(0, 2, 1, 3, 4).reshape(16, 36, 3)
        expected = np.concatenate([cells.mean(1), cells.std(1)], 1).ravel()
        np.testing.assert_allclose(descriptors.color[patch], expected, atol=2e-3)


def test_the_center_crop():
    assert center_crop(image(), 32).shape == (32, 32, 3)
    np.testing.assert_array_equal(center_crop(image(), 32), image()[16:48, 16:48])
    assert center_crop(image(), 0).shape == center_crop(image(), 999).shape == (64, 64, 3)


def test_image_smaller_than_a_patch():
    with pytest.raises(DataError) as caught:
        extract_descriptors(image(0, 16), GRID)
    assert str(caught.value) == "an image of 16 pixels is smaller than a patch of 24; must be at least 24 pixels"


def test_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError) as caught:
        opencv()
    text = str(caught.value)
    assert text.startswith("Fisher vectors need OpenCV, which cannot be imported (")
    assert (
        text.endswith("pip install 'alexnet[contest]', or leave them out: --nets without fisher") and "\n" not in text
    )


# --- codebooks


def clouds(count=900):
    random = np.random.default_rng(0)
    centers = random.normal(size=(3, 6)) * 4
    which = random.integers(0, 3, count)
    return (centers[which] + random.normal(size=(count, 6)) * 0.3).astype(np.float32), which


def test_axes_are_principal_and_of_unit_variance_on_the_whole():
    x, _ = clouds()
    book = fit_codebook(x, 4, 3, seed=0)
    result = book.project(x)
    covariance = np.cov(result.T)
    assert np.abs(result.mean(0)).max() < 1e-3
    off = covariance - np.diag(np.diag(covariance))
    assert np.abs(off).max() < 1e-3  # along principal axes nothing goes together
    assert np.all(np.diff(np.diag(covariance)) <= 1e-6)  # the longest first
    assert abs(np.diag(covariance).mean() - 1) < 1e-3
    values = np.linalg.eigvalsh(np.cov(x.T.astype(np.float64)))[::-1][:4]
    np.testing.assert_allclose(np.diag(covariance), values / values.mean(), rtol=1e-3)


def test_three_clouds_are_result_again():
    x, which = clouds()
    book = fit_codebook(x, 6, 3, seed=0)
    owners = posteriors(book.project(x), book.mixture).argmax(1)
    pairs = {(a, b) for a, b in zip(which, owners, strict=True)}
    assert len(pairs) == 3  # each cloud has one Gaussian
    assert abs(float(book.mixture.weights.sum()) - 1) < 1e-5 and book.mixture.variances.min() > 0


def test_codebook_depends_on_the_seed_only():
    x, _ = clouds()
    first, second = fit_codebook(x, 4, 5, seed=3), fit_codebook(x, 4, 5, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(first.mixture, second.mixture, strict=True))


def test_axes_without_variance_are_left_out():
    """Gray images: colors that are three times the same have a third of the axes."""
    x, _ = clouds()
    book = fit_codebook(np.concatenate([x, x, x], 1), 18, 3, seed=0)
    assert book.axes.shape == (18, 6)


def test_few_descriptors_have_few_gaussians():
    x, _ = clouds(20)
    assert len(fit_codebook(x, 6, 64, seed=0).mixture.weights) == 5
    flat = fit_codebook(np.ones((50, 6), np.float32), 4, 8, seed=0)  # all alike
    assert np.isfinite(flat.project(np.ones((2, 6), np.float32))).all()


# --- Fisher vectors

ALL = np.ones((1, 40), bool)


def example(seed=0, count=40, gaussians=3, length=5):
    random = np.random.default_rng(seed)
    weights = random.dirichlet(np.ones(gaussians) * 3)
    mixture = Mixture(
        *(
            np.asarray(a, np.float32)
            for a in (weights, random.normal(size=(gaussians, length)), random.uniform(0.3, 2, (gaussians, length)))
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
def test_fisher_vectors_match_the_definition(seed):
    descriptors, mixture = example(seed)
    result = fisher_vectors(descriptors, mixture, ALL)
    assert result.shape == (1, mixture.vector_length) == (1, 2 * 3 * 5)
    np.testing.assert_allclose(result[0], slowly(descriptors, mixture), rtol=2e-4, atol=2e-6)  # float32


def test_fisher_vectors_match_scikit_image():
    """scikit-image 0.26 has gradients by the weights before, which are left out here, and those by the deviations with
    the other sign: to a linear classifier that is the same."""
    feature = pytest.importorskip("skimage.feature")
    from sklearn.mixture import GaussianMixture

    descriptors, mixture = example(7)
    theirs = GaussianMixture(3, covariance_type="diag")
    theirs.weights_, theirs.means_, theirs.covariances_ = (a.astype(np.float64) for a in mixture)
    theirs.precisions_cholesky_ = 1 / np.sqrt(theirs.covariances_)
    signs = np.repeat([1, -1], 15)
    plain = signs * feature.fisher_vector(descriptors.astype(np.float64), theirs)[3:]
    ours = fisher_vectors(descriptors, mixture, ALL)
    np.testing.assert_allclose(ours[0], plain, rtol=1e-3, atol=1e-5)
    improved = signs * feature.fisher_vector(descriptors.astype(np.float64), theirs, improved=True, alpha=0.5)[3:]
    np.testing.assert_allclose(normalize(ours)[0], improved / np.linalg.norm(improved), rtol=1e-3, atol=1e-5)


def test_posteriors_far_from_every_gaussian_are_shares_still():
    descriptors, mixture = example()
    shares = posteriors(1000 * descriptors, mixture)
    assert np.isfinite(shares).all() and np.allclose(shares.sum(1), 1, atol=1e-6)


def test_a_region_is_an_image_of_its_own():
    descriptors, mixture = example()
    members = np.zeros((3, 40), bool)
    members[0, :10], members[1, 10:] = True, True  # the third region is empty
    result = fisher_vectors(descriptors, mixture, members)
    np.testing.assert_allclose(result[0], slowly(descriptors[:10], mixture), rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(result[1], slowly(descriptors[10:], mixture), rtol=2e-4, atol=2e-6)
    assert not result[2].any()


def test_the_gradient_vanishes_where_the_mixture_fits():
    """At the maximum of the likelihood the gradient is zero: one Gaussian with the descriptors' own moments."""
    descriptors, _ = example(3)
    one = Mixture(np.ones(1, np.float32), descriptors.mean(0)[None], descriptors.var(0)[None])
    assert np.abs(fisher_vectors(descriptors, one, ALL)).max() < 1e-6


def test_normalize():
    vectors = np.array([[4.0, -9.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    np.testing.assert_allclose(normalize(vectors)[0], np.array([2, -3, 0]) / math.sqrt(13), rtol=1e-6)
    assert not normalize(vectors)[1].any()


def test_pyramid_members():
    centers = np.array([[0.1, 0.1], [0.1, 0.9], [0.9, 0.1], [0.9, 0.9], [1.0, 1.0]], np.float32)
    result = pyramid_members(centers, (1, 2))
    assert result.shape == (5, 5) and result[0].all()
    assert result[1:].sum(0).tolist() == [1] * 5  # each patch in one quarter
    assert [row.nonzero()[0].tolist() for row in result[1:]] == [[0], [1], [2], [3, 4]]
    assert pyramid_members(centers, (1,)).shape == (1, 5)
