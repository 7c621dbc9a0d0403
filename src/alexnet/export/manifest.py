"""The manifest and the checksum of an exported file; without PyTorch.

The *manifest* is JSON: classes in order, form of the input, precision, and reference samples with the probabilities
that the original predicted. The *checksum* is the SHA-256 of everything before it. It is the last entry of the file, in
a place that the format leaves free:

    .onnx   the last entry of metadata_props (the entries "alexnet" and "classes" before it)
    .xml    comments behind OpenVINO's model; the manifest names the SHA-256 of the .bin next to it
    .pt2    the comment of the ZIP archive, and extra/alexnet.json in it
"""

import base64
import binascii
import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from alexnet.data.atomic_io import read_regular, sha256_of
from alexnet.errors import BundleError
from alexnet.schema import JSON_BYTES, Positive, Probability, ReferenceSample, Size, class_fault, parse_json
from alexnet.schema import check as check_schema

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
        """Read and check; ``path`` is for the :class:`BundleError`."""
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
            checked = check_schema(metadata, _Schema)
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
    """The complete file: the body that the format's library wrote, the manifest and the checksum."""
    if suffix == ".onnx":
        body += _entry("alexnet", manifest.to_json())
        body += _entry("classes", classes_json(manifest.classes))
    elif suffix == ".xml":
        body = body.rstrip() + b"\n<!-- alexnet " + base64.b64encode(manifest.to_json().encode()) + b" -->\n"
    else:  # its manifest is in the archive already; an archive ends with the length of its comment
        body = body[:-2] + (len(_BEFORE[suffix]) + 64).to_bytes(2, "little")
    body += _BEFORE[suffix]
    return body + hashlib.sha256(body).hexdigest().encode() + _BEHIND[suffix]


def check(path: Path) -> None:
    """Raise :class:`BundleError` unless ``path`` is whole: every byte as it was when it was exported."""
    suffix = path.suffix
    if suffix not in FORMATS:
        raise BundleError(f"{path} is of no known format", f"a file ending in {', '.join(FORMATS)}")
    try:
        data = read_regular(path)
    except OSError as error:
        raise BundleError(f"{path} can not be read: {error.strerror}", "a file that alexnet export wrote") from error
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
        raise damaged(path, f"its manifest can not be read ({type(error).__name__} {error})") from error
