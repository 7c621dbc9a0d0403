"""The one loop, read top to bottom: batches and a network in, a trained bundle out."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.batches.loader import Batch, Loader
from alexnet.batches.sampler import step_seed
from alexnet.batches.transforms import Statistics
from alexnet.errors import CheckpointError, Interrupted, TrainingError
from alexnet.evaluation.evaluate import autocast, evaluate
from alexnet.evaluation.metrics import Scores
from alexnet.models.cuda_convnet import GraphNetwork
from alexnet.recipe import Recipe
from alexnet.training import groups, optimizer
from alexnet.training.journal import Journal
from alexnet.training.machine import Stop
from alexnet.training.state import State


@dataclass
class Training:
    """A run being made: its state, and what the loop needs beside it."""

    state: State
    loader: Loader
    statistics: Statistics
    journal: Journal
    folder: Path
    stop: Stop
    saved_at: float = 0.0  # time.monotonic() of the last checkpoint


def train(training: Training) -> None:
    """Train until the run is finished or a signal asks to stop; every epoch is validated, the best is kept.

    Raises :class:`Interrupted` after a signal (the run is saved first), :class:`TrainingError` when the loss is not a
    number (the last good checkpoint stays), :class:`CheckpointError` when the last checkpoint can not be written.
    """
    state, journal = training.state, training.journal
    training.saved_at = time.monotonic()
    while not state.finished:
        train_epoch(training)
        row = _row(state)
        scores = validate(training)
        if scores is not None:
            row |= {
                "validation_loss": scores.loss,
                "validation_top1": scores.top1,
                "validation_top5": scores.top5,
            }
            state.note_best(1 - scores.top1, scores.loss)
        state.rows.append(row)
        journal.epoch(state.rows)
        state.schedule.epoch_done(state.position.epoch, None if scores is None else 1 - scores.top1)
        _next_epoch(state)
        finished = state.finished
        minutes = (time.monotonic() - training.saved_at) / 60
        if finished or training.stop.signal or minutes >= state.recipe.checkpoint_minutes:
            save(training, must=finished or bool(training.stop.signal))
        if training.stop.signal and not finished:
            raise _interrupted(training)


def train_epoch(training: Training) -> None:
    """The rest of the epoch at which the run stands."""
    state, recipe = training.state, training.state.recipe
    position = state.position
    side = recipe.side(position.epoch, state.network.image_size)
    steps = training.loader.steps(position.epoch)
    state.network.train()
    groups.freeze(state.network, recipe, position.epoch)
    training.journal.begin_epoch(position.epoch, recipe.epochs, steps, position.batch)
    started = time.perf_counter()
    for batch in training.loader.epoch(position.epoch, position.batch, side):
        loss, correct = train_step(state, batch)
        if not np.isfinite(loss):
            raise _not_a_number(training, batch, loss)
        position.loss += loss * len(batch.labels)
        position.correct += correct
        position.seen += len(batch.labels)
        position.batch += 1
        position.step += 1
        state.average()
        training.journal.step(loss, len(batch.labels))
        if training.stop.signal and position.batch < steps:
            position.seconds += time.perf_counter() - started
            save(training, must=True)
            raise _interrupted(training)
    position.seconds += time.perf_counter() - started


def train_step(state: State, batch: Batch) -> tuple[float, int]:
    """One update; returns the mean loss and how many pictures were right. A loss that is no number changes nothing."""
    recipe, position = state.recipe, state.position
    state.begin_step()
    images, labels, others, share = _mix(batch, recipe, position.step)
    with autocast(images.device, recipe.precision):
        if isinstance(state.network, GraphNetwork):  # a layer file says itself what is to become small
            logits, loss = state.network.costs(images, labels)
        else:
            logits = state.network(images)  # [N, K]
            smoothing, weights = recipe.label_smoothing, state.class_weights
            loss = _loss(logits.float(), labels, others, share, smoothing, weights)
            for aside in state.network.asides():
                loss = loss + aside.weight * _loss(aside.take().float(), labels, others, share, smoothing, weights)
    value = float(loss.detach())
    if not np.isfinite(value):
        return value, 0
    loss.backward()  # type: ignore[no-untyped-call]
    norm = optimizer.clip(list(state.network.parameters()), recipe.clip)
    if not torch.isfinite(norm):
        state.optimizer.zero_grad()
        return float("nan"), 0
    state.optimizer.step()
    state.optimizer.zero_grad()
    return value, int((logits.argmax(1) == labels).sum())


def _mix(batch: Batch, recipe: Recipe, step: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Mixup (Zhang et al. 2017): with the recipe's probability, the batch mixed with itself in another order."""
    if not recipe.mixup:
        return batch.images, batch.labels, batch.labels, 1.0
    random = np.random.Generator(np.random.Philox(step_seed(recipe.seed, step, stream=2)))
    if random.random() >= recipe.mixup:
        return batch.images, batch.labels, batch.labels, 1.0
    share = float(random.beta(0.4, 0.4))
    share = max(share, 1 - share)  # the first label weighs more: it is the one that is counted
    order = torch.from_numpy(random.permutation(len(batch.labels))).to(batch.labels.device)
    images = torch.lerp(batch.images[order], batch.images, share).contiguous(memory_format=torch.channels_last)
    return images, batch.labels, batch.labels[order], share


