"""What patches of a picture look like: SIFT, and the mean and spread of their colors, on a grid at several scales.

The only door to OpenCV. Glossary: T patches of a picture, S its side in pixels.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError

CELLS = 4  # cells of a patch each way: SIFT's 4×4, and those whose colors are described
SIGMA = 1.0  # of the blur before SIFT, pixels: a sixth of a cell of six pixels, as in Vedaldi's dense SIFT
SIFT_LENGTH, COLOR_LENGTH = 128, CELLS * CELLS * 3 * 2


@dataclass(frozen=True)
class Grid:
    """Where patches lie: squares of ``patch`` pixels, ``step`` pixels apart, in a picture made smaller by √2 each time
    until it has ``scales`` sizes or holds no patch."""

    step: int = 4
    patch: int = 24  # a multiple of 4
    scales: int = 5


class Local(NamedTuple):
    """Descriptors of a picture: ``sift`` float32 [T, 128], ``color`` float32 [T, 96], and where each patch's center
    lies, ``places`` float32 [T, 2]: row and column, from 0 to 1."""

    sift: NDArray[np.float32]
    color: NDArray[np.float32]
    places: NDArray[np.float32]


def opencv() -> Any:
    """OpenCV on one thread, or a :class:`DataError` that says how to get it."""
    try:
        import cv2
    except Exception as error:  # a broken build fails in other ways than ImportError
        raise DataError(
            f"Fisher vectors need OpenCV, which can not be imported ({' '.join(str(error).split())[:100]})", "",
            "pip install 'alexnet[contest]', or leave them out: --nets without fisher",
        ) from error  # fmt: skip
    cv2.setNumThreads(1)  # many pictures at once are the parallel work
    return cv2


def describe(picture: NDArray[np.uint8], grid: Grid) -> Local:
    """The descriptors of one picture, uint8 [S, S, 3]. Raises :class:`DataError` where no patch fits."""
    cv2, side = opencv(), len(picture)
    if side < grid.patch:
        raise DataError(f"a picture of {side} pixels holds no patch of {grid.patch}", f"at least {grid.patch} pixels")
    found = [_describe(cv2, _smaller(cv2, picture, size), grid) for size in sizes(side, grid)]
    return Local(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def middle(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The center view that the networks' test sees: [S, S, 3] -> [side, side, 3]; ``side`` 0 or over S: all of it."""
    start = (len(picture) - side) // 2
    return picture[start : start + side, start : start + side] if 0 < side < len(picture) else picture


def sizes(side: int, grid: Grid) -> list[int]:
    """Sides of the picture at its scales, pixels."""
    scaled = [round(side / 2 ** (n / 2)) for n in range(grid.scales)]
    return [size for size in scaled if size >= grid.patch]


def count(side: int, grid: Grid) -> int:
    """T: patches in a picture of ``side`` pixels."""
    return sum(len(corners(size, grid)) ** 2 for size in sizes(side, grid))


def corners(size: int, grid: Grid) -> range:
    """First pixel of each patch along one side; what is left over is shared by both ends."""
    number = (size - grid.patch) // grid.step + 1
    first = (size - grid.patch - (number - 1) * grid.step) // 2
    return range(first, first + number * grid.step, grid.step)


def _smaller(cv2: Any, picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if size == len(picture):
        return np.ascontiguousarray(picture)
    return np.asarray(cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def _describe(cv2: Any, picture: NDArray[np.uint8], grid: Grid) -> Local:
    size = len(picture)
    begins = np.array(corners(size, grid))
    rows, columns = (a.ravel() for a in np.meshgrid(begins, begins, indexing="ij"))  # [T] each
    places = (np.stack([rows, columns], 1) + grid.patch / 2) / size
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    sift = _sift(cv2).compute(gray, _keypoints(size, grid))[1]
    return Local(_rooted(sift), _colors(cv2, picture, rows, columns, grid.patch), places.astype(np.float32))


@functools.cache
def _sift(cv2: Any) -> Any:
    return cv2.SIFT_create(nOctaveLayers=1, sigma=SIGMA)


@functools.lru_cache(maxsize=64)
def _keypoints(size: int, grid: Grid) -> Sequence[Any]:
    """The patches as OpenCV's key points, upright. Its 4×4 cells are together six times as wide as a point's size."""
    cv2, middle = opencv(), (grid.patch - 1) / 2
    begins = corners(size, grid)
    return tuple(cv2.KeyPoint(x + middle, y + middle, grid.patch / 6, 0) for y in begins for x in begins)


def _rooted(sift: NDArray[np.float32]) -> NDArray[np.float32]:
    """Square roots of the L1-normalized histograms, so of length 1 (Arandjelović, Zisserman 2012); flat ones are 0."""
    sums = sift.sum(1, keepdims=True)
    return np.asarray(np.sqrt(sift / np.maximum(sums, 1e-6)), np.float32)


def _colors(
    cv2: Any, picture: NDArray[np.uint8], rows: NDArray[np.int64], columns: NDArray[np.int64], patch: int
) -> NDArray[np.float32]:
    """Mean and standard deviation of red, green and blue in each cell of each patch, shares of 255: [T, 96].

    Clinchant et al. 2007 (XRCE at PASCAL VOC).
    """
    cell = patch // CELLS
    values = picture.astype(np.float32) / 255
    mean = cv2.blur(values, (cell, cell), borderType=cv2.BORDER_REPLICATE)
    spread = np.sqrt(np.maximum(cv2.blur(values**2, (cell, cell), borderType=cv2.BORDER_REPLICATE) - mean**2, 0))
    offsets = np.arange(CELLS) * cell + cell // 2  # a window of even width reaches from −cell/2 to cell/2 − 1
    y = rows[:, None, None] + offsets[:, None]  # [T, 4, 1]
    x = columns[:, None, None] + offsets  # [T, 1, 4]
    both = np.concatenate([mean[y, x], spread[y, x]], 3)  # [T, 4, 4, 6]
    return np.ascontiguousarray(both.reshape(len(rows), COLOR_LENGTH), np.float32)
