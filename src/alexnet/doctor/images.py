"""Checks of single images: unreadable, truncated or converted files, extreme sizes and shapes, images without content.

Every image is decoded once into an :class:`ImageInfo` with a thumbnail. Images without content are of one color, too
dark, over-exposed, of few gray levels or out of focus. Each measure is compared with a limit that none of 1,400
photographs reached (docs/doctor.md) and with the median of the data set: if all images are dark, that is normal.
"""

import re
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data import decode
from alexnet.data.shards import image_sha256, map_in_order
from alexnet.data.sources.source import Sample
from alexnet.doctor.findings import Example, Finding, Severity
from alexnet.errors import DataError, ImageError, counted, reason
from alexnet.system import cores
from alexnet.terminal import Progress

THUMBNAIL_SIZE = 24  # pixels
_THUMBNAIL_BYTES = 3 * THUMBNAIL_SIZE**2
_MEMORY = 64 << 20  # bytes: more thumbnails are in a temporary file
SMALLEST = 8  # pixels: the content of images with a shorter side below this is not measured
Phases = Callable[[str], Progress | None]  # the progress bar of a phase, from its name


class Content(NamedTuple):
    """How much content an image has, measured on its gray levels at a size of at most 128 pixels."""

    low: float  # gray level of the darkest percent
    high: float  # gray level of the lightest percent
    spread: float  # gray levels between the darkest and the lightest pixel
    bits: float  # entropy of the gray levels
    detail: float  # standard deviation of the Laplacian, divided by that of the gray levels


class _ThumbnailFile:
    """Thumbnails uint8 [S, S, 3] in a temporary file: those of a million images have 1.7 GB. For several threads."""

    def __init__(self, count: int) -> None:
        self.file, self.lock = tempfile.TemporaryFile(buffering=0), threading.Lock()  # noqa: SIM115 - closed below
        weakref.finalize(self, self.file.close)
        self.needed = count * _THUMBNAIL_BYTES

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        with self.lock:
            self.file.seek(row * _THUMBNAIL_BYTES)
            data = self.file.read(_THUMBNAIL_BYTES)
        return np.frombuffer(data, np.uint8).reshape(THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3)

    def __setitem__(self, row: int, thumbnail: NDArray[np.uint8]) -> None:
        try:
            with self.lock:
                self.file.seek(row * _THUMBNAIL_BYTES)
                self.file.write(thumbnail.tobytes())
        except OSError as error:
            problem = f"{tempfile.gettempdir()}: {error.strerror}; the thumbnails need {self.needed:,} bytes"
            raise DataError(problem, "", "set TMPDIR to a folder with more space") from error


class ImageTable:
    """What was measured of N images, in arrays of one row for each: there may be a million images."""

    def __init__(self, count: int) -> None:
        self.width, self.height, self.size = (np.zeros(count, kind) for kind in (np.int32, np.int32, np.int64))
        self.digest = np.zeros((count, 32), np.uint8)
        self.content = np.full((count, len(Content._fields)), np.nan, np.float32)
        self.decoded = np.zeros(count, bool)
        in_memory = count * _THUMBNAIL_BYTES <= _MEMORY
        shape = (count, THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3)
        self.thumbnails: Any = np.zeros(shape, np.uint8) if in_memory else _ThumbnailFile(count)


class _Number:
    """An attribute of an image that is a column of its table."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, info: "ImageInfo", owner: type) -> int:
        return int(getattr(info.table, self.name)[info.row])

    def __set__(self, info: "ImageInfo", value: int) -> None:
        getattr(info.table, self.name)[info.row] = value


class ImageInfo:
    """The facts about one image: its file, its size, a thumbnail, or why it cannot be decoded."""

    __slots__ = ("error", "format", "notes", "row", "sample", "split", "table")
    width, height = _Number(), _Number()  # pixels
    size = _Number()  # bytes of the file; 0 for an array

    def __init__(self, sample: Sample, split: str, table: ImageTable | None = None, row: int = 0) -> None:
        self.sample, self.split = sample, split
        self.table, self.row = table or ImageTable(1), row
        self.error = ""  # why it cannot be decoded
        self.format = ""
        self.notes: tuple[str, ...] = ()

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the file's bytes, or of an array; zeros if it cannot be read."""
        return bytes(self.table.digest[self.row])

    @property
    def sha256(self) -> str:
        """The digest, hexadecimal."""
        return self.digest.hex()

    @sha256.setter
    def sha256(self, value: str) -> None:
        self.table.digest[self.row] = np.frombuffer(bytes.fromhex(value), np.uint8)

    @property
    def thumbnail(self) -> NDArray[np.uint8] | None:
        """The image squashed to uint8 [S, S, 3]; None if it cannot be decoded."""
        return self.table.thumbnails[self.row] if self.table.decoded[self.row] else None

    @thumbnail.setter
    def thumbnail(self, value: NDArray[np.uint8]) -> None:
        self.table.thumbnails[self.row] = value
        self.table.decoded[self.row] = True

    @property
    def content(self) -> Content | None:
        """How much content it has; None if that was not measured."""
        values = self.table.content[self.row]
        return None if np.isnan(values[0]) else Content(*values.tolist())

    @content.setter
    def content(self, value: Content | None) -> None:
        self.table.content[self.row] = np.nan if value is None else value

    @property
    def origin(self) -> str:
        """The image's name in its source."""
        return self.sample.origin

    @property
    def truncated(self) -> bool:
        """Whether the file is truncated. Such images are used only with ``allow_truncated``."""
        return "truncated" in self.notes


