"""The learning rate range test (Smith 2017): the loss of a short training in which the learning rate grows.

The rate rises exponentially over a few hundred steps, one batch each. Where it is too low the loss hardly changes, then
it falls, and where the rate is too high it rises again. The suggested rate is a tenth of that with the lowest loss: the
loss follows the rate with some delay, so at the lowest loss the rate is already too high to stay at.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.sources.options import DataOptions
from alexnet.errors import RecipeError
from alexnet.recipe import Recipe
from alexnet.system import choose_device
from alexnet.training import loop, runtime
from alexnet.training.finetune import PretrainedWeights
from alexnet.training.run import training_loader
from alexnet.training.run_data import open_store
from alexnet.training.state import State
from alexnet.training.time_budget import endless_batches

SMOOTHING = 0.9  # weight of the earlier losses in the moving average
DIVERGED = 4.0  # the test ends where the smoothed loss is this many times the lowest
MIN_STEPS = 20
SUGGESTED_FRACTION = 0.1  # of the rate with the lowest loss, a common rule


@dataclass(frozen=True)
class LRFindConfig:
    """Settings of the user: the number of steps, and the learning rates of the first and the last step."""

    steps: int = 200
    low: float = 1e-6
    high: float = 10.0

    def __post_init__(self) -> None:
        if self.steps < MIN_STEPS:
            raise RecipeError(f"--steps is {self.steps}", f"at least {MIN_STEPS}")
        if not 0 < self.low < self.high <= 1000:
            raise RecipeError(f"--low is {self.low:g} and --high {self.high:g}", "0 < low < high, at most 1000")


@dataclass(frozen=True)
class LRFindResult:
    """The curve, and the rates that follow from it.

    Attributes:
        rates: Learning rate of each step that was made.
        losses: Its loss.
        smoothed: The moving average of the losses.
        suggestion: A tenth of ``lowest``, as ``--lr`` of the recipe.
        lowest: The rate at which the smoothed loss is lowest; training at it is on the edge of divergence.
        plot: The PNG file.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float
    lowest: float
    plot: Path

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        curve = {name: list(getattr(self, name)) for name in ("rates", "losses", "smoothed")}
        return curve | {"suggestion": self.suggestion, "lowest": self.lowest, "plot": str(self.plot)}


def find_lr(
    data: str,
    recipe: Recipe,
    config: LRFindConfig,
    plot: Path,
    options: DataOptions,
    *,
    init_from: PretrainedWeights | None = None,
    device: str = "auto",
    num_workers: int = 1,
) -> LRFindResult:
    """Run the test and draw its curve. Nothing but the plot is kept.

    Args:
        data: A dataset as ``alexnet train`` accepts it.
        recipe: Its network, optimizer, batches and augmentation are used; the schedule is not.
        config: Steps and range.
        plot: The PNG file.
        options: Cache folder, logging and layout of the dataset.
        init_from: Pretrained weights that the training starts from.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        num_workers: Data-loading threads.

    Raises:
        RecipeError: The loss does not fall at any rate of the range.
    """
    chosen = choose_device(device)
    recipe = runtime.resolve_auto(recipe, chosen)
    store = open_store(data, recipe, options)
    scale = recipe.lr_base_size / recipe.batch_size if recipe.lr_base_size else 1.0
    # A constant schedule without warm-up: the rate of a step is lr of the recipe, which each step replaces.
    recipe = recipe.replace(
        schedule="constant", epochs=1_000_000, warmup_epochs=0.0, lr_base_size=0, lr_milestones=(), ema_decay=0.0
    )
    rates = np.geomspace(config.low, config.high, config.steps)
    losses: list[float] = []
    with runtime.cpu_settings(recipe):
        state = State(recipe, store, chosen, init_from)
        network = state.network.train()
        loader, _ = training_loader(state, store, num_workers)
        batches = endless_batches(loader, recipe.crop_size(0, network.image_size))
        for rate in rates.tolist():
            state.schedule.recipe = recipe.replace(lr=rate)
            loss, _ = loop.train_step(state, next(batches))
            state.position.step += 1
            if not math.isfinite(loss):
                break
            losses.append(loss)
            smoothed = smooth(losses)
            if smoothed[-1] > DIVERGED * smoothed.min():
                break
    made = rates[: len(losses)]
    if len(losses) < MIN_STEPS:
        raise RecipeError(
            f"the loss diverges after {len(losses)} steps, at a learning rate of {rates[len(losses)]:.2g}",
            "",
            "pass a lower --low",
        )
    smoothed = smooth(losses)
    lowest = lowest_loss(made, smoothed)
    suggestion = SUGGESTED_FRACTION * lowest
    result = LRFindResult(
        tuple(made.tolist()), tuple(losses), tuple(smoothed.tolist()), suggestion * scale, lowest * scale, plot
    )
    _draw(result, recipe, store.name, suggestion)
    return result


def smooth(losses: Sequence[float]) -> NDArray[np.float64]:
    """The exponential moving average of losses [N], corrected for its start: [N]."""
    average, results = 0.0, []
    for step, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        results.append(average / (1 - SMOOTHING**step))
    return np.array(results)


def lowest_loss(rates: NDArray[np.float64], smoothed: NDArray[np.float64]) -> float:
    """The rate of the lowest smoothed loss. The first tenth of the steps, averages of few losses, is left out.

    Raises:
        RecipeError: The loss does not fall.
    """
    start = len(rates) // 10
    lowest = start + int(smoothed[start:].argmin())
    if smoothed[lowest] > 0.99 * smoothed[start]:
        raise RecipeError(
            f"the loss does not fall at learning rates from {rates[0]:.2g} to {rates[-1]:.2g}",
            "",
            "pass another --low and --high, or more --steps",
        )
    return float(rates[lowest])


def _draw(result: LRFindResult, recipe: Recipe, name: str, rate: float) -> None:
    from alexnet.plots import studies

    title = f"Learning rate range test: {recipe.model} on {name}, batches of {recipe.batch_size}"
    studies.draw_lr_find(title, result.rates, result.losses, result.smoothed, rate, result.plot)
