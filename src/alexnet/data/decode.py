"""What the structure of an image file may cost, counted before a decoder reads it.

The header's width × height bounds a decoder's work only while each pixel and each part of the file is handled once.
Small files break that: a progressive JPEG with hundreds of scans over all its pixels, a header of a million segments
that the decoder joins one by one, chunks that each unpack a megabyte. Each walk here stops at its bound.


A decoder's warnings, kept to the thread that decodes: nothing is printed, all are collected.

Bytes → RGB uint8 of a known size: the only door to an image decoder, used by everything.

One rule for all images, the same in training, evaluation, export and serving (the table is in docs/data.md). The
header is read first: what claims more than 50 megapixels is refused before a pixel is decoded. Every failure, whatever
the decoder raises, is one ``ImageError`` that says which image and why. Safe to call from many threads.
"""

import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple, NoReturn, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from alexnet import system
from alexnet.data import resize, simplejpeg_decoder
from alexnet.errors import ImageError, printable

MAX_SCANS = 100  # of a JPEG; encoders write 1, and 10 to 15 for a progressive one
FREE_SCANS = 16  # scans over the largest image; with more, fewer pixels are allowed
MAX_SEGMENTS = 2_000  # of a JPEG besides scans and their tables: a color profile takes up to 255
MAX_STRAY = 4_096  # bytes of a JPEG before its pixels that belong to no segment
MAX_CHUNKS = 1_000  # of a PNG besides image data
MAX_BLOCKS = 1_000_000  # of a GIF, at most 255 bytes each
MAX_COMMENTS = 1_000  # of a plain-text PPM

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # no stuffed byte, no fill byte, no restart
_IMAGE_CHUNKS = (b"IDAT", b"fdAT", b"fcTL")


