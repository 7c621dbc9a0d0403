"""A bundle with compressed weights is a bundle like any other: loaded, saved, verified, asked, served, exported."""

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from alexnet import cli
from alexnet.bundle import Bundle, compressed_weights
from alexnet.compression import stages
from alexnet.data.atomic_io import sha256_of
from alexnet.errors import BundleError
from alexnet.export.classifier import Classifier
from alexnet.schema import checksum_of


@pytest.fixture(scope="module", params=["shared", "int8", "int4"])
def kind(request):
    return request.param


@pytest.fixture
def bundle(cifar, kind, tmp_path):
    """A bundle of a real little network, compressed, with reference predictions of its own."""
    made = copy.deepcopy(cifar.network)
    coding = (
        stages.share_weights(made, stages.code_bits(made, 8, 5))
        if kind == "shared"
        else stages.round_to_integers(made, kind)
    )
    small = dataclasses.replace(cifar, network=made, coding=coding)
    predictions = Classifier(small).probabilities([reference.png for reference in cifar.reference_samples]).tolist()
    reference = [
        dataclasses.replace(g, probabilities=row) for g, row in zip(cifar.reference_samples, predictions, strict=True)
    ]
    return dataclasses.replace(small, reference_samples=reference)


def test_a_bundle_loads_like_any_other_and_saves_as_it_was(bundle, tmp_path, digit_file, capsys):
    path = bundle.save(tmp_path / "bundle")
    assert json.loads((path / "config.json").read_text())["version"] == 2
    found = Bundle.load(path)
    assert found.coding == bundle.coding
    for name, tensor in bundle.network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], tensor), name
    again = found.save(tmp_path / "again")
    assert all((again / p.name).read_bytes() == p.read_bytes() for p in path.iterdir() if p.is_file())
    assert cli.run(["verify", str(path)]) == 0
    assert cli.run(["predict", str(path), str(digit_file)]) == 0
    assert "class" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["shared"], indirect=True)
def test_a_fresh_process_predictions_alike(bundle, tmp_path):
    path = bundle.save(tmp_path / "bundle")
    expected = Classifier(bundle).probabilities([reference.png for reference in bundle.reference_samples])
    script = (
        "import sys, numpy as np\n"
        "from alexnet.export.classifier import Classifier\n"
        "c = Classifier.load(sys.argv[1])\n"
        "print(c.probabilities([g.png for g in c.bundle.reference_samples]).tobytes().hex())\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, env=environment, check=True
    )
    found = np.frombuffer(bytes.fromhex(run.stdout.split()[-1]), np.float32).reshape(expected.shape)
    assert np.abs(found - expected).max() <= 1e-6


def test_a_damaged_bundle_is_refused_by_its_file(bundle, tmp_path, capsys):
    path = bundle.save(tmp_path / "bundle")
    weights = path / "model.safetensors"
    good = weights.read_bytes()
    for data in (good[:-1], good[:1000] + bytes([good[1000] ^ 1]) + good[1001:], b""):
        weights.write_bytes(data)
        assert cli.run(["verify", str(path)]) == 1
        assert f"{weights} has changed: SHA-256" in capsys.readouterr().err


def test_a_version_1_bundle_with_compressed_weights_is_none(bundle, tmp_path):
    """The version decides how the file is read, and both must say the same."""
    path = bundle.save(tmp_path / "bundle")
    config = json.loads((path / "config.json").read_text())
    config["version"] = 1
    config["sha256"]["config.json"] = checksum_of(config, "sha256")
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="not float32"):
        Bundle.load(path)
    shutil.rmtree(path)
    plain = dataclasses.replace(bundle, coding={}).save(path)
    config = json.loads((plain / "config.json").read_text())
    config["version"] = 2
    config["sha256"]["config.json"] = checksum_of(config, "sha256")
    (plain / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="is of format None"):
        Bundle.load(plain)


@pytest.mark.parametrize("kind", ["int8"], indirect=True)
def test_a_weight_beside_the_compressed_ones_that_is_not_finite_is_refused(bundle, tmp_path):
    path = bundle.save(tmp_path / "bundle")
    plain = next(name for name in bundle.network.state_dict() if name not in bundle.coding)
    tensors = {name: tensor.clone() for name, tensor in bundle.network.state_dict().items()}
    tensors[plain].view(-1)[0] = float("nan")
    compressed_weights.write(path / "model.safetensors", tensors, bundle.coding)
    config = json.loads((path / "config.json").read_text())
    config["sha256"]["model.safetensors"] = sha256_of(path / "model.safetensors")
    config["sha256"]["config.json"] = checksum_of(config, "sha256")
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match=f"{plain}: values that are NaN or Inf"):
        Bundle.load(path)
