"""JPEGs by simplejpeg where it is installed: Pillow's pixels in half of the time, and only where they are Pillow's.

Both decode by libjpeg-turbo, but each brings its own. So the first images of a process are decoded by both; one
different pixel ends the use of this one. What it does not decode without a warning is left to Pillow, with its reasons.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet import kernels

PROOFS = 16  # images of a process that both decode

_SEGMENTS = {  # of a header that says nothing but how to decode, each as Pillow wants it
    marker: re.compile(body, re.DOTALL)
    for marker, body in (
        (b"\xff\xe0", rb"JFIF\0.{9}"),
        (b"\xff\xdb", rb"(?:[\0-\x0f].{64})+"),  # tables of 8 bits
        (b"\xff\xc0", rb"\x08.{4}\x03.{9}"),  # 8 bits, height and width, three colors
        (b"\xff\xc2", rb"\x08.{4}\x03.{9}"),
        (b"\xff\xc4", rb".*"),
        (b"\xff\xdd", rb".*"),
    )
}

_alike = 0  # images that came out alike
_differs = False


# libjpeg's warnings of data that is missing or wrong. It leaves the rest gray, or decodes garbage.
_DAMAGED = ("premature end of data segment", "bad Huffman code")


class DamagedError(Exception):
    """libjpeg decodes the image, but with a warning that a part of it is wrong."""


def decode(data: bytes, width: int, height: int) -> NDArray[np.uint8] | None:
    """A whole JPEG of three colors as RGB uint8 [H, W, 3]; None where Pillow is to decode it. Safe in many threads.

    Raises DamagedError for one that Pillow would decode in part, without a word.
    """
    decoder = _decoder()
    if decoder is None or not kernels.enabled("simplejpeg") or _differs:
        return None
    # At an odd address: past the cache, where the resizing would wait for it, libjpeg-turbo writes what is aligned.
    room = np.empty(3 * width * height + 1, np.uint8)[1:]
    try:
        result: NDArray[np.uint8] = decoder(data, "RGB", strict=True, buffer=room)
    except ValueError as error:  # a warning of libjpeg's, or an error
        if any(text in str(error) for text in _DAMAGED):
            raise DamagedError(str(error)) from error
        return None
    return result if result.shape == (height, width, 3) else None


def plain(data: bytes, most: int) -> NDArray[np.uint8] | None:
    """As ``decode``, of a whole JPEG of at most ``most`` pixels whose header has tables, a size and perhaps "JFIF".

    No rotation, no profile, no second image: Pillow takes 60 µs to find nothing to say of it. None where the header
    has anything else or is odd in any way, and before this decoder has proved itself.
    """
    if not proved() or not data.startswith(b"\xff\xd8"):
        return None
    at, size = 2, None
    while (marker := data[at : at + 2]) != b"\xff\xda":
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : end]
        if marker not in _SEGMENTS or end > len(data) or not _SEGMENTS[marker].fullmatch(body):
            return None
        if marker in (b"\xff\xc0", b"\xff\xc2"):
            size = int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")
        at = end
    if size is None or not 0 < size[0] * size[1] <= most or data.rfind(b"\xff\xd9", at) < 0:
        return None
    try:
        return decode(data, *size)
    except DamagedError:
        return None


def proved() -> bool:
    """Were enough images decoded alike?"""
    return _alike >= PROOFS


def compare(results: NDArray[np.uint8], pillows: NDArray[np.uint8]) -> None:
    """One image decoded by both."""
    global _alike, _differs
    if np.array_equal(results, pillows):
        _alike += 1
    else:
        _differs = True


@functools.cache
def _decoder() -> Callable[..., Any] | None:
    try:
        import simplejpeg
    except ImportError:
        return None
    decoder: Callable[..., Any] = simplejpeg.decode_jpeg
    return decoder
