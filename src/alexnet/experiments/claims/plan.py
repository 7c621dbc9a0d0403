"""The plan of a claim on a dataset (base recipe, learning rates, seeds, trainings), and the criteria of claims.

``CRITERIA`` maps the name of a criterion to its function. Each function takes the plan, the trained models of each
variant and the device, and returns the measurements and the numbers to plot: a label and one value per seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alexnet import recipe as recipes
from alexnet.api.evaluation import evaluate
from alexnet.errors import ModelError, RecipeError
from alexnet.experiments.claims.registry import Claim, Variant
from alexnet.experiments.runner import (
    Dataset,
    Job,
    Measurement,
    Scale,
    TrainedModel,
    count_test_images,
    detectable_difference,
)
from alexnet.models import create_model, list_models
from alexnet.models.summary import summarize
from alexnet.recipe import Recipe

SCALE_FIELDS: dict[Scale, dict[str, Any]] = {  # recipe fields of each scale
    "small": {"stored_size": 32, "initialization": "own"},
    "medium": {"stored_size": 64, "initialization": "own", "epochs": 45},
    # the 2012 code's initialization: with the paper's 0.01 in conv3 to conv5, learning starts 10 times later
    "paper": {"stored_size": 256, "initialization": "2012"},
}
CROPS: dict[Scale, str] = {"small": "small images", "medium": "56-pixel crops", "paper": "224-pixel crops"}
SEEDS: dict[Scale, int] = {"small": 5, "medium": 3, "paper": 5}
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
    scale: Scale  # of the networks
    quick: bool
    images: int  # limit of training images; 0: no limit
    seeds: int
    learning_rates: tuple[float, ...]  # with more than one, each variant's is selected on seed 0
    train_error: float  # training error whose epochs are counted; 0: the lowest that all trainings reach
    base: Recipe
    variants: tuple[Variant, ...]
    hflip: bool  # horizontal flips keep the class
    test_images: int

    def job(self, variant: Variant, lr: float, seed: int) -> Job:
        """The training of a variant."""
        changes = dict(variant.changes)
        if not self.hflip:
            changes["hflip"] = 0.0
        return Job(variant.name, self.base.replace(model=variant.model(self.scale), lr=lr, seed=seed, **changes))

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
            "scale": CROPS[self.scale],
            "quick": self.quick,
            "images": self.images,
            "seeds": self.seeds,
            "learning_rates": list(self.learning_rates),
            "train_error": self.train_error,
            "models": {variant.name: variant.model(self.scale) for variant in self.variants},
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
        if self.claim.criterion == "test_error" and self.seeds >= 2:
            lines += self._detectable()
        if self.seeds < 2 and self.claim.criterion != "ensemble":
            lines.append("  one seed gives no interval, so the verdict is inconclusive: pass --seeds 3 or more")
        return lines

    def _detectable(self) -> list[str]:
        """What difference so few trainings can decide."""
        here, more = (detectable_difference(seeds, self.test_images) for seeds in (self.seeds, 2 * self.seeds))
        return [
            f"  detectable difference    {here:.1f} points by {self.seeds} seeds on {self.test_images:,} test images, "
            f"{more:.1f} points by {2 * self.seeds} seeds (80 % power, in the worst case)"
        ]

    def _selection(self) -> str:
        if self.train_error:
            return f"the epochs to {100 * self.train_error:g} % training error"
        return "the validation error"

    def _cost(self, variant: Variant) -> str:
        model = variant.model(self.scale)
        with torch.device("meta"):
            summary = summarize(create_model(model))
        return f"{model}: {summary.parameters:,} parameters, {summary.multiply_adds / 1e6:.1f} M multiply-adds"


def make_plan(claim: Claim, dataset: Dataset, data: str, config: ClaimConfig) -> Plan:
    """Plan the test of ``claim`` on a dataset.

    Args:
        claim: The claim.
        dataset: The opened dataset; its image size selects the networks.
        data: Name of the dataset for folders and titles.
        config: Settings of the user.

    Raises:
        ModelError: A network of the claim does not exist at this scale.
        RecipeError: A setting does not fit the claim.
    """
    scale: Scale = "small" if config.quick else dataset.scale
    variants = tuple(variant for variant in claim.variants if variant.model(scale))
    if not variants:
        raise ModelError(
            f"the claim {claim.name!r} has no networks for {CROPS[scale]}", "", "add --quick to use small images"
        )
    _check_models([variant.model(scale) for variant in variants])
    speed = claim.criterion == "epochs_to_error"
    base, learning_rates, train_error = (_speed_recipe if speed else _error_recipe)(scale, config.quick)
    train_error = train_error if config.train_error is None else config.train_error
    changes: dict[str, Any] = {} if config.epochs is None else {"epochs": config.epochs}
    if train_error and speed:
        changes["stop_train_error"] = train_error
    seeds = config.seeds or (QUICK["seeds"] if config.quick else SEEDS[scale])
    if claim.criterion == "ensemble" and seeds < 2:
        raise RecipeError("--seeds is 1: an ensemble needs several networks", "at least 2")
    images = config.images if config.images is not None else QUICK["images"] if config.quick else 0
    base = base.replace(**changes)
    return Plan(
        claim=claim,
        data=data,
        scale=scale,
        quick=config.quick,
        images=images,
        seeds=seeds,
        learning_rates=config.learning_rates or (claim.learning_rates if scale == "small" else ()) or learning_rates,
        train_error=train_error,
        base=base,
        variants=variants,
        hflip=dataset.hflip,
        test_images=count_test_images(dataset, base, images),
    )


def _check_models(names: list[str]) -> None:
    for name in names:
        if name not in list_models():
            raise ModelError(
                f"this claim needs the network {name!r}, which does not exist",
                "one that `alexnet models` lists",
                "add --quick to use small networks",
            )


def _error_recipe(scale: Scale, quick: bool) -> tuple[Recipe, tuple[float, ...], float]:
    """Recipe, learning rates and training error for claims about test error: the paper's recipe.

    In quick plans, and for medium networks, the schedule is cosine instead of plateau.
    """
    recipe = recipes.get_recipe("paper").replace(recipe="claims", select_weights="best", **SCALE_FIELDS[scale])
    if quick:
        recipe = recipe.replace(batch_size=QUICK["batch_size"], epochs=QUICK["epochs"])
    if quick or scale == "medium":
        recipe = recipe.replace(schedule="cosine")
    return recipe, (0.005 if quick else 0.01,), 0.0


def _speed_recipe(scale: Scale, quick: bool) -> tuple[Recipe, tuple[float, ...], float]:
    """Recipe, learning rates and training error for Figure 1: a constant rate until the training error is reached."""
    fields = {"epochs": 90, "mean": "channel"} | SCALE_FIELDS[scale]
    recipe = recipes.get_recipe("paper").replace(recipe="claims", select_weights="last", schedule="constant", **fields)
    if quick:  # each training ends at FIGURE1_TRAIN_ERROR
        recipe = recipe.replace(batch_size=QUICK["batch_size"], epochs=30)
    return recipe, (0.003, 0.01, 0.03, 0.1), FIGURE1_TRAIN_ERROR


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


Models = Mapping[str, Sequence[TrainedModel]]  # name of the variant -> one model per seed, in order
Numbers = dict[str, list[float]]
Criterion = Callable[[Plan, Models, str], tuple[list[Measurement], Numbers]]


def test_error(plan: Plan, models: Models, device: str) -> tuple[list[Measurement], Numbers]:
    """Test error of each other variant minus that of the paper's configuration."""
    baseline, *others = plan.variants
    scores = {variant.name: _test_scores(models[variant.name], device) for variant in plan.variants}
    measurements = []
    for variant in others:
        in_paper = variant is others[0] or plan.claim.name == "depth"
        for metric in _metrics(models[baseline.name]):
            errors, baseline_errors = ([_percent(s, metric) for s in scores[v.name]] for v in (variant, baseline))
            measurements.append(
                Measurement(
                    f"{_title(metric)} test error: {variant.name} − {baseline.name}",
                    plan.claim.published.get(metric, "") if in_paper else "",
                    _differences(errors, baseline_errors),
                    primary=metric == "top1" and in_paper,
                )
            )
    return measurements, {name: [_percent(s) for s in of_variant] for name, of_variant in scores.items()}


