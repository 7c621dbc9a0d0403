"""Trains the jobs of an experiment on its dataset, and measures quantities with one value per seed.

Used by the claims, by the depth study and by the contest. A folder of an experiment holds ``plan.json`` and a run
folder for each job.
"""

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch

from alexnet.api.evaluation import evaluate
from alexnet.bundle import weights_sha256
from alexnet.bundle.integrity import read_config
from alexnet.data import decode
from alexnet.data.atomic_io import json_bytes, write_file
from alexnet.data.sources import is_store
from alexnet.data.sources.options import DataOptions
from alexnet.data.sources.source import Sample, Source
from alexnet.data.splits import assign_splits
from alexnet.data.store import Store
from alexnet.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    Interrupted,
    RecipeError,
    RunError,
    TrainingError,
    printable,
)
from alexnet.recipe import Recipe, differences
from alexnet.schema import PositiveInt, Probability, check, read_checksummed, with_checksum
from alexnet.system import choose_device
from alexnet.training import run_folder, runtime
from alexnet.training.callbacks import Callbacks
from alexnet.training.finetune import PretrainedWeights
from alexnet.training.logger import read_rows
from alexnet.training.run import train_run
from alexnet.training.run_data import cached

Scale = Literal["small", "medium", "paper"]  # of networks: for 32 pixels, for 64 pixels, on 224-pixel crops
MIN_MEDIUM_SIZE = 64  # shorter side in pixels from which images are of medium scale
MIN_PHOTO_SIZE = 128  # the same for photographs, trained on 224-pixel crops
MIN_PHOTO_STORE_SIZE = 224  # the same for a prepared store


class Dataset(NamedTuple):
    """A dataset that is either not prepared yet (``source``) or already a store (``store``)."""

    name: str
    source: Source | None
    store: Store | None
    scale: Scale  # the largest that the images are large enough for
    hflip: bool  # horizontal flips keep the class (false for digits)

    @property
    def photos(self) -> bool:
        """Whether the images are large enough for 224-pixel crops."""
        return self.scale == "paper"


def open_dataset(data: str, options: DataOptions) -> Dataset:
    """Open the dataset that ``data`` names: a path, a store or a built-in name.

    Raises:
        DataError: ``data`` is not a dataset.
    """
    if is_store(data):
        store = Store.open(data)
        return Dataset(store.name, None, store, _scale(store.size, MIN_PHOTO_STORE_SIZE), store.allow_hflip)
    source = options.open(data)
    first = next(images[0] for images in source.splits.values() if images)
    return Dataset(source.name, source, None, _scale(_shorter_side(first), MIN_PHOTO_SIZE), source.allow_hflip)


def _scale(size: int, photo_size: int) -> Scale:
    return "paper" if size >= photo_size else "medium" if size >= MIN_MEDIUM_SIZE else "small"


def _shorter_side(sample: Sample) -> int:
    loaded = sample.load()
    image = loaded if isinstance(loaded, np.ndarray) else decode.decode(loaded, sample.origin)
    return int(min(image.shape[:2]))


def prepare_store(dataset: Dataset, recipe: Recipe, max_images: int, options: DataOptions) -> Store:
    """Return the store that all trainings of an experiment share, so that all have the same splits.

    Args:
        dataset: The opened dataset.
        recipe: Any recipe of the experiment: its seed, stored size and split fractions are used.
        max_images: Limit for training and validation images together; half as many for the test split. 0: no limit.
        options: Cache folder, logging and layout.

    Raises:
        DataError: A given store does not fit the recipe or the limit.
    """
    if dataset.store is not None:
        return _check_store(dataset.store, recipe, max_images)
    assert dataset.source is not None
    source = subset(dataset.source, max_images) if max_images else dataset.source
    return cached(source, recipe, options)


def _check_store(store: Store, recipe: Recipe, max_images: int) -> Store:
    if (store.size, store.fit) != (recipe.stored_size, recipe.fit):
        raise DataError(
            f"store {store.address} holds images of {store.size} pixels ({store.fit})",
            f"{recipe.stored_size} ({recipe.fit})",
            "pass the original images as DATA",
        )
    for name in ("validation", "test"):
        if not len(store.split(name)):
            raise DataError(f"store {store.address} has no {name} split", "one", "prepare another store")
    if max_images and len(store.split("train")) > max_images:
        raise DataError(
            f"store {store.address} has {len(store.split('train'))} training images",
            f"at most {max_images} for this plan",
            "pass the original images as DATA, or --images 0",
        )
    return store


