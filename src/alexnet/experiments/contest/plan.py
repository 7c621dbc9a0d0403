"""The contestants, and the plan of a contest: who takes part, on which crops, for how long, with which recipes."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alexnet import recipe as recipes
from alexnet.errors import RecipeError, did_you_mean
from alexnet.experiments.fisher.features import opencv
from alexnet.experiments.runner import Dataset, check_same_plan, read_plan
from alexnet.models import create_model, timm_models
from alexnet.recipe import Recipe
from alexnet.terminal import format_duration, parse_duration
from alexnet.training.time_budget import with_epochs

FISHER = "fisher"
BASELINE = "alexnet"  # all others are compared with it

# Networks that expect inputs of about 1 instead of gray levels, initialized as their papers or libraries do.
_SCALED = {"initialization": "own", "divide_std": True}
_BATCH_NORM = _SCALED | {"lr": 0.001}  # with batch norm, a higher learning rate than AlexNet's trains faster


@dataclass(frozen=True)
class Contestant:
    """A classifier of the contest. ``changes`` are recipe fields: input scale, initialization, learning rate."""

    name: str  # of its files, and on the command line, where timm-NAME is timm/NAME
    title: str
    year: int  # 0: not known
    model: str  # of :func:`alexnet.models.create_model`; empty: Fisher vectors
    changes: Mapping[str, Any] = field(default_factory=dict)
    published: str = ""  # top-5 test error of its architecture at ILSVRC


_ALEXNET = "15.3 % (2012, first)"
_VGG = "7.3 % (2014, second)"
CONTESTANTS = {
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
        Contestant("googlenet", "GoogLeNet (Inception)", 2014, "googlenet", _BATCH_NORM, "6.7 % (2014, first)"),
        Contestant("inception_v3", "Inception v3", 2015, "inception_v3", _BATCH_NORM),
        Contestant("resnet18", "ResNet-18", 2015, "resnet18", _BATCH_NORM, "3.6 % (2015, first)"),
        Contestant("resnet50", "ResNet-50", 2015, "resnet50", _BATCH_NORM, "3.6 % (2015, first)"),
        Contestant(FISHER, "SIFT + Fisher vectors", 2012, "", {}, "26.2 % (2012, second)"),
    )
}
DEFAULT_CONTESTANTS = (
    "alexnet",
    "alexnet_single",
    "alexnet_owt",
    "lenet5",
    "vgg11_bn",
    "googlenet",
    "resnet18",
    FISHER,
)
PRETRAINED = (  # networks with pretrained weights in torchvision
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

MIN_SECONDS = 20.0  # of one contestant; with less, only the start would be measured
FINAL_FRACTION = 0.06  # of the budget, for what follows the last training: latency, tables, plot

PHOTO_SIZES, SMALL_SIZES = (224, 256), (64, 72)  # crops and stored images, pixels
DEFAULT_BUDGET = {True: 90 * 60.0, False: 15 * 60.0}  # seconds; photographs, small images


def get_contestants(names: Sequence[str]) -> tuple[Contestant, ...]:
    """Return the named contestants in that order, or the default ones for an empty list.

    Raises:
        RecipeError: An unknown or repeated name.
    """
    for index, name in enumerate(names):
        if name not in CONTESTANTS and not name.startswith(timm_models.PREFIX):
            raise RecipeError(f"--nets: unknown network {name!r}. {did_you_mean(name, [*CONTESTANTS, 'timm/NAME'])}")
        if name in names[:index]:
            raise RecipeError(f"--nets names {name!r} twice", "each contestant once")
    return tuple(find_contestant(name.replace("/", "-")) for name in names or DEFAULT_CONTESTANTS)


def find_contestant(name: str) -> Contestant:
    """The contestant of this name; ``timm-NAME`` is a network of timm.

    Raises:
        ModelError: timm is not installed or has no such network.
    """
    return CONTESTANTS[name] if name in CONTESTANTS else _of_timm(name)


@functools.cache
def _of_timm(name: str) -> Contestant:
    from torch import nn

    own = name.removeprefix("timm-")
    network = timm_models.build(
        timm_models.PREFIX + own, 2, image_size=timm_models.image_size(timm_models.PREFIX + own)
    )
    batch_norm = any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    return Contestant(name, f"{own} of timm", 0, network.name, _BATCH_NORM if batch_norm else _SCALED)


@dataclass(frozen=True)
class ContestConfig:
    """Settings of the user; None, 0 or empty: the default of the contest."""

    nets: tuple[str, ...] = ()
    budget: str | None = None
    epochs: int | None = None
    pretrained: bool = False
    seed: int = 0
    image_size: int = 0
    images: int = 0


@dataclass(frozen=True)
class ContestPlan:
    """A contest with equal time (``budget``) or equal epochs (``epochs``); the other one is 0."""

    data: str
    contestants: tuple[Contestant, ...]
    budget: float  # seconds in all
    epochs: int  # of each network
    pretrained: bool
    seed: int
    image_size: int  # of the crops, pixels
    stored_size: int  # of the stored images, pixels
    images: int  # limit of training images; 0: no limit
    base: Recipe
    default_contestants: bool = False  # the user has named none

    def recipe(self, contestant: Contestant) -> Recipe:
        """Recipe of a network, before its epochs are fitted to the time budget."""
        recipe = self.base.replace(model=contestant.model, image_size=self.image_size, **contestant.changes)
        if contestant.model == "lenet5_shrunk":  # LeNet-5 takes gray images
            recipe = recipe.replace(in_channels=1)
        return with_epochs(recipe, self.epochs) if self.epochs else recipe

    @property
    def equal_share(self) -> float:
        """Seconds of each contestant."""
        return self.budget * (1 - FINAL_FRACTION) / len(self.contestants)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "data": self.data,
            "nets": [contestant.name for contestant in self.contestants],
            "budget": self.budget,
            "epochs": self.epochs,
            "pretrained": self.pretrained,
            "seed": self.seed,
            "image_size": self.image_size,
            "stored_size": self.stored_size,
            "images": self.images,
            "recipe": self.base.to_dict(),
        }

    def describe(self) -> list[str]:
        """The plan as lines of text."""
        time = (
            f"equal time: {format_duration(self.budget)} in all, at most {format_duration(self.equal_share)} each"
            if self.budget
            else f"equal epochs: {self.epochs} of each network"
        )
        weights = "pretrained weights of torchvision or timm" if self.pretrained else f"random, seed {self.seed}"
        return [
            f"contest on {self.data}: {', '.join(contestant.title for contestant in self.contestants)}",
            f"  time       {time}",
            f"  crops      {self.image_size} pixels of {self.stored_size}; the same crops and splits for all",
            f"  weights    {weights}",
            "  selection  by the validation split: the epoch of each network, C and pyramid of the Fisher vectors; "
            "one evaluation on the test split",
        ]


def make_plan(dataset: Dataset, data: str, config: ContestConfig) -> ContestPlan:
    """Plan a contest.

    Args:
        dataset: The opened dataset.
        data: Its name for folders and titles.
        config: Settings of the user.

    Raises:
        RecipeError: A setting is invalid.
        ModelError: A contestant needs a missing library, or larger crops.
        DataError: Fisher vectors need OpenCV, which is missing.
    """
    contestants = get_contestants(config.nets)
    if config.budget is not None and config.epochs is not None:
        raise RecipeError("--budget and --epochs exclude each other", "", "leave one out")
    if config.epochs is not None and not 1 <= config.epochs <= 1000:
        raise RecipeError(f"--epochs is {config.epochs}", "from 1 to 1000")
    for name, value in (("--image-size", config.image_size), ("--images", config.images), ("--seed", config.seed)):
        if value < 0:
            raise RecipeError(f"{name} is {value}", "at least 0")
    budget = 0.0
    if config.epochs is None:
        budget = DEFAULT_BUDGET[dataset.photos] if config.budget is None else parse_duration(config.budget)
        _check_budget(budget, len(contestants))
    default_size, default_stored = PHOTO_SIZES if dataset.photos else SMALL_SIZES
    image_size = config.image_size or default_size
    scaled_size = round(image_size * default_stored / default_size)
    stored_size = scaled_size if dataset.store is None else dataset.store.size
    _check_contestants(contestants, image_size, config.pretrained)
    return ContestPlan(
        data=data,
        contestants=contestants,
        budget=budget,
        epochs=config.epochs or 0,
        pretrained=config.pretrained,
        seed=config.seed,
        image_size=image_size,
        stored_size=stored_size,
        images=config.images,
        base=_base_recipe(dataset, stored_size, config.seed),
        default_contestants=not config.nets,
    )


def _check_budget(budget: float, num_contestants: int) -> None:
    """Refuse a budget in which not every contestant can start."""
    if budget * (1 - FINAL_FRACTION) < MIN_SECONDS * num_contestants:
        minimum = MIN_SECONDS * num_contestants / (1 - FINAL_FRACTION)
        each = format_duration(budget / num_contestants)
        raise RecipeError(
            f"--budget is {format_duration(budget)}, which is {each} for each of {num_contestants} contestants",
            f"at least {format_duration(minimum)} for these",
            "pass a longer --budget, or fewer --nets",
        )


def _base_recipe(dataset: Dataset, stored_size: int, seed: int) -> Recipe:
    """The recipe of all networks: ``modern``, or ``digits`` where flips would change the class."""
    recipe = recipes.get_recipe("modern" if dataset.hflip else "digits")
    fit: dict[str, Any] = {} if dataset.store is None else {"fit": dataset.store.fit}
    small = {} if dataset.photos else {"progressive_size": 0}
    return recipe.replace(
        recipe="contest", stored_size=stored_size, seed=seed, checkpoint_every="10min", **fit, **small
    )


def _check_contestants(contestants: Sequence[Contestant], image_size: int, pretrained: bool) -> None:
    """Refuse early what would fail later: a missing library, too small crops, no pretrained weights."""
    import torch

    for contestant in contestants:
        if contestant.name == FISHER:
            opencv()
            continue
        if pretrained and contestant.model.startswith(timm_models.PREFIX):
            if not timm_models.has_weights(contestant.model):
                raise RecipeError(f"--pretrained: timm has no weights of {contestant.model}", "leave --pretrained out")
        elif pretrained and contestant.name not in PRETRAINED:
            raise RecipeError(
                f"--pretrained: torchvision has no weights of {contestant.name}",
                f"--nets of {', '.join(PRETRAINED)}, {FISHER}",
            )
        with torch.device("meta"):
            create_model(contestant.model, num_classes=2, image_size=image_size)


def check_folder(plan: ContestPlan, folder: Path) -> None:
    """Refuse a folder that holds another contest or other files.

    With equal epochs contestants share nothing, so more may be added to a contest.

    Raises:
        RunError: The folder cannot be used for this plan.
    """
    recorded = read_plan(folder, "contest", ignore_files=(".lock",))
    check_same_plan(plan.to_dict(), recorded, folder, "contest", ignore=("nets",) if plan.epochs else ())


def default_folder(plan: ContestPlan) -> Path:
    """Folder of a contest without --output-dir; the same command finds it again."""
    time = f"{plan.epochs}epochs" if plan.epochs else f"{plan.budget:g}s"
    return Path("runs") / "contest" / f"{plan.data}-{time}{'-pretrained' if plan.pretrained else ''}"
