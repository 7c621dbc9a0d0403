"""Who takes part: nine years of networks and the runner-up of 2012, each with what its own inputs need.

Time: how it is said, how it is divided, and how many epochs fit into a share of it.

What would be run in a contest: who, on which crops, for how long; and what each contestant's recipe is.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alexnet import recipe as recipes
from alexnet.errors import RecipeError, RunError, did_you_mean
from alexnet.experiments.fisher.features import opencv
from alexnet.experiments.plan import Material, written
from alexnet.models import create_model
from alexnet.recipe import Recipe

FISHER = "fisher"
JUDGE = "alexnet"  # whom all others are compared with

# Networks made for inputs of about one rather than for gray levels; drawn as their own papers or libraries draw them.
_SCALED = {"initialization": "own", "divide_std": True}
_NORMED = _SCALED | {"lr": 0.001}  # with batch norm, a higher rate than AlexNet's learns faster


@dataclass(frozen=True)
class Contestant:
    """A contestant. ``changes``: what its recipe has different, all of it about its inputs, its start and its rate."""

    name: str  # as it is typed
    title: str  # for people
    year: int
    model: str  # of :func:`alexnet.models.create_model`; empty: Fisher vectors
    changes: Mapping[str, Any] = field(default_factory=dict)
    published: str = ""  # top-5 test error of its kind at ILSVRC, on ImageNet


_ALEXNET = "15.3 % (2012, first)"
_VGG = "7.3 % (2014, second)"
ENTRANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("alexnet", "AlexNet, two towers", 2012, "alexnet", {}, _ALEXNET),
        Contestant("alexnet_single", "AlexNet, one tower", 2012, "alexnet_single", {}),
        Contestant("alexnet_owt", "AlexNet, one weird trick", 2014, "alexnet_owt", _SCALED),
        Contestant(
            "lenet5",
            "LeNet-5",
            1998,
            "lenet5_shrunk",
            {"initialization": "own", "divide": 80.0, "dropout": 0.0, "lr": 0.001},
        ),
        Contestant("vgg11", "VGG-11", 2014, "vgg11", _SCALED | {"lr": 0.0001}, _VGG),
        Contestant("vgg11_bn", "VGG-11, batch norm", 2014, "vgg11_bn", _SCALED, _VGG),
        Contestant("vgg16", "VGG-16", 2014, "vgg16", _SCALED | {"lr": 0.0001}, _VGG),
        Contestant("vgg16_bn", "VGG-16, batch norm", 2014, "vgg16_bn", _SCALED, _VGG),
        Contestant("googlenet", "GoogLeNet (Inception)", 2014, "googlenet", _NORMED, "6.7 % (2014, first)"),
        Contestant("inception_v3", "Inception v3", 2015, "inception_v3", _NORMED),
        Contestant("resnet18", "ResNet-18", 2015, "resnet18", _NORMED, "3.6 % (2015, first)"),
        Contestant("resnet50", "ResNet-50", 2015, "resnet50", _NORMED, "3.6 % (2015, first)"),
        Contestant(FISHER, "SIFT + Fisher vectors", 2012, "", {}, "26.2 % (2012, second)"),
    )
}
USUAL = ("alexnet", "alexnet_single", "alexnet_owt", "lenet5", "vgg11_bn", "googlenet", "resnet18", FISHER)
# The networks whose published weights torchvision has.
PUBLISHED = (
    "alexnet_owt",
    "vgg11",
    "vgg11_bn",
    "vgg16",
    "vgg16_bn",
    "googlenet",
    "inception_v3",
    "resnet18",
    "resnet50",
)


def chosen(names: Sequence[str]) -> tuple[Contestant, ...]:
    """The contestants called so, in that order; none named: the usual ones. Raises :class:`RecipeError`."""
    for place, name in enumerate(names):
        if name not in ENTRANTS:
            raise RecipeError(f"--nets: unknown network {name!r}. {did_you_mean(name, ENTRANTS)}")
        if name in names[:place]:
            raise RecipeError(f"--nets names {name!r} twice", "each contestant once")
    return tuple(ENTRANTS[name] for name in names or USUAL)


LEAST = 20.0  # seconds a contestant; with less, nothing but starting is measured
MOST_EPOCHS = 90  # as in the paper: a contestant that has seen every image so often may stop early
SPARED = 0.06  # of the whole budget, for what comes after the last training: milliseconds an image, table, chart
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
            f"at least {words(least)} for so many",
            "give more time, or fewer --nets",
        )


def share(budget: float, spent: float, left: int, equal: float) -> float:
    """Seconds of the next of ``left`` contestants: an ``equal`` share, or less where others took longer than theirs."""
    return max(0.0, min(equal, (budget * (1 - SPARED) - spent) / max(left, 1)))


@dataclass(frozen=True)
class Pace:
    """How fast a contestant is here, measured: seconds."""

    small: float  # to train on an image at the recipe's small size
    full: float  # to train on an image at full size
    judge: float  # to judge an image, without learning
    fixed: float  # to begin and to end: weights drawn, checkpoints and bundle written

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return dict(vars(self))


def needed(recipe: Recipe, pace: Pace, side: int, counts: Sequence[int]) -> float:
    """Seconds that ``recipe`` takes, all of it, with ``counts`` images in train, validation and test."""
    train, validation, test = counts
    epochs = [pace.full if recipe.crop_size(epoch, side) == side else pace.small for epoch in range(recipe.epochs)]
    eval_model = recipe.epochs * validation + 2 * validation + 2 * test  # the end scores both, calibrates, and answers
    return pace.fixed + train * sum(epochs) + eval_model * pace.judge


def fitted(recipe: Recipe, pace: Pace, side: int, counts: Sequence[int], time: float) -> Recipe:
    """``recipe`` with as many epochs as fit into ``time`` seconds, :data:`MOST_EPOCHS` at most, 0 where not one does.

    Its schedule is over when its epochs are, so the rate comes to 0 when the time does.
    """
    result = 0
    for epochs in range(1, MOST_EPOCHS + 1):
        if needed(with_epochs(recipe, epochs), pace, side, counts) > time:
            break
        result = epochs
    if not result:
        least = needed(with_epochs(recipe, 1), pace, side, counts)
        raise RecipeError(
            f"one epoch of {recipe.model} takes {words(least)} here, and its share of the budget is {words(time)}",
            "",
            "give more --budget, smaller crops (--side), fewer --nets, or fewer --images",
        )
    return with_epochs(recipe, result)


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """Warm-up lasts a tenth of a short training, at most as long as the recipe has it."""
    return recipe.replace(epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs / 10))


PHOTOS, SMALL = (224, 256), (64, 72)  # sides of crops and of stored images, pixels
TIME = {True: 90 * 60.0, False: 15 * 60.0}  # of a whole contest, seconds: photographs, small images


@dataclass(frozen=True)
class Config:
    """What a person asked for; None and 0: the contest's own."""

    nets: tuple[str, ...] = ()
    budget: str | None = None
    epochs: int | None = None
    pretrained: bool = False
    seed: int = 0
    side: int = 0
    images: int = 0


