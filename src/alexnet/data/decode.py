"""Decode the bytes of an image file to RGB uint8 pixels, and resize them to a square. All image decoding is here.

The same rules hold in training, evaluation, export and serving (the table is in docs/data.md). The header is read
first: an image of more than 50 megapixels is refused before a pixel is decoded. Every failure is an ``ImageError`` with
the name of the image and the reason. Safe to call from many threads.
"""

import functools
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple, NoReturn, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

from alexnet import system
from alexnet.data import resize, simplejpeg_decoder
from alexnet.data.structure import MAX_SCANS, allowed_pixels, check_exif, check_structure
from alexnet.errors import ImageError, printable

Fit = Literal["crop", "pad", "squash"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "HEIF")
EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjpg", ".pjp"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif", ".heics", ".heifs"),
}
MAX_PIXELS = 50_000_000  # largest width × height in a header
MAX_SIDE = 65_535  # pixels of width or height: JPEG's own limit
MAX_BYTES = 200_000_000  # of one file
LARGE = 4_000_000  # pixels of an image after which the decoder's memory is returned to the system
PAD_GRAY = 128  # gray level of the bars of fit "pad"

_ORIENTATION = 0x0112  # the EXIF and TIFF tag for rotation
_METADATA_KEYS = {
    "exif",
    "xmp",
    "XML:com.adobe.xmp",
    "Raw profile type exif",
}  # of ``Image.info``
_PHOTOMETRIC, _BITS = 262, 258  # TIFF tags: 0 = white is zero; bits per sample
_COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT = 259, 322, 323
_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES = 273, 279, 324, 325
_STARTS = (  # other formats that are often found under an image name, by their first bytes
    (b"<!doctype html", "looks like HTML"),
    (b"<html", "looks like HTML"),
    (b"<?xml", "looks like XML or SVG"),
    (b"<svg", "looks like SVG"),
    (b"version https://git-lfs", "is a Git LFS pointer"),
    (b"%pdf", "is a PDF"),
    (b"pk\x03\x04", "is a ZIP archive"),
)


_BRANDS = {  # in the first box of a file of the ISO base media format
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIF"),
}
_SLOW_DECODERS = {  # in Python, pixel by pixel: by what ``max_pixels`` is divided, what they decode, a hint
    "bmp_rle": (5, "run-length encoded", "save it uncompressed"),
    "ppm_plain": (10, "in plain text", "save it as PNG"),
    "ppm": (10, "with a largest value that is not 255", "save it as PNG"),
}
_PLAIN = tuple(name for name in FORMATS if name not in _BRANDS.values())  # known by their first bytes to Pillow


class _WarningPattern:
    """The pattern of a warning filter. It matches in threads that are decoding, and collects the text."""

    pattern = "(?!)"  # scikit-learn passes filters on as text: this matches nothing

    def __init__(self) -> None:
        self.thread = threading.local()

    def match(self, text: str) -> bool:
        texts: list[str] | None = getattr(self.thread, "texts", None)
        if texts is not None:
            texts.append(text)
        return texts is not None


_pattern = _WarningPattern()
_FILTER = ("ignore", _pattern, Warning, None, 0)


@contextmanager
def capture_warnings() -> Iterator[list[str]]:
    """Collect the warnings of this thread instead of printing them.

    ``warnings.catch_warnings`` is not used: it replaces a global list, and before Python 3.14 filters are lost if
    several threads do so. Instead, one permanent filter matches only in threads that collect.
    """
    filters = cast("list[Any]", warnings.filters)
    if not filters or filters[0] is not _FILTER:
        filters[:] = [_FILTER, *(entry for entry in filters if entry is not _FILTER)]
    texts: list[str] = []
    _pattern.thread.texts = texts
    try:
        yield texts
    finally:
        _pattern.thread.texts = None


class Decoded(NamedTuple):
    """A decoded image, its format and notes."""

    pixels: NDArray[np.uint8]  # [H, W, 3] RGB
    format: str  # one of FORMATS, by content
    notes: tuple[str, ...]  # for messages: "PNG named .jpg", "EXIF rotation applied", …


