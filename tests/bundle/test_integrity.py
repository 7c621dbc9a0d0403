"""Bundles with a changed, missing or invalid file are refused, and the error names the file."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from alexnet.bundle import Bundle
from alexnet.bundle.integrity import read_tensors, write_tensors
from alexnet.errors import BundleError
from alexnet.schema import checksum_of

from .conftest import FILES


def edit_config(saved: Path, **changes: object) -> None:
    """Change entries of the config and leave its hashes."""
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | changes))


def with_valid_hashes(saved: Path, config: dict | None = None, **files: bytes) -> Path:
    """Replace entries of the config (``model/name``) and files, then compute all hashes again."""
    names = {name: f"{name}.safetensors" for name in ("mean", "model", "features")}
    names["expected"] = "reference/expected.json"
    content = json.loads((saved / "config.json").read_text())
    for name, data in files.items():
        (saved / names[name]).write_bytes(data)
        content["sha256"][names[name]] = hashlib.sha256(data).hexdigest()
    for key, value in (config or {}).items():
        *path, last = key.split("/")
        entry = content
        for part in path:
            entry = entry[part]
        entry[last] = value
    content["sha256"]["config.json"] = checksum_of(content, "sha256")
    (saved / "config.json").write_text(json.dumps(content))
    return saved


def load_error(saved: Path) -> str:
    """The message with which loading the bundle fails."""
    with pytest.raises(BundleError) as caught:
        Bundle.load(saved)
    text = str(caught.value)
    assert text.isprintable() and str(saved) in text
    return text


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_changed_byte_is_refused_and_the_file_is_named(saved, name, where):
    path = saved / name
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        Bundle.load(saved)
    assert name in str(caught.value) or name == "config.json"
    assert str(saved) in str(caught.value)


def same_json(a: bytes, b: bytes) -> bool:
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


def test_every_changed_byte_of_config_json_is_refused(saved):
    """It holds class names and sizes: one wrong letter must not reach a prediction."""
    path = saved / "config.json"
    data = path.read_bytes()
    name = data.index(b'"reference/00.png"') + 9  # becomes reference/01.png, which is a key already
    for at in (name, *range(0, len(data), 41)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        if changed.isascii() and same_json(changed, data):
            continue  # the 17th digit of a number
        path.write_bytes(changed)
        with pytest.raises(BundleError):
            Bundle.load(saved)
    path.write_bytes(data.replace(b'"crop"', b'"pad"'))
    with pytest.raises(BundleError, match=r"config\.json has changed: SHA-256"):
        Bundle.load(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(BundleError) as caught:
        Bundle.load(saved)
    assert name in str(caught.value)
    assert "No such file" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"version": 3}, "has version 3; must be 1 or 2; install a newer alexnet"),
        ({"format": "other"}, "config.json is not of format alexnet-bundle; must be a bundle that training wrote"),
        ({"sha256": {}}, "config.json is damaged: it lacks SHA-256 of the files; use another copy"),
        ({"sha256": None}, "config.json is damaged: it lacks SHA-256 of the files; use another copy"),
    ],
)
def test_other_formats_and_versions_are_refused(saved, changes, text):
    edit_config(saved, **changes)
    with pytest.raises(BundleError) as caught:
        Bundle.load(saved)
    assert str(caught.value).endswith(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["c1.weight", "f6.bias"])
def test_nonfinite_weights_are_refused(bundle, saved, name, value):
    tensors = {key: tensor.clone().contiguous() for key, tensor in bundle.network.state_dict().items()}
    tensors[name].flatten()[0] = value
    assert f"{name} has values that are NaN or Inf" in load_error(
        with_valid_hashes(saved, model=safetensors.torch.save(tensors))
    )


def test_a_feature_reference_of_other_shapes_is_refused(bundle, saved):
    arrays = bundle.feature_reference.arrays() | {"middle": np.zeros(3, np.float32)}
    data = safetensors.torch.save({name: torch.from_numpy(array) for name, array in arrays.items()})
    assert "the shapes of its arrays are" in load_error(with_valid_hashes(saved, features=data))


@pytest.mark.parametrize(("dtype", "name"), [(torch.float64, "F64"), (torch.float16, "F16"), (torch.int32, "I32")])
def test_tensors_of_another_type_are_refused(bundle, saved, dtype, name):
    """The mean image as int32 was accepted, and weights of float64 beyond the range of float32 became infinite."""
    weights = {key: tensor.to(dtype).contiguous() for key, tensor in bundle.network.state_dict().items()}
    assert f"is {name}, not float32" in load_error(with_valid_hashes(saved, model=safetensors.torch.save(weights)))
    mean = {key: tensor.to(dtype).contiguous() for key, tensor in bundle.normalization.tensors().items()}
    assert f"is {name}, not float32" in load_error(with_valid_hashes(saved, mean=safetensors.torch.save(mean)))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"mean": torch.full((32, 32, 3), 255.5)}, "mean has values that are no gray levels"),
        ({"mean": torch.full((32, 32, 3), -3e38)}, "mean has values that are no gray levels"),
        ({"divide": torch.tensor(0.0)}, "divide is 0.0"),
        ({"divide": torch.tensor(-1.0)}, "divide is -1.0"),
        ({"divide": torch.tensor(1e-40)}, "divide is 9.9"),
        ({"divide": torch.tensor([1.0, 0.0, 1.0])}, "divide is [1.0, 0.0, 1.0]"),
        ({"divide": torch.ones(2)}, "divide is [1.0, 1.0]"),
        ({"divide": torch.tensor(float("nan"))}, "divide has values that are NaN"),
        ({"mean": torch.full((32, 32, 3), float("inf"))}, "mean has values that are NaN or Inf"),
        ({"mean": torch.zeros(31, 31, 3)}, "do not fit the preprocessing"),
        ({"mean": torch.zeros(3)}, "do not fit the preprocessing"),
        ({"mean": torch.zeros(())}, "do not fit the preprocessing"),
        ({"color_std": torch.zeros(4)}, "do not fit the preprocessing"),
        ({"color_axes": torch.full((3, 3), float("nan"))}, "color_axes has values that are NaN"),
        ({"extra": torch.zeros(3)}, "mean.safetensors holds color_axes, color_std, divide, extra, mean"),
    ],
)
def test_invalid_normalization_is_refused(bundle, saved, changes, text):
    tensors = bundle.normalization.tensors() | changes
    assert text in load_error(with_valid_hashes(saved, mean=safetensors.torch.save(tensors)))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"preprocessing/stored_size": "32"}, "Expected `int`, got `str` - at `$.preprocessing.stored_size`"),
        ({"preprocessing/stored_size": 32.5}, "Expected `int`, got `float`"),
        ({"preprocessing/stored_size": 20000}, "`$.preprocessing.stored_size`"),
        ({"preprocessing/stored_size": 0}, "`$.preprocessing.stored_size`"),
        ({"preprocessing/stored_size": True}, "Expected `int`, got `bool`"),
        ({"preprocessing/fit": "stretch"}, "`$.preprocessing.fit`"),
        ({"preprocessing/subtract": "nothing"}, "`$.preprocessing.subtract`"),
        ({"preprocessing": []}, "Expected `object`, got `array` - at `$.preprocessing`"),
        ({"model/image_size": 20000}, "`$.model.image_size`"),
        ({"model/image_size": "32"}, "`$.model.image_size`"),
        ({"model/in_channels": 2}, "`$.model.in_channels`"),
        ({"model/name": 3}, "`$.model.name`"),
        ({"model/name": "nosuch"}, "unknown model 'nosuch'"),
        ({"model/layer_files": {"name": "x"}}, "`$.model.layer_files`"),
        ({"model/num_classes": 9}, "9 outputs for 10 classes"),
        ({"model/num_classes": 2, "classes": ["a", "b"]}, "is not consistent: Error(s) in loading state_dict"),
        ({"model/num_classes": "10"}, "`$.model.num_classes`"),
        ({"metrics": {"test": 1}}, "Expected `object`, got `int` - at `$.metrics[...]`"),
        ({"metrics": {"test": {"top1": "good"}}}, "`$.metrics[...].top1`"),
        ({"metrics": {"test": {"images_per_second": []}}}, "`$.metrics[...].images_per_second`"),
        ({"data": {"name": 5}}, "`$.data.name`"),
        ({"data": {"counts": "x"}}, "`$.data.counts`"),
        ({"data": {"counts": {"train": "many"}}}, "`$.data.counts[...]`"),
        ({"data": {"fingerprint": 7}}, "`$.data.fingerprint`"),
        ({"data": {"grouping": None}}, "`$.data.grouping`"),
        ({"data": {"notes": "x"}}, "`$.data.notes`"),
        ({"data": {"from": "x"}}, "`$.data.from`"),
        ({"data": {"imported": {}}}, "`kind` - at `$.data.imported`"),
        ({"data": {"compressed": {"method": "deep", "nonzero": "x", "chosen_by": ""}}}, "`$.data.compressed.nonzero`"),
        ({"calibration": {"count": "x"}}, "`$.calibration.count`"),
        ({"calibration": {"fitted_on": 1}}, "`$.calibration.fitted_on`"),
        ({"model/initialization": []}, "`$.model.initialization`"),
        ({"classes": "ab"}, "Expected `array`, got `str` - at `$.classes`"),
        ({"classes": None}, "got `null` - at `$.classes`"),
        ({"classes": [1, 2]}, "Expected `str`, got `int`"),
        ({"classes": []}, "0 classes"),
        ({"classes": ["a"] * 10}, "classes 0 and 1 have the same name 'a'"),
        ({"classes": ["\x1b[2J", *"abcdefghi"]}, "class 0 is '\\x1b[2J': control and text-direction"),
        ({"classes": ["a\u202eb", *"bcdefghij"]}, "class 0 is 'a\\u202eb'"),
        ({"recipe": 3}, "`$.recipe`"),
        ({"metrics": []}, "`$.metrics`"),
        ({"data": "x"}, "`$.data`"),
        ({"calibration": {"temperature": 0}}, "`$.calibration.temperature`"),
        ({"calibration": {"temperature": "1"}}, "`$.calibration.temperature`"),
        ({"calibration": {"thresholds": {"0.1": 2}}}, "calibration.thresholds"),
        ({"calibration": {"thresholds": {"x": 0.5}}}, "threshold for 'x'"),
        ({"calibration": {"thresholds": {"nan": 0.5}}}, "threshold for 'nan', which is not a finite number"),
        ({"calibration": {"thresholds": {"inf": 0.5}}}, "threshold for 'inf'"),
        ({"calibration": {"conformal": {"nan": [0.5]}}}, "threshold for 'nan'"),
        ({"calibration": {"conformal": {"0.9": [0.5]}}}, "1 thresholds of prediction sets for a coverage of '0.9'"),
        ({"calibration": {"conformal": {"1.5": [0.5] * 10}}}, "for a coverage of '1.5'"),
        ({"calibration": []}, "`$.calibration`"),
        ({"version": "1"}, "has version '1'"),
        ({"version": True}, "has version True"),
        ({"version": [1]}, "has version [1]"),
    ],
)
def test_a_config_that_does_not_match_the_schema_is_refused(saved, config, text):
    assert text in load_error(with_valid_hashes(saved, config))


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 200_000 + b"]" * 200_000,
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
        b"\xff\xfe",
        b"null",
        b"[]",
        b"",
        b'{"format": "alexnet-bundle", "version": 1, "x": NaN}',
        b'{"format": "alexnet-bundle", "version": 1, "x": 1e999}',
    ],
)
def test_a_config_that_is_not_valid_json_is_refused(saved, data):
    (saved / "config.json").write_bytes(data)
    load_error(saved)


ROW = [0.1] * 10


@pytest.mark.parametrize(
    "expected",
    [
        {"00.png": ROW[:9]},
        {"00.png": [*ROW, 0.0]},
        {"00.png": []},
        {"00.png": [ROW]},
        {"00.png": {"a": 1}},
        {"00.png": ["0.1"] * 10},
        {"00.png": [2.0] * 10},
        {"00.png": [-0.1] * 10},
        {"00.png": None},
        [ROW],
        None,
        3,
        {"02.png": ROW},
        {"../reference/00.png": ROW},
        {"expected.json": ROW},
        {"\x00.png": ROW},
    ],
)
def test_invalid_reference_probabilities_are_refused(saved, expected):
    load_error(with_valid_hashes(saved, expected=json.dumps(expected).encode()))


def test_deeply_nested_reference_probabilities_are_refused(saved):
    load_error(with_valid_hashes(saved, expected=b"[" * 200_000 + b"]" * 200_000))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "mean.safetensors", "reference/expected.json"])
def test_a_file_without_its_hash_is_refused(saved, name):
    """An entry that is deleted must not switch the check of that file off."""
    config = json.loads((saved / "config.json").read_text())
    del config["sha256"][name]
    if name != "config.json":
        config["sha256"]["config.json"] = checksum_of(config, "sha256")
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="it lacks SHA-256 of the files"):
        Bundle.load(saved)


@pytest.mark.parametrize(
    "name",
    [
        "/dev/zero",
        "../x",
        "/etc/passwd",
        "a\0b",
        "reference/../../x",
        "reference",
        "",
        "reference/a/b.png",
        "x.txt",
        "a\nb",
    ],
)
def test_hashes_of_files_that_no_bundle_has_are_refused(saved, name):
    content = json.loads((saved / "config.json").read_text())
    assert "is damaged" in load_error(with_valid_hashes(saved, {"sha256": content["sha256"] | {name: "0" * 64}}))


@pytest.mark.parametrize("sha256", ["0" * 63, "Z" * 64, "", 3, None, ["0" * 64]])
def test_invalid_hashes_are_refused(saved, sha256):
    edit_config(saved, sha256=json.loads((saved / "config.json").read_text())["sha256"] | {"README.md": sha256})
    assert "is damaged" in load_error(saved)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["out", "/dev/zero", "pipe", "folder", "loop"])
def test_links_to_the_outside_and_special_files_are_refused(saved, tmp_path, name, kind):
    path = saved / name
    path.rename(tmp_path / "outside")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"out": tmp_path / "outside", "loop": path}.get(kind, kind))
    text = load_error(saved)
    assert name in text
    assert "link out of the folder" in text or "not a regular file" in text or kind == "loop"


def test_links_inside_the_bundle_and_to_it_are_accepted(saved, tmp_path):
    (saved / "weights").mkdir()
    (saved / "model.safetensors").rename(saved / "weights" / "x")
    (saved / "model.safetensors").symlink_to("weights/x")
    (tmp_path / "link").symlink_to(saved)
    assert Bundle.load(tmp_path / "link").classes


def test_a_file_of_very_many_tensors_is_refused(tmp_path):
    """The time to read it grows with the square of their number: 100,000 took over 30 seconds."""
    write_tensors(tmp_path / "t", {f"t{i}": torch.zeros(0) for i in range(3000)})
    with pytest.raises(BundleError, match="is damaged: 3,000 tensors; must be at most 2,000"):
        read_tensors(tmp_path / "t")


@pytest.mark.parametrize(
    ("entry", "value", "text"),
    [
        ("versions", [], "$.versions"),
        ("versions", {"torch": 2}, "$.versions"),
        ("model/parameters", "many", "$.model.parameters"),
        ("model/parameters", 1, "model.parameters is 1, the other files say"),
        ("preprocessing/decode", None, "$.preprocessing.decode"),
        ("preprocessing/view", "corner", "$.preprocessing.view"),
        ("preprocessing/image_size", 33, "preprocessing.image_size is 33, the other files say 32"),
        ("preprocessing/divide", 2.0, "preprocessing.divide is 2.0, the other files say"),
        ("preprocessing/gray", 3, "$.preprocessing.gray"),
    ],
)
def test_what_a_config_tells_of_its_other_files_must_be_true(saved, entry, value, text):
    """Reports, the server and the model card print these entries; any value of any type was accepted."""
    assert text in load_error(with_valid_hashes(saved, {entry: value}))


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"top1": NaN}', b"[" * 100_000])
def test_a_certificate_that_is_no_json_object_is_refused(saved, data):
    path = saved / "certificate.json"
    path.write_bytes(data)
    content = json.loads((saved / "config.json").read_text())
    content["sha256"]["certificate.json"] = hashlib.sha256(data).hexdigest()
    content["sha256"]["config.json"] = checksum_of(content, "sha256")
    (saved / "config.json").write_text(json.dumps(content))
    assert "certificate.json is damaged" in load_error(saved)
