"""The commands ``export``, ``compress`` and ``verify``: other files of a classifier, and their check."""

import json
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.parser import DataArguments, Flag, choose_cache, data_options, option
from alexnet.errors import AlexNetError, RecipeError
from alexnet.terminal import parse_size

if TYPE_CHECKING:
    from alexnet.compression.compress import CompressionResult
    from alexnet.compression.stages import Stage


@dataclass(frozen=True)
class ExportArguments:
    """Export a classifier as one file or folder: pixels in, probabilities out, preprocessing included.

    The file is written only after its predictions agree with those of the original.
    """

    run: Positional[Annotated[Path, option("RUN")]]
    """a run directory or a bundle"""
    format: Literal["onnx", "openvino", "torch", "timm", "web"] = "onnx"
    """FILE.onnx; FILE.xml with FILE.bin; FILE.pt2 of torch.export; a folder for timm and transformers; a folder of
    static files for a web browser"""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """fp16: half the size; int8: a quarter of the size, faster"""
    input: Literal["images", "decoded"] = "images"
    """images: one uint8 image of any size; decoded: a batch in the stored size"""
    output: Annotated[Path | None, option("FILE", aliases=("-o",))] = None
    """file or folder to write (default: RUN's name with .onnx, .xml, .pt2, -timm or -web, in the current directory)"""
    data: Annotated[str | None, option("STORE")] = None
    """int8 of a bundle: store with the training images, a directory or s3://..."""
    runtime: Annotated[Path | None, option("PATH")] = None
    """web: the npm package onnxruntime-web, a folder or FILE.tgz (default: downloaded once, SHA-256 checked)"""
    json: Flag = False
    """print one JSON object"""


def export_command(argv: list[str]) -> int:
    """Export the classifier; print the file, its agreement with the original, and its accuracy if precision is lost."""
    started = time.perf_counter()  # before the libraries are imported
    args: ExportArguments = parser.parse(ExportArguments, argv, "export")
    from alexnet.export import export

    choose_cache()
    report, validation = export.export_model(
        args.run,
        args.output,
        format=args.format,
        precision=args.precision,
        input=args.input,
        data=args.data,
        runtime=args.runtime,
    )
    report = replace(report, seconds=round(time.perf_counter() - started, 1))
    if args.json:
        print(json.dumps(report.to_dict() | {"validation": validation}))
        return 0
    print(f"{report.path}  {report.bytes / 1e6:.1f} MB; total time {report.seconds:.0f} s")
    print(f"equal    within {report.max_abs_diff:.1e} in every probability of {report.compared} images")
    if args.format == "timm":
        print("load     alexnet.register_timm() first; then transformers predicts the same for images of every shape,")
        print("         and timm's own transform for square images: docs/export.md")
    if validation is not None and validation["count"]:
        before, after = (output.percent(validation[name] / validation["count"]) for name in ("original", "exported"))
        print(f"cost     top-1 {before} -> {after} on {validation['count']} validation images")
    return 0


