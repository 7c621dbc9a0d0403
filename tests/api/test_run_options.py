"""What a run recorded of its data is used again: by its report, and by evaluate and compare on the same data."""

import json
import re
import shutil
import time

import numpy as np
import pytest

import alexnet
from alexnet import api
from alexnet.cli import run
from alexnet.data.decode import encode_jpeg, encode_png
from alexnet.data.sources.layout import LayoutOptions
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store
from alexnet.errors import RecipeError
from alexnet.evaluation.intervals import wilson
from alexnet.report import facts
from alexnet.training.run_data import options_of_run

TRAIN = ["--model", "lenet5", "--epochs", "1", "--batch-size", "16", "--quiet", "--device", "cpu"]


@pytest.fixture
def images(digits, tmp_path, monkeypatch):
    """120 digits of two classes in class folders; three files stand twice, and one has two labels."""
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    for index, image in enumerate(digits.split("train").gather(np.arange(120))):
        place = tmp_path / "images" / "ab"[index % 2] / f"p{index // 6:02d}_{index:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encode_png(image))
    return tmp_path / "images"


def plant_copies(images):
    for index in (0, 2, 4):
        shutil.copy(images / "a" / f"p00_{index:03d}.png", images / "a" / f"z{index}.png")
    shutil.copy(images / "a" / "p01_006.png", images / "b" / "z6.png")


def diagnosis(folder, options=None):
    about = json.loads((folder / "run.json").read_text())
    grouping = api.load(folder, "cpu").bundle.data["grouping"]
    return facts.diagnose(about, Store.open(about["store"]), grouping, options or DataOptions())


def train(images, folder, *words):

    assert run(["train", str(images), "--output-dir", str(folder), *TRAIN, *words]) == 0


def test_a_report_judges_the_images_that_were_trained_on(images, tmp_path, monkeypatch):
    """The way that the doctor recommends ends with no fault, even when its list is gone, and from another folder."""
    plant_copies(images)
    assert run(["doctor", str(images), "--exclude-list", str(tmp_path / "list")]) == 1
    monkeypatch.chdir(tmp_path)
    train("images", tmp_path / "run", "--exclude", "list", "--seed", "3", "--validation", "0.25")
    assert "Do not rely" not in (tmp_path / "run" / "report.html").read_text()
    monkeypatch.chdir(images)
    (tmp_path / "list").unlink()
    found, why = diagnosis(tmp_path / "run")
    assert found is not None and found.honest, why
    store = Store.open(json.loads((tmp_path / "run" / "run.json").read_text())["store"])
    assert {name: sum(counts) for name, counts in found.counts.items()} == {
        name: len(split) for name, split in store.splits.items()
    }, "the splits of the run, not others"
    train(images, tmp_path / "other", "--no-report")
    assert diagnosis(tmp_path / "other")[0].honest is False, "with the copies it is another matter"


def test_groups_layout_and_truncated_images_are_as_in_training(images, tmp_path):
    for name in ("masks", "a/old"):
        (images / name).mkdir()
        (images / name / "x.png").write_bytes((images / "a" / "p00_000.png").read_bytes())
    large = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for index in range(3):
        (images / "b" / f"cut{index}.jpg").write_bytes(encode_jpeg(large + np.uint8(index))[:-1500])
    words = ["--ignore", "masks", "--ignore", "old", "--group-pattern", r"/(p\d\d)_"]
    train(images, tmp_path / "run", *words, "--allow-truncated")
    found, why = diagnosis(tmp_path / "run")
    assert found is not None and found.honest and found.classes == ("a", "b"), why
    checks = {finding.check: finding for finding in found.findings}
    assert "group-leak" not in checks and "group-suspected" not in checks
    assert checks["truncated"].what == "3 images are truncated: the part that can be decoded is used"
    assert checks["truncated"].exclude == () and sum(map(sum, found.counts.values())) == 123
    own = alexnet.evaluate(tmp_path / "run", device="cpu")
    options = DataOptions(cache=tmp_path / "cache")
    again = alexnet.evaluate(tmp_path / "run", images, device="cpu", options=options)
    assert (again.count, again.correct1) == (own.count, own.correct1)
    copy = shutil.copytree(images, tmp_path / "copy")
    elsewhere = alexnet.evaluate(tmp_path / "run", copy, device="cpu", options=options)
    assert elsewhere.training_images_left_out > 80, "the layout of other data is read in the same way"


