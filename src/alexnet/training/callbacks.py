"""Callbacks: objects that observe a training run, and those that send it to MLflow, Weights & Biases or Trackio.

A callback receives copies of plain values, never tensors of the network, the optimizer or a random generator, so it
cannot change what is computed. It is called by the first process of a run only.
"""

import contextlib
import importlib
import io
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alexnet.data.atomic_io import json_bytes, read_regular, write_file
from alexnet.errors import RecipeError, TrainingError, did_you_mean
from alexnet.evaluation.metrics import Scores
from alexnet.recipe import Recipe
from alexnet.schema import parse_json


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
        environment: ``torch`` (its version), ``device``, ``native_kernels`` (whether they are compiled), and
            ``processes`` if there are several.
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
                raise TrainingError(
                    f"{_name(callback)} cannot start: {_reason(error)}", "", "mend it, or leave it out"
                ) from error
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


IDENTIFIERS = "trackers.json"


class Tracker(Callback):
    """A callback for one experiment tracker.

    It logs the recipe, a value per column of ``results.csv`` and epoch, the scores of the splits, and the plots.
    Weights are not sent. A resumed run continues the tracker's run, whose identifier is in ``trackers.json`` of the run
    folder. Server addresses and keys are read by the library from its own environment variables and files.

    Args:
        project: The project (in MLflow: the experiment) that the run is listed under.

    Attributes:
        name: Its name in :data:`TRACKERS`, which is also that of its library and of the extra that installs it.

    Raises:
        RecipeError: If the library is not installed.
    """

    name = ""

    def __init__(self, project: str = "alexnet") -> None:
        self.project = project
        try:
            self.library: Any = importlib.import_module(self.name)
        except ImportError as error:
            raise RecipeError(
                f"tracker {self.name} is not installed", "", f"pip install 'alexnet[{self.name}]'"
            ) from error

    def _resumed_id(self, run: RunStart) -> str | None:
        """The identifier of the tracker's run that a resumed run continues; None for a new run."""
        return _read_identifiers(run.folder).get(self.name) if run.step else None

    def _write_id(self, run: RunStart, identifier: str) -> None:
        identifiers = _read_identifiers(run.folder) | {self.name: identifier}
        write_file(run.folder / IDENTIFIERS, json_bytes(identifiers))


