"""The commands ``study contest`` and ``study depth``."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from alexnet.cli import arguments, output
from alexnet.cli.arguments import DataArguments
from alexnet.errors import RecipeError

if TYPE_CHECKING:
    from alexnet.experiments.contest.run import Outcome
    from alexnet.experiments.residual_depth import Outcome as Story
    from alexnet.experiments.runner import Finding


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


@dataclass(frozen=True)
class DepthArguments:
    """Plain and residual networks of growing depth, trained alike: does a deeper one learn its images worse?

    The same command again finds what it has trained already, and goes on where it was interrupted.
    """

    data: Positional[str | None] = None  # digits | cifar10 | a folder of images or parquet | a store
    quick: bool = False  # three depths, two seeds, few epochs and images: minutes on a processor
    depths: tuple[int, ...] = ()  # of 8, 14, 20, 32, 44, 56 layers; by default all (quick: 8, 20, 44)
    seeds: int | None = None  # trainings of each network; by default 3 (quick: 2)
    epochs: int | None = None  # of every training; by default 40 (quick: 10)
    budget: str | None = None  # instead: time for all together, 40min or 1.5h, from which the epochs follow
    images: int | None = None  # most training images; 0: all
    output_dir: Path | None = None  # folder for all trainings; by default runs/depth/DATA
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    num_workers: int = 1  # threads that make batches; the number never changes a run
    json: bool = False  # print one JSON object; the plan goes to standard error
    source: DataArguments = field(default_factory=DataArguments)


def contest(argv: list[str]) -> int:
    """AlexNet, its successors and the runner-up of 2012 on one split and one clock"""
    args: ContestArguments = arguments.parse(ContestArguments, argv, "study contest")
    if args.data is None:
        raise RecipeError("contest needs DATA", "digits, a folder, a store or the name of a set")
    from alexnet.experiments import plan as material
    from alexnet.experiments.contest import plan, run

    nets = () if args.nets is None else tuple(name.strip() for name in args.nets.split(",") if name.strip())
    config = plan.Config(nets, args.budget, args.epochs, args.pretrained, args.seed, args.side, args.images)
    options = arguments.data_options(args.source)
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


def depth(argv: list[str]) -> int:
    """plain and residual networks of growing depth: why skip connections came after AlexNet"""
    args: DepthArguments = arguments.parse(DepthArguments, argv, "study depth")
    if args.data is None:
        raise RecipeError("depth needs DATA", "digits, cifar10, a folder, a store or the name of a set")
    from alexnet.experiments import plan as material
    from alexnet.experiments import residual_depth

    config = residual_depth.Config(args.quick, args.depths, args.seeds, args.epochs, args.budget, args.images)
    options = arguments.data_options(args.source)
    result = material.find(args.data, options)
    made = residual_depth.make(result, material.shown(args.data), config)
    print("\n".join(made.lines()), "", sep="\n", file=sys.stderr if args.json else sys.stdout, flush=True)
    folder = Path(args.output_dir or residual_depth.folder_for(made, quick=args.quick))
    _print_story(
        residual_depth.run(made, result, folder, options, device=args.device, workers=args.num_workers),
        folder,
        args.json,
    )
    return 0


def _print_story(story: "Story", folder: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(story.to_dict()))
        return
    counts = story.counts
    title = f"{counts['train']} images to train, {counts['test']} to test, {story.plan.base.epochs} epochs"
    rows = [(name.replace("_", " "), _mean(story.training[name]), _mean(story.test[name])) for name in story.training]
    output.table(title, ("network", "training error", "test error"), rows)
    columns = ("measured, in points", "He et al.", "ours", "95 % CI over seeds", "verdict")
    output.table("", columns, [_finding(result) for result in story.findings], right=9)
    for note in dict.fromkeys(f.note for f in story.findings if f.note):
        print(f"note       {note}")
    print(f"training   {story.seconds:.0f} s in all")
    print(f"image    {story.image}")
    print(f"runs       {folder}  (depth.json has every number)")
    print(f"verdict    deeper plain networks learn worse, and shortcuts mend it: {story.verdict}")


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f} %"


def _finding(results: "Finding") -> tuple[str, ...]:
    interval = (
        "none from one seed"
        if results.interval is None
        else f"{results.interval[0]:+.2f} to {results.interval[1]:+.2f}"
    )
    return (
        results.what,
        results.paper,
        "–" if results.mean is None else f"{results.mean:+.2f}",
        interval,
        results.verdict,
    )
