"""The command ``predict``."""

import glob
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional

from alexnet import kernels
from alexnet.cli import output, parser
from alexnet.cli.parser import KernelMode, option
from alexnet.errors import BundleError, ImageError, printable
from alexnet.terminal import csv_cell

if TYPE_CHECKING:
    from alexnet.export.prediction import Prediction

_BATCH = 32  # images of one pass through the network
SUFFIXES = (".onnx", ".xml")


@dataclass(frozen=True)
class PredictArguments:
    """Classify images. The most probable class comes first."""

    run: Positional[Annotated[Path, option("RUN")]]
    """a run directory, a bundle, or an exported file (FILE.onnx, FILE.xml)"""
    images: Positional[Annotated[tuple[str, ...], option("IMAGE [IMAGE ...]")]]
    """files, folders (with their subfolders) and globs"""
    top: Annotated[int, option("N")] = 5
    """predictions per image"""
    crops: Literal[1, 9, 10] = 1
    """center crop, or the mean of nine or ten crops"""
    format: Literal["table", "json", "csv"] = "table"
    """output format"""
    confidence_threshold: Annotated[float | None, option("P")] = None
    """predict "unknown" below this probability"""
    target_risk: Annotated[float | None, option("FRACTION")] = None
    """predict "unknown" below the bundle's threshold for this error rate, such as 0.02"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: half the memory, faster"""
    kernels: KernelMode = "auto"
    """off: compute everything by PyTorch and Pillow instead of the fast kernels"""


def run(argv: list[str]) -> int:
    """the predictions of a trained classifier for files, folders and globs"""
    args: PredictArguments = parser.parse(PredictArguments, argv, "predict")
    kernels.use(args.kernels)
    if args.top < 1:
        return output.fail(f"--top is {args.top}; must be at least 1", 2)
    if not args.images:
        return output.fail("predict needs IMAGES: files, folders or globs", 2)
    paths, failures = expand(args.images), 0
    answer, below = _predictor(args, len(paths))
    results: list[dict[str, Any]] = []
    for start in range(0, len(paths), _BATCH):
        for path, prediction in _predictions(answer, paths[start : start + _BATCH]):
            if isinstance(prediction, ImageError):
                failures += 1
                output.log(f"alexnet: {printable(str(prediction))}")
                results.append({"filename": str(path), "error": str(prediction)})
            else:
                results.append(prediction.to_dict())
    FORMATS[args.format](results, args.top, below)
    return 1 if failures else 0


def _predictor(
    args: PredictArguments, count: int
) -> "tuple[Callable[[Sequence[Path]], list[Prediction]], float | None]":
    """What predicts some of ``count`` images in one pass, and the threshold below which that is "unknown"; an exported
    file predicts without PyTorch."""
    from alexnet.export.prediction import check_threshold, threshold_for

    check_threshold(args.confidence_threshold, args.target_risk)
    if args.run.suffix in SUFFIXES and not args.run.is_dir():
        answer, thresholds = _by_file(args)
    else:
        from alexnet.export.classifier import Classifier

        classifier = Classifier.load(args.run, args.device, args.precision)
        thresholds, crops = classifier.bundle.thresholds, args.crops
        classifier.expect(count * crops)

        def answer(images: Sequence[Path], top: int, below: float | None) -> "list[Prediction]":
            return classifier.predict(images, top=top, crops=crops, confidence_threshold=below)

    below = args.confidence_threshold
    if args.target_risk is not None:
        below = threshold_for(thresholds, args.target_risk, str(args.run))
        output.log(f"unknown below {below:.4f}, the threshold for a target error of {args.target_risk:g}")
    return lambda images: answer(images, args.top, below), below


def _by_file(
    args: PredictArguments,
) -> "tuple[Callable[[Sequence[Path], int, float | None], list[Prediction]], Mapping[str, float]]":
    if args.crops != 1:
        raise BundleError(f"--crops {args.crops} of an exported file", "1, the center", "ten crops need the bundle")
    if args.precision != "fp32":
        raise BundleError(f"--precision {args.precision} of an exported file", "left out", "export it so instead")
    from alexnet.export.exported_model import ExportedModel

    file = ExportedModel.load(args.run)
    return lambda images, top, below: file.predict(images, top, below), file.manifest.thresholds


def _predictions(
    predict: "Callable[[Sequence[Path]], list[Prediction]]", paths: Sequence[Path]
) -> "Iterator[tuple[Path, Prediction | ImageError]]":
    """In one pass; one by one where an image cannot be read, so that the others are predicted."""
    try:
        yield from zip(paths, predict(paths), strict=True)
    except ImageError as error:
        if len(paths) == 1:
            yield paths[0], error
        else:
            for path in paths:
                yield from _predictions(predict, [path])


def expand(argv: Sequence[str]) -> list[Path]:
    """Files as they are, folders with every image below them, globs with what they match; in order, each once."""
    from alexnet.data.remote import local_path
    from alexnet.data.sources.folders import image_files

    results: dict[Path, None] = {}
    for word in argv:
        if local_path(word).is_dir():
            paths = image_files(Path(word))
        elif glob.has_magic(word) and not Path(word).exists():
            paths = [Path(p) for p in sorted(glob.glob(word, recursive=True)) if Path(p).is_file()]  # noqa: PTH207
        else:
            paths = [Path(word)]
        if not paths:
            raise ImageError(f"{word!r} holds no images", "a file, a folder with images, or a glob that matches")
        results |= dict.fromkeys(paths)
    return list(results)


def _print_json(results: list[dict[str, Any]], top: int, below: float | None) -> None:
    print(json.dumps(results, indent=1))


def _print_csv(results: list[dict[str, Any]], top: int, below: float | None) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["filename", "rank", "label", "score", "error", *["abstained"] * (below is not None)])
    for entry in results:
        last = [] if below is None else [str(entry["abstained"]).lower() if "abstained" in entry else ""]
        for rank, prediction in enumerate(entry.get("top_k", []), 1):
            name, label = csv_cell(entry["filename"]), csv_cell(prediction["label"])
            writer.writerow([name, rank, label, f"{prediction['score']:.6f}", "", *last])
        if "error" in entry:
            writer.writerow([csv_cell(entry["filename"]), "", "", "", csv_cell(entry["error"]), *last])


def _print_predictions(results: list[dict[str, Any]], top: int, below: float | None) -> None:
    rows = []
    for entry in results:
        predictions = [f"{g['label']} {100 * g['score']:.1f} %" for g in entry.get("top_k", [])]
        answer = [] if below is None else [_answer(entry)]
        rows.append(
            (entry["filename"], *answer, *(predictions or ["not readable"]), *[""] * (top - max(len(predictions), 1)))
        )
    width = max((len(row) for row in rows), default=1)
    predictions = ["answer"] * (below is not None)
    columns = ("image", *predictions, *(f"prediction {i}" for i in range(1, width - len(predictions))))
    output.table("", columns, [row[:width] for row in rows])
    if below is not None:
        unknown = sum(bool(entry.get("abstained")) for entry in results)
        print(f"{unknown} of {len(results)} unknown: the first prediction has a probability below {below:.4g}")


def _answer(entry: dict[str, Any]) -> str:
    if "top_k" not in entry:
        return ""
    return "unknown" if entry["abstained"] else str(entry["top_k"][0]["label"])


FORMATS: dict[str, Callable[[list[dict[str, Any]], int, float | None], None]] = {
    "table": _print_predictions,
    "json": _print_json,
    "csv": _print_csv,
}
