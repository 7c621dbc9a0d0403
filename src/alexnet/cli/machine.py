"""The commands ``info`` and ``bench``: what this machine has, and how fast it is."""

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from alexnet import kernels
from alexnet.cli import output, parser
from alexnet.cli.parser import Flag, KernelMode, option

if TYPE_CHECKING:
    from alexnet.benchmark.runner import Timing
    from alexnet.benchmark.suite import Group, Report


@dataclass(frozen=True)
class InfoArguments:
    """Print versions, devices, and which kernels are in use and why not. Add the output to a bug report."""

    json: Flag = False
    """print one JSON object"""


def info_command(argv: list[str]) -> int:
    """Print versions, devices and kernels."""
    args: InfoArguments = parser.parse(InfoArguments, argv, "info")
    info = collect()
    if args.json:
        print(json.dumps(info, indent=1))
        return 0
    for title in ("system", "packages"):
        output.table(title, ("name", "value"), list(info[title].items()), right=2)
    rows = [(kernel["name"], "yes" if kernel["in_use"] else "no", kernel["why"]) for kernel in info["kernels"]]
    output.table("kernels", ("kernel", "in use", "why"), rows, right=3)
    return 0


def collect() -> dict[str, Any]:
    """Describe the system, the packages and the kernels, as plain values."""
    return {"system": _system(), "packages": _packages(), "kernels": list(_kernels())}


def _system() -> dict[str, str]:
    import torch

    from alexnet.benchmark.runner import machine
    from alexnet.kernels import compiler
    from alexnet.training.runtime import choose_precision

    level, facts = compiler.supported_level(), machine()
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    no_gpu = "none found" if torch.version.cuda else "none: this PyTorch has no CUDA"
    device = torch.device("cuda" if gpus else "cpu")
    return {
        "system": f"{facts['system']}, {platform.machine()}, {' '.join(platform.libc_ver())}",
        "processor": str(facts["processor"]),
        "cores": str(facts["cores"]),
        "threads": str(facts["threads"]),
        "memory": f"{facts['memory_gib']} GiB",
        "instructions": level.name if level else "none that a kernel is compiled for",
        "GPU": ", ".join(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus) or no_gpu,
        "--precision auto": choose_precision("auto", device),
    }


def _packages() -> dict[str, str]:
    """Versions of Python, this package and its dependencies; optional ones too."""
    from alexnet import __version__

    names = sorted({_name(line) for line in requires("alexnet") or ()} - {"alexnet"})
    versions = {"alexnet": __version__, "python": sys.version.split()[0]}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _name(requirement: str) -> str:
    return requirement.translate(str.maketrans("<>=!~;[ ", " " * 8)).split()[0]


def _kernels() -> Iterator[dict[str, Any]]:
    """Each fast implementation: whether this machine uses it, and under which condition, or why not."""
    import torch

    from alexnet.data import resize
    from alexnet.kernels import backend, native_kernels

    native_kernels.build()
    resize.build()
    present = {"GPU": torch.cuda.is_available(), "AMX": backend.has_amx()}
    for kernel in kernels.KERNELS.values():
        if not kernels.enabled(kernel.name):
            why_not = "turned off"
        elif kernel.file.endswith(".c"):
            why_not = _why_not_native(kernel.name)
        elif kernel.name == "simplejpeg":
            why_not = "" if find_spec("simplejpeg") else "simplejpeg is not installed: pip install 'alexnet[fast]'"
        else:
            needed = [name for name in present if name in kernel.used_when]  # one of them is enough
            why_not = "" if any(present[name] for name in needed) else f"no {' and no '.join(needed)}"
        yield {"name": kernel.name, "in_use": not why_not, "why": why_not or kernel.used_when}


def _why_not_native(name: str) -> str:
    """The reason why a C kernel is not used on this machine; empty if it is."""
    from alexnet.data import resize
    from alexnet.kernels import native_kernels

    if name == "resize":
        return "" if resize.in_use() else native_kernels.why_not() or "it could not be compiled"
    if name not in native_kernels.built():
        return native_kernels.why_not() or "it could not be compiled"
    if not hasattr(native_kernels.library(name), f"{name}_is_fast") or native_kernels.is_fast(name):
        return ""
    if name == "linear_f32":
        return "this processor has AVX-512, or no AVX2"
    return f"this processor has no {'AMX' if name == 'linear_amx' else 'AVX2'}"


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
    chart: Annotated[Path | None, option("FILE"), parser.PNG] = None
    """write a bar chart to this PNG file"""
    json: Flag = False
    """print one JSON object"""


def bench_command(argv: list[str]) -> int:
    """Measure training and inference next to PyTorch, torchvision, ONNX Runtime and OpenVINO."""
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
        _print_bench(report)
    if args.chart is not None:
        path = _chart(report, args.chart)
        print(f"chart {path}", file=sys.stderr)
    return 0


def _print_bench(report: "Report") -> None:
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
