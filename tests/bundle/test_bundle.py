"""Bundles are saved and loaded bit for bit; saving is atomic and never overwrites other files."""

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet.bundle import Bundle, ReferenceSample, find_bundle
from alexnet.data.decode import decode
from alexnet.errors import BundleError
from alexnet.export.classifier import Classifier
from alexnet.models import create_model
from alexnet.models.network import Network

from .conftest import FILES


def test_a_bundle_comes_back_bit_for_bit(bundle, saved):
    assert sorted(str(p.relative_to(saved)) for p in saved.rglob("*") if p.is_file()) == FILES
    loaded = Bundle.load(saved)
    before, after = bundle.network.state_dict(), loaded.network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name, value in bundle.normalization.tensors().items():
        assert torch.equal(getattr(loaded.normalization, name), value)
    for field in ("classes", "stored_size", "fit", "recipe", "metrics", "initialization", "data", "reference_samples"):
        assert getattr(loaded, field) == getattr(bundle, field), field
    assert (loaded.network.name, loaded.image_size, loaded.network.in_channels) == ("lenet5", 32, 1)
    assert not loaded.network.training
    features = np.random.default_rng(0).normal(size=(5, len(bundle.feature_reference.distance.components)))
    assert loaded.feature_reference.rank(features) == pytest.approx(bundle.feature_reference.rank(features), abs=1e-3)
    again = loaded.save(saved.parent / "again")
    assert all((again / name).read_bytes() == (saved / name).read_bytes() for name in FILES)


def test_a_fixed_mean_and_a_divisor_per_channel_are_restored(bundle, tmp_path):
    center = dataclasses.replace(
        bundle.normalization,
        mean=torch.ones(32, 32, 3),
        divide=torch.tensor([50.0, 60.0, 70.0]),
        mean_follows_crop=False,
    )
    path = dataclasses.replace(bundle, normalization=center).save(tmp_path / "bundle")
    loaded = Bundle.load(path).normalization
    assert (loaded.mean_follows_crop, loaded.divide.tolist(), loaded.mean.shape) == (
        False,
        [50.0, 60.0, 70.0],
        (32, 32, 3),
    )
    preprocessing = json.loads((path / "config.json").read_text())["preprocessing"]
    assert (preprocessing["subtract"], preprocessing["divide"]) == ("center of the mean image", [50.0, 60.0, 70.0])


def test_the_reference_images_give_the_expected_probabilities(bundle, saved):
    loaded = Bundle.load(saved)
    p = Classifier(loaded).probabilities([reference.png for reference in loaded.reference_samples])
    assert np.array_equal(p, np.array([reference.probabilities for reference in bundle.reference_samples], np.float32))
    assert [decode(reference.png).shape for reference in loaded.reference_samples] == [(32, 32, 3)] * 2


def test_a_bundle_without_reference_images_or_numbers(bundle, tmp_path):
    bare = dataclasses.replace(bundle, reference_samples=(), metrics={}, recipe={}, data={}, feature_reference=None)
    loaded = Bundle.load(bare.save(tmp_path / "bare"))
    assert loaded.reference_samples == [] and loaded.feature_reference is None


def file_names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())


