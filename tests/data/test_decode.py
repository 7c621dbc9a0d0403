"""Every kind of image, every kind of damage: the same rule, one error type."""

import io
import struct
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from alexnet.data import decode, simplejpeg_decoder, structure
from alexnet.errors import ImageError


def smooth(height: int = 48, width: int = 64) -> np.ndarray:
    """A color gradient [H, W, 3], kind to JPEG."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 3 % 256, columns * 3 % 256, (rows + columns) * 2 % 256], -1).astype(np.uint8)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def saved(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, color: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG by hand; ``rows`` with their filter bytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    body = b"".join(extra) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


# -- formats and modes


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode.decode_with_notes(saved(noise(20, 30), kind, **options), "a" + decode.EXTENSIONS[kind][0])
    assert decoded.format == kind and decoded.notes == ()
    np.testing.assert_array_equal(decoded.pixels, noise(20, 30))


def test_jpeg_is_close_and_shape_is_height_width():
    decoded = decode.decode(saved(smooth(), "JPEG", quality=95))
    assert decoded.shape == (48, 64, 3) and decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - smooth()).mean() < 6


def test_gray_and_one_bit():
    gray = noise(9, 7)[..., 0]
    np.testing.assert_array_equal(decode.decode(saved(gray, "PNG")), np.repeat(gray[..., None], 3, 2))
    bits = Image.fromarray(gray).convert("1")
    assert set(np.unique(decode.decode(saved(bits, "PNG")))) == {0, 255}


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_lies_on_white(mode):
    image = Image.fromarray(smooth()).convert(mode)
    alpha = np.zeros((48, 64), np.uint8)
    alpha[:, 32:] = 255
    image.putalpha(Image.fromarray(alpha))
    decoded = decode.decode(saved(image, "PNG"))
    assert (decoded[:, :32] == 255).all()
    np.testing.assert_array_equal(decoded[:, 32:], np.asarray(image.convert("RGB"))[:, 32:])


def test_half_transparent_black_on_white_is_gray():
    decoded = decode.decode(saved(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"))
    assert set(np.unique(decoded)) == {127}


@pytest.mark.parametrize("transparency", [0, bytes([0, 255, 255])])
def test_palette_with_transparency(transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    decoded = decode.decode(saved(image, "PNG", transparency=transparency))
    assert decoded.tolist() == [[[255, 255, 255], [40, 50, 60], [70, 80, 90]]]


def test_gray_and_rgb_with_a_transparent_color():
    gray = saved(Image.fromarray(np.array([[0, 100]], np.uint8)), "PNG", transparency=0)
    assert decode.decode(gray)[0, :, 0].tolist() == [255, 100]
    color = saved(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), "PNG", transparency=(1, 2, 3))
    assert decode.decode(color).tolist() == [[[255] * 3, [4, 5, 6]]]


def test_cmyk_jpeg_as_adobe_writes_it():
    decoded = decode.decode(saved(Image.fromarray(smooth()).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(decoded.astype(int) - smooth()).mean() < 8
    tiff = decode.decode(saved(Image.fromarray(smooth()).convert("CMYK"), "TIFF"))
    np.testing.assert_array_equal(tiff, smooth())


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_gray_is_scaled_with_rounding(kind):
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    values[-1, -1] = 65535
    decoded = decode.decode(saved(Image.fromarray(values), kind))
    np.testing.assert_array_equal(decoded[..., 0], np.round(values / 257))
    assert len(np.unique(decoded)) == 256


def test_sixteen_bit_rgb_keeps_its_levels():
    values = np.arange(0, 65536, 257, dtype=">u2")
    rows = b"\0" + np.repeat(values[:, None], 3, 1).tobytes()
    np.testing.assert_array_equal(decode.decode(png(256, 1, 16, 2, rows))[0, :, 0], np.arange(256))


def test_sixteen_bit_gray_with_transparent_value():
    rows = b"\0" + np.array([257, 514], ">u2").tobytes()
    data = png(2, 1, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", 257)))
    assert decode.decode(data)[0, :, 0].tolist() == [255, 2]


def test_white_is_zero_tiff_is_inverted():
    values = np.array([[0, 65535]], np.uint16)
    data = saved(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    assert decode.decode(data)[0, :, 0].tolist() == [255, 0]


def test_twelve_bit_tiff_uses_its_whole_range():
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHIHxx", tag, 3, 1, value) for tag, value in tags.items())
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0" * 4 + b"\xff\xf8\0"
    assert data.index(b"\xff\xf8\0") == 122
    assert decode.decode(data)[0, :, 0].tolist() == [255, 0x800 * 255 // 4095 + 1]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_of_unknown_range_are_refused(kind):
    with pytest.raises(ImageError, match=r"x\.tif: mode [FI], whose range is unknown; must be 8 or 16 bits"):
        decode.decode(saved(Image.fromarray(np.ones((2, 2), kind)), "TIFF"), "x.tif")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_gives_the_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    decoded = decode.decode_with_notes(data)
    assert decoded.notes == ("animation: first of 3 frames",)
    assert np.unique(decoded.pixels.reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


# -- EXIF

INVERSE = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_exif_rotation_gives_the_same_image(kind, turn):
    truth = np.kron(np.array([[0, 60, 120], [180, 220, 255]], np.uint8), np.ones((16, 16), np.uint8))
    image = Image.fromarray(np.repeat(truth[..., None], 3, 2))
    stored = image if INVERSE[turn] is None else image.transpose(INVERSE[turn])
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode.decode_with_notes(saved(stored, kind, exif=exif, **options))
    assert decoded.pixels.shape == (32, 48, 3)
    assert np.abs(decoded.pixels[..., 0].astype(int) - truth).max() <= 4
    assert decoded.notes == (("EXIF rotation applied",) if turn > 1 else ())


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03", b"Exif\0\0"]
)
def test_corrupt_exif_changes_no_pixel(exif):
    plain = decode.decode(saved(smooth(), "JPEG"))
    decoded = decode.decode_with_notes(saved(smooth(), "JPEG", exif=exif))
    np.testing.assert_array_equal(decoded.pixels, plain)
    assert decoded.notes in [("corrupt EXIF ignored",), ()] and (decoded.notes or exif == b"Exif\0\0")


def test_impossible_rotation_is_ignored_and_noted():
    exif = Image.Exif()
    exif[0x0112] = 77
    decoded = decode.decode_with_notes(saved(smooth(), "PNG", exif=exif))
    assert decoded.notes == ("EXIF rotation 77 ignored",)
    np.testing.assert_array_equal(decoded.pixels, smooth())


# -- files that are not what they say


def test_content_counts_not_the_name():
    assert decode.decode_with_notes(saved(smooth(), "PNG"), "b/x.JPG").notes == ("PNG named .jpg",)
    assert decode.decode_with_notes(saved(smooth(), "PNG"), "x.unknown").notes == ()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "x.jpg: is empty"),
        (b"\xff", "x.jpg: has only 1 byte;"),
        (b"\n <!DOCTYPE html><html>404</html>", "x.jpg: looks like HTML, not an image"),
        (b"<html><body>not found</body>", "x.jpg: looks like HTML, not an image"),
        (b"<?xml version='1.0'?><svg/>", "x.jpg: looks like XML or SVG"),
        (b"version https://git-lfs.github.com/spec/v1", "x.jpg: is a Git LFS pointer"),
        (b"\0\0\0\x10ftypavif\0\0\0\0" + bytes(8), r"x.jpg: cannot be decoded \(truncated or damaged\)"),
        (b"\0\0\0\x14ftypisom\0\0\0\0mp42", "x.jpg: is a video, or HEIF of a coding that is not known"),
        (b"just some text, no image", r"x.jpg: cannot be decoded \(no known image format\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0 never handed to Ghostscript", "no known image format"),
    ],
)
def test_what_is_not_a_image_has_its_reason(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode.decode(data, "x.jpg")


def test_a_name_stays_on_one_line():
    with pytest.raises(ImageError) as caught:
        decode.decode(b"", "a\nb\x1b[31m\udcff.jpg")
    assert str(caught.value).startswith("a\\x0ab\\x1b[31m\\udcff.jpg: is empty")


# -- truncated


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("cut", ["two", "half"])
def test_truncated_is_refused_or_allowed(kind, cut):
    real, options = ("JPEG", {"progressive": True}) if kind == "progressive" else (kind, {})
    if kind == "GIF":
        options = {"interlace": 0}
    data = saved(noise(100, 100), real, **options)
    short = data[: -2 if cut == "two" else len(data) // 2]
    if kind == "GIF" and cut == "two":
        short = data[:-10]  # the last two bytes of a GIF are ends of lists: no pixel misses
    with pytest.raises(ImageError, match=rf"photo: {real} is truncated; must be a whole"):
        decode.decode(short, "photo")
    decoded = decode.decode_with_notes(short, "photo", allow_truncated=True)
    assert decoded.notes == ("truncated",) and decoded.pixels.shape == (100, 100, 3)
    rows = slice(70, None) if kind == "BMP" else slice(None, 30)  # a BMP begins at the bottom
    if kind != "progressive":  # which begins with a coarse image
        assert (decoded.pixels[rows] == decode.decode(data)[rows]).mean() > 0.99


def test_whole_images_are_not_called_truncated():
    for trailer in (b"", b"\0" * 20, b"trailing metadata of a phone"):
        assert decode.decode_with_notes(saved(smooth(), "JPEG") + trailer).notes == ()


def test_missing_end_marker_after_all_pixels_is_seen():
    data = saved(smooth(800, 800), "JPEG")
    with pytest.raises(ImageError, match="truncated"):
        decode.decode(data[:-2])


def test_truncated_webp_is_an_error_even_if_allowed():
    data = saved(noise(50, 50), "WEBP")
    with pytest.raises(ImageError):
        decode.decode(data[: len(data) // 2], allow_truncated=True)


def test_allowing_in_one_thread_does_not_leak_into_others():
    data = saved(noise(100, 100), "JPEG")[:-300]
    stop, wrong = threading.Event(), []

    def lenient() -> None:
        while not stop.is_set():
            decode.decode(data, allow_truncated=True)

    def strict() -> None:
        for _ in range(100):
            try:
                decode.decode(data)
                wrong.append("accepted")
            except ImageError:
                pass
        stop.set()

    threads = [threading.Thread(target=target) for target in (lenient, strict)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


# -- HEIC and AVIF


def heic(image: Image.Image | np.ndarray, **options) -> bytes:
    pytest.importorskip("pillow_heif", reason="pip install 'alexnet[heif]'")
    decode._register_heif()
    return saved(image, "HEIF", **{"quality": 95} | options)


def encoded(kind: str, image: Image.Image | np.ndarray, **options) -> bytes:
    return heic(image, **options) if kind == "HEIF" else saved(image, kind, **{"quality": 95, "speed": 9} | options)


MEDIA = pytest.mark.parametrize("kind", ["AVIF", "HEIF"])


@MEDIA
def test_heic_and_avif_are_close_by_any_name(kind):
    data = encoded(kind, smooth())
    for suffix in decode.EXTENSIONS[kind]:
        decoded = decode.decode_with_notes(data, "a" + suffix)
        assert (decoded.format, decoded.notes) == (kind, ()) and decoded.pixels.shape == (48, 64, 3)
        assert np.abs(decoded.pixels.astype(int) - smooth())[2:-2, 2:-2].mean() < 6
    assert decode.decode_with_notes(data, "a.jpg").notes == (f"{kind} named .jpg",)


@MEDIA
def test_heic_and_avif_with_alpha_lie_on_white(kind):
    pixels = np.dstack([np.full((32, 32, 3), 40, np.uint8), np.full((32, 32), 255, np.uint8)])
    pixels[:16, :, 3] = 0
    decoded = decode.decode(encoded(kind, Image.fromarray(pixels)))
    assert decoded[:12].min() > 245 and decoded[20:].max() < 55


@MEDIA
@pytest.mark.parametrize("cut", [40, 200, 0.3, 0.7, -2])
def test_truncated_heic_and_avif_are_refused_even_if_allowed(kind, cut):
    data = encoded(kind, noise(64, 64))
    with pytest.raises(ImageError, match="photo: cannot be decoded"):
        decode.decode(data[: int(len(data) * cut) if 0 < cut < 1 else cut], "photo", allow_truncated=True)


@MEDIA
def test_heic_and_avif_have_the_limits_of_all_formats(kind):
    data = encoded(kind, smooth())
    with pytest.raises(ImageError, match=r"64 × 48 = 0\.0 megapixels; must be at most 0\.003 megapixels"):
        decode.decode(data, max_pixels=3000)
    at = data.index(b"ispe") + 8
    for side, reason in (
        (20_000, "more than 50 megapixels|cannot be decoded"),
        (7_100, "megapixels|cannot be decoded"),
    ):
        with pytest.raises(ImageError, match=reason):
            decode.decode(data[:at] + struct.pack(">II", side, side) + data[at + 8 :])


def test_a_heic_that_is_larger_than_its_header_says_is_refused():
    data = heic(Image.new("RGB", (1000, 1000)))
    at = data.index(b"ispe") + 8
    with pytest.raises(ImageError, match="exceeds the maximum image size"):
        decode.decode(data[:at] + struct.pack(">II", 64, 64) + data[at + 8 :])


def test_without_pillow_heif_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(decode, "_register_heif", lambda: False)
    with pytest.raises(ImageError, match=r"a\.heic: is HEIC, which needs pillow-heif; pip install 'alexnet\[heif\]'"):
        decode.decode(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(100), "a.heic")
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    with pytest.raises(ImageError, match=r"a\.avif: is AVIF, which this build of Pillow cannot read"):
        decode.decode(b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf" + bytes(100), "a.avif")


# -- bombs


def png_bomb(side: int) -> bytes:
    return png(side, side, 1, 0, b"\0" * (side * (side // 8 + 1)))


def jpeg_claiming(side: int) -> bytes:
    data = bytearray(saved(noise(128, 128), "JPEG", quality=95))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def webp_claiming(side: int) -> bytes:
    data = bytearray(
        saved(Image.new("RGBA", (64, 64), (1, 2, 3, 4)), "WEBP", lossless=True, exif=b"Exif\0\0" + b"x" * 20)
    )
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = struct.pack("<I", side - 1)[:3] * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "side"),
    [
        (png_bomb, 10_000),
        (jpeg_claiming, 65_000),
        (jpeg_claiming, 8_000),
        (jpeg_claiming, 12_000),
        (webp_claiming, 9_000),
    ],
)
def test_bombs_are_refused_from_the_header(make, side):
    data = make(side)
    assert len(data) < 100_000
    tracemalloc.start()
    with pytest.raises(ImageError) as caught:
        decode.decode(data, "bomb")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
    if make is not webp_claiming:
        assert "megapixels" in str(caught.value)


def test_bombs_take_no_memory_of_the_process(tmp_path):
    """tracemalloc does not see the decoder's memory: the peak of a fresh process does."""
    for index, data in enumerate([png_bomb(10_000), jpeg_claiming(65_000), jpeg_claiming(9_000), webp_claiming(9_000)]):
        (tmp_path / f"{index}.jpg").write_bytes(data)
    code = """
        import resource, sys
        from pathlib import Path
        from alexnet.data import decode as pixels
        from alexnet.errors import ImageError
        try:
            pixels.decode(b"not an image at all")
        except ImageError:
            pass
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in sorted(Path(sys.argv[1]).iterdir()):
            try:
                pixels.decode(path.read_bytes())
                sys.exit(1)
            except ImageError:
                pass
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 50_000, "KiB"
    assert done.stderr == ""


# -- damage


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF"])
def test_250_damaged_files_fail_in_one_way(kind):
    draw = np.random.default_rng(7)
    whole = saved(noise(40, 40), kind) if kind != "HEIF" else heic(noise(40, 40))
    failed = 0
    for _ in range(250):
        data = bytearray(whole)
        for at in draw.integers(0, len(data), draw.integers(1, 20)):
            data[at] = draw.integers(0, 256)
        start, length = draw.integers(0, len(data)), draw.integers(0, 30)
        del data[start : start + length * int(draw.integers(0, 2))]
        try:
            decoded = decode.decode(bytes(data), "damaged", allow_truncated=bool(draw.integers(0, 2)))
            assert decoded.ndim == 3 and decoded.dtype == np.uint8
        except ImageError as error:
            failed += 1
            assert "damaged" in str(error) and "\n" not in str(error)
    assert failed > 10


def test_no_warning_leaves_even_with_threads():
    """Warnings are errors here: a broken EXIF that warns must neither raise nor turn into a failure."""
    exif = (
        b"Exif\0\0II*\0\x08\0\0\0\x02\0\x0f\x01\x02\0\xff\0\0\0\xf0\xff\0\0\x12\x01\x03\0\x01\0\0\0\x01\0\0\0\0\0\0\0"
    )
    data = saved(smooth(), "JPEG", exif=exif)
    notes: list[tuple[str, ...]] = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        work = [threading.Thread(target=lambda: notes.append(decode.decode_with_notes(data).notes)) for _ in range(8)]
        [thread.start() for thread in work]
        [thread.join() for thread in work]
        warnings.warn("of others still arrives", stacklevel=1)
    assert notes == [("corrupt EXIF ignored",)] * 8
    assert [str(entry.message) for entry in seen] == ["of others still arrives"]


# -- fit


@pytest.mark.parametrize("how", ["crop", "pad", "squash"])
def test_an_image_of_the_right_size_stays_as_it_is(how):
    image = np.random.default_rng(0).integers(0, 256, (33, 33, 3), np.uint8)
    assert np.array_equal(decode._resize(image, 33, 33, (0, 0, 33, 33)), image)  # what is skipped
    image.flags.writeable = False
    fitted = decode.fit(image, 33, how)
    assert np.array_equal(fitted, image) and fitted.flags.writeable


@pytest.mark.parametrize("how", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2), (300, 200)])
def test_every_shape_fits_without_a_large_intermediate(how, shape):
    tracemalloc.start()
    fitted = decode.fit(np.full((*shape, 3), 77, np.uint8), 256, how)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert fitted.shape == (256, 256, 3) and fitted.dtype == np.uint8 and fitted.flags.c_contiguous
    assert fitted.flags.writeable
    assert peak < 5e6
    assert (fitted == 77).any() and (how == "pad" or (fitted == 77).all())


def test_crop_is_the_center_and_pad_keeps_all():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    np.testing.assert_array_equal(decode.fit(wide, 10, "crop"), 200)
    padded = decode.fit(wide, 30, "pad")
    np.testing.assert_array_equal(padded[10:20], wide)
    assert (padded[:10] == decode.PAD_GRAY).all() and (padded[20:] == decode.PAD_GRAY).all()
    assert decode.fit(wide, 30, "squash")[15, :, 0].tolist() == wide[5, :, 0].tolist()


def test_the_right_size_is_unchanged_and_shrinking_averages():
    np.testing.assert_array_equal(decode.fit(noise(16, 16), 16, "crop"), noise(16, 16))
    checks = np.kron(np.indices((32, 32)).sum(0) % 2, np.ones((4, 4)))[..., None].repeat(3, 2).astype(np.uint8) * 255
    small = decode.fit(checks, 8, "crop")
    assert small.min() > 100 and small.max() < 155


def test_fit_refuses_what_it_can_not_do():
    for image, size, how in [(noise(2, 2), 0, "crop"), (noise(2, 2), 2, "zoom"), (noise(2, 2)[..., 0], 2, "crop")]:
        with pytest.raises(ImageError):
            decode.fit(image, size, how)


# -- files


def test_read_and_its_errors(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"1234")
    assert decode.read(path) == b"1234"
    monkeypatch.setattr(decode, "MAX_BYTES", 3)
    with pytest.raises(ImageError, match="4 bytes; must be at most 3 bytes"):
        decode.read(path)
    with pytest.raises(ImageError, match="is not a file"):
        decode.read(tmp_path)
    with pytest.raises(ImageError, match=r"cannot be read \(No such file"):
        decode.read(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="cannot be read"):
        decode.read("a\0b")


def test_encode_png_round_trip():
    np.testing.assert_array_equal(decode.decode(decode.encode_png(noise(5, 6))), noise(5, 6))


def slow_resize(image: np.ndarray, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    """Rows first, then columns: triangle weights of 22 bits, 8 bits between; a loop over the places of the result."""
    left, top, right, bottom = box
    for start, end in ((left, right), (top, bottom)):
        scale = (end - start) / size
        reach, out = max(scale, 1), []
        for place in range(size):
            middle = start + (place + 0.5) * scale
            weights = np.clip(1 - np.abs(np.arange(image.shape[1]) + 0.5 - middle) / reach, 0, None)
            whole = np.floor(weights / weights.sum() * 2**22 + 0.5).astype(np.int64)
            out.append((np.tensordot(image.astype(np.int64), whole, (1, 0)) + 2**21) >> 22)
        image = np.stack(out, 1).transpose(1, 0, 2)  # the other axis next
    return image


@pytest.mark.parametrize(("height", "width"), [(41, 60), (119, 30), (7, 90), (90, 7), (33, 33), (20, 21)])
def test_rows_are_resized_before_columns_whatever_the_version_of_pillow(height, width):
    """Pillow 13 in one call takes the columns of 119 × 30 first: a fifth of the values differ by one."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    squashed = slow_resize(image, 33, (0, 0, width, height))
    assert np.array_equal(decode.fit(image, 33, "squash"), squashed)
    assert np.array_equal(decode.fit(image, 33, "crop"), slow_resize(image, 33, (left, top, left + side, top + side)))


