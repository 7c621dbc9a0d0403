"""``alexnet bench``: how fast this machine trains and answers, beside what a user would pick instead."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet.cli import arguments, show

if TYPE_CHECKING:
    from alexnet.bench.arena import Timing
    from alexnet.bench.course import Group, Report


@dataclass(frozen=True)
class BenchArguments:
    """Measure this machine: its limits, this project, and what a user would pick instead, in turn.

    Each contender runs in a process of its own; rounds go in turn, so that what disturbs one disturbs all. Nothing else
    should compute meanwhile.
    """

    only: str = ""  # parts to measure, separated by commas: training,inference,data,end-to-end,prepare
    model: str = "alexnet"  # network of training and inference
    batch_size: int = 128  # of a training step
    rounds: int = 5  # timed rounds of each contender
    pictures: Path | None = None  # folder of class folders with JPEG files; by default painted ones
    run: Path | None = None  # time the answers of this trained run on its test pictures, and count which are right
    quick: bool = False  # small batches and few pictures: a minute or two, for a first look
    chart: Path | None = None  # write a bar chart (PNG) here
    json: bool = False  # print all numbers as JSON


def bench(words: list[str]) -> int:
    """how fast this machine trains and answers, beside PyTorch, torchvision, ONNX Runtime and OpenVINO"""
    given: BenchArguments = arguments.parse(BenchArguments, words, "bench")
    from alexnet.bench import course

    every = course.PARTS if given.run is None else ("inference",)
    parts = tuple(filter(None, (part.strip() for part in given.only.split(",")))) if given.only else every
    wishes = course.Wishes(given.model, parts, given.batch_size, given.rounds, given.quick, given.pictures, given.run)
    report = course.run(wishes, lambda line: print(f"… {line}", file=sys.stderr, flush=True))
    if given.json:
        print(json.dumps(report.to_dict(), indent=1))
    else:
        _print(report)
    if given.chart is not None:
        path = _chart(report, given.chart)
        print(f"chart {path}", file=sys.stderr)
    return 0


def _print(report: "Report") -> None:
    print("\n".join(f"{name:<12} {value}" for name, value in report.machine.items()))
    limits = [(t.contender.name, _limit(t), show.percent(t.spread)) for t in report.limits if t.rates]
    show.table("what the machine can do", ("limit", "rate", "±"), limits)
    _left_out(report.limits)
    columns = ("contender", "pictures/s", "±", "alexnet is faster by", "of the limit", "waiting", "peak MiB")
    for group in report.groups:
        found = [_row(report, group, t) for t in group.timings if t.rates]
        if found:
            show.table(group.name, columns, found)
        _left_out(group.timings)
    counted = [a for a in report.accuracies if a.count]
    if counted:
        rows = [(a.name, f"{a.right:,}", f"{a.count:,}", show.percent(a.right / a.count)) for a in counted]
        show.table(f"test pictures of {report.wishes.run}", ("contender", "right", "of", "accuracy"), rows)


def _left_out(timings: "list[Timing]") -> None:
    for timing in timings:
        if not timing.rates:
            print(f"{timing.contender.name}: left out, {timing.skipped}")


def _row(report: "Report", group: "Group", timing: "Timing") -> tuple[str, ...]:
    share, ratio = report.share(timing), group.ratio(timing)
    return (
        timing.contender.name,
        f"{timing.median:,.1f}",
        show.percent(timing.spread),
        "" if ratio is None or timing is group.first else f"{ratio:.2f}×",
        "" if share is None else show.percent(share),
        show.percent(timing.waited) if timing.waited else "",
        f"{timing.memory:,.0f}",
    )


def _limit(timing: "Timing") -> str:
    return f"{timing.median / 1e9:,.0f} {'GB/s' if timing.contender.precision == 'copy' else 'GFLOP/s'}"


def _chart(report: "Report", path: Path) -> Path:
    from alexnet.bench.steps import OURS
    from alexnet.visualize.bench import Bars, draw_bench

    groups = [
        Bars(group.name, [
            (t.contender.name, t.median, t.spread * t.median, t.contender.name.split(",")[0] == OURS)
            for t in group.timings if t.rates
        ])
        for group in report.groups
    ]  # fmt: skip
    machine = report.machine
    title = f"{report.wishes.model} on {machine['cores']} cores of {machine['processor']}, torch {machine['torch']}"
    return draw_bench([group for group in groups if group.bars], title, path)
