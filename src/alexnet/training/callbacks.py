"""Callbacks: objects that observe a training run.

A callback receives copies of plain values, never tensors of the network, the optimizer or a random generator, so it
cannot change what is computed. It is called by the first process of a run only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alexnet.errors import TrainingError
from alexnet.evaluation.metrics import Scores
from alexnet.recipe import Recipe


@dataclass(frozen=True)
class RunStart:
    """A run that is about to make its first step, or its next one after a resume.

    Attributes:
        folder: The run folder.
        recipe: All hyperparameters.
        data: Name of the data set.
        classes: Class names.
        images: Number of images by split: ``train``, ``validation``, ``test``.
        step: Steps made before: 0, or more in a resumed run.
        environment: PyTorch's version, the device and the number of processes.
    """

    folder: Path
    recipe: Recipe
    data: str
    classes: tuple[str, ...]
    images: Mapping[str, int]
    step: int
    environment: Mapping[str, str | int]


@dataclass(frozen=True)
class RunEnd:
    """The end of a run.

    Attributes:
        status: ``finished``; ``interrupted`` by a signal, and can be resumed; or ``failed``.
        error: The message of what ended the run early.
        bundle: The trained classifier; None unless finished.
        scores: Scores by split; empty unless finished.
        plots: The PNG files of the run; empty unless finished.
    """

    status: Literal["finished", "interrupted", "failed"]
    error: str = ""
    bundle: Path | None = None
    scores: Mapping[str, Scores] = field(default_factory=dict)
    plots: tuple[Path, ...] = ()


class Callback:
    """Base class of callbacks: override the methods that you need.

    An exception in :meth:`on_run_start` ends the run before its first step. An exception in another method is logged
    as a warning, and training goes on.

    Example:
        >>> class Print(alexnet.Callback):
        ...     def on_epoch_end(self, row):
        ...         print(row["epoch"], row["validation_top1"])
        >>> alexnet.train("digits", callbacks=[Print()])
    """

    def on_run_start(self, run: RunStart) -> None:
        """Training begins or is resumed."""

    def on_epoch_end(self, row: dict[str, float]) -> None:
        """An epoch has ended. ``row`` is its row of ``results.csv``: ``epoch`` (from 1), ``train_loss``, ..."""

    def on_checkpoint(self, path: Path) -> None:
        """The checkpoint ``path`` is on disk."""

    def on_run_end(self, end: RunEnd) -> None:
        """The run has finished, was interrupted or failed. It is called once after each :meth:`on_run_start`."""


class Callbacks:
    """The callbacks of a run as one.

    Attributes:
        problems: One line for each exception that a callback raised while the run went on.
        warn: Receives these lines.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise TrainingError(
                    f"callback {callback!r:.80}", "an instance of a subclass of alexnet.Callback, or a tracker's name"
                )
        self._callbacks = list(callbacks)
        self._started: list[Callback] = []
        self.problems: list[str] = []
        self.warn: Callable[[str], None] = lambda _line: None

    def run_start(self, run: RunStart) -> None:
        """Call ``on_run_start``. Raises :class:`TrainingError` where a callback raises."""
        for callback in self._callbacks:
            try:
                callback.on_run_start(run)
            except Exception as error:
                raise TrainingError(f"{_name(callback)} cannot start: {_reason(error)}") from error
            self._started.append(callback)

    def epoch_end(self, row: Mapping[str, float]) -> None:
        """Call ``on_epoch_end`` with a copy of ``row``."""
        self._call("on_epoch_end", lambda: dict(row))

    def checkpoint(self, path: Path) -> None:
        """Call ``on_checkpoint``."""
        self._call("on_checkpoint", lambda: path)

    def run_end(self, end: RunEnd) -> None:
        """Call ``on_run_end`` of the callbacks that have started."""
        self._call("on_run_end", lambda: end)
        self._started = []

    def _call(self, method: str, argument: Callable[[], Any]) -> None:
        for callback in self._started:
            try:
                getattr(callback, method)(argument())
            except Exception as error:
                self.problems.append(f"{_name(callback)}.{method} failed: {_reason(error)}")
                self.warn(f"{self.problems[-1]}; training goes on")


def _name(callback: Callback) -> str:
    return f"callback {type(callback).__name__}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
