"""The command ``study contest``."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.options import DataArguments, data_options
from alexnet.cli.parser import Flag, option
from alexnet.errors import RecipeError

if TYPE_CHECKING:
    from alexnet.experiments.contest.run import Outcome


@dataclass(frozen=True)
class ContestArguments:
    """Repeat the contest of 2012: networks and Fisher vectors on the same split, crops and time.

    The same command reuses finished entries and resumes an interrupted one.
    """

    data: Positional[Annotated[str | None, option("[DATA]")]] = None
    """digits, a folder, parquet files, a store, cifar10, imagenette, ..."""
    nets: Annotated[str | None, option("NAMES")] = None
    """entries, comma-separated: alexnet,fisher,resnet18 (default: eight, see docs/contest.md)"""
    budget: Annotated[str | None, option("TIME")] = None
    """time for all entries together, equally shared: 40min, 1.5h (default: 15min, photographs 90min)"""
    epochs: Annotated[int | None, option("N")] = None
    """instead of a budget: equal epochs for every network"""
    pretrained: Flag = False
    """start from torchvision's published weights where there are some"""
    seed: Annotated[int, option("N")] = 0
    """random seed of splits, initial weights, order, crops and mixtures"""
    side: Annotated[int, option("PIXELS")] = 0
    """crop size of all entries; 0: 224 for photographs, 64 for small images"""
    images: Annotated[int, option("N")] = 0
    """maximum number of training images, balanced over the classes, and half as many for the test; 0: all"""
    output_dir: Annotated[Path | None, option("DIR")] = None
    """directory for all runs (default: runs/contest/DATA-BUDGET)"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    num_workers: Annotated[int, option("N")] = 1
    """data-loading threads (does not affect results)"""
    json: Flag = False
    """print one JSON object; the plan goes to standard error"""
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def run(argv: list[str]) -> int:
    """AlexNet, its successors and the runner-up of 2012 on one split and one clock"""
    args: ContestArguments = parser.parse(ContestArguments, argv, "study contest")
    if args.data is None:
        raise RecipeError("contest needs DATA", "digits, a folder, a store or the name of a set")
    from alexnet.experiments import plan as material
    from alexnet.experiments.contest import plan, run

    nets = () if args.nets is None else tuple(name.strip() for name in args.nets.split(",") if name.strip())
    config = plan.Config(nets, args.budget, args.epochs, args.pretrained, args.seed, args.side, args.images)
    options = data_options(args.source)
    result = material.find(args.data, options)
    made = plan.make(result, material.shown(args.data), config)
    print("\n".join(made.lines()), "", sep="\n", file=sys.stderr if args.json else sys.stdout, flush=True)
    folder = Path(args.output_dir or run.folder_for(made))
    _print(run.run(made, result, folder, options, device=args.device, workers=args.num_workers), as_json=args.json)
    return 0


def _print(outcome: "Outcome", *, as_json: bool) -> None:
    from alexnet.experiments.contest import plan, run

    if as_json:
        print(json.dumps(outcome.to_dict()))
        return
    counts = outcome.counts
    title = f"{counts['train']} images to train, {counts['validation']} to choose, {counts['test']} to test"
    columns, rows = run.cells(outcome.rows)
    output.table(f"{title}, {outcome.classes} classes", columns, rows, right=len(columns))
    for note in outcome.notes:
        print(f"note       {note}")
    print(f"image    {outcome.image}")
    print(f"results    {outcome.folder}  (contest.json, contest.csv, contest.md; a folder for each contestant)")
    print(f"time       {plan.words(outcome.seconds)} in all")
    print(f"verdict    {outcome.verdict}")