def count_test_images(dataset: Dataset, recipe: Recipe, max_images: int) -> int:
    """Number of test images of the store that :func:`prepare_store` returns."""
    if dataset.store is not None:
        return len(dataset.store.split("test"))
    assert dataset.source is not None
    source = subset(dataset.source, max_images) if max_images else dataset.source
    splits = assign_splits(source, validation=recipe.validation, test=recipe.test, seed=recipe.seed)
    return len(splits["test"])


def subset(source: Source, max_images: int) -> Source:
    """Keep at most ``max_images`` training images and half as many test images, evenly from each class."""
    limits = {
        "train": max_images,
        "validation": max_images // 2,
        "test": max_images // 2,
        "all": max_images * 3 // 2,
    }
    splits = {name: _first_of_each_class(samples, limits[name]) for name, samples in source.splits.items()}
    if splits == dict(source.splits):
        return source
    fingerprint = hashlib.sha256(f"{max_images} of {source.fingerprint}".encode()).hexdigest()
    return dataclasses.replace(source, splits=splits, fingerprint=fingerprint)


def _first_of_each_class(samples: tuple[Sample, ...], limit: int) -> tuple[Sample, ...]:
    """Take the first sample of each class, then the second, and so on up to ``limit``; keep the source's order."""
    if len(samples) <= limit:
        return samples
    last_rank: dict[int, int] = {}
    ranks = []
    for sample in samples:
        last_rank[sample.label] = rank = last_rank.get(sample.label, -1) + 1
        ranks.append(rank)
    indices = sorted(range(len(samples)), key=lambda i: (ranks[i], i))[:limit]
    return tuple(samples[i] for i in sorted(indices))


def display_name(data: Path | str) -> str:
    """Return a short name for folders and titles: the last part of a path, or the dataset name itself."""
    return Path(data).resolve().name if Path(data).exists() else str(data)


Verdict = Literal["holds", "does not hold", "inconclusive"]
SEED_STD = 0.2  # points, assumed: a network's error over seeds, beyond what the choice of test images explains