def generalization_gap(plan: Plan, models: Models, device: str) -> tuple[list[Measurement], Numbers]:
    """Test minus training error of the other variant, minus the same of the paper's configuration."""
    baseline, other = plan.variants
    published = plan.claim.published
    numbers: Numbers = {}
    gaps, test_errors = {}, {}
    for variant in plan.variants:
        train = [_percent(model.scores("train", 1, device)) for model in models[variant.name]]
        test = [_percent(scores) for scores in _test_scores(models[variant.name], device)]
        numbers |= {f"{variant.name}: training": train, f"{variant.name}: test": test}
        gaps[variant.name], test_errors[variant.name] = _differences(test, train), test
    measurements = [
        Measurement(
            f"test − training error: {other.name} − {baseline.name}",
            published.get("gap", ""),
            _differences(gaps[other.name], gaps[baseline.name]),
            primary=True,
            note="both errors are of the selected weights on center crops, without dropout and augmentation",
        ),
        Measurement(
            f"top-1 test error: {other.name} − {baseline.name}",
            published.get("top1", ""),
            _differences(test_errors[other.name], test_errors[baseline.name]),
        ),
    ]
    if "ratio" in published:
        measurements.append(_convergence_ratio(plan, models))
    return measurements, numbers


def _convergence_ratio(plan: Plan, models: Models) -> Measurement:
    """Epochs of the paper's configuration to a training error that all models reach, divided by the other's."""
    baseline, other = plan.variants
    lowest = [min(model.train_errors) for variant in plan.variants for model in models[variant.name]]
    train_error = plan.train_error or max(lowest)
    pairs = [
        (a.epochs_to(train_error), b.epochs_to(train_error))
        for a, b in zip(models[baseline.name], models[other.name], strict=True)
    ]
    return Measurement(
        f"epochs to {100 * train_error:.1f} % training error: {baseline.name} / {other.name}",
        plan.claim.published.get("ratio", ""),
        tuple(a / b for a, b in pairs if a is not None and b is not None),
        "ratio",
        note="training error measured during training, with the recipe's dropout and augmentation",
    )