def _loss(
    logits: Tensor, labels: Tensor, others: Tensor, share: float, smoothing: float, weights: Tensor | None = None
) -> Tensor:
    loss = _cost(logits, labels, smoothing, weights)
    return loss if share == 1.0 else share * loss + (1 - share) * _cost(logits, others, smoothing, weights)


def _cost(logits: Tensor, labels: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
    """Mean cross-entropy. A picture's weight is its class's, whatever else is in the batch: PyTorch's own divides by
    the batch's weights, and a batch of one class would know no weight at all."""
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    each = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")  # [N]
    return (weights[labels] * each).mean()


def validate(training: Training) -> Scores | None:
    """Center-view scores on the validation split; None where the recipe keeps none, or trains on it by now."""
    state = training.state
    if not len(state.store.split("validation")) or state.recipe.joined(state.position.epoch):
        return None
    return score(state, training.statistics, "validation", views=1)


def score(state: State, statistics: Statistics, split: str, views: int) -> Scores:
    """Scores of the judged network on a split of the run's own store."""
    network = state.judged
    return evaluate(
        network,
        state.store.split(split),
        statistics,
        classes=network.num_classes,
        side=network.image_size,
        channels=network.in_channels,
        views=views,
        precision=state.recipe.precision,
        device=state.device,
    )


def save(training: Training, *, must: bool) -> None:
    """Write a checkpoint. One that can not be written ends the run only if it ``must`` be, at the end of it."""
    try:
        path = training.state.save(training.folder / "checkpoints", training.journal.size())
    except CheckpointError as error:
        if must:
            raise
        training.journal.say(f"warning: {error}; training goes on")
        training.journal.event("checkpoint failed", reason=str(error))
    else:
        training.journal.event("checkpoint", file=path.name)
    training.saved_at = time.monotonic()


def _row(state: State) -> dict[str, float]:
    p = state.position
    return {
        "epoch": p.epoch + 1,
        "steps": p.step,
        "learning_rate": state.rate(),
        "train_loss": p.loss / p.seen,
        "train_top1": p.correct / p.seen,
        "seconds": round(p.seconds, 3),
        "images_per_second": round(p.seen / max(p.seconds, 1e-9), 2),
    }


def _next_epoch(state: State) -> None:
    p = state.position
    p.epoch, p.batch, p.loss, p.correct, p.seen, p.seconds = p.epoch + 1, 0, 0.0, 0, 0, 0.0


def _interrupted(training: Training) -> Interrupted:
    training.journal.event("interrupted", signal=training.stop.signal)
    return Interrupted(
        training.stop.signal,
        f"stopped in epoch {training.state.position.epoch + 1}, saved in {training.folder}",
        f"go on with: alexnet train --resume {training.folder}",
    )


def _rates(training: Training) -> str:
    """What a person can lower."""
    if isinstance(training.state.network, GraphNetwork):
        return f"the rates in {training.folder / 'layer-params.cfg'}"
    return f"--learning-rate (now {training.state.recipe.learning_rate})"


def _not_a_number(training: Training, batch: Batch, loss: float) -> TrainingError:
    position = training.state.position
    indices = batch.indices.tolist()
    training.journal.event("not a number", step=position.step, loss=str(loss), indices=indices)
    kept = sorted((training.folder / "checkpoints").glob("step-*.pt"))
    return TrainingError(
        f"the loss is {loss} at step {position.step + 1} (epoch {position.epoch + 1}); no weight was changed by it",
        "",
        f"lower {_rates(training)}; "
        + (f"the last good checkpoint is {kept[-1]}; " if kept else "there is no checkpoint yet; ")
        + f"the pictures of the batch stand in {training.folder / 'journal.jsonl'}",
    )
