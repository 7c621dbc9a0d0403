"""The learning rate of a step: a function of how far the run is, and, in 2012's way, of the validation error."""

import math
from dataclasses import dataclass, field

from alexnet.recipe import Recipe


@dataclass
class Schedule:
    """The learning rate over a run of a recipe with ``steps_per_epoch`` steps an epoch.

    ``cosine`` and ``poly``: from the highest rate to 0. ``constant``: the highest rate after the warm-up.
    ``multistep``:
    divided by 10 at the recipe's drops. ``plateau``: divided by 10 when the validation error has not fallen for
    ``patience`` epochs, three times in the paper; when it stalls once more the run is over. Epochs from the recipe's
    ``train_on_val_from_epoch`` on have ``steps_joined`` steps.
    """

    recipe: Recipe
    steps_per_epoch: int
    errors: list[float] = field(default_factory=list)  # validation error of every epoch so far
    drops: list[int] = field(default_factory=list)  # `plateau`: epochs before which the rate was divided
    steps_joined: int = 0

    def rate(self, epoch: int, batch: int, lowered: bool = True) -> float:
        """Learning rate of a step: epoch and batch counted from 0. Not ``lowered``: as it is after the warm-up."""
        recipe = self.recipe
        step = 1 / (self.steps_joined if recipe.trains_on_val(epoch) else self.steps_per_epoch)
        at = epoch + batch * step  # epochs done
        if at < recipe.warmup_epochs:  # the first step is not at zero: it would be wasted
            return recipe.peak_lr * (at + step) / (recipe.warmup_epochs + step)
        if not lowered or recipe.schedule == "constant":
            return recipe.peak_lr
        left = (at - recipe.warmup_epochs) / max(recipe.epochs - recipe.warmup_epochs, 1e-9)
        if recipe.schedule == "cosine":
            return recipe.peak_lr * 0.5 * (1 + math.cos(math.pi * min(left, 1.0)))
        if recipe.schedule == "poly":
            return recipe.peak_lr * (1 - min(left, 1.0)) ** 2
        drops = recipe.lr_milestones if recipe.schedule == "multistep" else self.drops
        return recipe.peak_lr * 0.1 ** sum(drop <= epoch for drop in drops)

    def epoch_done(self, epoch: int, validation_error: float | None) -> None:
        """Note an epoch's validation error (fraction); may divide the rate from the next epoch on."""
        if validation_error is None or self.recipe.schedule != "plateau":
            return
        self.errors.append(validation_error)
        if self._stalled():
            self.drops.append(epoch + 1)

    def finished(self, epochs_done: int) -> bool:
        """Is the run over after so many epochs?"""
        return epochs_done >= self.recipe.epochs or len(self.drops) > self.recipe.max_lr_drops

    def _stalled(self) -> bool:
        """No error of the last ``patience`` epochs, all since the last drop, is below the lowest before them."""
        patience = self.recipe.lr_patience
        since = len(self.errors) - (self.drops[-1] if self.drops else 0)
        if since < patience or len(self.errors) <= patience:
            return False
        return min(self.errors[-patience:]) >= min(self.errors[:-patience])
