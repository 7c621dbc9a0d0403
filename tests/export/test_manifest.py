"""The checksum: any changed byte is seen, and damaged manifests end in one line."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet.errors import BundleError
from alexnet.export import exported_model as checksum
from alexnet.export.exported_model import ExportedModel, Manifest, ReferenceSample
from alexnet.export.verify import verify

MANIFEST = Manifest(
    ("a", 'b"] -- é'), "images", "fp32", 32, "crop", 1e-4, "net", (ReferenceSample("00", b"png", [0.25, 0.75]),)
)


def test_a_manifest_comes_back():
    assert Manifest.from_json(MANIFEST.to_json(), Path("x")) == MANIFEST


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_every_changed_byte_is_seen(suffix, tmp_path):
    body = b"PK body of the file, whatever it is\n\0\0" if suffix == ".pt2" else b"<net> whatever it is </net>"
    data = checksum.checksummed(body, MANIFEST, suffix)
    path = tmp_path / f"net{suffix}"
    path.write_bytes(data)
    checksum.check_file(path)
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(BundleError, match=r"has changed|no SHA-256"):
            checksum.check_file(path)
    for cut in (b"", data[:10], data[:-1], data + b"x", data[1:]):
        path.write_bytes(cut)
        with pytest.raises(BundleError, match=r"has changed|no SHA-256"):
            checksum.check_file(path)


def test_the_class_names_are_the_last_array_of_an_onnx_file():
    """What the JavaScript of docs/export.md does."""
    text = checksum.checksummed(b"body", MANIFEST, ".onnx").decode("utf-8", "replace")
    assert json.loads(text[text.rindex('["') : text.rindex('"]') + 2]) == list(MANIFEST.classes)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "other"}, "is of format 'other'"),
        ({"version": 2}, "version 2; must be alexnet-export version 1; export it again"),
        ({"classes": 3}, "is damaged: its manifest has Expected `array`, got `int` - at `$.classes`"),
        ({"classes": ["a"]}, "1 classes: at least 2"),
        ({"classes": ["a", "b", "c"]}, "2 probabilities of 3 classes"),
        ({"input": "bgr"}, "Invalid enum value 'bgr' - at `$.input`"),
        ({"reference_samples": [{}]}, "missing required field `name` - at `$.reference_samples[0]`"),
        ({"reference_samples": [{"name": "a", "png": "?", "probabilities": [1, 2]}]}, "is damaged"),
        ({"stored_size": None}, "`$.stored_size`"),
        ({"stored_size": "32"}, "`$.stored_size`"),
        ({"stored_size": 32.5}, "`$.stored_size`"),
        ({"stored_size": 20000}, "`$.stored_size`"),
        ({"classes": ["a", "\x1b[2J"]}, "control and text-direction characters"),
        ({"classes": ["a", "a"]}, "have the same name"),
        ({"tolerance": 0.5}, "a tolerance of 0.5 for fp32"),
        ({"tolerance": float("nan")}, "NaN in place of a number"),
        ({"tolerance": -1}, "`$.tolerance`"),
        ({"thresholds": {"x": 0.5}}, "is damaged"),
        ({"thresholds": {"0.1": 7}}, "thresholds"),
        ({"bin_sha256": "x"}, "`$.bin_sha256`"),
        ({"reference_samples": [{"name": "a", "png": "", "probabilities": [[0.5], [0.5]]}]}, "probabilities"),
        ({"reference_samples": [{"name": "a", "png": "", "probabilities": [7.0, 0.5]}]}, "probabilities"),
    ],
)
def test_a_damaged_manifest_is_named(change, text):
    about = json.loads(MANIFEST.to_json()) | change
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(about), Path("net.onnx"))
    assert str(caught.value).startswith("net.onnx")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
@settings(max_examples=10)
def test_any_json_for_a_manifest_ends_in_the_house_s_error(value):
    fields = json.loads(MANIFEST.to_json())
    for about in (value, *(fields | {name: value} for name in fields if name not in ("format", "version"))):
        try:
            Manifest.from_json(json.dumps(about), Path("net.onnx"))
        except BundleError as error:
            assert "\n" not in str(error)


def test_no_file_of_ours(tmp_path):
    with pytest.raises(BundleError, match=r"is of no known format; must be a file ending in \.onnx, \.xml, \.pt2"):
        checksum.check_file(tmp_path / "net.tflite")
    with pytest.raises(BundleError, match=r"cannot be read: No such file"):
        checksum.check_file(tmp_path / "net.onnx")


def test_a_manifest_nested_deeply_is_damaged():
    with pytest.raises(BundleError, match="nested"):
        Manifest.from_json("[" * 200_000 + "]" * 200_000, Path("net.onnx"))


def resealed(
    onnx_file: Path, path: Path, change=None, weight: float | None = None, names: list[str] | None = None
) -> Path:
    """A copy of an exported file with another manifest, weight or entry of class names, and a checksum that fits."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(onnx_file)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    if weight is not None:
        first = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 4)
        values = onnx.numpy_helper.to_array(first).copy()
        values.flat[0] = weight
        first.CopyFrom(onnx.numpy_helper.from_array(values, first.name))
    manifest = Manifest.from_json(entries["alexnet"], onnx_file)
    data = checksum.checksummed(model.SerializeToString(), dataclasses.replace(manifest, **(change or {})), ".onnx")
    if names is not None:
        body = (
            data[: -len(checksum._BEFORE[".onnx"]) - 64]
            + checksum._entry("classes", json.dumps(names))
            + checksum._BEFORE[".onnx"]
        )
        data = body + hashlib.sha256(body).hexdigest().encode()
    path.write_bytes(data)
    return path