def check(data: bytes) -> int:
    """The number of scans over the pixels of the file ``data``: 1, or a multi-scan JPEG's.

    Raises ValueError with the reason if a part of the structure is over its bound.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_scans(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        _check_gif(data)
    elif data[:2] in (b"P1", b"P2", b"P3") and data.count(b"#") > MAX_COMMENTS:
        raise ValueError(f"more than {MAX_COMMENTS:,} comments")
    return 1


def allowed_pixels(most: int, scans: int) -> int:
    """Width × height of an image that is decoded in ``scans`` passes, where ``most`` is allowed in one."""
    return most if scans <= FREE_SCANS else most * FREE_SCANS // scans


def _jpeg_scans(data: bytes) -> int:
    """Walk over the markers, as libjpeg does; to the first scan if that is the only one that it decodes."""
    at, segments, scans, stray, components = 2, 0, 0, 0, 0
    while (marker := _JPEG_MARKER.search(data, at)) is not None:
        stray += 0 if scans else marker.start() - at
        kind, at = data[marker.start() + 1], marker.end()
        if kind == 0xD9:
            break
        if kind < 0xC0 or kind == 0xD8:  # nothing follows these
            stray += 2
        elif kind == 0xDA:
            scans += 1
            if scans == 1 and components and data[at + 2 : at + 3] == bytes([components]):
                break  # sequential and all components in one scan: the decoder accepts no second one
        elif kind in (0xC0, 0xC1):
            components = data[at + 7] if at + 7 < len(data) else 0
        elif kind not in (0xC4, 0xDB, 0xDD):
            segments += 1
        if scans > MAX_SCANS:
            raise ValueError(f"more than {MAX_SCANS} scans")
        if segments > MAX_SEGMENTS or stray > MAX_STRAY:
            raise ValueError(f"more than {MAX_SEGMENTS:,} segments or {MAX_STRAY:,} stray bytes before the pixels")
        if kind >= 0xC0 and kind != 0xD8:
            at += int.from_bytes(data[at : at + 2], "big")
    return max(scans, 1)


def _check_png(data: bytes) -> None:
    at, others = 8, 0
    while at + 8 <= len(data):
        others += data[at + 4 : at + 8] not in _IMAGE_CHUNKS
        if others > MAX_CHUNKS:
            raise ValueError(f"more than {MAX_CHUNKS:,} chunks besides image data")
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _check_gif(data: bytes) -> None:
    at = 13 + _color_table(data, 10)
    blocks = 0
    while at < len(data) and data[at] != 0x3B:
        blocks += 1
        if data[at] in (0x21, 0x2C):  # an extension; an image, with its own colors and the size of its codes
            at += 2 if data[at] == 0x21 else 11 + _color_table(data, at + 9)
            while at < len(data) and data[at]:
                at += 1 + data[at]
                blocks += 1
                if blocks > MAX_BLOCKS:
                    break
        at += 1
        if blocks > MAX_BLOCKS:
            raise ValueError(f"more than {MAX_BLOCKS:,} blocks")


def _color_table(data: bytes, at: int) -> int:
    """Bytes of the color table that the flags at ``at`` announce."""
    flags = data[at] if at < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


class _Ours:
    """Stands in a warning filter where a pattern would: matches on threads that are decoding, and keeps the text."""

    pattern = "(?!)"  # for scikit-learn, which hands filters on as text: matches nothing

    def __init__(self) -> None:
        self.thread = threading.local()

    def match(self, text: str) -> bool:
        kept: list[str] | None = getattr(self.thread, "kept", None)
        if kept is not None:
            kept.append(text)
        return kept is not None


_ours = _Ours()
_FILTER = ("ignore", _ours, Warning, None, 0)


@contextmanager
def capture_warnings() -> Iterator[list[str]]:
    """No warning of this thread leaves; they are collected. ``warnings.catch_warnings`` swaps a global list, which
    loses filters when several threads do it (before Python 3.14), so one filter stays that knows its threads."""
    filters = cast("list[Any]", warnings.filters)
    if not filters or filters[0] is not _FILTER:
        filters[:] = [_FILTER, *(entry for entry in filters if entry is not _FILTER)]
    kept: list[str] = []
    _ours.thread.kept = kept
    try:
        yield kept
    finally:
        _ours.thread.kept = None


Fit = Literal["crop", "pad", "squash"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjpg", ".pjp"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
MAX_PIXELS = 50_000_000  # width × height that a header may claim
MAX_SIDE = 65_535  # pixels of width or height: JPEG's own limit
MAX_BYTES = 200_000_000  # of one file
LARGE = 4_000_000  # pixels of an image after which the decoder's memory is returned to the system
PAD_GRAY = 128  # gray level of the bars of fit "pad"

_ORIENTATION = 0x0112  # the EXIF and TIFF tag for rotation
_ABOUT = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # where Pillow keeps what may tell it
_PHOTOMETRIC, _BITS = 262, 258  # TIFF tags: 0 = white is zero; bits per sample
_COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT = 259, 322, 323
_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES = 273, 279, 324, 325
_STARTS = (  # what is often found under an image's name, by its first bytes
    (b"<!doctype html", "looks like HTML"),
    (b"<html", "looks like HTML"),
    (b"<?xml", "looks like XML or SVG"),
    (b"<svg", "looks like SVG"),
    (b"version https://git-lfs", "is a Git LFS pointer"),
    (b"%pdf", "is a PDF"),
    (b"pk\x03\x04", "is a ZIP archive"),
)


class Decoded(NamedTuple):
    """A decoded image and what was noticed on the way."""

    pixels: NDArray[np.uint8]  # [H, W, 3] RGB
    format: str  # one of FORMATS, by content
    notes: tuple[str, ...]  # for people: "PNG named .jpg", "EXIF rotation applied", …


def decode(data: bytes, name: str = "", *, allow_truncated: bool = False, most: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The image in ``data`` as RGB uint8 [H, W, 3]. Raises ImageError with ``name`` and the reason."""
    return decode_noted(data, name, allow_truncated=allow_truncated, most=most).pixels