# -- alpha that hides everything


def bmp_with_alpha(image: np.ndarray, alpha: int) -> bytes:
    """A 32-bit BMP with the masks of BITMAPV4HEADER, and every fourth byte ``alpha``."""
    rows = np.concatenate([image[::-1, :, ::-1], np.full((*image.shape[:2], 1), alpha, np.uint8)], 2).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, image.shape[1], image.shape[0], 1, 32, 3, len(rows), 0, 0, 0, 0)
    header += masks + b"BGRs" + b"\0" * 48
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(rows), 0, 0, 14 + len(header)) + header + rows


def hidden(mode: str, kind: str) -> bytes:
    image = Image.fromarray(smooth()).convert(mode)
    image.putalpha(0)
    return saved(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize(
    ("data", "truth"),
    [
        (bmp_with_alpha(smooth(), 0), smooth()),
        (bmp_with_alpha(smooth(), 1), smooth()),
        (hidden("RGB", "PNG"), smooth()),
        (hidden("RGB", "WEBP"), smooth()),
        (hidden("RGB", "TIFF"), smooth()),
        (hidden("L", "PNG"), np.asarray(Image.fromarray(smooth()).convert("L").convert("RGB"))),
        (saved(Image.new("L", (4, 4), 1).convert("P"), "PNG", transparency=1), [[[1] * 3] * 4] * 4),
        (png(2, 1, 16, 0, b"\0" + np.array([514, 514], ">u2").tobytes(), chunk(b"tRNS", b"\2\2")), [[[2] * 3] * 2]),
    ],
    ids=["BMP", "BMP, alpha 1", "PNG", "WEBP", "TIFF", "gray", "palette", "16 bits"],
)
def test_a_wholly_transparent_image_shows_its_colors_and_says_so(data, truth):
    decoded = decode.decode_with_notes(data)
    assert "wholly transparent: alpha ignored" in decoded.notes
    np.testing.assert_array_equal(decoded.pixels, truth)


def test_alpha_counts_where_one_pixel_is_visible():
    image = Image.new("RGBA", (1100, 1000), (9, 9, 9, 0))
    image.putpixel((1099, 999), (9, 9, 9, 255))
    decoded = decode.decode_with_notes(saved(image, "PNG"))
    assert decoded.notes == () and (decoded.pixels != 255).any(2).sum() == 1
    assert decode.decode_with_notes(bmp_with_alpha(smooth(), 255)).notes == ()


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "CMYK", "L"])
def test_large_images_are_converted_in_parts_and_look_the_same(mode, monkeypatch):
    image = Image.fromarray(noise(97, 61)).convert("RGB").convert("L" if mode == "LA" else mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(noise(97, 61, 1)[..., 0]))
    data = saved(image, "TIFF" if mode == "CMYK" else "PNG", **({"transparency": 3} if mode == "P" else {}))
    whole = decode.decode(data)
    monkeypatch.setattr(decode, "_BAND", 61 * 10)
    np.testing.assert_array_equal(decode.decode(data), whole)


