"""The command ``study contest``."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.options import DataArguments, data_options
from alexnet.errors import RecipeError

if TYPE_CHECKING:
    from alexnet.experiments.contest.run import Outcome


@dataclass(frozen=True)
class ContestArguments:
    """The contest of 2012 on one's own images: all contestants on one split, one set of crops and one clock.

    The same command again finds contestants that have finished, and goes on where it was interrupted.
    """

    data: Positional[str | None] = None
    """digits | a folder of images or parquet | a store | cifar10, imagenette, …"""
    nets: str | None = None
    """who takes part: alexnet,fisher,resnet18 … ; by default eight, see docs/contest.md"""
    budget: str | None = None
    """time for all together, equally shared: 40min, 1.5h; by default 15min, photographs 90min"""
    epochs: int | None = None
    """instead: equal epochs of every network, however long they take"""
    pretrained: bool = False
    """networks start from torchvision's published weights, where these are at hand"""
    seed: int = 0
    """of splits, initial weights, order, crops and mixtures"""
    side: int = 0
    """of the crops of all contestants, pixels; 0: 224 of photographs, 64 of small images"""
    images: int = 0
    """most training images, evenly from each class, and half as many to test; 0: all"""
    output_dir: Path | None = None
    """folder for all contestants; by default runs/contest/DATA-BUDGET"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N"""
    num_workers: int = 1
    """threads that make batches; the number never changes a run"""
    json: bool = False
    """print one JSON object; the plan goes to standard error"""
    source: DataArguments = field(default_factory=DataArguments)


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