def test_saving_again_replaces_the_bundle_and_keeps_other_files(bundle, saved, tmp_path):
    for name in ("bundle.old", "bundle.partial", "bundle.tmp"):  # the user's own
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    (saved / "notes.txt").write_text("mine")
    (saved / "reference" / "mine.png").write_text("mine")
    (saved / ".git" / "objects").mkdir(parents=True)
    (saved / ".git" / "objects" / "a1").write_text("mine")
    (saved / "link").symlink_to("nowhere")
    (saved / "folder").symlink_to(tmp_path / "bundle.old")
    changed = dataclasses.replace(bundle, reference_samples=bundle.reference_samples[:1], initialization="paper")
    assert changed.save(saved) == saved
    loaded = Bundle.load(saved)
    assert loaded.initialization == "paper" and len(loaded.reference_samples) == 1
    own = [name for name in FILES if name != "reference/01.png"]
    others = [".git/objects/a1", "folder", "reference/mine.png", "link", "notes.txt"]
    assert file_names(saved) == sorted([*own, *others])
    assert file_names(tmp_path / "bundle.old") == ["thesis.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "bundle.old", "bundle.partial", "bundle.tmp"]


@pytest.mark.parametrize("name", ["thesis.txt", "README.md", "config.json", "model.safetensors", "sub/thesis.txt"])
def test_save_refuses_a_folder_that_is_not_a_bundle(bundle, tmp_path, name):
    folder = tmp_path / "papers"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text('{"format": "mine"}')
    with pytest.raises(BundleError, match=r"exists and is not a bundle .*choose another folder"):
        bundle.save(folder)
    assert file_names(folder) == [name] and (folder / name).read_text() == '{"format": "mine"}'
    assert [p.name for p in tmp_path.iterdir()] == ["papers"]


def test_save_to_files_links_and_new_folders(bundle, saved, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        bundle.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    Bundle.load(bundle.save(tmp_path / "empty"))
    Bundle.load(bundle.save(tmp_path / "new" / "deep" / "bundle"))
    (tmp_path / "link").symlink_to("bundle")
    dataclasses.replace(bundle, initialization="paper").save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and Bundle.load(saved).initialization == "paper"
    dataclasses.replace(bundle, reference_samples=()).save(saved)
    (saved / "reference" / "00.png").write_text("mine")
    with pytest.raises(BundleError, match=r"reference/00\.png, which is not part of the bundle .*move it away"):
        bundle.save(saved)
    assert (saved / "reference" / "00.png").read_text() == "mine" and Bundle.load(saved).reference_samples == []
    assert not list(tmp_path.glob(".*"))


KILLS = """
import ctypes, os, shutil, sys
from pathlib import Path
from alexnet.bundle import Bundle, find_bundle, restore_previous
from alexnet.export.classifier import Classifier
path, exchange = Path(sys.argv[1]), sys.argv[2] == "exchange"
old = Bundle.load(path)
previous = path.with_name("bundle.previous")
if sys.argv[3] == "restore":
    shutil.copytree(path.with_name("new"), previous)
new = Bundle.load(path.with_name("new"))
CALLS = ("open", "os.", "shutil.")

def change():
    if sys.argv[3] == "save":
        new.save(path)
    elif sys.argv[3] == "promote":
        new.save(path, keep_previous=True)
    else:
        restore_previous(path)

def killed_at(number):
    child = os.fork()
    if child == 0:
        if not exchange:
            ctypes.CDLL = lambda *_, **__: object()  # a C library without renameat2
        left = [number]
        def hook(event, args):
            if event.startswith(CALLS):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
        sys.addaudithook(hook)
        change()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

number, seen = 0, []
while killed_at(number):
    seen.append(Bundle.load(path).initialization)
    assert Bundle.load(find_bundle(path.parent)).initialization == seen[-1]
    kept = path if path.exists() else find_bundle(path.parent)
    if sys.argv[3] == "restore":
        if seen[-1] == "own":  # the exchange was finished where it was interrupted
            assert restore_previous(path).initialization == "paper"
        assert Bundle.load(path).initialization == "paper" and restore_previous(path).initialization == "own"
        assert Bundle.load(previous).initialization == "paper"
    else:
        assert (kept / "notes.txt").read_text() == "mine"
        if seen[-1] == "paper":
            old.save(path)  # from the beginning
    number += 1
assert {"own", "paper"} == set(seen) and number > 4, seen
if sys.argv[3] != "restore":
    assert Bundle.load(path).initialization == "paper" and number > 40
kept = ["bundle.previous"] if sys.argv[3] != "save" else []
assert sorted(p.name for p in path.parent.iterdir()) == ["bundle", *kept, "new"]
"""


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("exchange", "save"),
        *(pytest.param("two renames", change, marks=pytest.mark.slow) for change in ("save", "promote")),
        ("two renames", "restore"),
    ],
)
def test_a_kill_at_any_moment_leaves_one_complete_bundle(bundle, saved, method, change):
    (saved / "notes.txt").write_text("mine")
    dataclasses.replace(bundle, initialization="paper").save(saved.with_name("new"))
    argv = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", KILLS, str(saved), method, change]
    result = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr


def test_a_bundle_that_is_replaced_while_it_is_read_is_read_again(bundle, saved, monkeypatch):
    from alexnet.bundle import bundle as bundle_module

    read = bundle_module.read_reference

    def slow(path, *rest):
        monkeypatch.setattr(bundle_module, "read_reference", read)
        dataclasses.replace(bundle, reference_samples=(), initialization="paper").save(saved)
        return read(path, *rest)

    monkeypatch.setattr(bundle_module, "read_reference", slow)
    assert Bundle.load(saved).initialization == "paper"


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_file_permissions_follow_the_umask(bundle, tmp_path, mask):
    before = os.umask(mask)
    try:
        path = bundle.save(tmp_path / "bundle")
        modes = {stat.S_IMODE(p.stat().st_mode) for p in path.rglob("*") if p.is_file()}
        folders = {stat.S_IMODE(p.stat().st_mode) for p in [path, path / "reference"]}
    finally:
        os.umask(before)
    assert (modes, folders) == ({0o666 & ~mask}, {0o777 & ~mask})


