"""The depth study: plain and residual networks of growing depth with one recipe (He et al. 2015, section 4.2).

From some depth on, a deeper plain network has a higher training error, so overfitting is not the reason. With shortcut
connections it has not. The measure is the error of the last weights on the training and the test images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alexnet import recipe as recipes
from alexnet.data.atomic_io import json_bytes, write_file
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store
from alexnet.errors import RecipeError
from alexnet.experiments.runner import (
    Dataset,
    Job,
    Measurement,
    Runner,
    TrainedModel,
    Verdict,
    check_same_plan,
    overall_verdict,
    prepare_store,
    read_file,
    read_plan,
    write_result,
)
from alexnet.models.comparisons import DEPTHS, model_name
from alexnet.recipe import Recipe
from alexnet.system import choose_device
from alexnet.terminal import format_duration, parse_duration
from alexnet.training import runtime, time_budget
from alexnet.training.time_budget import training_seconds, with_epochs

QUICK = {"depths": (8, 20, 44), "seeds": 2, "epochs": 10, "images": 2000}
FULL = {"depths": DEPTHS, "seeds": 3, "epochs": 40, "images": 0}
IMAGE_SIZE, STORED_SIZE = 32, 36  # pixels: random crops of stored images


@dataclass(frozen=True)
class DepthConfig:
    """Settings of the user; None or empty: the plan's default."""

    quick: bool = False
    depths: tuple[int, ...] = ()
    seeds: int | None = None
    epochs: int | None = None
    budget: str | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        for name, value, minimum in (
            ("seeds", self.seeds, 1),
            ("epochs", self.epochs, 1),
            ("images", self.images, 0),
        ):
            if value is not None and value < minimum:
                raise RecipeError(f"--{name} is {value}", f"at least {minimum}")
        for depth in self.depths:
            if depth not in DEPTHS:
                raise RecipeError(f"--depths names {depth}", f"one of {', '.join(map(str, DEPTHS))} (6n + 2 layers)")
        if self.depths and len(set(self.depths)) < 2:
            raise RecipeError(f"--depths names only {self.depths[0]}", "at least two depths, to compare them")
        if self.budget is not None and self.epochs is not None:
            raise RecipeError("--budget and --epochs exclude each other", "", "leave one out")


@dataclass(frozen=True)
class DepthPlan:
    """A plain and a residual network of each depth, each trained with ``seeds`` seeds."""

    data: str
    depths: tuple[int, ...]
    seeds: int
    images: int  # limit of training images; 0: no limit
    budget: float  # seconds for all trainings; 0: the epochs are given
    base: Recipe

    @property
    def networks(self) -> list[str]:
        """Model names, by depth, the plain network first."""
        return [model_name(depth, residual) for depth in self.depths for residual in (False, True)]

    def jobs(self) -> list[Job]:
        """All trainings, seed by seed, so that an early stop leaves complete comparisons."""
        return [
            Job(network.replace("_", " "), self.base.replace(model=network, seed=seed))
            for seed in range(self.seeds)
            for network in self.networks
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "data": self.data,
            "depths": list(self.depths),
            "seeds": self.seeds,
            "images": self.images,
            "budget": self.budget,
            "trainings": len(self.jobs()),
            "recipe": self.base.to_dict(),
        }

    def describe(self) -> list[str]:
        """The plan as lines of text."""
        images = f"at most {self.images} training images" if self.images else "all images"
        epochs = f"as many as fit into {format_duration(self.budget)}" if self.budget else str(self.base.epochs)
        return [
            "depth: a deeper plain network has a higher training error, a deeper residual network has not "
            "(He et al. 2015, section 4.2)",
            f"  networks   plain and residual, {', '.join(map(str, self.depths))} layers",
            f"  data       {self.data}, {images}, crops of {IMAGE_SIZE} pixels",
            f"  epochs     {epochs}, the same for all; cosine schedule from {self.base.lr:g} to 0; last weights",
            f"  trainings  {len(self.jobs())}: {self.seeds} seed{'s' * (self.seeds > 1)} of each network",
            *(["  one seed gives no interval, so the verdict is inconclusive"] if self.seeds < 2 else []),
        ]


