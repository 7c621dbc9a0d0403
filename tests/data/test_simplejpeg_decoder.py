"""JPEGs by simplejpeg: Pillow's pixels for every kind of JPEG, and Pillow's words for every broken one."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alexnet import kernels
from alexnet.data import decode, simplejpeg_decoder
from alexnet.errors import ImageError

pytest.importorskip("simplejpeg")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(simplejpeg_decoder, "_alike", 0)
    monkeypatch.setattr(simplejpeg_decoder, "_differs", False)
    yield
    kernels.use("auto", "simplejpeg")


def image(height=37, width=53, seed=0):
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (6, 7, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return (smooth + random.integers(-9, 10, smooth.shape)).clip(0, 255).astype(np.uint8)


def jpeg(made, **how):
    buffer = io.BytesIO()
    Image.fromarray(made).save(buffer, "JPEG", **how)
    return buffer.getvalue()


def trusted(monkeypatch):
    monkeypatch.setattr(simplejpeg_decoder, "_alike", simplejpeg_decoder.PROOFS)


def both(data, monkeypatch, **how):
    """What is said of it with and without simplejpeg: pixels and notes, or the error."""
    trusted(monkeypatch)
    found = []
    for wanted in (True, False):
        kernels.use("auto" if wanted else "off", "simplejpeg")
        try:
            decoded = decode.decode_with_notes(data, "a.jpg", **how)
            found.append((decoded.pixels.tobytes(), decoded.pixels.shape, decoded.notes))
        except ImageError as error:
            found.append(str(error))
    return found


KINDS = [
    {"quality": quality, "subsampling": sampling, "progressive": progressive}
    for quality in (30, 95)
    for sampling in ("4:4:4", "4:2:2", "4:2:0")
    for progressive in (False, True)
]


@pytest.mark.parametrize("how", KINDS, ids=str)
@pytest.mark.parametrize("shape", [(37, 53), (1, 1), (8, 16), (375, 500)])
def test_the_pixels_are_pillows(how, shape, monkeypatch):
    data = jpeg(image(*shape), **how)
    assert simplejpeg_decoder.decode(data, shape[1], shape[0]) is not None, "it was not asked"
    ours, pillows = both(data, monkeypatch)
    assert ours == pillows


@pytest.mark.parametrize("turn", range(1, 9))
def test_turned_images_are_turned(turn, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = turn
    ours, pillows = both(jpeg(image(), exif=exif), monkeypatch)
    assert ours == pillows and (ours[1] == (53, 37, 3)) == (turn > 4)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colors_are_left_to_pillow(mode, monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(image()).convert(mode).save(buffer, "JPEG")
    monkeypatch.setattr(simplejpeg_decoder, "decode", lambda *how: pytest.fail("it was asked"))
    assert decode.decode(buffer.getvalue()).shape == (37, 53, 3)


@given(st.integers(0, 2**32), st.integers(1, 6), st.booleans())
def test_damaged_ones_end_alike(seed, flips, cut):
    random, data = np.random.default_rng(seed), bytearray(jpeg(image(seed=seed % 7), quality=80))
    for at in random.integers(2, len(data), flips):
        data[at] = random.integers(256)
    data = bytes(data[: random.integers(10, len(data))]) if cut else bytes(data)
    with pytest.MonkeyPatch.context() as monkeypatch:
        ours, pillows = both(data, monkeypatch)
        assert ours == pillows
        ours, pillows = both(data, monkeypatch, allow_truncated=True)
        assert ours == pillows


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_a_header_that_says_nothing_more_is_not_read_by_pillow(how, monkeypatch):
    data = jpeg(image(), **how)
    assert simplejpeg_decoder.plain(data, 10**6) is None, "before it has proved itself"
    trusted(monkeypatch)
    right = decode.decode_with_notes(data, "a.png")
    monkeypatch.setattr(Image, "open", lambda *how, **more: pytest.fail("it was opened"))
    assert np.array_equal(decode.decode_with_notes(data, "a.png").pixels, right.pixels)
    assert decode.decode_with_notes(data, "a.png").notes == ("JPEG named .png",)
    assert simplejpeg_decoder.plain(data, 37 * 53 - 1) is None, "it is larger than allowed"
    assert simplejpeg_decoder.plain(data[:-2], 10**6) is None, "it has no end"


def test_one_that_says_more_is(monkeypatch):
    trusted(monkeypatch)
    exif = Image.Exif()
    exif[0x0112] = 6
    for more in ({"exif": exif}, {"comment": b"x"}, {"icc_profile": b"x" * 20}, {"keep_rgb": True}, {"xmp": b"x"}):
        data = jpeg(image(), **more)
        assert (
            simplejpeg_decoder.plain(data, 10**6) is None and both(data, monkeypatch)[0] == both(data, monkeypatch)[1]
        )
    for mode in ("L", "CMYK"):
        buffer = io.BytesIO()
        Image.fromarray(image()).convert(mode).save(buffer, "JPEG")
        assert simplejpeg_decoder.plain(buffer.getvalue(), 10**6) is None
    for data in (b"", b"\xff", b"\xff\xdb\0", b"\xff\xda\xff\xd9", b"\xff\xc4\0\2" * 99, b"\xff\xc4\0\0" * 99):
        assert simplejpeg_decoder.plain(b"\xff\xd8" + data, 10**6) is None


@given(st.integers(0, 2**32), st.integers(1, 3), st.booleans(), st.booleans())
def test_damaged_headers_end_alike(seed, flips, progressive, away):
    random, data = np.random.default_rng(seed), bytearray(jpeg(image(), progressive=progressive))
    for at in random.integers(2, data.index(b"\xff\xda") + 14, flips):
        data[at] = random.integers(256)
        del data[at : at + away]
    with pytest.MonkeyPatch.context() as monkeypatch:
        ours, pillows = both(bytes(data), monkeypatch)
        if ours[-1] == ("damaged JPEG data",):  # of which Pillow does not know
            ours = (*ours[:-1], ())
        assert ours == pillows


@pytest.mark.parametrize(("height", "width"), [(16, 32), (375, 500), (256, 256)])
def test_rows_are_written_to_the_cache(height, width):
    """Where a row begins at a multiple of 32 bytes, libjpeg-turbo writes past it."""
    found = simplejpeg_decoder.decode(jpeg(image(height, width)), width, height)
    assert ((found.ctypes.data + 3 * width * np.arange(height)) % 32 != 0).all()


@pytest.mark.parametrize(("height", "width"), [(36, 53), (38, 53), (37, 52), (53, 37), (1, 1)])
def test_another_size_than_the_header_told_is_left_to_pillow(height, width):
    assert simplejpeg_decoder.decode(jpeg(image(37, 53)), width, height) is None


def test_it_is_trusted_after_some_images_alike():
    for number in range(simplejpeg_decoder.PROOFS):
        assert not simplejpeg_decoder.proved()
        decode.decode(jpeg(image(seed=number)))
    assert simplejpeg_decoder.proved()


def test_one_other_pixel_ends_it(monkeypatch):
    import simplejpeg

    true, calls = simplejpeg.decode_jpeg, []

    def wrong(data, colors, **how):
        calls.append(data)
        found = true(data, colors, **how)
        found[0, 0, 0] ^= 1
        return found

    monkeypatch.setattr(simplejpeg_decoder, "_decoder", lambda: wrong)
    data = jpeg(image())
    kernels.use("off", "simplejpeg")
    right = decode.decode(data)
    kernels.use("auto", "simplejpeg")
    assert np.array_equal(decode.decode(data), right) and len(calls) == 1
    assert np.array_equal(decode.decode(data), right) and len(calls) == 1, "it was asked again"


def test_without_it_pillow_decodes(monkeypatch):
    monkeypatch.setattr(simplejpeg_decoder, "_decoder", lambda: None)
    assert decode.decode(jpeg(image())).shape == (37, 53, 3) and not simplejpeg_decoder.proved()


def test_the_result_may_be_written_to(monkeypatch):
    trusted(monkeypatch)
    found = decode.decode(jpeg(image()))
    found[:] = 0
    assert not found.any()
