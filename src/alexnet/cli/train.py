"""The command ``train``."""

import json
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from alexnet import kernels
from alexnet import recipe as recipes
from alexnet.cli import output, parser
from alexnet.cli.options import DataArguments, KernelMode, data_options
from alexnet.errors import AlexNetError, RecipeError
from alexnet.recipe import Recipe

if TYPE_CHECKING:
    from alexnet.api import Result
    from alexnet.training.finetune import PretrainedWeights


@dataclass(frozen=True)
class RecipeArguments(Recipe):
    """The fields of a recipe as options: checked together only when all of them are known."""

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class TrainArguments:
    """Train a classifier.

    Any number of the recipe can be set by its name; the defaults shown are those of the chosen recipe (--recipe, or
    else what fits DATA and --model).
    """

    data: Positional[str | None] = None
    """digits | folder of class folders | store | cifar10, mnist, imagenette, …"""
    output_dir: Path | None = None
    """new folder for everything that is made; by default runs/DATA-MODEL"""
    resume: Path | None = None
    """go on with this run (its folder, or a checkpoint file in it); needs nothing else"""
    init_from: Path | None = None
    """start from the weights of this run or bundle (fine-tuning)"""
    weights: Literal["torchvision"] | None = None
    """start from published weights, fetched by torchvision"""
    store: str | None = None
    """with --resume: where the prepared images lie now, if they were moved"""
    layers: Path | None = None
    """network by a layer file of 2012 instead of --model; needs --layer-params"""
    layer_params: Path | None = None
    """the file's rates, momenta, decay and schedules, instead of the recipe's"""
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    kernels: KernelMode = "auto"  # off: compute everything by PyTorch and Pillow instead of the fast kernels
    num_workers: int = 1  # threads that make batches; the number never changes a run
    report: bool = True  # end with report.html, in seconds; `alexnet report RUN` makes it with all that takes longer
    parallel: Literal["data", "towers", "hybrid", "hybrid-turns"] = "data"  # how torchrun's processes share the network
    split: int = 0  # `hybrid`: processes among which the fully connected layers are cut; 0: all
    grad_accum_steps: int = (
        1  # pieces in which a process goes through its share of a batch; less memory, the same result
    )
    json: bool = False
    """print the result as one JSON object"""
    quiet: bool = False
    """say nothing while training"""
    source: DataArguments = field(default_factory=DataArguments)
    numbers: RecipeArguments = field(default_factory=RecipeArguments)

    @property
    def recipe(self) -> Recipe:
        """The recipe of these options. Raises :class:`RecipeError` for what can not be."""
        return Recipe(**vars(self.numbers))


def run(argv: list[str]) -> int:
    """learn to tell images apart: digits, a folder, a store, cifar10 …"""
    started = time.perf_counter()  # before the libraries are imported
    values, start = parse(argv)
    kernels.use(values.kernels)
    from alexnet import api
    from alexnet.training.distributed.sharding import Layout

    layout = Layout(values.parallel, values.split, values.grad_accum_steps)
    again = (
        int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    )  # torchrun starts this command again after a fault
    if again and values.output_dir is None and values.resume is None:
        return output.fail(
            "torchrun --max-restarts needs --output-dir FOLDER: what is started again must find its run", 2
        )
    if values.resume is not None:
        _only_resume(values)
        data_options(values.source)  # where shards are fetched to
        result = api.resume(
            values.resume,
            store=values.store,
            device=values.device,
            workers=values.num_workers,
            quiet=values.quiet,
            layout=layout,
        )
    elif values.store is not None:
        return output.fail("--store tells where the data of a run to --resume is; pass the store as DATA instead", 2)
    elif values.data is None:
        return output.fail("train needs DATA: digits, a folder, a store or the name of a set (or --resume RUN)", 2)
    else:
        result = api.train(
            values.data,
            values.recipe,
            values.output_dir,
            start=start,
            options=data_options(values.source),
            device=values.device,
            workers=values.num_workers,
            quiet=values.quiet,
            layers=values.layers,
            layer_params=values.layer_params,
            layout=layout,
            go_on=again,
        )
    if result.first:
        page, warnings, notes = _report(result.folder, values)
        result = replace(
            result,
            warnings=(*warnings, *result.warnings),
            notes=(*result.notes, *notes),
            seconds=time.perf_counter() - started,
        )
        _print_result(result, page, as_json=values.json)
    return 0


