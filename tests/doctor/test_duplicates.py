"""Copies are found, others are not, and the fast search agrees with a slow one."""

import numpy as np
import pytest
from PIL import Image

from alexnet.data import decode
from alexnet.doctor import duplicates
from alexnet.doctor.duplicates import (
    MAX_COLOR_DIFF,
    MAX_DISTANCE,
    MAX_PIXEL_DIFF,
    MIN_CONTRAST,
    frequencies,
    near_duplicates,
)
from alexnet.doctor.images import THUMBNAIL_SIZE

from .faulty_data import paint, saved


def thumbnail(image: Image.Image) -> np.ndarray:
    return decode.fit(np.asarray(image.convert("RGB")), THUMBNAIL_SIZE, "squash")


def again(image: Image.Image, kind: str, **options) -> Image.Image:
    return Image.fromarray(decode.decode(saved(image, kind, **options)))


COPIES = {
    "png": lambda i: again(i, "PNG"),
    "jpeg 75": lambda i: again(i, "JPEG", quality=75),
    "jpeg 40": lambda i: again(i, "JPEG", quality=40),
    "webp": lambda i: again(i, "WEBP", quality=60),
    "half": lambda i: again(i.resize((i.width // 2, i.height // 2)), "JPEG", quality=80),
    "double": lambda i: again(i.resize((i.width * 2, i.height * 2), Image.Resampling.LANCZOS), "JPEG", quality=70),
    "square": lambda i: i.resize((64, 64), Image.Resampling.LANCZOS),
    "brighter": lambda i: i.point(lambda v: min(255, v + 4)),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_found_and_nothing_else(copy):
    originals = [paint(seed, seed % 3, (192, 144)) for seed in range(24)]
    thumbnails = np.stack(
        [thumbnail(image) for image in originals] + [thumbnail(COPIES[copy](image)) for image in originals]
    )
    assert near_duplicates(thumbnails).tolist() == [[i, i + 24] for i in range(24)]


def slow(thumbnails: np.ndarray) -> set[tuple[int, int]]:
    """Every pair, in float64, by the definition."""
    values = thumbnails.astype(np.float64)
    means = values.mean(axis=(1, 2))
    flat = (values - means[:, None, None]).reshape(len(values), -1)
    contrast = np.sqrt((flat**2).mean(axis=1))
    found = set()
    for i in range(len(values)):
        for j in range(i + 1, len(values)):
            if min(contrast[i], contrast[j]) < MIN_CONTRAST:
                continue
            far = np.linalg.norm(flat[i] / np.linalg.norm(flat[i]) - flat[j] / np.linalg.norm(flat[j]))
            spot = np.abs(values[i] - values[j]).max()
            if far <= MAX_DISTANCE and np.abs(means[i] - means[j]).max() <= MAX_COLOR_DIFF and spot <= MAX_PIXEL_DIFF:
                found.add((i, j))
    return found


def test_parts_of_many_points_have_the_pairs_of_all_distances():
    """More points than a part and than a block; a crowd of equal points keeps the nearest ones, and stays connected."""
    draw = np.random.default_rng(0)
    base = draw.normal(0, 0.1, (5000, 24)) * np.linspace(2, 0.5, 24)
    near = base[:300] + draw.normal(0, 0.03, (300, 24))  # some within reach of theirs, some not
    points = np.concatenate([base, near, np.tile(base[:1] + 3, (200, 1))]).astype(np.float32)
    points = points[draw.permutation(len(points))]
    exact = points.astype(np.float64)
    distance = np.sqrt(np.maximum((exact**2).sum(1)[:, None] + (exact**2).sum(1) - 2 * exact @ exact.T, 0))
    crowd = exact[:, 0] > 2
    found = duplicates._neighbors(points)

    def outside_the_crowd(pairs):
        return {(i, j) for i, j in pairs.tolist() if not crowd[i]}

    least, most = (
        outside_the_crowd(np.argwhere(np.triu(distance <= limit, 1))) for limit in (MAX_DISTANCE, 1.002 * MAX_DISTANCE)
    )
    assert least <= outside_the_crowd(found) <= most and 50 < len(least) <= len(most) < 300
    among = found[crowd[found[:, 0]]]
    assert crowd[among].all() and set(among.reshape(-1).tolist()) == set(np.flatnonzero(crowd).tolist())
    assert len(among) <= duplicates.NEIGHBORS * crowd.sum()


def test_the_search_agrees_with_all_pairs():
    draw = np.random.default_rng(3)
    base = [thumbnail(paint(seed)) for seed in range(25)]
    noisy = [np.clip(t + draw.normal(0, s, t.shape), 0, 255).astype(np.uint8) for t in base for s in (2.0, 5.0, 9.0)]
    thumbnails = np.stack(
        base + noisy + [np.full((THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3), 100 + k, np.uint8) for k in range(4)]
    )
    expected = slow(thumbnails)
    assert {tuple(pair) for pair in near_duplicates(thumbnails).tolist()} == expected and 25 < len(expected) < 150


def test_low_frequencies_never_make_a_distance_larger():
    table = frequencies(THUMBNAIL_SIZE)
    assert np.allclose(table @ table.T, np.eye(THUMBNAIL_SIZE), atol=1e-12)
    signal = np.random.default_rng(0).normal(size=THUMBNAIL_SIZE)
    from scipy.fft import dct

    assert np.allclose(table @ signal, dct(signal, norm="ortho"))


def test_plain_images_and_small_changes_are_no_copies():
    plain = [np.full((THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3), level, np.uint8) for level in (0, 3, 250)]
    base = thumbnail(paint(1))
    changed = base.copy()
    changed[10:13, 10:13] ^= 0x80  # something small that matters
    assert near_duplicates(np.stack([*plain, base, changed])).tolist() == []
    assert near_duplicates(np.zeros((0, THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3), np.uint8)).shape == (0, 2)
    assert near_duplicates(np.stack([base])).shape == (0, 2)


def test_small_images_must_be_nearer():
    base = thumbnail(paint(1))
    near = np.clip(base + np.random.default_rng(0).normal(0, 5, base.shape), 0, 255).astype(np.uint8)
    pair = np.stack([base, near])
    assert near_duplicates(pair).tolist() == [[0, 1]] and near_duplicates(pair, np.array([False, True])).tolist() == []
    assert near_duplicates(np.stack([base, base]), np.array([True, True])).tolist() == [[0, 1]]


def test_a_crowd_of_one_image_is_chained_not_squared():
    one, other = thumbnail(paint(1)), thumbnail(paint(2))
    pairs = near_duplicates(np.stack([one] * 3000 + [other]))
    assert len(pairs) < 100_000 and set(pairs.reshape(-1).tolist()) == set(range(3000))
