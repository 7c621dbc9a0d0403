"""What would be run in a contest: who, on which views, for how long; and what each contestant's recipe is."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet import recipe as recipes
from alexnet.errors import RecipeError, RunError
from alexnet.history.contest import budget as budgets
from alexnet.history.contest.entrants import FISHER, PUBLISHED, Entrant, chosen
from alexnet.history.fisher.descriptors import opencv
from alexnet.history.material import Material
from alexnet.history.plan import written
from alexnet.models import create_model
from alexnet.recipe import Recipe

PHOTOS, SMALL = (224, 256), (64, 72)  # sides of views and of stored pictures, pixels
TIME = {True: 90 * 60.0, False: 15 * 60.0}  # of a whole contest, seconds: photographs, small pictures


@dataclass(frozen=True)
class Wishes:
    """What a person asked for; None and 0: the contest's own."""

    nets: tuple[str, ...] = ()
    budget: str | None = None
    epochs: int | None = None
    pretrained: bool = False
    seed: int = 0
    side: int = 0
    pictures: int = 0


@dataclass(frozen=True)
class Plan:
    """A contest. ``budget`` seconds in all, or ``epochs`` of each network; one of them is 0."""

    data: str
    entrants: tuple[Entrant, ...]
    budget: float
    epochs: int
    pretrained: bool
    seed: int
    side: int  # of the views, pixels
    stored: int  # side of the stored pictures, pixels
    pictures: int  # most training pictures; 0: all
    base: Recipe
    usual: bool = False  # nobody has named the contestants

    def recipe(self, entrant: Entrant) -> Recipe:
        """Every number of a network's training, before its epochs are fitted to a share of the budget."""
        recipe = self.base.replace(model=entrant.model, image_size=self.side, **entrant.changes)
        if entrant.model == "lenet5_shrunk":  # a network for gray pictures
            recipe = recipe.replace(in_channels=1)
        return budgets.with_epochs(recipe, self.epochs) if self.epochs else recipe

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "data": self.data,
            "nets": [entrant.name for entrant in self.entrants],
            "budget": self.budget,
            "epochs": self.epochs,
            "pretrained": self.pretrained,
            "seed": self.seed,
            "side": self.side,
            "stored": self.stored,
            "pictures": self.pictures,
            "recipe": self.base.to_dict(),
        }

    def lines(self) -> list[str]:
        """The plan for people."""
        how = (
            f"equal time: {budgets.words(self.budget)} in all, {budgets.words(self.share)} each at most"
            if self.budget else f"equal epochs: {self.epochs} of each network"
        )  # fmt: skip
        start = "published weights" if self.pretrained else f"random weights, seed {self.seed}"
        return [
            f"contest on {self.data}: {', '.join(entrant.title for entrant in self.entrants)}",
            f"  time       {how}",
            f"  views      {self.side} pixels of {self.stored}, the same for all; one split",
            f"  start      {start}",
            "  chosen     by the validation split: each network's epoch, the runner-up's C and pyramid; tested once",
        ]

    @property
    def share(self) -> float:
        """An equal share of the budget, seconds, before anything is measured."""
        return self.budget * (1 - budgets.SPARED) / len(self.entrants)


def make(material: Material, data: str, wishes: Wishes) -> Plan:
    """The plan for these pictures. Raises :class:`RecipeError`, and :class:`ModelError` or :class:`DataError` where a
    contestant needs a library that is not there."""
    entrants = chosen(wishes.nets)
    if wishes.budget is not None and wishes.epochs is not None:
        raise RecipeError("--budget and --epochs both say how long", "one of them")
    if wishes.epochs is not None and not 1 <= wishes.epochs <= 1000:
        raise RecipeError(f"--epochs is {wishes.epochs}", "from 1 to 1000")
    for name, value in (("--side", wishes.side), ("--pictures", wishes.pictures), ("--seed", wishes.seed)):
        if value < 0:
            raise RecipeError(f"{name} is {value}", "at least 0")
    time = 0.0
    if wishes.epochs is None:
        time = TIME[material.photos] if wishes.budget is None else budgets.seconds(wishes.budget)
        budgets.check(time, len(entrants))
    usual, stored = PHOTOS if material.photos else SMALL
    side = wishes.side or usual
    stored = round(side * stored / usual) if material.store is None else material.store.size
    _possible(entrants, side, wishes.pretrained)
    return Plan(
        data, entrants, time, wishes.epochs or 0, wishes.pretrained, wishes.seed, side, stored, wishes.pictures,
        _base(material, stored, wishes.seed), not wishes.nets,
    )  # fmt: skip


def _base(material: Material, stored: int, seed: int) -> Recipe:
    """``modern``, or where pictures must not be mirrored ``digits``: the same for every network."""
    named = recipes.named("modern" if material.mirror else "digits")
    fit: dict[str, Any] = {} if material.store is None else {"fit": material.store.fit}
    small = {} if material.photos else {"small_size": 0}
    return named.replace(recipe="contest", stored_size=stored, seed=seed, checkpoint_every="10min", **fit, **small)


def _possible(entrants: Sequence[Entrant], side: int, pretrained: bool) -> None:
    """Refuse at once what would fail later: a missing library, views too small, no published weights."""
    import torch

    for entrant in entrants:
        if entrant.name == FISHER:
            opencv()
            continue
        if pretrained and entrant.name not in PUBLISHED:
            raise RecipeError(
                f"--pretrained: nobody publishes weights of {entrant.name}",
                f"--nets of {', '.join(PUBLISHED)}, {FISHER}",
            )
        with torch.device("meta"):
            create_model(entrant.model, num_classes=2, image_size=side)


def same(plan: Plan, folder: Path) -> None:
    """Raise :class:`RunError` where ``folder`` holds something else than this contest."""
    there = written(folder, "contest", but=(".lock",))
    ours = json.loads(json.dumps(plan.to_dict()))
    if plan.epochs:  # contestants with equal epochs do not share anything: more may come
        ours.pop("nets")
    for name, value in ours.items():
        if there and there.get(name) != value:
            raise RunError(f"{folder} holds another contest: its {name} is different", "", "choose another --run")
