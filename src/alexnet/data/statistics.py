"""Mean image, mean color and principal axes of color of the training images, from exact integer sums."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class PixelStatistics(NamedTuple):
    """Statistics of all pixels of the training split, in gray levels 0..255."""

    mean_image: NDArray[np.float32]  # [S, S, 3]
    channel_means: NDArray[np.float64]  # [3]
    color_std: NDArray[np.float64]  # [3], along the axes, largest first
    color_axes: NDArray[np.float64]  # [3, 3], columns


class Sums:
    """Exact integer sums over images, so that no order, chunk or resumption changes a digit."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.image = np.zeros((size, size, 3), np.int64)
        self.products = np.zeros((3, 3), np.int64)  # below 2^63 for 2·10^9 images of 256 × 256

    def add(self, images: NDArray[np.uint8]) -> "Sums":
        """Count ``images`` [N, S, S, 3] in; N × S² below 10^11, so that the products are exact in float64."""
        self.count += len(images)
        self.image += images.sum(axis=0, dtype=np.int64)
        values = images.reshape(-1, 3).astype(np.float64)  # [N·S·S, 3]
        self.products += (values.T @ values).astype(np.int64)
        return self

    def merge(self, other: "Sums") -> None:
        """Count the images of ``other`` in."""
        self.count += other.count
        self.image += other.image
        self.products += other.products

    def statistics(self) -> PixelStatistics:
        """Means, and the principal axes of color. Over no images: means 0, deviations 0, the axes of RGB."""
        if self.count == 0:
            return PixelStatistics(np.zeros(self.image.shape, np.float32), np.zeros(3), np.zeros(3), np.eye(3))
        pixels = self.count * self.image.shape[0] ** 2
        sums = self.image.sum(axis=(0, 1))  # [3]
        exact = [[pixels * int(self.products[i, j]) - int(sums[i]) * int(sums[j]) for j in range(3)] for i in range(3)]
        deviations, axes = _principal(np.array([[value / pixels**2 for value in row] for row in exact]))
        return PixelStatistics((self.image / self.count).astype(np.float32), sums / pixels, deviations, axes)


def _principal(covariance: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Standard deviations [3], largest first, and axes [3, 3], each with its largest component positive: one answer."""
    variances, axes = np.linalg.eigh(covariance)
    variances, axes = variances[::-1], axes[:, ::-1]
    variances = np.where(variances > 1e-12 * variances[0], variances, 0)  # gray images: one axis, no rounding
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), range(3)])
    return np.sqrt(variances), axes * signs
