"""Corruption robustness: the 15 corruptions at 5 severities of Hendrycks and Dietterich 2019 (ImageNet-C), on the fly.

The authors divide a classifier's errors by AlexNet's, corruption by corruption; the mean of these ratios is the mean
corruption error (mCE). Here any classifier can be the baseline. The strengths are those of the paper's program for
images of 224 pixels; lengths (radii, offsets) are scaled with the image size.

Three corruptions are not pixel for pixel the paper's: frost is a synthetic texture in place of six photographs, glass
blur moves pixels in one gather in place of a sequence of swaps, and each image has a random state of its own, so that
results do not depend on batches. So compare with a baseline that was evaluated by this module, not with published
tables.

Images are float64 [s, s, 3] from 0 to 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from alexnet.data import decode
from alexnet.data.store import Split
from alexnet.errors import DataError
from alexnet.evaluation.evaluate import log_probabilities, refuse_nonfinite
from alexnet.evaluation.intervals import Estimate, bootstrap, estimate, percentile_interval
from alexnet.loader.augmentation import Normalization, center_crops
from alexnet.loader.loader import to_device
from alexnet.models.network import Network

SEVERITIES = (1, 2, 3, 4, 5)
SIZE = 224  # image size that the strengths are for, pixels

Image = NDArray[np.float64]
Generator = np.random.Generator


class Corruption(NamedTuple):
    """A corruption: its group, and a function of (image, severity from 0, generator) that returns the image."""

    group: str
    apply: Callable[[Image, int, Generator], Image]


def corrupt(image: NDArray[np.uint8], name: str, severity: int, seed: int = 0) -> NDArray[np.uint8]:
    """``image`` uint8 [s, s, 3] with a corruption. The same arguments give the same image.

    Args:
        image: The image.
        name: A key of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        seed: Of all that is random.

    Raises:
        DataError: If there is no such corruption or severity.
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise DataError(f"corruption {name!r} of severity {severity}", f"{', '.join(CORRUPTIONS)}; 1 to 5")
    draw = np.random.default_rng([seed, list(CORRUPTIONS).index(name), severity])
    corrupted = CORRUPTIONS[name].apply(image / 255.0, severity - 1, draw)
    return np.asarray(np.rint(255 * corrupted.clip(0, 1)), np.uint8)


def _gaussian_noise(image: Image, level: int, draw: Generator) -> Image:
    return image + draw.normal(0, (0.08, 0.12, 0.18, 0.26, 0.38)[level], image.shape)


def _shot_noise(image: Image, level: int, draw: Generator) -> Image:
    photons = (60, 25, 12, 5, 3)[level]
    return draw.poisson(image * photons) / photons


def _impulse_noise(image: Image, level: int, draw: Generator) -> Image:
    changed = draw.random(image.shape) < (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    return np.where(changed, draw.integers(0, 2, image.shape), image)


def _defocus_blur(image: Image, level: int, draw: Generator) -> Image:
    radius, softness = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level]
    radius *= image.shape[0] / SIZE
    reach = math.ceil(radius) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return _convolve(image, _gaussian(disk[..., None], softness)[..., 0])


def _glass_blur(image: Image, level: int, draw: Generator) -> Image:
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    sigma, size = sigma * image.shape[0] / SIZE, image.shape[0]
    image = _gaussian(image, sigma)
    y, x = np.mgrid[0:size, 0:size]
    for _ in range(times):
        dy, dx = draw.integers(-reach, reach + 1, (2, size, size))
        image = image[(y + dy).clip(0, size - 1), (x + dx).clip(0, size - 1)]
    return _gaussian(image, sigma)


def _motion_blur(image: Image, level: int, draw: Generator) -> Image:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    return _convolve(image, _line(radius, sigma, draw.uniform(-45, 45), image.shape[0] / SIZE))


