"""The command ``train``."""

import json
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction

from alexnet import kernels
from alexnet import recipe as recipes
from alexnet.cli import output, parser
from alexnet.cli.parser import DataArguments, Flag, KernelMode, RecipeOptions, choose_cache, data_options, option
from alexnet.errors import RecipeError
from alexnet.recipe import Recipe
from alexnet.terminal import parse_duration

if TYPE_CHECKING:
    from alexnet.api import Result
    from alexnet.training.callbacks import Tracker
    from alexnet.training.distributed.sharding import Layout
    from alexnet.training.finetune import InitialWeights


@dataclass(frozen=True)
class RunArguments:
    """Where the run is written, what it starts from, and how long it takes."""

    output_dir: Annotated[Path | None, option("DIR")] = None
    """new directory for the run (default: runs/DATA-MODEL)"""
    recipe: Annotated[str, option("NAME|FILE.toml")] = ""
    """named recipe (see alexnet recipes) or recipe file, such as the recipe.toml of a run; other options override it"""
    init_from: Annotated[str, option("starter|imagenet|scratch|RUN")] = ""
    """initial weights: those of this package | those that torchvision downloads | random | those of a run or bundle
    (default: starter for your own images without --recipe and --model, else scratch)"""
    layers: Annotated[Path | None, option("FILE")] = None
    """cuda-convnet layer file that defines the network instead of --model; requires --layer-params"""
    layer_params: Annotated[Path | None, option("FILE")] = None
    """cuda-convnet parameter file: learning rates, momentum, weight decay and schedules of each layer"""
    time: Annotated[str, option("TIME")] = ""
    """plan the number of epochs so that the command ends in this time: 30min, 1.5h (instead of --epochs)"""
    resume: Annotated[Path | None, option("RUN")] = None
    """resume this run (its directory, or a checkpoint file in it); no other option of the run is allowed"""
    store: Annotated[str | None, option("STORE")] = None
    """with --resume: where the prepared images are now, if they were moved"""


@dataclass(frozen=True)
class HardwareArguments:
    """Device, threads and processes."""

    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    num_workers: Annotated[int, option("N")] = 1
    """data-loading threads (does not affect results)"""
    parallel: Literal["data", "towers", "hybrid"] = "data"
    """how the processes of torchrun share the network"""
    split: Annotated[int, option("N")] = 0
    """hybrid: number of processes that share the fully connected layers; 0: all"""
    grad_accum_steps: Annotated[int, option("N")] = 1
    """gradient accumulation steps"""
    deterministic: Flag = False
    """the same weights, bit for bit, on 1, 2, 4 and 8 processes (CPU, one compute thread each)"""
    kernels: KernelMode = "auto"
    """off: compute everything by PyTorch and Pillow instead of the fast kernels"""


@dataclass(frozen=True)
class OutputArguments:
    """What the command prints and writes."""

    tracker: Annotated[UseAppendAction[tuple[Literal["mlflow", "wandb", "trackio"], ...]], option("NAME")] = ()
    """experiment tracker that the run is logged to: mlflow, wandb or trackio; can be repeated"""
    tracker_project: Annotated[str, option("NAME")] = "alexnet"
    """project of the tracker (MLflow: experiment)"""
    report: Flag = True
    """do not write report.html at the end (alexnet report RUN writes the full report)"""
    json: Flag = False
    """print the result as one JSON object"""
    quiet: Flag = False
    """print only warnings while training"""


@dataclass(frozen=True)
class TrainArguments:
    """Train or fine-tune a classifier.

    Every hyperparameter of the recipe is an option. The defaults shown are those of the chosen recipe: --recipe, or
    the recipe that fits DATA and --model.
    """

    data: Positional[Annotated[str | None, option("[DATA]")]] = None
    """digits, a folder of class folders, a table, a store, cifar10, mnist, imagenette, ..."""
    run: RunArguments = field(default_factory=RunArguments)
    hardware: HardwareArguments = field(default_factory=HardwareArguments)
    output: OutputArguments = field(default_factory=OutputArguments)
    source: DataArguments = field(default_factory=DataArguments)
    hyperparameters: Annotated[RecipeOptions, option(name="")] = field(default_factory=RecipeOptions)

    def overrides(self, base: Recipe) -> dict[str, Any]:
        """The arguments of :func:`alexnet.train` that override its recipe; the network too, which can select one."""
        return self.hyperparameters.changes(base) | {"model": self.hyperparameters.model.model}


