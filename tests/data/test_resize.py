"""The compiled resizing beside Pillow's: the same pixels, for every shape."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.data import pixels, resize

from .test_pixels import slow_resize

SHAPES = [(41, 60), (119, 30), (7, 90), (90, 7), (33, 33), (20, 21), (375, 500), (256, 300)]
SHAPES += [(1, 1), (1, 2), (2, 1), (1, 5000), (5000, 1)]


@pytest.fixture(scope="module", autouse=True)
def built():
    if not resize.build():
        pytest.skip("no C compiler here")


@pytest.fixture(autouse=True)
def again():
    yield
    resize.use(True)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def both(made, size, how):
    found = []
    for wanted in (True, False):
        resize.use(wanted)
        found.append(pixels.fit(made, size, how))
    return found


@pytest.mark.parametrize("how", ["crop", "pad", "squash"])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_the_pixels_are_pillows(height, width, how):
    for size in (1, 2, 32, 33, 256):
        ours, pillows = both(picture(height, width), size, how)
        assert np.array_equal(ours, pillows), (size, how)
        assert ours.flags.writeable and ours.shape == (size, size, 3)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 300), st.sampled_from(["crop", "pad", "squash"]))
def test_of_any_picture(height, width, size, how):
    ours, pillows = both(picture(height, width, seed=size), size, how)
    assert np.array_equal(ours, pillows)


def test_they_are_those_of_the_formula():
    made = picture(41, 60)
    assert np.array_equal(pixels.fit(made, 33, "squash"), slow_resize(made, 33, (0, 0, 60, 41)))


def test_a_strip_is_left_to_pillow(monkeypatch):
    """Its windows would be as long as the strip, one for each place of the result: 800 MB for 50 megapixels."""
    made, asked = picture(1, 20_000), []
    monkeypatch.setattr(resize, "resized", lambda *how: asked.append(how))
    assert pixels.fit(made, 100, "squash").shape == (100, 100, 3) and not asked


def test_white_stays_white_and_black_black():
    for value in (0, 255):
        assert (pixels.fit(np.full((311, 207, 3), value, np.uint8), 100) == value).all()


def test_a_part_of_an_array_and_one_in_another_order():
    made = picture(50, 60)
    for part in (made[::-1], made[:, ::-1], made[5:40, 3:50], np.asfortranarray(made)):
        ours, pillows = both(part, 32, "crop")
        assert np.array_equal(ours, pillows)


def test_without_a_compiler_pillow_resizes(monkeypatch):
    monkeypatch.setattr(resize._native, "built", {})
    resize._native.compiled.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not resize.build()
    assert pixels.fit(picture(41, 60), 33).shape == (33, 33, 3)
    resize._native.compiled.cache_clear()


def test_many_threads_have_the_same_pixels():
    from concurrent.futures import ThreadPoolExecutor

    made = [picture(60 + i, 80, seed=i) for i in range(16)]
    alone = [pixels.fit(one, 48) for one in made]
    with ThreadPoolExecutor(8) as pool:
        for one, expected in zip(pool.map(lambda m: pixels.fit(m, 48), made * 4), alone * 4, strict=True):
            assert np.array_equal(one, expected)
