import sys

import numpy as np
import pytest

from alexnet.errors import DataError
from alexnet.experiments.fisher.features import Grid, count, describe, middle, opencv, sizes

pytest.importorskip("cv2")
GRID = Grid(step=4, patch=24, scales=3)


def image(seed=0, side=64):
    """Blobs: smooth enough that a patch knows its own gradients."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (side // 8, side // 8, 3)).astype(np.float32)
    return np.kron(small, np.ones((8, 8, 1))).astype(np.uint8)


def test_as_many_patches_as_were_promised():
    assert sizes(64, GRID) == [64, 45, 32]
    local = describe(image(), GRID)
    # (64 − 24) / 4 + 1 = 11, (45 − 24) / 4 + 1 = 6, (32 − 24) / 4 + 1 = 3 a side
    assert len(local.sift) == len(local.color) == len(local.places) == count(64, GRID) == 121 + 36 + 9
    assert local.sift.shape[1] == 128 and local.color.shape[1] == 96
    assert local.places.min() > 0 and local.places.max() < 1
    assert np.isfinite(local.sift).all() and np.isfinite(local.color).all()


def test_sift_is_of_length_one_and_flat_patches_are_zero():
    lengths = (describe(image(), GRID).sift ** 2).sum(1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)
    flat = describe(np.full((64, 64, 3), 90, np.uint8), GRID)
    assert not flat.sift.any()
    np.testing.assert_allclose(flat.color[:, :3], 90 / 255, rtol=1e-5)


def test_patches_move_with_the_image():
    """Moved by a step, the same patches lie one place further: the same descriptors, away from the border."""
    one = Grid(4, 24, 1)
    whole = image(1, 80)
    first, second = (describe(whole[:64, at : at + 64], one) for at in (0, 4))
    grid = np.arange(121).reshape(11, 11)
    here, there = grid[2:-2, 3:-2].ravel(), grid[2:-2, 2:-3].ravel()
    np.testing.assert_allclose(first.sift[here], second.sift[there], atol=0.02)
    np.testing.assert_allclose(first.color[here], second.color[there], atol=1e-5)


def test_sift_points_where_the_gray_levels_rise():
    """Of a ramp to the right, all gradients are in one of eight directions; of one downwards, a quarter turn away."""
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 3, (64, 1))
    right, down = (describe(np.stack([r] * 3, 2), Grid(4, 24, 1)).sift for r in (ramp, ramp.T))
    votes = [(sift[60].reshape(16, 8) ** 2).sum(0) for sift in (right, down)]
    assert votes[0].max() > 0.95 and votes[1].max() > 0.95
    assert (votes[0].argmax() - votes[1].argmax()) % 8 in (2, 6)


def test_colors_are_means_and_deviations_of_cells():
    """Each cell's own pixels, counted out."""
    local, whole = describe(image(2), Grid(4, 24, 1)), image(2) / 255
    for patch in (0, 37, 120):
        row, column = divmod(patch, 11)
        square = whole[4 * row : 4 * row + 24, 4 * column : 4 * column + 24]
        cells = square.reshape(4, 6, 4, 6, 3).transpose(0, 2, 1, 3, 4).reshape(16, 36, 3)
        expected = np.concatenate([cells.mean(1), cells.std(1)], 1).ravel()
        np.testing.assert_allclose(local.color[patch], expected, atol=2e-3)


def test_the_middle():
    assert middle(image(), 32).shape == (32, 32, 3)
    np.testing.assert_array_equal(middle(image(), 32), image()[16:48, 16:48])
    assert middle(image(), 0).shape == middle(image(), 999).shape == (64, 64, 3)


def test_a_image_too_small():
    with pytest.raises(DataError) as caught:
        describe(image(0, 16), GRID)
    assert str(caught.value) == "an image of 16 pixels holds no patch of 24; must be at least 24 pixels"


def test_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError) as caught:
        opencv()
    text = str(caught.value)
    assert text.startswith("Fisher vectors need OpenCV, which can not be imported (")
    assert (
        text.endswith("pip install 'alexnet[contest]', or leave them out: --nets without fisher") and "\n" not in text
    )
