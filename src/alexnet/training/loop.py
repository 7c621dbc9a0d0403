"""The one loop, read top to bottom: batches and a network in, a trained bundle out."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.cuda_convnet import GraphNetwork
from alexnet.errors import Interrupted, TrainingError, no_memory
from alexnet.evaluation.evaluate import autocast, evaluate
from alexnet.evaluation.metrics import Scores
from alexnet.loader.augmentation import Normalization
from alexnet.loader.loader import Batch, Loader
from alexnet.models.layers import set_rows
from alexnet.training import optim
from alexnet.training.async_checkpoint import AsyncCheckpointer
from alexnet.training.distributed.tensor_parallel import ShardedNetwork
from alexnet.training.distributed.world import share
from alexnet.training.logger import RunLogger
from alexnet.training.runtime import Stop
from alexnet.training.state import State

PATIENCE = 3  # batches in a row whose loss is no number end a run


@dataclass
class Training:
    """A run being made: its state, and what the loop needs next to it."""

    state: State
    loader: Loader
    statistics: Normalization
    journal: RunLogger
    folder: Path
    stop: Stop
    saver: AsyncCheckpointer


def train(training: Training) -> None:
    """Train until the run is finished or a signal asks to stop; every epoch is validated, the best is kept.

    Raises :class:`Interrupted` after a signal (the run is saved first), :class:`TrainingError` when the loss is not a
    number three times in a row or memory runs out (the last good checkpoint stays), :class:`CheckpointError` when the
    last checkpoint can not be written.
    """
    state, journal = training.state, training.journal
    while not state.finished:
        train_epoch(training)
        row = _row(state)
        scores = validate(training)
        if scores is not None:
            row |= {"validation_loss": scores.loss, "validation_top1": scores.top1}
            row |= {"validation_top5": scores.top5} if scores.has_top5 else {}
            state.note_best(1 - scores.top1, scores.loss)
        state.rows.append(row)
        journal.epoch(state.rows)
        state.schedule.epoch_done(state.position.epoch, None if scores is None else 1 - scores.top1)
        _next_epoch(state)
        (signal, due), finished = agree(training, epoch_over=True), state.finished
        if finished or signal or due:
            save(training, must=finished or bool(signal))
        if signal and not finished:
            raise _interrupted(training, signal)


def train_epoch(training: Training) -> None:
    """The rest of the epoch at which the run stands."""
    state, recipe = training.state, training.state.recipe
    position, saver = state.position, training.saver
    side = recipe.crop_size(position.epoch, state.network.image_size)
    steps = training.loader.steps(position.epoch)
    state.network.train()
    optim.freeze(state.network, recipe, position.epoch)
    training.journal.begin_epoch(position.epoch, recipe.epochs, steps, position.batch)
    started = time.perf_counter()
    for batch in training.loader.epoch(position.epoch, position.batch, side):
        with _told_without_memory(training, batch.batch_size, side):
            loss, correct = train_step(state, batch)
        position.batch += 1
        position.step += 1
        if np.isfinite(loss):
            position.nonfinite_steps = 0
            position.loss += loss * batch.batch_size
            position.correct += correct
            position.seen += batch.batch_size
            state.average()
        else:
            position.nonfinite_steps += 1
            _not_a_number(training, batch, loss, last=position.batch == steps)
        training.journal.step(loss, batch.batch_size)
        saver.collect()
        signal, due = agree(training, epoch_over=False)
        if position.batch < steps and (signal or due):
            position.seconds, started = position.seconds + time.perf_counter() - started, time.perf_counter()
            save(training, must=bool(signal))
            if signal:
                raise _interrupted(training, signal)
    position.seconds += time.perf_counter() - started


def train_step(state: State, batch: Batch) -> tuple[float, int]:
    """One update; returns the batch's mean loss and how many images were right.

    A loss that is no number, or a gradient, changes nothing: all processes learn of it before any gradient is summed.
    """
    items = [buffer.clone() for buffer in state.network.buffers()]  # batch norm's statistics
    value, correct = _learn(state, batch)
    if not np.isfinite(value):
        state.optimizer.zero_grad()
        for buffer, before in zip(state.network.buffers(), items, strict=True):
            buffer.copy_(before)
    return value, correct


def _learn(state: State, batch: Batch) -> tuple[float, int]:
    world, total = state.world, batch.batch_size
    state.begin_step()
    world.steps, world.images = world.steps + 1, world.images + total
    places = world.places(total)
    pieces = [p for p in (share(len(places), i, state.accumulate) for i in range(state.accumulate)) if len(p)]
    messages = torch.zeros(2, dtype=torch.float64)  # loss times weight, right
    for number, piece in enumerate(pieces, 1):
        weight = world.weight(total) * len(piece) / len(places)
        state.begin_piece()
        loss, logits, labels = forward(state, batch, piece, places, total)
        right = int((logits.argmax(1) == labels).sum()) if weight else 0
        messages += torch.tensor([float(loss.detach()) * weight, right])
        last = number == len(pieces)
        value, correct = state.together(messages) if last else (float(messages[0]), 0)
        if not np.isfinite(value):
            if last:
                return value, 0
            continue  # all processes come to the last piece
        with world.summing(last):
            (loss if weight == 1 else loss * weight).backward()  # type: ignore[no-untyped-call]
    if state.held is not None:
        state.held.gradients(state.network)
    norm = state.clip()
    if not torch.isfinite(norm):
        return float("nan"), 0
    state.optimizer.step()
    state.optimizer.zero_grad()
    return value, correct


def forward(state: State, batch: Batch, piece: range, places: range, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, logits [N, K] and labels [N] of a piece of this process's ``places`` in a batch of ``total``."""
    network, recipe = state.network, state.recipe
    cut = slice(piece.start, piece.stop)
    whole = len(piece) == len(places)  # then there is nothing to cut, and images may be fewer than labels (hybrid)
    images, labels = batch.images if whole else batch.images[cut], batch.labels[cut]
    mixup_labels = None if batch.mixup_labels is None else batch.mixup_labels[cut]
    if isinstance(network, ShardedNetwork):
        network.count = len(piece)
    set_rows(network, None if len(piece) == total else (places.start + piece.start, total))
    with autocast(images.device, recipe.precision):
        if isinstance(network, GraphNetwork):  # a layer file says itself what is to become small
            logits, loss = network.costs(images, labels)
        else:
            logits = state.answer(images)  # [N, K]
            targets = labels, mixup_labels, batch.mixup_weight, recipe.label_smoothing, state.class_weights
            loss = _loss(logits.float(), *targets)
            for auxiliary_head in network.auxiliary_heads():
                loss = loss + auxiliary_head.weight * _loss(auxiliary_head.take().float(), *targets)
    return loss, logits, labels