def decode_noted(data: bytes, name: str = "", *, allow_truncated: bool = False, most: int = MAX_PIXELS) -> Decoded:
    """As ``decode``, with the format found and notes.

    ``most``: width × height that the header may claim, never over MAX_PIXELS. ``allow_truncated`` decodes what is
    there of an image cut short and notes it; the rest is gray or black.
    """
    name = printable(name) or "image"
    _refuse_at_sight(data, name)
    with capture_warnings() as warned:
        try:
            decoded = _decode(data, name, allow_truncated, warned, min(most, MAX_PIXELS))
            _trim_after(decoded.pixels)
            return decoded
        except ImageError:
            raise
        except Image.DecompressionBombError:
            _refuse(f"{name}: more than {MAX_PIXELS // 10**6} megapixels", "at most that", "scale it down")
        except Exception as error:  # Pillow raises nearly anything on damaged files: one type leaves this room
            reason = printable(str(error)) or type(error).__name__
            if isinstance(error, UnidentifiedImageError):
                reason = "no known image format"
            raise ImageError(f"{name}: can not be decoded ({reason})", _MUST, _TODO) from error


def fit(image: NDArray[np.uint8], size: int, how: Fit = "crop") -> NDArray[np.uint8]:
    """``image`` [H, W, 3] as [size, size, 3], bilinear with antialiasing.

    crop: shorter side to ``size``, then the center (section 2 of the 2012 paper); pad: longer side to ``size``, gray
    bars (128); squash: both sides to ``size``. Cropping cuts the source box and resizes only that, so that a
    1 × 5000 image has no intermediate of size × 5000·size.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        _refuse(f"array {image.dtype} {list(image.shape)}", "uint8 [H, W, 3]", "")
    if size < 1 or how not in ("crop", "pad", "squash"):
        _refuse(f"size {size}, fit {how!r}", "at least 1, and crop, pad or squash", "")
    height, width = image.shape[:2]
    if how == "pad":
        fitted = _letter_box(image, size)
    else:
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side) if how == "crop" else (0.0, 0.0, width, height)
        fitted = _resize(image, size, size, box)
    _trim_after(image)
    return fitted


def read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file of at most 200 MB. Raises ImageError if unreadable, too large or no regular file."""
    file, text = Path(path), printable(os.fspath(path))
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            _refuse(f"{text}: is not a file", "an image file", "check the path")
        if status.st_size > MAX_BYTES:
            _refuse(f"{text}: {status.st_size:,} bytes", f"at most {MAX_BYTES:,} bytes", "scale it down")
        with file.open("rb", buffering=0) as opened:  # read_bytes makes a buffer first, which nobody needs
            return opened.read()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ImageError(f"{text}: can not be read ({why})", "a readable file", "check path and rights") from error


def encode_jpeg(image: NDArray[np.uint8], quality: int = 80) -> bytes:
    """``image`` uint8 [H, W, 3] as the bytes of a JPEG: smaller than a PNG, and not the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """``image`` uint8 [H, W, 3], or [H, W, 4] with alpha, as the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


_NO_ALPHA = "wholly transparent: alpha ignored"
_BAND = 1 << 20  # pixels that are converted at a time
_MUST, _TODO = f"a whole {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file", "replace or remove it"


def _trim_after(image: NDArray[np.uint8]) -> None:
    """Return the memory of Pillow's own copies of a large image, which are free by now."""
    if image.size > 3 * LARGE:
        system.trim()


def _refuse(what: str, must: str = _MUST, todo: str = _TODO) -> NoReturn:
    raise ImageError(what, must, todo) from None


def _refuse_at_sight(data: bytes, name: str) -> None:
    """Reasons that a decoder would not give."""
    if not data:
        _refuse(f"{name}: is empty")
    if len(data) < 8:
        _refuse(f"{name}: has only {len(data)} byte{'s' * (len(data) > 1)}")
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, kind in _STARTS:
        if head.startswith(start):
            _refuse(f"{name}: {kind}, not an image")
    if data[4:8] == b"ftyp":
        _refuse(f"{name}: is HEIC, AVIF or a video")


