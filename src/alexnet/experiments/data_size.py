"""The data-size study: AlexNet and Fisher vectors on growing parts of one dataset, with the same test images.

In 2012 a network overtook the runner-up because there were 1.2 million labeled images. The study finds the number of
images from which that is so: for AlexNet from random weights, and for AlexNet from the starter weights.
"""

import dataclasses
import hashlib
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.bundle import STARTER
from alexnet.data.atomic_io import json_bytes, write_file
from alexnet.data.sources.options import DataOptions
from alexnet.data.sources.source import Sample, Source
from alexnet.data.splits import assign_splits
from alexnet.data.store import Store
from alexnet.errors import DataError, RecipeError
from alexnet.evaluation.intervals import wilson
from alexnet.experiments.fisher import train as fisher
from alexnet.experiments.fisher.classifier import FisherSettings
from alexnet.experiments.runner import Job, check_same_plan, get_or_train, read_file, read_plan, write_result
from alexnet.recipe import Recipe, get_recipe
from alexnet.training import run_folder
from alexnet.training.finetune import from_bundle
from alexnet.training.run_data import cached
from alexnet.training.schedule import with_default_epochs

SCRATCH, FISHER = "scratch", "fisher"
METHODS = {
    SCRATCH: "AlexNet, random weights",
    STARTER: "AlexNet, starter weights",
    FISHER: "Fisher vectors",
}
SIZES = (250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000)
RESULT = "result.json"  # in the folder of a finished training


@dataclass(frozen=True)
class DataSizeConfig:
    """Settings of the user.

    Attributes:
        sizes: Numbers of training images; those above what the data has become all images.
        methods: Keys of :data:`METHODS`.
        seeds: Trainings for each size and method; each draws other training images.
        epochs: Epochs of every training of a network; 0: by the number of images.
    """

    sizes: tuple[int, ...] = SIZES
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: int = 1
    epochs: int = 0

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 2 or len(set(self.sizes)) < len(self.sizes):
            raise RecipeError(f"--sizes is {' '.join(map(str, self.sizes))}", "different numbers of at least 2 images")
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise RecipeError(f"--methods names {unknown[0]!r}", f"one of {', '.join(METHODS)}")
        for name, value, minimum in (("seeds", self.seeds, 1), ("epochs", self.epochs, 0)):
            if value < minimum:
                raise RecipeError(f"--{name} is {value}", f"at least {minimum}")


