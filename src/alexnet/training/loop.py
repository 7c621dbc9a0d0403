"""The training loop: an epoch is many steps, a validation, and a checkpoint when one is due."""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alexnet.errors import DivergedError, Interrupted, TrainingError, no_memory
from alexnet.evaluation.evaluate import autocast, evaluate
from alexnet.evaluation.metrics import Scores
from alexnet.loader.augmentation import Normalization
from alexnet.loader.loader import Batch, Loader
from alexnet.models.layers import set_rows
from alexnet.training import optim
from alexnet.training.async_checkpoint import AsyncCheckpointer
from alexnet.training.distributed.fixed_order import GradientTree, own_parts
from alexnet.training.distributed.sharding import ShardedNetwork
from alexnet.training.distributed.world import World, partition
from alexnet.training.logger import RunLogger
from alexnet.training.runtime import Stop
from alexnet.training.state import State
from alexnet.training.task import Targets

MAX_NONFINITE_STEPS = 3  # consecutive batches whose loss is NaN or Inf end a run


@dataclass
class Training:
    """A run in progress: its state, and what the loop needs besides."""

    state: State
    loader: Loader
    normalization: Normalization
    logger: RunLogger
    folder: Path
    stop: Stop
    checkpointer: AsyncCheckpointer


def train(training: Training) -> None:
    """Train until the run is finished or a signal asks to stop; each epoch is validated if there are validation images.

    Raises:
        Interrupted: After a signal; the run is saved first.
        DivergedError: When the loss is NaN or Inf :data:`MAX_NONFINITE_STEPS` times in a row. The last good checkpoint
            stays.
        TrainingError: When memory runs out.
        CheckpointError: When a checkpoint that must be written cannot be. That of a finished run of one process is
            still being written: :meth:`AsyncCheckpointer.finish` waits for it.
    """
    state = training.state
    while not state.finished:
        train_epoch(training)
        row = _row(state)
        scores = validate(training)
        if scores is not None:
            row |= {"validation_loss": scores.loss, "validation_top1": scores.top1}
            row |= {"validation_top5": scores.top5} if scores.has_top5 else {}
            state.update_best(1 - scores.top1, scores.loss)
        state.rows.append(row)
        training.logger.epoch(state.rows)
        state.schedule.epoch_done(state.position.epoch, None if scores is None else 1 - scores.top1)
        state.position.next_epoch()
        (signal, save_due), finished = sync_stop_and_save(training, epoch_over=True), state.finished
        if state.early_end and not state.schedule.finished(state.position.epoch):
            training.logger.log(f"the run ends after epoch {state.position.epoch}: {state.early_end}")
        if finished and state.world.size == 1:  # the caller waits for it; processes would not wait for each other
            training.checkpointer.begin_last()
        elif finished or signal or save_due:
            save(training, must=finished or bool(signal))
        if signal and not finished:
            raise _interrupted(training, signal)


def train_epoch(training: Training) -> None:
    """Train the remaining batches of the current epoch."""
    state, position = training.state, training.state.position
    size = state.recipe.crop_size(position.epoch, state.network.image_size)
    steps = training.loader.steps(position.epoch)
    state.network.train()
    optim.freeze(state.network, state.recipe, position.epoch)
    state.choose_gradient_types()
    training.logger.begin_epoch(position.epoch, state.recipe.epochs, steps, position.batch)
    started = time.perf_counter()
    for batch in training.loader.epoch(position.epoch, position.batch, size):
        with _explain_oom(training, batch.batch_size, size):
            loss, correct = train_step(state, batch)
        position.batch += 1
        position.step += 1
        if np.isfinite(loss):
            position.add(loss, correct, batch.batch_size)
            state.update_ema()
        else:
            position.nonfinite_steps += 1
            _skip_nonfinite_batch(training, batch, loss, last=position.batch == steps)
        training.logger.step(loss, batch.batch_size)
        training.checkpointer.collect()
        signal, save_due = sync_stop_and_save(training, epoch_over=False)
        if position.batch < steps and (signal or save_due):
            position.seconds, started = position.seconds + time.perf_counter() - started, time.perf_counter()
            save(training, must=bool(signal))
            if signal:
                raise _interrupted(training, signal)
    position.seconds += time.perf_counter() - started