def epochs_to_error(plan: Plan, models: Models, device: str) -> tuple[list[Measurement], Numbers]:
    """Epochs of the other variant to a training error, divided by those of the paper's configuration."""
    baseline, other = plan.variants
    level = f"{100 * plan.train_error:g} %"
    ratios, notes, lower_bound = [], [], False
    for fast, slow in zip(models[baseline.name], models[other.name], strict=True):
        seed = fast.job.recipe.seed
        fast_epochs, slow_epochs = fast.epochs_to(plan.train_error), slow.epochs_to(plan.train_error)
        if fast_epochs is None and slow_epochs is None:
            notes.append(f"seed {seed}: neither variant reached {level}, the seed is excluded")
            continue
        if fast_epochs is None or slow_epochs is None:
            lower_bound = lower_bound or slow_epochs is None
            late = baseline.name if fast_epochs is None else other.name
            notes.append(f"seed {seed}: {late} did not reach {level} in its last epoch, all its epochs are counted")
        ratios.append((slow_epochs or len(slow.epochs)) / (fast_epochs or len(fast.epochs)))
    measurement = Measurement(
        f"epochs to {level} training error: {other.name} / {baseline.name}",
        plan.claim.published.get("ratio", ""),
        tuple(ratios),
        "ratio",
        primary=True,
        lower_bound=lower_bound,
        note="; ".join(notes),
    )
    numbers = {
        variant.name: [m.epochs_to(plan.train_error) or float(len(m.epochs)) for m in models[variant.name]]
        for variant in plan.variants
    }
    return [measurement], numbers


def ten_crop(plan: Plan, models: Models, device: str) -> tuple[list[Measurement], Numbers]:
    """Test error with the center crop minus test error with ten crops."""
    (variant,) = plan.variants
    note = "" if plan.hflip else "five of the ten crops are flipped; training on this dataset uses no flips"
    measurements, numbers = [], {}
    for metric in _metrics(models[variant.name]):
        center, ten = (
            [_percent(s, metric) for s in _test_scores(models[variant.name], device, crops)] for crops in (1, 10)
        )
        measurements.append(
            Measurement(
                f"{_title(metric)} test error: center crop − ten crops",
                plan.claim.published[metric],
                _differences(center, ten),
                primary=metric == "top1",
                note=note,
            )
        )
        if metric == "top1":
            numbers = {"center crop": center, "ten crops": ten}
    return measurements, numbers


def ensemble(plan: Plan, models: Models, device: str) -> tuple[list[Measurement], Numbers]:
    """Test error of each network minus test error of the mean of all networks."""
    networks = models[plan.variants[0].name]
    bundles = [model.folder / "bundle" for model in networks]
    mean_scores = evaluate(bundles, networks[0].store.absolute, device=device).to_dict()
    measurements, numbers = [], {}
    for metric in _metrics(networks):
        single = [_percent(s, metric) for s in _test_scores(networks, device)]
        mean_error = _percent(mean_scores, metric)
        measurements.append(
            Measurement(
                f"{_title(metric)} test error: one network − the mean of {len(networks)}",
                plan.claim.published.get(metric, ""),
                tuple(error - mean_error for error in single),
                primary=metric == "top1",
                note="the interval is over the networks; there is one ensemble",
            )
        )
        if metric == "top1":
            numbers = {"one network": single, f"mean of {len(networks)}": [mean_error]}
    return measurements, numbers


CRITERIA: dict[str, Criterion] = {
    "test_error": test_error,
    "generalization_gap": generalization_gap,
    "epochs_to_error": epochs_to_error,
    "ten_crop": ten_crop,
    "ensemble": ensemble,
}


def _percent(scores: Mapping[str, Any], metric: str = "top1") -> float:
    return 100.0 * float(scores[f"{metric}_error"])


def _test_scores(models: Sequence[TrainedModel], device: str, crops: int = 1) -> list[dict[str, Any]]:
    return [model.scores("test", crops, device) for model in models]


def _metrics(models: Sequence[TrainedModel]) -> tuple[str, ...]:
    """Top-5 error only with more than five classes, because otherwise it is always 0."""
    return ("top1", "top5") if len(models[0].store.classes) > 5 else ("top1",)


def _title(metric: str) -> str:
    return metric.replace("top", "top-")


def _differences(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
    return tuple(x - y for x, y in zip(a, b, strict=True))
