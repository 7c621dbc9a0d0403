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
Progress = Callable[[int, int], None]


class Look:
    """What was seen of one picture."""

    __slots__ = ("error", "format", "height", "notes", "picture", "sha256", "size", "split", "thumb", "width")

    def __init__(self, picture: Picture, split: str) -> None:
        self.picture, self.split = picture, split
        self.error = ""  # why it can not be used at all
        self.sha256, self.size = "", 0  # of the file's bytes, or of an array
        self.width, self.height, self.format = 0, 0, ""
        self.notes: tuple[str, ...] = ()
        self.thumb: NDArray[np.uint8] | None = None  # [S, S, 3], squashed

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
    except (PictureError, OSError) as error:
        look.error = error.what if isinstance(error, PictureError) else str(error)
    return look


def thumbs_of(looks: list[Look]) -> NDArray[np.uint8]:
    """The thumbnails of usable pictures: uint8 [N, S, S, 3]."""
    found = [look.thumb for look in looks if look.thumb is not None]
    return np.stack(found) if found else np.zeros((0, SIDE, SIDE, 3), np.uint8)