class MLflow(Tracker):
    """Log to MLflow: ``MLFLOW_TRACKING_URI``, or MLflow's default store in the current directory."""

    name = "mlflow"

    def on_run_start(self, run: RunStart) -> None:
        """Create an MLflow run, or continue that of a resumed run."""
        entities = self.library.entities
        self._client = self.library.MlflowClient()
        identifier = self._resumed_id(run)
        if identifier:
            self._client.update_run(identifier, status="RUNNING")
        else:
            experiment = self._client.get_experiment_by_name(self.project)
            number = experiment.experiment_id if experiment else self._client.create_experiment(self.project)
            tags = {"folder": str(run.folder.resolve()), **{k: str(v) for k, v in run.environment.items()}}
            identifier = self._client.create_run(number, tags=tags, run_name=run.folder.name).info.run_id
            params = [entities.Param(name, str(value)) for name, value in _config(run).items()]
            for start in range(0, len(params), 100):  # the most that MLflow takes at once
                self._client.log_batch(identifier, params=params[start : start + 100])
            self._write_id(run, identifier)
        self._id, self._folder, self._step = identifier, run.folder, run.step

    def on_epoch_end(self, row: dict[str, float]) -> None:
        """Log the row; MLflow's step is the epoch."""
        self._log(row, int(row["epoch"]))

    def on_run_end(self, end: RunEnd) -> None:
        """Log scores, plots, recipe and results; end the MLflow run."""
        self._log(_scores(end), 0)
        for path in end.plots:
            self._client.log_artifact(self._id, str(path), "plots")
        for name in ("recipe.toml", "results.csv"):
            with contextlib.suppress(FileNotFoundError):
                self._client.log_artifact(self._id, str(self._folder / name))
        status = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}[end.status]
        self._client.set_terminated(self._id, status)

    def _log(self, values: dict[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self.library.entities.Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)


class WandB(Tracker):
    """Log to Weights & Biases. With ``WANDB_MODE=offline`` nothing is sent: ``wandb sync`` does that later."""

    name = "wandb"

    def on_run_start(self, run: RunStart) -> None:
        """Start a W&B run, or continue that of a resumed run."""
        self._run = self.library.init(
            project=self.project,
            name=run.folder.name,
            config=_config(run),
            id=self._resumed_id(run),
            resume="allow",
            reinit="create_new",  # a run that the caller has open stays open
        )
        self._run.define_metric("*", step_metric="epoch")
        self._write_id(run, self._run.id)

    def on_epoch_end(self, row: dict[str, float]) -> None:
        """Log the row; the x-axis is the epoch."""
        self._run.log(row)

    def on_run_end(self, end: RunEnd) -> None:
        """Log scores and plots; end the W&B run."""
        self._run.summary.update(_scores(end))
        if end.plots:
            self._run.log({path.stem: self.library.Image(str(path)) for path in end.plots})
        self._run.finish(exit_code=0 if end.status == "finished" else 1)


class Trackio(Tracker):
    """Log to Trackio, a local dashboard with the interface of W&B: ``trackio show``."""

    name = "trackio"

    def on_run_start(self, run: RunStart) -> None:
        """Start a Trackio run, or continue that of a resumed run."""
        name = self._resumed_id(run) or f"{run.folder.name}-{int(time.time())}"
        with _on_stderr():
            self._run = self.library.init(project=self.project, name=name, config=_config(run), resume="allow")
        self._write_id(run, name)

    def on_epoch_end(self, row: dict[str, float]) -> None:
        """Log the row; Trackio's step is the epoch."""
        self._run.log(row, step=int(row["epoch"]))

    def on_run_end(self, end: RunEnd) -> None:
        """Log scores and plots; end the Trackio run."""
        images = {path.stem: self.library.Image(str(path)) for path in end.plots}
        if values := _scores(end) | images:
            self._run.log(values)
        with _on_stderr():
            self.library.finish()  # the run's own method leaves it open for the end of the process, which prints again


TRACKERS: dict[str, type[Tracker]] = {kind.name: kind for kind in (MLflow, WandB, Trackio)}


def resolve(callbacks: Sequence[Callback | str]) -> list[Callback]:
    """``callbacks`` with each name of a tracker replaced by the tracker. Raises :class:`RecipeError`."""
    return [tracker(callback) if isinstance(callback, str) else callback for callback in callbacks]


def tracker(name: str, project: str = "alexnet") -> Tracker:
    """The tracker of this name. Raises :class:`RecipeError` if it is unknown or not installed."""
    if name not in TRACKERS:
        raise RecipeError(f"unknown tracker {name!r}. {did_you_mean(name, TRACKERS)}")
    return TRACKERS[name](project)


@contextlib.contextmanager
def _on_stderr() -> Iterator[None]:
    """What a library prints goes to standard error, without colors: standard output is for results."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            yield
    finally:
        sys.stderr.write(re.sub(r"\x1b\[[\d;]*m", "", text.getvalue()))


def _config(run: RunStart) -> dict[str, Any]:
    """What is constant in a run: the recipe and the data."""
    counts = {f"{split}_images": count for split, count in run.images.items()}
    return {**run.recipe.to_dict(), "data": run.data, "classes": len(run.classes), **counts}


def _scores(end: RunEnd) -> dict[str, float]:
    """The final scores by name: ``final/test_top1``, ..."""
    return {
        f"final/{split}_{name}": value
        for split, scores in end.scores.items()
        for name in ("top1", "top5", "loss")
        if (value := scores.to_dict()[name]) is not None
    }


def _read_identifiers(folder: Path) -> dict[str, str]:
    try:
        content = parse_json(read_regular(folder / IDENTIFIERS))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in content.items()} if isinstance(content, dict) else {}
