"""Exact sums: the plain formulas, whatever the chunks."""

import numpy as np

from alexnet.data.splits import Sums


def test_the_plain_formulas():
    images = np.random.default_rng(2).integers(0, 256, (20, 6, 6, 3), np.uint8)
    found = Sums(6).add(images).statistics()
    np.testing.assert_allclose(found.mean_image, images.mean(0), rtol=1e-6)
    pixels = images.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(found.channel_means, pixels.mean(0), rtol=1e-12)
    covariance = found.color_axes @ np.diag(found.color_std**2) @ found.color_axes.T
    np.testing.assert_allclose(covariance, np.cov(pixels.T, bias=True), atol=1e-8)


def test_statistics_do_not_depend_on_chunks_and_gray_has_one_axis():
    images = np.random.default_rng(1).integers(0, 256, (40, 5, 5, 3), np.uint8)
    whole, parts = Sums(5).add(images), Sums(5)
    for start in (30, 0, 13):
        parts.merge(Sums(5).add(images[start : {30: 40, 0: 13, 13: 30}[start]]))
    for one, two in zip(whole.statistics(), parts.statistics(), strict=True):
        np.testing.assert_array_equal(one, two)
    gray = Sums(5).add(np.repeat(images[..., :1], 3, -1)).statistics()
    assert gray.color_std[0] > 100 and gray.color_std[1:].tolist() == [0, 0]
    assert Sums(5).add(images[:1] * 0).statistics().color_std.tolist() == [0, 0, 0]


def test_over_no_images():
    found = Sums(5).statistics()
    assert found.mean_image.shape == (5, 5, 3) and found.mean_image.dtype == np.float32 and not found.mean_image.any()
    assert found.channel_means.tolist() == found.color_std.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(found.color_axes, np.eye(3))
