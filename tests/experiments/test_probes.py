"""Linear probes: which layers, the ridge classifier against its formula, and a whole study of LeNet-5 on digits."""

import json

import numpy as np
import torch

from alexnet import cli
from alexnet.bundle import Bundle
from alexnet.experiments import probes
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model


def test_each_learned_layer_is_probed_behind_what_follows_it():
    with torch.device("meta"):
        assert probes.layers_of(create_model("alexnet")) == [
            "pool1", "pool2", "relu3", "relu4", "pool5", "relu6", "relu7",
        ]  # fmt: skip


def test_ridge_against_the_normal_equations():
    rng = np.random.default_rng(0)
    x, labels, new = rng.normal(size=(30, 50)), rng.integers(0, 3, 30), rng.normal(size=(9, 50))
    targets = np.eye(3)[labels]
    centered = x - x.mean(0)
    weights = np.linalg.solve(centered.T @ centered + 10 * np.eye(50), centered.T @ (targets - targets.mean(0)))
    expected = ((new - x.mean(0)) @ weights + targets.mean(0)).argmax(1)
    assert np.array_equal(probes.ridge(x, labels, new, 10.0), expected)


def test_a_study_of_lenet_on_digits(digits, tmp_path, capsys):
    network = create_model("lenet5").initialize(torch.Generator().manual_seed(0))
    ones = torch.ones(3)
    normalization = Normalization(100 * ones, ones, torch.eye(3), torch.tensor(80.0))
    bundle = Bundle(network, tuple(map(str, range(10))), normalization, 32, "crop").save(tmp_path / "bundle")
    words = ["study", "probes", str(bundle), str(digits.path), "--output-dir", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.run([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [probe["layer"] for probe in result["probes"]] == probes.layers_of(network)
    assert result["counts"] == {"train": 160, "validation": 40, "test": 50}
    for probe in result["probes"]:
        assert 0.1 < probe["top1"]["value"] <= 1  # digits are separable even by random features
        assert probe["penalty"] in probes.PENALTIES
    assert (tmp_path / "out" / "probes.png").read_bytes().startswith(b"\x89PNG")
    assert cli.run(["study", "probes", "starter"]) == 2
    assert "probes needs RUN and DATA; such as: alexnet study probes starter DATA" in capsys.readouterr().err
    assert cli.run([*words, "--images", "-1"]) == 2
    assert "--images is -1; must be at least 0" in capsys.readouterr().err
