"""Runs the plan of a claim: prepares the images, selects learning rates, trains, measures, judges, plots and saves."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet.data.atomic_io import json_bytes, write_file
from alexnet.data.sources.options import DataOptions
from alexnet.errors import TrainingError
from alexnet.experiments.claims.gradients import Gradients, measure_gradients
from alexnet.experiments.claims.plan import CRITERIA, Plan
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
    read_plan,
    write_result,
)


@dataclass(frozen=True)
class ClaimResult:
    """Result of a claim's plan."""

    plan: Plan
    counts: dict[str, int]  # images of each split
    learning_rates: dict[str, float]  # selected, by variant
    searches: tuple[TrainedModel, ...]
    models: tuple[TrainedModel, ...]
    measurements: tuple[Measurement, ...]
    numbers: dict[str, list[float]]  # what the plot shows: label -> one value per seed
    verdict: Verdict
    image: Path
    seconds: float  # of all trainings
    gradients: tuple[Gradients, ...] = ()  # of each variant's training of seed 0, for claims about training speed

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "plan": self.plan.to_dict(),
            "counts": self.counts,
            "learning_rates": self.learning_rates,
            "searches": [_model_dict(model, self.plan) for model in self.searches],
            "models": [_model_dict(model, self.plan) for model in self.models],
            "measurements": [measurement.to_dict() for measurement in self.measurements],
            "numbers": self.numbers,
            "verdict": self.verdict,
            "image": str(self.image),
            "seconds": round(self.seconds, 1),
            "gradients": [
                {
                    "variant": one.variant,
                    **{when: [layer._asdict() for layer in getattr(one, when)] for when in ("initial", "trained")},
                }
                for one in self.gradients
            ],
        }

    @property
    def gradients_image(self) -> Path:
        """The plot of :attr:`gradients`."""
        return self.image.with_name(f"{self.plan.claim.name}-gradients.png")


def run_claim(
    plan: Plan, dataset: Dataset, folder: Path, options: DataOptions, *, device: str = "auto", num_workers: int = 1
) -> ClaimResult:
    """Test a claim in ``folder``. Finished trainings are reused, an interrupted training is resumed.

    Args:
        plan: Plan of :func:`alexnet.experiments.claims.plan.make_plan`.
        dataset: The dataset of the plan.
        folder: Gets plan.json, a run folder for each training, result.json and a plot.
        options: Cache folder, logging and layout of the dataset.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        num_workers: Data-loading threads.

    Raises:
        RunError: The folder holds another plan.
        TrainingError: No learning rate works, or a training diverged.
        Interrupted: A signal stopped a training; the same call continues it.
    """
    check_same_plan(plan.to_dict(), read_plan(folder, "claim"), folder, "plan", ignore=("seeds", "trainings"))
    first_job = plan.job(plan.variants[0], plan.learning_rates[0], 0)
    store = prepare_store(dataset, first_job.recipe, plan.images, options)
    write_result(folder / "plan.json", plan.to_dict())
    runner = Runner(store, folder, options, plan.num_trainings, device=device, num_workers=num_workers)

    searches: dict[str, TrainedModel] = {}
    for job in plan.search_jobs():
        searches[job.folder_name] = runner.train(_limit_epochs(plan, job, searches.values()))
    learning_rates = _select_learning_rates(plan, list(searches.values()))
    models = [searches.get(job.folder_name) or runner.train(job) for job in plan.jobs(learning_rates)]
    for model in models:
        if model.diverged:
            raise TrainingError(f"{model.job.label}: {model.diverged}", "", "pass lower --lrs")

    speed = plan.claim.criterion == "epochs_to_error"
    measurements, numbers = CRITERIA[plan.claim.criterion](plan, _by_variant(plan, models), device)
    result = ClaimResult(
        plan=plan,
        counts={name: len(split) for name, split in store.splits.items()},
        learning_rates=learning_rates,
        searches=tuple(searches.values()),
        models=tuple(models),
        measurements=tuple(measurements),
        numbers=numbers,
        verdict=overall_verdict(measurements),
        image=folder / f"{plan.claim.name}.png",
        seconds=sum(m.seconds for m in {m.folder: m for m in (*searches.values(), *models)}.values()),
        gradients=tuple(measure_gradients(model) for model in models if speed and model.job.recipe.seed == 0),
    )
    _draw(result)
    write_file(folder / "result.json", json_bytes(result.to_dict()))
    return result


