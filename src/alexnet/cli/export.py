"""The command ``export``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.options import choose_cache


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


def run(argv: list[str]) -> int:
    """write a classifier as ONNX, OpenVINO or torch.export, proved equal"""
    args: ExportArguments = parser.parse(ExportArguments, argv, "export")
    from alexnet.export import export_run

    choose_cache()
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
        before, after = (output.percent(cost[name] / cost["count"]) for name in ("original", "exported"))
        print(f"cost     top-1 {before} -> {after} on {cost['count']} validation images")
    return 0
