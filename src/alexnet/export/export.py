"""Export of a run or bundle to one file: ONNX, OpenVINO or torch.export, from pixels to probabilities.

A file gets its name only after its predictions were compared with the original's, on the reference images and on images
of odd sizes made from them.

Precision int8 is static quantization of the ONNX model by onnxruntime: weights of 8 bits with a scale per output
channel, and activations of 8 bits, whose ranges are measured on images of the training split. Preprocessing, response
normalization and softmax stay in float32. OpenVINO reads the scales and runs the same layers in its own int8.
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.bundle import Bundle, find_bundle
from alexnet.data import decode
from alexnet.data.atomic_io import scratch_folder, sha256_of, sync_folder, write_file
from alexnet.data.remote import local_path
from alexnet.data.run_file import read_run_file
from alexnet.data.store import Split, Store, recorded_store
from alexnet.errors import BundleError, DataError
from alexnet.export import timm_folder, web_folder
from alexnet.export.classifier import Classifier
from alexnet.export.export_module import ExportModule, Input, onnx_model, quiet
from alexnet.export.exported_model import TOLERANCE, ExportedModel, Manifest, checksummed, is_exported, missing
from alexnet.schema import ReferenceSample

Format = Literal["onnx", "openvino", "torch"]
Precision = Literal["fp32", "fp16", "int8"]
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}

# How far a probability may lie from the original's. float32 differs by the order of adding alone; the others are
# limits against a wrong conversion, what they cost is measured on the validation split.


@dataclass(frozen=True)
class ExportReport:
    """The result of an export.

    Attributes:
        path: The file or folder.
        bytes: Its size.
        max_abs_diff: The largest difference of a probability from the original's.
        compared: Number of images that were compared.
        seconds: Duration.
    """

    path: Path
    bytes: int
    max_abs_diff: float
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
    input: Input = "images",
    calibration: NDArray[np.uint8] | None = None,
) -> ExportReport:
    """Write ``bundle`` to ``target`` after verifying the file against the original; on failure nothing is written.

    OpenVINO's two files cannot be replaced in one step: a kill in between leaves a .xml that no program reads, and
    that the next export replaces.

    Args:
        bundle: The classifier.
        target: The file to write: .onnx, .xml or .pt2.
        format: onnx, openvino or torch.
        precision: fp32, fp16 (weights only) or int8.
        input: "images": one uint8 image of any size. "decoded": a batch of images in stored size.
        calibration: Images of the training split in stored size, uint8 [n, S, S, 3]; int8 needs them.

    Raises:
        BundleError: A library is missing, weights are not finite, or the file's predictions differ.
    """
    started = time.perf_counter()
    _refuse(bundle, target, format, precision, calibration)
    samples = predict_samples(bundle)
    manifest = Manifest(
        classes=bundle.classes,
        input=input,
        precision=precision,
        stored_size=bundle.stored_size,
        fit=bundle.fit,
        tolerance=TOLERANCE[precision],
        network=bundle.network.name,
        reference_samples=tuple(samples),
        thresholds=bundle.thresholds,
    )
    try:
        with scratch_folder(target) as scratch:
            partial = scratch / target.name
            _write(bundle, manifest, partial, calibration)
            drift = _compare(partial, samples, TOLERANCE[precision], precision)
            if format == "openvino":  # a .xml without a model comes first and the new one last: two exports never mix
                between = checksummed(b"<unfinished/>", replace(manifest, bin_sha256="0" * 64), ".xml")
                write_file(target, between)
                partial.with_suffix(".bin").replace(target.with_suffix(".bin"))
            partial.replace(target)
            sync_folder(target.parent)
    except OSError as error:
        raise BundleError(
            f"{target} could not be written: {error.strerror or error}", "", "make room, or choose another"
        ) from error
    files = [target, target.with_suffix(".bin")] if format == "openvino" else [target]
    size = sum(file.stat().st_size for file in files)
    return ExportReport(target, size, drift, len(samples), time.perf_counter() - started)


def _refuse(bundle: Bundle, target: Path, format: str, precision: str, calibration: Any) -> None:
    if format not in get_args(Format) or precision not in get_args(Precision):
        raise BundleError(f"format {format!r}, precision {precision!r}", "onnx, openvino or torch; fp32, fp16 or int8")
    if target.suffix != SUFFIXES[format]:
        raise BundleError(f"{target} for format {format}", f"a name ending in {SUFFIXES[format]}")
    if not target.parent.is_dir():
        raise BundleError(f"there is no folder {target.parent}", "a folder that exists", "create it first")
    _keep_others(target)
    if precision == "int8" and format == "torch":
        raise BundleError("int8 for torch.export", "fp32 or fp16", "take --format onnx or openvino for int8")
    if precision == "int8" and calibration is None:
        raise BundleError(
            "int8 needs images of the training split to measure ranges on",
            "a run, or a bundle with --data",
            "give the run folder, or --data STORE",
        )
    for name, value in bundle.network.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise BundleError(f"{name} has values that are not finite", "numbers", "train again, or use another copy")
        if precision == "fp16" and float(value.abs().max()) > torch.finfo(torch.float16).max:
            raise BundleError(f"{name} has values above 65504, which float16 cannot hold", "", "take --precision fp32")


def _keep_others(target: Path) -> None:
    """Raise :class:`BundleError` if the export would replace what ``alexnet export`` did not write."""
    try:
        is_ours = target.is_file() and is_exported(target)
    except OSError as error:
        raise BundleError(f"{target} cannot be read: {error.strerror}", "a file that alexnet export wrote") from error
    weights = target.with_suffix(".bin")
    for path in [target, weights] if target.suffix == ".xml" else [target]:
        if os.path.lexists(path) and not is_ours:
            problem = f"{path} exists, and alexnet export did not write it"
            raise BundleError(problem, "a new file", "choose another name, or delete it")


def odd_images(bundle: Bundle) -> list[NDArray[np.uint8]]:
    """Images that are not in stored size, to test the resize: stretched reference images, and noise."""
    size = bundle.stored_size
    base = [decode.decode(g.png, g.name) for g in bundle.reference_samples[:2]]
    noise = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)  # 2 × [S, S, 3]
    shapes = [(size + 1, 2 * size + 37), (size // 2 + 3, size // 3 + 5), (size * 3 // 2 + 2, size), (5, size)]
    return [_stretched(image, *shape) for image, shape in zip([*base, *noise][:4], shapes, strict=False)]


def _stretched(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    rows, columns = (np.arange(n) * side // n for n, side in zip((height, width), image.shape, strict=False))
    return np.asarray(image[rows][:, columns])


def predict_samples(bundle: Bundle) -> list[ReferenceSample]:
    """The bundle's predictions for its reference images and for odd ones, which the exported file carries."""
    odd = [(f"odd-{p.shape[1]}x{p.shape[0]}", decode.encode_png(p)) for p in odd_images(bundle)]
    images = [(g.name, g.png) for g in bundle.reference_samples] + odd
    rows = Classifier(replace(bundle)).probabilities([png for _, png in images])
    return [ReferenceSample(name, png, row.tolist()) for (name, png), row in zip(images, rows, strict=True)]


