"""The command ``study depth``."""

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
    from alexnet.experiments.residual_depth import Outcome
    from alexnet.experiments.runner import Finding


@dataclass(frozen=True)
class DepthArguments:
    """Train plain and residual networks of growing depth alike (He et al. 2015): do deeper ones fit worse?

    The same command reuses finished trainings and resumes an interrupted one.
    """

    data: Positional[Annotated[str | None, option("[DATA]")]] = None
    """digits, cifar10, a folder, parquet files or a store"""
    quick: Flag = False
    """three depths, two seeds, few epochs and images: minutes on a CPU"""
    depths: Annotated[tuple[int, ...], option("N [N ...]")] = ()
    """number of layers: 8, 14, 20, 32, 44, 56 (default: all; quick: 8 20 44)"""
    seeds: Annotated[int | None, option("N")] = None
    """trainings per network (default: 3; quick: 2)"""
    epochs: Annotated[int | None, option("N")] = None
    """epochs of every training (default: 40; quick: 10)"""
    budget: Annotated[str | None, option("TIME")] = None
    """instead of epochs: time for all trainings together, such as 40min or 1.5h"""
    images: Annotated[int | None, option("N")] = None
    """maximum number of training images; 0: all"""
    output_dir: Annotated[Path | None, option("DIR")] = None
    """directory for all runs (default: runs/depth/DATA)"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    num_workers: Annotated[int, option("N")] = 1
    """data-loading threads (does not affect results)"""
    json: Flag = False
    """print one JSON object; the plan goes to standard error"""
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def run(argv: list[str]) -> int:
    """plain and residual networks of growing depth: why skip connections came after AlexNet"""
    args: DepthArguments = parser.parse(DepthArguments, argv, "study depth")
    if args.data is None:
        raise RecipeError("depth needs DATA", "digits, cifar10, a folder, a store or the name of a set")
    from alexnet.experiments import plan as material
    from alexnet.experiments import residual_depth

    config = residual_depth.Config(args.quick, args.depths, args.seeds, args.epochs, args.budget, args.images)
    options = data_options(args.source)
    result = material.find(args.data, options)
    made = residual_depth.make(result, material.shown(args.data), config)
    print("\n".join(made.lines()), "", sep="\n", file=sys.stderr if args.json else sys.stdout, flush=True)
    folder = Path(args.output_dir or residual_depth.folder_for(made, quick=args.quick))
    _print(
        residual_depth.run(made, result, folder, options, device=args.device, workers=args.num_workers),
        folder,
        args.json,
    )
    return 0


def _print(story: "Outcome", folder: Path, as_json: bool) -> None:
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
