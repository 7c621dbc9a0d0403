"""From an image to Fisher vectors: local descriptors, a codebook of Gaussians, and the Fisher vector of a region.

Descriptors are SIFT (through OpenCV) and color statistics of patches on a grid at several scales. The codebook is their
principal axes and a mixture of Gaussians (through scikit-learn). Fisher vectors follow Perronnin, Dance 2007, with the
power and L2 normalization of Perronnin, Sánchez, Mensink 2010.

Shapes: T patches of an image, d length of a descriptor, D number of principal axes, M Gaussians, R regions."""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError

CELLS = 4  # cells of a patch in each direction, for SIFT and for color statistics
BLUR_SIGMA = 1.0  # of the blur before SIFT, pixels: 1/6 of a cell of 6 pixels, as in Vedaldi's dense SIFT
SIFT_LENGTH, COLOR_LENGTH = 128, CELLS * CELLS * 3 * 2

EM_STEPS = 25  # iterations of expectation maximization at most; later ones change the last digits
MIN_VARIANCE_RATIO = 1e-6  # axes with less variance relative to the first are dropped (uniform or gray images)


@dataclass(frozen=True)
class Grid:
    """Positions of the patches: squares of ``patch`` pixels, ``step`` pixels apart, at ``scales`` image sizes.

    Each size is the previous one divided by √2, as long as a patch fits.
    """

    step: int = 4
    patch: int = 24  # a multiple of 4
    scales: int = 5


class Descriptors(NamedTuple):
    """Descriptors of an image and the centers of their patches (row and column, 0 to 1)."""

    sift: NDArray[np.float32]  # [T, 128]
    color: NDArray[np.float32]  # [T, 96]
    centers: NDArray[np.float32]  # [T, 2]


def opencv() -> Any:
    """Return OpenCV, set to one thread, because images are processed in parallel.

    Raises:
        DataError: OpenCV cannot be imported.
    """
    try:
        import cv2
    except Exception as error:  # a broken build raises other errors than ImportError
        raise DataError(
            f"Fisher vectors need OpenCV, which cannot be imported ({' '.join(str(error).split())[:100]})",
            "",
            "pip install 'alexnet[contest]', or leave them out: --nets without fisher",
        ) from error
    cv2.setNumThreads(1)
    return cv2


