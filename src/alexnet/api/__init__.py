"""The commands from Python. The command line calls these functions and prints their results."""

import html
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from alexnet import recipe as recipes
from alexnet.api.comparison import compare, promote, promote_back
from alexnet.api.evaluation import (
    EvaluationOptions,
    calibrate,
    evaluate,
    evaluate_corruptions,
    evaluate_detailed,
)
from alexnet.api.reporting import compress, data_warnings, diagnose, plot, write_report
from alexnet.compression.compress import CompressionResult
from alexnet.compression.deep import CompressionOptions
from alexnet.cuda_convnet import Files
from alexnet.data.prepare import prepare_dataset as prepare
from alexnet.data.remote import local_path
from alexnet.data.sources import saved_folder
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store, recorded_store
from alexnet.errors import AlexNetError, Interrupted, RecipeError, RunError, printable
from alexnet.evaluation.metrics import Scores
from alexnet.evaluation.one_vs_rest import Cost
from alexnet.explain.opened_run import OpenedRun
from alexnet.export.classifier import Classifier, Precision
from alexnet.plots import PLOTS, TRAINING_PLOTS, curves, run_plots
from alexnet.plots.run_plots import PlotOptions
from alexnet.recipe import Recipe
from alexnet.report import report as reports
from alexnet.system import cache_folder, choose_device, temporary_folder
from alexnet.terminal import html_table, parse_duration
from alexnet.training import batch_size, layer_files, run_folder, runtime, time_budget
from alexnet.training.callbacks import Callback, Callbacks, RunEnd, resolve
from alexnet.training.distributed import communication
from alexnet.training.distributed import world as rendezvous
from alexnet.training.distributed.sharding import SINGLE_PROCESS, Layout
from alexnet.training.distributed.world import World
from alexnet.training.finetune import (
    FEW_EPOCHS,
    InitialWeights,
    PretrainedWeights,
    default_recipe,
    for_few_epochs,
    initial_weights,
    recorded,
)
from alexnet.training.logger import write_summary
from alexnet.training.run import data_size_warnings, score_warnings, train_run
from alexnet.training.run_data import open_store, shuffle_window
from alexnet.training.run_folder import provenance
from alexnet.training.schedule import with_default_epochs
from alexnet.training.task import check_network

__all__ = [
    "PLOTS",
    "Callback",
    "CompressionOptions",
    "CompressionResult",
    "Cost",
    "DataOptions",
    "EvaluationOptions",
    "Result",
    "calibrate",
    "compare",
    "compress",
    "data_warnings",
    "diagnose",
    "evaluate",
    "evaluate_corruptions",
    "evaluate_detailed",
    "load",
    "open_store",
    "plot",
    "prepare",
    "promote",
    "promote_back",
    "provenance",
    "resume",
    "torch_device",
    "train",
    "write_report",
]


