"""The starter weights of the package: complete, small, and a good beginning."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

import alexnet
from alexnet import api, cli
from alexnet.bundle import Bundle
from alexnet.data.decode import encode_png
from alexnet.data.sources import open_source
from alexnet.errors import BundleError
from alexnet.training.finetune import initial_weights

FOLDER = Path(alexnet.__file__).parent / "starter"


@pytest.fixture(autouse=True)
def no_starter() -> None:
    """Here the package's starter is used."""


def test_it_is_complete_small_and_predicts_what_it_did(capsys):
    assert cli.run(["verify", "starter"]) == 0, capsys.readouterr()
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 7_500_000
    assert (FOLDER / "model.safetensors").stat().st_size <= 7_000_000


def test_its_card_says_what_it_is():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    bundle = Bundle.load(FOLDER)
    assert bundle.network.name == "alexnet" and bundle.network.image_size == 224
    assert len(bundle.classes) == 199 and not [name for name in bundle.classes if "golden" in name.lower()]
    assert "Tiny ImageNet" in card and "non-commercial research" in card and "docs/starter.md" in card
    test = bundle.metrics["test"]
    assert test["count"] == 9_950 and test["top1"] > 0.45
    assert f"{100 * test['top1']:.2f} %" in card
    assert re.search(r"| test, 1 crop | 9950 | .* % | .* to .* % |", card)


def test_it_is_not_calibrated_in_place(tmp_path):
    with pytest.raises(BundleError, match="belongs to the package"):
        api.calibrate("starter", tmp_path)


def test_own_images_begin_with_it_and_learn(tmp_path):
    """Half gray and half colored noise: two classes that any features tell apart after some steps."""
    for name, spread in (("gray", 0), ("colored", 90)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            generator = np.random.default_rng([spread, i])
            base = generator.integers(60, 190, (64, 64, 1)) + generator.integers(-spread, spread + 1, (64, 64, 3))
            image = encode_png(np.clip(base, 0, 255).astype(np.uint8))
            (tmp_path / "images" / name / f"{i}.png").write_bytes(image)
    weights = initial_weights(str(tmp_path / "images"), "", "", {}, layer_file=False)
    assert weights.pretrained is not None and weights.pretrained.name == "starter"
    options = api.DataOptions(cache=tmp_path / "cache")
    result = api.train(tmp_path / "images", run=tmp_path / "run", options=options, device="cpu", epochs=1, batch_size=8)
    record = json.loads((result.folder / "run.json").read_text())
    assert record["from"]["name"] == "starter"
    trained = Bundle.load(result.folder / "bundle")
    assert dataclasses.asdict(result.recipe)["recipe"] == "finetune" and trained.network.num_classes == 2


def test_its_features_find_a_wrong_label(tmp_path, capsys):
    listed = [one for one in open_source("digits").splits["all"] if one.label < 2][:60]
    for number, image in enumerate(listed):
        place = tmp_path / "few" / str(1 - image.label if number == 5 else image.label)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:02d}.png").write_bytes(encode_png(np.kron(image.load(), np.ones((4, 4, 1), np.uint8))))
    assert cli.run(["doctor", str(tmp_path / "few"), "--check-labels", "--json", "--device", "cpu"]) == 0
    [doubts] = [f for f in json.loads(capsys.readouterr().out)["findings"] if f["check"] == "label-doubt"]
    assert Path(doubts["examples"][0]["images"][0]).name == "05.png"
