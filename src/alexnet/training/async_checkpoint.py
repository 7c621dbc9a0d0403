"""When checkpoints are due, and the thread that writes them while training goes on.

The loop waits for the copy of the state, not for the disk. A checkpoint waits for the one before it. The last one is
written while the trained network is scored; the bundle waits for it. docs/training.md has the time that this saves.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alexnet.errors import CheckpointError
from alexnet.recipe import parse_interval
from alexnet.training import checkpoint
from alexnet.training.logger import RunLogger
from alexnet.training.state import State


class AsyncCheckpointer:
    """Writes the checkpoints of a run folder. Use it in ``with``: the end waits for a checkpoint being written."""

    def __init__(self, state: State, logger: RunLogger, folder: Path) -> None:
        self.state, self.logger, self.folder = state, logger, folder / "checkpoints"
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

        After the last step of an epoch it is due after the validation, so that no checkpoint is written twice.
        """
        (amount, unit), position = self.every, self.state.position
        if unit == "epoch":
            return epoch_over and position.epoch % amount == 0
        if unit == "step":
            return position.step // amount > self._step // amount
        waited = time.monotonic() - self.saved_at >= 60 * amount
        return waited and (epoch_over or unit == "min")

    def save(self, *, must: bool) -> None:
        """Write a checkpoint: now if ``must``, else in the background.

        A background checkpoint that cannot be written is logged, and training goes on.

        Raises:
            CheckpointError: If ``must`` and it cannot be written.
        """
        self._begin(self._write if must else self._write_in_thread, copied=not must)
        self.collect(wait=must)
        self.saved_at = time.monotonic()

    def begin_last(self) -> None:
        """Begin to write the last checkpoint. The state must not change until :meth:`finish`."""
        self._begin(self._write_in_thread, copied=False)

    def finish(self) -> None:
        """Wait for the last checkpoint. Raises :class:`CheckpointError` if it could not be written."""
        if self._thread is not None:
            self._thread.join()
        if self._failed is not None:
            raise self._failed
        self.collect(wait=True)

    def _begin(self, write: Callable[[dict[str, Any], str, dict[str, Any]], None], *, copied: bool) -> None:
        """Write a snapshot of the state by ``write``, after the checkpoint before it."""
        self.collect(wait=True)
        # All processes take part: shards of a network are gathered.
        content = self.state.snapshot(self.logger.size(), copied=copied and self.state.world.is_main)
        self.saved_at, self._step = time.monotonic(), self.state.position.step
        if self.state.world.is_main:
            self._name = checkpoint.name_of(self._step)
            write(content, self.state.best.file, self.state.best.weights)

    def collect(self, *, wait: bool = False) -> None:
        """Log the checkpoint that has been written since the last call; ``wait`` until it is written."""
        if self._thread is not None:
            if not wait and self._thread.is_alive():
                return
            self._thread.join()
            self._thread = None
        if not self._name:
            return
        name, failed, self._name, self._failed = self._name, self._failed, "", None
        if failed is None:
            self.logger.checkpoint(self.folder / name)
        else:
            self.logger.warn(f"{failed}; training goes on")
            self.logger.event("checkpoint failed", reason=str(failed))

    def _write_in_thread(self, *snapshot: Any) -> None:
        # Not a daemon thread: a process that ends for another reason still finishes its file.
        self._thread = threading.Thread(target=self._try, args=snapshot, name="checkpoint")
        self._thread.start()

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


class NoCheckpoints(AsyncCheckpointer):
    """For a training without checkpoints: none is ever due, and none is written."""

    def due(self, *, epoch_over: bool) -> bool:
        """Never."""
        return False

    def _begin(self, write: Callable[[dict[str, Any], str, dict[str, Any]], None], *, copied: bool) -> None:
        """Nothing is written."""
