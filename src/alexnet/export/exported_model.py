"""An exported file with its runtime: ONNX with onnxruntime, OpenVINO with openvino, .pt2 with PyTorch.

Each runtime is imported only for its own files, so that onnxruntime, NumPy and Pillow are all that a FILE.onnx needs.

The *manifest* is JSON: classes in order, form of the input, precision, and reference samples with the probabilities
that the original predicted. The *checksum* is the SHA-256 of everything before it. It is the last entry of the file, in
a place that the format leaves free:

    .onnx   the last entry of metadata_props (the entries "alexnet" and "classes" before it)
    .xml    comments behind OpenVINO's model; the manifest names the SHA-256 of the .bin next to it
    .pt2    the comment of the ZIP archive, and extra/alexnet.json in it"""

import base64
import binascii
import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from alexnet.data import decode
from alexnet.data.atomic_io import read_regular, sha256_of
from alexnet.data.remote import local_path
from alexnet.errors import BundleError
from alexnet.export.prediction import ImageInput, Prediction, as_pixels, best, named
from alexnet.schema import JSON_BYTES, Positive, Probability, ReferenceSample, Size, check, class_fault, parse_json

FORMAT, VERSION = "alexnet-export", 1
# How far a probability may lie from the original's, per precision.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.25}
FORMATS = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}


@dataclass(frozen=True)
class Manifest:
    """The description of an exported file: how to feed it, and what it must predict."""

    classes: tuple[str, ...]
    input: str  # images | decoded
    precision: str  # fp32 | fp16 | int8
    stored_size: int  # pixels
    fit: str  # crop | pad | squash
    tolerance: float  # how far a probability may lie from the original's
    network: str
    reference_samples: tuple[ReferenceSample, ...]
    bin_sha256: str = ""  # OpenVINO: of the file with the weights
    thresholds: Mapping[str, float] = field(default_factory=dict)  # target risk -> confidence threshold

    def to_json(self) -> str:
        """As text, one object."""
        samples = [
            {"name": sample.name, "png": base64.b64encode(sample.png).decode(), "probabilities": sample.probabilities}
            for sample in self.reference_samples
        ]
        fields = {"format": FORMAT, "version": VERSION} | asdict(self) | {"reference_samples": samples}
        return json.dumps(fields, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, path: Path) -> "Manifest":
        """Read and check_file; ``path`` is for the :class:`BundleError`."""
        try:
            metadata = parse_json(text.encode())
            if not isinstance(metadata, dict):
                raise ValueError("no JSON object")
            if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
                raise BundleError(
                    f"{path} is of format {metadata.get('format')!r:.40} version {metadata.get('version')!r:.20}",
                    f"{FORMAT} version {VERSION}",
                    "export it again, or install a newer alexnet",
                )
            checked = check(metadata, _Schema)
            if fault := class_fault(checked.classes):
                raise ValueError(fault)
            if checked.tolerance > TOLERANCE[checked.precision]:
                raise ValueError(f"a tolerance of {checked.tolerance:g} for {checked.precision}")
            fields = msgspec.structs.asdict(checked)
            fields["thresholds"] = {str(float(k)): p for k, p in checked.thresholds.items()}
            samples = tuple(entry.decode(len(checked.classes)) for entry in checked.reference_samples)
            return cls(**fields | {"classes": tuple(checked.classes), "reference_samples": samples})
        except ValueError as error:
            raise damaged(path, f"its manifest has {error}") from error


class ReferenceEntry(msgspec.Struct):
    """A :class:`ReferenceSample` in JSON."""

    name: str
    png: str
    probabilities: list[Probability]

    def decode(self, classes: int) -> ReferenceSample:
        """The sample with decoded bytes. Raises ValueError unless it has one probability per class."""
        if len(self.probabilities) != classes:
            raise ValueError(f"{len(self.probabilities)} probabilities of {classes} classes")
        return ReferenceSample(self.name, base64.b64decode(self.png, validate=True), self.probabilities)


class _Schema(msgspec.Struct):
    classes: list[str]
    input: Literal["images", "decoded"]
    precision: Literal["fp32", "fp16", "int8"]
    stored_size: Size
    fit: Literal["crop", "pad", "squash"]
    tolerance: Positive
    network: str
    reference_samples: list[ReferenceEntry]
    bin_sha256: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] = ""
    thresholds: dict[str, Probability] = {}


def classes_json(classes: Sequence[str]) -> str:
    """The class names as the ONNX metadata entry ``classes`` has them."""
    return json.dumps(classes, ensure_ascii=False)


def damaged(path: Path, reason: str) -> BundleError:
    """The error for a damaged file."""
    return BundleError(
        f"{path} is damaged: {' '.join(reason.split())[:300]}", "", "use another copy, or export it again"
    )


