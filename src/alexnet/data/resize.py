"""Resizing in Pillow's integers, by ``resize.c`` where it was compiled: the same pixels, several times faster."""

import ctypes
import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.kernels.compiler import NativeLibraries

BITS = 22  # of a weight, as in Pillow
MANY = 1000  # images for which compiling pays
FEW = 64  # images for which loading what is compiled pays
STEEPEST = 64.0  # source pixels a step; beyond it windows would take more memory than images

_libraries = NativeLibraries("alexnet.kernels", {"resize": ["across", "down"]})


class Windows(NamedTuple):
    """Which neighbors each of P places looks at, and how much each counts: int32 [P] and [P, taps], Σ about 2^22."""

    first: NDArray[np.int32]
    weights: NDArray[np.int32]


def build() -> bool:
    """Compile ``resize.c`` if that was not done; returns whether it is there. It takes half a second."""
    _libraries.build()
    return in_use()


def precompile() -> list[str]:
    """Compile ``resize.c`` into the package's folder for several kinds of processors; returns those that failed."""
    return _libraries.precompile()


def expect(images: int) -> None:
    """So many are to be resized: :func:`build` where that pays, what is compiled already from far fewer on."""
    if images >= MANY:
        build()
    elif images >= FEW:
        _libraries.load()


def in_use(step: float = 1.0) -> bool:
    """Does :func:`resized` take images of which a pixel of the result covers ``step`` of the source?"""
    return _libraries.has("resize") and step <= STEEPEST


@functools.lru_cache(256)
def windows(length: int, start: float, end: float, places: int) -> Windows:
    """``places`` equal steps from ``start`` to ``end`` on a line of ``length`` pixels, as Pillow weighs them.

    By a triangle of the width of two steps, of two pixels at least, cut at the line's ends.
    """
    scale = (end - start) / places
    reach = max(scale, 1.0)
    center = start + (np.arange(places) + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((center + reach + 0.5).astype(np.int64), length)
    taps = int((last - first).max())
    begin = np.minimum(first, length - taps)  # so that no window leaves the line
    x = begin[:, None] + np.arange(taps)
    share = np.clip(1 - np.abs((x - center[:, None] + 0.5) * (1 / reach)), 0, None)
    share[(x < first[:, None]) | (x >= last[:, None])] = 0
    share /= np.cumsum(share, 1)[:, -1:]
    return Windows(begin.astype(np.int32), (share * 2**BITS + 0.5).astype(np.int32))


def resized(
    image: NDArray[np.uint8], width: int, height: int, box: tuple[float, float, float, float]
) -> NDArray[np.uint8]:
    """The part ``box`` (left, top, right, bottom) of ``image`` [H, W, 3] as [height, width, 3]: along its rows, then
    along its columns. A copy. Needs :func:`build`."""
    left, top, right, bottom = box
    return _down(_across(np.ascontiguousarray(image), left, right, width), top, bottom, height)


def _across(image: NDArray[np.uint8], start: float, end: float, places: int) -> NDArray[np.uint8]:
    rows, length = image.shape[:2]
    if (start, end) == (0, length) and places == length:
        return image
    how, out = windows(length, start, end, places), np.empty((rows, places, 3), np.uint8)
    last = np.empty(3 * length + 1, np.uint8)
    last[:-1] = image[-1].reshape(-1)
    sizes = map(ctypes.c_int64, (rows, length, places, how.weights.shape[1]))
    _libraries.built["resize"].across(_at(image), _at(last), _at(out), *sizes, _at(how.first), _at(how.weights))
    return out


def _down(image: NDArray[np.uint8], start: float, end: float, places: int) -> NDArray[np.uint8]:
    length, width = image.shape[:2]
    if (start, end) == (0, length) and places == length:
        return image.copy()
    how, out = windows(length, start, end, places), np.empty((places, width, 3), np.uint8)
    sizes = map(ctypes.c_int64, (3 * width, places, how.weights.shape[1]))
    _libraries.built["resize"].down(_at(image), _at(out), *sizes, _at(how.first), _at(how.weights))
    return out


def _at(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