# -- small files that are much work


def progressive(side: int, scans: int, colors: str = "RGB") -> bytes:
    """A progressive JPEG whose last scan comes so often that it has ``scans``."""
    data = saved(Image.new(colors, (side, side), "gray"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * (scans - data.count(b"\xff\xda") + 1) + b"\xff\xd9"


def after(start: bytes, more: bytes, data: bytes) -> bytes:
    at = data.index(start) + len(start)
    return data[:at] + more + data[at:]


def before(start: bytes, more: bytes, data: bytes) -> bytes:
    at = data.index(start)
    return data[:at] + more + data[at:]


def tiff(width: int, height: int, tile: tuple[int, int], compression: int, data: bytes, tiles: int = 1) -> bytes:
    """A gray TIFF all of whose tiles are the same bytes."""
    tags = [(256, 1, width), (257, 1, height), (258, 1, 8), (259, 1, compression), (262, 1, 1), (277, 1, 1)]
    tags += [(322, 1, tile[0]), (323, 1, tile[1])]
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    lists = b"" if tiles == 1 else struct.pack(f"<{tiles}I", *[start] * tiles)
    tags += [(324, tiles, start if tiles == 1 else start + len(data))]
    tags += [(325, tiles, len(data) if tiles == 1 else start + len(data) + len(lists))]
    lists += b"" if tiles == 1 else struct.pack(f"<{tiles}I", *[len(data)] * tiles)
    entries = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4 + data + lists


def rle_bmp(side: int) -> bytes:
    body, palette = b"\1\1\0\0" * side + b"\0\1", bytes(1024)
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + header + palette + body


def tags(count: int, size: int, pages: int = 1, order: str = "<") -> bytes:
    """EXIF, or a TIFF without pixels: pages of so many tags of ``size`` bytes, all of them the same bytes."""
    entry, pointer = (f"{order}HHLL", order + "L")
    length = 2 + count * struct.calcsize(entry) + 4
    data, at = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(pointer, 8), 8 + pages * length
    for page in range(pages):
        data += struct.pack(order + "H", count)
        data += b"".join(struct.pack(entry, 1000 + i, 1, size, at) for i in range(count))
        data += struct.pack(pointer, 8 + (page + 1) * length if page + 1 < pages else 0)
    return data + bytes(size)


GRAY = saved(noise(8, 8)[..., 0], "JPEG")
DOT = png(1, 1, 8, 0, b"\0\0")
DOT_GIF = saved(Image.new("P", (1, 1)), "GIF", interlace=0)

WORK = {
    "700 scans": (lambda: progressive(512, 700), "more than 100 scans"),
    "scans times pixels": (lambda: progressive(2900, 99), "8.4 megapixels in 99 scans; must be at most 8.1"),
    "scans in gray": (lambda: progressive(512, 700, "L"), "more than 100 scans"),
    "scans behind a fake end": (
        lambda: after(b"\xff\xd8", b"\xff\xfe\0\4\xff\xd9", progressive(512, 700)),
        "more than 100 scans",
    ),
    "scans behind short markers": (
        lambda: before(b"\xff\xda", b"\xff\x01\xff\xff\xff\xd7", progressive(512, 700)),
        "more than 100 scans",
    ),
    "EXIF in 100,000 segments": (
        lambda: after(b"\xff\xd8", b"\xff\xe1\0\x0cExif\0\0abcd" * 100_000, GRAY),
        "more than 2,000 segments",
    ),
    "a JPEG of fill bytes": (lambda: after(b"\xff\xd8", b"\xff" * 5_000_000, GRAY), "4,096 stray bytes"),
    "color profiles": (
        lambda: before(b"\0\0\0\x0aIDAT", chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(10**6), 9)) * 2000, DOT),
        "more than 1,000 chunks",
    ),
    "blocks of a GIF": (lambda: before(b",", b"!\xfe" + b"\1a" * 1_100_000 + b"\0", DOT_GIF), "1,000,000 blocks"),
    "frames of a GIF": (lambda: DOT_GIF[:-1] + DOT_GIF[DOT_GIF.index(b",") : -1] * 600_000, "1,000,000 blocks"),
    "comments of a PPM": (lambda: b"P3\n1 1\n255\n" + b"#\n" * 1_000_000 + b"1 2 3\n", "more than 1,000 comments"),
    "a comment in the header of a PPM": (
        lambda: b"P6\n#" + b"x" * 5_000_000 + b"\n2 2 255\n" + bytes(12),
        "a header of more than 65,536 bytes",
    ),
    "spaces in the header of a PBM": (
        lambda: b"P4 2" + b" " * 5_000_000 + b"2\n11",
        "a header of more than 65,536 bytes",
    ),
    "a PGM in plain text": (lambda: b"P2 3000 2000 255 " + b"1 " * 6_000_000, "6.0 megapixels, in plain text"),
    "a PPM of eight levels": (
        lambda: b"P6 3000 2000 7\n" + bytes(18_000_000),
        "6.0 megapixels, with a largest value that is not 255",
    ),
    "a tile that is larger than the image": (
        lambda: tiff(1, 1, (30_000, 30_000), 8, zlib.compress(bytes(10**6), 9)),
        "tiles of 900.0 megapixels",
    ),
    "scans in a TIFF": (lambda: tiff(512, 512, (512, 512), 7, progressive(512, 700, "L")), "700 scans"),
    "scans times pixels in a TIFF": (
        lambda: tiff(2912, 2912, (2912, 2912), 7, progressive(2912, 95, "L")),
        "8.5 megapixels in 95 scans",
    ),
    "lines of a BMP": (lambda: rle_bmp(4000), "16.0 megapixels, run-length encoded; must be at most 10"),
    "tags of a TIFF": (lambda: tags(20_000, 1_000_000), "tags of more bytes than the file has"),
    "tags of a TIFF, big-endian": (lambda: tags(20_000, 1_000_000, order=">"), "tags of more bytes than the file has"),
    "pages of a TIFF": (lambda: tags(1, 1, pages=12_000), "more than 10,000 directories"),
    "EXIF of a JPEG": (
        lambda: saved(noise(8, 8), "JPEG", exif=b"Exif\0\0" + tags(2000, 40_000)),
        "tags of more bytes than",
    ),
    "EXIF of an AVIF": (
        lambda: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + tags(20_000, 10**6),
        "tags of more bytes than the file has",
    ),
    "EXIF headers of an AVIF": (
        lambda: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + b"Exif\0\0" * 500_000,
        "more than 16 blocks of EXIF",
    ),
    "one pixel wide": (lambda: png(1, 40_000_000, 1, 0, b""), "1 × 40000000; must be at most 65,535 pixels a side"),
    "one pixel high": (lambda: png(40_000_000, 1, 1, 0, b""), "40000000 × 1; must be at most 65,535 pixels a side"),
}