def _zoom_blur(image: Image, level: int, draw: Generator) -> Image:
    last, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[level]
    zooms = np.arange(1, last, step)
    return np.asarray(np.mean([image, *(_zoom(image, float(zoom)) for zoom in zooms)], axis=0))


def _snow(image: Image, level: int, draw: Generator) -> Image:
    mean, std, zoom, threshold, radius, sigma, mix = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    flakes = _zoom(draw.normal(mean, std, (*image.shape[:2], 1)), zoom)
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)
    flakes = _convolve(flakes, _line(radius, sigma, draw.uniform(-135, -45), image.shape[0] / SIZE))
    light = image @ (0.299, 0.587, 0.114)
    faded = mix * image + (1 - mix) * np.maximum(image, (1.5 * light + 0.5)[..., None])
    return faded + flakes + flakes[::-1, ::-1]


def _frost(image: Image, level: int, draw: Generator) -> Image:
    keep, frost = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[level]
    size = image.shape[0]
    crystals = 1 - np.abs(2 * _plasma(size, 1.8, draw) - 1)  # ridges, where the clouds cross one half
    cover = _plasma(size, 2.2, draw)
    texture = (0.25 + 0.75 * crystals**4) * (0.35 + 0.65 * cover)
    return np.asarray(keep * image + frost * texture[..., None] * (0.85, 0.95, 1.0))


def _fog(image: Image, level: int, draw: Generator) -> Image:
    amount, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[level]
    peak = image.max()
    clouds = _plasma(image.shape[0], decay, draw)[..., None]
    return np.asarray((image + amount * clouds) * peak / (peak + amount))


def _brightness(image: Image, level: int, draw: Generator) -> Image:
    value = image.max(2, keepdims=True)  # V of HSV: hue and saturation stay
    brighter = (value + (0.1, 0.2, 0.3, 0.4, 0.5)[level]).clip(0, 1)
    return np.asarray(np.where(value > 0, image / np.where(value > 0, value, 1) * brighter, brighter))


def _contrast(image: Image, level: int, draw: Generator) -> Image:
    mean = image.mean((0, 1))
    return np.asarray(mean + (0.4, 0.3, 0.2, 0.1, 0.05)[level] * (image - mean))


def _elastic(image: Image, level: int, draw: Generator) -> Image:
    from scipy.ndimage import gaussian_filter, map_coordinates

    alpha, sigma, affine = (
        (2.0, 0.7, 0.1),
        (2.0, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    )[level]
    size = image.shape[0]
    # Three corners of a square around the center are moved at random: an affine map (y, x, 1) -> (y, x).
    corners = size / 2 + size / 3 * np.array([[1, 1], [-1, 1], [-1, -1]])
    moved = corners + draw.uniform(-affine, affine, (3, 2)) * size
    matrix = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)  # [3, 2]
    y, x = np.mgrid[0:size, 0:size]
    source = np.stack([y, x, np.ones_like(y)], -1) @ matrix  # [s, s, 2]
    for axis in range(2):
        noise = draw.uniform(-1, 1, (size, size))
        source[..., axis] += alpha * size * gaussian_filter(noise, sigma * size, mode="reflect", truncate=3)
    channels = [map_coordinates(image[..., c], np.moveaxis(source, -1, 0), order=1, mode="reflect") for c in range(3)]
    return np.stack(channels, -1)


def _pixelate(image: Image, level: int, draw: Generator) -> Image:
    size = max(1, int(image.shape[0] * (0.6, 0.5, 0.4, 0.3, 0.25)[level]))
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    small = F.interpolate(planes, size=size, mode="area")
    return np.asarray(F.interpolate(small, size=image.shape[0], mode="nearest")[0].permute(1, 2, 0))