def _compare(path: Path, samples: Sequence[ReferenceSample], tolerance: float, precision: str) -> float:
    result = ExportedModel.load(path, trust=True).probabilities([r.png for r in samples])
    drift = float(np.abs(result - np.array([r.probabilities for r in samples])).max())
    if not drift <= tolerance:
        hint = "take a higher precision" if precision != "fp32" else "report this with the names of network and runtime"
        raise BundleError(
            f"the exported file differs from the original by {drift:.2g} in a probability",
            f"at most {tolerance:g}",
            hint,
        )
    return drift


def _write(bundle: Bundle, manifest: Manifest, path: Path, calibration: NDArray[np.uint8] | None) -> None:
    module = ExportModule(bundle, "images" if manifest.input == "images" else "decoded", manifest.precision == "fp16")
    if path.suffix == ".pt2":
        _write_torch(module, manifest, path)
        return
    body = _onnx(module, manifest, path)
    if manifest.precision == "int8":
        assert calibration is not None
        body = quantize_int8(body, path, calibration)
    if path.suffix == ".onnx":
        write_file(path, checksummed(body, manifest, ".onnx"))
    else:
        _write_openvino(body, manifest, path)


def _program(module: ExportModule, manifest: Manifest) -> torch.export.ExportedProgram:
    size, batch = manifest.stored_size, torch.export.Dim("images", min=1)
    if manifest.input == "decoded":
        example, shapes = torch.zeros(2, size, size, 3, dtype=torch.uint8), {0: batch}
    else:
        example = torch.zeros(size + 3, size + 7, 3, dtype=torch.uint8)
        shapes = {0: torch.export.Dim("height", min=1), 1: torch.export.Dim("width", min=1)}
    with torch.no_grad(), quiet():
        return torch.export.export(module.eval(), (example,), dynamic_shapes=(shapes,))