def parse(argv: list[str]) -> "tuple[TrainArguments, PretrainedWeights | None]":
    """Arguments of ``train`` -> their values, and the weights to start from.

    Two passes of one parser: the first tells which recipe is chosen, the second has that recipe's values as defaults.
    """
    unset = TrainArguments(numbers=RecipeArguments(recipe="", model=""))
    without_help = [argument for argument in argv if argument not in ("-h", "--help")]
    args, unknown = parser.parse(TrainArguments, without_help, "train", unset, unknown_too=True)
    if unknown or args.resume is not None:  # no recipe is chosen; the parser reports what it does not know
        return parser.parse(TrainArguments, argv, "train"), None
    start = _start(args)
    defaults = TrainArguments(numbers=RecipeArguments(**vars(_base_recipe(args, start))))
    return parser.parse(TrainArguments, argv, "train", defaults), start


def _start(args: TrainArguments) -> "PretrainedWeights | None":
    """The weights to start from, where --init-from or --weights names some."""
    if args.init_from is None and args.weights is None:
        return None
    if args.init_from is not None and args.weights is not None:
        raise RecipeError("--init-from and --weights both name weights to start from", "one of them")
    from alexnet.training.finetune import from_bundle, from_published

    return from_published("torchvision") if args.init_from is None else from_bundle(args.init_from)


def _base_recipe(args: TrainArguments, start: "PretrainedWeights | None") -> Recipe:
    """The recipe whose values are the defaults of the options that are not set."""
    named, model = args.numbers.recipe, args.numbers.model
    if not (args.data or model or start):  # quick: nothing but the help is wanted
        return recipes.get_recipe(named or ("modern" if args.layers is None else "layer_file"))
    from alexnet.training.defaults import default_recipe

    data_options(args.source)  # where a store behind an address is fetched to
    if args.layers is None:
        return default_recipe(args.data or "", named, model, start)
    recipe = default_recipe(args.data or "", named or "layer_file")
    return recipe.replace(model=model) if model else recipe


def _only_resume(args: TrainArguments) -> None:
    """Raise :class:`RecipeError` for an option that has no effect on a run that is continued."""
    unset = TrainArguments()
    kept = ("cache", "cache_gb")  # where shards are fetched to now
    names = {"data": "DATA"}
    fields = ("data", "output_dir", "init_from", "weights", "layers", "layer_params")
    changed = [names.get(name, recipes.option(name)) for name in fields if getattr(args, name) is not None]
    changed += [recipes.option(name) for name in recipes.differences(unset.numbers, args.numbers)]
    changed += [recipes.option(name) for name in recipes.differences(unset.source, args.source) if name not in kept]
    if changed:
        what = changed[0]
        raise RecipeError(f"--resume goes on with the run as it was begun, so {what} has no place", "", "leave it out")


def _report(run: Path, args: TrainArguments) -> tuple[Path | None, list[str], list[str]]:
    """The report of a training that has just ended, in seconds; warnings and notes about its data.

    None where there is no report: the training is done and saved, so that is no failure.
    """
    from alexnet import api

    page, warnings, notes = None, [], []
    try:
        diagnosis, why = None, f"alexnet report {run} examines it"
        if args.report:
            diagnosis, why = api.diagnose(run, store=args.store, quick=True)
        if diagnosis is None:
            notes = [f"the data was not examined for near-identical images, groups and other faults: {why}"]
        warnings = api.data_warnings(run, diagnosis, store=args.store)
        if args.report:
            page = api.report(run, store=args.store, quick=True, device=args.device, diagnosis=(diagnosis, why))
    except AlexNetError as error:
        output.say(f"no report: {error}")
    return page, warnings, notes


def _print_result(result: "Result", page: "Path | None" = None, *, as_json: bool) -> None:
    """What came of training, its warnings first; ``page`` is its report."""
    if as_json:
        print(json.dumps(_result_dict(result) | {"report": str(page) if page else None}))
        return
    for warning in result.warnings:
        print(f"WARNING    {warning}")
    rows = [(name, str(s.count), *output.score_cells(s)) for name, s in result.scores.items()]
    output.table(
        f"{result.recipe.model}, center view", ("split", "images", *output.score_columns(*result.scores.values())), rows
    )
    for note in result.notes:
        print(f"note       {note}")
    rate, precision = result.images_per_second, result.recipe.precision
    print(f"training   {rate:.1f} images/s in {precision}; this command took {result.seconds:.0f} s in all")
    print(f"run        {result.folder}  (bundle/, checkpoints/, journal.jsonl, results.csv, recipe.toml, tensorboard/)")
    print(f"images   {result.folder / 'plots'}  ({', '.join(p.stem for p in result.plots)})")
    if page is not None:
        print(f"report     {page}")
    print(f"use it     alexnet predict {result.folder} IMAGE…")


def _result_dict(result: "Result") -> dict[str, Any]:
    return {
        "run": str(result.folder),
        "bundle": str(result.bundle),
        "images_per_second": result.images_per_second,
        "seconds": result.seconds,
        "warnings": list(result.warnings),
        "notes": list(result.notes),
        "scores": {name: s.to_dict() for name, s in result.scores.items()},
    }
