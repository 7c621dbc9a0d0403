"""Stored images -> what the network sees: crops, mirrors, color noise, test crops, the mean; whole batches.

Two steps. *Cutting* keeps uint8 and may run in a worker; *coloring* makes float32 and runs on the device that
trains. Random numbers come in, none are drawn here; see :mod:`alexnet.loader.sampler`.

Glossary: N images, S side of a stored image, s side of a view, C channels of the network (3, or 1 for gray).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from alexnet.loader.sampler import normals, step_seed, uniforms
from alexnet.recipe import Recipe

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: weights of red, green and blue in a gray level


class Boxes(NamedTuple):
    """Which part of each stored image a view shows, in pixels; each [N]."""

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    flip: NDArray[np.bool_]


class Colors(NamedTuple):
    """How each view's colors change: pixel − mean -> (matrix · (pixel − mean) + offset) ÷ divide, then blanks."""

    matrix: Tensor | None  # [N, 3, 3]; None: unchanged
    offset: Tensor | None  # [N, 3] gray levels
    blank: list[tuple[int, int, int, int] | None]  # top, left, height, width as shares of the view × 2^16
    divide: float = 1.0


@dataclass(frozen=True)
class Normalization:
    """What the training split's pixels are like; subtracted from and used as color noise.

    ``mean`` is the mean image [S, S, 3], its center [s, s, 3] or the channel means [3], gray levels. ``color_std`` [3]
    are the standard deviations along the principal color axes, gray levels; ``color_axes`` [3, 3] has those axes as
    columns. What is left of a pixel is divided by ``divide``, a scalar (2012: 1) or [3]; it stays on the CPU, since
    reading it must not wait for a device. ``follows``: is a mean image cut and mirrored like each view (Caffe), or is
    the same center [s, s, 3] subtracted from every view, wherever that lies (2012 code)?
    """

    mean: Tensor
    color_std: Tensor
    color_axes: Tensor
    divide: Tensor
    mean_follows_crop: bool = True

    def tensors(self) -> dict[str, Tensor]:
        """The numbers by name, without ``follows``."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def draw_boxes(recipe: Recipe, numbers: NDArray[np.float64], stored: int, side: int) -> Boxes:
    """Boxes of the recipe's training crops. ``numbers`` [N, 5] uniform, ``stored`` S and ``side`` s in pixels."""
    mirror = numbers[:, 4] < recipe.hflip
    if recipe.crop == "resized":
        height, width = _part_sides(recipe.min_crop_scale, numbers, stored)
    else:
        height = width = np.full(len(numbers), min(side, stored), np.int64)
    if recipe.crop == "center":
        return Boxes((stored - height) // 2, (stored - width) // 2, height, width, mirror)
    # 256 - 224 leaves 33 offsets a side, both ends included; the paper's 2048 crops are 32 × 32 × 2.
    top = np.floor(numbers[:, 0] * np.maximum(stored - height + recipe.far_edge, 1)).astype(np.int64)
    left = np.floor(numbers[:, 1] * np.maximum(stored - width + recipe.far_edge, 1)).astype(np.int64)
    return Boxes(top, left, height, width, mirror)


def _part_sides(
    smallest: float, numbers: NDArray[np.float64], stored: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Height and width of a part: area uniform in [smallest, 1], aspect log-uniform in [3/4, 4/3], inside S×S."""
    area = smallest + (1 - smallest) * numbers[:, 2]
    # An aspect that would stick out of the image is pulled in, so that no number has to be drawn again.
    limit = np.minimum(np.log(4 / 3), -np.log(area))
    aspect = np.exp((2 * numbers[:, 3] - 1) * limit)
    height = np.rint(stored * np.sqrt(area / aspect)).clip(1, stored).astype(np.int64)
    width = np.rint(stored * np.sqrt(area * aspect)).clip(1, stored).astype(np.int64)
    return height, width


def crop(images: Tensor, boxes: Boxes, side: int) -> Tensor:
    """uint8 [N, S, S, 3] -> uint8 [N, s, s, 3]: each image's box, mirrored, resized where it is not s×s already."""
    out = images.new_empty(len(images), side, side, 3)
    for which, (top, left, height, width, mirror) in _runs(boxes):
        part = images[which, top : top + height, left : left + width]
        if (height, width) != (side, side):
            part = resize(part, side)
        out[which] = part.flip(2) if mirror else part
    return out


def _runs(boxes: Boxes) -> Iterator[tuple[slice, tuple[int, int, int, int, bool]]]:
    """Neighboring images with one box, and that box: a whole batch of center crops is one, shared crops are few."""
    table = np.stack([np.asarray(part, np.int64) for part in boxes], 1)  # [N, 5]
    changes = np.flatnonzero((table[1:] != table[:-1]).any(1)) + 1
    begins = np.concatenate([[0], changes]) if len(table) else changes
    for begin, end, box in zip(begins.tolist(), [*changes.tolist(), len(table)], table[begins].tolist(), strict=False):
        top, left, height, width, mirror = box
        yield slice(begin, end), (top, left, height, width, bool(mirror))


def resize(images: Tensor, side: int) -> Tensor:
    """uint8 [N, h, w, 3] -> uint8 [N, s, s, 3], bilinear with antialiasing."""
    maps = images.permute(0, 3, 1, 2)
    if images.device.type != "cpu":  # PyTorch resizes uint8 on processors only
        resized = F.interpolate(maps.float(), (side, side), mode="bilinear", antialias=True).round().clamp(0, 255)
        return resized.to(torch.uint8).permute(0, 2, 3, 1)
    return F.interpolate(maps, (side, side), mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def draw_colors(recipe: Recipe, numbers: NDArray[np.float64], normalization: Normalization, epoch: int = 0) -> Colors:
    """Color changes of the recipe's training crops in an epoch (from 0). ``numbers`` [N, ≥14] uniform.

    Noise: every pixel of a view gets Σ_i axis_i · σ_i · n_i with n ~ N(0, color_noise²), one draw a view. σ are the
    pixels' standard deviations along the axes in gray levels, as in the 2012 code: ImageNet's are 121.8, 37.1 and
    19.7, so 0.1 is noise of 12, 4 and 2 gray levels. (The paper, 4.1, prints eigenvalues of the covariance, σ².) With
    ``pca_noise_rescale`` the view is divided by 1 + pca_noise_std, so that its numbers are spread about as widely as
    those of
    a view without noise, which is what the network is tested on (2012 code).
    """
    offset = matrix = None
    noisy = recipe.pca_noise_std > 0 and not 0 < recipe.pca_noise_until_epoch <= epoch
    if noisy:
        strength = torch.from_numpy(normals(numbers[:, :6])).float() * recipe.pca_noise_std  # [N, 3]
        offset = (strength * normalization.color_std.cpu()) @ normalization.color_axes.cpu().T  # [N, 3]
    if recipe.color_jitter:
        factors = 1 + recipe.color_jitter * (2 * torch.from_numpy(numbers[:, 6:9]).float() - 1)  # [N, 3]
        brightness, contrast, saturation = factors.unbind(1)
        gray = torch.tensor(LUMA).expand(3, 3)
        mixed = saturation[:, None, None] * torch.eye(3) + (1 - saturation)[:, None, None] * gray
        matrix = (brightness * contrast)[:, None, None] * mixed  # [N, 3, 3]
        level = normalization.mean.cpu().reshape(-1, 3).mean(0)  # [3]; contrast turns about it, brightness moves it
        shift = (brightness - 1)[:, None] * level
        offset = shift if offset is None else offset + shift
    divide = 1 + recipe.pca_noise_std if noisy and recipe.pca_noise_rescale else 1.0
    return Colors(matrix, offset, _draw_blanks(recipe.random_erase_prob, numbers), divide)


def _draw_blanks(probability: float, numbers: NDArray[np.float64]) -> list[tuple[int, int, int, int] | None]:
    def rectangle(n: list[float]) -> tuple[int, int, int, int] | None:
        if n[0] >= probability:
            return None
        height, width = 0.2 + 0.3 * n[1], 0.2 + 0.3 * n[2]  # a fifth to a half of the view's side
        shares = (n[3] * (1 - height), n[4] * (1 - width), height, width)
        return tuple(int(share * 65536) for share in shares)  # type: ignore[return-value]

    return [rectangle(row) for row in numbers[:, 9:14].tolist()] if probability else []


def normalize(
    cuts: Tensor, boxes: Boxes | None, colors: Colors | None, normalization: Normalization, channels: int
) -> Tensor:
    """uint8 [N, s, s, 3] -> float32 [N, C, s, s], channels-last in memory: minus the mean, colors changed.

    A mean image that follows is cut by the same boxes as the images; without boxes, its center is. Gray networks
    (C = 1) see the luma of the result.
    """
    mean = normalization.mean
    if mean.dim() == 3 and normalization.mean_follows_crop:
        mean = _cut_mean(mean, boxes, cuts.shape[1])  # [s, s, 3] or [N, s, s, 3]
    elif mean.dim() == 3 and len(mean) != cuts.shape[1]:
        mean = _stretch(mean, cuts.shape[1])
    x = cuts.float().sub_(mean)  # [N, s, s, 3]
    if colors is not None:
        x = _recolor(x, colors)
    divide, more = normalization.divide, 1.0 if colors is None else colors.divide
    if divide.dim():
        x = x.div_((divide * more).to(x.device, non_blocking=True))
    if channels == 1:
        x = (x * x.new_tensor(LUMA)).sum(3, keepdim=True)
    if not divide.dim() and (number := float(divide) * more) != 1:
        x = x.div_(number)
    return x.permute(0, 3, 1, 2)  # channels-last: no copy


def _cut_mean(mean: Tensor, boxes: Boxes | None, side: int) -> Tensor:
    stored = mean.shape[0]
    if boxes is None:
        start = (stored - side) // 2
        return mean[start : start + side, start : start + side] if stored >= side else _stretch(mean, side)
    out = mean.new_empty(len(boxes.top), side, side, 3)
    for which, (top, left, height, width, mirror) in _runs(boxes):
        part = mean[top : top + height, left : left + width]
        part = part if (height, width) == (side, side) else _stretch(part, side)
        out[which] = part.flip(1) if mirror else part
    return out


def _stretch(mean: Tensor, side: int) -> Tensor:
    maps = mean.permute(2, 0, 1)[None]
    return F.interpolate(maps, (side, side), mode="bilinear", antialias=True)[0].permute(1, 2, 0)


def _recolor(x: Tensor, colors: Colors) -> Tensor:
    n, side = x.shape[0], x.shape[1]
    flat = x.view(n, -1, 3)
    offset = colors.offset.to(x.device)[:, None] if colors.offset is not None else None  # [N, 1, 3]
    if colors.matrix is not None:
        flat = torch.bmm(flat, colors.matrix.to(x.device).transpose(1, 2))
    if offset is not None:
        flat = flat.add_(offset)
    x = flat.view(n, side, side, 3)
    for i, blank in enumerate(colors.blank):
        if blank is not None:
            top, left, height, width = (share * side >> 16 for share in blank)
            x[i, top : top + height, left : left + width] = 0
    return x


def center_crops(images: Tensor, side: int) -> Tensor:
    """uint8 [N, S, S, 3] -> uint8 [N, s, s, 3]: the middle of each image (resized only if S < s)."""
    stored = images.shape[1]
    if stored < side:
        return resize(images, side)
    start = (stored - side) // 2
    return images[:, start : start + side, start : start + side]


def ten_crops(images: Tensor, side: int) -> Tensor:
    """uint8 [N, S, S, 3] -> uint8 [10, N, s, s, 3]: four corners, the center, and their mirrors (paper, 4.1)."""
    far = images.shape[1] - side
    corners = [(0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2)]
    crops = [images[:, top : top + side, left : left + side] for top, left in corners]
    return torch.stack(crops + [view.flip(2) for view in crops])


def nine_crops(images: Tensor, side: int) -> Tensor:
    """uint8 [N, S, S, 3] -> uint8 [9, N, s, s, 3]: three offsets each way, never mirrored (2012, for CIFAR-10)."""
    far = images.shape[1] - side
    offsets = (0, far // 2, far)
    return torch.stack([images[:, y : y + side, x : x + side] for y in offsets for x in offsets])


MULTI_CROPS = {9: nine_crops, 10: ten_crops}


def crop_numbers(
    seed: int, epoch: int, indices: NDArray[np.int64], groups: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The random numbers of each image's view in an epoch: for its box [N, 5] and for its colors [N, 14].

    With ``groups`` [N] (numbers of groups in the epoch's order) all of a group have their box in common.
    """
    numbers = uniforms(seed, epoch, indices, 19)
    if groups is None:
        return numbers[:, :5], numbers[:, 5:]
    return uniforms(step_seed(seed, epoch, stream=3), epoch, groups, 5), numbers[:, 5:]