def _jpeg(image: Image, level: int, draw: Generator) -> Image:
    encoded = decode.encode_jpeg(np.rint(255 * image).astype(np.uint8), (25, 18, 15, 10, 7)[level])
    return decode.decode(encoded) / 255.0


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption("noise", _gaussian_noise),
    "shot_noise": Corruption("noise", _shot_noise),
    "impulse_noise": Corruption("noise", _impulse_noise),
    "defocus_blur": Corruption("blur", _defocus_blur),
    "glass_blur": Corruption("blur", _glass_blur),
    "motion_blur": Corruption("blur", _motion_blur),
    "zoom_blur": Corruption("blur", _zoom_blur),
    "snow": Corruption("weather", _snow),
    "frost": Corruption("weather", _frost),
    "fog": Corruption("weather", _fog),
    "brightness": Corruption("weather", _brightness),
    "contrast": Corruption("digital", _contrast),
    "elastic_transform": Corruption("digital", _elastic),
    "pixelate": Corruption("digital", _pixelate),
    "jpeg_compression": Corruption("digital", _jpeg),
}


def _gaussian(image: Image, sigma: float) -> Image:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(image, (sigma, sigma, 0), mode="nearest"), np.float64)


def _convolve(image: Image, kernel: NDArray[np.float64]) -> Image:
    """Each channel with ``kernel`` [k, k] of odd size, whose sum is set to 1; edges are reflected."""
    from scipy.signal import oaconvolve

    reach = kernel.shape[0] // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), "symmetric")
    return np.asarray(oaconvolve(padded, (kernel / kernel.sum())[..., None], mode="valid", axes=(0, 1)), np.float64)


def _line(radius: float, sigma: float, degrees: float, scale: float) -> NDArray[np.float64]:
    """The kernel of a motion blur: half a Gaussian along a line from the center, in an image scaled by ``scale``."""
    radius, sigma = max(1.0, radius * scale), max(0.3, sigma * scale)
    reach = math.ceil(radius)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    distances = np.arange(0, radius + 0.5, 0.5)
    y = np.rint(reach - distances * math.sin(math.radians(degrees))).astype(int).clip(0, 2 * reach)
    x = np.rint(reach + distances * math.cos(math.radians(degrees))).astype(int).clip(0, 2 * reach)
    np.add.at(kernel, (y, x), np.exp(-(distances**2) / (2 * sigma**2)))
    return kernel


def _zoom(image: Image, factor: float) -> Image:
    """The center of ``image`` [s, s, C], enlarged ``factor`` times to the size of the whole."""
    size = image.shape[0]
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    part = max(2, math.ceil(size / factor))
    top = (size - part) // 2
    zoomed = F.interpolate(planes[..., top : top + part, top : top + part], size=size, mode="bilinear")
    return np.asarray(zoomed[0].permute(1, 2, 0))


def _plasma(size: int, decay: float, draw: Generator) -> NDArray[np.float64]:
    """Clouds [s, s] from 0 to 1: noise in octaves, each ``decay`` times weaker than the next larger one."""
    clouds = np.zeros((size, size))
    cells, weight = 2, 1.0
    while cells < 2 * size:
        grid = torch.from_numpy(draw.uniform(-1, 1, (1, 1, cells + 1, cells + 1)))
        fine = F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=True)
        clouds += weight * fine[0, 0].numpy()
        cells, weight = 2 * cells, weight / decay
    low, high = clouds.min(), clouds.max()
    return np.asarray((clouds - low) / max(high - low, 1e-9))


