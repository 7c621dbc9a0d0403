"""Runs a contest: several classifiers on one dataset, one split and one time budget, and a table of their results.

The same call again reuses finished contestants and continues with the others.
"""

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from alexnet.data.atomic_io import json_bytes, write_file
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store
from alexnet.errors import RunError
from alexnet.experiments.contest.plan import FINAL_FRACTION, FISHER, Contestant, ContestPlan, check_folder
from alexnet.experiments.contest.results import (
    IN_2012,
    Latency,
    ResultRow,
    csv_text,
    draw,
    load_predictor,
    markdown,
    measure_latency,
    result_rows,
    verdict,
)
from alexnet.experiments.contest.train import (
    MEASURING,
    ContestantResult,
    Predictions,
    TimeLog,
    fit_plan,
    next_share,
    read_result,
    reduce_epochs,
    train_fisher,
    train_network,
)
from alexnet.experiments.fisher.classifier import FisherSettings
from alexnet.experiments.fisher.train import fit_settings
from alexnet.experiments.runner import Dataset, prepare_store, read_file, write_result
from alexnet.recipe import Recipe
from alexnet.system import choose_device
from alexnet.terminal import format_duration
from alexnet.training import run_folder
from alexnet.training.time_budget import SAFETY_FACTOR

MAX_LATENCY_SECONDS = 60.0  # for measuring latency without a time budget


@dataclass(frozen=True)
class ContestResult:
    """Result of a contest."""

    plan: ContestPlan
    counts: dict[str, int]  # images of each split
    num_classes: int
    rows: tuple[ResultRow, ...]
    verdict: str
    notes: tuple[str, ...]  # limits of the numbers
    folder: Path
    seconds: float  # of all calls
    left_out: dict[str, str]  # contestant -> reason

    @property
    def image(self) -> Path:
        """The plot."""
        return self.folder / "contest.png"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "plan": self.plan.to_dict(),
            "counts": self.counts,
            "classes": self.num_classes,
            "contestants": [row.to_dict() for row in self.rows],
            "verdict": self.verdict,
            "in_2012": IN_2012,
            "notes": list(self.notes),
            "left_out": self.left_out,
            "seconds": round(self.seconds, 1),
            "machine": {"cores": os.cpu_count(), "torch": torch.__version__, "processor": platform.machine()},
        }


def run_contest(
    plan: ContestPlan,
    dataset: Dataset,
    folder: Path,
    options: DataOptions,
    *,
    device: str = "auto",
    num_workers: int = 1,
) -> ContestResult:
    """Run a contest in ``folder``.

    Args:
        plan: Plan of :func:`alexnet.experiments.contest.plan.make_plan`.
        dataset: The dataset of the plan.
        folder: Gets contest.json, contest.csv, contest.md, contest.png and a folder for each contestant.
        options: Cache folder, logging and layout of the dataset.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        num_workers: Data-loading threads.

    Raises:
        RunError: The folder holds another contest.
        Interrupted: A signal stopped a training; the same call continues it.
    """
    check_folder(plan, folder)
    with run_folder.locked(folder):
        return _Contest(plan, dataset, folder, options, device, num_workers).run()


@dataclass(frozen=True)
class _StoreFile:
    """Content of ``store.json``: the images of the contest."""

    path: str
    fingerprint: str


