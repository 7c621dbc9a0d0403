"""The command ``predict``."""

import codecs
import csv
import itertools
import json
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from alexnet import kernels
from alexnet.cli import output, parser
from alexnet.cli.parser import KernelMode, option
from alexnet.errors import Interrupted, RecipeError, counted, printable
from alexnet.terminal import format_duration

_LOGGED = 10  # unreadable images that are logged one by one where a file lists them


@dataclass(frozen=True)
class PredictArguments:
    """Classify images. The most probable class comes first.

    With --output the results are written while images are predicted, and the same command continues after an
    interruption.
    """

    run: Positional[Annotated[Path, option("RUN")]]
    """a run directory, a bundle, or an exported file (FILE.onnx, FILE.xml)"""
    images: Positional[Annotated[tuple[str, ...], option("INPUT [INPUT ...]")]]
    """image files, folders (with their subfolders), .tar and .parquet files, globs, s3://BUCKET/FOLDER/; - reads a
    list of them from standard input"""
    output: Annotated[Path | None, option("FILE", aliases=("-o",))] = None
    """write the results to FILE.csv, FILE.jsonl or FILE.parquet"""
    top: Annotated[int, option("N")] = 5
    """predictions per image"""
    crops: Literal[1, 9, 10] = 1
    """center crop, or the mean of nine or ten crops"""
    format: Literal["table", "json", "jsonl", "csv"] = "table"
    """format on standard output"""
    confidence_threshold: Annotated[float | None, option("P")] = None
    """predict "unknown" below this probability"""
    target_risk: Annotated[float | None, option("FRACTION")] = None
    """predict "unknown" below the bundle's threshold for this error rate, such as 0.02"""
    conformal: Annotated[float | None, option("FRACTION")] = None
    """add the prediction set: classes that hold the true one in this fraction of images, such as 0.9"""
    batch_size: Annotated[int, option("N")] = 32
    """images of one pass through the network"""
    num_workers: Annotated[int | None, option("N")] = None
    """threads that decode images (default: one for each core; 32 for images at an address)"""
    engine: Literal["threads", "ray"] = "threads"
    """ray: the machines of a Ray cluster, which find the images and RUN at the same path"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: usually faster, with two to three correct digits; takes more memory"""
    kernels: KernelMode = "auto"
    """off: compute everything by PyTorch and Pillow instead of the fast kernels"""


def predict_command(argv: list[str]) -> int:
    """Print or write the predictions of a trained classifier."""
    started = time.perf_counter()  # before the libraries are imported
    args: PredictArguments = parser.parse(PredictArguments, argv, "predict")
    kernels.use(args.kernels)
    if not args.images:
        raise RecipeError("predict needs INPUT: files, folders or globs")
    if args.output is not None and args.format != "table":
        raise RecipeError(f"--format is {args.format}, of standard output", "left out", "the name of FILE decides")
    names = ("top", "crops", "confidence_threshold", "target_risk", "conformal", "batch_size", "num_workers", "engine")
    options = {name: getattr(args, name) for name in (*names, "device", "precision")}
    inputs = [entry for text in args.images for entry in (_standard_input() if text == "-" else [text])]
    if args.output is None:
        return _to_output(args, inputs, options)
    return _to_file(args, args.output, inputs, options, started)


def _standard_input() -> list[str | Path]:
    """The paths and addresses on standard input: one a line, or each behind a zero byte (``find -print0``)."""
    from alexnet.data.remote import is_address

    data = sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8)
    lines = data.split(b"\0") if b"\0" in data else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    names = [line.decode("utf-8", "surrogateescape") for line in lines if line.strip()]
    if not names:
        raise RecipeError("the list on standard input is empty", "a path or an address a line")
    return [name if is_address(name) else Path(name) for name in names]