@dataclass(frozen=True)
class Result:
    """The result of a training.

    Attributes:
        folder: The run folder.
        bundle: The trained classifier in it; :func:`load` opens it.
        scores: Scores by split: ``test``, and ``validation`` if there is one.
        images_per_second: Speed of the training steps.
        seconds: Duration of the call: preparing the data, training, evaluation, plots.
        recipe: All hyperparameters.
        plots: The PNG files.
        warnings: Reasons not to trust the scores.
        notes: Limits of the scores.
        sent: Bytes that the first of several processes sent per step, by purpose.
        first: Is this the first of several processes?
        report: The report, if one was requested and could be written.
    """

    folder: Path
    bundle: Path
    scores: dict[str, Scores]
    images_per_second: float
    seconds: float
    recipe: Recipe
    plots: tuple[Path, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sent: dict[str, float] = field(default_factory=dict)
    first: bool = True
    report: Path | None = None

    def classifier(self) -> Classifier:
        """The trained classifier, ready to predict."""
        return Classifier.load(self.bundle)

    def _repr_html_(self) -> str:
        """The scores as a table, for notebooks."""
        rows = [
            (name, s.count, f"{100 * s.top1:.1f} %", "{:.1f} to {:.1f} %".format(*(100 * x for x in s.top1_interval)))
            for name, s in self.scores.items()
        ]
        table = html_table(f"{self.recipe.model}: {self.folder}", ("split", "images", "top-1", "95 % CI"), rows)
        lines = [*(f"Warning: {line}" for line in self.warnings), *self.notes]
        return table + "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def train(
    data: str | Path | Any,
    recipe: Recipe | str | Path | None = None,
    run: str | Path | None = None,
    *,
    init_from: str | Path | PretrainedWeights | InitialWeights = "",
    options: DataOptions | None = None,
    device: str = "auto",
    workers: int = 1,
    quiet: bool = True,
    layers: str | Path | None = None,
    layer_params: str | Path | None = None,
    layout: Layout = SINGLE_PROCESS,
    callbacks: Sequence[Callback | str] = (),
    report: bool = False,
    time: str = "",
    go_on: bool = False,
    **changes: Any,
) -> Result:
    """Train or fine-tune a classifier.

    Args:
        data: The name of a data set, a folder, a table, an archive or a store; docs/data.md lists all. Or a
            ``datasets.Dataset`` or ``DatasetDict`` of Hugging Face, which is saved to the cache.
        recipe: A :class:`Recipe`, the name of one, or a recipe file (``.toml``, such as the ``recipe.toml`` of a run).
            By default the one that fits the data, the network and the initial weights.
        run: The new folder for all files of the run; by default ``runs/DATA-MODEL``.
        init_from: The initial weights: ``starter`` (those of this package), ``imagenet`` (those that torchvision
            downloads), ``scratch`` (random), or a run folder or bundle, whose network and normalization are kept. By
            default the starter for your own images, unless the recipe or the network says otherwise.
        options: How the data is read and cached.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: Data-loading threads (does not affect results).
        quiet: Print no progress.
        layers: Layer file of cuda-convnet that defines the network; needs ``layer_params``.
        layer_params: Its parameter file with learning rates, momenta, decay and schedules, in place of the recipe's.
        layout: How the processes that torchrun started share the work.
        callbacks: Observers of the run (:class:`alexnet.Callback`), or names of trackers: ``mlflow``, ``wandb``,
            ``trackio``.
        report: Examine the data and write the quick ``report.html`` at the end.
        time: Plan the number of epochs so that this call ends in this time: ``30min``, ``1.5h``. A few steps are
            measured; ``recipe.toml`` records the number.
        go_on: Continue the run if this call has begun it before, for a process that torchrun restarted.
        **changes: Fields of the recipe to override, such as ``epochs=3``. ``batch_size="auto"`` chooses the largest
            power of two that memory and data allow (:mod:`alexnet.training.batch_size`).

    Returns:
        The scores of the run and the paths of its files.

    Raises:
        RecipeError: An option or a field of the recipe is wrong, or has no effect.
        DataError: The data cannot be used.
        RunError: The run folder exists, or cannot be written.
        TrainingError: The training failed: out of memory, a loss that is NaN or Inf.
        Interrupted: A signal stopped the run, which was saved; :func:`alexnet.api.resume` continues it.

    Example:
        >>> result = alexnet.train("images", run="my-run", epochs=20)
        >>> print(result.scores["test"].top1)
    """
    started, options = perf_counter(), options or DataOptions()
    if not isinstance(data, str | Path):
        data = saved_folder(data, options.cache or cache_folder())
    observers = Callbacks(resolve(callbacks))
    choose_batch = changes.get("batch_size") == batch_size.AUTO
    changes = {name: value for name, value in changes.items() if not (choose_batch and name == "batch_size")}
    files = layer_files.of_training(layers, layer_params)
    if isinstance(init_from, PretrainedWeights):
        init_from = InitialWeights(init_from, init_from.name)
    elif not isinstance(init_from, InitialWeights):
        init_from = initial_weights(str(data), recipe or "", init_from, changes, layer_file=files is not None)
    start = init_from.pretrained
    base = _base_recipe(str(data), "layer_file" if recipe is None and files else recipe, start, changes)
    named = not isinstance(recipe, Recipe)
    few_epochs = for_few_epochs(changes) if base.recipe == "finetune" and not recipe else {}
    recipe = base.replace(**changes)
    if start is not None:
        start.check(recipe)
    recipe = layer_files.fitting(recipe, files, start) if files else recipe
    recipes.check_effect(recipe, base if named else None)
    if start is None and changes.get("fit_last_layer"):
        raise RecipeError("--fit-last-layer has no effect with random weights", "", "leave it out, or pass --init-from")
    deadline = started + parse_duration(time, "--time") if time else 0.0
    if time:
        time_budget.check_plannable(recipe, changes)
    chosen = torch_device(device)
    recipe = runtime.resolve_auto(recipe, chosen)
    recipe = recipe.replace(shuffle_window=shuffle_window(data, recipe))
    layout.check(files, recipe)
    _check_workers(workers)
    with rendezvous.init_world(chosen, layout.tp_size, hybrid=layout.hybrid) as world, ExitStack() as held:
        if time and (go_on or world.size > 1):
            raise RecipeError("--time measures one process", "", "pass --epochs with torchrun")
        if choose_batch and (go_on or world.size > 1):
            raise RecipeError("--batch-size auto is for one process", "", "pass a number with torchrun")
        if world.is_main:
            folder = local_path(run) if run is not None else _new_folder(data, recipe)
            again = go_on and (folder / "run.json").exists()
            store = _begun(folder, data, recipe, few_epochs) if again else _fresh(folder, data, recipe, options, files)
            options.log_line(f"initial weights: {init_from.why}")
            if choose_batch:
                recipe = batch_size.choose_batch_size(
                    recipe,
                    store,
                    world.device,
                    keep_lr="lr" in changes,
                    start=start,
                    files=files,
                    log=options.log_line,
                )
            if time:
                recipe = time_budget.plan_epochs(
                    recipe,
                    store,
                    world.device,
                    deadline,
                    few_epochs=few_epochs,
                    start=start,
                    files=files,
                    after=lambda speed: _seconds_after(store, speed, report=report),
                    log=options.log_line,
                )
            recipe = _with_epochs(recipe, store, few_epochs)
            if few_epochs and recipe.epochs < FEW_EPOCHS:
                values = " ".join(f"{recipes.option(name)} {value:g}" for name, value in few_epochs.items())
                options.log_line(f"fewer than {FEW_EPOCHS} epochs, so weaker augmentation: {values}")
            held.enter_context(run_folder.locked(folder) if again else run_folder.new_run_folder(folder))
            if not again:
                metadata: dict[str, Any] = {"data": str(data), "directory": str(Path.cwd()), "store": store.absolute}
                if words := options.to_args():
                    metadata["options"] = words
                run_folder.write_start(
                    folder, recipe, metadata | ({"from": start.about(store.classes)} if start else {}), files
                )
            world.broadcast_text(f"{'again' if again else 'fresh'} {folder.resolve()}")
        else:
            word, _, path = world.broadcast_text("").partition(" ")
            folder, again = Path(path), word == "again"
            store = Store.open(run_folder.read_start(folder)[1]["store"])
            recipe = _with_epochs(recipe, store, few_epochs)
        kwargs: dict[str, Any] = {"workers": workers, "quiet": quiet, "layout": layout}
        kwargs |= {"callbacks": observers, "resume": again, "start": start}
        result, opened = _run(recipe, store, folder, world=world, **kwargs)
    return _finished(result, opened if report else None, started)


