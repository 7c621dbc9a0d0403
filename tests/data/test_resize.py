"""The compiled resizing beside Pillow's: the same pixels, for every shape."""

import ctypes
import mmap
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet import kernels
from alexnet.data import decode, resize

from .test_decode import slow_resize

SHAPES = [(41, 60), (119, 30), (7, 90), (90, 7), (33, 33), (20, 21), (375, 500), (256, 300)]
SHAPES += [(1, 1), (1, 2), (2, 1), (1, 5000), (5000, 1)]


@pytest.fixture(scope="module", autouse=True)
def built():
    if not resize.build():
        pytest.skip("no C compiler here")


@pytest.fixture(autouse=True)
def again():
    yield
    kernels.use("auto", "resize")


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def extreme(height, width, seed=0):
    return image(height, width, seed) // 128 * 255


def both(made, size, how):
    found = []
    for wanted in (True, False):
        kernels.use("auto" if wanted else "off", "resize")
        found.append(decode.fit(made, size, how))
    return found


@pytest.mark.parametrize("how", ["crop", "pad", "squash"])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_the_pixels_are_pillows(height, width, how):
    for size in (1, 2, 32, 33, 256):
        ours, pillows = both(image(height, width), size, how)
        assert np.array_equal(ours, pillows), (size, how)
        assert ours.flags.writeable and ours.shape == (size, size, 3)


def test_resizing_has_its_own_switch():
    with kernels.disabled("lrn", "winograd"):
        assert resize.in_use()
    with kernels.disabled("resize"):
        assert kernels.enabled("lrn") and not resize.in_use()
    with kernels.disabled():
        assert not resize.in_use()


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 300), st.sampled_from(["crop", "pad", "squash"]))
def test_of_any_image(height, width, size, how):
    for make in (image, extreme):
        ours, pillows = both(make(height, width, seed=size), size, how)
        assert np.array_equal(ours, pillows)


def across(name, made, how, out):
    """``name`` of resize.c, on arrays as they lie."""
    last = np.append(made[-1].reshape(-1), np.uint8(0))
    sizes = map(ctypes.c_int64, (*made.shape[:2], out.shape[1], how.weights.shape[1]))
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (made, last, out, how.first, how.weights)]
    getattr(resize._libraries.built["resize"], name)(*pointers[:3], *sizes, *pointers[3:])


@given(st.integers(1, 70), st.integers(1, 700), st.floats(0, 1), st.floats(0, 1), st.integers(1, 300))
def test_four_multiplications_at_once_are_four_one_by_one(rows, length, start, end, places):
    start, end = sorted((start * length, end * length))
    if not 1e-3 < (end - start) / places <= resize.MAX_SCALE:
        return
    how = resize.windows(length, start, end, places)
    for make in (image, extreme):
        found = [np.empty((rows, places, 3), np.uint8) for _ in range(2)]
        for name, out in zip(("across", "across_plain"), found, strict=True):
            across(name, make(rows, length), how, out)
        assert np.array_equal(*found)


def at_the_end(array):
    """``array`` where memory ends: whoever reads or writes a byte behind it, or a page before it, is killed."""
    size, page = array.nbytes, mmap.PAGESIZE
    room = mmap.mmap(-1, (2 + -(-size // page)) * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    for forbidden in (address, address + len(room) - page):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(page), 0) == 0
    inside = np.frombuffer(room, array.dtype, array.size, len(room) - page - size).reshape(array.shape)
    inside[...] = array
    return inside


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize(("length", "places"), [(1, 1), (1, 7), (2, 300), (21, 16), (22, 15), (500, 256), (5000, 90)])
def test_nothing_beyond_the_arrays_is_touched(rows, length, places):
    how = resize.windows(length, 0.0, float(length), places)
    expected = np.empty((rows, places, 3), np.uint8)
    across("across", image(rows, length), how, expected)
    out = at_the_end(np.zeros_like(expected))
    across("across", at_the_end(image(rows, length)), resize.Windows(*map(at_the_end, how)), out)
    assert np.array_equal(out, expected)


def test_they_are_those_of_the_formula():
    made = image(41, 60)
    assert np.array_equal(decode.fit(made, 33, "squash"), slow_resize(made, 33, (0, 0, 60, 41)))


def test_a_strip_is_left_to_pillow(monkeypatch):
    """Its windows would be as long as the strip, one for each place of the result: 800 MB for 50 megapixels."""
    made, asked = image(1, 20_000), []
    monkeypatch.setattr(resize, "resized", lambda *how: asked.append(how))
    assert decode.fit(made, 100, "squash").shape == (100, 100, 3) and not asked


def test_white_stays_white_and_black_black():
    for value in (0, 255):
        assert (decode.fit(np.full((311, 207, 3), value, np.uint8), 100) == value).all()


def test_a_part_of_an_array_and_one_in_another_order():
    made = image(50, 60)
    for part in (made[::-1], made[:, ::-1], made[5:40, 3:50], np.asfortranarray(made)):
        ours, pillows = both(part, 32, "crop")
        assert np.array_equal(ours, pillows)


def test_without_a_compiler_pillow_resizes(monkeypatch):
    monkeypatch.setattr(resize._libraries, "built", {})
    resize._libraries.compiled.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not resize.build()
    assert decode.fit(image(41, 60), 33).shape == (33, 33, 3)
    resize._libraries.compiled.cache_clear()


def test_many_threads_have_the_same_pixels():
    from concurrent.futures import ThreadPoolExecutor

    made = [image(60 + i, 80, seed=i) for i in range(16)]
    alone = [decode.fit(one, 48) for one in made]
    with ThreadPoolExecutor(8) as pool:
        for one, expected in zip(pool.map(lambda m: decode.fit(m, 48), made * 4), alone * 4, strict=True):
            assert np.array_equal(one, expected)
