"""Equal training time: measures how fast a network trains on this machine and how many epochs fit into a budget."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from alexnet.data.store import Store
from alexnet.errors import RecipeError
from alexnet.evaluation.evaluate import log_probabilities
from alexnet.loader.loader import Batch, Loader, sequential_batches, to_device
from alexnet.recipe import Recipe
from alexnet.terminal import format_duration
from alexnet.training import loop, runtime
from alexnet.training.run import normalization_for
from alexnet.training.state import State

MAX_EPOCHS = 90  # as in the paper; a network may need less than its share of time
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
    """Per training: initialization, checkpoints and the bundle."""

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
    # The end scores both splits, calibrates on validation, and predicts the test split for the comparison.
    evaluated = recipe.epochs * validation + 2 * validation + 2 * test
    return speed.overhead + train * sum(per_image) + evaluated * speed.evaluate


def fit_epochs(recipe: Recipe, speed: TrainingSpeed, image_size: int, counts: Sequence[int], seconds: float) -> Recipe:
    """Return ``recipe`` with as many epochs as fit into ``seconds``, at most :data:`MAX_EPOCHS`.

    The schedule ends with the epochs. Arguments as in :func:`training_seconds`.

    Raises:
        RecipeError: Not even one epoch fits.
    """
    fitting = 0
    for epochs in range(1, MAX_EPOCHS + 1):
        if training_seconds(with_epochs(recipe, epochs), speed, image_size, counts) > seconds:
            break
        fitting = epochs
    if not fitting:
        one_epoch = training_seconds(with_epochs(recipe, 1), speed, image_size, counts)
        raise RecipeError(
            f"one epoch of {recipe.model} takes {format_duration(one_epoch)} on this machine, and its share of the "
            f"budget is {format_duration(seconds)}",
            "",
            "pass a longer --budget, smaller crops (--image-size), fewer --nets, or fewer --images",
        )
    return with_epochs(recipe, fitting)


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """Return ``recipe`` with ``epochs`` epochs. Warm-up takes a tenth of them, at most as long as in the recipe."""
    return recipe.replace(epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs / 10))


def measure_training(recipe: Recipe, store: Store, device: torch.device) -> TrainingSpeed:
    """Measure a few training steps of ``recipe``, data loading included, after one warm-up step for each size."""
    started = time.perf_counter()
    with runtime.cpu_settings(recipe):
        state = State(recipe, store, device)
        network = state.network
        loader = Loader(
            store.split("train"),
            recipe,
            normalization_for(store, recipe, network.image_size),
            image_size=network.image_size,
            channels=network.in_channels,
            device=device,
        )
        initialization = time.perf_counter() - started
        sizes = sorted({network.image_size, recipe.progressive_size or network.image_size})
        per_image = [_train_seconds(state, loader, size) for size in sizes if size <= network.image_size]
        evaluate = _evaluate_seconds(state, store)
    parameters = sum(p.numel() for p in network.parameters())
    overhead = 2 * initialization + parameters * _BYTES_PER_PARAMETER / _DISK_RATE
    return TrainingSpeed(per_image[0], per_image[-1], evaluate, overhead)


def _train_seconds(state: State, loader: Loader, size: int) -> float:
    """Median seconds per training image with crops of ``size`` pixels."""
    batches = _endless(loader, size)
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


def _endless(loader: Loader, size: int) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from loader.epoch(epoch, 0, size)
        epoch += 1


def _evaluate_seconds(state: State, store: Store) -> float:
    """Seconds per evaluated image at full size: the faster of two batches."""
    network = state.eval_model.eval()
    normalization = to_device(normalization_for(store, state.recipe, network.image_size), state.device)
    split = store.split("validation")
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