def _loss(
    logits: Tensor,
    labels: Tensor,
    mixup_labels: Tensor | None,
    mixup_weight: float,
    smoothing: float,
    weights: Tensor | None = None,
) -> Tensor:
    loss = _cost(logits, labels, smoothing, weights)
    if mixup_labels is None:
        return loss
    return mixup_weight * loss + (1 - mixup_weight) * _cost(logits, mixup_labels, smoothing, weights)


def _cost(logits: Tensor, labels: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
    """Mean cross-entropy. An image's weight is its class's, whatever else is in the batch: PyTorch's own divides by
    the batch's weights, and a batch of one class would know no weight at all."""
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    each = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")  # [N]
    return (weights[labels] * each).mean()


def validate(training: Training) -> Scores | None:
    """Center-view scores on the validation split; None where the recipe keeps none, or trains on it by now."""
    state = training.state
    if not len(state.store.split("validation")) or state.recipe.trains_on_val(state.position.epoch):
        return None
    return score(state, training.statistics, "validation", crops=1)


def score(state: State, statistics: Normalization, split: str, crops: int) -> Scores:
    """Scores of the judged network on a split of the run's own store, in float32 as ``alexnet evaluate`` has them."""
    network = state.eval_model
    return evaluate(
        network,
        state.store.split(split),
        statistics,
        classes=network.num_classes,
        side=network.image_size,
        channels=network.in_channels,
        crops=crops,
        device=state.device,
        part=(state.world.rank, state.world.size),
        add=state.world.add,
    )


def agree(training: Training, *, epoch_over: bool) -> tuple[int, bool]:
    """The signal that asks to stop (or 0), and: is a checkpoint due? The same on all processes.

    A signal to any of them is one to all; the clock is the first one's.
    """
    stop, world = training.stop, training.state.world
    signal, due = stop.signal, stop.save or training.saver.due(epoch_over=epoch_over)
    if world.size == 1:
        return signal, due
    messages = world.exchange([signal, stop.save, due])
    return int(messages[:, 0].max()), bool(messages[:, 1].any() or messages[0, 2])


def save(training: Training, *, must: bool) -> None:
    """Write a checkpoint; one that a signal asked for is one less to ask for."""
    training.stop.save = False
    training.saver.save(must=must)
    if must:  # nobody leaves while the first one writes: torchrun would end it
        training.state.world.exchange([0])


def _row(state: State) -> dict[str, float]:
    p = state.position
    return {
        "epoch": p.epoch + 1,
        "steps": p.step,
        "lr": state.rate(),
        "train_loss": p.loss / p.seen,
        "train_top1": p.correct / p.seen,
        "seconds": round(p.seconds, 3),
        "images_per_second": round(p.seen / max(p.seconds, 1e-9), 2),
    }


def _next_epoch(state: State) -> None:
    p = state.position
    p.epoch, p.batch, p.loss, p.correct, p.seen, p.seconds = p.epoch + 1, 0, 0.0, 0, 0, 0.0


def _interrupted(training: Training, signal: int) -> Interrupted:
    training.journal.event("interrupted", signal=signal)
    return Interrupted(
        signal,
        f"stopped in epoch {training.state.position.epoch + 1}, saved in {training.folder}",
        f"go on with: alexnet train --resume {training.folder}",
    )


def _rates(training: Training) -> str:
    """What a person can lower."""
    if isinstance(training.state.network, GraphNetwork):
        return f"the rates in {training.folder / 'layer-params.cfg'}"
    return f"--lr (now {training.state.recipe.lr})"


def _not_a_number(training: Training, batch: Batch, loss: float, *, last: bool) -> None:
    """Note the batch and go on without it; after :data:`PATIENCE` of them in a row raise :class:`TrainingError`.

    ``last``: the epoch ends with it. An epoch in which nothing was learned ends the run too.
    """
    position, journal = training.state.position, training.journal
    journal.event("not a number", step=position.step - 1, loss=str(loss), indices=batch.indices.tolist())
    what = f"the loss is {loss} at step {position.step} (epoch {position.epoch + 1})"
    where = f"the images of the batch stand in {training.folder / 'journal.jsonl'}"
    if position.nonfinite_steps < PATIENCE and (position.seen or not last):
        journal.say(f"warning: {what}; no weight was changed by it; training goes on with the next batch; {where}")
        return
    if position.nonfinite_steps > 1:
        what += f", as at {position.nonfinite_steps - 1} before it"
    training.saver.collect(wait=True)  # one may still be being written
    kept = sorted((training.folder / "checkpoints").glob("step-*.pt"))
    good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
    raise TrainingError(f"{what}; no weight was changed by it", "", f"lower {_rates(training)}; {good}; {where}")


@contextmanager
def _told_without_memory(training: Training, images: int, side: int) -> Iterator[None]:
    """Turn "no memory" of whatever library into a :class:`TrainingError` that says what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (wanted := no_memory(error)):
            raise
        pieces, way = training.state.accumulate, "a smaller --batch-size"
        if not training.state.cut.layout.apart and not isinstance(training.state.network, GraphNetwork):
            way = f"--grad-accum-steps {2 * pieces} (less memory, the same result; with --resume too), or {way}"
        raise TrainingError(
            f"{wanted} could not be had at step {training.state.position.step + 1}, for a batch of {images} images "
            f"at {side} pixels" + (f" in {pieces} pieces" if pieces > 1 else ""),
            "",
            f"close other programs, or take {way}",
        ) from error
