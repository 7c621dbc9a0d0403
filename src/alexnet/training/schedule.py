"""Learning rate schedules, and the learning rate of each step of a run.

A schedule is a function of (recipe, progress) that returns the learning rate as a fraction of its peak; the dict
``SCHEDULES`` in ``recipe/fields.py`` lists them.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from alexnet.recipe import SCHEDULES, Recipe, lookup


class Progress(NamedTuple):
    """How far a run is at a step.

    Args:
        epoch: the epoch of the step, from 0.
        fraction: from 0 at the end of the warm-up to 1 at the end of the run.
        drops: epochs from which the schedule ``plateau`` has divided the learning rate by 10 so far.
    """

    epoch: int
    fraction: float
    drops: tuple[int, ...]


def cosine(recipe: Recipe, progress: Progress) -> float:
    """Half a cosine wave from 1 to 0 (Loshchilov and Hutter 2017, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress.fraction))


def poly(recipe: Recipe, progress: Progress) -> float:
    """(1 − t)² for t from 0 to 1 (You et al. 2017)."""
    return (1 - progress.fraction) ** 2


def multistep(recipe: Recipe, progress: Progress) -> float:
    """Divided by 10 at each epoch of ``lr_milestones``."""
    return float(0.1 ** sum(milestone <= progress.epoch for milestone in recipe.lr_milestones))


def plateau(recipe: Recipe, progress: Progress) -> float:
    """Divided by 10 after each plateau of the validation error (paper, section 5); see :class:`LRSchedule`."""
    return float(0.1 ** sum(drop <= progress.epoch for drop in progress.drops))


def constant(recipe: Recipe, progress: Progress) -> float:
    """Always 1."""
    return 1.0


MAX_DEFAULT_EPOCHS = 200


def with_default_epochs(recipe: Recipe, images: int) -> Recipe:
    """``recipe``, with ``epochs`` 0 replaced by a number that fits a training split of ``images``.

    All epochs together show 3,000 √images crops: 60,000 of 400 images, 157,000 of 2,700, 900,000 of 100,000. So ten
    times as many images take about three times as long, and each is shown a third as often. At most
    :data:`MAX_DEFAULT_EPOCHS` epochs, which limits the crops of fewer than 225 images.
    """
    if recipe.epochs or not images:
        return recipe
    epochs = min(MAX_DEFAULT_EPOCHS, round(3000 / math.sqrt(images)))
    return recipe.replace(epochs=max(5, math.ceil(recipe.warmup_epochs) + 1, epochs))


@dataclass
class LRSchedule:
    """The learning rate of each step of a run: a linear warm-up, then the schedule of the recipe.

    With the schedule ``plateau`` the learning rate is divided by 10 when the validation error has not fallen for
    ``lr_patience`` epochs. After ``max_lr_drops`` divisions the next plateau ends the run.

    Args:
        recipe: the recipe of the run.
        steps_per_epoch: steps of an epoch on the training split.
        errors: validation error of every epoch so far, a fraction.
        drops: epochs from which ``plateau`` has divided the learning rate.
        steps_joined: steps of an epoch from ``train_on_val_from_epoch`` on, when validation images are trained on too.
    """

    recipe: Recipe
    steps_per_epoch: int
    errors: list[float] = field(default_factory=list)
    drops: list[int] = field(default_factory=list)
    steps_joined: int = 0

    def __post_init__(self) -> None:
        self._factor = lookup(SCHEDULES, self.recipe.schedule)

    def lr(self, epoch: int, batch: int, scheduled: bool = True) -> float:
        """The learning rate of a step.

        Args:
            epoch: from 0.
            batch: the step within the epoch, from 0.
            scheduled: False for parameters that keep the peak learning rate after the warm-up.
        """
        recipe = self.recipe
        step = 1 / (self.steps_joined if recipe.trains_on_val(epoch) else self.steps_per_epoch)
        epochs_done = epoch + batch * step
        if epochs_done < recipe.warmup_epochs:  # the first step is not at zero: it would be wasted
            return recipe.peak_lr * (epochs_done + step) / (recipe.warmup_epochs + step)
        if not scheduled:
            return recipe.peak_lr
        fraction = (epochs_done - recipe.warmup_epochs) / max(recipe.epochs - recipe.warmup_epochs, 1e-9)
        progress = Progress(epoch, min(fraction, 1.0), tuple(self.drops))
        return float(recipe.peak_lr * self._factor(recipe, progress))

    def epoch_done(self, epoch: int, validation_error: float | None) -> None:
        """Record the validation error of an epoch, a fraction; ``plateau`` may lower the rate from the next epoch."""
        if validation_error is None or self.recipe.schedule != "plateau":
            return
        self.errors.append(validation_error)
        if self._on_plateau():
            self.drops.append(epoch + 1)

    def finished(self, epochs_done: int) -> bool:
        """True when the run is over after this number of epochs."""
        return epochs_done >= self.recipe.epochs or len(self.drops) > self.recipe.max_lr_drops

    def _on_plateau(self) -> bool:
        """True if none of the last ``lr_patience`` errors, all since the last drop, is below the lowest before them."""
        patience = self.recipe.lr_patience
        since_drop = len(self.errors) - (self.drops[-1] if self.drops else 0)
        if since_drop < patience or len(self.errors) <= patience:
            return False
        return min(self.errors[-patience:]) >= min(self.errors[:-patience])