def _limit_epochs(plan: Plan, job: Job, earlier: Iterable[TrainedModel]) -> Job:
    """Limit a search to the epochs of the variant's best learning rate so far: with more it cannot be the best."""
    if plan.claim.criterion != "epochs_to_error":
        return job
    reached = [model.epochs_to(plan.train_error) for model in earlier if model.job.variant == job.variant]
    epochs = min([job.recipe.epochs, *(math.ceil(epochs) for epochs in reached if epochs)])
    return job._replace(recipe=job.recipe.replace(epochs=epochs))


def _select_learning_rates(plan: Plan, searches: Sequence[TrainedModel]) -> dict[str, float]:
    """Best learning rate of each variant, by epochs to the training error or by validation error."""
    if not searches:
        return {variant.name: plan.learning_rates[0] for variant in plan.variants}
    selected = {}
    for name, candidates in _by_variant(plan, searches).items():
        best = min(candidates, key=lambda model: _search_rank(plan, model))
        if best.diverged:
            raise TrainingError(f"{name}: no learning rate works; {best.diverged}", "", "pass lower --lrs")
        selected[name] = best.job.recipe.lr
    return selected


def _search_rank(plan: Plan, model: TrainedModel) -> tuple[float, float]:
    if model.diverged:
        return float("inf"), float("inf")
    if plan.claim.criterion != "epochs_to_error":
        return model.best_validation_error, 0.0
    epochs = model.epochs_to(plan.train_error)
    return float("inf") if epochs is None else epochs, min(model.train_errors)


def _by_variant(plan: Plan, models: Sequence[TrainedModel]) -> dict[str, list[TrainedModel]]:
    return {variant.name: [model for model in models if model.job.variant == variant.name] for variant in plan.variants}


def _model_dict(model: TrainedModel, plan: Plan) -> dict[str, Any]:
    recipe, has_epochs = model.job.recipe, bool(model.epochs)
    return {
        "variant": model.job.variant,
        "model": recipe.model,
        "lr": recipe.lr,
        "seed": recipe.seed,
        "run": str(model.folder),
        "diverged": model.diverged,
        "epochs": len(model.epochs),
        "train_error": model.train_errors[-1] if has_epochs else None,
        "validation_error": model.best_validation_error if has_epochs else None,
        "epochs_to_train_error": model.epochs_to(plan.train_error) if plan.train_error and has_epochs else None,
        "test_top1_error": model.metrics["test"]["top1_error"] if model.metrics else None,
        "seconds": round(model.seconds, 1),
    }


def _draw(result: ClaimResult) -> None:
    from alexnet.plots import studies as plot

    plan, speed = result.plan, result.plan.claim.criterion == "epochs_to_error"
    lines = [
        plot.Line(name, [100 * error for error in model.train_errors], style)
        for style, (name, models) in enumerate(_by_variant(plan, result.models).items())
        for model in models
    ]
    plot.draw_claims(
        f"{plan.claim.name}: {result.verdict}",
        f"{plan.data}, {result.counts['train']} training images, {plan.seeds} seed{'s' * (plan.seeds > 1)}",
        lines,
        100 * plan.train_error,
        [plot.ClaimBar(label, values) for label, values in result.numbers.items()],
        f"Epochs to {100 * plan.train_error:g} % training error" if speed else "Top-1 error in %",
        result.image,
    )
    if result.gradients:
        curves = [
            (f"{one.variant}, {when}", [(layer.layer, layer.gradient, layer.slope) for layer in layers])
            for one in result.gradients
            for when, layers in (("initial weights", one.initial), ("trained weights", one.trained))
        ]
        plot.draw_gradients(f"{plan.claim.name}: gradients and slopes by layer", curves, result.gradients_image)