def test_config_describes_the_preprocessing(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["preprocessing"] == {
        "decode": "RGB, 8 bits, EXIF rotation applied, transparency over white",
        "stored_size": 32,
        "fit": "crop",
        "view": "center",
        "image_size": 32,
        "subtract": "mean image",
        "divide": 80.0,
        "gray": True,
    }
    assert set(config["versions"]) == {"alexnet", "torch", "python"}
    card = (saved / "README.md").read_text()
    assert "| test, 1 crop | 50 | 50.00 % | 100.00 % | 1.5000 |" in card
    assert "lenet5 for 10 classes" in card


def test_the_card_has_intervals_calibration_and_selection(bundle, tmp_path):
    scores = {"crops": 1, "count": 50, "top1": 0.5, "top1_interval": [0.366, 0.634], "top5": 1.0, "loss": 1.5}
    data = {"name": "digits", "counts": {"train": 160, "test": 50}, "kept": "epoch 3, the lowest validation error"}
    fitted = {"temperature": 1.25, "fitted_on": "validation", "count": 40, "thresholds": {"0.1": 0.9, "0.05": 0.95}}
    trained = dataclasses.replace(bundle, metrics={"test": scores}, data=data, recipe={"seed": 7}, calibration=fitted)
    card = (trained.save(tmp_path / "bundle") / "README.md").read_text()
    for line in (
        "| 1.5000 | 36.6 to 63.4 % |",
        "- Images: 160 train, 50 test.",
        "- The weights are those of epoch 3",
        "- Temperature 1.250, fitted on 40 validation images.",
        "- Seed 7;",
        "of 0.950 or more have at most 5 % error",
    ):
        assert line in card, line
    assert card.index("at most 5 %") < card.index("at most 10 %")
    unscaled = dataclasses.replace(trained, calibration=fitted | {"temperature": 1.0}).save(tmp_path / "unscaled")
    assert "- No temperature improved calibration" in (unscaled / "README.md").read_text()
    bare = dataclasses.replace(bundle, metrics={}, data={}, recipe={}).save(tmp_path / "bare") / "README.md"
    assert "Temperature" not in bare.read_text() and "Images:" not in bare.read_text()


# Classes


@pytest.mark.parametrize(
    ("classes", "difference"),
    [
        ("abc", None),
        ("ab", "it lacks c"),
        ("abcde", "it also has d, e"),
        ("abx", "it lacks c; it also has x"),
        ("acb", "the same classes in another order"),
    ],
)
def test_classes_that_differ(bundle, classes, difference):
    three = dataclasses.replace(bundle, classes=("a", "b", "c"))
    if difference is None:
        three.same_classes(list(classes), "photos")
        return
    with pytest.raises(BundleError) as caught:
        three.same_classes(list(classes), "photos")
    assert str(caught.value) == (
        f"the classes of photos are not those of the classifier: {difference}; must be the 3 classes that it was "
        "trained on; evaluate on data with the same class folders"
    )


# Where it is


def test_find_bundle(saved, tmp_path):
    assert find_bundle(saved) == saved
    assert find_bundle(str(tmp_path)) == saved  # a run folder
    shutil.rmtree(saved)
    with pytest.raises(BundleError, match=r"holds no bundle; must be a run folder or a bundle; give the folder"):
        find_bundle(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(BundleError, match=r"finish the run: alexnet train --resume "):
        find_bundle(tmp_path)
    with pytest.raises(BundleError, match=r"there is no .*nowhere; must be a run folder or a bundle"):
        find_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is no bundle: "):
        Bundle.load(tmp_path)


def test_load_draws_no_random_weights(bundle, tmp_path, monkeypatch):
    """Random weights would cost time and memory, only to be replaced."""
    network = create_model("cifar_80sec")
    path = dataclasses.replace(bundle, network=network).save(tmp_path / "bundle")
    monkeypatch.setattr(Network, "initialize", lambda self, generator=None: pytest.fail("weights were drawn"))
    loaded = dict(Bundle.load(path).network.named_parameters())
    assert all(torch.equal(loaded[name], expected) for name, expected in network.named_parameters())
    assert all(parameter.requires_grad for parameter in loaded.values())


def test_save_refuses_invalid_names(bundle, tmp_path):
    for change in (
        {"classes": ("a", "b\x1b")},
        {"reference_samples": [ReferenceSample("../x", b"", [])]},
        {"reference_samples": [ReferenceSample("a/b", b"", [])]},
    ):
        with pytest.raises(BundleError, match="cannot be saved with"):
            dataclasses.replace(bundle, **change).save(tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
