"""JPEGs by simplejpeg where it is installed: Pillow's pixels in half of the time, and only where they are Pillow's.

Both decode by libjpeg-turbo, but each brings its own. So the first pictures of a process are decoded by both; one
different pixel ends the use of this one. What it does not decode without a warning is left to Pillow, with its reasons.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROOFS = 16  # pictures of a process that both decode

_wanted = True
_alike = 0  # pictures that came out alike
_differs = False


def use(wanted: bool) -> None:
    """Leave all JPEGs to Pillow, or no longer."""
    global _wanted
    _wanted = wanted


def decode(data: bytes, width: int, height: int) -> NDArray[np.uint8] | None:
    """A whole JPEG of three colors as RGB uint8 [H, W, 3]; None where Pillow is to decode it. Safe in many threads."""
    decoder = _decoder()
    if decoder is None or not _wanted or _differs:
        return None
    try:
        found: NDArray[np.uint8] = decoder(data, "RGB", strict=True)
    except ValueError:  # a warning of libjpeg's, or an error
        return None
    return found if found.shape == (height, width, 3) else None


def proved() -> bool:
    """Were enough pictures decoded alike?"""
    return _alike >= PROOFS


def compare(found: NDArray[np.uint8], pillows: NDArray[np.uint8]) -> None:
    """One picture decoded by both."""
    global _alike, _differs
    if np.array_equal(found, pillows):
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
