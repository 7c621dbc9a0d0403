"""Images that a classifier was trained on are recognized by content, wherever they lie, and left out of evaluations."""

import json
import os
import shutil

import numpy as np
import pytest

import alexnet
from alexnet import api, cli
from alexnet.data.decode import encode_png
from alexnet.data.run_file import write_run_file
from alexnet.errors import BundleError, DataError
from alexnet.recipe import get_recipe


@pytest.fixture(scope="module")
def home(digits, tmp_path_factory):
    """``images``: 120 digits as PNGs in class folders; ``a`` and ``b``: two runs on them, with different splits."""
    home, split = tmp_path_factory.mktemp("home"), digits.split("train")
    images = split.gather(np.arange(120))
    for i, (image, label) in enumerate(zip(images, split.labels[:120], strict=True)):
        folder = home / "images" / f"digit{label}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:03d}.png").write_bytes(encode_png(image))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "TRAINING_PLOTS", ())
        for name, seed in (("a", 0), ("b", 1)):
            recipe = get_recipe("lenet5").replace(epochs=1, batch_size=16, seed=seed)
            options = api.DataOptions(cache=home / "cache")
            api.train(home / "images", recipe, home / name, device="cpu", options=options)
    return home


@pytest.fixture
def copy(home, tmp_path):
    """The same images with other times."""
    shutil.copytree(home / "images", tmp_path / "copy")
    for number, path in enumerate(sorted((tmp_path / "copy").rglob("*.png"))):
        os.utime(path, ns=(10**18 + number, 10**18 + number))
    return tmp_path / "copy"


def splits(run):
    store = alexnet.data.store.Store.open(json.loads((run / "run.json").read_text())["store"])
    return {name: {row["sha256"] for row in split.origins()} for name, split in store.splits.items()}


def options(home, **more):
    return api.DataOptions(cache=home / "cache", **more)


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("where", ["a", "a/bundle"])
def test_a_copy_of_the_training_folder_tests_on_the_test_split_alone(home, copy, grown, where):
    if grown:
        (copy / "digit0" / "new.png").write_bytes(encode_png(np.full((32, 32, 3), 9, np.uint8)))
    own = alexnet.evaluate(home / "a", device="cpu")
    assert own.training_images_left_out == 0
    scores = alexnet.evaluate(home / where, copy, device="cpu", options=options(home))
    assert scores.training_images_left_out == 120 - own.count and scores.count == own.count + grown
    if not grown:
        assert (scores.correct1, scores.loss) == (own.correct1, pytest.approx(own.loss, rel=1e-5))
    included = alexnet.evaluate(home / where, copy, device="cpu", options=options(home, include_training_images=True))
    assert included.count == 120 + grown and included.training_images_included == 120 - own.count
    assert included.to_dict()["training_images_included"] == 120 - own.count


def test_details_compare_and_ensembles_leave_out_what_any_run_was_trained_on(home, copy):
    a, b = splits(home / "a"), splits(home / "b")
    fresh = a["test"] & b["test"]
    assert 0 < len(fresh) < len(a["test"])
    found = api.compare(home / "a", home / "b", copy, device="cpu", options=options(home))
    assert (found.paired.count, found.training_images_left_out) == (len(fresh), 120 - len(fresh))
    assert found.to_dict()["training_images_left_out"] == 120 - len(fresh)
    both = alexnet.evaluate([home / "a", home / "b"], copy, device="cpu", options=options(home))
    assert (both.count, both.training_images_left_out) == (len(fresh), 120 - len(fresh))
    details = api.evaluate_detailed(home / "a", copy, device="cpu", options=options(home))
    assert details.scores.count == len(a["test"])
    assert details.to_dict()["training_images_left_out"] == 120 - len(a["test"])


def test_nothing_is_left_to_test_on(home, tmp_path):
    own = splits(home / "a")
    for path in sorted((home / "images").rglob("*.png")):
        import hashlib

        if hashlib.sha256(path.read_bytes()).hexdigest() in own["train"]:
            target = tmp_path / "only" / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    with pytest.raises(DataError, match=r"are training images of the classifier; .*--include-training-images"):
        alexnet.evaluate(home / "a", tmp_path / "only", device="cpu", options=options(home))


