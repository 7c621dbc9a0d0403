"""Bundle -> one file that others run: ONNX, OpenVINO or torch.export, from pixels to probabilities.

A file gets its name only after it has answered like the original: golden pictures, and pictures made from them in odd
sizes, from their PNG bytes to the last probability.
"""

import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.bundle import Bundle
from alexnet.data import pixels
from alexnet.data.writing import scratch_folder, sha256_of, sync_folder, write_file
from alexnet.deploy import export_int8, seal
from alexnet.deploy.classifier import Classifier
from alexnet.deploy.runtime import Exported, missing
from alexnet.deploy.seal import TOLERANCE, Manifest, Replay
from alexnet.deploy.whole import Input, Whole
from alexnet.errors import BundleError

Format = Literal["onnx", "openvino", "torch"]
Precision = Literal["fp32", "fp16", "int8"]
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}

# How far a probability may lie from the original's. float32 differs by the order of adding alone; the others are
# limits against a wrong conversion, what they cost is measured on the validation split.
OPSET = 18  # of 2022: onnxruntime 1.14 and later, onnxruntime-web included


@dataclass(frozen=True)
class Report:
    """What was written and how it compares: largest difference of a probability over ``compared`` pictures."""

    path: Path
    bytes: int
    drift: float
    compared: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return vars(self) | {"path": str(self.path)}


def export(
    bundle: Bundle,
    target: Path,
    *,
    format: Format = "onnx",
    precision: Precision = "fp32",
    input: Input = "pictures",
    calibration: NDArray[np.uint8] | None = None,
) -> Report:
    """Write ``bundle`` to ``target``, whole or not at all, after proving that it answers like the original.

    OpenVINO's two files cannot be replaced in one step: a kill in between leaves no .xml, never one of another .bin.

    ``calibration`` uint8 [n, S, S, 3] are pictures of the training split in stored form; int8 needs them. Raises
    :class:`BundleError` where a library is missing, the network is not finite, or the file answers otherwise.
    """
    started = time.perf_counter()
    _refuse(bundle, target, format, precision, calibration)
    replays = expected(bundle)
    manifest = Manifest(
        classes=bundle.classes, input=input, precision=precision, stored_size=bundle.stored_size, fit=bundle.fit,
        tolerance=TOLERANCE[precision], network=bundle.network.name, golden=tuple(replays),
        thresholds=bundle.thresholds,
    )  # fmt: skip
    try:
        with scratch_folder(target) as scratch:
            partial = scratch / target.name
            _write(bundle, manifest, partial, calibration)
            drift = _compare(partial, replays, TOLERANCE[precision], precision)
            if format == "openvino":  # the old .xml goes first and the new one comes last: two exports never mix
                target.unlink(missing_ok=True)
                sync_folder(target.parent)
                partial.with_suffix(".bin").replace(target.with_suffix(".bin"))
            partial.replace(target)
            sync_folder(target.parent)
    except OSError as error:
        raise BundleError(
            f"{target} could not be written: {error.strerror or error}", "", "make room, or choose another"
        ) from error
    files = [target, target.with_suffix(".bin")] if format == "openvino" else [target]
    size = sum(file.stat().st_size for file in files)
    return Report(target, size, drift, len(replays), time.perf_counter() - started)


def _refuse(bundle: Bundle, target: Path, format: str, precision: str, calibration: Any) -> None:
    if format not in get_args(Format) or precision not in get_args(Precision):
        raise BundleError(f"format {format!r}, precision {precision!r}", "onnx, openvino or torch; fp32, fp16 or int8")
    if target.suffix != SUFFIXES[format]:
        raise BundleError(f"{target} for format {format}", f"a name ending in {SUFFIXES[format]}")
    if not target.parent.is_dir():
        raise BundleError(f"there is no folder {target.parent}", "a folder that exists")
    if precision == "int8" and format == "torch":
        raise BundleError("int8 for torch.export", "fp32 or fp16", "take --format onnx or openvino for int8")
    if precision == "int8" and calibration is None:
        raise BundleError(
            "int8 needs pictures of the training split to measure ranges on", "a run, or a bundle with --data",
            "give the run folder, or --data STORE",
        )  # fmt: skip
    for name, value in bundle.network.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise BundleError(f"{name} has values that are not finite", "numbers", "train again, or use another copy")
        if precision == "fp16" and float(value.abs().max()) > torch.finfo(torch.float16).max:
            raise BundleError(f"{name} has values above 65504, which float16 can not hold", "", "take --precision fp32")