@dataclass(frozen=True)
class CompressArguments:
    """Compress a classifier: prune, retrain, share weights, encode (Han et al. 2015).

    The default is 35 times smaller, or less if that would lose more than 1 point of validation accuracy. Every other
    command accepts the result like a run.
    """

    run: Positional[Annotated[Path, option("RUN")]]
    """a run directory or a bundle"""
    data: Annotated[str | None, option("DATA")] = None
    """images for retraining (default: the data of the run); required for a bundle"""
    output: Annotated[Path | None, option("DIR", aliases=("-o",))] = None
    """new directory (default: the name of RUN with -compressed)"""
    target_size: Annotated[str | None, option("SIZE")] = None
    """maximum size of the bundle: 7MB, 800KB, 6.5MiB"""
    max_accuracy_drop: Annotated[float | None, option("POINTS")] = None
    """maximum loss of validation accuracy in percentage points (default: 1, without --target-size)"""
    method: Literal["deep", "int8", "int4"] = "deep"
    """deep: prune and share weights; int8 and int4: quantize without retraining"""
    epochs: Annotated[int, option("N")] = 8
    """epochs of retraining while and after pruning"""
    tune_epochs: Annotated[int, option("N")] = 1
    """epochs of tuning the shared weights if sharing has cost accuracy; 0: none"""
    lr: Annotated[float | None, option("LR")] = None
    """peak learning rate of retraining (default: a third of the run's)"""
    conv_bits: Annotated[int, option("N")] = 8
    """bits of a shared weight in convolutions"""
    fc_bits: Annotated[int, option("N")] = 5
    """bits of a shared weight in fully connected layers"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    num_workers: Annotated[int, option("N")] = 1
    """data-loading threads (does not affect results)"""
    json: Flag = False
    """print one JSON object"""
    quiet: Flag = False
    """print nothing while compressing"""
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def compress_command(argv: list[str]) -> int:
    """Compress the classifier and print size, accuracy and latency of each stage."""
    started = time.perf_counter()  # before the libraries are imported
    args: CompressArguments = parser.parse(CompressArguments, argv, "compress")
    target = None if args.target_size is None else parse_size(args.target_size, "--target-size")
    from dataclasses import replace

    from alexnet import api

    options = data_options(args.source, quiet=args.quiet)
    compression_options = api.CompressionOptions(args.epochs, args.tune_epochs, args.lr, args.conv_bits, args.fc_bits)
    result = api.compress(
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
    result = replace(result, seconds=round(time.perf_counter() - started, 1))
    print(json.dumps(result.to_dict())) if args.json else _print_compression(result)
    return 0


def _print_compression(result: "CompressionResult") -> None:
    columns = (
        "stage",
        "weights",
        "times smaller",
        "nonzero",
        "validation top-1 (95 % CI)",
        "loss",
        "batch 1",
        "batch 32",
        "in memory",
    )
    first = result.stages[0].bytes
    rows = [_stage_row(stage, first) for stage in result.stages]
    output.table(f"{result.original}, stage by stage", columns, rows, right=9)
    before, after = (f"{size / 1e6:.4g} MB" for size in (result.original_bytes, result.bytes))
    print(f"bundle     {before} -> {after}: {result.ratio:.1f} times smaller")
    if result.test is not None:
        d, p = result.test.difference, result.test.p_value
        before, after = output.percent(result.test.old.value), output.percent(result.test.new.value)
        print(
            f"test       {before} -> {after} on {result.test.count} images: {100 * d.value:+.1f} points "
            f"(95 % CI {100 * d.low:+.1f} to {100 * d.high:+.1f}; McNemar p = {p:.2f})"
        )
    print(f"accuracy   {_accuracy_change(result)}")
    print(f"chosen     {result.chosen}")
    print("latency    this network / the original, milliseconds, measured alternately")
    print(f"written    {result.folder}  (bundle/, compression.json, plots/compression.png)")
    print(f"time       {result.seconds:.0f} s")
    print(f"next       alexnet predict {result.folder} IMAGE...")


def _accuracy_change(result: "CompressionResult") -> str:
    """The change of validation accuracy, and the limit."""
    before, after = result.stages[0].validation, result.stages[-1].validation
    if result.points_lost is None or before is None or after is None:
        return "not measured: there are no validation images. Pass the run, or --data DATA"
    limit = (
        "no limit with --target-size"
        if result.max_accuracy_drop is None
        else f"at most {result.max_accuracy_drop:g} allowed"
    )
    change = f"{abs(result.points_lost):.1f} points {'lost' if result.points_lost >= 0 else 'gained'} ({limit})"
    return f"validation {output.percent(before.top1)} -> {output.percent(after.top1)}: {change}"


def _stage_row(stage: "Stage", first: int) -> tuple[str, ...]:
    scores, times = stage.validation, stage.latency
    accuracy, loss = "–", "–"
    if scores is not None:
        low, high = scores.top1_interval
        accuracy = f"{100 * scores.top1:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        loss = f"{scores.loss:.4f}"
    latency = [f"{times[n][1]:.1f} / {times[n][0]:.1f}" for n in (1, 32)]
    size, ratio = f"{stage.bytes / 1e6:.4g} MB", f"{first / stage.bytes:.1f}"
    return (
        stage.name,
        size,
        ratio,
        f"{100 * stage.nonzero:.2f} %",
        accuracy,
        loss,
        *latency,
        f"{stage.memory / 1e6:.1f} MB",
    )


@dataclass(frozen=True)
class VerifyArguments:
    """Predict the stored reference images again and compare: weights, class order, preprocessing, file hashes.

    Exit status: 0 equal within the tolerance, 1 different or damaged, 2 wrong use.
    """

    target: Positional[Annotated[str, option("TARGET")]]
    """a run, a bundle, FILE.onnx, FILE.xml, FILE.pt2, a folder of export --format web (needs --against), or
    http://HOST:PORT of a server"""
    against: Annotated[Path | None, option("RUN")] = None
    """original to compare with: a run, a bundle or an exported file"""
    key_file: Annotated[Path | None, option("FILE")] = None
    """file with the API key of the server (default: the environment variable ALEXNET_API_KEY)"""
    trust: Flag = False
    """open FILE.pt2, which can execute code of the person who made it"""
    json: Flag = False
    """print one JSON object"""


def verify_command(argv: list[str]) -> int:
    """Check that a bundle, an exported file or a server still predicts its reference images."""
    args: VerifyArguments = parser.parse(VerifyArguments, argv, "verify")
    key = _key(args.key_file)
    from alexnet.export.verify import verify as replay

    try:
        result = replay(args.target, args.against, key, args.trust)
    except AlexNetError as error:
        if args.json:
            print(json.dumps({"target": args.target, "ok": False, "reason": str(error)}))
        raise
    if args.json:
        print(json.dumps(result.to_dict()))
    else:
        print(
            f"{result.target} ({result.kind}) equals the reference: {result.images} images, "
            f"largest difference of a probability {result.max_abs_diff:.1e} (at most {result.limit:g})"
        )
    return 0


def _key(file: Path | None) -> str:
    if file is None:
        return os.environ.get("ALEXNET_API_KEY", "")
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--key-file {file} cannot be read", "a text file with the key") from error