# The checksum


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def _entry(key: str, value: str) -> bytes:
    """One entry of an ONNX model's metadata_props (field 14), as protobuf: appended bytes are merged on reading."""
    parts = b"".join(bytes([tag]) + _varint(len(t)) + t for tag, t in ((10, key.encode()), (18, value.encode())))
    return b"\x72" + _varint(len(parts)) + parts


_BEFORE = {".onnx": _entry("sha256", "0" * 64)[:-64], ".xml": b"<!-- sha256 ", ".pt2": b"alexnet sha256 "}
_BEHIND = {".onnx": b"", ".xml": b" -->\n", ".pt2": b""}


def checksummed(body: bytes, manifest: Manifest, suffix: str) -> bytes:
    """The complete file: the body that the format's library wrote, the manifest and the"""
    if suffix == ".onnx":
        body += _entry("alexnet", manifest.to_json())
        body += _entry("classes", classes_json(manifest.classes))
    elif suffix == ".xml":
        body = body.rstrip() + b"\n<!-- alexnet " + base64.b64encode(manifest.to_json().encode()) + b" -->\n"
    else:  # its manifest is in the archive already; an archive ends with the length of its comment
        body = body[:-2] + (len(_BEFORE[suffix]) + 64).to_bytes(2, "little")
    body += _BEFORE[suffix]
    return body + hashlib.sha256(body).hexdigest().encode() + _BEHIND[suffix]


def is_exported(path: Path) -> bool:
    """Whether ``path`` ends as a file that ``alexnet export`` wrote; its content is not compared with its checksum."""
    before, behind = _BEFORE[path.suffix], _BEHIND[path.suffix]
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - len(before) - 64 - len(behind)))
        end = file.read()
    return end.startswith(before) and end.endswith(behind)