@dataclass(frozen=True)
class CorruptionErrors:
    """The mistakes of a classifier on clean and corrupted images.

    Attributes:
        clean: Was the clean image wrong? [N]
        corrupted: Was the corrupted image wrong? [N, 15, 5], in the order of :data:`CORRUPTIONS`.
        groups: Patient, camera or video of each image; empty: every image is a group of its own.
    """

    clean: NDArray[np.bool_]
    corrupted: NDArray[np.bool_]
    groups: tuple[str, ...] = ()

    def error(self) -> Estimate:
        """The error on clean images."""
        return self._estimate(self.clean.astype(np.float64))

    def mean_error(self) -> Estimate:
        """The mean error over all corruptions and severities."""
        return self._estimate(self.corrupted.mean((1, 2)))

    def by_corruption(self) -> NDArray[np.float64]:
        """The error by corruption and severity, [15, 5]."""
        return np.asarray(self.corrupted.mean(0))

    def mce(self, baseline: "CorruptionErrors") -> tuple[NDArray[np.float64], Estimate]:
        """The error of each corruption as a multiple of the baseline's, [15], and the mean of these ratios (mCE).

        The interval is over the same images of both. A corruption on which the baseline makes no mistake has no ratio
        and is left out of the mean. Raises :class:`DataError` if the images are not the same in number.
        """
        if len(baseline.clean) != len(self.clean):
            raise DataError(f"the baseline has {len(baseline.clean)} images", f"the same {len(self.clean)} images")
        own, other = self.corrupted.mean(2), baseline.corrupted.mean(2)  # [N, 15]

        def ratios(weights: NDArray[np.float32]) -> NDArray[np.float64]:
            below = weights @ other
            return np.asarray(np.where(below > 0, weights @ own, np.nan) / np.where(below > 0, below, 1))

        def mean(weights: NDArray[np.float32]) -> NDArray[np.float64]:
            return np.asarray(np.nanmean(ratios(weights), axis=1))

        each = ratios(np.ones((1, len(own)), np.float32))[0]
        low, high = percentile_interval(bootstrap(mean, len(own), self.groups))
        return each, Estimate(float(np.nanmean(each)), float(low), float(high), len(own))

    def _estimate(self, errors: NDArray[np.float64]) -> Estimate:
        def of(weights: NDArray[np.float32]) -> NDArray[np.float64]:
            return np.asarray((weights @ errors) / weights.sum(1))

        return estimate(float(errors.mean()), bootstrap(of, len(errors), self.groups), len(errors))

    def to_dict(self) -> dict[str, Any]:
        """As plain values: ``error``, ``mean_corruption_error``, and ``errors`` by corruption for severities 1 to 5."""
        return {
            "images": len(self.clean),
            "error": self.error().to_dict(),
            "mean_corruption_error": self.mean_error().to_dict(),
            "errors": dict(zip(CORRUPTIONS, self.by_corruption().tolist(), strict=True)),
        }


def corruption_errors(
    network: Network,
    split: Split,
    normalization: Normalization,
    *,
    count: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> CorruptionErrors:
    """The mistakes of ``network`` on the center crops of ``count`` random images of a split, clean and corrupted.

    The same split and count give the same images and the same corruptions for every network of the same image size.
    ``progress`` receives the number of images done, and of all.
    """
    if not len(split):
        raise DataError(f"the {split.name} split is empty", "at least one image", "choose another split")
    indices = np.sort(np.random.default_rng(0).permutation(len(split))[:count]).astype(np.int64)
    normalization, size = to_device(normalization, device), network.image_size
    results = np.zeros((len(indices), len(CORRUPTIONS) * len(SEVERITIES) + 1), bool)
    variants = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    network.eval()
    for row, index in enumerate(indices):
        crop = center_crops(torch.from_numpy(split.gather(indices[row : row + 1])), size)[0].numpy()
        images = np.stack([crop, *(corrupt(crop, name, level, int(index)) for name, level in variants)])
        log_probs = log_probabilities(
            network, torch.from_numpy(images).to(device), normalization, image_size=size, channels=network.in_channels
        )
        refuse_nonfinite(log_probs, network.name)
        results[row] = log_probs.argmax(1).cpu().numpy() != split.labels[index]
        if progress is not None:
            progress(row + 1, len(indices))
    groups = tuple(split.groups[i] for i in indices) if split.groups else ()
    corrupted = results[:, 1:].reshape(len(indices), len(CORRUPTIONS), len(SEVERITIES))
    return CorruptionErrors(results[:, 0], corrupted, groups)