def _write_torch(module: ExportModule, manifest: Manifest, path: Path) -> None:
    buffer = BytesIO()  # a file of PyTorch's own raises RuntimeError on a full disk
    with quiet():
        torch.export.save(_program(module, manifest), buffer, extra_files={"alexnet.json": manifest.to_json()})
    write_file(path, checksummed(buffer.getvalue(), manifest, ".pt2"))


def _onnx(module: ExportModule, manifest: Manifest, path: Path) -> bytes:
    single = manifest.input == "images"
    names = ["height", "width"] if single else ["images"]
    model = onnx_model(_program(module, manifest), ["image" if single else "images"], ["probabilities"], names, path)
    model.doc_string = f"{manifest.network}, uint8 RGB to probabilities"
    return bytes(model.SerializeToString(deterministic=True))


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
    write_file(path, checksummed(path.read_bytes(), manifest, ".xml"))


CALIBRATION = 128  # images: more did not change the second digit of the accuracy


def quantize_int8(body: bytes, path: Path, calibration: NDArray[np.uint8]) -> bytes:
    """The serialized ONNX model ``body`` in int8, calibrated on images uint8 [n, S, S, 3]."""
    try:
        import onnx
        from onnxruntime import quantization
    except ImportError as error:
        raise missing("onnx and onnxruntime", path, error) from error
    source, target = (path.with_name(f"{path.stem}.{name}.onnx") for name in ("float", "int8"))
    source.write_bytes(body)
    model = onnx.load_from_string(body)
    entry = model.graph.input[0]
    single = len(entry.type.tensor_type.shape.dim) == 3
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends its own preprocessing, which this model does not need
    try:
        quantization.quantize_static(
            source,
            target,
            _Images(entry.name, calibration, single),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,  # weights of 7 bits: processors without VNNI add pairs of multiplications in 16 bits
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "MaxPool", "Relu"],
            nodes_to_exclude=_kept(model),
        )
    finally:
        logging.disable(before)
    result = onnx.load(target)
    del result.metadata_props[:]
    return bytes(result.SerializeToString(deterministic=True))


def _kept(model: Any) -> list[str]:
    """Nodes that stay in float32: the windows of response normalization are not weights."""
    return [node.name for node in model.graph.node if any("window" in name for name in node.input)]


class _Images:
    """Calibration data reader of onnxruntime: one input after the other, then None."""

    def __init__(self, name: str, images: NDArray[np.uint8], single: bool) -> None:
        self.name = name
        self.rows: Iterator[NDArray[np.uint8]] = iter(images if single else images[:, None])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        row = next(self.rows, None)
        return None if row is None else {self.name: np.ascontiguousarray(row)}


BATCH = 32


