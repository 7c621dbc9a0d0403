"""Trains one contestant within its share of the time budget, and stores its predictions of the test split.

A contestant leaves ``NAME.json`` (:class:`ContestantResult`), ``NAME.npz`` (:class:`Predictions`) and its own folder.
"""

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.bundle import Bundle
from alexnet.data.atomic_io import json_bytes, load_arrays, save_arrays, write_file
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store
from alexnet.errors import RunError
from alexnet.evaluation.evaluate import predict_split
from alexnet.evaluation.metrics import label_ranks
from alexnet.experiments.contest.plan import BASELINE, CONTESTANTS, FINAL_FRACTION, Contestant, ContestPlan
from alexnet.experiments.fisher import train as fisher
from alexnet.experiments.fisher.classifier import FisherSettings
from alexnet.experiments.fisher.features import num_patches
from alexnet.experiments.runner import Job, TrainedModel, get_or_train, read_file, write_result
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model, timm_models
from alexnet.models.network import AuxiliaryHead
from alexnet.models.summary import FOREIGN, summarize
from alexnet.models.torchvision_models import TorchvisionNetwork
from alexnet.recipe import Recipe, from_dict
from alexnet.system import choose_device
from alexnet.terminal import format_duration
from alexnet.training import runtime, time_budget
from alexnet.training.finetune import PretrainedWeights
from alexnet.training.run_folder import note_test
from alexnet.training.time_budget import (
    SAFETY_FACTOR,
    TrainingSpeed,
    fit_epochs,
    training_seconds,
    with_epochs,
)
from alexnet.weights import torchvision_weights


