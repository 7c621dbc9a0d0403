"""The command ``study contest``."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.parser import DataArguments, Flag, data_options, option
from alexnet.errors import RecipeError

if TYPE_CHECKING:
    from alexnet.experiments.contest.run import ContestResult


@dataclass(frozen=True)
class ContestArguments:
    """Compare AlexNet, its successors and Fisher vectors on the same split, crops and time.

    The same command reuses finished contestants and resumes an interrupted one.
    """

    data: Positional[Annotated[str | None, option("[DATA]")]] = None
    """digits, a folder, parquet files, a store, cifar10, imagenette, ..."""
    nets: Annotated[str | None, option("NAMES")] = None
    """contestants, comma-separated: alexnet,fisher,resnet18 (default: eight, see docs/contest.md)"""
    budget: Annotated[str | None, option("TIME")] = None
    """time for all contestants together, equally shared: 40min, 1.5h (default: 15min, photographs 90min)"""
    epochs: Annotated[int | None, option("N")] = None
    """instead of a budget: equal epochs for every network"""
    pretrained: Flag = False
    """start from torchvision's published weights where there are some"""
    seed: Annotated[int, option("N")] = 0
    """random seed of splits, initial weights, order, crops and mixtures"""
    image_size: Annotated[int, option("PIXELS")] = 0
    """crop size of all contestants; 0: 224 for photographs, 64 for small images"""
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
    """compare AlexNet, its successors and Fisher vectors on one dataset in equal time"""
    args: ContestArguments = parser.parse(ContestArguments, argv, "study contest")
    if args.data is None:
        raise RecipeError("contest needs DATA", "digits, a folder, a store or the name of a set")
    from alexnet.experiments.contest.plan import ContestConfig, default_folder, make_plan
    from alexnet.experiments.contest.run import run_contest
    from alexnet.experiments.runner import display_name, open_dataset

    nets = () if args.nets is None else tuple(name.strip() for name in args.nets.split(",") if name.strip())
    config = ContestConfig(nets, args.budget, args.epochs, args.pretrained, args.seed, args.image_size, args.images)
    options = data_options(args.source)
    dataset = open_dataset(args.data, options)
    plan = make_plan(dataset, display_name(args.data), config)
    print("\n".join(plan.describe()), "", sep="\n", file=sys.stderr if args.json else sys.stdout, flush=True)
    folder = Path(args.output_dir or default_folder(plan))
    result = run_contest(plan, dataset, folder, options, device=args.device, num_workers=args.num_workers)
    _print(result, as_json=args.json)
    return 0


def _print(result: "ContestResult", *, as_json: bool) -> None:
    from alexnet.experiments.contest.results import table
    from alexnet.terminal import format_duration

    if as_json:
        print(json.dumps(result.to_dict()))
        return
    counts = result.counts
    title = f"{counts['train']} training, {counts['validation']} validation, {counts['test']} test images"
    columns, rows = table(result.rows)
    output.table(f"{title}, {result.num_classes} classes", columns, rows, right=len(columns))
    for note in result.notes:
        print(f"note       {note}")
    print(f"image      {result.image}")
    print(f"results    {result.folder}  (contest.json, contest.csv, contest.md; a folder for each contestant)")
    print(f"time       {format_duration(result.seconds)} in all")
    print(f"verdict    {result.verdict}")