@dataclass(frozen=True)
class Point:
    """The test accuracy of one training."""

    method: str
    images: int
    seed: int
    correct: int
    count: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy on the test images."""
        return self.correct / self.count


@dataclass(frozen=True)
class DataSizeResult:
    """All trainings, and the number of images from which a network is better than Fisher vectors."""

    points: tuple[Point, ...]
    crossings: Mapping[str, float | None]
    plot: Path

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        points = [dataclasses.asdict(point) | {"accuracy": point.accuracy} for point in self.points]
        return {"points": points, "crossings": dict(self.crossings), "plot": str(self.plot)}

    def curve(self, method: str) -> list[tuple[int, float, float, float]]:
        """(images, mean accuracy over seeds, low, high) by size; the interval is that of the test images (Wilson)."""
        rows = []
        for size in sorted({p.images for p in self.points if p.method == method}):
            points = [p for p in self.points if (p.method, p.images) == (method, size)]
            mean = float(np.mean([p.accuracy for p in points]))
            rows.append((size, mean, *wilson(mean * points[0].count, points[0].count)))
        return rows


def run_data_size(
    data: str,
    config: DataSizeConfig,
    folder: Path,
    options: DataOptions,
    *,
    device: str = "auto",
    num_workers: int = 1,
) -> DataSizeResult:
    """Run the study in ``folder``. Finished trainings are reused, an interrupted training is resumed.

    Args:
        data: Images: a folder, a table, an archive or a known dataset; not a store.
        config: Sizes, methods, seeds.
        folder: Gets plan.json, a folder for each training, data-size.json and data-size.png.
        options: Cache folder, logging and layout of the dataset.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        num_workers: Data-loading threads.

    Raises:
        BundleError: There are no starter weights.
        DataError: The data has no test images, or is a store.
        RunError: The folder holds another plan, or another process uses it.
    """
    source = options.open(data)
    plan = {"data": str(data), "source": source.fingerprint, "epochs": config.epochs, "recipe": {}}
    check_same_plan(plan, read_plan(folder, "data-size study", ignore_files=(".lock",)), folder, "plan", ignore=())
    with run_folder.locked(folder):
        write_result(folder / "plan.json", plan)
        points = []
        whole = split_once(source)
        for seed in range(config.seeds):
            for size in _sizes(len(whole.splits["train"]), config.sizes):
                store = cached(part(whole, size, seed), Recipe(seed=seed), options)
                for method in config.methods:
                    options.log_line(f"{METHODS[method]}, {len(store.split('train'))} images, seed {seed}")
                    point = _point(method, store, config, seed, folder, options, device, num_workers)
                    options.log_line(
                        f"  {100 * point.accuracy:.1f} % of {point.count} test images, {point.seconds:.0f} s"
                    )
                    points.append(point)
        crossings = {name: crossing(points, name) for name in config.methods if name != FISHER}
        result = DataSizeResult(tuple(points), crossings, folder / "data-size.png")
        write_file(folder / "data-size.json", json_bytes(result.to_dict()))
        _draw(result, config.methods, source.name)
        return result


def split_once(source: Source) -> Source:
    """``source`` with the splits that all parts are drawn from. Raises DataError without validation or test images."""
    recipe = Recipe()
    splits = assign_splits(source, validation=recipe.validation, test=recipe.test, seed=0)
    for name in ("validation", "test"):
        if not splits[name]:
            raise DataError(f"{source.name} has no {name} images", "some", "use more images")
    return dataclasses.replace(source, splits=splits)


def part(source: Source, images: int, seed: int) -> Source:
    """A source of :func:`split_once` with ``images`` training images, a ninth as many for validation, all test images.

    The images of a class are drawn at random with ``seed``, each class equally often where it has enough. A smaller
    part lies within a larger one. The test images do not depend on the seed.
    """
    whole = source.splits
    splits = {"train": _draw_images(whole["train"], images, seed), "test": whole["test"]}
    splits["validation"] = _draw_images(whole["validation"], max(math.ceil(images / 9), len(source.classes)), seed)
    fingerprint = hashlib.sha256(f"{images} images, seed {seed}, of {source.fingerprint}".encode()).hexdigest()
    return dataclasses.replace(source, splits=splits, fingerprint=fingerprint)


def _draw_images(samples: tuple[Sample, ...], count: int, seed: int) -> tuple[Sample, ...]:
    """``count`` samples: a random one of each class, then another of each, and so on; in the order of ``samples``."""
    order = np.random.default_rng(seed).permutation(len(samples)).tolist()
    seen: dict[int, int] = {}
    ranked = []
    for place, index in enumerate(order):
        label = samples[index].label
        seen[label] = rank = seen.get(label, -1) + 1
        ranked.append((rank, place, index))
    return tuple(samples[index] for index in sorted(index for _, _, index in sorted(ranked)[:count]))


def _sizes(total: int, sizes: tuple[int, ...]) -> list[int]:
    """The sizes that ``total`` training images allow; the first larger one stands for all images."""
    fitting = sorted(size for size in sizes if size < total)
    return [*fitting, total] if len(fitting) < len(sizes) else fitting


def _point(
    method: str,
    store: Store,
    config: DataSizeConfig,
    seed: int,
    folder: Path,
    options: DataOptions,
    device: str,
    num_workers: int,
) -> Point:
    images, test = len(store.split("train")), store.split("test")
    if method == FISHER:
        own = folder / f"fisher-{images}-seed{seed}"
        own.mkdir(exist_ok=True)
        if (own / RESULT).is_file():
            return read_file(own / RESULT, Point)
        started = time.perf_counter()
        trained = fisher.train(store, FisherSettings(), own, seed, options.log_line)
        correct = int((fisher.predict(trained.classifier, test).argmax(1) == test.labels).sum())
        point = Point(method, images, seed, correct, len(test), time.perf_counter() - started)
        write_result(own / RESULT, dataclasses.asdict(point))
        return point
    start = from_bundle(STARTER) if method == STARTER else None
    base = start.recipe(get_recipe("finetune")) if start else get_recipe("modern")
    base = base.replace(epochs=config.epochs, warmup_epochs=min(1.0, config.epochs or 1.0), seed=seed)
    job = Job(f"{method} {images}", with_default_epochs(base, images))
    own = folder / job.folder_name
    model = get_or_train(job, store, own, device=device, num_workers=num_workers, init_from=start)
    shutil.rmtree(own / "checkpoints", ignore_errors=True)  # a gigabyte; the bundle says that the training is finished
    scores = model.scores("test", 1, device)
    return Point(method, images, seed, round(scores["top1"] * scores["count"]), scores["count"], model.seconds)


def crossing(points: list[Point], method: str) -> float | None:
    """The number of images from which ``method`` stays better than Fisher vectors; None where it never is.

    Between two sizes the difference in accuracy is interpolated over the logarithm of the size.
    """

    def mean(name: str, size: int) -> float:
        return float(np.mean([p.accuracy for p in points if (p.method, p.images) == (name, size)]))

    sizes = sorted({p.images for p in points if p.method == method} & {p.images for p in points if p.method == FISHER})
    ahead = [mean(method, size) - mean(FISHER, size) for size in sizes]
    if not sizes or ahead[-1] <= 0:
        return None
    first = max((k + 1 for k, value in enumerate(ahead) if value <= 0), default=0)
    if first == 0:
        return float(sizes[0])
    share = -ahead[first - 1] / (ahead[first] - ahead[first - 1])
    return float(sizes[first - 1] * (sizes[first] / sizes[first - 1]) ** share)


def _draw(result: DataSizeResult, methods: tuple[str, ...], name: str) -> None:
    from alexnet.plots import studies

    curves = {METHODS[method]: result.curve(method) for method in METHODS if method in methods}
    marks = {METHODS[method]: images for method, images in result.crossings.items() if images is not None}
    studies.draw_data_size(f"How much data a network needs: {name}", curves, marks, result.plot)
