"""One look at every picture, through the one door to a decoder: what it is, and a thumbnail of it."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data import pixels
from alexnet.data.listing import Picture
from alexnet.data.shards import in_order, picture_sha256
from alexnet.errors import PictureError

SIDE = 24  # pixels of a thumbnail: 1,728 bytes a picture
SMALLEST = 8  # pixels: what an image with a shorter side shows is not measured
Progress = Callable[[int, int], None]
Phases = Callable[[str], Progress | None]  # the progress bar of a phase, from its name


class Content(NamedTuple):
    """How much an image shows, measured on its gray levels at no more than 128 pixels."""

    low: float  # gray level of the darkest percent
    high: float  # of the lightest percent
    spread: float  # between the darkest and the lightest pixel
    bits: float  # entropy of the gray levels
    detail: float  # deviation of the Laplacian, of that of the gray levels


class Look:
    """What was seen of one picture."""

    __slots__ = (
        "content",
        "error",
        "format",
        "height",
        "notes",
        "picture",
        "sha256",
        "size",
        "split",
        "thumb",
        "width",
    )

    def __init__(self, picture: Picture, split: str) -> None:
        self.picture, self.split = picture, split
        self.error = ""  # why it can not be used at all
        self.sha256, self.size = "", 0  # of the file's bytes, or of an array
        self.width, self.height, self.format = 0, 0, ""
        self.notes: tuple[str, ...] = ()
        self.thumb: NDArray[np.uint8] | None = None  # [S, S, 3], squashed
        self.content: Content | None = None  # None: not measured

    @property
    def origin(self) -> str:
        """The picture's name in its source."""
        return self.picture.origin

    @property
    def truncated(self) -> bool:
        """Cut short: refused unless that is allowed."""
        return "truncated" in self.notes


class Seen(NamedTuple):
    """All pictures of a data set, looked at."""

    name: str
    classes: tuple[str, ...]
    looks: list[Look]
    drawn: bool  # the splits are those that training would draw
    validation_drawn: bool = False  # the validation split at least is
    allow_truncated: bool = False  # images that were cut short are used

    def good(self) -> list[Look]:
        """Those that can be used."""
        return [look for look in self.looks if not look.error and (self.allow_truncated or not look.truncated)]


def look_at_all(
    splits: Mapping[str, tuple[Picture, ...]], workers: int | None = None, progress: Progress | None = None
) -> list[Look]:
    """A look at every picture, in the order of the splits, on ``workers`` threads (default: all cores)."""
    every = [(split, picture) for split, pictures in splits.items() for picture in pictures]
    count = workers or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else workers or 1
    found = []
    with ThreadPoolExecutor(count, "alexnet-doctor") as pool:
        for done, look in enumerate(in_order(pool, lambda one: look_at(one[1], one[0]), every, 4 * count), 1):
            found.append(look)
            if progress is not None:
                progress(done, len(every))
    return found


def look_at(picture: Picture, split: str) -> Look:
    """A look at one picture. Never raises for what a file may hold."""
    look = Look(picture, split)
    try:
        data = picture.load()
        look.sha256 = picture_sha256(data)
        if isinstance(data, bytes):
            look.size = len(data)
            image, look.format, look.notes = pixels.decode_noted(data, picture.origin, allow_truncated=True)
        else:
            image, look.format = data, "array"
        look.height, look.width = image.shape[:2]
        look.thumb = pixels.fit(image, SIDE, "squash")  # [S, S, 3]
        look.content = content_of(image)
    except (PictureError, OSError) as error:
        look.error = error.what if isinstance(error, PictureError) else str(error)
    return look


def thumbs_of(looks: list[Look]) -> NDArray[np.uint8]:
    """The thumbnails of usable pictures: uint8 [N, S, S, 3]."""
    found = [look.thumb for look in looks if look.thumb is not None]
    return np.stack(found) if found else np.zeros((0, SIDE, SIDE, 3), np.uint8)


def content_of(image: NDArray[np.uint8], side: int = 128) -> Content | None:
    """What there is to see in an image [H, W, 3], at no more than ``side`` pixels; None where it is too small."""
    side = min(side, *image.shape[:2])
    if side < SMALLEST:
        return None
    gray = pixels.fit(image, side, "squash") @ np.array([0.299, 0.587, 0.114], np.float32)  # [s, s]
    low, high = np.percentile(gray, [1, 99])
    counts = np.bincount(gray.astype(np.uint8).reshape(-1), minlength=256)
    shares = counts[counts > 0] / gray.size
    center, beside = gray[1:-1, 1:-1], gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    detail = (4 * center - beside).std() / (gray.std() + 1)
    return Content(
        float(low), float(high), float(np.ptp(gray)), float(-(shares * np.log2(shares)).sum()), float(detail)
    )