@dataclass(frozen=True)
class Plan:
    """A contest. ``budget`` seconds in all, or ``epochs`` of each network; one of them is 0."""

    data: str
    contestants: tuple[Contestant, ...]
    budget: float
    epochs: int
    pretrained: bool
    seed: int
    side: int  # of the crops, pixels
    stored: int  # side of the stored images, pixels
    images: int  # most training images; 0: all
    base: Recipe
    usual: bool = False  # nobody has named the contestants

    def recipe(self, contestant: Contestant) -> Recipe:
        """Every number of a network's training, before its epochs are fitted to a share of the budget."""
        recipe = self.base.replace(model=contestant.model, image_size=self.side, **contestant.changes)
        if contestant.model == "lenet5_shrunk":  # a network for gray images
            recipe = recipe.replace(in_channels=1)
        return with_epochs(recipe, self.epochs) if self.epochs else recipe

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "data": self.data,
            "nets": [contestant.name for contestant in self.contestants],
            "budget": self.budget,
            "epochs": self.epochs,
            "pretrained": self.pretrained,
            "seed": self.seed,
            "side": self.side,
            "stored": self.stored,
            "images": self.images,
            "recipe": self.base.to_dict(),
        }

    def lines(self) -> list[str]:
        """The plan for people."""
        how = (
            f"equal time: {words(self.budget)} in all, {words(self.share)} each at most"
            if self.budget
            else f"equal epochs: {self.epochs} of each network"
        )
        start = "published weights" if self.pretrained else f"random weights, seed {self.seed}"
        return [
            f"contest on {self.data}: {', '.join(contestant.title for contestant in self.contestants)}",
            f"  time       {how}",
            f"  crops      {self.side} pixels of {self.stored}, the same for all; one split",
            f"  start      {start}",
            "  chosen     by the validation split: each network's epoch, the runner-up's C and pyramid; tested once",
        ]

    @property
    def share(self) -> float:
        """An equal share of the budget, seconds, before anything is measured."""
        return self.budget * (1 - SPARED) / len(self.contestants)


