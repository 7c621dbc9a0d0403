"""Divides the time budget of a contest: the epochs of each network follow from measured training steps."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from alexnet.data.atomic_io import json_bytes, write_file
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store
from alexnet.errors import RunError
from alexnet.experiments import time_budget
from alexnet.experiments.contest.plan import BASELINE, CONTESTANTS, FINAL_FRACTION, Contestant, ContestPlan
from alexnet.experiments.contest.train import TimeLog, read_result
from alexnet.experiments.runner import read_file
from alexnet.experiments.time_budget import (
    SAFETY_FACTOR,
    TrainingSpeed,
    fit_epochs,
    format_duration,
    training_seconds,
    with_epochs,
)
from alexnet.recipe import Recipe, from_dict
from alexnet.training import runtime

MEASURING = "measuring"  # key in the time log: measurements that belong to no contestant
MIN_EPOCHS = 3  # a default contestant without time for so many is left out


@dataclass
class _RecipesFile:
    """Content of ``recipes.json``."""

    recipes: dict[str, dict[str, Any]]
    left_out: dict[str, str]
    speeds: dict[str, TrainingSpeed]


@dataclass(frozen=True)
class FittedPlan:
    """A plan that fits into its budget: the contestants that take part, recipes of the networks, and who is out."""

    plan: ContestPlan
    recipes: dict[str, Recipe]
    left_out: dict[str, str]  # contestant -> reason

    @property
    def messages(self) -> tuple[str, ...]:
        """One line for each contestant that is left out."""
        return tuple(f"left out: {CONTESTANTS[name].title}: {reason}" for name, reason in self.left_out.items())


def next_share(budget: float, elapsed: float, remaining: int, equal_share: float) -> float:
    """Seconds for the next of ``remaining`` contestants: the equal share, or less where others took longer."""
    return max(0.0, min(equal_share, (budget * (1 - FINAL_FRACTION) - elapsed) / max(remaining, 1)))


def fit_plan(
    plan: ContestPlan,
    store: Store,
    folder: Path,
    time_log: TimeLog,
    device: torch.device,
    options: DataOptions,
    preparation_seconds: float,
) -> FittedPlan:
    """Measure each network and choose the epochs that fit into its share; recorded in ``recipes.json``.

    Args:
        plan: The plan.
        store: The prepared dataset.
        folder: Folder of the contest.
        time_log: Time spent so far.
        device: Device of the trainings.
        options: For logging.
        preparation_seconds: Time that preparing the images took.

    Raises:
        RecipeError: A network that the user named has no time for one epoch.
    """
    path = folder / "recipes.json"
    if path.is_file():
        recorded = read_file(path, _RecipesFile)
        recipes = {name: from_dict(values) for name, values in recorded.recipes.items()}
        return FittedPlan(_without(plan, recorded.left_out), recipes, recorded.left_out)
    requested = {
        contestant.name: runtime.resolve_auto(plan.recipe(contestant), device)
        for contestant in plan.contestants
        if contestant.model
    }
    if not plan.budget:
        return FittedPlan(plan, requested, {})
    options.log_line("measuring a few steps of each network")
    with time_log.timing(MEASURING):
        speeds = {name: time_budget.measure_training(recipe, store, device) for name, recipe in requested.items()}
    fitted = _divide(plan, requested, speeds, _counts(store), preparation_seconds + time_log.total)
    for message in fitted.messages:
        options.log_line(message)
    file = _RecipesFile({name: recipe.to_dict() for name, recipe in fitted.recipes.items()}, fitted.left_out, speeds)
    write_file(path, json_bytes(asdict(file)))
    return fitted


def _divide(
    plan: ContestPlan,
    recipes: Mapping[str, Recipe],
    speeds: Mapping[str, TrainingSpeed],
    counts: list[int],
    elapsed: float,
) -> FittedPlan:
    """Fit the epochs; of the default contestants, leave out the slowest until each has :data:`MIN_EPOCHS`."""
    left_out: dict[str, str] = {}
    while True:
        reduced = _without(plan, left_out)
        names = [contestant.name for contestant in reduced.contestants if contestant.model]
        share = next_share(plan.budget, elapsed, len(reduced.contestants), reduced.equal_share)
        seconds = SAFETY_FACTOR * share
        minimum = {
            name: training_seconds(with_epochs(recipes[name], MIN_EPOCHS), speeds[name], plan.image_size, counts)
            for name in names
        }
        slow = [name for name in names if minimum[name] > seconds and name != BASELINE]
        if not plan.default_contestants or not slow:
            fitted = {name: fit_epochs(recipes[name], speeds[name], plan.image_size, counts, seconds) for name in names}
            return FittedPlan(reduced, fitted, left_out)
        slowest = max(slow, key=lambda name: minimum[name])
        left_out[slowest] = (
            f"{MIN_EPOCHS} epochs take {format_duration(minimum[slowest])} on this machine, its share is "
            f"{format_duration(seconds)}; pass a longer --budget, smaller crops (--image-size), or name it in --nets"
        )


def _without(plan: ContestPlan, names: Mapping[str, str]) -> ContestPlan:
    return replace(plan, contestants=tuple(c for c in plan.contestants if c.name not in names))


def _counts(store: Store) -> list[int]:
    return [len(store.split(name)) for name in ("train", "validation", "test")]


def reduce_epochs(
    plan: ContestPlan, contestant: Contestant, recipe: Recipe, store: Store, folder: Path, elapsed: float
) -> Recipe:
    """Return ``recipe`` with fewer epochs (at least one) where earlier contestants took longer than planned.

    A training that has started keeps its epochs.
    """
    name, path = contestant.name, folder / "recipes.json"
    if not plan.budget or (folder / name / "run.json").is_file():
        return recipe
    file = read_file(path, _RecipesFile)
    speed = file.speeds.get(name)
    if speed is None or name not in file.recipes:
        raise RunError(f"{path} has no measurement of {name}", "", "choose another --output-dir")
    remaining = sum(read_result(each.name, folder) is None for each in plan.contestants)
    seconds = SAFETY_FACTOR * next_share(plan.budget, elapsed, remaining, plan.equal_share)
    while recipe.epochs > 1 and training_seconds(recipe, speed, plan.image_size, _counts(store)) > seconds:
        recipe = with_epochs(recipe, recipe.epochs - 1)
    file.recipes[name] = recipe.to_dict()
    write_file(path, json_bytes(asdict(file)))
    return recipe
