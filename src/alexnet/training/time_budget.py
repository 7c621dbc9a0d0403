"""Training in a given time: measures how fast a network trains on this machine, and how many epochs fit into a budget.

``alexnet train --time`` plans one training with it, the contest and the depth study give all networks equal time.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch

from alexnet.cuda_convnet import Files
from alexnet.data.store import Store
from alexnet.errors import RecipeError, counted
from alexnet.evaluation.evaluate import log_probabilities
from alexnet.evaluation.ood import SAMPLE_IMAGES
from alexnet.loader.loader import Batch, Loader, sequential_batches, to_device
from alexnet.models.registry import find as find_model
from alexnet.recipe import Recipe
from alexnet.terminal import format_duration
from alexnet.training import last_layer, loop, runtime
from alexnet.training.finetune import FEW_EPOCHS, PretrainedWeights
from alexnet.training.run import normalization_for, training_loader
from alexnet.training.state import State

MAX_EPOCHS = 90  # as in the paper; a network may need less than its share of time
MAX_PLANNED_EPOCHS = 10_000  # of one training that the user gave a time
FIT_FACTOR = 1.2  # time to fit the last layer, relative to the inference that gives it its inputs
SAFETY_FACTOR = 0.9  # of a share is planned; the rest is for what a few measured steps do not show

_MIN_STEPS, _MAX_STEPS, _STEP_SECONDS = 3, 60, 2.5  # measured steps; after the seconds no step beyond the minimum
_BYTES_PER_PARAMETER = 40  # on disk: two checkpoints of four float32 values, the best weights, the bundle
_DISK_RATE = 150e6  # bytes hashed, written and flushed per second, a low estimate


@dataclass(frozen=True)
class TrainingSpeed:
    """Measured seconds of a network on this machine."""

    train_small: float
    """Per training image at the recipe's progressive size."""
    train_full: float
    """Per training image at full size."""
    evaluate: float
    """Per evaluated image."""
    overhead: float
    """Per training: initialization, checkpoints, the bundle, plots and the report."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dict(vars(self))


def training_seconds(recipe: Recipe, speed: TrainingSpeed, image_size: int, counts: Sequence[int]) -> float:
    """Seconds of a whole training with its evaluations.

    Args:
        recipe: The recipe, with its number of epochs.
        speed: The measured speed.
        image_size: Size of full crops in pixels.
        counts: Number of training, validation and test images.
    """
    train, validation, test = counts
    per_image = [
        speed.train_full if recipe.crop_size(epoch, image_size) == image_size else speed.train_small
        for epoch in range(recipe.epochs)
    ]
    # The end predicts both splits, samples of the training and validation images for the feature reference, and in a
    # contest the test split for the comparison.
    evaluated = recipe.epochs * validation + 2 * validation + 2 * test + min(train, SAMPLE_IMAGES)
    return speed.overhead + train * sum(per_image) + evaluated * speed.evaluate


def fit_epochs(
    recipe: Recipe,
    speed: TrainingSpeed,
    image_size: int,
    counts: Sequence[int],
    seconds: float,
    *,
    max_epochs: int = MAX_EPOCHS,
    budget: str = "its share of the budget is",
    hint: str = "pass a longer --budget, smaller crops (--image-size), fewer --nets, or fewer --images",
) -> Recipe:
    """Return ``recipe`` with as many epochs as fit into ``seconds``, at most ``max_epochs``.

    The schedule ends with the epochs. The first arguments are those of :func:`training_seconds`; ``budget`` and
    ``hint`` are parts of the message.

    Raises:
        RecipeError: Not even one epoch fits.
    """

    def seconds_of(epochs: int) -> float:
        return training_seconds(with_epochs(recipe, epochs), speed, image_size, counts)

    fitting = bisect_right(range(1, max_epochs + 1), seconds, key=seconds_of)
    if not fitting:
        raise RecipeError(
            f"one epoch of {recipe.model} takes {format_duration(seconds_of(1))} on this machine, and {budget} "
            f"{format_duration(seconds)}",
            "",
            hint,
        )
    return with_epochs(recipe, fitting)


def check_plannable(recipe: Recipe, changes: Collection[str]) -> None:
    """Raise :class:`RecipeError` if the epochs of ``recipe``, of which ``changes`` are set, cannot follow the time."""
    if "epochs" in changes:
        raise RecipeError("--time and --epochs exclude each other", "", "leave one out")
    if recipe.schedule == "multistep":
        raise RecipeError(
            "--time chooses the number of epochs, and the epochs of --schedule multistep are fixed by --lr-milestones",
            "",
            "pass --epochs, or another --schedule",
        )


def plan_epochs(
    recipe: Recipe,
    store: Store,
    device: torch.device,
    deadline: float,
    *,
    few_epochs: Mapping[str, Any] | None = None,
    start: PretrainedWeights | None = None,
    files: Files | None = None,
    after: Callable[[TrainingSpeed], float] = lambda _: 0.0,
    log: Callable[[str], None],
) -> Recipe:
    """Return ``recipe`` with as many epochs as a training that starts now can finish before ``deadline``.

    A few steps are measured. :data:`SAFETY_FACTOR` of the time that is left then is planned.

    Args:
        recipe: The hyperparameters; its number of epochs is ignored.
        store: The data.
        device: Where the network trains.
        deadline: A time of ``time.perf_counter``.
        few_epochs: Fields of the recipe to change if fewer than :data:`FEW_EPOCHS` epochs fit.
        start: The weights that the training starts from, if not random ones.
        files: The layer files that define the network, if it is not the recipe's.
        after: Seconds that the plots and the report take after the training.
        log: Receives one line about the choice.

    Raises:
        RecipeError: Not even one epoch fits.
    """
    speed = measure_training(recipe, store, device, start, files)
    counts = [len(store.split(name)) for name in ("train", "validation", "test")]
    fitted = recipe.fit_last_layer and start is not None and bool(start.fresh(store.classes))
    features = min(counts[0], last_layer.MAX_IMAGES) if fitted else 0
    speed = replace(speed, overhead=speed.overhead + after(speed) + FIT_FACTOR * features * speed.evaluate)
    size = recipe.image_size or (0 if files else find_model(recipe.model).image_size)  # 0: one size of crops
    remaining = max(0.0, SAFETY_FACTOR * (deadline - time.perf_counter()))
    fit = partial(
        fit_epochs,
        speed=speed,
        image_size=size,
        counts=counts,
        seconds=remaining,
        max_epochs=MAX_PLANNED_EPOCHS,
        budget="--time leaves",
        hint="pass a longer --time, or smaller crops (--image-size)",
    )
    planned = fit(recipe)
    if few_epochs and planned.epochs < FEW_EPOCHS:
        planned = fit(recipe.replace(**few_epochs))  # one epoch fits, since the last has large crops in any case
    seconds = training_seconds(planned, speed, size, counts)
    log(
        f"time: {counted(planned.epochs, 'epoch')} of {counts[0]:,} images are planned to take "
        f"{format_duration(seconds)}, at {1 / speed.train_full:.3g} images/s"
        + (f" ({1 / speed.train_small:.3g} in small crops)" if speed.train_small != speed.train_full else "")
    )
    return planned


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """Return ``recipe`` with ``epochs`` epochs. Warm-up takes a tenth of them, at most as long as in the recipe."""
    return recipe.replace(epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs / 10))


def measure_training(
    recipe: Recipe,
    store: Store,
    device: torch.device,
    start: PretrainedWeights | None = None,
    files: Files | None = None,
) -> TrainingSpeed:
    """Measure a few training steps of ``recipe``, data loading included, after one warm-up step for each size.

    Arguments as in :func:`plan_epochs`.
    """
    started = time.perf_counter()
    with runtime.cpu_settings(recipe):
        # 0 epochs are not a schedule; the speed does not depend on their number.
        state = State(recipe if recipe.epochs else with_epochs(recipe, 1), store, device, start, files)
        network = state.network
        loader, _ = training_loader(state, store)
        initialization = time.perf_counter() - started
        sizes = sorted({network.image_size, recipe.progressive_size or network.image_size})
        per_image = [_train_seconds(state, loader, size) for size in sizes if size <= network.image_size]
        evaluate = _evaluate_seconds(state, store)
    parameters = sum(p.numel() for p in network.parameters())
    overhead = 2 * initialization + parameters * _BYTES_PER_PARAMETER / _DISK_RATE
    return TrainingSpeed(per_image[0], per_image[-1], evaluate, overhead)


def _train_seconds(state: State, loader: Loader, size: int) -> float:
    """Median seconds per training image with crops of ``size`` pixels."""
    batches = endless_batches(loader, size)
    state.network.train()
    loop.train_step(state, next(batches))
    per_image: list[float] = []
    started = time.perf_counter()
    while len(per_image) < _MIN_STEPS or (
        len(per_image) < _MAX_STEPS and time.perf_counter() - started < _STEP_SECONDS
    ):
        begin = time.perf_counter()
        batch = next(batches)
        loop.train_step(state, batch)
        state.position.step += 1
        state.update_ema()
        per_image.append((time.perf_counter() - begin) / len(batch.labels))
    return median(per_image)  # other programs on the machine disturb single steps


def endless_batches(loader: Loader, size: int) -> Iterator[Batch]:
    """Batches of one epoch after the other, with crops of ``size`` pixels."""
    epoch = 0
    while True:
        yield from loader.epoch(epoch, 0, size)
        epoch += 1


def _evaluate_seconds(state: State, store: Store) -> float:
    """Seconds per evaluated image at full size: the faster of two batches."""
    network = state.eval_model.eval()
    normalization = to_device(normalization_for(store, state.recipe, network.image_size), state.device)
    split = next(s for s in (store.split(name) for name in ("validation", "test", "train")) if len(s))
    images, _ = next(sequential_batches(split, min(64, len(split))))
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        log_probabilities(
            network,
            images.to(state.device),
            normalization,
            image_size=network.image_size,
            channels=network.in_channels,
        ).cpu()
        seconds.append(time.perf_counter() - started)
    return min(seconds) / len(images)
