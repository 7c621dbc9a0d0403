"""Resizing by the compiled ``resize.c``, in the integer arithmetic of Pillow: the same pixels, several times faster."""

import ctypes
import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.kernels.compiler import NativeLibraries

BITS = 22  # precision of a weight, as in Pillow
_COMPILE_FROM = 1000  # images from which compiling saves time
_LOAD_FROM = 64  # images from which loading the compiled library saves time
MAX_SCALE = 64.0  # source pixels per result pixel; above, the windows would need more memory than the images

_libraries = NativeLibraries("alexnet.kernels", {"resize": ["across", "down"]})


class Windows(NamedTuple):
    """The source pixels and weights of P result pixels.

    Attributes:
        first: int32 [P], index of the first source pixel.
        weights: int32 [P, taps], in units of 2^-22; each row sums to about 2^22.
    """

    first: NDArray[np.int32]
    weights: NDArray[np.int32]


def build() -> bool:
    """Compile ``resize.c`` if necessary (half a second). Returns whether it can be used."""
    _libraries.build()
    return in_use()


def expect(images: int) -> None:
    """Prepare to resize a number of ``images``: compile ``resize.c`` or load it, if that saves time."""
    if images >= _COMPILE_FROM:
        build()
    elif images >= _LOAD_FROM:
        _libraries.load()


def in_use(step: float = 1.0) -> bool:
    """Whether :func:`resized` can be used, where a result pixel covers ``step`` source pixels."""
    return _libraries.has("resize") and step <= MAX_SCALE


@functools.lru_cache(256)
def windows(length: int, start: float, end: float, count: int) -> Windows:
    """Pillow's bilinear weights for a line of pixels.

    The filter is a triangle that is two steps wide, at least two pixels, and cut at the ends of the line.

    Args:
        length: pixels of the source line.
        start: left edge of the resized part, in source pixels.
        end: right edge of the resized part.
        count: pixels of the result.
    """
    scale = (end - start) / count
    reach = max(scale, 1.0)
    center = start + (np.arange(count) + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((center + reach + 0.5).astype(np.int64), length)
    taps = int((last - first).max())
    begin = np.minimum(first, length - taps)  # windows stay inside the line
    x = begin[:, None] + np.arange(taps)
    weights = np.clip(1 - np.abs((x - center[:, None] + 0.5) * (1 / reach)), 0, None)
    weights[(x < first[:, None]) | (x >= last[:, None])] = 0
    weights /= np.cumsum(weights, 1)[:, -1:]
    return Windows(begin.astype(np.int32), (weights * 2**BITS + 0.5).astype(np.int32))


def resized(
    image: NDArray[np.uint8], width: int, height: int, box: tuple[float, float, float, float]
) -> NDArray[np.uint8]:
    """Resize the part ``box`` of an image along its rows, then along its columns. Needs :func:`in_use`.

    Args:
        image: uint8 [H, W, 3].
        width: width of the result.
        height: height of the result.
        box: (left, top, right, bottom) in source pixels.

    Returns:
        A new array uint8 [height, width, 3].
    """
    left, top, right, bottom = box
    return _resize_columns(_resize_rows(np.ascontiguousarray(image), left, right, width), top, bottom, height)


def _resize_rows(image: NDArray[np.uint8], start: float, end: float, count: int) -> NDArray[np.uint8]:
    rows, length = image.shape[:2]
    if (start, end) == (0, length) and count == length:
        return image
    taps, out = windows(length, start, end, count), np.empty((rows, count, 3), np.uint8)
    last = np.empty(3 * length + 1, np.uint8)
    last[:-1] = image[-1].reshape(-1)
    sizes = map(ctypes.c_int64, (rows, length, count, taps.weights.shape[1]))
    _libraries.built["resize"].across(
        _pointer(image), _pointer(last), _pointer(out), *sizes, _pointer(taps.first), _pointer(taps.weights)
    )
    return out


def _resize_columns(image: NDArray[np.uint8], start: float, end: float, count: int) -> NDArray[np.uint8]:
    length, width = image.shape[:2]
    if (start, end) == (0, length) and count == length:
        return image.copy()
    taps, out = windows(length, start, end, count), np.empty((count, width, 3), np.uint8)
    sizes = map(ctypes.c_int64, (3 * width, count, taps.weights.shape[1]))
    _libraries.built["resize"].down(
        _pointer(image), _pointer(out), *sizes, _pointer(taps.first), _pointer(taps.weights)
    )
    return out


def _pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
