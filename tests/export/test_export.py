"""Exported files answer like the original, from the bytes of an image to the last probability."""

import copy
import dataclasses
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet import cli
from alexnet.data.decode import encode_png
from alexnet.data.run_file import write_run_file
from alexnet.errors import BundleError, ImageError
from alexnet.export import export as exporting
from alexnet.export.classifier import Classifier
from alexnet.export.export import SUFFIXES, export, odd_images
from alexnet.export.exported_model import ExportedModel

from .conftest import make_bundle

DOCS = Path(__file__).parents[2] / "docs" / "export.md"


def files_of_many_kinds(count: int) -> list[bytes]:
    """Bytes of images of odd sizes, in all modes and formats that people have."""
    rng, found = np.random.default_rng(3), []
    kinds = [
        ("RGB", "PNG"),
        ("L", "JPEG"),
        ("RGBA", "PNG"),
        ("P", "GIF"),
        ("CMYK", "JPEG"),
        ("1", "PNG"),
        ("LA", "PNG"),
        ("RGB", "WEBP"),
        ("I;16", "PNG"),
        ("RGB", "BMP"),
    ]
    for i in range(count):
        mode, format = kinds[i % len(kinds)]
        height, width = rng.integers(1, (40, 150, 400)[i % 3], 2)
        coarse = rng.integers(0, 256, (1 + height // 7, 1 + width // 5, 3), np.uint8)  # patches, not noise alone
        sample = coarse.repeat(7, 0).repeat(5, 1)[:height, :width]
        if mode == "I;16":
            image = Image.fromarray(sample[..., 0].astype(np.uint16) * 256)
        else:
            image = Image.fromarray(sample).convert(mode)
        buffer, options = io.BytesIO(), {}
        if mode == "RGB" and i % 4 == 0:
            options["exif"] = exif = Image.Exif()
            exif[0x0112] = 1 + i % 8
        image.save(buffer, format, **({} if format in ("GIF", "BMP") else options))
        found.append(buffer.getvalue())
    return found


def test_two_hundred_images_from_their_bytes(cifar, onnx_file):
    images = files_of_many_kinds(200)
    expected = Classifier(cifar).probabilities(images)
    found = ExportedModel.load(onnx_file).probabilities(images)
    assert np.abs(found - expected).max() <= 1e-4
    assert np.ptp(expected, axis=0).max() > 0.3  # they do tell images apart


@pytest.mark.parametrize(
    ("name", "options", "how"),
    [
        ("lenet5", {"fit": "pad", "divide": (2.0, 3.0, 4.0)}, {"format": "openvino"}),
        ("cifar_18pct", {"image_size": 24, "divide": (2.0, 3.0, 4.0)}, {"format": "onnx"}),
        ("alexnet", {"image_size": 67, "stored": 70, "classes": 3}, {"input": "decoded"}),
        (
            "cifar_18pct",
            {"image_size": 24, "mean": "channel", "fit": "squash"},
            {"format": "torch", "precision": "fp16"},
        ),
    ],
)
def test_other_networks_and_formats(digits, tmp_path, name, options, how):
    bundle = make_bundle(digits, name, **options)
    path = tmp_path / f"net{exporting.SUFFIXES[how.get('format', 'onnx')]}"
    report = export(bundle, path, **how)
    limit = 1e-2 if "precision" in how else 1e-4
    assert report.max_abs_diff <= limit
    images = files_of_many_kinds(13)
    file = ExportedModel.load(path, trust=True)
    expected = Classifier(bundle).probabilities(images)
    assert np.abs(file.probabilities(images, batch_size=5) - expected).max() <= limit
    assert [p.label for p in file.predict(images)] == [bundle.classes[k] for k in expected.argmax(1)]
    beside = {path.name, path.with_suffix(".bin").name} if path.suffix == ".xml" else {path.name}
    assert {p.name for p in tmp_path.iterdir()} == beside
    assert report.bytes == sum((tmp_path / name).stat().st_size for name in beside)
    if path.suffix == ".pt2":
        with pytest.raises(BundleError, match="can hold code that runs when it is opened"):
            ExportedModel.load(path)
    if path.suffix == ".xml":
        path.with_suffix(".bin").write_bytes(b"0" + path.with_suffix(".bin").read_bytes()[1:])
        with pytest.raises(BundleError, match=r"net\.bin has changed"):
            ExportedModel.load(path)
        path.with_suffix(".bin").unlink()
        with pytest.raises(BundleError, match=r"lacks net\.bin"):
            ExportedModel.load(path)


KILLS = """
import os, sys
from pathlib import Path
from alexnet.bundle import Bundle
from alexnet.export.export import export
path, left = Path(sys.argv[2]), int(sys.argv[3])
names = {str(path), str(path.with_suffix(".bin"))}

def hook(event, args):
    global left
    if event in ("os.rename", "os.remove") and names & set(map(str, args)):
        left -= 1
        if left < 0:
            os._exit(9)

sys.addaudithook(hook)
export(Bundle.load(sys.argv[1]), path, format="openvino")
"""


@pytest.mark.slow
def test_a_kill_never_leaves_an_openvino_file_with_the_weights_of_another(digits, tmp_path):
    openvino = pytest.importorskip("openvino")
    bundle, path = make_bundle(digits, "lenet5"), tmp_path / "net.xml"
    network = copy.deepcopy(bundle.network)
    with torch.no_grad():
        next(network.parameters()).mul_(1.5)
    new = dataclasses.replace(bundle, network=network, reference_samples=()).save(tmp_path / "new")
    export(bundle, path, format="openvino")
    old, states = {file: file.read_bytes() for file in (path, path.with_suffix(".bin"))}, []
    for number in range(9):
        for file, data in old.items():
            file.write_bytes(data)
        words = [sys.executable, "-c", KILLS, *map(str, (new, path, number))]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode in (0, 9), done.stderr
        try:
            ExportedModel.load(path)  # which compares the two files
            states.append("whole")
        except BundleError as error:
            states.append(str(error))
            with pytest.raises(RuntimeError):
                openvino.Core().read_model(path)
            export(bundle, path, format="openvino")
            ExportedModel.load(path)
        if done.returncode == 0:
            break
    assert [states[0], states[3]] == ["whole", "whole"] and len(states) == 4
    assert all("net.bin has changed" in state for state in states[1:3])
    assert path.read_bytes() != old[path]
    assert {p.name for p in tmp_path.iterdir()} == {"net.xml", "net.bin", "new"}


def test_int8_of_a_run_and_its_cost(cifar, digits, tmp_path, capsys):
    cifar = dataclasses.replace(cifar, classes=digits.classes)
    cifar.save(tmp_path / "run" / "bundle")
    write_run_file(tmp_path / "run", {"data": "digits", "store": str(digits.path)})
    words = [
        "export",
        tmp_path / "run",
        "--precision",
        "int8",
        "--input",
        "decoded",
        "--output",
        tmp_path / "small.onnx",
    ]
    assert cli.run([*map(str, words), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["max_abs_diff"] <= 0.25
    assert said["bytes"] == (tmp_path / "small.onnx").stat().st_size
    counted = said["validation"]
    assert counted["count"] == len(digits.split("validation"))
    images = list(digits.split("validation").gather(np.arange(counted["count"])))
    labels = digits.split("validation").labels
    rows = ExportedModel.load(tmp_path / "small.onnx").probabilities(images)
    assert counted["exported"] == int((rows.argmax(1) == labels).sum())
    expected = Classifier(cifar).probabilities(images)
    assert counted["original"] == int((expected.argmax(1) == labels).sum())
    assert 1e-5 < np.abs(rows - expected).max() < 0.3
    assert (rows.argmax(1) == expected.argmax(1)).mean() > 0.8
    import onnx

    model = onnx.load(tmp_path / "small.onnx")
    bytes_of = {i.name: i.data_type for i in model.graph.initializer if math.prod(i.dims) > 1000}
    assert set(bytes_of.values()) <= {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT}
    assert list(bytes_of.values()).count(onnx.TensorProto.INT8) == 4  # conv1 to conv3 and fc10


def test_export_and_verify_from_the_command_line(saved_bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["export", str(saved_bundle), "--format", "torch", "--input", "decoded"]) == 0
    assert f"{saved_bundle.parent.name}.pt2" in capsys.readouterr().out
    (file,) = tmp_path.iterdir()
    assert file.name == f"{saved_bundle.parent.name}.pt2"
    assert cli.run(["verify", str(file), "--against", str(saved_bundle), "--trust"]) == 0
    assert cli.run(["verify", str(file)]) == 1
    assert "allow it (--trust)" in capsys.readouterr().err
    assert cli.run(["export", str(saved_bundle), "--precision", "int8"]) == 1
    assert "give the run folder, or --data STORE" in capsys.readouterr().err
    assert cli.run(["predict", str(file), "x.png", "--crops", "10"]) == 1


def test_crops_of_a_file(onnx_file, capsys):
    assert cli.run(["predict", str(onnx_file), "x.png", "--crops", "10"]) == 1
    assert "--crops 10 of an exported file; must be 1, the center" in capsys.readouterr().err


def test_a_file_carries_temperature_and_thresholds(cifar, digit_file, tmp_path, capsys):
    calibration = {"temperature": 2.5, "thresholds": {"0.1": 0.97}}
    calibrated, path = dataclasses.replace(cifar, calibration=calibration), tmp_path / "net.onnx"
    export(calibrated, path)
    file = ExportedModel.load(path)
    rows = file.probabilities([digit_file])
    assert rows == pytest.approx(Classifier(calibrated).probabilities([digit_file]), abs=1e-4)
    assert np.abs(rows - Classifier(cifar).probabilities([digit_file])).max() > 0.01
    assert file.manifest.thresholds == {"0.1": 0.97}
    words = ["predict", str(path), str(digit_file), "--format", "json"]
    assert cli.run([*words, "--target-risk", "0.1"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["abstained"] is bool(rows.max() < 0.97)
    assert cli.run([*words, "--target-risk", "0.05"]) == 1
    assert "has no threshold for a target error of 0.05; must be at least 0.1" in capsys.readouterr().err


def test_odd_images_are_in_no_stored_form(cifar):
    shapes = [p.shape[:2] for p in odd_images(cifar)]
    assert len(shapes) == 4
    assert all(h != w and (h, w) != (32, 32) for h, w in shapes)
    bare = dataclasses.replace(cifar, reference_samples=())
    assert len(odd_images(bare)) == 2


def test_what_differs_gets_no_name_and_leaves_nothing(cifar, onnx_file, tmp_path, monkeypatch):
    """A conversion that goes wrong is found by the file itself."""
    forward = exporting.ExportModule.forward
    monkeypatch.setattr(exporting.ExportModule, "forward", lambda self, x: forward(self, x.flip(2)))  # BGR
    old = shutil.copy(onnx_file, tmp_path / "net.onnx").read_bytes()
    with pytest.raises(BundleError, match=r"the exported file differs from the original by .* at most 0\.0001"):
        export(cifar, tmp_path / "net.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_bytes() == old


@pytest.mark.parametrize(
    ("others", "format"),
    [("net.onnx", "onnx"), ("net.pt2", "torch"), ("net.xml", "openvino"), ("net.bin", "openvino")],
)
def test_a_file_that_alexnet_did_not_write_is_not_replaced(cifar, tmp_path, others, format):
    for content in (b"a network of someone", b""):
        (tmp_path / others).write_bytes(content)
        with pytest.raises(BundleError, match=rf"{others} exists, and alexnet export did not write it; must be a new"):
            export(cifar, (tmp_path / others).with_suffix(SUFFIXES[format]), format=format)
        assert [p.name for p in tmp_path.iterdir()] == [others] and (tmp_path / others).read_bytes() == content


def test_a_pipe_a_folder_or_a_broken_link_is_not_replaced_by_an_export(cifar, tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "link.onnx").symlink_to("nowhere")
    for path in list(tmp_path.iterdir()):
        with pytest.raises(BundleError, match="exists, and alexnet export did not write it"):
            export(cifar, path)
    assert len(list(tmp_path.iterdir())) == 3


def test_what_can_not_be_exported(cifar, tmp_path):
    def refused(text, bundle=cifar, path=tmp_path / "net.onnx", **how):
        with pytest.raises(BundleError) as caught:
            export(bundle, path, **how)
        assert text in str(caught.value)
        assert not any(tmp_path.iterdir())

    refused("must be a name ending in .xml", format="openvino")
    refused("format 'tflite'", format="tflite")
    refused("there is no folder", path=tmp_path / "nowhere" / "net.onnx")
    refused("int8 needs images of the training split", precision="int8")
    refused("take --format onnx or openvino for int8", path=tmp_path / "net.pt2", format="torch", precision="int8")
    sick = make_sick(cifar, float("nan"))
    refused("fc10.weight has values that are not finite; must be numbers", sick)
    refused("fc10.weight has values above 65504", make_sick(cifar, 1e5), precision="fp16")


def make_sick(bundle, value):
    import copy

    network = copy.deepcopy(bundle.network)
    with torch.no_grad():
        network.fc10.weight[0, 0] = value
    return dataclasses.replace(bundle, network=network)


# The file in other hands


def test_a_file_predictions_without_pytorch(onnx_file, digit_file, tmp_path):
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "onnx", "onnxscript", "openvino"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
from alexnet import cli
status = cli.run(["predict", {str(onnx_file)!r}, {str(digit_file)!r}, "--format", "json"])
sys.exit(status or "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)
    expected = ExportedModel.load(onnx_file).predict(digit_file)[0]
    assert [g["label"] for g in entry["top_k"]] == [name for name, _ in expected.top_k]


def test_the_python_of_the_docs(onnx_file, digit_file, tmp_path, cifar):
    (code,) = re.findall(r"^## Python\n\n```python\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    shutil.copy(onnx_file, tmp_path / "model.onnx")
    shutil.copy(digit_file, tmp_path / "image.jpg")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    predictions = Classifier(cifar).predict(digit_file)[0].top_k
    lines = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    assert [name for name, _ in lines] == [name for name, _ in predictions]
    assert [float(p) for _, p in lines] == pytest.approx([p for _, p in predictions], abs=1.5e-4)


def test_metadata_that_any_runtime_can_read(onnx_file, cifar):
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file)
    found = session.get_modelmeta().custom_metadata_map
    assert json.loads(found["classes"]) == list(cifar.classes)
    assert set(found) == {"alexnet", "classes", "sha256"}
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["height", "width", 3])
    ]
    assert session.get_outputs()[0].name == "probabilities"
    model = onnx.load(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    assert not any("ropout" in node.op_type for node in model.graph.node)
    assert {entry.domain for entry in model.opset_import} <= {"", "pkg.onnxscript.torch_lib.common"}


@pytest.mark.parametrize(("library", "suffix"), [("onnxruntime", ".onnx"), ("onnx", ".onnx"), ("openvino", ".xml")])
def test_a_missing_library_is_named_with_its_extra(library, suffix, cifar, onnx_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BundleError, match=rf"needs {library}.*; must be installed; pip install 'alexnet\[export\]'"):
        if library == "onnxruntime":
            ExportedModel.load(onnx_file)
        else:
            monkeypatch.setattr(exporting, "_onnx", lambda *_: b"") if library == "openvino" else None
            export(cifar, tmp_path / f"net{suffix}", format="onnx" if suffix == ".onnx" else "openvino")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (b"", "#0: is empty"),
        (np.zeros((0, 4, 3), np.uint8), "[0, 4, 3]"),
        (np.zeros((4, 4), np.uint8), "#0: array uint8 [4, 4]; must be uint8 [H, W, 3], RGB"),
        ("nowhere.png", "nowhere.png: cannot be read"),
    ],
)
def test_bad_images(onnx_file, image, text):
    with pytest.raises(ImageError) as caught:
        ExportedModel.load(onnx_file).probabilities(image)
    assert text in str(caught.value)


def test_no_images(onnx_file):
    file = ExportedModel.load(onnx_file)
    assert file.probabilities([]).shape == (0, 10)
    assert file.predict([]) == []


def test_a_resealed_wreck_ends_in_the_house_s_error(onnx_file, tmp_path):
    """Damage under a valid checksum: the runtime's own errors never come out."""
    from alexnet.export import exported_model as checksum

    data, rng = onnx_file.read_bytes(), np.random.default_rng(0)
    manifest = ExportedModel.load(onnx_file).manifest
    body = data[: len(data) - len(checksum.checksummed(b"", manifest, ".onnx"))]
    image = encode_png(np.zeros((9, 9, 3), np.uint8))
    for i in range(40):
        wreck = bytearray(body[: rng.integers(1, len(body))] if i % 2 else body)
        for at in rng.integers(0, len(wreck), 1 + i):
            wreck[at] = rng.integers(0, 256)
        path = tmp_path / f"{i}.onnx"
        path.write_bytes(checksum.checksummed(bytes(wreck), manifest, ".onnx"))
        try:
            ExportedModel.load(path).probabilities(image)
        except BundleError as error:
            assert "\n" not in str(error)