class ImageDataset(NamedTuple):
    """All images of a data set, with what was measured of each."""

    name: str
    classes: tuple[str, ...]
    infos: list[ImageInfo]
    drawn: bool  # the splits are those that training would draw
    validation_drawn: bool = False  # the validation split is one that training would draw
    allow_truncated: bool = False  # whether truncated images are used

    def good(self) -> list[ImageInfo]:
        """The images that can be used."""
        return [info for info in self.infos if not info.error and (self.allow_truncated or not info.truncated)]


def inspect_all(
    splits: Mapping[str, tuple[Sample, ...]], workers: int | None = None, progress: Progress | None = None
) -> list[ImageInfo]:
    """Examine every image, in the order of the splits, on ``workers`` threads (default: all cores)."""
    total = sum(map(len, splits.values()))
    table, threads = ImageTable(total), workers or cores()
    tasks = enumerate((sample, split) for split, samples in splits.items() for sample in samples)
    results: list[ImageInfo] = []
    with ThreadPoolExecutor(threads, "alexnet-doctor") as pool:
        for info in map_in_order(pool, lambda task: inspect_image(*task[1], table, task[0]), tasks, 4 * threads):
            results.append(info)
            if progress is not None:
                progress(len(results), total)
    return results


def inspect_image(sample: Sample, split: str, table: ImageTable | None = None, row: int = 0) -> ImageInfo:
    """Decode and measure one image, into a row of ``table`` if there is one. No content of a file makes it raise."""
    info = ImageInfo(sample, split, table, row)
    try:
        data = sample.load()
        info.sha256 = image_sha256(data)
        if isinstance(data, bytes):
            info.size = len(data)
            image, info.format, info.notes = decode.decode_with_notes(data, sample.origin, allow_truncated=True)
        else:
            image, info.format = data, "array"
        info.height, info.width = image.shape[:2]
        info.thumbnail = decode.fit(image, THUMBNAIL_SIZE, "squash")
        info.content = measure_content(image)
    except (ImageError, OSError) as error:
        info.error = error.what if isinstance(error, ImageError) else reason(error)
    return info


