"""The plan of a claim on a dataset: base recipe, learning rates, seeds, and the job of each training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alexnet import recipe as recipes
from alexnet.errors import ModelError, RecipeError
from alexnet.experiments.claims.registry import Claim, Variant
from alexnet.experiments.dataset import Dataset
from alexnet.experiments.runner import Job
from alexnet.models import create_model, list_models
from alexnet.models.summary import summarize
from alexnet.recipe import Recipe

SMALL_STORED_SIZE, PHOTO_STORED_SIZE = 32, 256  # size of stored images in pixels
QUICK = {"images": 4000, "epochs": 12, "batch_size": 32, "seeds": 3}  # minutes on two cores
FIGURE1_TRAIN_ERROR = 0.25  # training error that Figure 1 of the paper counts epochs to


@dataclass(frozen=True)
class ClaimConfig:
    """Settings of the user; None or empty: the plan's default."""

    quick: bool = False
    seeds: int | None = None
    epochs: int | None = None
    learning_rates: tuple[float, ...] = ()
    images: int | None = None
    train_error: float | None = None

    def __post_init__(self) -> None:
        for name, minimum in (("seeds", 1), ("epochs", 1), ("images", 0)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise RecipeError(f"--{name} is {value}", f"at least {minimum}")
        if self.train_error is not None and not 0 < self.train_error < 1:
            raise RecipeError(f"--train-error is {self.train_error}", "a fraction between 0 and 1")


@dataclass(frozen=True)
class Plan:
    """A claim and the trainings that test it. All recipes are ``base`` with the changes of one variant."""

    claim: Claim
    data: str
    photos: bool  # the paper's network on 224-pixel crops; otherwise the small network
    quick: bool
    images: int  # limit of training images; 0: no limit
    seeds: int
    learning_rates: tuple[float, ...]  # with more than one, each variant's is selected on seed 0
    train_error: float  # training error whose epochs are counted; 0: the lowest that all trainings reach
    base: Recipe
    variants: tuple[Variant, ...]
    hflip: bool  # horizontal flips keep the class

    def model(self, variant: Variant) -> str:
        """Network of a variant at this plan's scale."""
        return variant.paper if self.photos else variant.small

    def job(self, variant: Variant, lr: float, seed: int) -> Job:
        """The training of a variant."""
        changes = dict(variant.changes)
        if not self.hflip:
            changes["hflip"] = 0.0
        return Job(variant.name, self.base.replace(model=self.model(variant), lr=lr, seed=seed, **changes))

    def search_jobs(self) -> list[Job]:
        """The trainings that select each variant's learning rate; none with a single candidate."""
        if len(self.learning_rates) < 2:
            return []
        return [self.job(variant, lr, 0) for variant in self.variants for lr in self.learning_rates]

    def jobs(self, selected_lrs: Mapping[str, float]) -> list[Job]:
        """The trainings that are compared, with the learning rate of each variant name."""
        return [
            self.job(variant, selected_lrs[variant.name], seed)
            for variant in self.variants
            for seed in range(self.seeds)
        ]

    @property
    def num_trainings(self) -> int:
        """Number of trainings; the selected search training is the training of seed 0."""
        search = self.search_jobs()
        return len(search) + len(self.variants) * (self.seeds - bool(search))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "claim": self.claim.name,
            "data": self.data,
            "scale": "224-pixel crops" if self.photos else "small images",
            "quick": self.quick,
            "images": self.images,
            "seeds": self.seeds,
            "learning_rates": list(self.learning_rates),
            "train_error": self.train_error,
            "models": {variant.name: self.model(variant) for variant in self.variants},
            "changes": {variant.name: dict(variant.changes) for variant in self.variants},
            "trainings": self.num_trainings,
            "recipe": self.base.to_dict(),
        }

    def describe(self) -> list[str]:
        """The plan as lines of text."""
        base, search = self.base, len(self.learning_rates) > 1
        lines = [f"{self.claim.name} (section {self.claim.section}): {self.claim.statement}", ""]
        for variant in self.variants:
            changes = ", ".join(f"{recipes.option(name)} {value}" for name, value in variant.changes.items())
            lines.append(f"  {variant.name:<24} {self._cost(variant)}{'; ' + changes if changes else ''}")
        images = f"at most {self.images} training images" if self.images else "all images"
        learning_rates = ", ".join(f"{lr:g}" for lr in self.learning_rates)
        lines += [
            f"  data                     {self.data}, {images}, stored at {base.stored_size} pixels",
            f"  recipe                   optimizer {base.optimizer}, batch size {base.batch_size}, {_schedule(base)}",
            f"  learning rate            {'one of ' if search else ''}{learning_rates}"
            + (f", selected for each network by {self._selection()} of seed 0" if search else ""),
            f"  selected weights         {_selected_weights(base)}; the test split is evaluated once and selects "
            "nothing",
            f"  trainings                {self.num_trainings}: {self.seeds} seed{'s' * (self.seeds > 1)} of each "
            "network" + (", and the learning rate search" if search else ""),
        ]
        if self.seeds < 2 and self.claim.criterion != "ensemble":
            lines.append("  one seed gives no interval, so the verdict is inconclusive: pass --seeds 3 or more")
        return lines

    def _selection(self) -> str:
        if self.train_error:
            return f"the epochs to {100 * self.train_error:g} % training error"
        return "the validation error"

    def _cost(self, variant: Variant) -> str:
        model = self.model(variant)
        with torch.device("meta"):
            summary = summarize(create_model(model))
        return f"{model}: {summary.parameters:,} parameters, {summary.multiply_adds / 1e6:.1f} M multiply-adds"