def make(material: Material, data: str, config: Config) -> Plan:
    """The plan for these images. Raises :class:`RecipeError`, and :class:`ModelError` or :class:`DataError` where a
    contestant needs a library that is not there."""
    contestants = chosen(config.nets)
    if config.budget is not None and config.epochs is not None:
        raise RecipeError("--budget and --epochs both say how long", "one of them")
    if config.epochs is not None and not 1 <= config.epochs <= 1000:
        raise RecipeError(f"--epochs is {config.epochs}", "from 1 to 1000")
    for name, value in (("--side", config.side), ("--images", config.images), ("--seed", config.seed)):
        if value < 0:
            raise RecipeError(f"{name} is {value}", "at least 0")
    time = 0.0
    if config.epochs is None:
        time = TIME[material.photos] if config.budget is None else seconds(config.budget)
        check(time, len(contestants))
    usual, stored = PHOTOS if material.photos else SMALL
    side = config.side or usual
    stored = round(side * stored / usual) if material.store is None else material.store.size
    _possible(contestants, side, config.pretrained)
    return Plan(
        data,
        contestants,
        time,
        config.epochs or 0,
        config.pretrained,
        config.seed,
        side,
        stored,
        config.images,
        _base(material, stored, config.seed),
        not config.nets,
    )


def _base(material: Material, stored: int, seed: int) -> Recipe:
    """``modern``, or where images must not be mirrored ``digits``: the same for every network."""
    named = recipes.get_recipe("modern" if material.mirror else "digits")
    fit: dict[str, Any] = {} if material.store is None else {"fit": material.store.fit}
    small = {} if material.photos else {"progressive_size": 0}
    return named.replace(recipe="contest", stored_size=stored, seed=seed, checkpoint_every="10min", **fit, **small)


def _possible(contestants: Sequence[Contestant], side: int, pretrained: bool) -> None:
    """Refuse at once what would fail later: a missing library, crops too small, no published weights."""
    import torch

    for contestant in contestants:
        if contestant.name == FISHER:
            opencv()
            continue
        if pretrained and contestant.name not in PUBLISHED:
            raise RecipeError(
                f"--pretrained: nobody publishes weights of {contestant.name}",
                f"--nets of {', '.join(PUBLISHED)}, {FISHER}",
            )
        with torch.device("meta"):
            create_model(contestant.model, num_classes=2, image_size=side)


def same(plan: Plan, folder: Path) -> None:
    """Raise :class:`RunError` where ``folder`` holds something else than this contest."""
    there = written(folder, "contest", but=(".lock",))
    ours = json.loads(json.dumps(plan.to_dict()))
    if plan.epochs:  # contestants with equal epochs do not share anything: more may come
        ours.pop("nets")
    for name, value in ours.items():
        if there and there.get(name) != value:
            raise RunError(
                f"{folder} holds another contest: its {name} is different", "", "choose another --output-dir"
            )
