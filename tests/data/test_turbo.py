"""JPEGs by simplejpeg: Pillow's pixels for every kind of JPEG, and Pillow's words for every broken one."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alexnet.data import pixels, turbo
from alexnet.errors import PictureError

pytest.importorskip("simplejpeg")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(turbo, "_alike", 0)
    monkeypatch.setattr(turbo, "_differs", False)
    yield
    turbo.use(True)


def picture(height=37, width=53, seed=0):
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (6, 7, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return (smooth + random.integers(-9, 10, smooth.shape)).clip(0, 255).astype(np.uint8)


def jpeg(made, **how):
    buffer = io.BytesIO()
    Image.fromarray(made).save(buffer, "JPEG", **how)
    return buffer.getvalue()


def trusted(monkeypatch):
    monkeypatch.setattr(turbo, "_alike", turbo.PROOFS)


def both(data, monkeypatch, **how):
    """What is said of it with and without simplejpeg: pixels and notes, or the error."""
    trusted(monkeypatch)
    found = []
    for wanted in (True, False):
        turbo.use(wanted)
        try:
            decoded = pixels.decode_noted(data, "a.jpg", **how)
            found.append((decoded.pixels.tobytes(), decoded.pixels.shape, decoded.notes))
        except PictureError as error:
            found.append(str(error))
    return found


KINDS = [
    {"quality": quality, "subsampling": sampling, "progressive": progressive}
    for quality in (30, 95) for sampling in ("4:4:4", "4:2:2", "4:2:0") for progressive in (False, True)
]  # fmt: skip


@pytest.mark.parametrize("how", KINDS, ids=str)
@pytest.mark.parametrize("shape", [(37, 53), (1, 1), (8, 16), (375, 500)])
def test_the_pixels_are_pillows(how, shape, monkeypatch):
    data = jpeg(picture(*shape), **how)
    assert turbo.decode(data, shape[1], shape[0]) is not None, "it was not asked"
    ours, pillows = both(data, monkeypatch)
    assert ours == pillows


@pytest.mark.parametrize("turn", range(1, 9))
def test_turned_pictures_are_turned(turn, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = turn
    ours, pillows = both(jpeg(picture(), exif=exif), monkeypatch)
    assert ours == pillows and (ours[1] == (53, 37, 3)) == (turn > 4)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colors_are_left_to_pillow(mode, monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(buffer, "JPEG")
    monkeypatch.setattr(turbo, "decode", lambda *how: pytest.fail("it was asked"))
    assert pixels.decode(buffer.getvalue()).shape == (37, 53, 3)


@given(st.integers(0, 2**32), st.integers(1, 6), st.booleans())
def test_damaged_ones_end_alike(seed, flips, cut):
    random, data = np.random.default_rng(seed), bytearray(jpeg(picture(seed=seed % 7), quality=80))
    for at in random.integers(2, len(data), flips):
        data[at] = random.integers(256)
    data = bytes(data[: random.integers(10, len(data))]) if cut else bytes(data)
    with pytest.MonkeyPatch.context() as monkeypatch:
        ours, pillows = both(data, monkeypatch)
        assert ours == pillows
        ours, pillows = both(data, monkeypatch, allow_truncated=True)
        assert ours == pillows


def test_it_is_trusted_after_some_pictures_alike():
    for number in range(turbo.PROOFS):
        assert not turbo.proved()
        pixels.decode(jpeg(picture(seed=number)))
    assert turbo.proved()


def test_one_other_pixel_ends_it(monkeypatch):
    import simplejpeg

    true, calls = simplejpeg.decode_jpeg, []

    def wrong(data, colors, strict):
        calls.append(data)
        found = true(data, colors, strict=strict)
        found[0, 0, 0] ^= 1
        return found

    monkeypatch.setattr(turbo, "_decoder", lambda: wrong)
    data = jpeg(picture())
    turbo.use(False)
    right = pixels.decode(data)
    turbo.use(True)
    assert np.array_equal(pixels.decode(data), right) and len(calls) == 1
    assert np.array_equal(pixels.decode(data), right) and len(calls) == 1, "it was asked again"


def test_without_it_pillow_decodes(monkeypatch):
    monkeypatch.setattr(turbo, "_decoder", lambda: None)
    assert pixels.decode(jpeg(picture())).shape == (37, 53, 3) and not turbo.proved()


def test_the_result_may_be_written_to(monkeypatch):
    trusted(monkeypatch)
    found = pixels.decode(jpeg(picture()))
    found[:] = 0
    assert not found.any()