def _seconds_after(store: Store, speed: time_budget.TrainingSpeed, *, report: bool) -> float:
    """Seconds of the plots after a training, and of its report: multiples of those of one plot, which is drawn here.

    The factors are processor time, measured with 1,797 digits: 5.1 s for the four plots, 3 s for the report and 3 s for
    the doctor, where the second drawing of a plot took 0.7 s.
    """
    with temporary_folder() as folder:
        for _ in range(2):  # the first one loads matplotlib
            started = perf_counter()
            curves.draw([{"epoch": 1.0, "train_loss": 1.0, "train_top1": 0.5, "lr": 0.1}], folder / "curves.png")
            plot = perf_counter() - started
    if not report:
        return 8 * plot
    images = sum(map(len, store.splits.values()))
    doctor = images / 400 if images <= reports.QUICK_DOCTOR_IMAGES else 0.0
    return (12 + doctor) * plot + 400 * speed.evaluate  # two occlusion maps of 169 squares, and the images shown


def _check_workers(workers: int) -> None:
    if workers < 0:
        raise RecipeError(f"--num-workers is {workers}", "0 or more")


def _fresh(folder: Path, data: str | Path, recipe: Recipe, options: DataOptions, files: Files | None) -> Store:
    """The store of a new run, prepared if need be; raises :class:`RunError` if the folder is used."""
    run_folder.refuse_used(folder)
    if files is None:
        check_network(recipe)
    store = open_store(data, recipe, options)
    for note in layer_files.check(files, recipe, len(store.classes)) if files is not None else ():
        options.log_line(note)
    return store


