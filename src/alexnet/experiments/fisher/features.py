"""What patches of an image look like: SIFT, and the mean and spread of their colors, on a grid at several scales.

The only door to OpenCV. Glossary: T patches of an image, S its side in pixels.


The Fisher vector: how an image's descriptors would have a mixture of Gaussians changed (Perronnin, Dance 2007).

Written with the improvements of Perronnin, Sánchez, Mensink 2010: power and L2 normalization.

Glossary: T descriptors of an image, D their length, M Gaussians, R regions of an image.


What descriptors are like: their principal axes, and a mixture of Gaussians along these.

Through scikit-learn. Glossary: T descriptors, d their length, D that along the axes, M Gaussians.
"""

import functools
import warnings
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
    """Where patches lie: squares of ``patch`` pixels, ``step`` pixels apart, in an image made smaller by √2 each time
    until it has ``scales`` sizes or holds no patch."""

    step: int = 4
    patch: int = 24  # a multiple of 4
    scales: int = 5


class Local(NamedTuple):
    """Descriptors of an image: ``sift`` float32 [T, 128], ``color`` float32 [T, 96], and where each patch's center
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
            f"Fisher vectors need OpenCV, which can not be imported ({' '.join(str(error).split())[:100]})",
            "",
            "pip install 'alexnet[contest]', or leave them out: --nets without fisher",
        ) from error
    cv2.setNumThreads(1)  # many images at once are the parallel work
    return cv2


def describe(image: NDArray[np.uint8], grid: Grid) -> Local:
    """The descriptors of one image, uint8 [S, S, 3]. Raises :class:`DataError` where no patch fits."""
    cv2, side = opencv(), len(image)
    if side < grid.patch:
        raise DataError(f"an image of {side} pixels holds no patch of {grid.patch}", f"at least {grid.patch} pixels")
    results = [_describe(cv2, _smaller(cv2, image, size), grid) for size in sizes(side, grid)]
    return Local(*(np.concatenate(parts) for parts in zip(*results, strict=True)))


def middle(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The center view that the networks' test sees: [S, S, 3] -> [side, side, 3]; ``side`` 0 or over S: all of it."""
    start = (len(image) - side) // 2
    return image[start : start + side, start : start + side] if 0 < side < len(image) else image


def sizes(side: int, grid: Grid) -> list[int]:
    """Sides of the image at its scales, pixels."""
    scaled = [round(side / 2 ** (n / 2)) for n in range(grid.scales)]
    return [size for size in scaled if size >= grid.patch]


def count(side: int, grid: Grid) -> int:
    """T: patches in an image of ``side`` pixels."""
    return sum(len(corners(size, grid)) ** 2 for size in sizes(side, grid))


def corners(size: int, grid: Grid) -> range:
    """First pixel of each patch along one side; what is left over is shared by both ends."""
    number = (size - grid.patch) // grid.step + 1
    first = (size - grid.patch - (number - 1) * grid.step) // 2
    return range(first, first + number * grid.step, grid.step)


def _smaller(cv2: Any, image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if size == len(image):
        return np.ascontiguousarray(image)
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def _describe(cv2: Any, image: NDArray[np.uint8], grid: Grid) -> Local:
    size = len(image)
    begins = np.array(corners(size, grid))
    rows, columns = (a.ravel() for a in np.meshgrid(begins, begins, indexing="ij"))  # [T] each
    places = (np.stack([rows, columns], 1) + grid.patch / 2) / size
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    sift = _sift(cv2).compute(gray, _keypoints(size, grid))[1]
    return Local(_rooted(sift), _colors(cv2, image, rows, columns, grid.patch), places.astype(np.float32))


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
    cv2: Any, image: NDArray[np.uint8], rows: NDArray[np.int64], columns: NDArray[np.int64], patch: int
) -> NDArray[np.float32]:
    """Mean and standard deviation of red, green and blue in each cell of each patch, shares of 255: [T, 96].

    Clinchant et al. 2007 (XRCE at PASCAL VOC).
    """
    cell = patch // CELLS
    values = image.astype(np.float32) / 255
    mean = cv2.blur(values, (cell, cell), borderType=cv2.BORDER_REPLICATE)
    spread = np.sqrt(np.maximum(cv2.blur(values**2, (cell, cell), borderType=cv2.BORDER_REPLICATE) - mean**2, 0))
    offsets = np.arange(CELLS) * cell + cell // 2  # a window of even width reaches from −cell/2 to cell/2 − 1
    y = rows[:, None, None] + offsets[:, None]  # [T, 4, 1]
    x = columns[:, None, None] + offsets  # [T, 1, 4]
    both = np.concatenate([mean[y, x], spread[y, x]], 3)  # [T, 4, 4, 6]
    return np.ascontiguousarray(both.reshape(len(rows), COLOR_LENGTH), np.float32)


class Mixture(NamedTuple):
    """A mixture of Gaussians with diagonal covariances: ``weights`` [M] (their sum is 1), ``means`` [M, D],
    ``variances`` [M, D]; float32."""

    weights: NDArray[np.float32]
    means: NDArray[np.float32]
    variances: NDArray[np.float32]

    @property
    def length(self) -> int:
        """Of a Fisher vector: 2·M·D."""
        return 2 * self.means.size