def odd_pictures(bundle: Bundle) -> list[NDArray[np.uint8]]:
    """Pictures that are not in stored form, so that resizing is put to the proof: golden ones stretched, and noise."""
    size = bundle.stored_size
    base = [pixels.decode(g.png, g.name) for g in bundle.golden[:2]]
    noise = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)  # 2 × [S, S, 3]
    shapes = [(size + 1, 2 * size + 37), (size // 2 + 3, size // 3 + 5), (size * 3 // 2 + 2, size), (5, size)]
    return [_stretched(picture, *shape) for picture, shape in zip([*base, *noise][:4], shapes, strict=False)]


def _stretched(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    rows, columns = (np.arange(n) * side // n for n, side in zip((height, width), picture.shape, strict=False))
    return np.asarray(picture[rows][:, columns])


def expected(bundle: Bundle) -> list[Replay]:
    """What the original says of its golden pictures and of odd ones; they travel in the exported file."""
    odd = [(f"odd-{p.shape[1]}x{p.shape[0]}", pixels.encode_png(p)) for p in odd_pictures(bundle)]
    pictures = [(g.name, g.png) for g in bundle.golden] + odd
    rows = Classifier(replace(bundle)).probabilities([png for _, png in pictures])
    return [Replay(name, png, row.tolist()) for (name, png), row in zip(pictures, rows, strict=True)]


def _compare(path: Path, replays: Sequence[Replay], tolerance: float, precision: str) -> float:
    found = Exported.load(path, trust=True).probabilities([r.png for r in replays])
    drift = float(np.abs(found - np.array([r.probabilities for r in replays])).max())
    if not drift <= tolerance:
        todo = "take a higher precision" if precision != "fp32" else "report this with the names of network and runtime"
        raise BundleError(
            f"the exported file differs from the original by {drift:.2g} in a probability",
            f"at most {tolerance:g}",
            todo,
        )
    return drift


def _write(bundle: Bundle, manifest: Manifest, path: Path, calibration: NDArray[np.uint8] | None) -> None:
    module = Whole(bundle, "pictures" if manifest.input == "pictures" else "decoded", manifest.precision == "fp16")
    if path.suffix == ".pt2":
        _write_torch(module, manifest, path)
        return
    body = _onnx(module, manifest, path)
    if manifest.precision == "int8":
        assert calibration is not None
        body = export_int8.quantized(body, path, calibration)
    if path.suffix == ".onnx":
        write_file(path, seal.sealed(body, manifest, ".onnx"))
    else:
        _write_openvino(body, manifest, path)


def _program(module: Whole, manifest: Manifest) -> torch.export.ExportedProgram:
    size, batch = manifest.stored_size, torch.export.Dim("pictures", min=1)
    if manifest.input == "decoded":
        example, shapes = torch.zeros(2, size, size, 3, dtype=torch.uint8), {0: batch}
    else:
        example = torch.zeros(size + 3, size + 7, 3, dtype=torch.uint8)
        shapes = {0: torch.export.Dim("height", min=1), 1: torch.export.Dim("width", min=1)}
    with torch.no_grad(), _hushed():
        return torch.export.export(module.eval(), (example,), dynamic_shapes=(shapes,))


def _write_torch(module: Whole, manifest: Manifest, path: Path) -> None:
    buffer = BytesIO()  # a file of PyTorch's own raises RuntimeError on a full disk
    with _hushed():
        torch.export.save(_program(module, manifest), buffer, extra_files={"alexnet.json": manifest.to_json()})
    write_file(path, seal.sealed(buffer.getvalue(), manifest, ".pt2"))


def _onnx(module: Whole, manifest: Manifest, path: Path) -> bytes:
    try:
        import onnx
        import onnxscript  # noqa: F401 - PyTorch writes ONNX with it
    except ImportError as error:
        raise missing("onnx and onnxscript", path, error) from error
    name = "picture" if manifest.input == "pictures" else "pictures"
    with torch.no_grad(), _hushed():
        program: Any = torch.onnx.export(
            _program(module, manifest), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=[name], output_names=["probabilities"], external_data=False,
        )  # fmt: skip
    model = program.model_proto
    model.producer_name, model.doc_string = "alexnet", f"{manifest.network}, uint8 RGB to probabilities"
    del model.metadata_props[:]
    _name_sides(model, ["height", "width"] if manifest.input == "pictures" else ["pictures"])
    for node in model.graph.node:  # names of source files and lines, of no use to anyone else
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _name_sides(model: Any, names: Sequence[str]) -> None:
    """The free sizes of the input by names that tell what they are, wherever they occur."""
    found = [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim if d.dim_param]
    new = dict(zip(found, names, strict=True))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = new.get(dim.dim_param, dim.dim_param)


def _write_openvino(body: bytes, manifest: Manifest, path: Path) -> None:
    try:
        import openvino
    except ImportError as error:
        raise missing("openvino", path, error) from error
    source = path.with_suffix(".onnx")
    source.write_bytes(body)
    model = openvino.convert_model(source)
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # a full disk, which it does not name
        raise OSError(f"OpenVINO failed to save the model ({error})") from error
    weights = path.with_suffix(".bin")
    with weights.open("rb") as file:
        os.fsync(file.fileno())
    manifest = replace(manifest, bin_sha256=sha256_of(weights))
    write_file(path, seal.sealed(path.read_bytes(), manifest, ".xml"))


@contextmanager
def _hushed() -> Iterator[None]:
    """Neither progress lines nor warnings about the exporter's own insides: the result is compared anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
