"""The command ``study data-size``."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.parser import DataArguments, Flag, data_options, option
from alexnet.errors import RecipeError


@dataclass(frozen=True)
class DataSizeArguments:
    """Train AlexNet and Fisher vectors on growing parts of one dataset: from how many images is the network better?

    The same command reuses finished trainings and resumes an interrupted one.
    """

    data: Positional[Annotated[str | None, option("[DATA]")]] = None
    """a folder, a table, an archive or the name of a dataset"""
    sizes: Annotated[tuple[int, ...], option("N [N ...]")] = ()
    """numbers of training images (default: 250 500 1000 2500 5000 ... 100000, as far as the data goes)"""
    methods: Annotated[tuple[str, ...], option("NAME [NAME ...]")] = ()
    """scratch (AlexNet from random weights), starter (from the package's weights), fisher (default: all)"""
    seeds: Annotated[int, option("N")] = 1
    """trainings for each size and method"""
    epochs: Annotated[int, option("N")] = 0
    """epochs of every training of a network; 0: by the number of images"""
    output_dir: Annotated[Path | None, option("DIR")] = None
    """directory for all runs (default: runs/data-size/DATA)"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    num_workers: Annotated[int, option("N")] = 1
    """data-loading threads (does not affect results)"""
    json: Flag = False
    """print one JSON object"""
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def run(argv: list[str]) -> int:
    """train on growing parts of a dataset: from how many images a network beats Fisher vectors"""
    args: DataSizeArguments = parser.parse(DataSizeArguments, argv, "study data-size")
    if args.data is None:
        raise RecipeError("data-size needs DATA", "a folder, a table or the name of a set")
    from alexnet.experiments.data_size import METHODS, DataSizeConfig, run_data_size
    from alexnet.experiments.runner import display_name

    default = DataSizeConfig()
    config = DataSizeConfig(args.sizes or default.sizes, args.methods or default.methods, args.seeds, args.epochs)
    folder = args.output_dir or Path("runs") / "data-size" / display_name(args.data)
    result = run_data_size(
        args.data, config, folder, data_options(args.source), device=args.device, num_workers=args.num_workers
    )
    if args.json:
        print(json.dumps(result.to_dict()))
        return 0
    rows = [
        (METHODS[method], f"{size:,}", output.percent(mean, 1), f"{100 * low:.1f} to {100 * high:.1f}")
        for method in config.methods
        for size, mean, low, high in result.curve(method)
    ]
    count = result.points[0].count
    output.table(f"Top-1 accuracy on {count} test images", ("method", "training images", "top-1", "95 % CI"), rows)
    for method, images in result.crossings.items():
        text = "not in this range" if images is None else f"from about {images:,.0f} images"
        print(f"{METHODS[method]} above Fisher vectors: {text}")
    print(f"plot       {result.plot}")
    print(f"runs       {folder}  (all numbers in data-size.json)")
    return 0