class Thumbnails:
    """The thumbnails of images that were decoded. A slice or an array of indices gives uint8 [N, S, S, 3], a copy."""

    def __init__(self, infos: list[ImageInfo]) -> None:
        self.infos = infos

    def __len__(self) -> int:
        return len(self.infos)

    def __getitem__(self, key: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        infos = self.infos[key] if isinstance(key, slice) else [self.infos[i] for i in key.tolist()]
        thumbnails = [thumbnail for info in infos if (thumbnail := info.thumbnail) is not None]
        return np.stack([np.zeros((THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3), np.uint8), *thumbnails])[1:]


def measure_content(image: NDArray[np.uint8], size: int = 128) -> Content | None:
    """The content of an image uint8 [H, W, 3], measured at ``size`` pixels at most; None for a tiny image."""
    size = min(size, *image.shape[:2])
    if size < SMALLEST:
        return None
    gray = decode.fit(image, size, "squash") @ np.array([0.299, 0.587, 0.114], np.float32)  # [s, s]
    low, high = np.percentile(gray, [1, 99])
    counts = np.bincount(gray.astype(np.uint8).reshape(-1), minlength=256)
    shares = counts[counts > 0] / gray.size
    center, neighbors = gray[1:-1, 1:-1], gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    detail = (4 * center - neighbors).std() / (gray.std() + 1)
    return Content(
        float(low), float(high), float(np.ptp(gray)), float(-(shares * np.log2(shares)).sum()), float(detail)
    )


TINY = 16  # pixels: a shorter side below this is reported, unless half of all images are so small
MAX_ASPECT = 4.0  # longer side / shorter side
MAX_CROPPED = 0.3  # mean fraction of an image that the center crop may remove without a warning

# The note of the decoder, the name of the check, its severity, its message and hint for several images.
_DECODER_NOTES = (
    (
        "truncated",
        "truncated",
        "warning",
        "are truncated and will be left out",
        "get the files again, or pass --allow-truncated",
    ),
    (
        "damaged JPEG",
        "damaged",
        "warning",
        "have damaged JPEG data: a part of each is gray or wrong",
        "look at each image; get the files again",
    ),
    (
        "animation",
        "animated",
        "warning",
        "are animations or have several pages: only the first is used",
        "split or remove them",
    ),
    ("CMYK", "cmyk", "note", "are CMYK: converted to RGB without profile", "check their colors"),
    (
        "over 8 bits",
        "deep",
        "note",
        "have over 8 bits a channel and are scaled to 8",
        "no problem, unless faint detail matters",
    ),
    ("EXIF rotation applied", "rotated", "note", "have an EXIF rotation, which is applied", ""),
    (
        "corrupt EXIF",
        "corrupt-exif",
        "note",
        "have damaged EXIF data and are used as stored",
        "check that they are upright",
    ),
    (
        "wholly transparent",
        "transparent",
        "note",
        "are fully transparent: the alpha channel is ignored",
        "look at each image",
    ),
    ("named", "misnamed", "note", "have a name of another format: the content counts", "rename them"),
)


def check_files(dataset: ImageDataset) -> Iterator[Finding]:
    """Findings about files."""
    yield from _unreadable(dataset)
    for mark, check, severity, what, todo in _DECODER_NOTES:
        matches = [info for info in dataset.infos if not info.error and any(mark in note for note in info.notes)]
        if matches and check == "truncated" and dataset.allow_truncated:
            what, todo = "are truncated: the part that can be decoded is used", "get the files again"
        if matches:
            examples = tuple(Example((info.origin,), ", ".join(n for n in info.notes if mark in n)) for info in matches)
            exclude = (
                tuple(info.origin for info in matches) if check == "truncated" and not dataset.allow_truncated else ()
            )
            yield Finding(check, _severity(severity), _sentence(matches, what), _hint(matches, todo), examples, exclude)


def check_shapes(dataset: ImageDataset) -> Iterator[Finding]:
    """Findings about sizes, aspect ratios, and what the center crop removes."""
    good = dataset.good()
    if not good:
        return
    short = np.array([min(info.width, info.height) for info in good])
    ratio = np.array([max(info.width, info.height) for info in good]) / short
    median = float(np.median(short))
    tiny = short < min(TINY, median / 2)
    if tiny.any():
        what = f"have a shorter side below {TINY} pixels; the median is {median:.0f}"
        yield _shape_finding("tiny", good, tiny, what, "remove them: they have too few pixels", _size, exclude=True)
    if median < 64:
        what = f"the images are small: the median of the shorter side is {median:.0f} pixels"
        yield Finding("small", "note", what, "a network for small images trains faster: see alexnet models")
    if (ratio > MAX_ASPECT).any():
        what = f"have an aspect ratio above {MAX_ASPECT:.0f}"
        yield _shape_finding("elongated", good, ratio > MAX_ASPECT, what, "crop them, or pass --fit pad", _size)
    yield from _center_cut(good, 1 - 1 / ratio)


def _unreadable(dataset: ImageDataset) -> Iterator[Finding]:
    bad = [info for info in dataset.infos if info.error]
    large = [info for info in bad if "megapixels" in info.error]
    broken = [info for info in bad if "megapixels" not in info.error]
    for check, matches, what in (
        ("unreadable", broken, "cannot be read and will be left out"),
        ("bomb", large, "claim too many pixels and will be left out without being decoded"),
    ):
        if matches:
            examples = tuple(Example((info.origin,), info.error.removeprefix(f"{info.origin}: ")) for info in matches)
            exclude = tuple(info.origin for info in matches)
            yield Finding(
                check, "warning", _sentence(matches, what), _hint(matches, "replace or remove them"), examples, exclude
            )


def _center_cut(good: list[ImageInfo], lost: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Iterator[Finding]:
    """A finding about the fraction ``lost`` [N] of each image outside the center square."""
    mean, half = float(lost.mean()), int((lost > 0.5).sum())
    if mean < 0.01:
        return
    what = f"the center crop removes {100 * mean:.0f} % of an image on average"
    what += f", and over half of {counted(half, 'image')}" * (half > 0)
    todo = "check that the subject is in the center; --fit pad keeps the whole image"
    order = np.argsort(-lost, kind="stable")[:12]
    examples = tuple(Example((good[i].origin,), f"{100 * lost[i]:.0f} % removed") for i in order)
    numbers = {"mean": mean, "over_half": half, "percentiles": np.percentile(lost, [5, 25, 50, 75, 95]).tolist()}
    yield Finding("center-cut", "warning" if mean > MAX_CROPPED else "note", what, todo, examples, (), numbers)


def _shape_finding(
    check: str,
    good: list[ImageInfo],
    mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    what: str,
    todo: str,
    why: Callable[[ImageInfo], str],
    exclude: bool = False,
) -> Finding:
    matches = [good[i] for i in np.flatnonzero(mask)]
    examples = tuple(Example((info.origin,), why(info)) for info in matches)
    names = tuple(info.origin for info in matches) if exclude else ()
    return Finding(check, "warning", _sentence(matches, what), _hint(matches, todo), examples, names)


def _size(info: ImageInfo) -> str:
    return f"{info.width} × {info.height}"


def _sentence(matches: list[ImageInfo], what: str) -> str:
    """The number of images, then ``what``, which begins with a plural verb."""
    plural, rest = what.split(" ", 1)
    single = {"are": "is", "have": "has", "claim": "claims", "cannot": "cannot"}
    return f"{counted(len(matches), 'image')} {single[plural] if len(matches) == 1 else plural} {rest}"


_SINGULAR = (
    ("have", "has"),
    ("are", "is"),
    ("they", "it"),
    ("them", "it"),
    ("their", "its"),
    ("files", "file"),
    ("each image", "the image"),
    ("each", "it"),
    ("images", "the image"),
)


def _hint(matches: list[ImageInfo], hint: str) -> str:
    """``hint``, which is written for several images, in the singular if there is one."""
    if len(matches) == 1:
        for plural, singular in _SINGULAR:
            hint = re.sub(rf"\b{plural}\b", singular, hint)
    return hint


def _severity(word: str) -> Severity:
    return "error" if word == "error" else "warning" if word == "warning" else "note"


BLANK = 8.0  # gray levels between the darkest and the lightest pixel
DARK = 64.0  # gray level: 99 % of the pixels are darker
LIGHT = 55.0  # distance from white, gray levels: 99 % of the pixels are nearer
BITS = 1.5  # entropy of the gray levels
DETAIL = 0.08  # standard deviation of the Laplacian, divided by that of the gray levels
FOCUS = 32  # pixels: the focus of images with a shorter side below this is not checked


class _Kind(NamedTuple):
    check: str
    what: str
    todo: str


_KINDS = (
    _Kind("blank", "of one color", "remove images without content"),
    _Kind("dark", "almost black", "look at each: brighten it, or remove it if unrecognizable"),
    _Kind("overexposed", "almost white", "look at each: remove it if unrecognizable"),
    _Kind("low-information", "of few gray levels", "look at each: remove it if unrecognizable"),
    _Kind(
        "blurred",
        "out of focus, or enlarged from a few pixels",
        "look at each: remove it if unrecognizable",
    ),
)


def check_contents(dataset: ImageDataset) -> Iterator[Finding]:
    """Findings about images without content. Each image is in one finding at most."""
    infos = [info for info in dataset.good() if info.content is not None]
    if not infos:
        return
    values = np.array([info.content for info in infos])  # [N, 5]
    kinds = classify_contents(values, np.array([min(info.width, info.height) for info in infos]))
    for number, kind in enumerate(_KINDS):
        matches = [info for info, one in zip(infos, kinds, strict=True) if one == number]
        if matches:
            what = f"{counted(len(matches), 'image')} {'is' if len(matches) == 1 else 'are'} {kind.what}"
            exclude = tuple(info.origin for info in matches) if kind.check == "blank" else ()
            yield Finding(
                kind.check, "warning", what, _hint(matches, kind.todo), tuple(map(_example, matches)), exclude
            )


def _example(info: ImageInfo) -> Example:
    content = info.content
    assert content is not None
    why = f"gray levels {content.low:.0f} to {content.high:.0f}, {content.bits:.1f} bits, detail {content.detail:.2f}"
    return Example((info.origin,), why)


def classify_contents(values: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The kind of each row of contents [N, 5]: an index of ``_KINDS``, or −1 if the content is good. int64 [N]."""
    low, high, spread, bits, detail = values.T
    median = np.median(values, axis=0)
    tests = (
        spread < BLANK,
        high < min(DARK, median[1] / 2),
        255 - low < min(LIGHT, (255 - median[0]) / 2),
        bits < min(BITS, median[3] / 3),
        (detail < min(DETAIL, median[4] / 3)) & (sizes >= FOCUS),
    )
    kinds = np.full(len(values), -1, np.int64)
    for number, mask in reversed(list(enumerate(tests))):
        kinds[mask] = number
    return kinds
