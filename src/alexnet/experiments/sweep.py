"""A sweep: a search for hyperparameters by the validation split, with Optuna.

Trials propose values (TPE) and train with them; a trial whose validation error is above the median of the earlier ones
at the same epoch is pruned. The best trials are trained again with other seeds, because the lowest of many errors is
partly luck. The mean error over these seeds chooses the winner, and the winner alone is evaluated on the test split:
no training has it.

The folder holds ``study.db`` (Optuna's study in SQLite), ``plan.json``, a run folder for each training of the best
trials, ``sweep.json``, ``sweep.png`` and ``best.toml``. The same command continues an interrupted sweep.
"""

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alexnet.data.atomic_io import json_bytes, write_file
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store, Subset
from alexnet.errors import DataError, RecipeError, RunError, TrainingError, counted, did_you_mean, printable
from alexnet.experiments.runner import (
    Job,
    TrainedModel,
    check_same_plan,
    get_or_train,
    read_plan,
    t_interval,
    write_result,
)
from alexnet.recipe import Recipe, group_of, to_toml
from alexnet.recipe.config import check_value, rules
from alexnet.schema import parse_toml, read_toml_text
from alexnet.terminal import format_duration
from alexnet.training.callbacks import Callbacks
from alexnet.training.finetune import PretrainedWeights
from alexnet.training.run_data import open_store
from alexnet.training.run_folder import locked
from alexnet.training.schedule import with_default_epochs

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

STARTUP_TRIALS = 4  # drawn at random and not pruned: TPE and the pruner need some to compare with
MAX_REFUSED = 20  # trials in a row whose values contradict each other

# All trainings share one store, and a seed is not searched for.
_FIXED = ("seed", "stored_size", "fit", "validation", "test", "train_on_val_from_epoch")


class Dimension(NamedTuple):
    """The values of one hyperparameter: a range (``log``: uniform in the logarithm), or ``choices``."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float = 0.0
    choices: tuple[Any, ...] = ()


@dataclass(frozen=True)
class SweepConfig:
    """Settings of the user.

    Attributes:
        space: Hyperparameter -> its values.
        budget: Seconds of all trainings together.
        trials: Trials at most; 0: as many as the budget allows.
        finalists: The best trials that are trained with other seeds.
        seeds: Trainings of each of them.
    """

    space: Mapping[str, Dimension]
    budget: float
    trials: int = 0
    finalists: int = 3
    seeds: int = 3

    def __post_init__(self) -> None:
        for name, value, minimum in (("trials", self.trials, 0), ("finalists", self.finalists, 1)):
            if value < minimum:
                raise RecipeError(f"--{name} is {value}", f"at least {minimum}")
        if self.seeds < 2:
            raise RecipeError(f"--seeds is {self.seeds}", "at least 2: an interval needs them")


class TrialRow(NamedTuple):
    """A trial: its number, its values, its validation error (the lowest before it was pruned), and its seconds."""

    number: int
    values: dict[str, Any]
    error: float
    pruned: bool
    seconds: float


@dataclass(frozen=True)
class Finalist:
    """A trial that was trained with other seeds: its validation error and its recipe for each seed."""

    trial: TrialRow
    recipe: Recipe
    errors: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean validation error over the seeds."""
        return float(np.mean(self.errors))


@dataclass(frozen=True)
class SweepResult:
    """All trials, the finalists with the winner first, and the winner's test accuracy, a value for each seed."""

    trials: tuple[TrialRow, ...]
    finalists: tuple[Finalist, ...]
    test_accuracies: tuple[float, ...]
    test_images: int
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "trials": [trial._asdict() for trial in self.trials],
            "finalists": [
                {
                    "trial": finalist.trial.number,
                    "values": finalist.trial.values,
                    "validation_errors": list(finalist.errors),
                    "mean": finalist.mean,
                    "interval": _interval(finalist.errors),
                }
                for finalist in self.finalists
            ],
            "test": {
                "images": self.test_images,
                "top1": list(self.test_accuracies),
                "mean": float(np.mean(self.test_accuracies)) if self.test_accuracies else None,
                "interval": _interval(self.test_accuracies),
            },
            "recipe": str(self.folder / "best.toml"),
            "plot": str(self.folder / "sweep.png"),
        }


