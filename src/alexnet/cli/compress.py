"""``alexnet compress``: a trained classifier made small, and the table of what each stage cost."""

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from alexnet.cli import output, parser
from alexnet.cli.options import DataArguments, data_options
from alexnet.errors import RecipeError

if TYPE_CHECKING:
    from alexnet.compression.compress import CompressionResult
    from alexnet.compression.stages import Stage

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class CompressArguments:
    """Make a trained classifier small: prune, learn again, share weights, code them (Han et al. 2015).

    By default a 35th of its size, or larger where that loses more than 1 point of validation accuracy.
    The result is a folder that every other command takes like a run.
    """

    run: Positional[Path]
    """a run folder or a bundle"""
    data: Positional[str | None] = None
    """images to learn again on; by default the run's own; with a bundle, needed"""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """new folder; by default RUN's name with -compressed"""
    target_size: str | None = None
    """the whole bundle in at most so much: 7MB, 800KB, 6.5MiB"""
    max_accuracy_drop: float | None = (
        None  # as small as loses at most so many points of validation accuracy: 0.5; without --target-size 1
    )
    method: Literal["deep", "int8", "int4"] = "deep"
    """prune and share | integers of 8 or 4 bits, nothing learned"""
    epochs: int = 8
    """of learning again, while and after weights are cut"""
    tune_epochs: int = 1
    """of tuning shared values, where sharing has cost something; 0: never"""
    lr: float | None = None
    """at its highest, while learning again; by default a third of the run's own"""
    conv_bits: int = 8
    """of a shared weight's code in convolutions: 2^8 values"""
    fc_bits: int = 5
    """the same in fully connected layers"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N"""
    num_workers: int = 1
    """threads that make batches; the number never changes a result"""
    json: bool = False
    """print one JSON object"""
    quiet: bool = False
    """say nothing on the way"""
    source: DataArguments = field(default_factory=DataArguments)


def run(argv: list[str]) -> int:
    """a trained classifier 35 times smaller: pruned, weights shared, coded"""
    started = time.perf_counter()  # before the libraries are imported
    args: CompressArguments = parser.parse(CompressArguments, argv, "compress")
    for name, low, high in (("epochs", 1, 10_000), ("tune_epochs", 0, 10_000), ("conv_bits", 1, 8), ("fc_bits", 1, 8)):
        if not low <= getattr(args, name) <= high:
            raise RecipeError(f"--{name.replace('_', '-')} is {getattr(args, name)}", f"from {low} to {high}")
    target = None if args.target_size is None else size_in_bytes(args.target_size)
    from dataclasses import replace

    from alexnet import api

    options = data_options(args.source)
    options = replace(options, say=None, progress=None) if args.quiet else options
    compression_options = api.CompressionOptions(args.epochs, args.tune_epochs, args.lr, args.conv_bits, args.fc_bits)
    made = api.compress(
        args.run,
        args.output,
        args.data,
        method=args.method,
        target_size=target,
        max_accuracy_drop=args.max_accuracy_drop,
        compression_options=compression_options,
        device=args.device,
        workers=args.num_workers,
        options=options,
        quiet=args.quiet,
    )
    made = replace(made, seconds=round(time.perf_counter() - started, 1))
    print(json.dumps(made.to_dict())) if args.json else _tell(made)
    return 0


def size_in_bytes(text: str) -> int:
    """``7MB`` -> 7,000,000; raises :class:`RecipeError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgG]?[iI]?[bB]?)", text.strip())
    unit = match[2].upper() if match else ""
    unit = unit if unit in UNITS else unit + "B"
    if match is None or unit not in UNITS:
        raise RecipeError(f"--target-size is {text!r}", "a size such as 7MB, 800KB or 6.5MiB")
    return round(float(match[1]) * UNITS[unit])


def _tell(made: "CompressionResult") -> None:
    columns = (
        "stage",
        "weights",
        "times smaller",
        "kept",
        "validation top-1 (95 % CI)",
        "loss",
        "batch 1",
        "batch 32",
        "in memory",
    )
    first = made.stages[0].bytes
    output.table(f"{made.original}, stage by stage", columns, [_row(stage, first) for stage in made.stages], right=9)
    print(f"bundle     {made.original_bytes / 1e6:.4g} MB -> {made.bytes / 1e6:.4g} MB: {made.ratio:.1f} times smaller")
    if made.test is not None:
        d, p = made.test.difference, made.test.p_value
        before, after = output.percent(made.test.first.value), output.percent(made.test.second.value)
        print(
            f"test       {before} -> {after} on {made.test.count} images: {100 * d.value:+.1f} points "
            f"(95 % CI {100 * d.low:+.1f} to {100 * d.high:+.1f}; McNemar p = {p:.2f})"
        )
    print(f"accuracy   {_lost(made)}")
    print(f"chosen     {made.chosen}")
    print("latency    this network / the original, milliseconds, measured in turn")
    print(f"written    {made.folder}  (bundle/, compression.json, plots/compression.png), in {made.seconds:.0f} s")
    print(f"use it     alexnet predict {made.folder} IMAGE…")


def _lost(made: "CompressionResult") -> str:
    """What the compression costs, beside what was allowed."""
    before, after = made.stages[0].validation, made.stages[-1].validation
    if made.points_lost is None or before is None or after is None:
        return "not measured: there are no validation images; give the run, or DATA"
    limit = (
        "no limit with --target-size"
        if made.max_accuracy_drop is None
        else f"at most {made.max_accuracy_drop:g} allowed"
    )
    change = f"{abs(made.points_lost):.1f} points {'lost' if made.points_lost >= 0 else 'gained'} ({limit})"
    return f"validation {output.percent(before.top1)} -> {output.percent(after.top1)}: {change}"


def _row(stage: "Stage", first: int) -> tuple[str, ...]:
    scores, times = stage.validation, stage.latency
    accuracy, loss = "–", "–"
    if scores is not None:
        low, high = scores.top1_interval
        accuracy = f"{100 * scores.top1:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        loss = f"{scores.loss:.4f}"
    taken = [f"{times[n][1]:.1f} / {times[n][0]:.1f}" for n in (1, 32)]
    size, ratio = f"{stage.bytes / 1e6:.4g} MB", f"{first / stage.bytes:.1f}"
    return (
        stage.name,
        size,
        ratio,
        f"{100 * stage.nonzero:.2f} %",
        accuracy,
        loss,
        *taken,
        f"{stage.memory / 1e6:.1f} MB",
    )
