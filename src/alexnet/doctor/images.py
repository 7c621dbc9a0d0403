"""Checks of single images: unreadable, truncated or converted files, extreme sizes and shapes, images without content.

Every image is decoded once into an :class:`ImageInfo` with a thumbnail. Images without content are of one color, too
dark, over-exposed, of few gray levels or out of focus. Each measure is compared with a limit that none of 1,400
photographs reached (docs/doctor.md) and with the median of the data set: if all images are dark, that is normal.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data import decode
from alexnet.data.shards import image_sha256, map_in_order
from alexnet.data.sources.source import Sample
from alexnet.doctor.findings import Example, Finding, Severity
from alexnet.errors import ImageError, counted

SIDE = 24  # pixels of a thumbnail: 1,728 bytes an image
SMALLEST = 8  # pixels: what an image with a shorter side shows is not measured
Progress = Callable[[int, int], None]
Phases = Callable[[str], Progress | None]  # the progress bar of a phase, from its name


class Content(NamedTuple):
    """How much content an image has, measured on its gray levels at a size of at most 128 pixels."""

    low: float  # gray level of the darkest percent
    high: float  # of the lightest percent
    spread: float  # between the darkest and the lightest pixel
    bits: float  # entropy of the gray levels
    detail: float  # deviation of the Laplacian, of that of the gray levels


class ImageInfo:
    """The facts about one image: its file, its size, a thumbnail, or why it can not be decoded."""

    __slots__ = (
        "content",
        "error",
        "format",
        "height",
        "image",
        "notes",
        "sha256",
        "size",
        "split",
        "thumb",
        "width",
    )

    def __init__(self, image: Sample, split: str) -> None:
        self.image, self.split = image, split
        self.error = ""  # why it can not be used at all
        self.sha256, self.size = "", 0  # of the file's bytes, or of an array
        self.width, self.height, self.format = 0, 0, ""
        self.notes: tuple[str, ...] = ()
        self.thumb: NDArray[np.uint8] | None = None  # [S, S, 3], squashed
        self.content: Content | None = None  # None: not measured

    @property
    def origin(self) -> str:
        """The image's name in its source."""
        return self.image.origin

    @property
    def truncated(self) -> bool:
        """Whether the file is truncated. Such images are used only with ``allow_truncated``."""
        return "truncated" in self.notes


class Seen(NamedTuple):
    """All images of a data set, examined."""

    name: str
    classes: tuple[str, ...]
    looks: list[ImageInfo]
    drawn: bool  # the splits are those that training would draw
    validation_drawn: bool = False  # the validation split at least is
    allow_truncated: bool = False  # images that were cut short are used

    def good(self) -> list[ImageInfo]:
        """The images that can be used."""
        return [look for look in self.looks if not look.error and (self.allow_truncated or not look.truncated)]


def look_at_all(
    splits: Mapping[str, tuple[Sample, ...]], workers: int | None = None, progress: Progress | None = None
) -> list[ImageInfo]:
    """Examine every image, in the order of the splits, on ``workers`` threads (default: all cores)."""
    every = [(split, image) for split, images in splits.items() for image in images]
    count = workers or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else workers or 1
    results = []
    with ThreadPoolExecutor(count, "alexnet-doctor") as pool:
        for done, look in enumerate(map_in_order(pool, lambda one: look_at(one[1], one[0]), every, 4 * count), 1):
            results.append(look)
            if progress is not None:
                progress(done, len(every))
    return results


def look_at(sample: Sample, split: str) -> ImageInfo:
    """Decode and measure one image. No content of a file makes it raise."""
    look = ImageInfo(sample, split)
    try:
        data = sample.load()
        look.sha256 = image_sha256(data)
        if isinstance(data, bytes):
            look.size = len(data)
            image, look.format, look.notes = decode.decode_with_notes(data, sample.origin, allow_truncated=True)
        else:
            image, look.format = data, "array"
        look.height, look.width = image.shape[:2]
        look.thumb = decode.fit(image, SIDE, "squash")  # [S, S, 3]
        look.content = content_of(image)
    except (ImageError, OSError) as error:
        look.error = error.what if isinstance(error, ImageError) else str(error)
    return look