def posteriors(x: NDArray[np.float32], mixture: Mixture) -> NDArray[np.float32]:
    """How likely each descriptor [T, D] is each Gaussian's: [T, M], rows sum to 1."""
    weights, means, variances = mixture
    inverse = 1 / variances
    constant = np.log(weights) - 0.5 * (np.log(variances).sum(1) + (means**2 * inverse).sum(1))  # [M]
    logs = constant + x @ (means * inverse).T - 0.5 * (x**2) @ inverse.T  # [T, M], without what all have in common
    logs -= logs.max(1, keepdims=True)
    shares = np.exp(logs)
    return np.asarray(shares / shares.sum(1, keepdims=True), np.float32)


def fisher_vectors(x: NDArray[np.float32], mixture: Mixture, members: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A Fisher vector for each region: descriptors [T, D], which of them lie in which region [R, T] -> [R, 2·M·D].

    By means, then by standard deviations, Gaussian by Gaussian::

        1 / (T·√w)    · Σ q · (x − μ) / σ
        1 / (T·√(2w)) · Σ q · ((x − μ)² / σ² − 1)

    with q the posteriors: from Σ q, Σ q·x and Σ q·x² alone. A region without descriptors has zeros.
    """
    weights, means, variances = mixture
    q = posteriors(x, mixture)
    out = np.zeros((len(members), 2, *means.shape), np.float32)
    for region, inside in enumerate(members):
        if not inside.any():
            continue
        mine, own = q[inside], x[inside]
        zeroth = mine.sum(0)[:, None]  # [M, 1]
        first, second = mine.T @ own, mine.T @ own**2  # [M, D]
        by_mean = (first - zeroth * means) / np.sqrt(variances)
        by_deviation = (second - 2 * means * first + zeroth * means**2) / variances - zeroth
        scale = len(own) * np.sqrt(weights)[:, None]
        out[region] = by_mean / scale, by_deviation / (scale * np.sqrt(2))
    return out.reshape(len(members), -1)


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Signed square roots, then length 1, along the last axis; zeros stay zeros."""
    roots = np.sign(vectors) * np.sqrt(np.abs(vectors))
    lengths = np.sqrt((roots**2).sum(-1, keepdims=True))
    return np.asarray(roots / np.where(lengths > 0, lengths, 1), np.float32)


def regions(places: NDArray[np.float32], levels: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which patches lie in which cell of a spatial pyramid: places [T, 2] from 0 to 1 -> [R, T].

    ``levels`` (1, 2): the whole image and its quarters (Lazebnik et al. 2006).
    """
    rows = []
    for cells in levels:
        cell = np.minimum((places * cells).astype(np.int64), cells - 1)  # [T, 2]
        rows += [(cell[:, 0] == row) & (cell[:, 1] == column) for row in range(cells) for column in range(cells)]
    return np.stack(rows)


STEPS = 25  # of expectation and maximization at most: later ones change the last digits
SMALLEST = 1e-6  # axes with a smaller share of the first axis's variance are left out: flat or gray images have such


class Codebook(NamedTuple):
    """Descriptors [T, d] -> their numbers along the axes [T, D], and the mixture there; float32.

    All axes are divided by one number, so that the mean variance along them is 1 and none gains over another.
    """

    mean: NDArray[np.float32]  # [d]
    axes: NDArray[np.float32]  # [d, D]
    mixture: Mixture

    def project(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        """[T, d] -> [T, D]"""
        return np.asarray((descriptors - self.mean) @ self.axes, np.float32)


def learn(descriptors: NDArray[np.float32], length: int, words: int, seed: int) -> Codebook:
    """From descriptors [T, d] of training images: at most ``length`` axes, ``words`` Gaussians (fewer than T / 4)."""
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        max(1, min(words, len(descriptors) // 4)),
        covariance_type="diag",
        reg_covar=1e-4,
        max_iter=STEPS,
        tol=1e-3,
        init_params="k-means++",
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that STEPS were not enough, or that descriptors are alike: both are fine
        mean, axes = _axes(descriptors, length)
        mixture.fit(((descriptors - mean) @ axes).astype(np.float32))
    parts = (np.maximum(mixture.weights_, 1e-8), mixture.means_, mixture.covariances_)
    return Codebook(mean, axes, Mixture(*(np.asarray(part, np.float32) for part in parts)))


def _axes(descriptors: NDArray[np.float32], length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean [d], and the axes of the largest variance [d, D], longest first."""
    from sklearn.decomposition import PCA

    most = min(length, *descriptors.shape)
    result = PCA(most, svd_solver="full" if len(descriptors) < descriptors.shape[1] else "covariance_eigh")
    result.fit(descriptors)
    variances = result.explained_variance_
    kept = max(1, int((variances > SMALLEST * max(float(variances[0]), 1e-12)).sum()))
    scale = 1 / np.sqrt(max(float(variances[:kept].mean()), 1e-12))
    return result.mean_.astype(np.float32), np.ascontiguousarray(result.components_[:kept].T * scale, np.float32)