def _decode(data: bytes, name: str, allow_truncated: bool, warned: list[str], most: int) -> Decoded:
    scans = check(data)
    if (result := simplejpeg_decoder.plain(data, allowed_pixels(most, scans))) is not None:
        return Decoded(result, "JPEG", tuple(_named_otherwise("JPEG", name)))
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _refuse_size(image, data, name, most, scans)
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        _refuse(f"{name}: mode {image.mode}, whose range is unknown", "8 or 16 bits a channel", "convert it first")
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    notes = _named_otherwise(kind, name) + _frames(image) + _converted(image, kind, data)
    tag = getattr(image, "tag_v2", {}).get(_ORIENTATION)  # Pillow turns a TIFF while loading and forgets the tag
    fast = _fast(image, data)
    if (fast is None or not simplejpeg_decoder.proved()) and _load(image, kind, data, name, allow_truncated):
        notes.append("truncated")
    upright, exif_notes = _upright(image, tag, warned)
    if fast is None or upright is not image:
        fast, alpha_notes = _to_rgb(upright)
        notes += alpha_notes
    elif not simplejpeg_decoder.proved():
        simplejpeg_decoder.compare(fast, pillows := _to_rgb(image)[0])
        fast = pillows
    return Decoded(fast, kind, (*notes, *exif_notes))


def _refuse_size(image: Image.Image, data: bytes, name: str, most: int, scans: int) -> None:
    """Raise ImageError for more pixels than ``most``, or than are allowed with so much work for each of them."""
    width, height = image.size
    claim = f"{name}: {width} × {height} = {width * height / 1e6:.1f} megapixels"
    if width * height > most:
        _refuse(claim, f"at most {most / 1e6:g} megapixels", "scale it down")
    if max(width, height) > MAX_SIDE:
        _refuse(f"{name}: {width} × {height}", f"at most {MAX_SIDE:,} pixels a side", "scale it down")
    if image.format == "TIFF":
        scans = _tiff_scans(cast(Any, image).tag_v2, data, name, most)
    if scans > MAX_SCANS:
        _refuse(f"{name}: {scans} scans", f"at most {MAX_SCANS} scans", "save it again")
    if width * height > (allowed := allowed_pixels(most, scans)):
        _refuse(f"{claim} in {scans} scans", f"at most {allowed / 1e6:.1f} with so many scans", "save it again")
    slow = [tile[0] for tile in cast(Any, image).tile] == ["bmp_rle"]  # decoded in Python, a pixel at a time
    if slow and width * height > most // 5:
        _refuse(f"{claim}, run-length encoded", f"at most {most / 5e6:g}", "save it uncompressed")


def _tiff_scans(tags: Any, data: bytes, name: str, most: int) -> int:
    """Scans over the pixels of a TIFF: the most in one of its JPEG tiles or strips, which may not overlap; else 1.

    Raises ImageError for tiles of more than ``most`` pixels: a decoder makes room for a whole one.
    """
    if (tile := int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_HEIGHT, 0))) > most:
        _refuse(
            f"{name}: tiles of {tile / 1e6:.1f} megapixels", f"at most {most / 1e6:g}", "save it with smaller tiles"
        )
    if tags.get(_COMPRESSION) not in (6, 7):
        return 1
    first, sizes = (_TILE_OFFSETS, _TILE_BYTES) if _TILE_OFFSETS in tags else (_STRIP_OFFSETS, _STRIP_BYTES)
    parts = set(zip(tags.get(first, ()), tags.get(sizes, ()), strict=False))
    if sum(size for _, size in parts) > 2 * len(data):
        _refuse(f"{name}: its tiles overlap", "tiles of their own bytes", "save it again")
    return max((data.count(b"\xff\xda", start, start + size) for start, size in parts), default=1)


def _fast(image: Image.Image, data: bytes) -> NDArray[np.uint8] | None:
    """A whole JPEG in color without Pillow, where that gives Pillow's pixels."""
    if image.format != "JPEG" or image.mode != "RGB" or _lacks_end("JPEG", data):
        return None
    return simplejpeg_decoder.decode(data, *image.size)