def _to_file(
    args: PredictArguments, file: Path, inputs: list[str | Path], options: dict[str, Any], started: float
) -> int:
    from alexnet.export.batch_prediction import predict_files

    progress = output.Progress("predicting")
    counts = [0, 0]  # images done and in total
    logged = itertools.count()

    def report(done: int, total: int) -> None:
        counts[:] = done, total
        progress(done, total)

    def log(line: str) -> None:
        if next(logged) < _LOGGED:
            output.log(f"alexnet: {line}")

    try:
        summary = predict_files(args.run, inputs, file, progress=report, log=log, **options)
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        problem = f"interrupted after {counts[0]:,} of {counted(counts[1], 'image')}"
        raise Interrupted(number, problem, "the same command continues") from error
    finally:
        progress.close()
    speed = (summary.images - summary.resumed) / summary.seconds
    total = format_duration(round(time.perf_counter() - started, 1))
    print(f"{summary.path}  {counted(summary.images, 'image')}, {speed:,.1f} images/s; total time {total}")
    if summary.unreadable:
        output.log(f"alexnet: {counted(summary.unreadable, 'image')} could not be read: see the errors in {file}")
    return 1 if summary.unreadable else 0


def _to_output(args: PredictArguments, inputs: list[str | Path], options: dict[str, Any]) -> int:
    from alexnet.export.batch_prediction import BatchPredictor, PredictionOptions, Unreadable

    failures = 0
    predictor = BatchPredictor(args.run, PredictionOptions(**options))
    if args.target_risk is not None:
        output.log(f"unknown below {predictor.threshold:.4f}, the threshold for a target error of {args.target_risk:g}")

    def results() -> Iterator[dict[str, Any]]:
        nonlocal failures
        for result in predictor.stream(inputs):
            if isinstance(result, Unreadable):
                failures += 1
                output.log(f"alexnet: {printable(result.error)}")
            yield result.to_dict()

    FORMATS[args.format](results(), args.top, predictor.threshold, predictor.columns)
    return 1 if failures else 0


def _print_json(results: Iterator[dict[str, Any]], top: int, below: float | None, columns: Sequence[str]) -> None:
    """Print the list that ``json.dumps(list(results), indent=1)`` would print, one image at a time."""
    separator = "["
    for result in results:
        print(separator + "\n" + textwrap.indent(json.dumps(result, indent=1), " "), end="")
        separator = ","
    print("\n]")


def _print_jsonl(results: Iterator[dict[str, Any]], top: int, below: float | None, columns: Sequence[str]) -> None:
    for result in results:
        print(json.dumps(result))


def _print_csv(results: Iterator[dict[str, Any]], top: int, below: float | None, columns: Sequence[str]) -> None:
    from alexnet.export.batch_prediction import csv_rows

    csv.writer(sys.stdout, lineterminator="\n").writerows(csv_rows(results, columns))


def _print_table(results: Iterator[dict[str, Any]], top: int, below: float | None, columns: Sequence[str]) -> None:
    rows, entries = [], list(results)
    for entry in entries:
        predictions = [f"{g['label']} {100 * g['score']:.1f} %" for g in entry.get("top_k", [])]
        leading = [] if below is None else [_label(entry)]
        if "prediction_set" in columns:
            leading.append(", ".join(entry.get("prediction_set", [])))
        rows.append(
            (entry["filename"], *leading, *(predictions or ["not readable"]), *[""] * (top - max(len(predictions), 1)))
        )
    width = max((len(row) for row in rows), default=1)
    extra = ["label"] * (below is not None) + ["prediction set"] * ("prediction_set" in columns)
    heads = ("image", *extra, *(f"prediction {i}" for i in range(1, width - len(extra))))
    output.table("", heads, [row[:width] for row in rows])
    if below is not None:
        unknown = sum(bool(entry.get("abstained")) for entry in entries)
        print(f"{unknown} of {len(entries)} unknown: the first prediction has a probability below {below:.4g}")


def _label(entry: dict[str, Any]) -> str:
    if "top_k" not in entry:
        return ""
    return "unknown" if entry["abstained"] else str(entry["top_k"][0]["label"])


FORMATS: dict[str, Callable[[Iterator[dict[str, Any]], int, float | None, Sequence[str]], None]] = {
    "table": _print_table,
    "json": _print_json,
    "jsonl": _print_jsonl,
    "csv": _print_csv,
}