def decode(
    data: bytes, name: str = "", *, allow_truncated: bool = False, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """The image in ``data`` as RGB uint8 [H, W, 3]; the arguments are those of :func:`decode_with_notes`."""
    return decode_with_notes(data, name, allow_truncated=allow_truncated, max_pixels=max_pixels).pixels


def decode_with_notes(
    data: bytes, name: str = "", *, allow_truncated: bool = False, max_pixels: int = MAX_PIXELS
) -> Decoded:
    """Decode an image file.

    Args:
        data: content of the file.
        name: name of the image for messages.
        allow_truncated: decode the existing part of a truncated image; the rest is gray or black.
        max_pixels: largest allowed width × height, at most MAX_PIXELS.

    Raises:
        ImageError: if the image is damaged, too large or not an image.
    """
    name = printable(name) or "image"
    _refuse_other_formats(data, name)
    with capture_warnings() as caught:
        try:
            decoded = _decode(data, name, allow_truncated, caught, min(max_pixels, MAX_PIXELS))
            _trim_after(decoded.pixels)
            return decoded
        except ImageError:
            raise
        except Image.DecompressionBombError:
            _refuse(f"{name}: more than {MAX_PIXELS // 10**6} megapixels", "at most that", "scale it down")
        except Exception as error:  # Pillow raises many types of errors for damaged files
            reason = printable(str(error)) or type(error).__name__
            if isinstance(error, UnidentifiedImageError):
                reason = "no known image format" if data[4:8] != b"ftyp" else "truncated or damaged"
            raise ImageError(f"{name}: cannot be decoded ({reason})", _EXPECTED, _HINT) from error


def fit(image: NDArray[np.uint8], size: int, how: Fit = "crop") -> NDArray[np.uint8]:
    """``image`` [H, W, 3] as [size, size, 3], bilinear with antialiasing.

    Only the cropped part of the source is resized, so that a 1 × 5000 image needs no intermediate of size × 5000·size.

    Args:
        image: uint8 [H, W, 3].
        size: width and height of the result in pixels.
        how: "crop" scales the shorter side to ``size`` and crops the center (section 2 of the 2012 paper); "pad" scales
            the longer side to ``size`` and adds gray bars (128); "squash" scales both sides to ``size``.

    Raises:
        ImageError: for another shape, type, size or fit.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        _refuse(f"array {image.dtype} {list(image.shape)}", "uint8 [H, W, 3]", "")
    if size < 1 or how not in ("crop", "pad", "squash"):
        _refuse(f"size {size}, fit {how!r}", "at least 1, and crop, pad or squash", "")
    height, width = image.shape[:2]
    if height == width == size:  # what resizing would return, but much cheaper: predictions fit an image twice
        return image.copy()
    if how == "pad":
        fitted = _letter_box(image, size)
    else:
        shorter = min(height, width)
        left, top = (width - shorter) / 2, (height - shorter) / 2
        box = (left, top, left + shorter, top + shorter) if how == "crop" else (0.0, 0.0, width, height)
        fitted = _resize(image, size, size, box)
    _trim_after(image)
    return fitted


def read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file of at most 200 MB. Raises ImageError if it is larger or cannot be read."""
    file, text = Path(path), printable(os.fspath(path))
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            _refuse(f"{text}: is not a file", "an image file", "check the path")
        if status.st_size > MAX_BYTES:
            _refuse(f"{text}: {status.st_size:,} bytes", f"at most {MAX_BYTES:,} bytes", "scale it down")
        with file.open("rb", buffering=0) as stream:  # read_bytes would allocate an extra buffer
            return stream.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ImageError(f"{text}: cannot be read ({reason})", "a readable file", "check path and rights") from error


def encode_jpeg(image: NDArray[np.uint8], quality: int = 80) -> bytes:
    """``image`` uint8 [H, W, 3] as the bytes of a JPEG. The compression is lossy."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """``image`` uint8 [H, W, 3], or [H, W, 4] with alpha, as the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


_NO_ALPHA = "wholly transparent: alpha ignored"
_BAND = 1 << 20  # pixels that are converted at once
_EXPECTED, _HINT = f"a whole {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file", "replace or remove it"


def _trim_after(image: NDArray[np.uint8]) -> None:
    """Return the freed memory of a large image to the system."""
    if image.size > 3 * LARGE:
        system.trim()


def _refuse(problem: str, expected: str = _EXPECTED, hint: str = _HINT) -> NoReturn:
    raise ImageError(problem, expected, hint) from None


def _refuse_other_formats(data: bytes, name: str) -> None:
    """Raise ImageError for data that is recognized as not an image, with a clearer reason than a decoder gives."""
    if not data:
        _refuse(f"{name}: is empty")
    if len(data) < 8:
        _refuse(f"{name}: has only {len(data)} byte{'s' * (len(data) > 1)}")
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, kind in _STARTS:
        if head.startswith(start):
            _refuse(f"{name}: {kind}, not an image")
    if data[4:8] == b"ftyp":
        _check_media(data, name)


def _check_media(data: bytes, name: str) -> None:
    """Raise ImageError for a video, and for HEIC or AVIF if the library that decodes it is missing."""
    kind = _media_kind(data)
    if not kind:
        _refuse(f"{name}: is a video, or HEIF of a coding that is not known", "HEIC or AVIF", "convert it")
    if kind == "HEIF" and not _register_heif():
        _refuse(f"{name}: is HEIC, which needs pillow-heif", "", "pip install 'alexnet[heif]'")
    if kind == "AVIF" and not features.check("avif"):
        _refuse(f"{name}: is AVIF, which this build of Pillow cannot read", "", "install Pillow from a wheel")


def _media_kind(data: bytes) -> str:
    """``HEIF`` or ``AVIF`` by the first brand that is known; empty for other data."""
    end = min(int.from_bytes(data[:4], "big"), 4096) if data[4:8] == b"ftyp" else 0
    return next((_BRANDS[data[at : at + 4]] for at in range(8, end, 4) if data[at : at + 4] in _BRANDS), "")


@functools.cache
def _register_heif() -> bool:
    """Let Pillow read HEIC. Returns False without pillow-heif."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return True


def _decode(data: bytes, name: str, allow_truncated: bool, caught: list[str], max_pixels: int) -> Decoded:
    scans = check_structure(data)
    if (result := simplejpeg_decoder.plain(data, allowed_pixels(max_pixels, scans))) is not None:
        return Decoded(result, "JPEG", tuple(_suffix_notes("JPEG", name)))
    media = _media_kind(data)
    image = Image.open(io.BytesIO(data), formats=(media,) if media else _PLAIN)
    _refuse_size(image, data, name, max_pixels, scans)
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        _refuse(f"{name}: mode {image.mode}, whose range is unknown", "8 or 16 bits a channel", "convert it first")
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    notes = _suffix_notes(kind, name) + _frame_notes(image) + _conversion_notes(image, kind, data)
    tag = getattr(image, "tag_v2", {}).get(_ORIENTATION)  # Pillow rotates a TIFF while loading and drops the tag
    fast, damaged = _decode_fast(image, data)
    if (fast is None or not simplejpeg_decoder.proved()) and _load(image, kind, data, name, allow_truncated):
        notes.append("truncated")
    elif damaged or (damaged is None and kind == "JPEG" and _ends_in_gray(image)):
        notes.append("damaged JPEG data")
    upright, exif_notes = _upright(image, tag, caught)
    if fast is None or upright is not image:
        fast, alpha_notes = _to_rgb(upright)
        notes += alpha_notes
    elif not simplejpeg_decoder.proved():
        simplejpeg_decoder.compare(fast, reference := _to_rgb(image)[0])
        fast = reference
    return Decoded(fast, kind, (*notes, *exif_notes))


def _refuse_size(image: Image.Image, data: bytes, name: str, max_pixels: int, scans: int) -> None:
    """Raise ImageError for more pixels than ``max_pixels``, or than are allowed with ``scans`` scans."""
    width, height = image.size
    claim = f"{name}: {width} × {height} = {width * height / 1e6:.1f} megapixels"
    if width * height > max_pixels:
        _refuse(claim, f"at most {max_pixels / 1e6:g} megapixels", "scale it down")
    if max(width, height) > MAX_SIDE:
        _refuse(f"{name}: {width} × {height}", f"at most {MAX_SIDE:,} pixels a side", "scale it down")
    if image.format == "TIFF":
        scans = _tiff_scans(cast(Any, image).tag_v2, data, name, max_pixels)
    if scans > MAX_SCANS:
        _refuse(f"{name}: {scans} scans", f"at most {MAX_SCANS} scans", "save it again")
    if width * height > (allowed := allowed_pixels(max_pixels, scans)):
        _refuse(f"{claim} in {scans} scans", f"at most {allowed / 1e6:.1f} with so many scans", "save it again")
    decoder = next((tile[0] for tile in cast(Any, image).tile), "")
    factor, how, hint = _SLOW_DECODERS.get(decoder, (1, "", ""))
    if width * height > max_pixels // factor:
        _refuse(f"{claim}, {how}", f"at most {max_pixels / factor / 1e6:g}", hint)


def _tiff_scans(tags: Any, data: bytes, name: str, max_pixels: int) -> int:
    """The largest number of scans in a JPEG tile or strip of a TIFF; 1 for other compressions.

    Raises ImageError for overlapping tiles, and for tiles of more than ``max_pixels``: a decoder allocates them.
    """
    if (tile := int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_HEIGHT, 0))) > max_pixels:
        _refuse(
            f"{name}: tiles of {tile / 1e6:.1f} megapixels",
            f"at most {max_pixels / 1e6:g}",
            "save it with smaller tiles",
        )
    if tags.get(_COMPRESSION) not in (6, 7):
        return 1
    first, sizes = (_TILE_OFFSETS, _TILE_BYTES) if _TILE_OFFSETS in tags else (_STRIP_OFFSETS, _STRIP_BYTES)
    parts = set(zip(tags.get(first, ()), tags.get(sizes, ()), strict=False))
    if sum(size for _, size in parts) > 2 * len(data):
        _refuse(f"{name}: its tiles overlap", "tiles of their own bytes", "save it again")
    return max((data.count(b"\xff\xda", start, start + size) for start, size in parts), default=1)


def _decode_fast(image: Image.Image, data: bytes) -> tuple[NDArray[np.uint8] | None, bool | None]:
    """Decode a complete color JPEG without Pillow, to the same pixels; None if that is not possible.

    Returns:
        The pixels, and whether the data is damaged; None where that is not known.
    """
    if image.format != "JPEG" or image.mode != "RGB" or _lacks_end("JPEG", data):
        return None, None
    try:
        pixels = simplejpeg_decoder.decode(data, *image.size)
    except simplejpeg_decoder.DamagedError:
        return None, True
    return pixels, None if pixels is None else False


def _ends_in_gray(image: Image.Image) -> bool:
    """Are the last 8 × 8 pixels mid-gray, as libjpeg leaves what the data of a JPEG lacks?

    Pillow does not pass on libjpeg's warning.
    """
    if image.mode not in ("L", "RGB") or min(image.size) < 16:
        return False
    width, height = image.size
    return bool((np.asarray(image.crop((width - 8, height - 8, width, height))) == 128).all())


def _suffix_notes(kind: str, name: str) -> list[str]:
    suffix = "" if name.lower().endswith(EXTENSIONS[kind]) else PurePath(name).suffix.lower()
    known = any(suffix in suffixes for suffixes in EXTENSIONS.values())
    return [f"{kind} named {suffix}"] if known and suffix not in EXTENSIONS[kind] else []


def _conversion_notes(image: Image.Image, kind: str, data: bytes) -> list[str]:
    """Notes on conversions to three channels of eight bits."""
    notes = ["CMYK to RGB"] if image.mode == "CMYK" else []
    if kind == "PNG":  # Pillow opens 16-bit color as 8 bits; byte 25 of the header is the depth
        is_deep = data[24:25] == b"\x10"
    else:
        bits = getattr(image, "tag_v2", {}).get(_BITS, (8,))
        is_deep = image.mode.startswith("I") or max(bits if isinstance(bits, tuple) else (8,)) > 8
    return [*notes, *["over 8 bits a channel to 8"] * is_deep]


def _frame_notes(image: Image.Image) -> list[str]:
    try:
        frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
        image.seek(0)
    except Exception:  # later frames may be damaged; only the first is used
        return ["animation: first frame"]
    return [f"animation: first of {frames} frames"] if frames > 1 else []


def _load(image: Image.Image, kind: str, data: bytes, name: str, allow: bool) -> bool:
    """Decode the pixels. Returns True if the image is truncated and ``allow`` permits that.

    Pillow's switch for truncated files, ``ImageFile.LOAD_TRUNCATED_IMAGES``, is global: it would also allow truncated
    images in other threads. Instead, the missing end marker is added to a copy of a JPEG, and other formats keep the
    rows that were decoded before the error.
    """
    cut = _lacks_end(kind, data)
    if cut and not allow:
        _refuse(f"{name}: {kind} is truncated", _EXPECTED, "get it again, or allow truncated images")
    if cut and kind == "JPEG":
        image.fp = io.BytesIO(data + b"\xff\xd9")  # type: ignore[attr-defined]
    try:
        image.load()
    except OSError as error:
        if "truncated" not in str(error).lower():
            raise
        if not allow:
            _refuse(f"{name}: {kind} is truncated", _EXPECTED, "get it again, or allow truncated images")
        cut = True
        cast(Any, image).tile = []  # nothing left to decode: keep the decoded rows
        image.load()
    return cut


def _lacks_end(kind: str, data: bytes) -> bool:
    """Whether a JPEG has no end marker after its first scan, or a PNG no end chunk. Pillow ignores some of these."""
    if kind == "PNG":
        return data.rfind(b"IEND\xaeB\x60\x82") < 0
    if kind != "JPEG":
        return False
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:  # skip the segments, including a thumbnail
        marker = data[at + 1]
        bare = marker in (0x01, 0xFF) or 0xD0 <= marker <= 0xD8
        at += (1 if marker == 0xFF else 2) if bare else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.rfind(b"\xff\xd9", at) < 0  # from the end: a search through 65 KB takes 70 µs


def _upright(image: Image.Image, tag: Any, caught: list[str]) -> tuple[Image.Image, list[str]]:
    """The image with its EXIF rotation applied, and notes. Corrupt EXIF changes no pixel."""
    before = len(caught)
    if image.format == "JPEG" and not before and not _METADATA_KEYS & image.info.keys():
        return image, []  # no metadata; this saves 10% of the decoding time
    try:
        for exif in _exif_of(image):
            check_exif(exif)
        Image.Exif().load(image.info.get("exif", b""))  # again: Pillow hides errors of its first reading
        orientation = image.getexif().get(_ORIENTATION, 1)
        upright = ImageOps.exif_transpose(image) if orientation in range(2, 9) else image
    except Exception:
        return image, ["corrupt EXIF ignored"]
    if orientation not in range(1, 9):
        return image, [f"EXIF rotation {printable(str(orientation))[:20]} ignored"]
    rotated = orientation != 1 or (tag is not None and tag in range(2, 9))
    corrupt = len(caught) > before or any("EXIF" in text for text in caught)
    return upright, ["EXIF rotation applied"] * rotated + ["corrupt EXIF ignored"] * corrupt


def _exif_of(image: Image.Image) -> Iterator[bytes]:
    """The EXIF that Pillow would read: a chunk of its own, or a text of ImageMagick in a PNG."""
    if exif := image.info.get("exif"):
        yield exif
    if profile := image.info.get("Raw profile type exif"):
        yield bytes.fromhex("".join(profile.split("\n")[3:]))


def _to_rgb(image: Image.Image) -> tuple[NDArray[np.uint8], list[str]]:
    """RGB uint8 [H, W, 3] from any mode, and notes. Transparent pixels are composited on white.

    If every pixel is transparent (some writers of BMP leave the fourth byte at 0, others write 1 for opaque), alpha is
    ignored: the image would be plain white.
    """
    if image.mode.startswith("I"):
        gray, notes = _gray16(image)
        return np.repeat(gray[..., None], 3, axis=2), notes
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    has_alpha = "A" in image.mode or "transparency" in image.info
    ignored = has_alpha and all(_alpha_range(band)[1] <= 1 for _, band in _bands(image))
    for top, band in _bands(image):
        rgb = band
        if has_alpha:
            rgb = band.convert("RGBA")
            rgb = rgb if ignored else Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb)
        pixels[top : top + band.height] = np.asarray(rgb if rgb.mode == "RGB" else rgb.convert("RGB"))
    return pixels, [_NO_ALPHA] * ignored


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(top row, band) of a large image in bands of about a megapixel, so that a conversion copies only a band."""
    step = max(1, _BAND // image.width)
    if step >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, step):
        yield top, image.crop((0, top, image.width, min(top + step, image.height)))


def _alpha_range(image: Image.Image) -> tuple[int, int]:
    return cast("tuple[int, int]", image.convert("RGBA").getchannel("A").getextrema())


def _gray16(image: Image.Image) -> tuple[NDArray[np.uint8], list[str]]:
    """16-bit gray (12 bits in some TIFFs), scaled to 0..255 with rounding. Pillow's own conversion clips at 255."""
    tags = getattr(image, "tag_v2", {})
    top = 4095 if tags.get(_BITS, (16,))[0] == 12 else 65535
    table = np.minimum((np.arange(65536) * 510 + top) // (2 * top), 255).astype(np.uint8)  # low memory
    if tags.get(_PHOTOMETRIC) == 0:
        table = 255 - table
    raw = np.asarray(image).clip(0, 65535)  # [H, W]
    transparent = image.info.get("transparency")
    ignored = isinstance(transparent, int) and bool((raw == transparent & 65535).all())
    if isinstance(transparent, int) and not ignored:
        table[transparent & 65535] = 255
    return np.asarray(table[raw]), [_NO_ALPHA] * ignored


def _letter_box(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    source = image.shape[:2]  # (H, W)
    height, width = (max(1, round(length * (size / max(source)))) for length in source)
    canvas = np.full((size, size, 3), PAD_GRAY, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = _resize(image, width, height, (0.0, 0.0, source[1], source[0]))
    return canvas


def _resize(
    image: NDArray[np.uint8], width: int, height: int, box: tuple[float, float, float, float]
) -> NDArray[np.uint8]:
    """The part ``box`` of an image, resized bilinearly with antialiasing: along its rows, then along its columns.

    In one call, Pillow before 13 does the same. Pillow 13 resizes the columns first if that is cheaper, and 20% of the
    values then differ by one gray level. Two calls give the same pixels with every version, and so does ``resize.c``.
    The result is writable.
    """
    left, top, right, bottom = box
    reach = (bottom - top) / height + 2  # rows outside the box that affect its first and last row
    above, below = max(0, int(top - reach)), min(len(image), int(bottom + reach) + 1)
    if width * (below - above) > MAX_PIXELS:  # the intermediate would exceed 50 megapixels: one call
        return np.array(pillow_image(image).resize((width, height), Image.Resampling.BILINEAR, box=box))
    image, top, bottom = image[above:below], top - above, bottom - above
    if resize.in_use(max((right - left) / width, (bottom - top) / height)):
        return resize.resized(image, width, height, (left, top, right, bottom))
    rows = pillow_image(image).resize((width, len(image)), Image.Resampling.BILINEAR, box=(left, 0, right, len(image)))
    return np.array(rows.resize((width, height), Image.Resampling.BILINEAR, box=(0, top, width, bottom)))


def pillow_image(image: NDArray[np.uint8]) -> Image.Image:
    """RGB pixels [H, W, 3] as an image of Pillow, for libraries that expect one."""
    return Image.fromarray(np.ascontiguousarray(image))