def _named_otherwise(kind: str, name: str) -> list[str]:
    suffix = "" if name.lower().endswith(EXTENSIONS[kind]) else PurePath(name).suffix.lower()
    known = any(suffix in suffixes for suffixes in EXTENSIONS.values())
    return [f"{kind} named {suffix}"] if known and suffix not in EXTENSIONS[kind] else []


def _converted(image: Image.Image, kind: str, data: bytes) -> list[str]:
    """What the file has that three channels of eight bits have not."""
    ink = ["CMYK to RGB"] if image.mode == "CMYK" else []
    if kind == "PNG":  # Pillow opens 16-bit color as 8 and tells no one: the header does, in its 25th byte
        deep = data[24:25] == b"\x10"
    else:
        bits = getattr(image, "tag_v2", {}).get(_BITS, (8,))
        deep = image.mode.startswith("I") or max(bits if isinstance(bits, tuple) else (8,)) > 8
    return [*ink, *["over 8 bits a channel to 8"] * deep]


def _frames(image: Image.Image) -> list[str]:
    try:
        frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
        image.seek(0)
    except Exception:  # later frames may be damaged; only the first is used
        return ["animation: first frame"]
    return [f"animation: first of {frames} frames"] if frames > 1 else []


def _load(image: Image.Image, kind: str, data: bytes, name: str, allow: bool) -> bool:
    """Decode the pixels; True if the image is cut short and that is allowed.

    Pillow's switch for truncated files, ``ImageFile.LOAD_TRUNCATED_IMAGES``, is global: one thread turning it on lets
    bad images into the others. So a JPEG gets the end marker that it lacks, in its own buffer, and other formats
    keep the rows that were decoded before the error: both touch nothing but this image.
    """
    cut = _lacks_end(kind, data)
    if cut and not allow:
        _refuse(f"{name}: {kind} is truncated", _MUST, "get it again, or allow truncated images")
    if cut and kind == "JPEG":
        image.fp = io.BytesIO(data + b"\xff\xd9")  # type: ignore[attr-defined]
    try:
        image.load()
    except OSError as error:
        if "truncated" not in str(error).lower():
            raise
        if not allow:
            _refuse(f"{name}: {kind} is truncated", _MUST, "get it again, or allow truncated images")
        cut = True
        cast(Any, image).tile = []  # nothing left to decode: what is there counts
        image.load()
    return cut


def _lacks_end(kind: str, data: bytes) -> bool:
    """True if a JPEG has no end marker after its first scan, a PNG no end chunk; Pillow reads over some of these."""
    if kind == "PNG":
        return data.rfind(b"IEND\xaeB\x60\x82") < 0
    if kind != "JPEG":
        return False
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:  # over the segments, thumbnail included
        marker = data[at + 1]
        bare = marker in (0x01, 0xFF) or 0xD0 <= marker <= 0xD8
        at += (1 if marker == 0xFF else 2) if bare else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.rfind(b"\xff\xd9", at) < 0  # from behind: there it is, and a search through 65 KB takes 70 µs


def _upright(image: Image.Image, tag: Any, warned: list[str]) -> tuple[Image.Image, list[str]]:
    """The image as it is to be seen, and notes on its EXIF. Corrupt EXIF changes no pixel."""
    before = len(warned)
    if image.format == "JPEG" and not before and not _ABOUT & image.info.keys():
        return image, []  # nothing says anything about it: a tenth of the time of decoding is saved
    try:
        Image.Exif().load(image.info.get("exif", b""))  # again: Pillow read it while opening and swallowed its errors
        turn = image.getexif().get(_ORIENTATION, 1)
        upright = ImageOps.exif_transpose(image) if turn in range(2, 9) else image
    except Exception:
        return image, ["corrupt EXIF ignored"]
    if turn not in range(1, 9):
        return image, [f"EXIF rotation {printable(str(turn))[:20]} ignored"]
    turned = turn != 1 or (tag is not None and tag in range(2, 9))
    corrupt = len(warned) > before or any("EXIF" in text for text in warned)
    return upright, ["EXIF rotation applied"] * turned + ["corrupt EXIF ignored"] * corrupt