@pytest.mark.parametrize("proved", [False, True], ids=["pillow", "simplejpeg"])
@pytest.mark.parametrize("name", WORK)
def test_small_files_that_are_much_work_are_refused(name, proved, monkeypatch):
    """Decoded, each takes seconds to minutes or hundreds of megabytes: what no decoder is called for is refused."""
    monkeypatch.setattr(simplejpeg_decoder, "_alike", simplejpeg_decoder.PROOFS * proved)
    make, reason = WORK[name]
    data = make()
    monkeypatch.setattr(simplejpeg_decoder, "decode", lambda *how: pytest.fail("it was decoded"))
    monkeypatch.setattr(Image.Image, "load", lambda *how: pytest.fail("it was decoded"))
    with pytest.raises(ImageError) as caught:
        decode.decode(data, "x")
    assert reason in str(caught.value)


def test_tiles_that_overlap_are_refused():
    """One stream of bytes in a thousand tiles is decoded a thousand times, though each tile has few scans."""
    data = bytearray(tiff(96, 32, (32, 32), 7, GRAY * 50, 3))
    start = data.index(GRAY)
    data[-24:] = struct.pack("<6I", start, start + 1, start + 2, *[len(data)] * 3)
    with pytest.raises(ImageError, match="its tiles overlap"):
        decode.decode(bytes(data), "x")


