"""The Fisher vector classifier on digits: accuracy, the splits it reads, its files, its SVMs and its time."""

import dataclasses
import json

import numpy as np
import pytest

from alexnet.data.store import Split, Store
from alexnet.errors import BundleError, DataError
from alexnet.experiments.fisher import train as fisher
from alexnet.experiments.fisher.classifier import FisherClassifier, FisherSettings
from alexnet.experiments.fisher.features import Grid
from alexnet.schema import with_checksum

pytest.importorskip("cv2")
SETTINGS = FisherSettings(Grid(step=2, patch=16, scales=3), gaussians=8, sample=8000, axes=24)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    return fisher.train(digits, SETTINGS, tmp_path_factory.mktemp("fisher"))


def test_digits_are_classified(trained, digits):
    scores = fisher.predict(trained.classifier, digits.split("test"))
    assert scores.shape == (50, 10)
    assert (scores.argmax(1) == digits.split("test").labels).mean() >= 0.8  # from 160 images; guessing: 0.1
    assert trained.validation_error == min(trained.candidates.values()) <= 0.2
    assert set(trained.candidates) == {f"{p}, C {c}" for p in ("1x1", "1x1+2x2") for c in (1, 10, 100)}
    assert set(trained.seconds) == {"codebooks", "Fisher vectors", "inner products", "linear classifiers"}


def test_one_image_scores_as_in_a_split(trained, digits):
    split = digits.split("test")
    many = fisher.predict(trained.classifier, split)
    one = trained.classifier.scores(split.gather(np.array([7]))[0])
    np.testing.assert_allclose(one, many[7], atol=1e-5)


def test_weights_and_inner_products_give_the_same_validation_error(trained, digits):
    """The error that chose is the error of the classifier that was written out."""
    scores = fisher.predict(trained.classifier, digits.split("validation"))
    error = float((scores.argmax(1) != digits.split("validation").labels).mean())
    assert error == pytest.approx(trained.validation_error, abs=0.026)  # 16-bit vectors may turn one of 40


def test_only_training_images_are_learned_from(digits, tmp_path, monkeypatch):
    """Nothing of the test split is read, and of validation nothing before the codebooks are done."""
    read = []
    whole = Split.gather

    def spying(split, indices, out=None):
        read.append(split.name)
        return whole(split, indices, out)

    monkeypatch.setattr(Split, "gather", spying)
    books = fisher.fit_encoder(digits.split("train"), SETTINGS, seed=0)
    assert set(read) == {"train"}
    read.clear()
    result = fisher.train(digits, SETTINGS, tmp_path)
    assert set(read) == {"train", "validation"}
    first = read.index("validation")
    assert "train" not in read[first:]
    assert np.array_equal(result.classifier.encoder.sift.mixture.means, books.sift.mixture.means)
    assert not (tmp_path / "vectors").exists()


def test_the_same_seed_gives_the_same_classifier(trained, digits, tmp_path):
    again = fisher.train(digits, SETTINGS, tmp_path)
    assert np.array_equal(again.classifier.weights, trained.classifier.weights)
    other = fisher.train(digits, SETTINGS, tmp_path, seed=1)
    assert not np.array_equal(
        other.classifier.encoder.sift.mixture.means, trained.classifier.encoder.sift.mixture.means
    )


def test_save_and_load(trained, digits, tmp_path):
    trained.classifier.save(tmp_path)
    again = FisherClassifier.load(tmp_path)
    assert again.encoder.settings == SETTINGS and again.classes == digits.classes
    image = digits.split("test").gather(np.array([0]))[0]
    assert np.array_equal(again.scores(image), trained.classifier.scores(image))
    assert again.parameters == trained.classifier.parameters
    books = again.encoder
    counted = sum(a.size for book in (books.sift, books.color) for a in (book.mean, book.axes, *book.mixture))
    assert again.parameters == counted + again.weights.size + again.offsets.size


@pytest.mark.parametrize("how", ["cut", "gone", "format", "sizes", "edited", "types", "no checksum", "no sha256"])
def test_damaged_files_are_refused(trained, tmp_path, how):
    file = trained.classifier.save(tmp_path)
    metadata = tmp_path / "fisher.json"
    if how == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif how == "gone":
        file.unlink()
    elif how == "format":
        metadata.write_text(json.dumps(with_checksum(json.loads(metadata.read_text()) | {"version": 2})))
    elif how == "edited":
        metadata.write_text(metadata.read_text().replace('"penalty": 1', '"penalty": 2'))
    elif how == "types":
        metadata.write_text(json.dumps(with_checksum(json.loads(metadata.read_text()) | {"used": "all"})))
    elif how == "no checksum":
        metadata.write_text(json.dumps({k: v for k, v in json.loads(metadata.read_text()).items() if k != "checksum"}))
    elif how == "no sha256":
        content = {k: v for k, v in json.loads(metadata.read_text()).items() if k not in ("checksum", "sha256")}
        metadata.write_text(json.dumps(with_checksum(content)))
    else:
        with np.load(file) as arrays:
            np.savez(file, **dict(arrays) | {"sift_mean": np.zeros(3, np.float32)})
    with pytest.raises(BundleError, match=r"has another format|holds no complete Fisher classifier"):
        FisherClassifier.load(tmp_path)


