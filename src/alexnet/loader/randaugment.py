"""RandAugment (Cubuk, Zoph, Shlens, Le 2020): random operations on training crops, by Pillow.

The operations, their order and their strengths are those of ``torchvision.transforms.v2.RandAugment`` with 31
magnitudes, the reference in the test; pixels that come from outside of an image are black. Pillow takes a third of the
time of PyTorch's operations (0.52 against 1.48 ms for two on a crop of 224 pixels, one core). Color and geometry change
here on uint8 images; PCA noise, color jitter and erasing come after it.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from alexnet.loader.sampler import step_seed, uniforms
from alexnet.recipe import Recipe

MAX_MAGNITUDE = 30

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
    """``recipe.randaugment_ops`` random operations on each of the crops uint8 [N, s, s, 3].

    The operations are a function of (seed, epoch, draw) alone.

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
            image = apply(image, operation, recipe.randaugment_magnitude, negated=sign < 0.5)
        augmented[row] = np.asarray(image)
    return torch.from_numpy(augmented)


def apply(image: Image.Image, operation: str, magnitude: int, *, negated: bool) -> Image.Image:
    """One of :data:`OPERATIONS` on an RGB image. ``negated`` has an effect on those with a direction."""
    fraction = magnitude / MAX_MAGNITUDE
    if operation in _SIGNED:
        function, strongest = _SIGNED[operation]
        return function(image, strongest * fraction * (-1 if negated else 1))
    return image if operation == "Identity" else _UNSIGNED[operation](image, fraction)