def test_recorded_words_are_read_again_and_own_options_win(tmp_path):
    layout = LayoutOptions("leaves", ("a b", "--c"), "file", "kind", "-", recorded=True)
    every = DataOptions(
        tmp_path / "root",
        group_column="patient",
        exclude=tmp_path / "list",
        bad="fail",
        allow_truncated=True,
        download=True,
        layout=layout,
    )
    assert DataOptions().with_recorded(every.to_args(), tmp_path) == every
    pattern = DataOptions(group_pattern="(x)", exclude=tmp_path / "mine")
    merged = pattern.with_recorded(every.to_args(), tmp_path)
    assert merged.group_pattern == "(x)" and merged.exclude == tmp_path / "mine" and merged.allow_truncated
    assert merged.group_column is None
    (tmp_path / "images").mkdir()
    about = {"data": "images", "directory": str(tmp_path), "options": ["--exclude", "list", "--ignore", "old"]}
    assert options_of_run(about, DataOptions()).exclude == tmp_path / "list"
    assert options_of_run(about, DataOptions(), tmp_path / "images").exclude == tmp_path / "list"
    other = options_of_run(about, DataOptions(), tmp_path / "others")
    assert other.exclude is None and other.layout.ignore == ("old",)


def test_training_tells_of_its_data_before_its_numbers(images, tmp_path, capsys):
    """By the doctor, without it, and from a prepared store: the leak comes first in the text, and is in the JSON."""
    plant_copies(images)
    for name, words, leak in (
        ("report", [], "WARNING    two-labels: 2 images"),
        ("none", ["--no-report"], "WARNING    leak: "),
    ):
        train(images, tmp_path / name, "--seed", "3", *words)
        out = capsys.readouterr().out
        assert out.startswith("WARNING    ") and leak in out[: out.index("top-1 error")], out
    assert "near-identical images, groups and other faults: alexnet report" in out
    store = json.loads((tmp_path / "none" / "run.json").read_text())["store"]
    train(store, tmp_path / "store", "--seed", "3", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["warnings"][0].startswith("leak: ") and "was trained from a prepared store" in told["notes"][-1]


def test_sound_data_and_a_good_result_have_no_warning(images, tmp_path, capsys):
    train(images, tmp_path / "run", "--seed", "3", "--json")
    told = json.loads(capsys.readouterr().out)["warnings"]
    assert not any("leak" in line or "labels" in line for line in told), told


def test_one_number_has_one_interval_in_every_output(images, tmp_path, capsys):
    """By groups: in the text of training, evaluate, its details and JSON, compare, the report and the model card."""
    train(images, tmp_path / "run", "--group-pattern", r"(p\d+)_", "--test", "0.4", "--validation", "0.2")
    out = [capsys.readouterr().out]
    scores = api.evaluate(tmp_path / "run", device="cpu")
    low, high = scores.top1_interval
    assert len(scores.groups) > 5 and (low, high) != wilson(scores.correct1, scores.count)
    for words in (["evaluate"], ["evaluate", "--details"], ["compare", str(tmp_path / "run")]):
        assert run([words[0], str(tmp_path / "run"), *words[1:], "--device", "cpu"]) == 0
        out.append(capsys.readouterr().out)
    api.write_report(tmp_path / "run", device="cpu")
    out += [(tmp_path / "run" / name).read_text() for name in ("report.html", "bundle/README.md")]
    for text in out:
        pairs = re.findall(r"(\d+\.\d+)(?: %)? to (\d+\.\d+)", text.replace("\xa0", " "))
        distances = [max(abs(float(a) - 100 * low), abs(float(b) - 100 * high)) for a, b in pairs]
        assert min(distances) < 0.06, text
        assert "top-5" not in text and "sure:" not in text and "% sure)" not in text, text
    assert run(["evaluate", str(tmp_path / "run"), "--details", "--json", "--device", "cpu"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["top1_interval"] == plain["per_class"]["top1"]["interval"] == [low, high]
    assert plain["top5"] is plain["per_class"]["top5"] is None
    assert not any("validation_top5" in row for row in facts.epochs_of(tmp_path / "run"))


def test_the_reported_time_is_that_of_the_whole_call(images, tmp_path):
    """Preparing the data is part of it."""
    messages = []

    def slow(message):
        messages.append(message)
        time.sleep(2 if len(messages) == 1 else 0)

    options = DataOptions(cache=tmp_path / "cache", log=slow)
    changes = {"epochs": 1, "batch_size": 16}
    result = api.train(images, "lenet5", tmp_path / "run", options=options, device="cpu", quiet=True, **changes)
    assert messages and result.seconds >= 2


def test_fewer_threads_than_none_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(RecipeError, match="--num-workers is -1; must be 0 or more"):
        alexnet.train("digits", run=tmp_path / "run", workers=-1, device="cpu")
    assert not list(tmp_path.iterdir())
