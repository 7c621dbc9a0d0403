"""What fits into the time: each network's pace is measured once, before anybody begins, and its epochs go by it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from alexnet.data.options import DataOptions
from alexnet.data.store import Store
from alexnet.data.writing import json_bytes, write_file
from alexnet.errors import RunError
from alexnet.history.contest import budget, entry, pace
from alexnet.history.contest.budget import Pace
from alexnet.history.contest.entrants import ENTRANTS, JUDGE, Entrant
from alexnet.history.contest.entry import Clock
from alexnet.history.contest.plan import Plan
from alexnet.history.plan import read_file
from alexnet.recipe import Recipe, from_dict
from alexnet.training import machine

MEASURED = "measuring"  # in the clock: paces and milliseconds, which are nobody's own
FEWEST = 3  # epochs: whom nobody has named and who has no time for so many does not take part


@dataclass
class _File:
    """``recipes.json``."""

    recipes: dict[str, dict[str, Any]]
    left_out: dict[str, str]
    paces: dict[str, Pace]


@dataclass(frozen=True)
class Fitted:
    """A contest that fits: ``plan`` with those who take part, the networks' recipes, and who does not, and why."""

    plan: Plan
    recipes: dict[str, Recipe]
    left_out: dict[str, str]

    @property
    def lines(self) -> tuple[str, ...]:
        """For people."""
        return tuple(f"left out: {ENTRANTS[name].title}: {why}" for name, why in self.left_out.items())


def fit(
    plan: Plan, store: Store, folder: Path, clock: Clock, device: torch.device, options: DataOptions, common: float
) -> Fitted:
    """Measure, and give each network the epochs for which its share is enough; found again in ``recipes.json``.

    Raises :class:`RecipeError` where a network that somebody has named has no time for one epoch.
    """
    path = folder / "recipes.json"
    if path.is_file():
        there = read_file(path, _File)
        found = {name: from_dict(values) for name, values in there.recipes.items()}
        return Fitted(_without(plan, there.left_out), found, there.left_out)
    wanted = {entrant.name: machine.settled(plan.recipe(entrant), device) for entrant in plan.entrants if entrant.model}
    if not plan.budget:  # contestants with equal epochs are not planned together
        return Fitted(plan, wanted, {})
    options.tell("measuring a few steps of each network")
    with clock.running(MEASURED):
        paces = {name: pace.measure(recipe, store, device) for name, recipe in wanted.items()}
    made = _divided(plan, wanted, paces, _counts(store), common + clock.spent)
    for line in made.lines:
        options.tell(line)
    recipes = {name: recipe.to_dict() for name, recipe in made.recipes.items()}
    write_file(path, json_bytes(asdict(_File(recipes, made.left_out, paces))))
    return made


def _divided(
    plan: Plan, wanted: Mapping[str, Recipe], paces: Mapping[str, Pace], counts: list[int], spent: float
) -> Fitted:
    """The usual contestants without those who have no time for :data:`FEWEST` epochs: the slowest goes first, and
    what it leaves is everybody's."""
    left_out: dict[str, str] = {}
    while True:
        now = _without(plan, left_out)
        names = [entrant.name for entrant in now.entrants if entrant.model]
        time = budget.CAREFUL * budget.share(plan.budget, spent, len(now.entrants), now.share)
        least = {n: budget.needed(budget.with_epochs(wanted[n], FEWEST), paces[n], plan.side, counts) for n in names}
        slow = [name for name in names if least[name] > time and name != JUDGE]
        if not plan.usual or not slow:
            recipes = {n: budget.fitted(wanted[n], paces[n], plan.side, counts, time) for n in names}
            return Fitted(now, recipes, left_out)
        slowest = max(slow, key=lambda name: least[name])
        left_out[slowest] = (
            f"{FEWEST} epochs take {budget.words(least[slowest])} here, its share is {budget.words(time)}; "
            f"more --budget, smaller views (--side), or name it in --nets"
        )


def _without(plan: Plan, names: Mapping[str, str]) -> Plan:
    return replace(plan, entrants=tuple(entrant for entrant in plan.entrants if entrant.name not in names))


def _counts(store: Store) -> list[int]:
    return [len(store.split(name)) for name in ("train", "validation", "test")]


def refitted(plan: Plan, entrant: Entrant, recipe: Recipe, store: Store, folder: Path, spent: float) -> Recipe:
    """Fewer epochs, one at least, for a network that has not begun while others took longer than they were to."""
    name, path = entrant.name, folder / "recipes.json"
    if not plan.budget or (folder / name / "run.json").is_file():
        return recipe
    written = read_file(path, _File)
    measured = written.paces.get(name)
    if measured is None or name not in written.recipes:
        raise RunError(f"{path} has no measurement of {name}", "", "choose another --run")
    left = sum(entry.finished(each.name, folder) is None for each in plan.entrants)
    time = budget.CAREFUL * budget.share(plan.budget, spent, left, plan.share)
    while recipe.epochs > 1 and budget.needed(recipe, measured, plan.side, _counts(store)) > time:
        recipe = budget.with_epochs(recipe, recipe.epochs - 1)
    written.recipes[name] = recipe.to_dict()
    write_file(path, json_bytes(asdict(written)))
    return recipe
