"""The command ``study probes``."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.output import estimate_cells
from alexnet.cli.parser import DataArguments, Flag, data_options, option
from alexnet.errors import RecipeError


@dataclass(frozen=True)
class ProbesArguments:
    """Test how useful the features of each layer are for other images: a linear classifier on each layer."""

    run: Positional[Annotated[str | None, option("[RUN]")]] = None
    """a run directory, a bundle, or starter (the weights of this package)"""
    data: Positional[Annotated[str | None, option("[DATA]")]] = None
    """images of any classes: a folder, a table, a store or the name of a dataset"""
    images: Annotated[int, option("N")] = 3000
    """maximum number of training images; 0: all"""
    output_dir: Annotated[Path | None, option("DIR")] = None
    """directory for probes.json and probes.png (default: runs/probes/DATA)"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    json: Flag = False
    """print one JSON object"""
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def run(argv: list[str]) -> int:
    """fit a linear classifier on the features of each layer: how transferable they are"""
    args: ProbesArguments = parser.parse(ProbesArguments, argv, "study probes")
    if args.run is None or args.data is None:
        raise RecipeError("probes needs RUN and DATA", "", "such as: alexnet study probes starter DATA")
    from alexnet.experiments.probes import run_probes
    from alexnet.experiments.runner import display_name

    folder = args.output_dir or Path("runs") / "probes" / display_name(args.data)
    result = run_probes(args.run, args.data, folder, data_options(args.source), images=args.images, device=args.device)
    if args.json:
        print(json.dumps(result.to_dict()))
        return 0
    rows = [
        (p.layer, f"{p.features:,}", f"{p.penalty:g}", *estimate_cells(p.top1), *estimate_cells(p.random_top1))
        for p in result.probes
    ]
    columns = ("layer", "features", "penalty", "test top-1", "95 % CI", "random weights", "95 % CI")
    counts = ", ".join(f"{count} {name}" for name, count in result.counts.items())
    output.table(f"Linear probes of {result.run} on {result.data}: {counts}", columns, rows)
    print(f"plot       {result.plot}")
    return 0
