"""The commands ``recipes``, ``lr-find`` and ``sweep``: hyperparameters that have a name, or are searched for."""

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from tyro.conf import Positional

from alexnet import recipe as recipes
from alexnet.cli import output, parser
from alexnet.cli.parser import DataArguments, Flag, TrainingExperimentArguments, choose_cache, data_options, option
from alexnet.errors import RecipeError
from alexnet.terminal import parse_duration

if TYPE_CHECKING:
    from alexnet.recipe import Recipe
    from alexnet.training.finetune import InitialWeights


@dataclass(frozen=True)
class RecipesArguments:
    """List the recipes, show the hyperparameters of one, or compare two with the source of each value."""

    name: Positional[Annotated[str | None, option("[RECIPE]")]] = None
    """recipe to show"""
    other: Positional[Annotated[str | None, option("[RECIPE]")]] = None
    """recipe to compare it with"""
    json: Flag = False
    """print one JSON object"""


def recipes_command(argv: list[str]) -> int:
    """List the recipes, show one, or compare two."""
    args: RecipesArguments = parser.parse(RecipesArguments, argv, "recipes")
    if args.name is None:
        descriptions = {name: recipes.describe(name) for name in recipes.list_recipes()}
        if args.json:
            print(json.dumps(descriptions, indent=1))
        else:
            output.table("", ("recipe", "description"), list(descriptions.items()))
    elif args.other is None:
        recipe = recipes.get_recipe(args.name)
        print(json.dumps(recipe.to_dict(), indent=1) if args.json else recipes.to_toml(recipe).rstrip("\n"))
    else:
        _print_differences(args.name, args.other, as_json=args.json)
    return 0


def _print_differences(a: str, b: str, *, as_json: bool) -> None:
    """Print the hyperparameters in which two recipes differ, with the source of each value."""
    differences = recipes.compare(a, b)
    if as_json:
        print(json.dumps({"recipes": [a, b], "differences": {d.field: d.to_dict() for d in differences}}, indent=1))
        return
    columns = ("option", a, "source", b, "source", "meaning")
    rows = [
        (
            recipes.option(d.field),
            _shown(d.values[0]),
            d.sources[0],
            _shown(d.values[1]),
            d.sources[1],
            d.help,
        )
        for d in differences
    ]
    output.table("", columns, rows, right=len(columns))
    first, second = (recipes.get_recipe(name).model for name in (a, b))
    if first != second:
        print(f"Networks: `alexnet models {first}` and `alexnet models {second}` list their layers;")
        print("docs/models.md compares the AlexNets of 2012 to 2014.")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value) or "none"


