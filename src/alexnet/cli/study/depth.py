"""The command ``study depth``."""

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
    from alexnet.experiments.residual_depth import DepthResult
    from alexnet.experiments.runner import Measurement


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
    """train plain and residual networks of growing depth: the effect of skip connections"""
    args: DepthArguments = parser.parse(DepthArguments, argv, "study depth")
    if args.data is None:
        raise RecipeError("depth needs DATA", "digits, cifar10, a folder, a store or the name of a set")
    from alexnet.experiments.residual_depth import DepthConfig, default_folder, make_plan, run_depth
    from alexnet.experiments.runner import display_name, open_dataset

    config = DepthConfig(args.quick, args.depths, args.seeds, args.epochs, args.budget, args.images)
    options = data_options(args.source)
    dataset = open_dataset(args.data, options)
    plan = make_plan(dataset, display_name(args.data), config)
    print("\n".join(plan.describe()), "", sep="\n", file=sys.stderr if args.json else sys.stdout, flush=True)
    folder = Path(args.output_dir or default_folder(plan, quick=args.quick))
    result = run_depth(plan, dataset, folder, options, device=args.device, num_workers=args.num_workers)
    _print(result, folder, args.json)
    return 0


def _print(result: "DepthResult", folder: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.to_dict()))
        return
    counts, epochs = result.counts, result.plan.base.epochs
    title = f"{counts['train']} training images, {counts['test']} test images, {epochs} epochs"
    rows = [
        (network.replace("_", " "), _mean(result.train_errors[network]), _mean(result.test_errors[network]))
        for network in result.train_errors
    ]
    output.table(title, ("network", "training error", "test error"), rows)
    columns = ("measured, in points", "He et al.", "here", "95 % CI over seeds", "verdict")
    output.table("", columns, [_measurement_row(measurement) for measurement in result.measurements], right=9)
    for note in dict.fromkeys(m.note for m in result.measurements if m.note):
        print(f"note       {note}")
    print(f"training   {result.seconds:.0f} s in all")
    print(f"image      {result.image}")
    print(f"runs       {folder}  (all numbers in depth.json)")
    print(f"verdict    deeper plain networks train worse, shortcuts prevent it: {result.verdict}")


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f} %"


def _measurement_row(measurement: "Measurement") -> tuple[str, ...]:
    interval = measurement.interval
    return (
        measurement.quantity,
        measurement.published,
        "–" if measurement.mean is None else f"{measurement.mean:+.2f}",
        "none from one seed" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}",
        measurement.verdict,
    )