def train_command(argv: list[str]) -> int:
    """Train a new run, or resume one, and print its scores."""
    started = time.perf_counter()  # before the libraries are imported
    args, base, weights = parse(argv)
    kernels.use(args.hardware.kernels)
    # torchrun starts this command again after a fault, with the number of restarts in the environment
    is_restart = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    if is_restart and args.run.output_dir is None and args.run.resume is None:
        raise RecipeError("torchrun --max-restarts needs a run directory to resume", "", "pass --output-dir DIR")
    if args.run.time and args.run.resume is None:  # it includes the imports
        seconds = parse_duration(args.run.time, "--time") - (time.perf_counter() - started)
        args = replace(args, run=replace(args.run, time=f"{max(0.0, seconds):.3f}s"))
    result = _resume(args) if args.run.resume is not None else _train(args, base, weights, is_restart=is_restart)
    if result.first:
        if not args.output.report:
            result = _with_data_warnings(result, args)
        _print_result(replace(result, seconds=time.perf_counter() - started), as_json=args.output.json)
    return 0


def _train(args: TrainArguments, base: Recipe, weights: "InitialWeights | None", *, is_restart: bool) -> "Result":
    if args.run.store is not None:
        raise RecipeError("--store is for --resume only", "", "pass the store as DATA")
    if args.data is None:
        raise RecipeError("train needs DATA", "", "pass digits, a folder, a store or cifar10, or --resume RUN")
    from alexnet import api

    assert weights is not None
    return api.train(
        args.data,
        args.run.recipe or None,
        args.run.output_dir,
        init_from=weights,
        options=data_options(args.source),
        device=args.hardware.device,
        workers=args.hardware.num_workers,
        quiet=args.output.quiet,
        layers=args.run.layers,
        layer_params=args.run.layer_params,
        layout=_layout(args),
        callbacks=_trackers(args),
        report=args.output.report,
        time=args.run.time,
        go_on=is_restart,
        **args.overrides(base),
    )


def _resume(args: TrainArguments) -> "Result":
    assert args.run.resume is not None
    _check_resume(args)
    choose_cache(args.source.cache, args.source.cache_gb)
    from alexnet import api

    return api.resume(
        args.run.resume,
        store=args.run.store,
        device=args.hardware.device,
        workers=args.hardware.num_workers,
        quiet=args.output.quiet,
        layout=_layout(args),
        callbacks=_trackers(args),
        report=args.output.report,
    )


def _trackers(args: TrainArguments) -> "list[Tracker]":
    from alexnet.training.callbacks import tracker

    return [tracker(name, args.output.tracker_project) for name in args.output.tracker]


def _layout(args: TrainArguments) -> "Layout":
    from alexnet.training.distributed.sharding import Layout

    hardware = args.hardware
    return Layout(hardware.parallel, hardware.split, hardware.grad_accum_steps, hardware.deterministic)


def parse(argv: list[str]) -> "tuple[TrainArguments, Recipe, InitialWeights | None]":
    """The arguments of ``train``, the recipe that they override, and the initial weights (None: a run is resumed).

    The defaults of the hyperparameters, which --help shows, depend on the recipe, and the recipe depends on DATA,
    --recipe, --model and --init-from. So the arguments are parsed for these first, then with the recipe's defaults.
    """
    unset = TrainArguments(hyperparameters=RecipeOptions.of(Recipe(), model=""))
    without_help = [argument for argument in argv if argument not in ("-h", "--help")]
    args: TrainArguments = parser.parse(TrainArguments, without_help, "train", unset, add_help=False)
    if args.run.resume is not None:  # the run has its recipe
        return parser.parse(TrainArguments, argv, "train"), Recipe(), None
    if args.data == "":
        raise RecipeError(
            "DATA is empty", "digits, a folder, a store or cifar10", "check the variables of the command line"
        )
    model = args.hyperparameters.model.model
    if not (args.data or model or args.run.init_from):  # --help alone: no data is opened
        base, weights = recipes.load_recipe(args.run.recipe or ("layer_file" if args.run.layers else "modern")), None
    else:
        base, weights = _base_recipe(args)
    defaults = TrainArguments(hyperparameters=RecipeOptions.of(base))
    return parser.parse(TrainArguments, argv, "train", defaults), base, weights


