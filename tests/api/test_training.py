"""What a training refuses, and that it leaves no folder then; that each network trains by its name alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from alexnet import api, cli
from alexnet.data.decode import encode_png
from alexnet.errors import ModelError, RecipeError
from alexnet.models import list_models, list_torchvision_models

QUICK = (
    "alexnet_small",
    "alexnet_medium_no_conv4",
    "alexnet_medium_sigmoid",
    "cifar",
    "figure1",
    "lenet5",
    "plain_8",
    "residual_8",
)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"model": "alexnett"}, ModelError, "unknown model 'alexnett'. Did you mean 'alexnet'"),
        ({"model": "lenet5", "freeze": "conv9"}, RecipeError, "--freeze: no layer 'conv9' with parameters"),
        ({"model": "alexnet", "image_size": 10}, ModelError, "10"),
    ],
)
def test_a_network_that_can_not_be_is_refused_at_once(tmp_path, changes, error, text):
    options = api.DataOptions(cache=tmp_path / "cache")
    with pytest.raises(error, match=text):
        api.train("digits", run=tmp_path / "run", options=options, **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def images(digits, tmp_path_factory):
    """A folder with two classes of ten images."""
    folder = tmp_path_factory.mktemp("images")
    split = digits.split("train")
    for label in (0, 1):
        (folder / f"class{label}").mkdir()
        for number, index in enumerate(np.flatnonzero(split.labels == label)[:10]):
            path = folder / f"class{label}" / f"{number}.png"
            path.write_bytes(encode_png(split.gather(np.array([index]))[0]))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        name if name.startswith(QUICK) else pytest.param(name, marks=pytest.mark.slow)
        for name in (*list_models(), *list_torchvision_models())
    ],
)
def test_every_listed_network_trains_by_its_name_alone(name, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())
    monkeypatch.setenv("ALEXNET_CACHE", str(images.with_name("cache")))
    words = ["train", str(images), "--model", name, "--output-dir", str(tmp_path / "run")]
    words += ["--schedule", "constant"] if name.startswith("cifar") else []  # drops after a hundred epochs
    assert cli.run([*words, "--epochs", "1", "--no-report", "--quiet", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["test"]["count"] == 4


def test_a_store_says_the_size_of_its_images(images, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())
    assert cli.run(["prepare", str(images), str(tmp_path / "store"), "--size", "36", "--fit", "pad"]) == 0
    words = ["--model", "alexnet_small", "--epochs", "1", "--no-report", "--quiet", "--device", "cpu"]
    assert cli.run(["train", str(tmp_path / "store"), "--output-dir", str(tmp_path / "run"), *words]) == 0
    result = api.train(tmp_path / "store", "lenet5", tmp_path / "lenet5", epochs=1, device="cpu")
    assert (result.recipe.stored_size, result.recipe.fit) == (36, "pad")


def test_a_run_without_test_images_ends_well(images, tmp_path, monkeypatch, capsys):
    """All images may be for training: there are no plots of a test split, and everything else."""
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    words = ["--model", "lenet5", "--epochs", "1", "--quiet", "--device", "cpu", "--json", "--test", "0"]
    assert cli.run(["train", str(images), "--output-dir", str(tmp_path / "run"), *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["scores"]) == ["validation"] and Path(result["report"]).is_file()
    assert {path.name for path in (tmp_path / "run" / "plots").iterdir()} >= {"curves.png", "filters.png"}
    assert not (tmp_path / "run" / "plots" / "confusion.png").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--stored-size", "64"],
        ["--initialization", "paper"],
        ["--freeze", "conv9"],
    ],
)
def test_a_start_that_is_refused_leaves_no_folder(options, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", str(digits.path), "--model", "lenet5", "--epochs", "1", "--no-report", "--device", "cpu"]
    before = sorted(tmp_path.iterdir())
    assert cli.run([*words, "--output-dir", "runs/new/run", *options]) == 2
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "mine").mkdir()
    assert cli.run([*words, "--output-dir", "mine", *options]) == 2
    assert list((tmp_path / "mine").iterdir()) == []
    assert "Traceback" not in capsys.readouterr().err


def test_an_option_without_an_effect_is_refused(digits, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    shutil.copytree(images, tmp_path / "split" / "test")
    (tmp_path / "split" / "train").symlink_to(images)
    for data, words, message in (
        (digits.path, ["--lr-milestones", "2"], "--lr-milestones has no effect with --schedule cosine"),
        (digits.path, ["--model", "lenet5", "--dropout", "0.5"], "--dropout has no effect on lenet5"),
        (
            digits.path,
            ["--model", "alexnet_small", "--progressive-size", "64"],
            "--progressive-size has no effect on alexnet_small",
        ),
        (digits.path, ["--test", "0.5"], "--test has no effect on store"),
        (digits.path, ["--exclude", "list.txt"], "--exclude has no effect on a prepared store"),
        (digits.path, ["--download"], "--download has no effect on a prepared store"),
        (tmp_path / "split", ["--test", "0.5"], "which has a test split of its own"),
    ):
        assert cli.run(["train", str(data), *words, "--output-dir", str(tmp_path / "run"), "--device", "cpu"]) == 2, (
            words
        )
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
