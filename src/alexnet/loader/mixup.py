"""Mixup (Zhang et al. 2017): each image of a batch is blended with another image of the same batch."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.loader.sampler import step_seed
from alexnet.recipe import Recipe


class Mixup(NamedTuple):
    """How a batch of N images is blended: image i becomes ``weight`` · image i + (1 − ``weight``) · image
    ``permutation[i]``, with ``weight`` in [0.5, 1] and ``permutation`` int64 [N]."""

    weight: float
    permutation: NDArray[np.int64]


def draw_mixup(recipe: Recipe, step: int, batch_size: int) -> Mixup | None:
    """The mixup of training step ``step`` (from 0), a function of (seed, step) alone.

    A batch is mixed with probability ``recipe.mixup_prob``; the weight is drawn from Beta(α, α) with
    α = ``recipe.mixup_alpha``. Returns None for a batch that is not mixed.
    """
    if not recipe.mixup_prob:
        return None
    generator = np.random.Generator(np.random.Philox(step_seed(recipe.seed, step, stream=2)))
    if generator.random() >= recipe.mixup_prob:
        return None
    weight = float(generator.beta(recipe.mixup_alpha, recipe.mixup_alpha))
    weight = max(weight, 1 - weight)  # training accuracy counts the first label, so it gets the larger weight
    return Mixup(weight, generator.permutation(batch_size))