class _Contest:
    """One call of :func:`run_contest`."""

    def __init__(
        self, plan: ContestPlan, dataset: Dataset, folder: Path, options: DataOptions, device: str, num_workers: int
    ) -> None:
        started = time.perf_counter()
        self.folder, self.options, self.device_name, self.num_workers = folder, options, device, num_workers
        recipe = plan.base.replace(stored_size=plan.stored_size)
        self.store = prepare_store(dataset, recipe, plan.images, options)
        write_result(folder / "plan.json", plan.to_dict())
        write_result(folder / "store.json", asdict(_check_store(self.store, folder)))
        self.time_log = TimeLog(folder)
        self.preparation_seconds = time.perf_counter() - started
        self.device = choose_device(device)
        self.fitted = fit_plan(plan, self.store, folder, self.time_log, self.device, options, self.preparation_seconds)
        self.plan = self.fitted.plan

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return self.preparation_seconds + self.time_log.total

    def run(self) -> ContestResult:
        """Train the contestants that are not finished, then compare all."""
        results: dict[str, ContestantResult] = {}
        # Fisher vectors first: their time cannot be planned exactly, and the others share what is left.
        order = sorted(self.plan.contestants, key=lambda contestant: contestant.name != FISHER)
        for number, contestant in enumerate(order, 1):
            result = read_result(contestant.name, self.folder)
            if result is None:
                recipe = self.fitted.recipes.get(contestant.name)
                epochs = "" if recipe is None else f", {recipe.epochs} epoch{'s' * (recipe.epochs > 1)}"
                self.options.log_line(f"{number} of {len(order)}: {contestant.title}{epochs}")
                result = self._train(contestant, recipe)
            self.options.log_line(f"  {_summary(result)}")
            results[contestant.name] = result
        results = {contestant.name: results[contestant.name] for contestant in self.plan.contestants}
        return self._compare(results)

    def _train(self, contestant: Contestant, recipe: Recipe | None) -> ContestantResult:
        if recipe is not None:
            recipe = reduce_epochs(self.plan, contestant, recipe, self.store, self.folder, self.elapsed)
            return train_network(
                contestant,
                recipe,
                self.store,
                self.folder,
                self.time_log,
                device=self.device_name,
                num_workers=self.num_workers,
                pretrained=self.plan.pretrained,
                log=self.options.log_line,
            )
        seconds = float("inf")
        if self.plan.budget:
            share = next_share(self.plan.budget, self.elapsed, len(self.plan.contestants), self.plan.equal_share)
            seconds = SAFETY_FACTOR * share
        settings = fit_settings(FisherSettings(image_size=self.plan.image_size), self.store, seconds)
        return train_fisher(
            contestant.name,
            settings,
            self.store,
            self.folder,
            self.time_log,
            seed=self.plan.seed,
            log=self.options.log_line,
        )

    def _compare(self, results: Mapping[str, ContestantResult]) -> ContestResult:
        labels = self.store.split("test").labels
        predictions = {
            name: Predictions.load(self.folder / f"{name}.npz", result.predictions_sha256, labels)
            for name, result in results.items()
            if not result.diverged
        }
        latencies = self._latencies(list(predictions))
        groups = self.store.split("test").groups
        rows = result_rows(results, predictions, latencies, groups)
        result = ContestResult(
            plan=self.plan,
            counts={name: len(split) for name, split in self.store.splits.items()},
            num_classes=len(self.store.classes),
            rows=tuple(rows),
            verdict=verdict(rows),
            notes=(*self.fitted.messages, *_notes(self.plan, self.store, rows, groups)),
            folder=self.folder,
            seconds=self.elapsed,
            left_out=self.fitted.left_out,
        )
        _save(result)
        return result

    def _latencies(self, names: list[str]) -> dict[str, Latency]:
        """Measure the latencies, or read them if the same contestants were measured before."""
        path = self.folder / "latency.json"
        if path.is_file():
            recorded = read_file(path, dict[str, Latency])
            if set(recorded) == set(names):
                return recorded
        self.options.log_line("measuring milliseconds per image, interleaved")
        max_seconds = self.plan.budget * FINAL_FRACTION / 2 if self.plan.budget else MAX_LATENCY_SECONDS
        with self.time_log.timing(MEASURING):
            predictors = {name: load_predictor(name, self.folder / name, self.device) for name in names}
            latencies = measure_latency(predictors, self.store.split("test"), max_seconds)
        write_result(path, {name: vars(latency) for name, latency in latencies.items()})
        return latencies


def _check_store(store: Store, folder: Path) -> _StoreFile:
    path = folder / "store.json"
    if path.is_file() and read_file(path, _StoreFile).fingerprint != store.fingerprint:
        raise RunError(f"{folder} holds a contest on other images", "", "choose another --output-dir")
    return _StoreFile(store.absolute, store.fingerprint)


def _summary(result: ContestantResult) -> str:
    if result.diverged:
        return f"diverged: {result.diverged}"
    error = "" if result.validation_error is None else f"{100 * result.validation_error:.1f} % validation error, "
    return f"{error}{format_duration(result.seconds)}"


def _notes(plan: ContestPlan, store: Store, rows: list[ResultRow], groups: tuple[str, ...]) -> tuple[str, ...]:
    """Limits of the numbers, for every output."""
    notes = [
        f"one seed ({plan.seed}): intervals and p-values are over the {len(store.split('test'))} test images"
        f"{' in groups' if groups else ''}, not over trainings",
        "the recipe was tuned for AlexNet on a few thousand images (docs/log.md); the other networks use it with "
        "their own input scale, initialization and learning rate",
        IN_2012,
    ]
    if plan.budget:
        notes.append("with equal time a deeper network sees fewer images: a faster machine may change the order")
    names = {row.contestant.name for row in rows if not row.result.diverged}
    if names & {"googlenet", "inception_v3"}:
        notes.append("parameters of Inception networks are without auxiliary heads; the file on disk is with them")
    if FISHER in names:
        notes.append("multiply-adds of Fisher vectors are those of matrix multiplications, without SIFT")
    return tuple(notes)


def _save(result: ContestResult) -> None:
    title = f"Contest on {result.plan.data}"
    images = f"{result.counts['train']} training images, {result.counts['test']} test images, "
    images += f"{result.num_classes} classes"
    draw(title, f"{images}. {result.verdict}", result.rows, result.image)
    write_file(result.folder / "contest.json", json_bytes(result.to_dict()))
    write_file(result.folder / "contest.csv", csv_text(result.rows).encode())
    text = markdown(f"{title}: {images}", result.rows, (result.verdict, *result.notes))
    write_file(result.folder / "contest.md", text.encode())
