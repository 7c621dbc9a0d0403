"""A classifier as a folder of static files for a web browser: ``alexnet export RUN --format web``.

The page computes everything in the browser, with onnxruntime-web, and loads nothing from another host.
``model.onnx.gz`` has the output of every layer as an output, and a second input that hides pixels, for the occlusion
map. The pixels are decoded and resized by ``page.js``; the crop, the mean and the network are in the model.
``metadata.json`` describes the layers and gives the place of each weight in the model, so that the page can show the
arithmetic of a unit.

Weights are stored as float32, float16 (``fp16``) or integers of 8 bits with a scale per row (``int8``). A tensor with
at most 256 different values, as ``alexnet compress`` makes them, is stored exactly, as codes of 8 bits and values.
Arithmetic is float32 in all cases.
"""

import gzip
import hashlib
import tarfile
import urllib.request
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.bundle import Bundle
from alexnet.cuda_convnet import GraphNetwork
from alexnet.data import decode
from alexnet.data.atomic_io import json_bytes, open_regular, read_regular, sha256_of, whole_folder
from alexnet.data.cache import default_cache
from alexnet.errors import BundleError, reason
from alexnet.export.classifier import Classifier
from alexnet.export.export_module import ExportModule, onnx_model, quiet
from alexnet.export.exported_model import TOLERANCE, damaged, missing
from alexnet.export.prediction import ImageInput, as_pixels, named
from alexnet.export.web_layers import describe, steps_of
from alexnet.schema import (
    ReferenceSample,
    Sha256,
    Size,
    check,
    class_fault,
    read_checksummed,
    regular_file,
    with_checksum,
)

