"""The command ``export``."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.parser import Flag, choose_cache, option


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


def run(argv: list[str]) -> int:
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
    if validation is not None and validation["count"]:
        before, after = (output.percent(validation[name] / validation["count"]) for name in ("original", "exported"))
        print(f"cost     top-1 {before} -> {after} on {validation['count']} validation images")
    return 0