def _to_rgb(image: Image.Image) -> tuple[NDArray[np.uint8], list[str]]:
    """RGB uint8 [H, W, 3] from any mode, and notes; transparency lies on white.

    A file whose every pixel is transparent (some writers of BMP leave the fourth byte at 0) would be plain white: its
    colors count instead.
    """
    if image.mode.startswith("I"):
        gray, notes = _gray16(image)
        return np.repeat(gray[..., None], 3, axis=2), notes
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    has_alpha = "A" in image.mode or "transparency" in image.info
    ignored = has_alpha and not any(_alpha_range(band)[1] for _, band in _bands(image))
    for top, band in _bands(image):
        rgb = band
        if has_alpha:
            rgb = band.convert("RGBA")
            rgb = rgb if ignored else Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb)
        pixels[top : top + band.height] = np.asarray(rgb if rgb.mode == "RGB" else rgb.convert("RGB"))
    return pixels, [_NO_ALPHA] * ignored


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """A large image in parts of about a megapixel: each conversion of a whole one is another copy of it."""
    step = max(1, _BAND // image.width)
    if step >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, step):
        yield top, image.crop((0, top, image.width, min(top + step, image.height)))


def _alpha_range(image: Image.Image) -> tuple[int, int]:
    return cast("tuple[int, int]", image.convert("RGBA").getchannel("A").getextrema())


def _gray16(image: Image.Image) -> tuple[NDArray[np.uint8], list[str]]:
    """16-bit gray (12 in some TIFFs) scaled to 0..255 with rounding. Pillow's own conversion clips it at 255."""
    tags = getattr(image, "tag_v2", {})
    top = 4095 if tags.get(_BITS, (16,))[0] == 12 else 65535
    table = np.minimum((np.arange(65536) * 510 + top) // (2 * top), 255).astype(np.uint8)  # little memory a pixel
    if tags.get(_PHOTOMETRIC) == 0:
        table = 255 - table
    raw = np.asarray(image).clip(0, 65535)  # [H, W]
    clear = image.info.get("transparency")
    ignored = isinstance(clear, int) and bool((raw == clear & 65535).all())
    if isinstance(clear, int) and not ignored:
        table[clear & 65535] = 255
    return np.asarray(table[raw]), [_NO_ALPHA] * ignored


def _letter_box(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    sides = image.shape[:2]
    height, width = (max(1, round(side * (size / max(sides)))) for side in sides)
    canvas = np.full((size, size, 3), PAD_GRAY, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = _resize(image, width, height, (0.0, 0.0, sides[1], sides[0]))
    return canvas


def _resize(
    image: NDArray[np.uint8], width: int, height: int, box: tuple[float, float, float, float]
) -> NDArray[np.uint8]:
    """The part ``box`` of an image, bilinear with antialiasing: along its rows, then along its columns.

    In one call Pillow before 13 does the same, Pillow 13 takes the columns first where that is cheaper, and a fifth of
    such an image's values differ by one gray level. Two calls give the same pixels whatever the version, and so does
    ``resize.c`` where it was built. The result may be written to.
    """
    left, top, right, bottom = box
    reach = (bottom - top) / height + 2  # rows beyond the box that its first and last row still look at
    above, below = max(0, int(top - reach)), min(len(image), int(bottom + reach) + 1)
    if width * (below - above) > MAX_PIXELS:  # a strip taller than 50 megapixels allow: the columns first after all
        return np.array(_image(image).resize((width, height), Image.Resampling.BILINEAR, box=box))
    image, top, bottom = image[above:below], top - above, bottom - above
    if resize.in_use(max((right - left) / width, (bottom - top) / height)):
        return resize.resized(image, width, height, (left, top, right, bottom))
    rows = _image(image).resize((width, len(image)), Image.Resampling.BILINEAR, box=(left, 0, right, len(image)))
    return np.array(rows.resize((width, height), Image.Resampling.BILINEAR, box=(0, top, width, bottom)))


def _image(image: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image))
