"""The runner-up on real digits: it learns, what it learns from is what it says, and its files hold it all."""

import dataclasses
import json

import numpy as np
import pytest

from alexnet.data.store import Split, Store
from alexnet.errors import BundleError, DataError
from alexnet.experiments.fisher import classifier
from alexnet.experiments.fisher.classifier import FisherClassifier, Settings
from alexnet.experiments.fisher.features import Grid

pytest.importorskip("cv2")
SETTINGS = Settings(Grid(step=2, patch=16, scales=3), words=8, sample=8000, length=24)


@pytest.fixture(scope="module")
def learned(digits, tmp_path_factory):
    return classifier.train(digits, SETTINGS, tmp_path_factory.mktemp("fisher"))


def test_it_tells_digits_apart(learned, digits):
    scores = classifier.predictions(learned.classifier, digits.split("test"))
    assert scores.shape == (50, 10)
    assert (scores.argmax(1) == digits.split("test").labels).mean() >= 0.8  # from 160 images; guessing: 0.1
    assert learned.validation_error == min(learned.tried.values()) <= 0.2
    assert set(learned.tried) == {f"{p}, C {c}" for p in ("1x1", "1x1+2x2") for c in (1, 10, 100)}
    assert set(learned.seconds) == {"axes and mixtures", "Fisher vectors", "inner products", "linear classifiers"}


def test_one_image_is_answered_as_many_are(learned, digits):
    split = digits.split("test")
    many = classifier.predictions(learned.classifier, split)
    one = learned.classifier.scores(split.gather(np.array([7]))[0])
    np.testing.assert_allclose(one, many[7], atol=1e-5)


def test_validation_scores_by_weights_are_those_by_inner_multiplications(learned, digits):
    """The error that chose is the error of the classifier that was written out."""
    scores = classifier.predictions(learned.classifier, digits.split("validation"))
    error = float((scores.argmax(1) != digits.split("validation").labels).mean())
    assert error == pytest.approx(learned.validation_error, abs=0.026)  # 16-bit vectors may turn one of 40


def test_what_is_learned_comes_from_training_images_alone(digits, tmp_path, monkeypatch):
    """Nothing of the test split is read, and of validation nothing before the codebooks are done."""
    read = []
    whole = Split.gather

    def spying(split, indices, out=None):
        read.append(split.name)
        return whole(split, indices, out)

    monkeypatch.setattr(Split, "gather", spying)
    books = classifier.codebooks(digits.split("train"), SETTINGS, seed=0)
    assert set(read) == {"train"}
    read.clear()
    found = classifier.train(digits, SETTINGS, tmp_path)
    assert set(read) == {"train", "validation"}
    first = read.index("validation")
    assert "train" not in read[first:]
    assert np.array_equal(found.classifier.encoder.sift.mixture.means, books.sift.mixture.means)
    assert not (tmp_path / "vectors").exists()


def test_the_same_seed_gives_the_same_classifier(learned, digits, tmp_path):
    again = classifier.train(digits, SETTINGS, tmp_path)
    assert np.array_equal(again.classifier.weights, learned.classifier.weights)
    other = classifier.train(digits, SETTINGS, tmp_path, seed=1)
    assert not np.array_equal(
        other.classifier.encoder.sift.mixture.means, learned.classifier.encoder.sift.mixture.means
    )


def test_files_hold_it_all(learned, digits, tmp_path):
    learned.classifier.save(tmp_path)
    again = FisherClassifier.load(tmp_path)
    assert again.encoder.settings == SETTINGS and again.classes == digits.classes
    image = digits.split("test").gather(np.array([0]))[0]
    assert np.array_equal(again.scores(image), learned.classifier.scores(image))
    assert again.parameters == learned.classifier.parameters
    books = again.encoder
    counted = sum(a.size for book in (books.sift, books.color) for a in (book.mean, book.axes, *book.mixture))
    assert again.parameters == counted + again.weights.size + again.offsets.size


@pytest.mark.parametrize("how", ["cut", "gone", "format", "sizes"])
def test_damaged_files_are_refused(learned, tmp_path, how):
    file = learned.classifier.save(tmp_path)
    about = tmp_path / "fisher.json"
    if how == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif how == "gone":
        file.unlink()
    elif how == "format":
        about.write_text(json.dumps(json.loads(about.read_text()) | {"version": 2}))
    else:
        with np.load(file) as arrays:
            np.savez(file, **dict(arrays) | {"sift_mean": np.zeros(3, np.float32)})
    with pytest.raises(BundleError, match=r"of another format|holds no whole Fisher classifier"):
        FisherClassifier.load(tmp_path)


def test_a_split_that_is_missing(digits, tmp_path):
    store = Store.open(digits.path)
    store.splits = store.splits | {"validation": _none(store.split("validation"))}
    with pytest.raises(DataError, match="has no validation split; must be one; prepare another"):
        classifier.train(store, SETTINGS, tmp_path)


def _none(split):
    split.labels = split.labels[:0]
    return split


def test_many_images_are_taken_evenly(digits, monkeypatch):
    monkeypatch.setattr(classifier, "MOST", 30)
    split = digits.split("train")
    some = classifier.usable(split, seed=0)
    assert len(some) == len(set(some.tolist())) == 30 and (np.diff(some) > 0).all()
    assert np.bincount(split.labels[some], minlength=10).tolist() == [3] * 10
    assert not np.array_equal(some, classifier.usable(split, seed=1))
    monkeypatch.setattr(classifier, "MOST", 160)
    assert len(classifier.usable(split, seed=0)) == 160


def test_the_grid_follows_the_time(digits, monkeypatch):
    monkeypatch.setattr(classifier, "patch_seconds", lambda *_: 1e-3)
    monkeypatch.setattr(classifier.os, "cpu_count", lambda: 2)
    wide = Settings(Grid(patch=16, scales=1))
    steps = [classifier.settings_within(wide, digits, seconds).grid.step for seconds in (1e9, 25.0, 19.0, 0.1)]
    assert steps[0] == 2 and steps == sorted(steps) and len(set(steps)) == 4 and steps[-1] == 12
    for seconds in (25.0, 19.0):
        found = classifier.settings_within(wide, digits, seconds)
        patches = len(range(0, 32 - 16 + 1, found.grid.step)) ** 2
        assert classifier.needed(patches, 1e-3, digits) <= seconds
    assert dataclasses.replace(found, grid=wide.grid) == wide


def test_the_time_of_a_patch_is_measured(digits):
    assert 1e-7 < classifier.patch_seconds(SETTINGS, digits) < 0.1


@pytest.mark.slow
def test_over_95_percent_of_all_digits(tmp_path):
    """As `alexnet study contest digits --nets fisher` has it: 1,294 to learn from, 359 to be tested on."""
    from alexnet.data.prepare import prepare
    from alexnet.data.sources import open_source

    store = prepare(open_source("digits"), tmp_path / "store", size=72, validation=0.1, test=0.2)
    settings = classifier.settings_within(Settings(side=64), store, 100.0)
    found = classifier.train(store, settings, tmp_path / "fisher")
    scores = classifier.predictions(found.classifier, store.split("test"))
    assert (scores.argmax(1) == store.split("test").labels).mean() > 0.95
