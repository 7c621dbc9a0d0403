"""Data augmentation: crops, flips, colors, erasing, RandAugment, mixup and CutMix; normalization; evaluation crops.

Cropping keeps uint8 and may run in a worker thread. Color changes and normalization produce float32 on the training
device. Random numbers are arguments; :mod:`alexnet.loader.sampler` draws them.

In shapes, N is the number of images, S the size of a stored image, s the size of a crop, and C the network's input
channels (3, or 1 for gray)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from alexnet.loader.sampler import normals, step_seed, uniforms
from alexnet.recipe import Recipe

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: weights of red, green and blue in a gray level


class Boxes(NamedTuple):
    """The box that is cropped from each stored image, in pixels, and whether it is flipped; each [N]."""

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    flip: NDArray[np.bool_]


class Colors(NamedTuple):
    """The color changes of each crop: (matrix · (pixel − mean) + offset) ÷ divide, then random erasing."""

    matrix: Tensor | None  # [N, 3, 3]; None: no change
    offset: Tensor | None  # [N, 3] gray levels; None: no change
    erased: list[tuple[int, int, int, int] | None]  # top, left, height, width as fractions of the crop × 2^16
    divide: float = 1.0


@dataclass(frozen=True)
class Normalization:
    """How pixels are normalized, and the principal colors that PCA noise is drawn along.

    Attributes:
        mean: what is subtracted, in gray levels: the mean image [S, S, 3], its center [s, s, 3] or the channel means
            [3].
        color_std: standard deviations along the principal color axes, [3], gray levels.
        color_axes: the axes, [3, 3], one in each column.
        divide: what the difference is divided by: a scalar (2012: 1) or [3]. It stays on the CPU, because reading it
            must not wait for a device.
        mean_follows_crop: whether a mean image is cropped and flipped like each image (Caffe). Otherwise its center
            [s, s, 3] is subtracted from every crop (2012 code).
    """

    mean: Tensor
    color_std: Tensor
    color_axes: Tensor
    divide: Tensor
    mean_follows_crop: bool = True

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, without ``mean_follows_crop``."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def draw_boxes(recipe: Recipe, numbers: NDArray[np.float64], stored: int, size: int) -> Boxes:
    """The boxes of the recipe's training crops.

    Args:
        numbers: uniform random numbers in [0, 1), [N, 5].
        stored: size S of the stored images, pixels.
        size: size s of a crop, pixels. With ``crop="resized"`` the boxes have other sizes.
    """
    flip = numbers[:, 4] < recipe.hflip
    if recipe.crop == "resized":
        height, width = _random_sizes(recipe.min_crop_scale, numbers, stored)
    else:
        height = width = np.full(len(numbers), min(size, stored), np.int64)
    if recipe.crop == "center":
        return Boxes((stored - height) // 2, (stored - width) // 2, height, width, flip)
    # 256 - 224 leaves 33 offsets in each direction, both ends included; the paper's 2048 crops are 32 × 32 × 2.
    top = np.floor(numbers[:, 0] * np.maximum(stored - height + recipe.far_edge, 1)).astype(np.int64)
    left = np.floor(numbers[:, 1] * np.maximum(stored - width + recipe.far_edge, 1)).astype(np.int64)
    return Boxes(top, left, height, width, flip)


def _random_sizes(
    min_scale: float, numbers: NDArray[np.float64], stored: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Heights and widths [N]: area uniform in [``min_scale``, 1] of S × S, aspect ratio log-uniform in [3/4, 4/3]."""
    area = min_scale + (1 - min_scale) * numbers[:, 2]
    # The aspect ratio is limited so that the box fits into the image and nothing has to be drawn again.
    limit = np.minimum(np.log(4 / 3), -np.log(area))
    aspect = np.exp((2 * numbers[:, 3] - 1) * limit)
    height = np.rint(stored * np.sqrt(area / aspect)).clip(1, stored).astype(np.int64)
    width = np.rint(stored * np.sqrt(area * aspect)).clip(1, stored).astype(np.int64)
    return height, width