def train_step(state: State, batch: Batch) -> tuple[float, int]:
    """One update of the weights; returns the batch's mean loss and the number of correct predictions.

    A batch whose loss or gradient is NaN or Inf changes nothing: the loss that is returned is then NaN or Inf.
    """
    buffers = [buffer.clone() for buffer in state.network.buffers()]  # the statistics of batch norm
    state.set_progress()
    state.optimizer.zero_grad()
    loss, correct = forward_backward(state, batch)
    if np.isfinite(loss):
        if state.constraint is not None:
            state.constraint.gradients(state.network)
        if torch.isfinite(state.clip_gradients()):
            state.optimizer.step()
            return loss, correct
        loss = float("nan")
    for buffer, before in zip(state.network.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return loss, 0


def forward_backward(state: State, batch: Batch) -> tuple[float, int]:
    """The gradients of a batch, summed over gradient accumulation steps and processes.

    Returns the batch's mean loss and the number of correct predictions, the same on all processes. Where the loss is
    NaN or Inf, all processes know it before any gradient is summed over them.
    """
    world, total = state.world, batch.batch_size
    world.steps, world.images = world.steps + 1, world.images + total
    if state.deterministic:
        return _forward_backward_in_fixed_order(state, batch)
    rows = world.label_rows(total)  # of the batch, for this process
    parts = [partition(len(rows), i, state.grad_accum_steps) for i in range(state.grad_accum_steps)]
    sums = torch.zeros(2, dtype=torch.float64)  # weighted loss, correct predictions
    loss_value, correct = 0.0, 0
    for part in filter(len, parts):
        last = part.stop == len(rows)
        weight = world.loss_weight(total) * len(part) / len(rows)
        images, targets = _part_of(batch, part)
        _set_batch_rows(state, range(rows.start + part.start, rows.start + part.stop), total)
        with autocast(images.device, state.recipe.precision):
            loss, logits = state.task.loss(images, targets)
        part_correct = int((logits.argmax(1) == targets.labels).sum()) if weight else 0
        sums += torch.tensor([float(loss.detach()) * weight, part_correct])
        loss_value, correct = state.reduce_loss_and_correct(sums) if last else (float(sums[0]), 0)
        if np.isfinite(loss_value):
            with world.sync_gradients(last):
                (loss if weight == 1 else loss * weight).backward()  # type: ignore[no-untyped-call]
    return loss_value, correct


def _forward_backward_in_fixed_order(state: State, batch: Batch) -> tuple[float, int]:
    """:func:`forward_backward` with the same bits on 1, 2, 4 and 8 processes."""
    world, total = state.world, batch.batch_size
    rows, tree = world.label_rows(total), GradientTree(state.network, world, total)
    sums: list[float] = []  # weighted loss and correct predictions of each part
    for part in own_parts(world, total):
        loss_value, correct = 0.0, 0
        if part:
            images, targets = _part_of(batch, range(part.start - rows.start, part.stop - rows.start))
            _set_batch_rows(state, part, total)
            with autocast(images.device, state.recipe.precision):
                loss, logits = state.task.loss(images, targets)
            loss = loss * (len(part) / total)
            loss_value, correct = float(loss.detach()), int((logits.argmax(1) == targets.labels).sum())
            if np.isfinite(loss_value):
                loss.backward()  # type: ignore[no-untyped-call]
        tree.add_part(empty=not part)
        sums += [loss_value, correct]
    losses, counts = world.all_gather_scalars(sums).reshape(-1, 2).T.tolist()
    loss_value = 0.0
    for value in losses:
        loss_value += value
    if np.isfinite(loss_value):
        tree.finish()
    return loss_value, int(sum(counts))


def _part_of(batch: Batch, part: range) -> tuple[Tensor, Targets]:
    """Images and targets of one gradient accumulation step."""
    rows = slice(part.start, part.stop)
    # A whole batch is not sliced: in hybrid parallelism it has fewer images than labels.
    images = batch.images if len(part) == len(batch.labels) else batch.images[rows]
    mixup_labels = None if batch.mixup_labels is None else batch.mixup_labels[rows]
    return images, Targets(batch.labels[rows], mixup_labels, batch.mixup_weight)


def _set_batch_rows(state: State, rows: range, total: int) -> None:
    """Let dropout draw the masks that ``rows`` of a batch of ``total`` images have in the whole batch."""
    if isinstance(state.network, ShardedNetwork):
        state.network.batch_rows = len(rows)
    set_rows(state.network, None if len(rows) == total else (rows.start, total))
    state.seed_dropout()


def validate(training: Training) -> Scores | None:
    """Center-crop scores on the validation split; None where there is none, or where it is trained on by now."""
    state = training.state
    if not len(state.store.split("validation")) or state.recipe.trains_on_val(state.position.epoch):
        return None
    return score(state, training.normalization, "validation", training.logger)


def score(state: State, normalization: Normalization, split: str, logger: RunLogger) -> Scores:
    """Scores of ``state.eval_model`` on a split of the run's store, in float32 as ``alexnet evaluate`` has them."""
    network, world = state.eval_model, state.world
    if state.deterministic:  # every process evaluates all images: the losses are added in one order
        world = World(state.device)
    return evaluate(
        network,
        state.store.split(split),
        normalization,
        num_classes=network.num_classes,
        image_size=network.image_size,
        channels=network.in_channels,
        device=state.device,
        shard=(world.rank, world.size),
        all_reduce=world.all_reduce_,
        progress=functools.partial(logger.scored, split),
    )


def sync_stop_and_save(training: Training, *, epoch_over: bool) -> tuple[int, bool]:
    """(the signal that asks to stop, or 0; is a checkpoint due?), the same on all processes.

    A signal to one process stops all of them. The clock of the first process decides when a checkpoint is due.
    """
    stop, world = training.stop, training.state.world
    signal, due = stop.signal, training.checkpointer.due(epoch_over=epoch_over)
    if world.size == 1:
        return signal, stop.save or due
    values = world.all_gather_scalars([signal, stop.save, due])  # [processes, 3]
    return int(values[:, 0].max()), bool(values[:, 1].any() or values[0, 2])


def save(training: Training, *, must: bool) -> None:
    """Write a checkpoint; it also serves a signal that asked for one."""
    training.stop.save = False
    training.checkpointer.save(must=must)
    if must:  # wait for the first process to write: torchrun ends all processes when one of them ends
        training.state.world.all_gather_scalars([0])


def _row(state: State) -> dict[str, float]:
    """The training columns of an epoch's row in results.csv."""
    position = state.position
    return {
        "epoch": position.epoch + 1,
        "steps": position.step,
        "lr": state.task.lr,
        "train_loss": position.loss / position.seen,
        "train_top1": position.correct / position.seen,
        "seconds": round(position.seconds, 3),
        "images_per_second": round(position.seen / max(position.seconds, 1e-9), 2),
    }


def _interrupted(training: Training, signal: int) -> Interrupted:
    training.logger.event("interrupted", signal=signal)
    return Interrupted(
        signal,
        f"stopped in epoch {training.state.position.epoch + 1}, saved in {training.folder}",
        f"resume with: alexnet train --resume {training.folder}",
    )


def _skip_nonfinite_batch(training: Training, batch: Batch, loss: float, *, last: bool) -> None:
    """Log a batch that changed nothing. After :data:`MAX_NONFINITE_STEPS` in a row raise :class:`DivergedError`.

    An epoch in which nothing was learned ends the run too. ``last``: this is the last batch of the epoch.
    """
    position, logger = training.state.position, training.logger
    logger.event("nonfinite loss", step=position.step - 1, loss=str(loss), indices=batch.indices.tolist())
    problem = f"the loss is {loss} at step {position.step} (epoch {position.epoch + 1})"
    if position.nonfinite_steps < MAX_NONFINITE_STEPS and (position.seen or not last):
        text = "the batch was skipped and no weight changed; journal.jsonl of the run lists its images"
        logger.log(f"warning: {problem}; {text}")
        return
    if position.nonfinite_steps > 1:
        problem += f", as at the {position.nonfinite_steps - 1} steps before"
    training.checkpointer.collect(wait=True)  # a checkpoint may still be being written
    files = sorted((training.folder / "checkpoints").glob("step-*.pt"))
    checkpoint = f"the last good checkpoint is {files[-1]}" if files else "there is no checkpoint yet"
    hint = training.state.task.lr_hint(training.folder)
    images = f"the images of the batch are in {training.folder / 'journal.jsonl'}"
    raise DivergedError(f"{problem}; no weight changed", "", f"lower {hint}; {checkpoint}; {images}")


@contextmanager
def _explain_oom(training: Training, images: int, size: int) -> Iterator[None]:
    """Turn an out-of-memory error of any library into a :class:`TrainingError` that says what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (memory := no_memory(error)):
            raise
        state = training.state
        steps, hint = state.grad_accum_steps, "a smaller --batch-size"
        if state.task.can_accumulate and not state.sharding.layout.hybrid:
            hint = f"--grad-accum-steps {2 * steps} (less memory, the same result; with --resume too), or {hint}"
        raise TrainingError(
            f"{memory} could not be allocated at step {state.position.step + 1}, for a batch of {images} images "
            f"of {size} pixels" + (f" in {steps} gradient accumulation steps" if steps > 1 else ""),
            "",
            f"close other programs, or use {hint}",
        ) from error