def thumbs_of(looks: list[ImageInfo]) -> NDArray[np.uint8]:
    """The thumbnails of usable images: uint8 [N, S, S, 3]."""
    results = [look.thumb for look in looks if look.thumb is not None]
    return np.stack(results) if results else np.zeros((0, SIDE, SIDE, 3), np.uint8)


def content_of(image: NDArray[np.uint8], side: int = 128) -> Content | None:
    """What there is to see in an image [H, W, 3], at no more than ``side`` pixels; None where it is too small."""
    side = min(side, *image.shape[:2])
    if side < SMALLEST:
        return None
    gray = decode.fit(image, side, "squash") @ np.array([0.299, 0.587, 0.114], np.float32)  # [s, s]
    low, high = np.percentile(gray, [1, 99])
    counts = np.bincount(gray.astype(np.uint8).reshape(-1), minlength=256)
    shares = counts[counts > 0] / gray.size
    center, beside = gray[1:-1, 1:-1], gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    detail = (4 * center - beside).std() / (gray.std() + 1)
    return Content(
        float(low), float(high), float(np.ptp(gray)), float(-(shares * np.log2(shares)).sum()), float(detail)
    )


TINY = 16  # pixels: a shorter side below this shows nothing, unless all images of the set are like that
LONG = 4.0  # times as long as wide
CUT = 0.3  # mean share of the images that a center cut may throw away before it is worth a warning