@dataclass(frozen=True)
class Measurement:
    """One measured quantity, one value per seed. Greater values speak for the claim.

    ``points`` are differences of percentages; no difference is 0. A ``ratio`` is averaged and judged by its logarithm,
    so that 3 times as fast and 1/3 as fast have the same weight; no difference is 1.
    """

    quantity: str
    published: str  # the paper's figure; empty where it has none
    values: tuple[float, ...]
    unit: Literal["points", "ratio"] = "points"
    primary: bool = False  # decides the verdict of the claim
    lower_bound: bool = False  # some values are lower bounds
    note: str = ""

    @property
    def mean(self) -> float | None:
        """Mean of the values (geometric mean for a ratio); None without values."""
        if not self.values:
            return None
        return self._from_linear(sum(self._linear_values()) / len(self.values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean over seeds; None with fewer than two seeds."""
        interval = t_interval(self._linear_values())
        return None if interval is None else (self._from_linear(interval[0]), self._from_linear(interval[1]))

    @property
    def verdict(self) -> Verdict:
        """The verdict from where the interval lies relative to "no difference"."""
        return judge(t_interval(self._linear_values()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "quantity": self.quantity,
            "published": self.published,
            "unit": self.unit,
            "primary": self.primary,
            "values": list(self.values),
            "mean": self.mean,
            "interval": None if self.interval is None else list(self.interval),
            "lower_bound": self.lower_bound,
            "verdict": self.verdict,
            "note": self.note,
        }

    def _linear_values(self) -> list[float]:
        return [math.log(v) for v in self.values] if self.unit == "ratio" else list(self.values)

    def _from_linear(self, value: float) -> float:
        return math.exp(value) if self.unit == "ratio" else value


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's confidence interval for the mean of independent values: mean ± t·s/√n with n − 1 degrees of freedom.

    Returns:
        The lower and upper end, or None with fewer than two values.
    """
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half_width = float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n)
    return mean - half_width, mean + half_width


def detectable_difference(seeds: int, images: int, power: float = 0.8) -> float:
    """The smallest difference of two networks' errors, in points, that :func:`judge` finds with probability ``power``.

    The difference of one seed has the variance 2·σ² + q/n, where σ is :data:`SEED_STD` and q the fraction of the n test
    images that one of the two networks alone has right. The worst case is assumed, q = 1/2: independent errors of 50 %.
    Trainings that agree more decide smaller differences. Student's statistic is noncentral then, and its square has a
    noncentral F distribution with 1 and ``seeds`` − 1 degrees of freedom.

    Args:
        seeds: Trainings of each network, at least 2.
        images: Test images.
        power: Probability that the interval does not include 0.
    """
    from scipy.special import ncfdtrinc, stdtrit

    deviation = math.sqrt(2 * SEED_STD**2 + 0.5 * 100**2 / images)  # points
    noncentrality = float(ncfdtrinc(1, seeds - 1, 1 - power, stdtrit(seeds - 1, 0.975) ** 2))
    return deviation * math.sqrt(noncentrality / seeds)


def judge(interval: tuple[float, float] | None) -> Verdict:
    """Judge by where the interval of a difference lies: above 0, below 0, or around it (or there is no interval)."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "inconclusive"
    return "holds" if interval[0] > 0 else "does not hold"


def overall_verdict(measurements: Sequence[Measurement]) -> Verdict:
    """A claim holds if all its primary measurements do; it does not hold if one of them does not."""
    verdicts = {measurement.verdict for measurement in measurements if measurement.primary}
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if verdicts == {"holds"} else "inconclusive"


T = TypeVar("T")

PLAN = "plan.json"  # in the folder of an experiment
DIVERGED = "diverged.json"  # in the folder of a training that diverged: the reason


class Job(NamedTuple):
    """One training of an experiment: the variant it belongs to, and its complete recipe."""

    variant: str
    recipe: Recipe

    @property
    def folder_name(self) -> str:
        """Name of its run folder inside the folder of the experiment."""
        return f"{self.variant.replace(' ', '-')}-lr{self.recipe.lr:g}-seed{self.recipe.seed}"

    @property
    def label(self) -> str:
        """For log lines and messages."""
        return f"{self.variant}, learning rate {self.recipe.lr:g}, seed {self.recipe.seed}"


@dataclass(frozen=True)
class _Scores:
    """The scores of a split that experiments use."""

    top1: Probability
    top1_error: Probability
    count: PositiveInt
    top5_error: Probability | None = None


@dataclass(frozen=True)
class _SavedScores(_Scores):
    """Scores in a file, and the SHA-256 of the weights that have them."""

    weights_sha256: str = ""


@dataclass(frozen=True)
class TrainedModel:
    """A finished training. ``epochs`` are the rows of results.csv; ``diverged`` is the reason where it diverged."""

    job: Job
    folder: Path
    store: Store
    epochs: tuple[dict[str, float], ...]
    metrics: dict[str, Any]
    diverged: str = ""

    @property
    def seconds(self) -> float:
        """Training time over all epochs."""
        return sum(row["seconds"] for row in self.epochs)

    @property
    def train_errors(self) -> list[float]:
        """Mean training error of each epoch, measured during training (with dropout and augmentation)."""
        return [1 - row["train_top1"] for row in self.epochs]

    @property
    def best_validation_error(self) -> float:
        """Lowest validation error of all epochs."""
        return min((1 - row["validation_top1"] for row in self.epochs), default=float("inf"))

    def epochs_to(self, train_error: float) -> float | None:
        """Epochs until the training error is at most ``train_error``, interpolated linearly; None: never reached."""
        previous = None
        for epoch, error in enumerate(self.train_errors, 1):
            if error <= train_error:
                fraction = 1.0 if previous is None else (previous - train_error) / (previous - error)
                return epoch - 1 + fraction
            previous = error
        return None

    def scores(self, split: str, crops: int, device: str) -> dict[str, Any]:
        """Scores of a split, from the bundle where it has them, otherwise computed once and cached in the folder."""
        if crops == 1 and split in self.metrics:
            try:
                return asdict(check(self.metrics[split], _Scores))
            except ValueError as error:
                raise _damaged(self.folder / "bundle" / "config.json", error, f"delete {self.folder}") from error
        path, weights = self.folder / f"scores-{split}-{crops}.json", weights_sha256(self.folder)
        if path.is_file() and (saved := read_file(path, _SavedScores)).weights_sha256 == weights:
            return asdict(saved)
        scores = evaluate(self.folder / "bundle", self.store.absolute, split=split, crops=crops, device=device)
        write_result(path, scores.to_dict() | {"weights_sha256": weights})
        return scores.to_dict()


class Runner:
    """Trains the jobs of one experiment in ``folder`` and logs a line before and after each."""

    def __init__(
        self, store: Store, folder: Path, options: DataOptions, total: int, *, device: str, num_workers: int
    ) -> None:
        self.store, self.folder, self.options, self.total = store, folder, options, total
        self.device, self.num_workers = device, num_workers
        self._count = 0

    def train(self, job: Job) -> TrainedModel:
        """Return the trained model of ``job``; see :func:`get_or_train`."""
        self._count = min(self._count + 1, self.total)
        self.options.log_line(f"training {self._count} of {self.total}: {job.label}")
        folder = self.folder / job.folder_name
        model = get_or_train(job, self.store, folder, device=self.device, num_workers=self.num_workers)
        self.options.log_line(f"  {_summary(model)}")
        return model


def _summary(model: TrainedModel) -> str:
    if model.diverged:
        return "diverged"
    validation = (
        ""
        if model.best_validation_error == float("inf")
        else (f"{100 * model.best_validation_error:.1f} % validation error, ")
    )
    error, epochs = 100 * model.train_errors[-1], len(model.epochs)
    return f"{validation}{error:.1f} % training error after {epochs} epochs, {model.seconds:.0f} s"


def get_or_train(
    job: Job,
    store: Store,
    folder: Path,
    *,
    device: str,
    num_workers: int,
    init_from: PretrainedWeights | None = None,
    callbacks: Callbacks | None = None,
) -> TrainedModel:
    """Return the trained model of ``job`` in ``folder``: reused if finished, else resumed or trained.

    A training with the same recipe and store that another experiment beside this one has finished is copied.

    Args:
        job: The training.
        store: The prepared dataset.
        folder: Its run folder.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        num_workers: Data-loading threads.
        init_from: Pretrained weights to start from.
        callbacks: Observe the training.

    Raises:
        RunError: The folder holds another training.
        Interrupted: A signal stopped the training. It is saved; the same call continues it.
    """
    chosen_device = choose_device(device)
    recipe = runtime.resolve_auto(job.recipe, chosen_device)
    with run_folder.locked(folder):
        _check_run_folder(folder, recipe, store)
        if not _is_finished(folder) and not (init_from is None and _copy_finished(recipe, store, folder)):
            _train(recipe, store, folder, chosen_device, num_workers, init_from, callbacks)
    return _load(job, folder, store)


def _check_run_folder(folder: Path, recipe: Recipe, store: Store) -> None:
    if not (folder / "run.json").is_file():
        return
    recorded, metadata = run_folder.read_start(folder)
    changed = differences(recorded, recipe)
    if changed:
        name, (before, now) = next(iter(changed.items()))
        raise RunError(f"{folder} was trained with {name} = {before}, not {now}", "", "choose another --output-dir")
    if metadata.get("store_fingerprint") != store.fingerprint:
        raise RunError(f"{folder} was trained on other images", "", "choose another --output-dir")


def _is_finished(folder: Path) -> bool:
    return (folder / "bundle").is_dir() or (folder / DIVERGED).is_file()


def _copy_finished(recipe: Recipe, store: Store, folder: Path) -> bool:
    """Copy the same training from the folder of another experiment; return whether there was one."""
    for other in sorted(folder.parent.parent.glob("*/*-lr*-seed*")):
        if other != folder and (other / "bundle").is_dir() and _is_same_training(other, recipe, store):
            _clear(folder)
            excluded = shutil.ignore_patterns("bundle", "checkpoints", "tensorboard", ".lock", "*.partial")
            shutil.copytree(other, folder, ignore=excluded, dirs_exist_ok=True)
            shutil.copytree(other / "bundle", folder / "bundle.partial")
            (folder / "bundle.partial").replace(folder / "bundle")  # last, because it marks the training as finished
            return True
    return False


def _is_same_training(folder: Path, recipe: Recipe, store: Store) -> bool:
    try:
        _check_run_folder(folder, recipe, store)
    except (RunError, RecipeError):  # of a newer version, perhaps
        return False
    return (folder / "run.json").is_file()


def _train(
    recipe: Recipe,
    store: Store,
    folder: Path,
    device: torch.device,
    num_workers: int,
    init_from: PretrainedWeights | None,
    callbacks: Callbacks | None,
) -> None:
    resume = any((folder / "checkpoints").glob("step-*.pt"))
    if not resume:
        _clear(folder)
        metadata: dict[str, Any] = {
            "data": store.name,
            "store": store.absolute,
            "store_fingerprint": store.fingerprint,
        }
        metadata |= {"from": init_from.about(store.classes)} if init_from else {}
        run_folder.write_start(folder, recipe, metadata)
    try:
        with runtime.cpu_settings(recipe):
            train_run(
                recipe,
                store,
                folder,
                device=device,
                workers=num_workers,
                resume=resume,
                quiet=True,
                start=init_from,
                callbacks=callbacks,
            )
    except DivergedError as error:
        write_result(folder / DIVERGED, asdict(_Diverged(error.what)))
    except TrainingError as error:  # no memory: no property of the recipe, and its hint is for alexnet train
        raise TrainingError(error.what, "", "close other programs; the same command continues") from error
    except CheckpointError as error:
        raise CheckpointError(error.what, error.must, f"delete {folder} and run the same command again") from error
    except Interrupted as error:
        raise Interrupted(error.signal, error.what.split(", saved")[0], "the same command continues") from error


def _clear(folder: Path) -> None:
    """Delete what a training left that was stopped before its first checkpoint."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


@dataclass(frozen=True)
class _Diverged:
    """Content of ``diverged.json``."""

    reason: str


def _load(job: Job, folder: Path, store: Store) -> TrainedModel:
    if (folder / DIVERGED).is_file():
        reason = read_file(folder / DIVERGED, _Diverged).reason
        return TrainedModel(job, folder, store, (), {}, reason)
    return TrainedModel(job, folder, store, tuple(read_rows(folder)), read_config(folder / "bundle")[0]["metrics"])


def write_result(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file of an experiment with a checksum; :func:`read_file` reads it."""
    write_file(path, json_bytes(with_checksum(value)))


def read_file(path: Path, schema: type[T]) -> T:
    """Read a JSON file of an experiment and check it against ``schema``.

    Raises:
        RunError: The file is damaged, or has changed since it was written.
    """
    try:
        return check(read_checksummed(path.parent, path.name), schema)
    except (OSError, ValueError) as error:
        delete = "" if path.name == PLAN else "delete it"  # nothing says what a folder without a plan holds
        raise _damaged(path, error, delete) from error


def _damaged(path: Path, error: Exception, delete: str) -> RunError:
    again = f"{delete} and run the same command again, or " if delete else ""
    return RunError(f"{path} is damaged: {printable(str(error)):.300}", "", f"{again}choose another --output-dir")


def read_plan(folder: Path, kind: str, *, ignore_files: Collection[str] = ()) -> dict[str, Any]:
    """Return the plan recorded in ``folder``; empty for a new experiment. The folder is created if needed.

    Args:
        folder: Folder of the experiment.
        kind: For messages: "claim", "contest" ...
        ignore_files: Files that a folder without a plan may hold.

    Raises:
        RunError: The folder cannot be used, or holds files of something else.
    """
    path = folder / PLAN
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = any(file.name not in ignore_files for file in folder.iterdir())
    except OSError as error:
        raise RunError(f"{folder} cannot be used: {error}", "", "choose another --output-dir") from error
    recorded: dict[str, Any] = read_file(path, dict[str, Any]) if path.exists() else {}
    if not isinstance(recorded.get("recipe", {}), dict):
        raise RunError(f"{path} is damaged: its recipe is no object", "", "choose another --output-dir")
    if used and not recorded:
        raise RunError(f"{folder} exists already and holds no {kind}", "a new folder", "choose another --output-dir")
    return recorded


def check_same_plan(
    plan: dict[str, Any], recorded: dict[str, Any], folder: Path, kind: str, *, ignore: Collection[str]
) -> None:
    """Refuse to continue an experiment with another plan.

    Args:
        plan: The new plan as plain values.
        recorded: The plan of :func:`read_plan`; empty for a new experiment.
        folder: Folder of the experiment, for the message.
        kind: For the message.
        ignore: Fields that may differ, such as the number of seeds.

    Raises:
        RunError: Another field differs.
    """
    if not recorded:
        return
    plan = json.loads(json.dumps(plan))
    fields = {name: value for name, value in plan.items() if name not in ("recipe", *ignore)}
    differing = [name for name, value in fields.items() if recorded.get(name) != value]
    recipe = recorded.get("recipe", {})
    differing += [name for name, value in plan["recipe"].items() if recipe.get(name) != value]
    if differing:
        raise RunError(f"{folder} holds another {kind}: {differing[0]} differs", "", "choose another --output-dir")