def export_model(
    run: str | Path,
    path: str | Path | None = None,
    *,
    format: Format | Literal["timm", "web"] = "onnx",
    precision: Precision = "fp32",
    input: Input = "images",
    data: str | Path | None = None,
    runtime: str | Path | None = None,
) -> tuple[ExportReport, dict[str, int] | None]:
    """Export a run or a bundle as a file or folder that other programs run.

    The predictions of the file are compared with those of the original before it is written.

    Args:
        run: A run folder or a bundle.
        path: The file or folder; by default RUN's name with ``.onnx``, ``.xml``, ``.pt2``, ``-timm`` or ``-web`` in the
            current directory.
        format: ``onnx``, ``openvino``, ``torch`` (torch.export), ``timm`` (a folder for timm and transformers), or
            ``web`` (a folder of static files for a browser).
        precision: ``fp32``, ``fp16`` (half the size) or ``int8`` (a quarter); ``timm`` has ``fp32`` only.
        input: ``images``: one image uint8 [H, W, 3] of any size. ``decoded``: images in stored size, uint8
            [N, S, S, 3].
        data: A store with the training images, for ``int8`` of a bundle; by default that of the run.
        runtime: ``web``: the npm package onnxruntime-web, a folder or a FILE.tgz; by default downloaded once.

    Returns:
        The report, and for ``fp16`` and ``int8`` with images the numbers of correct predictions on the validation
        split: ``count``, ``original`` and ``exported``; otherwise None.

    Raises:
        BundleError: A library is missing, the options exclude each other, or the file's predictions differ.
        DataError: The store is missing or damaged.

    Example:
        >>> report, _ = alexnet.export_model("my-run", "my-run.onnx")
        >>> print(report.bytes, report.max_abs_diff)
    """
    bundle = Bundle.load(find_bundle(run))
    if runtime is not None and format != "web":
        raise BundleError(f"--runtime with --format {format}", "--format web")
    store = _store(Path(run), data) if precision != "fp32" and format != "web" else None
    if store is not None:
        bundle.same_classes(store.classes, store.address)
    folder = find_bundle(run).resolve()
    name = folder.parent.name if folder.name == "bundle" else folder.name
    if format == "timm" or format == "web":
        if input != "images" or (format == "timm" and precision != "fp32"):
            expected = "fp32 and images" if format == "timm" else "images"
            raise BundleError(f"--format {format} with --precision {precision} --input {input}", expected)
        folder = local_path(path) if path else Path(f"{name}-{format}")
        return _export_folder(bundle, folder, format, precision, local_path(runtime) if runtime else None), None
    target = local_path(path) if path else Path(name + SUFFIXES[format])
    images = calibration(store) if store is not None and precision == "int8" else None
    report = export(bundle, target, format=format, precision=precision, input=input, calibration=images)
    return report, accuracy_cost(bundle, target, store) if store is not None else None


def _export_folder(
    bundle: Bundle, folder: Path, format: str, precision: Precision, runtime: Path | None
) -> ExportReport:
    started, samples = time.perf_counter(), predict_samples(bundle)
    if format == "timm":
        samples = samples[: len(bundle.reference_samples)]
        difference = timm_folder.export_timm(bundle, folder, samples)
    else:
        difference = web_folder.export_web(bundle, folder, samples, precision, runtime)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return ExportReport(folder, size, difference, len(samples), time.perf_counter() - started)


def _store(run: Path, data: str | Path | None) -> Store | None:
    """The store ``data``, or the one that a run was trained on; None where only a bundle is at hand."""
    if data is None and not (run / "run.json").is_file():
        return None
    return Store.open(data or recorded_store(run, read_run_file(run)))


def calibration(store: Store) -> NDArray[np.uint8]:
    """Images of the training split to measure ranges on: uint8 [n, S, S, 3], spread over all of it."""
    split = store.split("train")
    if not len(split):
        raise DataError(f"{store.address} has no training images", "at least one", "give another store")
    indices = np.linspace(0, len(split) - 1, min(CALIBRATION, len(split))).astype(np.int64)
    return split.gather(indices)


def accuracy_cost(bundle: Bundle, exported: Path, store: Store) -> dict[str, int]:
    """How many of the validation images (``count``) the ``original`` and the ``exported`` classifier have right."""
    split = store.split("validation")
    return {
        "count": len(split),
        "original": count_correct(Classifier(bundle), split),
        "exported": count_correct(ExportedModel.load(exported, trust=True), split),
    }


def count_correct(classifier: Any, split: Split) -> int:
    """How many images of ``split`` are classified correctly by the top-1 prediction of ``classifier``."""
    result = 0
    for start in range(0, len(split), BATCH):
        indices = np.arange(start, min(start + BATCH, len(split)))
        rows = classifier.probabilities(list(split.gather(indices)))
        result += int((rows.argmax(1) == split.labels[indices]).sum())
    return result