def center_crop(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Crop as for the networks: [S, S, 3] -> [size, size, 3]; the whole image if ``size`` is 0 or over S."""
    start = (len(image) - size) // 2
    return image[start : start + size, start : start + size] if 0 < size < len(image) else image


def extract_descriptors(image: NDArray[np.uint8], grid: Grid) -> Descriptors:
    """Describe all patches of an image, uint8 [S, S, 3].

    Raises:
        DataError: The image is smaller than a patch.
    """
    cv2, size = opencv(), len(image)
    if size < grid.patch:
        raise DataError(
            f"an image of {size} pixels is smaller than a patch of {grid.patch}", f"at least {grid.patch} pixels"
        )
    scales = [_describe_scale(cv2, _downscale(cv2, image, scaled), grid) for scaled in scaled_sizes(size, grid)]
    return Descriptors(*(np.concatenate(parts) for parts in zip(*scales, strict=True)))


def scaled_sizes(size: int, grid: Grid) -> list[int]:
    """Sizes of an image of ``size`` pixels at its scales, pixels."""
    scaled = [round(size / 2 ** (n / 2)) for n in range(grid.scales)]
    return [size for size in scaled if size >= grid.patch]


def num_patches(size: int, grid: Grid) -> int:
    """T: number of patches in an image of ``size`` pixels."""
    return sum(len(patch_starts(scaled, grid)) ** 2 for scaled in scaled_sizes(size, grid))


def patch_starts(size: int, grid: Grid) -> range:
    """First pixel of each patch along one side; the margin is divided between both ends."""
    number = (size - grid.patch) // grid.step + 1
    first = (size - grid.patch - (number - 1) * grid.step) // 2
    return range(first, first + number * grid.step, grid.step)


def _downscale(cv2: Any, image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if size == len(image):
        return np.ascontiguousarray(image)
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def _describe_scale(cv2: Any, image: NDArray[np.uint8], grid: Grid) -> Descriptors:
    size = len(image)
    starts = np.array(patch_starts(size, grid))
    rows, columns = (a.ravel() for a in np.meshgrid(starts, starts, indexing="ij"))  # [T] each
    centers = (np.stack([rows, columns], 1) + grid.patch / 2) / size
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    sift = _sift(cv2).compute(gray, _keypoints(size, grid))[1]
    colors = _color_statistics(cv2, image, rows, columns, grid.patch)
    return Descriptors(_root_sift(sift), colors, centers.astype(np.float32))


@functools.cache
def _sift(cv2: Any) -> Any:
    return cv2.SIFT_create(nOctaveLayers=1, sigma=BLUR_SIGMA)


@functools.lru_cache(maxsize=64)
def _keypoints(size: int, grid: Grid) -> Sequence[Any]:
    """The patches as upright OpenCV key points. OpenCV's 4×4 cells together are 6 times as wide as a point's size."""
    cv2, offset = opencv(), (grid.patch - 1) / 2
    starts = patch_starts(size, grid)
    return tuple(cv2.KeyPoint(x + offset, y + offset, grid.patch / 6, 0) for y in starts for x in starts)


def _root_sift(sift: NDArray[np.float32]) -> NDArray[np.float32]:
    """RootSIFT: square roots of L1-normalized histograms (Arandjelović, Zisserman 2012). Uniform patches are 0."""
    sums = sift.sum(1, keepdims=True)
    return np.asarray(np.sqrt(sift / np.maximum(sums, 1e-6)), np.float32)


def _color_statistics(
    cv2: Any, image: NDArray[np.uint8], rows: NDArray[np.int64], columns: NDArray[np.int64], patch: int
) -> NDArray[np.float32]:
    """Mean and standard deviation of red, green and blue in each cell of each patch, divided by 255: [T, 96].

    Clinchant et al. 2007 (XRCE at PASCAL VOC).
    """
    cell = patch // CELLS
    pixels = image.astype(np.float32) / 255
    mean = cv2.blur(pixels, (cell, cell), borderType=cv2.BORDER_REPLICATE)
    mean_square = cv2.blur(pixels**2, (cell, cell), borderType=cv2.BORDER_REPLICATE)
    deviation = np.sqrt(np.maximum(mean_square - mean**2, 0))
    offsets = np.arange(CELLS) * cell + cell // 2  # OpenCV's window of even width is −cell/2 to cell/2 − 1
    y = rows[:, None, None] + offsets[:, None]  # [T, 4, 1]
    x = columns[:, None, None] + offsets  # [T, 1, 4]
    both = np.concatenate([mean[y, x], deviation[y, x]], 3)  # [T, 4, 4, 6]
    return np.ascontiguousarray(both.reshape(len(rows), COLOR_LENGTH), np.float32)


class Mixture(NamedTuple):
    """A mixture of Gaussians with diagonal covariances, float32."""

    weights: NDArray[np.float32]  # [M], sum 1
    means: NDArray[np.float32]  # [M, D]
    variances: NDArray[np.float32]  # [M, D]

    @property
    def vector_length(self) -> int:
        """Length of a Fisher vector: 2·M·D."""
        return 2 * self.means.size


class Codebook(NamedTuple):
    """Principal axes of descriptors, and a mixture of Gaussians in the projected space; float32.

    All axes are divided by one number, so that their mean variance is 1.
    """

    mean: NDArray[np.float32]  # [d]
    axes: NDArray[np.float32]  # [d, D]
    mixture: Mixture

    def project(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Project descriptors: [T, d] -> [T, D]."""
        return np.asarray((descriptors - self.mean) @ self.axes, np.float32)


def fit_codebook(descriptors: NDArray[np.float32], num_axes: int, num_gaussians: int, seed: int) -> Codebook:
    """Fit a codebook to descriptors of training images.

    Args:
        descriptors: [T, d].
        num_axes: Maximum number of principal axes.
        num_gaussians: Maximum number of Gaussians; never more than T / 4.
        seed: Seed of the initialization.
    """
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        max(1, min(num_gaussians, len(descriptors) // 4)),
        covariance_type="diag",
        reg_covar=1e-4,
        max_iter=EM_STEPS,
        tol=1e-3,
        init_params="k-means++",
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no convergence within EM_STEPS, or identical descriptors: both are harmless
        mean, axes = _principal_axes(descriptors, num_axes)
        mixture.fit(((descriptors - mean) @ axes).astype(np.float32))
    parts = (np.maximum(mixture.weights_, 1e-8), mixture.means_, mixture.covariances_)
    return Codebook(mean, axes, Mixture(*(np.asarray(part, np.float32) for part in parts)))


def _principal_axes(descriptors: NDArray[np.float32], num_axes: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean [d] and principal axes [d, D], largest variance first."""
    from sklearn.decomposition import PCA

    limit = min(num_axes, *descriptors.shape)
    pca = PCA(limit, svd_solver="full" if len(descriptors) < descriptors.shape[1] else "covariance_eigh")
    pca.fit(descriptors)
    variances = pca.explained_variance_
    used = max(1, int((variances > MIN_VARIANCE_RATIO * max(float(variances[0]), 1e-12)).sum()))
    scale = 1 / np.sqrt(max(float(variances[:used].mean()), 1e-12))
    return pca.mean_.astype(np.float32), np.ascontiguousarray(pca.components_[:used].T * scale, np.float32)


def posteriors(x: NDArray[np.float32], mixture: Mixture) -> NDArray[np.float32]:
    """Posterior probability of each Gaussian for each descriptor: [T, D] -> [T, M], rows sum to 1."""
    weights, means, variances = mixture
    inverse = 1 / variances
    constant = np.log(weights) - 0.5 * (np.log(variances).sum(1) + (means**2 * inverse).sum(1))  # [M]
    logs = constant + x @ (means * inverse).T - 0.5 * (x**2) @ inverse.T  # [T, M], up to a constant
    logs -= logs.max(1, keepdims=True)
    unnormalized = np.exp(logs)
    return np.asarray(unnormalized / unnormalized.sum(1, keepdims=True), np.float32)


def fisher_vectors(x: NDArray[np.float32], mixture: Mixture, members: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Compute a Fisher vector for each region of an image.

    The parts are the gradients with respect to the means, then to the standard deviations, Gaussian by Gaussian, with
    posteriors q::

        1 / (T·√w)    · Σ q · (x − μ) / σ
        1 / (T·√(2w)) · Σ q · ((x − μ)² / σ² − 1)

    Args:
        x: Projected descriptors [T, D].
        mixture: The mixture.
        members: Which descriptor lies in which region [R, T].

    Returns:
        Vectors [R, 2·M·D]; zeros for a region without descriptors.
    """
    weights, means, variances = mixture
    q = posteriors(x, mixture)
    out = np.zeros((len(members), 2, *means.shape), np.float32)
    for region, inside in enumerate(members):
        if not inside.any():
            continue
        region_q, region_x = q[inside], x[inside]
        zeroth = region_q.sum(0)[:, None]  # [M, 1]
        first, second = region_q.T @ region_x, region_q.T @ region_x**2  # [M, D]
        by_mean = (first - zeroth * means) / np.sqrt(variances)
        by_deviation = (second - 2 * means * first + zeroth * means**2) / variances - zeroth
        scale = len(region_x) * np.sqrt(weights)[:, None]
        out[region] = by_mean / scale, by_deviation / (scale * np.sqrt(2))
    return out.reshape(len(members), -1)


def normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Signed square roots, then L2 normalization along the last axis; zeros stay zeros."""
    roots = np.sign(vectors) * np.sqrt(np.abs(vectors))
    lengths = np.sqrt((roots**2).sum(-1, keepdims=True))
    return np.asarray(roots / np.where(lengths > 0, lengths, 1), np.float32)


def pyramid_members(centers: NDArray[np.float32], levels: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which patch lies in which cell of a spatial pyramid (Lazebnik et al. 2006).

    Args:
        centers: Patch centers [T, 2], 0 to 1.
        levels: Cells in each direction: (1, 2) is the whole image and its quarters.

    Returns:
        Membership [R, T].
    """
    rows = []
    for cells in levels:
        cell = np.minimum((centers * cells).astype(np.int64), cells - 1)  # [T, 2]
        rows += [(cell[:, 0] == row) & (cell[:, 1] == column) for row in range(cells) for column in range(cells)]
    return np.stack(rows)