def _with_epochs(recipe: Recipe, store: Store, few_epochs: Mapping[str, Any]) -> Recipe:
    """``recipe`` with a number of epochs, and with the fields of ``few_epochs`` if it is a low one."""
    recipe = with_default_epochs(recipe, len(store.split("train")))
    return recipe.replace(**few_epochs) if recipe.epochs < FEW_EPOCHS else recipe


def _begun(folder: Path, data: str | Path, recipe: Recipe, few_epochs: Mapping[str, Any]) -> Store:
    """The store of a run that was begun by the same call; raises :class:`RunError` if it was another."""
    result, metadata = run_folder.read_start(folder)
    store = Store.open(recorded_store(folder, metadata))
    recipe = _with_epochs(recipe, store, few_epochs)
    other = next(iter(recipes.differences(result, recipe).items()), None)
    if metadata["data"] != str(data) or other is not None:
        what = f"{other[0]} = {other[1][0]}" if other else f"the data {metadata['data']}"
        raise RunError(
            f"run folder {folder} holds a run with {what}", "the run of this command", "name another --output-dir"
        )
    return store


def _base_recipe(
    data: str, recipe: Recipe | str | Path | None, start: PretrainedWeights | None, changes: dict[str, Any]
) -> Recipe:
    """The recipe that ``changes`` override: the given, named or loaded one, or the one that fits the data."""
    if isinstance(recipe, Recipe):
        return recipe
    model = "" if recipe == "layer_file" else changes.get("model", "")
    return default_recipe(data, recipe or "", model, start)


def resume(
    run: str | Path,
    *,
    store: str | Path | None = None,
    device: str = "auto",
    workers: int = 1,
    quiet: bool = True,
    layout: Layout = SINGLE_PROCESS,
    callbacks: Sequence[Callback | str] = (),
    report: bool = False,
) -> Result:
    """Continue an interrupted run. The result is bit for bit that of an uninterrupted run.

    Args:
        run: The run folder, of which the newest checkpoint is used, or a checkpoint file in it.
        store: Where the prepared images are now, if they were moved.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: Data-loading threads (does not affect results).
        quiet: Print no progress.
        layout: How the processes that torchrun started share the work; it may differ from that of the run.
        callbacks: Observers of the run, as in :func:`train`.
        report: Examine the data and write the quick ``report.html`` at the end.

    Returns:
        The scores of the run and the paths of its files.

    Raises:
        RunError: ``run`` is not a run folder, or another process trains it.
        CheckpointError: The checkpoint is missing, damaged, or of other data.
        AlexNetError: As in :func:`train`.

    Example:
        >>> result = alexnet.api.resume("my-run")
    """
    started, values, observers = perf_counter(), local_path(run), Callbacks(resolve(callbacks))
    folder = values.parent.parent if values.suffix == ".pt" else values
    recipe, metadata = run_folder.read_start(folder)
    layout.check(run_folder.layer_files(folder), recipe)
    _check_workers(workers)
    with (
        rendezvous.init_world(torch_device(device), layout.tp_size, hybrid=layout.hybrid) as world,
        ExitStack() as held,
    ):
        if world.is_main:
            held.enter_context(run_folder.locked(folder))
        world.broadcast_text("")  # the others begin when the first one holds the folder
        opened = Store.open(store or recorded_store(folder, metadata))
        checkpoint = values if values.suffix == ".pt" else None
        if checkpoint is None:
            run_folder.refuse_lost_checkpoints(folder)
        kwargs: dict[str, Any] = {"resume": True, "resume_from": checkpoint, "world": world, "layout": layout}
        kwargs |= {"workers": workers, "quiet": quiet, "callbacks": observers}
        if "from" in metadata and not run_folder.has_checkpoint(folder):  # it begins again
            kwargs["start"] = recorded(metadata["from"])
        result, run_opened = _run(recipe, opened, folder, **kwargs)
    return _finished(result, run_opened if report else None, started)


