"""The command ``lr-find``."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from alexnet.cli import parser
from alexnet.cli.parser import DataArguments, Flag, choose_cache, data_options, option
from alexnet.errors import RecipeError


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
    """learning rate of the last step; the test ends before where the loss diverges"""
    output: Annotated[Path | None, option("FILE.png")] = None
    """the plot (default: runs/lr-find/DATA.png)"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    num_workers: Annotated[int, option("N")] = 1
    """data-loading threads (does not affect results)"""
    json: Flag = False
    """print one JSON object, with the curve"""
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def run(argv: list[str]) -> int:
    """Run the test, and print the suggested learning rate."""
    args: LRFindArguments = parser.parse(LRFindArguments, argv, "lr-find")
    if args.data is None:
        raise RecipeError("lr-find needs DATA", "a folder, a table or the name of a data set")
    from alexnet.experiments.lr_find import LRFindConfig, find_lr
    from alexnet.experiments.runner import display_name
    from alexnet.training.defaults import default_recipe
    from alexnet.training.finetune import initial_weights

    config = LRFindConfig(args.steps, args.low, args.high)
    choose_cache(args.source.cache, args.source.cache_gb)
    changes: dict[str, Any] = {"model": args.model} if args.model else {}
    weights = initial_weights(args.data, args.recipe, args.init_from, changes, layer_file=False)
    recipe = default_recipe(args.data, args.recipe, args.model, weights.pretrained)
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