def check_file(path: Path) -> None:
    """Raise :class:`BundleError` unless ``path`` is whole: every byte as it was when it was exported."""
    suffix = path.suffix
    if suffix not in FORMATS:
        raise BundleError(f"{path} is of no known format", f"a file ending in {', '.join(FORMATS)}")
    try:
        data = read_regular(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", "a file that alexnet export wrote") from error
    behind = len(_BEHIND[suffix])
    end = len(data) - behind - 64
    before = _BEFORE[suffix]
    if data[max(0, end - len(before)) : max(0, end)] != before or data[len(data) - behind :] != _BEHIND[suffix]:
        raise BundleError(
            f"{path} has no SHA-256 at its end", "a whole file that alexnet export wrote", "use another copy"
        )
    digest = hashlib.sha256(memoryview(data)[:end]).hexdigest()
    recorded = data[end : end + 64].decode("ascii", "replace")
    if digest != recorded:
        raise BundleError(f"{path} has changed: SHA-256 {digest[:12]}…", f"{recorded[:12]}…", "use another copy")


def manifest_of(path: Path) -> Manifest:
    """The manifest of an OpenVINO or PyTorch file (ONNX: the runtime gives it), the weights next to it checked too."""
    if path.suffix == ".pt2":
        return Manifest.from_json(_archived(path), path)
    try:
        text = path.read_bytes().rsplit(b"<!-- alexnet ", 1)[1].split(b" -->", 1)[0]
        manifest = Manifest.from_json(base64.b64decode(text, validate=True).decode(), path)
        weights = path.with_suffix(".bin")
        if weights.exists() and not weights.is_file():
            raise damaged(weights, "it is not a regular file")
        digest = sha256_of(weights)
    except OSError as error:
        raise BundleError(f"{path} lacks {path.stem}.bin: {error.strerror}", "both files together") from error
    except (IndexError, binascii.Error, UnicodeDecodeError) as error:
        raise damaged(path, f"its manifest has {error}") from error
    if digest != manifest.bin_sha256:
        raise BundleError(
            f"{weights} has changed: SHA-256 {digest[:12]}…", f"{manifest.bin_sha256[:12]}…", "use another copy"
        )
    return manifest


def _archived(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("extra/alexnet.json"))
            if archive.getinfo(name).file_size > JSON_BYTES:
                raise ValueError(f"{archive.getinfo(name).file_size:,} bytes")
            return archive.read(name).decode()
    except (OSError, zipfile.BadZipFile, StopIteration, UnicodeDecodeError, ValueError, EOFError) as error:
        raise damaged(path, f"its manifest cannot be read ({type(error).__name__} {error})") from error


Run: TypeAlias = Callable[[NDArray[np.uint8]], Any]


class ExportedModel:
    """An exported file. It predicts like :class:`alexnet.Classifier`, on the center crop.

    :meth:`load` opens a file and checks every byte of it. FILE.onnx and FILE.xml need no PyTorch.

    Attributes:
        path: The file.
        manifest: The description in the file: classes, preprocessing, thresholds, reference images.
        classes: Class names in the order of the probabilities.
    """

    def __init__(self, path: Path, manifest: Manifest, run: Run) -> None:
        self.path, self.manifest, self._run = path, manifest, run
        self.classes = manifest.classes

    @classmethod
    def load(cls, path: Path | str, trust: bool = False) -> "ExportedModel":
        """Open FILE.onnx, FILE.xml or FILE.pt2. Raises :class:`BundleError` if a byte of it has changed.

        A .pt2 is opened only with ``trust``: PyTorch unpickles parts of it, which may run code of its maker.
        """
        path = local_path(path)
        if not path.is_file():
            raise BundleError(f"there is no file {path}", "a file that alexnet export wrote")
        if path.suffix == ".pt2" and not trust:
            raise BundleError(
                f"{path} is of PyTorch's own format, which can hold code that runs when it is opened",
                "from someone you trust",
                "allow it (--trust), or use a FILE.onnx",
            )
        check_file(path)
        return cls(path, *_OPENERS[path.suffix](path))

    def predict(
        self, images: ImageInput | Sequence[ImageInput], top: int = 5, confidence_threshold: float | None = None
    ) -> list[Prediction]:
        """The ``top`` predictions for each image, which abstain where the first score is below
        ``confidence_threshold``.

        Raises :class:`ImageError` for an image that cannot be read.
        """
        items = named(images)
        rows = self.probabilities([image for _, image in items])
        return [
            best(name, row, self.classes, top, confidence_threshold) for (name, _), row in zip(items, rows, strict=True)
        ]

    def probabilities(self, images: ImageInput | Sequence[ImageInput], batch_size: int = 32) -> NDArray[np.float32]:
        """Class probabilities of each image: float32 [N, K]."""
        items = named(images)
        if self.manifest.input == "images":
            rows = [self._infer(as_pixels(image, name), 1) for name, image in items]
        else:
            rows = [
                self._infer(np.stack([self.prepare(p, name) for name, p in batch]), len(batch))
                for batch in (items[start : start + batch_size] for start in range(0, len(items), batch_size))
            ]
        return np.concatenate(rows) if rows else np.zeros((0, len(self.classes)), np.float32)

    def prepare(self, image: ImageInput, name: str = "image") -> NDArray[np.uint8]:
        """An image in its stored size: RGB uint8 [S, S, 3]."""
        fit: Any = self.manifest.fit
        return decode.fit(as_pixels(image, name), self.manifest.stored_size, fit)

    def _infer(self, batch: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
        if 0 in batch.shape:
            decode.fit(batch, 1)  # raises the error for an empty image
        try:
            result = np.asarray(self._run(np.ascontiguousarray(batch)), np.float32)
        except Exception as error:  # each runtime has its own
            raise damaged(self.path, f"it cannot be run ({error})") from error
        if not np.isfinite(result).all():
            raise damaged(self.path, "its probabilities are NaN or Inf")
        if result.shape != (count, len(self.classes)):
            raise damaged(self.path, f"it returns probabilities of shape {list(result.shape)} for {count} images")
        return result


def missing(library: str, path: Path | str, error: ImportError) -> BundleError:
    """The error where a library of the extra is not installed."""
    return BundleError(f"{path} needs {library}", "installed", "pip install 'alexnet[export]'").with_traceback(
        error.__traceback__
    )


def _open_onnx(path: Path) -> tuple[Manifest, Run]:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing("onnxruntime", path, error) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        # From bytes: a file that names others for its weights, which no checksum covers, is refused then.
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        name = session.get_inputs()[0].name
    except Exception as error:  # onnxruntime's own, a dozen classes
        raise damaged(path, f"onnxruntime cannot open it ({error})") from error
    manifest = Manifest.from_json(metadata.get("alexnet", ""), path)
    if metadata.get("classes") != classes_json(manifest.classes):  # which other programs read
        raise damaged(path, "its entry of classes is not that of its manifest")
    return manifest, lambda batch: session.run(["probabilities"], {name: batch})[0]


def _open_openvino(path: Path) -> tuple[Manifest, Run]:
    manifest = manifest_of(path)
    try:
        import openvino
    except ImportError as error:
        raise missing("openvino", path, error) from error
    try:
        core = openvino.Core()
        # Without this a processor that knows bfloat16 computes in it, and the third digit is noise.
        compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except Exception as error:
        raise damaged(path, f"openvino cannot open it ({error})") from error
    return manifest, lambda batch: compiled([batch])[0]


def _open_torch(path: Path) -> tuple[Manifest, Run]:
    manifest = manifest_of(path)
    import torch

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11 about its own buffers
            module = torch.export.load(path).module()
    except Exception as error:
        raise damaged(path, f"PyTorch cannot open it ({error})") from error

    def run(batch: NDArray[np.uint8]) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(batch)).numpy()

    return manifest, run


_OPENERS: dict[str, Callable[[Path], tuple[Manifest, Run]]] = {
    ".onnx": _open_onnx,
    ".xml": _open_openvino,
    ".pt2": _open_torch,
}