def make_plan(claim: Claim, dataset: Dataset, data: str, config: ClaimConfig) -> Plan:
    """Plan the test of ``claim`` on a dataset.

    Args:
        claim: The claim.
        dataset: The opened dataset; its image size selects the paper's network or the small one.
        data: Name of the dataset for folders and titles.
        config: Settings of the user.

    Raises:
        ModelError: A network of the claim does not exist at this scale.
        RecipeError: A setting does not fit the claim.
    """
    photos = dataset.photos and not config.quick
    variants = tuple(variant for variant in claim.variants if not photos or variant.paper)
    if not variants:
        raise ModelError(f"the claim {claim.name!r} is about small images only", "", "add --quick to use them small")
    _check_models([variant.paper if photos else variant.small for variant in variants])
    speed = claim.criterion == "epochs_to_error"
    base, learning_rates, train_error = (_speed_recipe if speed else _error_recipe)(photos, config.quick)
    train_error = train_error if config.train_error is None else config.train_error
    changes: dict[str, Any] = {} if config.epochs is None else {"epochs": config.epochs}
    if train_error and speed:
        changes["stop_train_error"] = train_error
    seeds = config.seeds or (QUICK["seeds"] if config.quick else 5)
    if claim.criterion == "ensemble" and seeds < 2:
        raise RecipeError("--seeds is 1: an ensemble needs several networks", "at least 2")
    return Plan(
        claim=claim,
        data=data,
        photos=photos,
        quick=config.quick,
        images=config.images if config.images is not None else QUICK["images"] if config.quick else 0,
        seeds=seeds,
        learning_rates=config.learning_rates or (() if photos else claim.learning_rates) or learning_rates,
        train_error=train_error,
        base=base.replace(**changes),
        variants=variants,
        hflip=dataset.hflip,
    )


def _check_models(names: list[str]) -> None:
    for name in names:
        if name not in list_models():
            raise ModelError(
                f"this claim on 224-pixel crops needs the network {name!r}, which does not exist",
                "one that `alexnet models` lists",
                "add --quick to use small networks",
            )


def _error_recipe(photos: bool, quick: bool) -> tuple[Recipe, tuple[float, ...], float]:
    """Recipe, learning rates and training error for claims about test error: the paper's recipe.

    A quick plan uses a cosine schedule in place of the plateau schedule.
    """
    recipe = recipes.get_recipe("paper").replace(recipe="claims", select_weights="best", **_scale_fields(photos))
    if quick:
        recipe = recipe.replace(batch_size=QUICK["batch_size"], epochs=QUICK["epochs"], schedule="cosine")
    return recipe, (0.005 if quick else 0.01,), 0.0


def _speed_recipe(photos: bool, quick: bool) -> tuple[Recipe, tuple[float, ...], float]:
    """The same for Figure 1: constant learning rate, no regularization, until the training error is reached."""
    fields = _scale_fields(photos) | {"mean": "channel"}
    recipe = recipes.get_recipe("paper").replace(
        recipe="claims", select_weights="last", schedule="constant", epochs=90, **fields
    )
    if quick:  # each training ends at FIGURE1_TRAIN_ERROR
        recipe = recipe.replace(batch_size=QUICK["batch_size"], epochs=30)
    return recipe, (0.003, 0.01, 0.03, 0.1), FIGURE1_TRAIN_ERROR


def _scale_fields(photos: bool) -> dict[str, Any]:
    if photos:  # the 2012 code's initialization: with the paper's 0.01 in conv3 to conv5, learning starts 10x later
        return {"stored_size": PHOTO_STORED_SIZE, "initialization": "2012"}
    return {"stored_size": SMALL_STORED_SIZE, "initialization": "own"}


def _schedule(recipe: Recipe) -> str:
    schedules = {
        "cosine": "cosine schedule to 0",
        "plateau": "learning rate divided by 10 when the validation error stops falling",
        "constant": "constant learning rate",
    }
    until = f" or until {100 * recipe.stop_train_error:g} % training error" if recipe.stop_train_error else ""
    return f"at most {recipe.epochs} epochs{until}, {schedules[recipe.schedule]}"


def _selected_weights(recipe: Recipe) -> str:
    return "of the epoch with the lowest validation error" if recipe.select_weights == "best" else "of the last epoch"


def default_folder(plan: Plan, data: str) -> Path:
    """Folder of a plan without --output-dir; the same command finds it again."""
    return Path("runs") / "claims" / f"{plan.claim.name}-{data}{'-quick' if plan.quick else ''}"