@pytest.mark.parametrize("colors", ["L", "RGB"])
@pytest.mark.parametrize("scans", [11, 16, 99])
def test_jpegs_with_as_many_scans_as_encoders_write_are_decoded(scans, colors, monkeypatch):
    data = progressive(600, scans, colors)
    assert structure.check_structure(data) == scans
    for proved in (0, simplejpeg_decoder.PROOFS):
        monkeypatch.setattr(simplejpeg_decoder, "_alike", proved)
        assert set(decode.decode_with_notes(data).notes) <= set(DAMAGED)  # its scans hold no data


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:2:0", "restart_marker_blocks": 1}])
def test_scans_are_counted_as_libjpeg_does(options):
    """Thumbnails, profiles and pixels may hold the bytes of a marker; what follows the end is no scan."""
    profile = (b"\xff\xda" * 3000 + b"\0")[:6000]
    data = saved(noise(300, 200), "JPEG", exif=b"Exif\0\0" + b"\xff\xda\xff\xd9" * 500, icc_profile=profile, **options)
    scans = 1 if "progressive" not in options else saved(noise(300, 200), "JPEG", **options).count(b"\xff\xda")
    assert structure.check_structure(data + b"\xff\xda" * 200) == scans and decode.decode(data).shape == (300, 200, 3)