def _base_recipe(args: TrainArguments) -> "tuple[Recipe, InitialWeights]":
    """The recipe whose values are the defaults of the options, and the initial weights, on which it depends."""
    from alexnet.training.finetune import default_recipe, initial_weights

    choose_cache(args.source.cache, args.source.cache_gb)  # DATA may be a remote store
    data, recipe, model = args.data or "", args.run.recipe, args.hyperparameters.model.model
    changes = args.hyperparameters.changes(Recipe()) | {"model": model}
    changes = {name: value for name, value in changes.items() if (name, value) != ("batch_size", "auto")}
    layer_file = args.run.layers is not None
    weights = initial_weights(data, recipe, args.run.init_from, changes, layer_file=layer_file)
    if not layer_file:
        return default_recipe(data, recipe, model, weights.pretrained), weights
    base = default_recipe(data, recipe or "layer_file")
    return (base.replace(model=model) if model else base), weights


def _check_resume(args: TrainArguments) -> None:
    """Raise :class:`RecipeError` for an option that cannot change when a run is resumed."""
    default = TrainArguments()
    allowed = {"resume", "store", "cache", "cache_gb"}
    changed = ["DATA"] if args.data is not None else []
    for group in ("run", "source"):
        names = recipes.differences(getattr(default, group), getattr(args, group))
        changed += [recipes.option(name) for name in names if name not in allowed]
    changed += [recipes.option(name) for name in args.hyperparameters.changes(Recipe())]
    if changed:
        raise RecipeError(f"{changed[0]} cannot change when a run is resumed", "", "leave it out")


def _with_data_warnings(result: "Result", args: TrainArguments) -> "Result":
    """``result`` of a run without a report, with what is known about its data without the doctor."""
    from alexnet import api

    note = "the data was not examined for near-identical images, groups and other faults: "
    notes = (*result.notes, f"{note}alexnet report {result.folder} examines it")
    warnings = api.data_warnings(result.folder, None, store=args.run.store)
    return replace(result, warnings=(*warnings, *result.warnings), notes=notes)


def _print_result(result: "Result", *, as_json: bool) -> None:
    """Print warnings, the scores of each split, and where the results are."""
    if as_json:
        print(json.dumps(_result_dict(result)))
        return
    for warning in result.warnings:
        print(f"WARNING    {warning}")
    columns = ("split", "images", *output.score_columns(*result.scores.values()))
    rows = [(name, str(scores.count), *output.score_cells(scores)) for name, scores in result.scores.items()]
    output.table(f"{result.recipe.model}, center crop", columns, rows)
    for note in result.notes:
        print(f"note       {note}")
    rate, precision = result.images_per_second, result.recipe.precision
    print(f"training   {rate:.1f} images/s in {precision}; total time {result.seconds:.0f} s")
    print(f"run        {result.folder}  (bundle/, checkpoints/, journal.jsonl, results.csv, recipe.toml, tensorboard/)")
    print(f"plots      {result.folder / 'plots'}  ({', '.join(path.stem for path in result.plots)})")
    if result.report is not None:
        print(f"report     {result.report}")
    print(f"next       alexnet predict {result.folder} IMAGE...")


def _result_dict(result: "Result") -> dict[str, Any]:
    return {
        "run": str(result.folder),
        "bundle": str(result.bundle),
        "images_per_second": result.images_per_second,
        "seconds": result.seconds,
        "warnings": list(result.warnings),
        "notes": list(result.notes),
        "scores": {name: scores.to_dict() for name, scores in result.scores.items()},
        "report": str(result.report) if result.report else None,
    }