def test_a_split_that_is_missing(digits, tmp_path):
    store = Store.open(digits.path)
    store.splits = store.splits | {"validation": _none(store.split("validation"))}
    with pytest.raises(DataError, match="has no validation split; must be one; prepare another store"):
        fisher.train(store, SETTINGS, tmp_path)


def _none(split):
    split.labels = split.labels[:0]
    return split


def test_training_subset_is_even_over_classes(digits, monkeypatch):
    monkeypatch.setattr(fisher, "MAX_TRAINING_IMAGES", 30)
    split = digits.split("train")
    some = fisher.training_subset(split, seed=0)
    assert len(some) == len(set(some.tolist())) == 30 and (np.diff(some) > 0).all()
    assert np.bincount(split.labels[some], minlength=10).tolist() == [3] * 10
    assert not np.array_equal(some, fisher.training_subset(split, seed=1))
    monkeypatch.setattr(fisher, "MAX_TRAINING_IMAGES", 160)
    assert len(fisher.training_subset(split, seed=0)) == 160


def test_grid_follows_the_time(digits, monkeypatch):
    monkeypatch.setattr(fisher, "measure_patch", lambda *_: 1e-3)
    monkeypatch.setattr(fisher.os, "cpu_count", lambda: 2)
    wide = FisherSettings(Grid(patch=16, scales=1))
    steps = [fisher.fit_settings(wide, digits, seconds).grid.step for seconds in (1e9, 25.0, 19.0, 0.1)]
    assert steps[0] == 2 and steps == sorted(steps) and len(set(steps)) == 4 and steps[-1] == 12
    for seconds in (25.0, 19.0):
        result = fisher.fit_settings(wide, digits, seconds)
        patches = len(range(0, 32 - 16 + 1, result.grid.step)) ** 2
        assert fisher.training_seconds(patches, 1e-3, digits) <= seconds
    assert dataclasses.replace(result, grid=wide.grid) == wide


def test_the_time_of_a_patch_is_measured(digits):
    assert 1e-7 < fisher.measure_patch(SETTINGS, digits) < 0.1


def some(count=60, classes=3, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    centers = random.normal(size=(classes, 2, 8))
    return (centers[labels] + random.normal(size=(count, 2, 8)) * 0.8).astype(np.float16), labels


@pytest.mark.parametrize("block", [fisher.BLOCK, 64])
def test_inner_products_by_region(block, monkeypatch):
    monkeypatch.setattr(fisher, "BLOCK", block)  # 64: eight rows at a time
    a, _ = some()
    b, _ = some(33, seed=1)
    expected = np.einsum("nrf,mrf->rnm", a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(fisher.inner_products(a, b), expected, rtol=1e-4, atol=1e-4)


def test_svms_from_inner_products_equal_svms_from_vectors():
    """By the table of inner products or by the vectors: the same linear machine, one class against all others."""
    from sklearn.svm import SVC

    vectors, labels = some()
    flat = vectors.reshape(len(vectors), -1).astype(np.float64)
    coefficients, offsets = fisher.fit_svms(fisher.inner_products(vectors, vectors).sum(0), labels, 3, 1.0)
    for label in range(3):
        theirs = SVC(C=1.0, kernel="linear").fit(flat, labels == label)
        np.testing.assert_allclose(
            flat @ flat.T @ coefficients[:, label] + offsets[label], theirs.decision_function(flat), atol=0.01
        )


def test_weights_give_the_same_scores():
    vectors, labels = some()
    coefficients, offsets = fisher.fit_svms(fisher.inner_products(vectors, vectors)[1], labels, 3, 10.0)
    weights = fisher.svm_weights(coefficients, vectors, (1,))
    assert weights.shape == (3, 1, 8)
    direct = np.einsum("krf,nrf->nk", weights, vectors[:, [1]].astype(np.float32)) + offsets
    np.testing.assert_allclose(direct, fisher.inner_products(vectors, vectors)[1] @ coefficients + offsets, atol=1e-2)


def test_missing_class_always_scores_minus_one():
    vectors, labels = some()
    coefficients, offsets = fisher.fit_svms(fisher.inner_products(vectors, vectors).sum(0), labels, 4, 1.0)
    assert not coefficients[:, 3].any() and offsets[3] == -1


@pytest.mark.slow
def test_over_95_percent_of_all_digits(tmp_path):
    """As `alexnet study contest digits --nets fisher` has it: 1,294 to learn from, 359 to be tested on."""
    from alexnet.data.prepare import prepare
    from alexnet.data.sources import open_source

    store = prepare(open_source("digits"), tmp_path / "store", size=72, validation=0.1, test=0.2)
    settings = fisher.fit_settings(FisherSettings(image_size=64), store, 100.0)
    result = fisher.train(store, settings, tmp_path / "fisher")
    scores = fisher.predict(result.classifier, store.split("test"))
    assert (scores.argmax(1) == store.split("test").labels).mean() > 0.95