def crop(images: Tensor, boxes: Boxes, size: int) -> Tensor:
    """Crop ``boxes`` from uint8 [N, S, S, 3] -> uint8 [N, s, s, 3]. Boxes that are not s × s are resized."""
    out = images.new_empty(len(images), size, size, 3)
    for rows, (top, left, height, width, flip) in _runs(boxes):
        region = images[rows, top : top + height, left : left + width]
        if (height, width) != (size, size):
            region = resize(region, size)
        out[rows] = region.flip(2) if flip else region
    return out


def _runs(boxes: Boxes) -> Iterator[tuple[slice, tuple[int, int, int, int, bool]]]:
    """Runs of images with the same box, each with its box.

    A batch of center crops is one run. Each run is cropped by one slice.
    """
    table = np.stack([np.asarray(column, np.int64) for column in boxes], 1)  # [N, 5]
    changes = np.flatnonzero((table[1:] != table[:-1]).any(1)) + 1
    starts = np.concatenate([[0], changes]) if len(table) else changes
    for start, end, box in zip(starts.tolist(), [*changes.tolist(), len(table)], table[starts].tolist(), strict=False):
        top, left, height, width, flip = box
        yield slice(start, end), (top, left, height, width, bool(flip))


def resize(images: Tensor, size: int) -> Tensor:
    """Resize uint8 [N, h, w, 3] -> uint8 [N, s, s, 3], bilinear with antialiasing."""
    channels_first = images.permute(0, 3, 1, 2)
    if images.device.type != "cpu":  # PyTorch resizes uint8 on the CPU only
        resized = (
            F.interpolate(channels_first.float(), (size, size), mode="bilinear", antialias=True).round().clamp(0, 255)
        )
        return resized.to(torch.uint8).permute(0, 2, 3, 1)
    return F.interpolate(channels_first, (size, size), mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def draw_colors(recipe: Recipe, numbers: NDArray[np.float64], normalization: Normalization, epoch: int = 0) -> Colors:
    """The color changes of the recipe's training crops in an epoch (from 0).

    PCA noise adds Σ_i axis_i · σ_i · n_i with n ~ N(0, pca_noise_std²) to every pixel of a crop, one draw a crop. σ are
    the standard deviations of the pixels along the axes in gray levels, as in the 2012 code: ImageNet's are 121.8, 37.1
    and 19.7, so 0.1 is noise of 12, 4 and 2 gray levels. (The paper, section 4.1, prints eigenvalues of the covariance,
    σ².) With ``pca_noise_rescale`` the crop is divided by 1 + pca_noise_std, so that its pixels have about the spread
    of the crops without noise that the network is evaluated on (2012 code).

    Args:
        numbers: uniform random numbers in [0, 1), [N, ≥14].
    """
    offset = matrix = None
    has_noise = recipe.pca_noise_std > 0 and not 0 < recipe.pca_noise_until_epoch <= epoch
    if has_noise:
        strength = torch.from_numpy(normals(numbers[:, :6])).float() * recipe.pca_noise_std  # [N, 3]
        offset = (strength * normalization.color_std.cpu()) @ normalization.color_axes.cpu().T  # [N, 3]
    if recipe.color_jitter:
        factors = 1 + recipe.color_jitter * (2 * torch.from_numpy(numbers[:, 6:9]).float() - 1)  # [N, 3]
        brightness, contrast, saturation = factors.unbind(1)
        gray = torch.tensor(LUMA).expand(3, 3)
        mixed = saturation[:, None, None] * torch.eye(3) + (1 - saturation)[:, None, None] * gray
        matrix = (brightness * contrast)[:, None, None] * mixed  # [N, 3, 3]
        level = normalization.mean.cpu().reshape(-1, 3).mean(0)  # [3]; contrast scales around it, brightness shifts it
        shift = (brightness - 1)[:, None] * level
        offset = shift if offset is None else offset + shift
    divide = 1 + recipe.pca_noise_std if has_noise and recipe.pca_noise_rescale else 1.0
    return Colors(matrix, offset, _draw_erasures(recipe.random_erase_prob, numbers), divide)


def _draw_erasures(probability: float, numbers: NDArray[np.float64]) -> list[tuple[int, int, int, int] | None]:
    """The rectangle that is erased from each crop, from ``numbers`` [N, ≥14]; empty if the probability is 0."""

    def rectangle(row: list[float]) -> tuple[int, int, int, int] | None:
        if row[0] >= probability:
            return None
        height, width = 0.2 + 0.3 * row[1], 0.2 + 0.3 * row[2]  # fractions of the crop's size
        fractions = (row[3] * (1 - height), row[4] * (1 - width), height, width)
        return tuple(int(fraction * 65536) for fraction in fractions)  # type: ignore[return-value]

    return [rectangle(row) for row in numbers[:, 9:14].tolist()] if probability else []


def normalize(
    crops: Tensor, boxes: Boxes | None, colors: Colors | None, normalization: Normalization, channels: int
) -> Tensor:
    """Normalize crops uint8 [N, s, s, 3] -> float32 [N, C, s, s], channels-last in memory.

    Args:
        boxes: where the crops were cut, for a mean image that follows the crops; None: at the center.
        colors: color changes; None for evaluation.
        channels: C. A gray network (1) gets the luma of the normalized colors.
    """
    mean = normalization.mean
    if mean.dim() == 3 and normalization.mean_follows_crop:
        mean = _crop_mean(mean, boxes, crops.shape[1])  # [s, s, 3] or [N, s, s, 3]
    elif mean.dim() == 3 and len(mean) != crops.shape[1]:
        mean = _resize_mean(mean, crops.shape[1])
    x = crops.float().sub_(mean)  # [N, s, s, 3]
    if colors is not None:
        x = _recolor(x, colors)
    divide, color_divide = normalization.divide, 1.0 if colors is None else colors.divide
    if divide.dim():
        x = x.div_((divide * color_divide).to(x.device, non_blocking=True))
    if channels == 1:
        x = (x * x.new_tensor(LUMA)).sum(3, keepdim=True)
    if not divide.dim() and (divisor := float(divide) * color_divide) != 1:
        x = x.div_(divisor)
    return x.permute(0, 3, 1, 2)  # channels-last: no copy


def _crop_mean(mean: Tensor, boxes: Boxes | None, size: int) -> Tensor:
    stored = mean.shape[0]
    if boxes is None:
        start = (stored - size) // 2
        return mean[start : start + size, start : start + size] if stored >= size else _resize_mean(mean, size)
    out = mean.new_empty(len(boxes.top), size, size, 3)
    for rows, (top, left, height, width, flip) in _runs(boxes):
        region = mean[top : top + height, left : left + width]
        region = region if (height, width) == (size, size) else _resize_mean(region, size)
        out[rows] = region.flip(1) if flip else region
    return out


def _resize_mean(mean: Tensor, size: int) -> Tensor:
    channels_first = mean.permute(2, 0, 1)[None]
    return F.interpolate(channels_first, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0)


def _recolor(x: Tensor, colors: Colors) -> Tensor:
    count, size = x.shape[0], x.shape[1]
    flat = x.view(count, -1, 3)
    offset = colors.offset.to(x.device)[:, None] if colors.offset is not None else None  # [N, 1, 3]
    if colors.matrix is not None:
        flat = torch.bmm(flat, colors.matrix.to(x.device).transpose(1, 2))
    if offset is not None:
        flat = flat.add_(offset)
    x = flat.view(count, size, size, 3)
    for i, erased in enumerate(colors.erased):
        if erased is not None:
            top, left, height, width = (fraction * size >> 16 for fraction in erased)
            x[i, top : top + height, left : left + width] = 0
    return x


def center_crops(images: Tensor, size: int) -> Tensor:
    """The center crops of uint8 [N, S, S, 3] -> uint8 [N, s, s, 3]. Images with S < s are enlarged."""
    stored = images.shape[1]
    if stored < size:
        return resize(images, size)
    start = (stored - size) // 2
    return images[:, start : start + size, start : start + size]


def ten_crops(images: Tensor, size: int) -> Tensor:
    """uint8 [N, S, S, 3] -> uint8 [10, N, s, s, 3]: four corners, the center, and these flipped (paper, 4.1)."""
    end = images.shape[1] - size
    corners = [(0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2)]
    crops = [images[:, top : top + size, left : left + size] for top, left in corners]
    return torch.stack(crops + [crop.flip(2) for crop in crops])


def nine_crops(images: Tensor, size: int) -> Tensor:
    """uint8 [N, S, S, 3] -> uint8 [9, N, s, s, 3]: three offsets in each direction, not flipped (2012, CIFAR-10)."""
    end = images.shape[1] - size
    offsets = (0, end // 2, end)
    return torch.stack([images[:, y : y + size, x : x + size] for y in offsets for x in offsets])


MULTI_CROPS = {9: nine_crops, 10: ten_crops}


def crop_numbers(
    seed: int, epoch: int, indices: NDArray[np.int64], groups: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Uniform random numbers of each image in an epoch: for its box [N, 5] and for its colors [N, 14].

    Args:
        groups: the number of each image's group, [N]. Images of one group get the same box. None: no groups.
    """
    numbers = uniforms(seed, epoch, indices, 19)
    if groups is None:
        return numbers[:, :5], numbers[:, 5:]
    return uniforms(step_seed(seed, epoch, stream=3), epoch, groups, 5), numbers[:, 5:]


class Mixup(NamedTuple):
    """How a batch of N images is mixed with itself: image i with image ``permutation[i]`` (int64 [N]).

    Mixup blends the two: ``weight`` · image i + (1 − ``weight``) · the other. CutMix shows the other in a ``box`` (top,
    left, height, width in pixels) of 1 − ``weight`` of the area. ``weight``, in [0.5, 1], is that of label i.
    """

    weight: float
    permutation: NDArray[np.int64]
    box: tuple[int, int, int, int] | None = None


def draw_mixup(recipe: Recipe, step: int, batch_size: int) -> Mixup | None:
    """The mixup of training step ``step`` (from 0), a function of (seed, step) alone.

    A batch is mixed with probability ``recipe.mixup_prob``; the weight is drawn from Beta(α, α) with
    α = ``recipe.mixup_alpha``. Returns None for a batch that is not mixed.
    """
    generator = _mixing_generator(recipe.mixup_prob, recipe.seed, step, stream=2)
    if generator is None:
        return None
    return Mixup(_larger_part(generator, recipe.mixup_alpha), generator.permutation(batch_size))


def draw_cutmix(recipe: Recipe, step: int, batch_size: int, size: int) -> Mixup | None:
    """The CutMix of training step ``step`` (from 0) for crops of ``size`` pixels, a function of (seed, step) alone.

    A batch is cut with probability ``recipe.cutmix_prob``. The box has the shape of the crop; its center is uniform,
    and it is clipped at the edges, so ``weight`` follows from its area (Yun et al. 2019, algorithm 1). Returns None for
    a batch that is not cut.
    """
    generator = _mixing_generator(recipe.cutmix_prob, recipe.seed, step, stream=6)
    if generator is None:
        return None
    half = int(0.5 * np.sqrt(1 - _larger_part(generator, recipe.cutmix_alpha)) * size)
    centers = generator.integers(size, size=2)
    top, left = np.maximum(centers - half, 0).tolist()
    bottom, right = np.minimum(centers + half, size).tolist()
    box = (top, left, bottom - top, right - left)
    return Mixup(1 - box[2] * box[3] / size**2, generator.permutation(batch_size), box)


def _mixing_generator(probability: float, seed: int, step: int, stream: int) -> np.random.Generator | None:
    """The generator of a step's mixing; None with 1 − ``probability``."""
    if not probability:
        return None
    generator = np.random.Generator(np.random.Philox(step_seed(seed, step, stream=stream)))
    return generator if generator.random() < probability else None


def _larger_part(generator: np.random.Generator, alpha: float) -> float:
    """λ or 1 − λ, whichever is larger, with λ from Beta(α, α): training accuracy counts the first label."""
    part = float(generator.beta(alpha, alpha))
    return max(part, 1 - part)


def mix(images: Tensor, others: Tensor, mixup: Mixup) -> Tensor:
    """Mix ``images`` with ``others``, both [N, C, s, s]; the result is channels-last in memory."""
    if mixup.box is None:
        return torch.lerp(others, images, mixup.weight).contiguous(memory_format=torch.channels_last)
    top, left, height, width = mixup.box
    mixed = images.clone(memory_format=torch.channels_last)
    mixed[:, :, top : top + height, left : left + width] = others[:, :, top : top + height, left : left + width]
    return mixed


MAX_MAGNITUDE = 30  # of RandAugment

Operation = Callable[[Image.Image, float], Image.Image]


def _affine(a: float = 1, b: float = 0, c: float = 0, d: float = 0, e: float = 1, f: float = 0) -> tuple[float, ...]:
    """Coefficients of ``Image.transform``: pixel (x, y) comes from (a·x + b·y + c, d·x + e·y + f)."""
    return a, b, c, d, e, f


def _transform(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients)  # nearest pixel


# Each with its strength at magnitude 30; smaller magnitudes are proportional. The sign is random.
_GEOMETRY: dict[str, tuple[Operation, float]] = {
    "ShearX": (lambda image, strength: _transform(image, _affine(b=strength)), 0.3),
    "ShearY": (lambda image, strength: _transform(image, _affine(d=strength)), 0.3),
    "TranslateX": (lambda image, strength: _transform(image, _affine(c=-int(strength * image.width))), 150 / 331),
    "TranslateY": (lambda image, strength: _transform(image, _affine(f=-int(strength * image.height))), 150 / 331),
    "Rotate": (lambda image, strength: image.rotate(strength), 30.0),
}
_COLOR: dict[str, tuple[Operation, float]] = {
    "Brightness": (lambda image, strength: ImageEnhance.Brightness(image).enhance(1 + strength), 0.9),
    "Color": (lambda image, strength: ImageEnhance.Color(image).enhance(1 + strength), 0.9),
    "Contrast": (lambda image, strength: ImageEnhance.Contrast(image).enhance(1 + strength), 0.9),
    "Sharpness": (lambda image, strength: ImageEnhance.Sharpness(image).enhance(1 + strength), 0.9),
}
_SIGNED = _GEOMETRY | _COLOR
_UNSIGNED: dict[str, Operation] = {  # of the magnitude as a fraction
    "Posterize": lambda image, fraction: ImageOps.posterize(image, round(8 - 4 * fraction)),
    "Solarize": lambda image, fraction: ImageOps.solarize(image, math.ceil(255 * (1 - fraction))),
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
}
OPERATIONS = ("Identity", *_SIGNED, *_UNSIGNED)


def randaugment(recipe: Recipe, crops: Tensor, epoch: int, draws: NDArray[np.int64]) -> Tensor:
    """RandAugment (Cubuk, Zoph, Shlens, Le 2020): random operations on each of the crops uint8 [N, s, s, 3], by Pillow.

    The operations, their order and their strengths are those of ``torchvision.transforms.v2.RandAugment`` with 31
    magnitudes, the reference in the test; pixels that come from outside of an image are black. Pillow takes a third of
    the time of PyTorch's operations (0.52 against 1.48 ms for two on a crop of 224 pixels, one core). PCA noise, color
    jitter and erasing come after it. The operations are a function of (seed, epoch, draw) alone.

    Args:
        recipe: the seed, the number of operations and their magnitude.
        crops: the crops.
        epoch: from 0.
        draws: the number of each crop's draw [N], as the sampler gives it.
    """
    numbers = uniforms(step_seed(recipe.seed, epoch, stream=5), epoch, draws, 2 * recipe.randaugment_ops)
    augmented = np.empty(tuple(crops.shape), np.uint8)
    for row, crop in enumerate(crops.numpy()):
        image = Image.fromarray(np.ascontiguousarray(crop))
        for which, sign in numbers[row].reshape(-1, 2).tolist():
            operation = OPERATIONS[int(which * len(OPERATIONS))]
            image = apply_operation(image, operation, recipe.randaugment_magnitude, negated=sign < 0.5)
        augmented[row] = np.asarray(image)
    return torch.from_numpy(augmented)


def apply_operation(image: Image.Image, operation: str, magnitude: int, *, negated: bool) -> Image.Image:
    """One of :data:`OPERATIONS` on an RGB image. ``negated`` has an effect on those with a direction."""
    fraction = magnitude / MAX_MAGNITUDE
    if operation in _SIGNED:
        function, strongest = _SIGNED[operation]
        return function(image, strongest * fraction * (-1 if negated else 1))
    return image if operation == "Identity" else _UNSIGNED[operation](image, fraction)