@pytest.mark.parametrize(
    "exif",
    [tags(20_000, 200_000), b"Exif\0\0" * 75_000, tags(20_000, 200_000, order=">")],  # Pillow allows texts of 1 MB
    ids=["tags", "headers", "big-endian"],
)
@pytest.mark.parametrize("form", ["PNG", "a text in a PNG", "WEBP"])
def test_exif_that_would_take_gigabytes_is_ignored(form, exif, monkeypatch):
    if form == "a text in a PNG":
        text = b"\nexif\n" + f"{len(exif)}\n".encode() + exif.hex().encode()
        data = before(b"\0\0\0\x0aIDAT", chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text, 9)), DOT)
    else:
        data = saved(Image.new("RGB", (1, 1)), form, exif=exif)
    monkeypatch.setattr(Image.Exif, "load", lambda *how: pytest.fail("it was read"))
    assert decode.decode_with_notes(data).notes == ("corrupt EXIF ignored",)


def test_tags_of_real_files_are_no_bomb():
    pages = [Image.new("L", (9, 9), i % 7) for i in range(300)]
    noted = decode.decode_with_notes(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert noted.notes == ("animation: first of 300 frames",)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera" * 1000
    exif.get_ifd(0x8769)[0x9286] = b"comment" * 1000
    for form in ("JPEG", "PNG", "WEBP", "TIFF"):
        noted = decode.decode_with_notes(saved(noise(8, 4), form, exif=exif))
        assert noted.notes == ("EXIF rotation applied",) and noted.pixels.shape == (4, 8, 3), form


def test_many_chunks_and_blocks_of_real_files_are_no_bomb():
    at = DOT.index(b"IDAT") - 4
    assert decode.decode(DOT[:at] + chunk(b"tEXt", b"k\0v") * 900 + DOT[at:]).shape == (1, 1, 3)
    pieces = b"".join(chunk(b"IDAT", bytes([byte])) for byte in zlib.compress(bytes(20_100), 0))
    whole = png(200, 100, 8, 0, b"")
    assert decode.decode(whole[:33] + pieces + chunk(b"IEND", b"")).shape == (100, 200, 3)
    frames = [Image.new("L", (9, 9), i % 7) for i in range(300)]
    noted = decode.decode_with_notes(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert noted.notes[0].startswith("animation: first of ")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_large_images_is_returned():
    """In a thread, as a server decodes: glibc keeps what a thread frees, 400 MB after two images of 49 megapixels."""
    code = """
        import io
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from PIL import Image
        from alexnet.data import decode as pixels

        def resident():
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

        def one(data):
            return pixels.fit(pixels.decode(data), 256)

        def saved(image, kind):
            buffer = io.BytesIO()
            image.save(buffer, kind)
            return buffer.getvalue()

        large = [saved(Image.new(mode, (7000, 7000), 90), kind) for mode, kind in (("L", "PNG"), ("P", "GIF"))]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(one, [saved(Image.new("RGB", (9, 9)), "PNG")] * 4))
            before = resident()
            list(pool.map(one, large))
            print(resident() - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 120e6


# -- JPEGs whose data ends before their end marker


def ends_early(whole: bytes, share: float) -> bytes:
    """A JPEG that ends after a part of its first scan, with an end marker."""
    start = whole.index(b"\xff\xda")
    data = whole[: start + int(share * (len(whole) - start))]
    return (data[:-1] if data.endswith(b"\xff") else data) + b"\xff\xd9"


DAMAGED = ("damaged JPEG data",)


@pytest.mark.parametrize("proved", [0, simplejpeg_decoder.PROOFS])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}])
def test_a_jpeg_whose_data_ends_early_has_a_note(options, proved, monkeypatch):
    """libjpeg fills the rest with gray and warns, and Pillow does not pass the warning on."""
    pytest.importorskip("simplejpeg")
    monkeypatch.setattr(simplejpeg_decoder, "_alike", proved)
    whole = saved(noise(100, 120), "JPEG", **options)
    assert decode.decode_with_notes(whole).notes == ()
    for share in (0.1, 0.5, 0.98):
        cut = decode.decode_with_notes(ends_early(whole, share))
        assert cut.notes == DAMAGED and cut.pixels.shape == (100, 120, 3)


@pytest.mark.parametrize("colors", ["L", "RGB"])
def test_a_jpeg_that_ends_in_gray_has_a_note_without_simplejpeg(colors, monkeypatch):
    monkeypatch.setattr(simplejpeg_decoder, "_decoder", lambda: None)
    whole = saved(Image.fromarray(noise(100, 120)).convert(colors), "JPEG")
    assert decode.decode_with_notes(whole).notes == ()
    assert decode.decode_with_notes(ends_early(whole, 0.5)).notes == DAMAGED


def test_a_whole_jpeg_that_ends_in_gray_has_no_note_with_simplejpeg():
    pytest.importorskip("simplejpeg")
    image = noise(100, 120)
    image[60:] = 128
    assert decode.decode_with_notes(saved(image, "JPEG")).notes == ()