# What the decoder noted → check, what of the images, what to do.
_NOTED = (
    (
        "truncated",
        "truncated",
        "warning",
        "are truncated and will be left out",
        "get the files again, or pass --allow-truncated",
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


def check_files(seen: Seen) -> Iterator[Finding]:
    """Findings about files."""
    yield from _unreadable(seen)
    for mark, check, severity, what, todo in _NOTED:
        own = [look for look in seen.looks if not look.error and any(mark in note for note in look.notes)]
        if own and check == "truncated" and seen.allow_truncated:
            what, todo = "are truncated: the part that is there is used", "get the files again"
        if own:
            examples = tuple(Example((look.origin,), ", ".join(n for n in look.notes if mark in n)) for look in own)
            exclude = tuple(look.origin for look in own) if check == "truncated" and not seen.allow_truncated else ()
            yield Finding(check, _severity(severity), _sentence(own, what), todo, examples, exclude)


def check_shapes(seen: Seen) -> Iterator[Finding]:
    """Findings about sizes and shapes, and what the center cut loses."""
    good = seen.good()
    if not good:
        return
    short = np.array([min(look.width, look.height) for look in good])
    ratio = np.array([max(look.width, look.height) for look in good]) / short
    usual = float(np.median(short))
    tiny = short < min(TINY, usual / 2)
    if tiny.any():
        what = f"have a shorter side below {TINY} pixels; the median is {usual:.0f}"
        yield _some("tiny", good, tiny, what, "remove them: they have too few pixels", _size, exclude=True)
    if usual < 64:
        what = f"the images are small: the median of the shorter side is {usual:.0f} pixels"
        yield Finding("small", "note", what, "a network for small images trains faster: see alexnet models")
    if (ratio > LONG).any():
        what = f"have an aspect ratio above {LONG:.0f}"
        yield _some("elongated", good, ratio > LONG, what, "crop them, or pass --fit pad", _size)
    yield from _center_cut(good, 1 - 1 / ratio)


def _unreadable(seen: Seen) -> Iterator[Finding]:
    bad = [look for look in seen.looks if look.error]
    large = [look for look in bad if "megapixels" in look.error]
    broken = [look for look in bad if "megapixels" not in look.error]
    for check, own, what in (
        ("unreadable", broken, "can not be read and will be left out"),
        ("bomb", large, "claim too many pixels and will be left out without being decoded"),
    ):
        if own:
            examples = tuple(Example((look.origin,), look.error.removeprefix(f"{look.origin}: ")) for look in own)
            exclude = tuple(look.origin for look in own)
            yield Finding(check, "warning", _sentence(own, what), "replace or remove them", examples, exclude)


def _center_cut(good: list[ImageInfo], lost: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Iterator[Finding]:
    """How much of each image lies outside of the central square."""
    mean, half = float(lost.mean()), int((lost > 0.5).sum())
    if mean < 0.01:
        return
    over = counted(half, "image")
    what = f"the center crop removes {100 * mean:.0f} % of an image on average, and over half of {over}"
    todo = "check that the subject is in the center; --fit pad keeps the whole image"
    order = np.argsort(-lost, kind="stable")[:12]
    examples = tuple(Example((good[i].origin,), f"{100 * lost[i]:.0f} % removed") for i in order)
    numbers = {"mean": mean, "over_half": half, "percentiles": np.percentile(lost, [5, 25, 50, 75, 95]).tolist()}
    yield Finding("center-cut", "warning" if mean > CUT else "note", what, todo, examples, (), numbers)


def _some(
    check: str,
    good: list[ImageInfo],
    mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    what: str,
    todo: str,
    why: Callable[[ImageInfo], str],
    exclude: bool = False,
) -> Finding:
    own = [good[i] for i in np.flatnonzero(mask)]
    examples = tuple(Example((look.origin,), why(look)) for look in own)
    names = tuple(look.origin for look in own) if exclude else ()
    return Finding(check, "warning", _sentence(own, what), todo, examples, names)


def _size(look: ImageInfo) -> str:
    return f"{look.width} × {look.height}"


def _sentence(own: list[ImageInfo], what: str) -> str:
    """``what`` begins with the verb, in the plural."""
    plural, rest = what.split(" ", 1)
    single = {"are": "is", "have": "has", "claim": "claims", "can": "can"}
    return f"{counted(len(own), 'image')} {single[plural] if len(own) == 1 else plural} {rest}"


def _severity(word: str) -> Severity:
    return "error" if word == "error" else "warning" if word == "warning" else "note"


BLANK = 8.0  # gray levels between the darkest and the lightest pixel
DARK = 64.0  # gray level that 99 % of the pixels stay below
LIGHT = 55.0  # distance from white that 99 % of the pixels stay below
BITS = 1.5  # entropy of the gray levels
DETAIL = 0.08  # deviation of the Laplacian, of that of the gray levels
FOCUS = 32  # pixels: the focus of an image with a shorter side is not judged


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


def check_contents(seen: Seen) -> Iterator[Finding]:
    """Findings about images that show nothing; each image is in one of them at most."""
    looks = [look for look in seen.good() if look.content is not None]
    if not looks:
        return
    values = np.array([look.content for look in looks])  # [N, 5]
    kinds = kind_of(values, np.array([min(look.width, look.height) for look in looks]))
    for number, kind in enumerate(_KINDS):
        own = [look for look, one in zip(looks, kinds, strict=True) if one == number]
        if own:
            what = f"{counted(len(own), 'image')} {'is' if len(own) == 1 else 'are'} {kind.what}"
            exclude = tuple(look.origin for look in own) if kind.check == "blank" else ()
            yield Finding(kind.check, "warning", what, kind.todo, tuple(map(_example, own)), exclude)


def _example(look: ImageInfo) -> Example:
    content = look.content
    assert content is not None
    why = f"gray levels {content.low:.0f} to {content.high:.0f}, {content.bits:.1f} bits, detail {content.detail:.2f}"
    return Example((look.origin,), why)


def kind_of(values: NDArray[np.float64], sides: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each row of contents [N, 5] the number of its kind, −1 where there is nothing to say: [N]."""
    low, high, spread, bits, detail = values.T
    usual = np.median(values, axis=0)
    tests = (
        spread < BLANK,
        high < min(DARK, usual[1] / 2),
        255 - low < min(LIGHT, (255 - usual[0]) / 2),
        bits < min(BITS, usual[3] / 3),
        (detail < min(DETAIL, usual[4] / 3)) & (sides >= FOCUS),
    )
    kinds = np.full(len(values), -1, np.int64)
    for number, mask in reversed(list(enumerate(tests))):
        kinds[mask] = number
    return kinds