def test_a_run_whose_data_is_gone_says_so(home, copy, tmp_path):
    shutil.copytree(home / "a" / "bundle", tmp_path / "bundle")
    known = alexnet.evaluate(tmp_path / "bundle", copy, device="cpu", options=options(home))
    assert known.count == alexnet.evaluate(home / "a", device="cpu").count, "its images are in the cache"
    lines = []
    elsewhere = api.DataOptions(cache=tmp_path / "cache", log=lines.append)
    scores = alexnet.evaluate(tmp_path / "bundle", copy, device="cpu", options=elsewhere)
    assert scores.count == 120
    assert any("training images in" in line and "are kept" in line for line in lines)


def test_the_command(home, copy, capsys):
    words = ["evaluate", str(home / "a"), "--data", str(copy), "--device", "cpu", "--cache", str(home / "cache")]
    left = 120 - len(splits(home / "a")["test"])
    assert cli.run(words) == 0
    assert f"{left} training images were left out" in capsys.readouterr().out
    assert cli.run([*words, "--include-training-images"]) == 0
    assert f"WARNING: {left} of them are training images" in capsys.readouterr().out
    assert cli.run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training_images_left_out"] == left
    pair = ["compare", str(home / "a"), str(home / "b"), *words[2:]]
    assert cli.run(pair) == 0
    assert "training images were left out" in capsys.readouterr().out


def test_a_run_whose_store_was_moved_names_data_and_store(home, tmp_path):
    run, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(home / "a", run)
    about = json.loads((run / "run.json").read_text())
    shutil.copytree(about["store"], moved)
    write_run_file(run, about | {"store": str(tmp_path / "gone"), "options": ["--ignore", "x y"]})
    for lost in (
        lambda: alexnet.evaluate(run, device="cpu"),
        lambda: api.write_report(run, device="cpu"),
        lambda: api.resume(run, device="cpu"),
        lambda: api.plot("confusion", run, device="cpu"),
        lambda: api.compare(run, home / "a", device="cpu"),
    ):
        with pytest.raises(DataError) as caught:
            lost()
        message = str(caught.value)
        assert f"its prepared images are not in {tmp_path / 'gone'}" in message
        assert f"alexnet evaluate {run} --data {home / 'images'} --ignore 'x y'" in message
        assert "--store of report" in message
    own = alexnet.evaluate(home / "a", device="cpu")
    for data in (home / "images", moved):
        assert alexnet.evaluate(run, data, device="cpu", options=options(home)).correct1 == own.correct1
    assert api.write_report(run, tmp_path / "r.html", store=moved, quick=True, device="cpu").exists()
    assert api.plot("confusion", run, tmp_path / "c.png", store=moved, device="cpu").exists()


def test_a_store_of_other_images_is_not_taken_for_the_run_s_own(home, tmp_path):
    """Of the same classes, in another split: where the run looks for its store, or named by --store."""
    other, run = json.loads((home / "b" / "run.json").read_text())["store"], tmp_path / "run"
    shutil.copytree(home / "a", run)
    for wrong in (
        lambda: api.write_report(run, store=other, device="cpu"),
        lambda: api.plot("confusion", run, store=other),
    ):
        with pytest.raises(DataError, match=r"does not hold the images that .*run was trained on"):
            wrong()
    write_run_file(run, json.loads((run / "run.json").read_text()) | {"store": other})
    for wrong in (lambda: alexnet.evaluate(run), lambda: api.write_report(run), lambda: api.plot("mistakes", run)):
        with pytest.raises(DataError, match=r"alexnet evaluate .*run --data DATA"):
            wrong()


def test_other_classes_are_refused_before_images_are_prepared(home, tmp_path):
    for title in ("left", "right"):
        (tmp_path / "other" / title).mkdir(parents=True)
        for index in range(5):
            image = np.full((8, 8, 3), index, np.uint8)
            (tmp_path / "other" / title / f"{index}.png").write_bytes(encode_png(image))
    with pytest.raises(BundleError, match=r"the classes of .*other are not those of the classifier"):
        alexnet.evaluate(
            home / "a", tmp_path / "other", device="cpu", options=api.DataOptions(cache=tmp_path / "cache")
        )
    assert not (tmp_path / "cache").exists()