RUNTIME = "onnxruntime-web-1.30.0"  # an npm package, MIT license
RUNTIME_URL = f"https://registry.npmjs.org/onnxruntime-web/-/{RUNTIME}.tgz"
RUNTIME_SHA256, RUNTIME_BYTES = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71", 33_106_585
RUNTIME_FILES = {  # name in the folder (.gz: packed) -> (name in the package, SHA-256)
    "ort.js": (
        "dist/ort.wasm.bundle.min.mjs",
        "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    ),
    "ort.wasm.gz": (
        "dist/ort-wasm-simd-threaded.wasm",
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    ),
}
METADATA, MODEL = "metadata.json", "model.onnx.gz"
FILES = {"index.html", "page.js", "page.css", MODEL, *RUNTIME_FILES}  # beside METADATA
MODEL_BYTES = 2 << 30  # more than a file of ONNX can have
PAGE = Path(__file__).with_name("page")
LOOK = Path(__file__).parents[1] / "serve" / "page" / "page.css"  # the same as that of the server's page
CODED_FROM = 1024  # values of a tensor from which its weights are coded
TIMEOUT = 60.0  # seconds without a byte of the download


class WebModule(ExportModule):
    """A bundle as a function of decoded images and a mask, with the output of every layer.

    ``images`` uint8 [N, S, S, 3] in stored size; ``keep`` float32 [N, 1, s, s]: 1, or 0 where a pixel is replaced by
    the mean color. Returns probabilities [N, K], the network's input [N, C, s, s], and the outputs of all layers.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, "decoded")
        self.steps = steps_of(self.network)

    def forward(self, images: Tensor, keep: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        x = self.inputs(images) * keep
        outputs = [x]  # index 0 is the step -1
        for step in self.steps:
            outputs.append(step.layer(*(outputs[index + 1] for index in step.inputs)))
        return self.probabilities(outputs[-1]), *outputs


def export_web(
    bundle: Bundle,
    folder: Path,
    samples: Sequence[ReferenceSample],
    precision: str = "fp32",
    runtime: Path | None = None,
) -> float:
    """Write ``bundle`` to the folder ``folder``; the model's predictions are compared with the original's first.

    Args:
        bundle: The classifier.
        folder: The folder to write. Files of an earlier export are replaced.
        samples: Images with the probabilities that are expected of them.
        precision: fp32, fp16 or int8: how weights are stored.
        runtime: The npm package onnxruntime-web: a folder or a FILE.tgz. None: it is downloaded once.

    Returns:
        The largest difference of a probability.

    Raises:
        BundleError: A library or the runtime is missing, or the model predicts something else.
    """
    files = runtime_files(runtime)
    module = WebModule(bundle).eval()
    body, tensors = _model(module, precision, folder)
    difference = _compare(body, Classifier(bundle), samples, TOLERANCE[precision], folder)
    files |= {name: (PAGE / name).read_bytes() for name in ("index.html", "page.js")}
    files["page.css"] = LOOK.read_bytes() + (PAGE / "page.css").read_bytes()
    files[MODEL] = body
    files = {name: gzip.compress(data, 6, mtime=0) if name.endswith(".gz") else data for name, data in files.items()}
    metadata = _metadata(bundle, module, precision, tensors)
    metadata["sha256"] = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    files[METADATA] = json_bytes(with_checksum(metadata))
    try:
        with whole_folder(folder, lambda: _earlier_files(folder)) as partial:
            for name, data in files.items():
                (partial / name).write_bytes(data)
    except FileExistsError as error:
        name = Path(error.filename2 or error.filename).name
        problem = f"{folder} holds {name}, which is not of an earlier export"
        raise BundleError(problem, "", "move it away, or choose another folder") from error
    except OSError as error:
        raise BundleError(f"{folder} could not be written: {error.strerror or error}", "", "choose another") from error
    return difference


def _earlier_files(folder: Path) -> list[str]:
    """The files of an earlier export in ``folder``: only they are replaced."""
    try:
        return [METADATA, *check(read_checksummed(folder, METADATA), _Metadata).sha256]
    except (OSError, ValueError):
        return []


# The model


def _model(module: WebModule, precision: str, path: Path) -> tuple[bytes, dict[str, Any]]:
    """The ONNX model and, for each parameter, where it is in it."""
    size, side, batch = module.stored, module.side, torch.export.Dim("images", min=1)
    example = (torch.zeros(2, size, size, 3, dtype=torch.uint8), torch.ones(2, 1, side, side))
    with torch.no_grad(), quiet():
        program = torch.export.export(module, example, dynamic_shapes=({0: batch}, {0: batch}))
    outputs = ["probabilities", "input", *(f"layer{i}" for i in range(len(module.steps)))]
    model = onnx_model(program, ["images", "keep"], outputs, ["images"], path)
    codes = _code_weights(model, {f"network.{name}" for name, _ in module.network.named_parameters()}, precision)
    import onnx

    onnx.checker.check_model(model)
    body = bytes(model.SerializeToString(deterministic=True))
    raw = {tensor.name: tensor.raw_data for tensor in model.graph.initializer}
    tensors = {}
    for name, parameter in module.network.named_parameters():
        code = codes.get(f"network.{name}")
        if code is None:  # a constant that the exporter merged with an equal one, or computed with
            tensors[name] = {"kind": "list", "shape": list(parameter.shape), "list": parameter.flatten().tolist()}
        else:
            tensors[name] = code | {key: body.index(raw[code[key]]) for key in ("data", "values") if key in code}
    return body, tensors


def _code_weights(model: Any, names: set[str], precision: str) -> dict[str, Any]:
    """Replace the weights ``names`` of the model by coded ones; returns kind, shape and initializers of each."""
    from onnx import helper, numpy_helper

    codes: dict[str, Any] = {}
    nodes: list[Any] = []
    for tensor in [t for t in model.graph.initializer if t.name in names]:
        name, value = tensor.name, numpy_helper.to_array(tensor)
        kind, parts = _coded(value, precision)
        codes[name] = {"kind": kind, "shape": list(value.shape), "data": name if kind == "float32" else f"{name}.data"}
        model.graph.initializer.remove(tensor)
        if kind == "float32":
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
            continue
        model.graph.initializer.append(numpy_helper.from_array(parts[0], f"{name}.data"))
        if len(parts) > 1:
            codes[name]["values"] = f"{name}.values"
            model.graph.initializer.append(numpy_helper.from_array(parts[1], f"{name}.values"))
        if kind == "float16":
            nodes.append(helper.make_node("Cast", [f"{name}.data"], [name], to=1))
        elif kind == "int8":
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}.data", f"{name}.values"], [name], axis=0))
        else:
            nodes.append(helper.make_node("Cast", [f"{name}.data"], [f"{name}.index"], to=6))
            nodes.append(helper.make_node("Gather", [f"{name}.values", f"{name}.index"], [name]))
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    return codes


def _coded(value: NDArray[np.float32], precision: str) -> tuple[str, list[NDArray[Any]]]:
    """The kind of code of a tensor, and its arrays: codes, and their values or scales."""
    if value.size >= CODED_FROM:
        if len(np.unique(value.ravel()[:4096])) <= 256:  # else sorting all values would take seconds
            values, index = np.unique(value, return_inverse=True)
            if len(values) <= 256:
                return "codes", [index.reshape(value.shape).astype(np.uint8), values]
        if precision == "fp16":
            return "float16", [value.astype(np.float16)]
        if precision == "int8":
            scale = np.abs(value.reshape(len(value), -1)).max(1) / 127
            scale = np.where(scale > 0, scale, 1).astype(np.float32)
            rounded = np.rint(value / scale.reshape(-1, *[1] * (value.ndim - 1)))
            return "int8", [rounded.clip(-127, 127).astype(np.int8), scale]
    return "float32", []


def _compare(
    body: bytes, classifier: Classifier, samples: Sequence[ReferenceSample], tolerance: float, path: Path
) -> float:
    """The largest difference of a probability over ``samples``."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing("onnxruntime", path, error) from error
    session = onnxruntime.InferenceSession(body, providers=["CPUExecutionProvider"])
    side, difference = classifier.network.image_size, 0.0
    for sample in samples:
        row = _run(session, classifier.prepare(sample.png, sample.name), side)
        difference = max(difference, float(np.abs(row - np.array(sample.probabilities)).max()))
    if not difference <= tolerance:
        raise BundleError(
            f"the exported model differs from the original by {difference:.2g} in a probability",
            f"at most {tolerance:g}",
            "take a higher precision",
        )
    return difference


def _run(session: Any, image: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """Probabilities [K] of an image [S, S, 3] of which nothing is hidden; ``side``: of the network's input."""
    inputs = {"images": image[None], "keep": np.ones((1, 1, side, side), np.float32)}
    row: NDArray[np.float32] = session.run(["probabilities"], inputs)[0][0]
    return row


# The folder, read again


@dataclass(frozen=True)
class _Metadata:
    """The fields of ``metadata.json`` by which its model is run."""

    format: Literal["alexnet-web"]
    version: Literal[1]
    classes: list[str]
    stored_size: Size
    fit: Literal["crop", "pad", "squash"]
    image_size: Size
    precision: Literal["fp32", "fp16", "int8"]
    sha256: dict[str, Sha256]  # of all other files


class WebFolder:
    """A folder of :func:`export_web` whose checksums were verified. It predicts with its model, as the page does."""

    def __init__(self, folder: Path) -> None:
        """Open ``folder``. Raises :class:`BundleError` if a file of it has changed, is missing, or cannot be run."""
        self.folder = folder
        try:
            self.metadata = check(read_checksummed(folder, METADATA), _Metadata)
            if fault := class_fault(self.metadata.classes):
                raise ValueError(fault)
            if set(self.metadata.sha256) != FILES:
                raise ValueError(f"{METADATA} lists other files than {', '.join(sorted(FILES))}")
            for name, sha256 in self.metadata.sha256.items():
                if sha256_of(regular_file(folder, name)) != sha256:
                    raise ValueError(f"{name} has changed: its SHA-256 differs")
            body = _unpacked(regular_file(folder, MODEL))
        except (OSError, ValueError, EOFError, zlib.error) as error:
            raise damaged(folder, reason(error)) from error
        self.classes = tuple(self.metadata.classes)
        try:
            import onnxruntime
        except ImportError as error:
            raise missing("onnxruntime", folder, error) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(body, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own, a dozen classes
            raise damaged(folder, f"onnxruntime cannot open {MODEL} ({error})") from error

    def probabilities(self, images: ImageInput | Sequence[ImageInput]) -> NDArray[np.float32]:
        """Class probabilities of each image: float32 [N, K]."""
        size, fit = self.metadata.stored_size, self.metadata.fit
        pixels = [decode.fit(as_pixels(image, name), size, fit) for name, image in named(images)]
        try:
            return np.stack([_run(self._session, image, self.metadata.image_size) for image in pixels])
        except Exception as error:
            raise damaged(self.folder, f"{MODEL} cannot be run ({error})") from error


def _unpacked(path: Path) -> bytes:
    """The content of a gzip file, which is a model: at most MODEL_BYTES."""
    with gzip.open(path) as file:
        body = file.read(MODEL_BYTES + 1)
    if len(body) > MODEL_BYTES:
        raise ValueError(f"{path.name} unpacks to more than {MODEL_BYTES:,} bytes")
    return body


# The metadata


def _metadata(bundle: Bundle, module: WebModule, precision: str, tensors: dict[str, Any]) -> dict[str, Any]:
    network, normalization = bundle.network, bundle.normalization
    mean = normalization.mean.detach().cpu().double()
    return {
        "format": "alexnet-web",
        "version": 1,
        "network": network.name,
        "classes": list(bundle.classes),
        "stored_size": bundle.stored_size,
        "fit": bundle.fit,
        "image_size": network.image_size,
        "in_channels": network.in_channels,
        "towers": 1 if isinstance(network, GraphNetwork) else network.towers,  # in one layer
        "mean": mean.reshape(-1, 3).mean(0).tolist(),  # RGB; of a mean image, its own mean
        "divide": normalization.divide.detach().cpu().reshape(-1).tolist(),  # one number, or one per channel
        "temperature": bundle.temperature,
        "precision": precision,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "runtime": RUNTIME,
        "layers": describe(network, [step.name for step in module.steps]),
        "tensors": tensors,
    }


# The runtime


def runtime_files(source: Path | None = None) -> dict[str, bytes]:
    """The files of onnxruntime-web for the folder, by name, not packed yet; each is checked.

    Args:
        source: The npm package as a folder or FILE.tgz (``npm pack onnxruntime-web@1.30.0``). None: the package is
            downloaded once into the cache.

    Raises:
        BundleError: It is missing, cannot be downloaded, or is another version.
    """
    source = source or _download()
    try:
        if source.is_dir():
            root = source / "package" if (source / "package").is_dir() else source
            files = {name: read_regular(root / inner, RUNTIME_BYTES) for name, (inner, _) in RUNTIME_FILES.items()}
        else:
            with open_regular(source) as opened, tarfile.open(fileobj=opened) as archive:
                files = {name: _member(archive, f"package/{inner}") for name, (inner, _) in RUNTIME_FILES.items()}
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise BundleError(
            f"{source} is not the npm package onnxruntime-web ({reason(error)})", f"{RUNTIME}.tgz"
        ) from error
    for name, (inner, sha256) in RUNTIME_FILES.items():
        if hashlib.sha256(files[name]).hexdigest() != sha256:
            raise BundleError(f"{source}: {inner} is not that of {RUNTIME}", f"SHA-256 {sha256[:12]}…")
    return files


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read(RUNTIME_BYTES)


def _download() -> Path:
    def fetch(file: IO[bytes]) -> None:
        try:
            with urllib.request.urlopen(RUNTIME_URL, timeout=TIMEOUT) as response:
                data = response.read(RUNTIME_BYTES + 1)
        except OSError as error:
            raise BundleError(
                f"{RUNTIME} cannot be downloaded ({getattr(error, 'reason', error)})",
                "",
                f"fetch it elsewhere (npm pack {RUNTIME.replace('-web-', '-web@')}) and pass --runtime FILE.tgz",
            ) from error
        if hashlib.sha256(data).hexdigest() != RUNTIME_SHA256:
            raise BundleError(f"{RUNTIME_URL} has other bytes", f"SHA-256 {RUNTIME_SHA256[:12]}…")
        file.write(data)

    return default_cache().obtain(RUNTIME_SHA256, RUNTIME_BYTES, RUNTIME, fetch)