def test_an_onnx_file_whose_metadata_was_edited_is_refused(onnx_file, tmp_path):
    path = tmp_path / "net.onnx"
    classes = ExportedModel.load(resealed(onnx_file, path)).classes
    swapped = [classes[1], classes[0], *classes[2:]]
    with pytest.raises(BundleError, match="its entry of classes is not that of its manifest"):
        ExportedModel.load(resealed(onnx_file, path, names=swapped))
    with pytest.raises(BundleError, match="classes in another order"):
        verify(resealed(onnx_file, path, {"classes": tuple(swapped)}), onnx_file)
    for change in ({"tolerance": 1.0}, {"stored_size": 20000}, {"classes": ("a", "b\x07")}):
        with pytest.raises(BundleError, match="is damaged: its manifest has"):
            ExportedModel.load(resealed(onnx_file, path, change))


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 3e38])
def test_an_onnx_file_that_computes_no_numbers_is_refused(onnx_file, tmp_path, weight, digit_file):
    path = resealed(onnx_file, tmp_path / "net.onnx", weight=weight)
    with pytest.raises(BundleError, match="its probabilities are NaN or Inf"):
        ExportedModel.load(path).predict([digit_file])


def test_weights_beside_an_openvino_file_are_a_regular_file(tmp_path):
    path = tmp_path / "net.xml"
    path.write_bytes(checksum.checksummed(b"<net></net>", MANIFEST, ".xml"))
    os.mkfifo(tmp_path / "net.bin")
    with pytest.raises(BundleError, match=r"net\.bin is damaged: it is not a regular file"):
        checksum.manifest_of(path)


def test_an_onnx_file_whose_weights_lie_in_another_file_is_refused(onnx_file, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(onnx_file)
    manifest = Manifest.from_json({e.key: e.value for e in model.metadata_props}["alexnet"], onnx_file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    path = tmp_path / "net.onnx"
    path.write_bytes(checksum.checksummed(path.read_bytes(), manifest, ".onnx"))
    with pytest.raises(BundleError, match="onnxruntime cannot open it"):
        ExportedModel.load(path)
