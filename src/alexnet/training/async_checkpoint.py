"""When checkpoints are due, and the one thread that writes them while training goes on.

The loop waits for the copy of the state, not for the disk; a second checkpoint waits for the first; a run ends only
when the last one is on disk. What that saves is in docs/training.md.
"""

import threading
import time
from pathlib import Path
from typing import Any

from alexnet.errors import CheckpointError
from alexnet.recipe import parse_interval
from alexnet.training import checkpoint
from alexnet.training.logger import RunLogger
from alexnet.training.state import State


class AsyncCheckpointer:
    """Writes the checkpoints of a run's folder. Use it in ``with``: the end waits for what is being written."""

    def __init__(self, state: State, journal: RunLogger, folder: Path) -> None:
        self.state, self.journal, self.folder = state, journal, folder / "checkpoints"
        self.every = parse_interval(state.recipe.checkpoint_every, "--checkpoint-every")
        self.saved_at = time.monotonic()
        self._step = state.position.step  # of the last checkpoint
        self._best = state.best.file  # the best weights that are on disk
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None
        self._name = ""

    def __enter__(self) -> "AsyncCheckpointer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def due(self, *, epoch_over: bool) -> bool:
        """Is a checkpoint due after the step just made, or, ``epoch_over``, after the epoch just validated?

        At an epoch's last step it waits for the validation: one step has one checkpoint, never written over.
        """
        (amount, unit), position = self.every, self.state.position
        if unit == "epoch":
            return epoch_over and position.epoch % amount == 0
        if unit == "step":
            return position.step // amount > self._step // amount
        return time.monotonic() - self.saved_at >= 60 * amount

    def save(self, *, must: bool) -> None:
        """Write a checkpoint: now if it ``must`` be, or beside the training.

        Raises :class:`CheckpointError` where one that must be can not be written; another that can not is said, and
        training goes on: only the last may end a run.
        """
        self.collect(wait=True)
        # All processes take part: shards of a network are gathered.
        content = self.state.snapshot(self.journal.size(), copied=not must and self.state.world.is_main)
        best, weights = self.state.best.file, self.state.best.weights
        self.saved_at, self._step = time.monotonic(), self.state.position.step
        if not self.state.world.is_main:
            return
        self._name = checkpoint.name_of(self._step)
        if must:
            self._write(content, best, weights)
        else:
            # No daemon: a process that ends for another reason still finishes its file.
            self._thread = threading.Thread(target=self._try, args=(content, best, weights), name="checkpoint")
            self._thread.start()
        self.collect(wait=must)
        self.saved_at = time.monotonic()

    def collect(self, *, wait: bool = False) -> None:
        """Tell of the checkpoint that has been written since; ``wait`` until it is."""
        if self._thread is not None:
            if not wait and self._thread.is_alive():
                return
            self._thread.join()
            self._thread = None
        if not self._name:
            return
        name, failed, self._name, self._failed = self._name, self._failed, "", None
        if failed is None:
            self.journal.event("checkpoint", file=name)
        else:
            self.journal.say(f"warning: {failed}; training goes on")
            self.journal.event("checkpoint failed", reason=str(failed))

    def _try(self, content: dict[str, Any], best: str, weights: dict[str, Any]) -> None:
        try:
            self._write(content, best, weights)
        except (CheckpointError, OSError, MemoryError) as error:
            self._failed = error

    def _write(self, content: dict[str, Any], best: str, weights: dict[str, Any]) -> None:
        if best and best != self._best:  # weights of an epoch never change: written once
            checkpoint.save(self.folder / best, {"eval_model": weights})
            self._best = best
        checkpoint.save(self.folder / self._name, content)
        checkpoint.prune(self.folder)


class Unsaved(AsyncCheckpointer):
    """For a training that keeps nothing on its way: no checkpoint is ever due, and none is written."""

    def due(self, *, epoch_over: bool) -> bool:
        """Never."""
        return False

    def save(self, *, must: bool) -> None:
        """Nothing."""
