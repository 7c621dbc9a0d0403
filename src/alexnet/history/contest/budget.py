"""Time: how it is said, how it is divided, and how many epochs fit into a share of it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alexnet.errors import RecipeError
from alexnet.recipe import Recipe

LEAST = 20.0  # seconds a contestant; with less, nothing but starting is measured
MOST_EPOCHS = 90  # as in the paper: a contestant that has seen every picture so often may stop early
SPARED = 0.06  # of the whole budget, for what comes after the last training: milliseconds a picture, table, chart
CAREFUL = 0.9  # of a share that is planned with; the rest is for what a few measured steps do not show

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """``40min``, ``90s``, ``1.5h`` or ``1h30min`` in seconds. Raises :class:`RecipeError`."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(h|min|s)", text)
    if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*(h|min|s)", "", text).strip():
        raise RecipeError(f"--budget is {text!r}", "a time such as 90s, 40min or 1.5h")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def words(time: float) -> str:
    """Seconds for people: ``1 h 30 min``, ``2 min 5 s``, ``8.3 s``."""
    if time < 60:
        return f"{time:.3g} s"
    minutes, rest = divmod(round(time), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" + (f" {rest} s" if rest else "")


def check(budget: float, contestants: int) -> None:
    """Raise :class:`RecipeError` if so many contestants can not begin with so little time."""
    if budget * (1 - SPARED) < LEAST * contestants:
        least = LEAST * contestants / (1 - SPARED)
        raise RecipeError(
            f"--budget of {words(budget)} leaves {contestants} contestants {words(budget / contestants)} each",
            f"at least {words(least)} for so many", "give more time, or fewer --nets",
        )  # fmt: skip


def share(budget: float, spent: float, left: int, equal: float) -> float:
    """Seconds of the next of ``left`` contestants: an ``equal`` share, or less where others took longer than theirs."""
    return max(0.0, min(equal, (budget * (1 - SPARED) - spent) / max(left, 1)))


@dataclass(frozen=True)
class Pace:
    """How fast a contestant is here, measured: seconds."""

    small: float  # to train on a picture at the recipe's small size
    full: float  # to train on a picture at full size
    judge: float  # to judge a picture, without learning
    fixed: float  # to begin and to end: weights drawn, checkpoints and bundle written

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return dict(vars(self))


def needed(recipe: Recipe, pace: Pace, side: int, counts: Sequence[int]) -> float:
    """Seconds that ``recipe`` takes, all of it, with ``counts`` pictures in train, validation and test."""
    train, validation, test = counts
    epochs = [pace.full if recipe.side(epoch, side) == side else pace.small for epoch in range(recipe.epochs)]
    judged = recipe.epochs * validation + 2 * validation + 2 * test  # the end scores both, calibrates, and answers
    return pace.fixed + train * sum(epochs) + judged * pace.judge


def fitted(recipe: Recipe, pace: Pace, side: int, counts: Sequence[int], time: float) -> Recipe:
    """``recipe`` with as many epochs as fit into ``time`` seconds, :data:`MOST_EPOCHS` at most, 0 where not one does.

    Its schedule is over when its epochs are, so the rate comes to 0 when the time does.
    """
    found = 0
    for epochs in range(1, MOST_EPOCHS + 1):
        if needed(with_epochs(recipe, epochs), pace, side, counts) > time:
            break
        found = epochs
    if not found:
        least = needed(with_epochs(recipe, 1), pace, side, counts)
        raise RecipeError(
            f"one epoch of {recipe.model} takes {words(least)} here, and its share of the budget is {words(time)}", "",
            "give more --budget, smaller views (--side), fewer --nets, or fewer --pictures",
        )  # fmt: skip
    return with_epochs(recipe, found)


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """Warm-up lasts a tenth of a short training, at most as long as the recipe has it."""
    return recipe.replace(epochs=epochs, warmup=min(recipe.warmup, epochs / 10))
