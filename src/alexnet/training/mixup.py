"""Mixup (Zhang et al. 2017): a batch mixed with itself in another order; who is mixed with whom is told by the step."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.loader.loader import Batch
from alexnet.loader.sampler import step_seed
from alexnet.recipe import Recipe


class Mixing(NamedTuple):
    """How a batch is mixed: the image at place i keeps ``share``, the rest is that at place ``order[i]``."""

    share: float
    order: NDArray[np.int64]


class Mixed(NamedTuple):
    """What is learned from: ``images`` [N, …], ``labels`` and ``others`` int64 [M]; ``share`` is the first's."""

    images: Tensor
    labels: Tensor
    others: Tensor
    share: float


def mixing(recipe: Recipe, step: int, total: int) -> Mixing | None:
    """The mixing of a step's batch of ``total`` images, with the recipe's probability; a function of (seed, step)."""
    if not recipe.mixup_prob:
        return None
    random = np.random.Generator(np.random.Philox(step_seed(recipe.seed, step, stream=2)))
    if random.random() >= recipe.mixup_prob:
        return None
    share = float(random.beta(recipe.mixup_alpha, recipe.mixup_alpha))
    share = max(share, 1 - share)  # the first label weighs more: it is the one that is counted
    return Mixing(share, random.permutation(total))


def wanted(recipe: Recipe, step: int, total: int, own: range) -> NDArray[np.int64]:
    """The places of a batch whose images a process needs that learns from ``own``: these, then their partners."""
    places = np.arange(own.start, own.stop, dtype=np.int64)
    mixed = mixing(recipe, step, total)
    return places if mixed is None else np.concatenate([places, mixed.order[own.start : own.stop]])


def mix(batch: Batch, recipe: Recipe, step: int, places: range) -> Mixed:
    """The batch as it is learned from, its labels those of ``places``."""
    mixed, whole = mixing(recipe, step, len(batch.labels)), len(places) == len(batch.labels)
    labels = batch.labels if whole else batch.labels[places.start : places.stop]
    if mixed is None:
        return Mixed(batch.images, labels, labels, 1.0)
    order = torch.from_numpy(mixed.order).to(batch.labels.device)
    if batch.places is None:
        first, second = batch.images, batch.images[order]
    else:  # the partners were cut behind them
        half = len(batch.images) // 2
        first, second = batch.images[:half], batch.images[half:]
    images = torch.lerp(second, first, mixed.share).contiguous(memory_format=torch.channels_last)
    return Mixed(images, labels, batch.labels[order[places.start : places.stop]], mixed.share)
