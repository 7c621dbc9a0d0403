"""The command ``bench``."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from alexnet import kernels
from alexnet.cli import output, parser
from alexnet.cli.parser import Flag, KernelMode, option

if TYPE_CHECKING:
    from alexnet.benchmark.runner import Timing
    from alexnet.benchmark.suite import Group, Report


@dataclass(frozen=True)
class BenchArguments:
    """Measure the speed of training and inference on this machine, next to the alternatives.

    Every candidate runs in its own process, and the candidates take turns. Nothing else should run meanwhile.
    """

    only: Annotated[str, option("PARTS")] = ""
    """parts to measure, comma-separated: training,inference,data,end-to-end,prepare"""
    model: Annotated[str, option("MODEL")] = "alexnet"
    """network for training and inference"""
    batch_size: Annotated[int, option("N")] = 128
    """batch size of a training step"""
    rounds: Annotated[int, option("N")] = 5
    """timed rounds per candidate"""
    images: Annotated[Path | None, option("DIR")] = None
    """folder of class folders with JPEG files (default: synthetic images)"""
    run: Annotated[Path | None, option("RUN")] = None
    """measure the inference of this run on its test images, with its accuracy"""
    store: Annotated[str | None, option("STORE")] = None
    """where the prepared images of the run are now, if they were moved: a directory or s3://..."""
    quick: Flag = False
    """small batches, few images: a minute or two"""
    kernels: KernelMode = "auto"
    """off: the candidates of this project compute by PyTorch and Pillow instead of the fast kernels"""
    chart: Annotated[Path | None, option("FILE")] = None
    """write a bar chart to this PNG file"""
    json: Flag = False
    """print one JSON object"""


def run(argv: list[str]) -> int:
    """measure training and inference next to PyTorch, torchvision, ONNX Runtime and OpenVINO"""
    args: BenchArguments = parser.parse(BenchArguments, argv, "bench")
    kernels.use(args.kernels)
    from alexnet.benchmark import suite

    every = suite.PARTS if args.run is None else ("inference",)
    parts = tuple(filter(None, (part.strip() for part in args.only.split(",")))) if args.only else every
    config = suite.BenchmarkOptions(
        args.model, parts, args.batch_size, args.rounds, args.quick, args.images, args.run, args.store
    )
    report = suite.run(config, lambda line: print(f"… {line}", file=sys.stderr, flush=True))
    if args.json:
        print(json.dumps(report.to_dict(), indent=1))
    else:
        _print(report)
    if args.chart is not None:
        path = _chart(report, args.chart)
        print(f"chart {path}", file=sys.stderr)
    return 0


def _print(report: "Report") -> None:
    print("\n".join(f"{name:<12} {value}" for name, value in report.machine.items()))
    limits = [(t.candidate.name, _limit(t), output.percent(t.spread)) for t in report.limits if t.rates]
    output.table("what the machine can do", ("limit", "rate", "±"), limits)
    _left_out(report.limits)
    columns = ("candidate", "images/s", "±", "alexnet is faster by", "of the limit", "waiting", "peak MiB")
    for group in report.groups:
        results = [_row(report, group, t) for t in group.timings if t.rates]
        if results:
            output.table(group.name, columns, results)
        _left_out(group.timings)
    counted = [a for a in report.accuracies if a.count]
    if counted:
        rows = [(a.name, f"{a.right:,}", f"{a.count:,}", output.percent(a.right / a.count)) for a in counted]
        output.table(f"test images of {report.config.run}", ("candidate", "right", "of", "accuracy"), rows)


def _left_out(timings: "list[Timing]") -> None:
    for timing in timings:
        if timing.rates:
            continue
        if timing.trial:
            print(f"{timing.candidate.name}: {timing.trial:,.1f} images/s in its trial, {timing.skipped}")
        else:
            print(f"{timing.candidate.name}: left out, {timing.skipped}")


def _row(report: "Report", group: "Group", timing: "Timing") -> tuple[str, ...]:
    share, ratio = report.share(timing), group.ratio(timing)
    return (
        timing.candidate.name,
        f"{timing.median:,.1f}",
        output.percent(timing.spread),
        "" if ratio is None or timing is group.first else f"{ratio:.2f}×",
        "" if share is None else output.percent(share),
        output.percent(timing.waited) if timing.waited else "",
        f"{timing.memory:,.0f}",
    )


def _limit(timing: "Timing") -> str:
    return f"{timing.median / 1e9:,.0f} {'GB/s' if timing.candidate.precision == 'copy' else 'GFLOP/s'}"


def _chart(report: "Report", path: Path) -> Path:
    from alexnet.benchmark.steps import OURS
    from alexnet.plots.studies import Bars, draw_bench

    groups = [
        Bars(
            group.name,
            [
                (t.candidate.name, t.median, t.spread * t.median, t.candidate.name.split(",")[0] == OURS)
                for t in group.timings
                if t.rates
            ],
        )
        for group in report.groups
    ]
    machine = report.machine
    title = f"{report.config.model} on {machine['cores']} cores of {machine['processor']}, torch {machine['torch']}"
    return draw_bench([group for group in groups if group.bars], title, path)