class Predictions(NamedTuple):
    """Scores of the test images and their labels. With equal scores the first class wins."""

    scores: NDArray[np.float32]  # [N, K], greater is more likely
    labels: NDArray[np.int64]  # [N]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the top-1 prediction is correct: [N]."""
        return np.asarray(self.scores.argmax(1) == self.labels)

    def in_top_k(self, k: int = 5) -> NDArray[np.bool_]:
        """Whether the label is among the first ``k`` predictions: [N]."""
        return label_ranks(self.scores, self.labels) < k

    def save(self, path: Path) -> str:
        """Write two plain arrays to an npz file and return its SHA-256."""
        return save_arrays(path, self._asdict())

    @classmethod
    def load(cls, path: Path, sha256: str, labels: NDArray[np.int64]) -> "Predictions":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.
            sha256: Its recorded SHA-256.
            labels: The labels of the test images.

        Raises:
            RunError: The file is damaged, has changed, or is of other images.
        """
        try:
            arrays = load_arrays(path, sha256)
            result = cls(arrays["scores"], arrays["labels"])
            if result.scores.ndim != 2 or not np.array_equal(result.labels, labels):
                raise ValueError("it is of other images")
            return result
        except (OSError, ValueError, KeyError) as error:
            raise RunError(
                f"{path} is damaged: {error}", "", f"delete {path.with_suffix('.json')} and run the same command again"
            ) from error


@dataclass(frozen=True)
class ContestantResult:
    """Costs of a contestant, stored beside its predictions. Seconds are wall-clock time on this machine."""

    name: str
    diverged: str = ""  # the reason where training diverged and there are no predictions
    epochs: int = 0
    seconds: float = 0.0  # in all: initialization, training, validation, checkpoints, test
    training_seconds: float = 0.0  # training only
    parameters: int = 0  # used for inference, without auxiliary heads
    multiply_adds: int = 0  # per image; of Fisher vectors without SIFT
    bytes: int = 0  # on disk, of the weights
    validation_error: float | None = None
    selected: str = ""  # what the validation split selected
    predictions_sha256: str = ""  # of its predictions, NAME.npz

    def save(self, folder: Path) -> None:
        """Write ``NAME.json`` to the folder of the contest."""
        write_result(folder / f"{self.name}.json", asdict(self))


def read_result(name: str, folder: Path) -> ContestantResult | None:
    """Return the result of a finished contestant, or None."""
    path = folder / f"{name}.json"
    return read_file(path, ContestantResult) if path.is_file() else None


class TimeLog:
    """Seconds of each contestant over all runs of the command, in ``clock.json``. A killed run is not counted."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "clock.json"
        self.seconds = read_file(self.path, dict[str, float]) if self.path.is_file() else {}

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())

    def of(self, name: str) -> float:
        """Seconds of one contestant."""
        return self.seconds.get(name, 0.0)

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``name``, also after an exception."""
        started, before = time.perf_counter(), self.of(name)
        try:
            yield
        finally:
            self.seconds[name] = before + time.perf_counter() - started
            write_result(self.path, self.seconds)


def train_network(
    contestant: Contestant,
    recipe: Recipe,
    store: Store,
    folder: Path,
    time_log: TimeLog,
    *,
    device: str,
    num_workers: int,
    pretrained: bool = False,
    log: fisher.Log = lambda text: None,
) -> ContestantResult:
    """Train or resume a network, predict the test split, and save both.

    Args:
        contestant: The contestant.
        recipe: Its recipe.
        store: The prepared dataset.
        folder: Folder of the contest.
        time_log: Receives the time of the contestant.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        num_workers: Data-loading threads.
        pretrained: Start from torchvision's weights.
        log: Receives lines of text.
    """
    run_folder = folder / contestant.name
    with time_log.timing(contestant.name):
        init_from = _pretrained_weights(contestant.model, recipe, store) if pretrained else None
        job = Job(contestant.title, recipe)
        model = get_or_train(job, store, run_folder, device=device, num_workers=num_workers, init_from=init_from)
        sha256 = ""
        if not model.diverged:
            sha256 = _predict_test(run_folder, store, folder / f"{contestant.name}.npz", choose_device(device))
            note_test(run_folder, store, "test", "contest", log)
    result = _network_result(contestant.name, model, time_log.of(contestant.name), sha256)
    result.save(folder)
    shutil.rmtree(run_folder / "checkpoints", ignore_errors=True)  # gigabytes that are not needed any more
    return result


TORCHVISION_NAMES = {"alexnet_owt": "alexnet"}  # where torchvision's name of a network differs


def _pretrained_weights(model: str, recipe: Recipe, store: Store) -> PretrainedWeights:
    if model.startswith(timm_models.PREFIX):
        return _timm_weights(model, recipe, store)
    weights = torchvision_weights.of_network(TORCHVISION_NAMES.get(model, model))
    network = create_model(model, num_classes=len(weights.classes), image_size=recipe.image_size or None)
    state = network.from_torchvision(weights.state) if isinstance(network, TorchvisionNetwork) else weights.state
    network.load_state_dict(state)
    normalization = Normalization(
        torch.tensor(weights.mean),
        torch.tensor(store.color_std).float(),
        torch.tensor(store.color_axes).float(),
        torch.tensor(weights.divide),
    )
    return PretrainedWeights(
        f"torchvision's weights of {model}",
        weights.sha256,
        network.eval(),
        weights.classes,
        normalization,
        store.size,
        recipe.fit,
        "own",
    )


def _timm_weights(model: str, recipe: Recipe, store: Store) -> PretrainedWeights:
    """The published weights of a backbone of timm, from its cache or downloaded; its classifier starts anew."""
    network, mean, std = timm_models.pretrained(model, recipe.image_size)
    normalization = Normalization(
        255 * torch.tensor(mean),
        torch.tensor(store.color_std).float(),
        torch.tensor(store.color_axes).float(),
        255 * torch.tensor(std),
    )
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    classes = ("", " ")  # no class names: the last layer is new
    name = f"timm's weights of {model}"
    return PretrainedWeights(name, digest.hexdigest(), network, classes, normalization, store.size, recipe.fit, "own")


def _predict_test(run_folder: Path, store: Store, path: Path, device: torch.device) -> str:
    """Predict the test split and write the predictions to ``path``; returns the SHA-256 of the file."""
    bundle = Bundle.load(run_folder / "bundle")
    with runtime.cpu_settings():
        predictions = predict_split(
            bundle.network.to(device),
            store.split("test"),
            bundle.normalization,
            image_size=bundle.image_size,
            channels=bundle.network.in_channels,
            device=device,
        )
    return Predictions(predictions.log_probabilities, predictions.labels).save(path)


def _network_result(name: str, model: TrainedModel, seconds: float, sha256: str) -> ContestantResult:
    if model.diverged:
        return ContestantResult(name, model.diverged, seconds=seconds)
    bundle = Bundle.load(model.folder / "bundle")
    layers = summarize(bundle.network).rows
    return ContestantResult(
        name,
        epochs=len(model.epochs),
        seconds=seconds,
        training_seconds=model.seconds,
        parameters=sum(layer.parameters for layer in layers if layer.kind != FOREIGN[AuxiliaryHead]),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        bytes=(model.folder / "bundle" / "model.safetensors").stat().st_size,
        validation_error=model.best_validation_error,
        selected=str(bundle.data.get("kept", "")),
        predictions_sha256=sha256,
    )


def train_fisher(
    name: str, settings: FisherSettings, store: Store, folder: Path, time_log: TimeLog, *, seed: int, log: fisher.Log
) -> ContestantResult:
    """Train the Fisher vector classifier, predict the test split once, and save both.

    Args:
        name: Name of the contestant.
        settings: Settings of the classifier.
        store: The prepared dataset.
        folder: Folder of the contest.
        time_log: Receives the time of the contestant.
        seed: Seed of the samples and mixtures.
        log: Receives lines of text.
    """
    own_folder = folder / name
    with time_log.timing(name), runtime.cpu_settings():  # without these settings, half of the time is page faults
        own_folder.mkdir(parents=True, exist_ok=True)
        trained = fisher.train(store, settings, own_folder, seed, log)
        file = trained.classifier.save(own_folder)
        test = store.split("test")
        sha256 = Predictions(fisher.predict(trained.classifier, test), test.labels).save(folder / f"{name}.npz")
    candidates = {"validation_error": trained.candidates, "seconds": trained.seconds}
    write_file(own_folder / "candidates.json", json_bytes(candidates))
    size = min(settings.image_size or store.size, store.size)
    classifier = trained.classifier
    best = min(trained.candidates, key=lambda key: trained.candidates[key])
    result = ContestantResult(
        name,
        epochs=1,
        seconds=time_log.of(name),
        training_seconds=sum(trained.seconds.values()),
        parameters=classifier.parameters,
        multiply_adds=classifier.multiply_adds * num_patches(size, settings.grid) + classifier.weights.size,
        bytes=file.stat().st_size,
        validation_error=trained.validation_error,
        selected=f"{best}; {settings.gaussians} Gaussians, a patch every {settings.grid.step} pixels",
        predictions_sha256=sha256,
    )
    result.save(folder)
    return result


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
    write_result(path, asdict(file))
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
    write_result(path, asdict(file))
    return recipe