def _run(
    recipe: Recipe, store: Store, folder: Path, *, world: World, callbacks: Callbacks, **kwargs: Any
) -> tuple[Result, OpenedRun]:
    plots: tuple[Path, ...] = ()
    problem = ""
    try:
        with runtime.cpu_settings(recipe, one_thread=kwargs["layout"].deterministic):
            trained = train_run(recipe, store, folder, device=world.device, world=world, callbacks=callbacks, **kwargs)
        bundle, scores = trained.bundle, trained.scores
        opened = OpenedRun(
            folder, store=store, device=world.device, predictions=trained.predictions, sample=trained.sample
        )
        if world.is_main:
            kinds = [kind for kind in TRAINING_PLOTS if len(store.split("test")) or not PLOTS[kind].of_test]
            plots = tuple(run_plots.draw(kind, opened, None, PlotOptions()) for kind in kinds)
            problem = write_summary(folder, recipe, scores, plots)
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        callbacks.run_end(RunEnd("interrupted" if stopped else "failed", printable(f"{error}")))
        raise
    callbacks.run_end(RunEnd("finished", bundle=bundle, scores=scores, plots=plots))
    messages = (
        *data_size_warnings(store, scores),
        *communication.traffic_report(world, recipe, len(store.classes), kwargs["layout"]),
        *filter(None, [problem, *callbacks.problems]),
    )
    sent = {what: count / world.steps for what, count in world.bytes_sent.items()}
    faults, rate = score_warnings(scores), trained.images_per_second
    result = Result(folder, bundle, scores, rate, 0.0, recipe, plots, faults, messages, sent, world.is_main)
    return result, opened


def _finished(result: Result, opened: OpenedRun | None, started: float) -> Result:
    """``result`` with its duration, and with the quick report of a run that has just been trained, if there is one.

    A report that cannot be written is a note: the run itself is saved.
    """
    page, warnings, notes = None, [], []
    if opened is not None and result.first:
        try:
            diagnosis, reason = reports.diagnose(opened, quick=True)
            if diagnosis is None:
                notes.append(f"the data was not examined for near-identical images, groups and other faults: {reason}")
            warnings = data_warnings(result.folder, diagnosis, store=opened.store)
            page = reports.write_report(opened, quick=True, diagnosis=(diagnosis, reason))
        except AlexNetError as error:
            notes.append(f"no report: {error}")
    return replace(
        result,
        warnings=(*warnings, *result.warnings),
        notes=(*result.notes, *notes),
        seconds=perf_counter() - started,
        report=page,
    )


def torch_device(name: str) -> torch.device:
    """The device called ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        RecipeError: This machine has no such device.
    """
    return choose_device(name)


def _new_folder(data: str | Path, recipe: Recipe) -> Path:
    name = Path(data).resolve().name if Path(data).exists() else str(data).rstrip("/").rsplit("/", 1)[-1]
    stem = f"{name}-{recipe.model.replace('/', '-')}"
    number = 1
    while (folder := Path("runs") / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return folder


def load(run: str | Path, device: str = "auto", precision: Precision = "fp32") -> Classifier:
    """Load the classifier of a run or a bundle. Every byte of the bundle is checked.

    Args:
        run: A run folder, a bundle, or ``starter`` for the weights of this package.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32``, or ``bf16``: usually faster, with two to three correct digits.

    Returns:
        The classifier, with ``predict``, ``probabilities`` and ``embed``.

    Raises:
        BundleError: There is no bundle, or it is damaged.

    Example:
        >>> classifier = alexnet.load("my-run")
        >>> print(classifier.predict("beach.jpg")[0].label)
    """
    return Classifier.load(run, torch_device(device), precision)