def make_plan(dataset: Dataset, data: str, config: DepthConfig) -> DepthPlan:
    """Plan the study for a dataset.

    Args:
        dataset: The opened dataset.
        data: Its name for folders and titles.
        config: Settings of the user.

    Raises:
        RecipeError: A setting is invalid.
    """
    defaults: dict[str, Any] = QUICK if config.quick else FULL
    store = dataset.store
    base = recipes.get_recipe("owt").replace(
        recipe="depth",
        model=model_name(8, True),
        dropout=0.0,
        image_size=IMAGE_SIZE,
        stored_size=STORED_SIZE if store is None else store.size,
        crop="random",
        hflip=0.5 if dataset.hflip else 0.0,
        validation=0.1,
        select_weights="last",
        lr=0.1,
        batch_size=64,
        schedule="cosine",
        lr_milestones=(),
        warmup_epochs=1.0,
        precision="auto",
        epochs=config.epochs or defaults["epochs"],
        checkpoint_every="10min",
        **({} if store is None else {"fit": store.fit}),
    )
    return DepthPlan(
        data=data,
        depths=tuple(sorted(set(config.depths))) or tuple(defaults["depths"]),
        seeds=config.seeds or defaults["seeds"],
        images=defaults["images"] if config.images is None else config.images,
        budget=0.0 if config.budget is None else parse_duration(config.budget),
        base=base,
    )


@dataclass(frozen=True)
class DepthResult:
    """Result of a depth study: errors in percent by network, one value per seed."""

    plan: DepthPlan
    counts: dict[str, int]  # images of each split
    models: tuple[TrainedModel, ...]
    train_errors: dict[str, list[float]]
    test_errors: dict[str, list[float]]
    measurements: tuple[Measurement, ...]
    verdict: Verdict
    image: Path

    @property
    def seconds(self) -> float:
        """Training time of all networks."""
        return sum(model.seconds for model in self.models)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "plan": self.plan.to_dict(),
            "counts": self.counts,
            "train_error": self.train_errors,
            "test_error": self.test_errors,
            "measurements": [measurement.to_dict() for measurement in self.measurements],
            "verdict": self.verdict,
            "diverged": {m.job.label: m.diverged for m in self.models if m.diverged},
            "image": str(self.image),
            "seconds": round(self.seconds, 1),
        }


def run_depth(
    plan: DepthPlan,
    dataset: Dataset,
    folder: Path,
    options: DataOptions,
    *,
    device: str = "auto",
    num_workers: int = 1,
) -> DepthResult:
    """Run the study in ``folder``. Finished trainings are reused, an interrupted training is resumed.

    Args:
        plan: Plan of :func:`make_plan`.
        dataset: The dataset of the plan.
        folder: Gets plan.json, a run folder for each training, depth.json and depth.png.
        options: Cache folder, logging and layout of the dataset.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        num_workers: Data-loading threads.

    Raises:
        RunError: The folder holds another plan.
        Interrupted: A signal stopped a training; the same call continues it.
    """
    recorded = read_plan(folder, "depth study")
    if recorded and plan.budget:  # the epochs were fitted to the budget when the study began
        fitted = read_file(folder / "plan.json", _PlanFile).recipe
        plan = replace(plan, base=plan.base.replace(epochs=fitted.epochs, warmup_epochs=fitted.warmup_epochs))
    check_same_plan(plan.to_dict(), recorded, folder, "plan", ignore=("seeds", "trainings"))
    store = prepare_store(dataset, plan.base, plan.images, options)
    if plan.budget and not recorded:
        plan = _fit_budget(plan, store, options, device)
    write_result(folder / "plan.json", plan.to_dict())
    jobs = plan.jobs()
    runner = Runner(store, folder, options, len(jobs), device=device, num_workers=num_workers)
    return _finish(plan, store, [runner.train(job) for job in jobs], folder, device)


@dataclass(frozen=True)
class _FittedEpochs:
    epochs: int
    warmup_epochs: float


@dataclass(frozen=True)
class _PlanFile:
    """The part of plan.json that a budget determines."""

    recipe: _FittedEpochs