def _interval(fractions: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the mean of at least two fractions, within 0 and 1."""
    low, high = t_interval(fractions) or (0.0, 1.0)
    return max(low, 0.0), min(high, 1.0)


def read_space(path: Path) -> dict[str, Dimension]:
    """Read a space file: ``lr = {low = 1e-4, high = 1e-2, log = true}``, ``batch_size = [32, 64]``.

    Raises:
        RecipeError: The file, a name or a range is wrong.
    """
    try:
        tables = parse_toml(read_toml_text(path))
    except OSError as error:
        raise RecipeError(f"space file {path} cannot be read: {error.strerror}", "", "pass a TOML file") from error
    except ValueError as error:  # of TOML, and of UTF-8
        raise RecipeError(
            f"{path} is not valid TOML: {error}", "", "write lr = {low = 1e-4, high = 1e-2, log = true}"
        ) from error
    if not tables:
        raise RecipeError(f"{path} names no hyperparameter", "", "write lr = {low = 1e-4, high = 1e-2, log = true}")
    return {name: _dimension(f"{path}: {name}", name, value) for name, value in tables.items()}


def _dimension(label: str, name: str, value: Any) -> Dimension:
    if name not in group_of():
        hint = did_you_mean(name, group_of(), synonyms={"learning_rate": "lr"})
        raise RecipeError(f"{label} is no hyperparameter. {hint}")
    if name in _FIXED or rules()[name].type is tuple:
        raise RecipeError(f"{label} cannot be searched", "", "leave it out; --recipe sets it for all trials")
    if isinstance(value, list):
        if len(value) < 2 or len(set(map(repr, value))) < len(value):
            raise RecipeError(f"{label} is {value}", "a list of at least two different values")
        for choice in value:
            check_value(name, choice, label)
        return Dimension(choices=tuple(value))
    if not isinstance(value, dict) or not {"low", "high"} <= set(value) <= {"low", "high", "log", "step"}:
        raise RecipeError(f"{label} is {value}", "a list of values, or {low = ..., high = ...} with log or step")
    if rules()[name].type not in (int, float):
        raise RecipeError(f"{label} has a range", "a list of values")
    for end in ("low", "high"):
        check_value(name, value[end], f"{label}.{end}")
    log, step = value.get("log", False), value.get("step", 0)
    if not isinstance(log, bool) or isinstance(step, bool) or not _is_step(step):
        raise RecipeError(f"{label} is {value}", "log: true or false; step: a number above 0")
    if value["low"] >= value["high"] or (log and (value["low"] <= 0 or step)):
        raise RecipeError(f"{label} is {value}", "low below high; with log above 0 and without step")
    if rules()[name].type is int and step != int(step):
        raise RecipeError(f"{label}.step is {step}", "an integer")
    return Dimension(value["low"], value["high"], log, step)


def _is_step(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def run_sweep(
    data: str,
    base: Recipe,
    config: SweepConfig,
    folder: Path,
    options: DataOptions,
    *,
    init_from: PretrainedWeights | None = None,
    device: str = "auto",
    num_workers: int = 1,
) -> SweepResult:
    """Search, train the best trials again, and evaluate the winner on the test split.

    Args:
        data: A dataset as ``alexnet train`` accepts it.
        base: The recipe whose fields the space overrides.
        config: Space, budget, seeds.
        folder: Holds the whole sweep; of an earlier call with the same plan it is continued.
        options: Cache folder, logging and layout of the dataset.
        init_from: Pretrained weights that every training starts from.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        num_workers: Data-loading threads.

    Raises:
        DataError: The data has no validation or no test images.
        RecipeError: The budget is too short, or the values of the space contradict each other.
        RunError: The folder holds another sweep, or Optuna is not installed.
        Interrupted: A signal stopped a training. The same call continues.
    """
    optuna = _optuna()
    store = open_store(data, base, options)
    for split in ("validation", "test"):
        if not len(store.split(split)):
            raise DataError(f"{store.address} has no {split} images", "", "prepare a store that has them")
    base = with_default_epochs(base, len(store.split("train")))
    plan = {
        "data": str(data),
        "store": store.fingerprint,
        "space": {name: dimension._asdict() for name, dimension in config.space.items()},
        "init_from": init_from.name if init_from else "",
        "recipe": base.to_dict(),
    }
    with locked(folder):
        check_same_plan(plan, read_plan(folder, "sweep", ignore_files=(".lock",)), folder, "sweep", ignore=())
        write_result(folder / "plan.json", plan)
        study = _open_study(folder / "study.db", config.space)
        # A proposal is a function of the seed and the trials before it.
        study.sampler = optuna.samplers.TPESampler(seed=base.seed + len(study.trials), n_startup_trials=STARTUP_TRIALS)
        sweep = _Sweep(base, config, folder, _without_test(store), options, init_from, device, num_workers, study)
        sweep.search()
        finalists = sweep.finals()
        winner = finalists[0]
        models = [sweep.train(_job(winner.trial, winner.recipe, seed)) for seed in sweep.seeds]
        options.log_line(f"test: the winner, trial {winner.trial.number}, on {len(store.split('test'))} images")
        scores = [model.scores("test", 1, device) for model in models]
        result = SweepResult(
            tuple(sweep.rows()),
            tuple(finalists),
            tuple(score["top1"] for score in scores),
            len(store.split("test")),
            folder,
        )
        write_file(folder / "best.toml", to_toml(winner.recipe).encode())
        write_file(folder / "sweep.json", json_bytes(result.to_dict()))
        _draw(result, config.space, store.name)
        return result


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise RunError("a sweep needs Optuna", "installed", "pip install 'alexnet[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _open_study(path: Path, space: Mapping[str, Dimension]) -> "Study":
    """The study in the file ``path``, new if there is none. Raises :class:`RunError` if the file is damaged."""
    optuna = _optuna()
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a regular file")
        url = f"sqlite:///{path.resolve()}"
        study = optuna.create_study(
            storage=optuna.storages.RDBStorage(url, skip_table_creation=path.exists() and path.stat().st_size > 0),
            study_name="sweep",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=2),
        )
        for number, trial in enumerate(study.trials):
            if trial.number != number:
                raise ValueError(f"trial {number} is missing")
            _check_trial(trial, space)
    except Exception as error:  # those of Optuna, SQLAlchemy and Alembic have no common class
        reason = printable(" ".join(str(error).split()))
        hint = f"delete {path.name} to search again, or choose another --output-dir"
        raise RunError(f"{path} is damaged: {reason:.200}", "", hint) from error
    return study


def _check_trial(trial: "FrozenTrial", space: Mapping[str, Dimension]) -> None:
    """Raise ValueError, TypeError or KeyError for a trial that the search cannot have made."""
    for name, distribution in _distributions({name: space[name] for name in trial.params}).items():
        if not distribution._contains(distribution.to_internal_repr(trial.params[name])):
            raise ValueError(f"trial {trial.number} has {name} = {trial.params[name]!r:.40}")
    if _is_over(trial):
        errors = trial.intermediate_values if trial.state.name == "PRUNED" else trial.value
        if set(trial.params) != set(space) or "seconds" not in trial.user_attrs or errors in (None, {}):
            raise ValueError(f"trial {trial.number} is incomplete")
        row = _row(trial)
        if not (0 <= row.error <= 1 and row.seconds >= 0):
            raise ValueError(f"trial {trial.number} has error {row.error:.9g} and took {row.seconds:.9g} s")


def _is_over(trial: "FrozenTrial") -> bool:
    """Was the trial trained to its end, or until it was pruned? Not if it was stopped, refused or failed."""
    return trial.state.name in ("COMPLETE", "PRUNED")


def _without_test(store: Store) -> Store:
    """The store without test images, so that no training of the search can evaluate them."""
    hidden = Store.open(store.address)
    hidden.splits = hidden.splits | {"test": Subset(hidden.split("test"), np.zeros(0, np.int64))}
    return hidden


def _job(trial: TrialRow, recipe: Recipe, seed: int) -> Job:
    return Job(f"trial {trial.number}", recipe.replace(seed=seed))


class _Reporter(Callbacks):
    """Reports the validation error of each epoch to a trial, and ends a trial that the pruner gives up."""

    def __init__(self, trial: "Trial") -> None:
        super().__init__()
        self.trial = trial

    def epoch_end(self, row: Mapping[str, float]) -> None:
        """Raise Optuna's ``TrialPruned`` where the trial is given up; it ends the training."""
        from optuna import TrialPruned

        self.trial.report(1 - row["validation_top1"], int(row["epoch"]))
        if self.trial.should_prune():
            raise TrialPruned


@dataclass
class _Sweep:
    """A sweep in progress."""

    base: Recipe
    config: SweepConfig
    folder: Path
    store: Store  # without test images
    options: DataOptions
    init_from: PretrainedWeights | None
    device: str
    num_workers: int
    study: "Study"

    @property
    def seeds(self) -> range:
        """The seeds of the finals; the trials have that of the base recipe."""
        return range(self.base.seed + 1, self.base.seed + 1 + self.config.seeds)

    def rows(self) -> list[TrialRow]:
        """The trials that are over, in their order."""
        return [_row(trial) for trial in self.study.trials if _is_over(trial)]

    def train(self, job: Job, callbacks: Callbacks | None = None) -> TrainedModel:
        """The training of ``job``, reused if it is finished."""
        return get_or_train(
            job,
            self.store,
            self.folder / job.folder_name,
            device=self.device,
            num_workers=self.num_workers,
            init_from=self.init_from,
            callbacks=callbacks,
        )

    def search(self) -> None:
        """Run trials while there is time for another one and for the finals."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):  # stopped with the process that ran it
            self.study.enqueue_trial(trial.params)
            self.study.tell(trial.number, state=TrialState.FAIL)
            self._discard(trial.number)
        refused = 0
        while refused < MAX_REFUSED and self._another():
            refused = 0 if self._try(self.study.ask(_distributions(self.config.space))) else refused + 1
        if not [row for row in self.rows() if not row.pruned]:
            raise RecipeError("all trials were refused or failed", "", "change the space, or the recipe")

    def _another(self) -> bool:
        """Is there time for one more trial? Raises :class:`RecipeError` if there is none for the finals."""
        rows = self.rows()
        if self.config.trials and len(rows) >= self.config.trials:
            return False
        whole = [row.seconds for row in rows if not row.pruned]
        if not whole:
            return True
        typical, finals = float(np.mean(whole)), self.config.finalists * self.config.seeds
        spent = sum(row.seconds for row in rows)
        if len(rows) == 1 and not self.config.trials and (2 + finals) * typical > self.config.budget:
            raise RecipeError(
                f"--budget is {format_duration(self.config.budget)}: a training takes {format_duration(typical)}, and "
                f"--finalists {self.config.finalists} with --seeds {self.config.seeds} are {finals} of them",
                "",
                "pass a longer --budget, fewer --epochs or fewer --finalists; the same command continues",
            )
        return spent + (1 + finals) * typical <= self.config.budget

    def _try(self, trial: "Trial") -> bool:
        """Train one trial; False if its values contradict each other, or need more memory than there is."""
        from optuna import TrialPruned
        from optuna.trial import TrialState

        started, values = time.perf_counter(), dict(trial.params)
        value: float | None
        text = ", ".join(f"{name} {_shown(value)}" for name, value in values.items())
        try:
            recipe = self.base.replace(**values)
            if self.init_from is not None:
                self.init_from.check(recipe)
        except RecipeError as error:
            self.options.log_line(f"trial {trial.number}: {text}: refused: {error}")
            self.study.tell(trial, state=TrialState.FAIL)
            return False
        try:
            model = self.train(Job(f"trial {trial.number}", recipe), _Reporter(trial))
            state, value = TrialState.COMPLETE, 1.0 if model.diverged else _error(model)
            outcome = f"{100 * value:.1f} % validation error"
        except TrialPruned:
            state, value = TrialState.PRUNED, None
            outcome = f"pruned after {counted(len(trial.study.trials[trial.number].intermediate_values), 'epoch')}"
        except TrainingError as error:  # no memory, which says nothing of the error that these values give
            self.options.log_line(f"trial {trial.number}: {text}: failed: {error.what}")
            self.study.tell(trial, state=TrialState.FAIL)
            self._discard(trial.number)
            return False
        seconds = time.perf_counter() - started
        trial.set_user_attr("seconds", seconds)
        self.study.tell(trial, value, state=state)
        self._discard(trial.number)
        self.options.log_line(f"trial {trial.number}: {text}: {outcome}, {format_duration(seconds)}")
        return True

    def _discard(self, number: int) -> None:
        """Delete the run folder of a trial: a hundred megabytes each, and study.db has its errors."""
        for folder in self.folder.glob(f"trial-{number}-lr*-seed{self.base.seed}"):
            shutil.rmtree(folder)

    def finals(self) -> list[Finalist]:
        """The best trials, trained with other seeds; the one with the lowest mean error first."""
        whole = sorted((row for row in self.rows() if not row.pruned), key=lambda row: row.error)
        finalists = []
        for row in whole[: self.config.finalists]:
            recipe = self.base.replace(**row.values)
            errors = []
            for seed in self.seeds:
                model = self.train(_job(row, recipe, seed))
                errors.append(1.0 if model.diverged else _error(model))
                self.options.log_line(f"trial {row.number}, seed {seed}: {100 * errors[-1]:.1f} % validation error")
                shutil.rmtree(model.folder / "checkpoints", ignore_errors=True)  # the bundle marks it as finished
            finalists.append(Finalist(row, recipe, tuple(errors)))
        return sorted(finalists, key=lambda finalist: (finalist.mean, finalist.trial.error))


def _error(model: TrainedModel) -> float:
    """The validation error of the weights that the recipe keeps."""
    if model.job.recipe.select_weights == "best":
        return model.best_validation_error
    epochs = [row for row in model.epochs if "validation_top1" in row]
    if model.job.recipe.select_weights == "best-loss":
        return 1 - min(epochs, key=lambda row: row["validation_loss"])["validation_top1"]
    return 1 - epochs[-1]["validation_top1"]


def _row(trial: "FrozenTrial") -> TrialRow:
    error = trial.value if trial.value is not None else min(trial.intermediate_values.values(), default=1.0)
    pruned = trial.state.name == "PRUNED"
    return TrialRow(trial.number, dict(trial.params), float(error), pruned, float(trial.user_attrs["seconds"]))


def _distributions(space: Mapping[str, Dimension]) -> dict[str, Any]:
    """The space as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distributions: dict[str, Any] = {}
    for name, (low, high, log, step, choices) in space.items():
        if choices:
            distributions[name] = CategoricalDistribution(choices)
        elif rules()[name].type is int:
            distributions[name] = IntDistribution(int(low), int(high), log=log, step=int(step) or 1)
        else:
            distributions[name] = FloatDistribution(low, high, log=log, step=step or None)
    return distributions


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _draw(result: SweepResult, space: Mapping[str, Dimension], name: str) -> None:
    from alexnet.plots import studies

    trials = [studies.SweepTrial(t.number, t.error, t.pruned, t.values) for t in result.trials]
    finals = [(f"trial {f.trial.number}", f.errors) for f in result.finalists]
    log = {parameter for parameter, dimension in space.items() if dimension.log}
    studies.draw_sweep(f"Sweep on {name}", trials, finals, log, result.folder / "sweep.png")
