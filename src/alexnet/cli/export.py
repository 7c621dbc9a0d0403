"""What is typed to take a classifier elsewhere: ``export`` and ``verify``; and ``predict`` by an exported file."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from alexnet.cli import arguments
from alexnet.cli import output as show
from alexnet.errors import AlexNetError, BundleError, RecipeError

if TYPE_CHECKING:
    from alexnet.export.prediction import Prediction

SUFFIXES = (".onnx", ".xml")


@dataclass(frozen=True)
class ExportArguments:
    """Write a classifier as one file that others run: pixels in, probabilities out, preprocessing inside.

    The file gets its name only after it has answered like the original.
    """

    run: Positional[Path]
    """a run folder or a bundle"""
    format: Literal["onnx", "openvino", "torch"] = "onnx"
    """FILE.onnx | FILE.xml and FILE.bin | FILE.pt2"""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """fp16: weights of half the size | int8: a quarter, and faster"""
    input: Literal["images", "decoded"] = "images"
    """one uint8 image of any size | a batch in stored size"""
    output: Path | None = None
    """by default RUN's name with .onnx, .xml or .pt2, in the current folder"""
    data: str | None = None
    """store with the training images (int8), where a bundle alone is given: a folder or s3://…"""
    json: bool = False
    """print one JSON object"""


@dataclass(frozen=True)
class VerifyArguments:
    """Replay reference images, and say what differs: numbers, class order, channel order, resize, a changed byte.

    Exit status 0: answers as it must. 1: it does not, or is damaged. 2: wrong use.
    """

    target: Positional[str]  # a bundle or run, FILE.onnx, FILE.xml, FILE.pt2, or http://HOST:PORT of a server
    against: Path | None = None  # the original (bundle, run or exported file), to compare with
    key_file: Path | None = None  # file with the server's API key; else the environment's ALEXNET_API_KEY
    trust: bool = False  # open a FILE.pt2, which may run code of whoever made it
    json: bool = False  # print one JSON object


def export(argv: list[str]) -> int:
    """write a classifier as ONNX, OpenVINO or torch.export, proved equal"""
    args: ExportArguments = arguments.parse(ExportArguments, argv, "export")
    from alexnet.export import export_run

    arguments.choose_cache()
    report, cost = export_run.export(
        args.run,
        args.output,
        format=args.format,
        precision=args.precision,
        input=args.input,
        data=args.data,
    )
    if args.json:
        print(json.dumps(report.to_dict() | {"validation": cost}))
        return 0
    print(f"{report.path}  {report.bytes / 1e6:.1f} MB, in {report.seconds:.0f} s")
    print(f"equal    to {report.max_abs_diff:.1e} in every probability of {report.compared} images")
    if cost is not None and cost["count"]:
        before, after = (show.percent(cost[name] / cost["count"]) for name in ("original", "exported"))
        print(f"cost     top-1 {before} -> {after} on {cost['count']} validation images")
    return 0


def verify(argv: list[str]) -> int:
    """prove that a bundle, an exported file or a server answers right"""
    args: VerifyArguments = arguments.parse(VerifyArguments, argv, "verify")
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
            f"{result.target} ({result.kind}) answers as it must: {result.images} images, "
            f"largest difference of a probability {result.max_abs_diff:.1e} (at most {result.limit:g})"
        )
    return 0


def _key(file: Path | None) -> str:
    if file is None:
        return os.environ.get("ALEXNET_API_KEY", "")
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--key-file {file} can not be read", "a text file with the key") from error


def answerer(
    args: arguments.PredictArguments, count: int
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
        show.say(f"unknown below {below:.4f}, the threshold for a target error of {args.target_risk:g}")
    return lambda images: answer(images, args.top, below), below


def _by_file(
    args: arguments.PredictArguments,
) -> "tuple[Callable[[Sequence[Path], int, float | None], list[Prediction]], Mapping[str, float]]":
    if args.crops != 1:
        raise BundleError(f"--crops {args.crops} of an exported file", "1, the center", "ten crops need the bundle")
    if args.precision != "fp32":
        raise BundleError(f"--precision {args.precision} of an exported file", "left out", "export it so instead")
    from alexnet.export.exported_model import ExportedModel

    file = ExportedModel.load(args.run)
    return lambda images, top, below: file.predict(images, top, below), file.manifest.thresholds