@dataclass(frozen=True)
class LRFindArguments:
    """Suggest a learning rate: a short training in which it grows, and a plot of the loss (Smith 2017)."""

    data: Positional[Annotated[str | None, option("[DATA]")]] = None
    """digits, a folder of class folders, a table, a store, cifar10, mnist, imagenette, ..."""
    recipe: Annotated[str, option("NAME|FILE.toml")] = ""
    """named recipe or recipe file (default: as alexnet train)"""
    model: Annotated[str, option("NAME")] = ""
    """name of the network; alexnet models lists all (default: the recipe's)"""
    init_from: Annotated[str, option("starter|imagenet|scratch|RUN")] = ""
    """initial weights, as in alexnet train"""
    batch_size: Annotated[int, option("N")] = 0
    """images per step; 0: the recipe's"""
    steps: Annotated[int, option("N")] = 200
    """training steps, one batch each"""
    low: Annotated[float, option("LR")] = 1e-6
    """learning rate of the first step"""
    high: Annotated[float, option("LR")] = 10.0
    """learning rate of the last step; the training ends earlier if the loss diverges"""
    output: Annotated[Path | None, option("FILE.png"), parser.PNG] = None
    """the plot (default: runs/lr-find/DATA.png)"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    num_workers: Annotated[int, option("N")] = 1
    """data-loading threads (does not affect results)"""
    json: Flag = False
    """print one JSON object, with the curve"""
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def lr_find_command(argv: list[str]) -> int:
    """Run the test, and print the suggested learning rate."""
    args: LRFindArguments = parser.parse(LRFindArguments, argv, "lr-find")
    if args.data is None:
        raise parser.no_data("lr-find")
    from alexnet.experiments.lr_find import LRFindConfig, find_lr
    from alexnet.experiments.runner import display_name

    config = LRFindConfig(args.steps, args.low, args.high)
    recipe, weights = _base_recipe(args, args.data)
    if args.batch_size:
        recipe = recipe.replace(batch_size=args.batch_size)
    plot = args.output or Path("runs") / "lr-find" / f"{display_name(args.data)}.png"
    options = data_options(args.source)
    options.log_line(f"initial weights: {weights.why}")
    result = find_lr(
        args.data,
        recipe,
        config,
        plot,
        options,
        init_from=weights.pretrained,
        device=args.device,
        num_workers=args.num_workers,
    )
    if args.json:
        print(json.dumps(result.to_dict()))
        return 0
    print(f"suggested  --lr {result.suggestion:.2g}  (the recipe has {recipe.lr:g})")
    print(f"lowest     loss at {result.lowest:.2g}; the suggestion is a tenth of it")
    print(f"plot       {result.plot}")
    return 0


@dataclass(frozen=True)
class SweepArguments:
    """Search for hyperparameters by the validation split, and evaluate the winner once on the test split.

    The same command continues an interrupted sweep.
    """

    data: Positional[Annotated[str | None, option("[DATA]")]] = None
    """digits, a folder of class folders, a table, a store, cifar10, mnist, imagenette, ..."""
    space: Annotated[Path | None, option("FILE.toml")] = None
    """the values to try, a line each: lr = {low = 1e-4, high = 1e-2, log = true}, or batch_size = [32, 64]"""
    budget: Annotated[str, option("TIME")] = "1h"
    """time of all trainings of the folder together, those of earlier calls too: 90s, 40min, 2h"""
    trials: Annotated[int, option("N")] = 0
    """maximum number of trials; 0: as many as the budget allows"""
    finalists: Annotated[int, option("N")] = 3
    """number of best trials that are trained again, with other seeds"""
    seeds: Annotated[int, option("N")] = 3
    """trainings of each of these trials"""
    recipe: Annotated[str, option("NAME|FILE.toml")] = ""
    """named recipe or recipe file with all other hyperparameters (default: as alexnet train)"""
    model: Annotated[str, option("NAME")] = ""
    """name of the network; alexnet models lists all (default: the recipe's)"""
    epochs: Annotated[int, option("N")] = 0
    """epochs of every training; 0: the recipe's"""
    init_from: Annotated[str, option("starter|imagenet|scratch|RUN")] = ""
    """initial weights, as in alexnet train"""
    experiment: TrainingExperimentArguments = field(default_factory=TrainingExperimentArguments)
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def sweep_command(argv: list[str]) -> int:
    """Search, and print the best trials over seeds and the winner's test accuracy."""
    args: SweepArguments = parser.parse(SweepArguments, argv, "sweep")
    if args.data is None:
        raise parser.no_data("sweep")
    if args.space is None:
        raise RecipeError(
            "sweep needs --space FILE.toml", "", "a line of it: lr = {low = 1e-4, high = 1e-2, log = true}"
        )
    budget = parse_duration(args.budget, "--budget")
    from alexnet.experiments.runner import display_name
    from alexnet.experiments.sweep import SweepConfig, read_space, run_sweep
    from alexnet.training.time_budget import with_epochs

    config = SweepConfig(read_space(args.space), budget, args.trials, args.finalists, args.seeds)
    base, weights = _base_recipe(args, args.data)
    if args.epochs:
        base = with_epochs(base, args.epochs)
    folder = args.experiment.output_dir or Path("runs") / "sweep" / display_name(args.data)
    options = data_options(args.source)
    options.log_line(f"initial weights: {weights.why}")
    result = run_sweep(
        args.data,
        base,
        config,
        folder,
        options,
        init_from=weights.pretrained,
        device=args.experiment.device,
        num_workers=args.experiment.num_workers,
    )
    values = result.to_dict()
    if args.experiment.json:
        print(json.dumps(values))
        return 0
    names = list(config.space)
    rows = [
        (
            str(finalist["trial"]),
            *(_cell(finalist["values"][name]) for name in names),
            output.percent(finalist["mean"], 1),
            f"{100 * finalist['interval'][0]:.1f} to {100 * finalist['interval'][1]:.1f}",
        )
        for finalist in values["finalists"]
    ]
    pruned = sum(trial.pruned for trial in result.trials)
    title = f"{len(result.trials)} trials, {pruned} pruned; the best over {args.seeds} other seeds, winner first"
    output.table(title, ("trial", *names, "validation error", "95 % CI"), rows, right=1 + len(names))
    low, high = values["test"]["interval"]
    print(
        f"test       top-1 of the winner {output.percent(float(np.mean(result.test_accuracies)), 1)} "
        f"(95 % CI over seeds {100 * low:.1f} to {100 * high:.1f} %), {result.test_images} images, evaluated once"
    )
    print(f"plot       {values['plot']}")
    print(f"recipe     {values['recipe']}")
    words = ["alexnet", "train", args.data, "--recipe", values["recipe"]]
    if weights.pretrained is not None:  # by default only where no recipe is named
        words += ["--init-from", args.init_from or "starter"]
    print(f"next       {shlex.join(words)}")
    return 0


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _base_recipe(args: LRFindArguments | SweepArguments, data: str) -> "tuple[Recipe, InitialWeights]":
    """The recipe that ``alexnet train`` would take for ``data``, and the initial weights, on which it depends."""
    from alexnet.training.finetune import default_recipe, initial_weights

    choose_cache(args.source.cache, args.source.cache_gb)  # DATA may be a remote store
    changes: dict[str, Any] = {"model": args.model} if args.model else {}
    weights = initial_weights(data, args.recipe, args.init_from, changes, layer_file=False)
    return default_recipe(data, args.recipe, args.model, weights.pretrained), weights