def _fit_budget(plan: DepthPlan, store: Store, options: DataOptions, device: str) -> DepthPlan:
    """Choose as many epochs, the same for all networks, as fit into the budget by a few measured steps of each."""
    options.log_line("measuring a few steps of each network")
    chosen_device = choose_device(device)
    base = runtime.resolve_auto(plan.base, chosen_device)
    counts = [len(store.split(name)) for name in ("train", "validation", "test")]
    speeds = [
        time_budget.measure_training(
            runtime.resolve_auto(plan.base.replace(model=network), chosen_device), store, chosen_device
        )
        for network in plan.networks
    ]
    seconds = plan.budget * time_budget.SAFETY_FACTOR / plan.seeds

    def seconds_of_all(epochs: int) -> float:
        recipe = with_epochs(base, epochs)
        return sum(training_seconds(recipe, speed, IMAGE_SIZE, counts) for speed in speeds)

    if seconds_of_all(1) > seconds:
        raise RecipeError(
            f"--budget is {format_duration(plan.budget)}: one epoch of each of {len(plan.jobs())} trainings takes "
            f"{format_duration(seconds_of_all(1) * plan.seeds)}",
            "",
            "pass a longer --budget, fewer --depths or --seeds, or fewer --images",
        )
    fitting = [n for n in range(1, time_budget.MAX_EPOCHS + 1) if n == 1 or seconds_of_all(n) <= seconds]
    return replace(plan, base=with_epochs(plan.base, max(fitting)))


def _finish(plan: DepthPlan, store: Store, models: Sequence[TrainedModel], folder: Path, device: str) -> DepthResult:
    train_errors: dict[str, list[float]] = {network: [] for network in plan.networks}
    test_errors: dict[str, list[float]] = {network: [] for network in plan.networks}
    chance_error = 100 * (1 - 1 / len(store.classes))
    for model in models:
        for split, errors in (("train", train_errors), ("test", test_errors)):
            error = chance_error if model.diverged else 100 * float(model.scores(split, 1, device)["top1_error"])
            errors[model.job.recipe.model].append(error)
    measurements = measure(plan.depths, train_errors, test_errors)
    result = DepthResult(
        plan=plan,
        counts={name: len(split) for name, split in store.splits.items()},
        models=tuple(models),
        train_errors=train_errors,
        test_errors=test_errors,
        measurements=tuple(measurements),
        verdict=overall_verdict(measurements),
        image=folder / "depth.png",
    )
    _draw(result)
    write_file(folder / "depth.json", json_bytes(result.to_dict()))
    return result


def measure(
    depths: Sequence[int], train_errors: Mapping[str, Sequence[float]], test_errors: Mapping[str, Sequence[float]]
) -> list[Measurement]:
    """Compare the shallowest and the deepest networks, in points; values above 0 agree with He et al."""
    shallow, deep = min(depths), max(depths)

    def differences(errors: Mapping[str, Sequence[float]], a: str, b: str) -> tuple[float, ...]:
        return tuple(x - y for x, y in zip(errors[a], errors[b], strict=True))

    plain, residual = ({depth: model_name(depth, kind) for depth in (shallow, deep)} for kind in (False, True))
    return [
        Measurement(
            f"training error, plain: {deep} − {shallow} layers",
            "above 0",
            differences(train_errors, plain[deep], plain[shallow]),
            primary=True,
            note="last weights, center crop, no augmentation; the error of a diverged network is that of chance",
        ),
        Measurement(
            f"training error, {deep} layers: plain − residual",
            "above 0",
            differences(train_errors, plain[deep], residual[deep]),
            primary=True,
        ),
        Measurement(
            f"test error, {deep} layers: plain − residual",
            "above 0",
            differences(test_errors, plain[deep], residual[deep]),
        ),
        Measurement(
            f"test error, residual: {shallow} − {deep} layers",
            "above 0",
            differences(test_errors, residual[shallow], residual[deep]),
        ),
    ]


def _draw(result: DepthResult) -> None:
    from alexnet.plots import studies as plot

    plan = result.plan
    points = [
        plot.Point(depth, residual, result.train_errors[network], result.test_errors[network])
        for depth in plan.depths
        for residual in (False, True)
        for network in (model_name(depth, residual),)
    ]
    curves = [
        plot.Curve(
            int(model.job.recipe.model.rpartition("_")[2]),
            model.job.recipe.model.startswith("residual"),
            [100 * error for error in model.train_errors],
        )
        for model in result.models
        if model.job.recipe.seed == 0 and not model.diverged
    ]
    subtitle = f"{plan.data}, {result.counts['train']} training images, {plan.base.epochs} epochs, "
    subtitle += f"{plan.seeds} seed{'s' * (plan.seeds > 1)}; deeper plain networks train worse: {result.verdict}"
    plot.draw_depth("Depth, with and without shortcuts", subtitle, points, curves, result.image)


def default_folder(plan: DepthPlan, *, quick: bool) -> Path:
    """Folder of a study without --output-dir; the same command finds it again."""
    return Path("runs") / "depth" / f"{plan.data}{'-quick' if quick else ''}"
