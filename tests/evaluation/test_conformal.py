"""Prediction sets: their coverage in simulations with known truth, and a slow reference."""

import warnings

import numpy as np
import pytest

from alexnet.errors import RecipeError
from alexnet.evaluation.conformal import check_level, least_images, prediction_sets, thresholds


def draw(generator, count, classes=4):
    """Probabilities that are wrong (too sure), and labels."""
    labels = generator.integers(0, classes, count)
    logits = generator.normal(0, 1, (count, classes)) + 2.0 * (np.arange(classes) == labels[:, None])
    rows = np.exp(3 * logits)
    return rows / rows.sum(1, keepdims=True), labels


def slow_threshold(values, level):
    """The largest t for which at least (n + 1) · level of the values reach t; 0 where even all are too few."""
    reached = [t for t in values if sum(v >= t for v in values) >= (len(values) + 1) * level - 1e-9]
    return max(reached, default=0.0)


def test_thresholds_are_those_of_the_definition():
    generator = np.random.default_rng(0)
    for count in (8, 40, 150):
        rows, labels = draw(generator, count)
        for level in (0.5, 0.8, 0.9, 0.95):
            expected = [slow_threshold(rows[labels == k, k], level) for k in range(4)]
            assert thresholds(rows, labels, level).tolist() == expected


@pytest.mark.parametrize(("level", "least"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_a_class_needs_enough_images(level, least):
    assert least_images(level) == least
    for count in (least - 1, least):
        rows = np.full((count, 2), 0.5)
        assert (thresholds(rows, np.zeros(count, np.int64), level)[0] > 0) == (count >= least)


def test_each_class_is_covered_as_promised():
    """Mean coverage of a class over many validation splits is at least the level, and at most 1/(n+1) more."""
    generator, seen = np.random.default_rng(1), []
    for _ in range(200):
        rows, labels = draw(generator, 160)
        limits = thresholds(rows, labels, 0.9)
        new, truth = draw(generator, 400)
        inside = (new >= limits)[range(400), truth]
        seen.append([inside[truth == k].mean() for k in range(4)])
    assert (np.mean(seen, 0) > 0.895).all() and (np.mean(seen, 0) < 0.935).all(), np.mean(seen, 0)


def test_copies_in_groups_count_once():
    """With the images of a group alike, thresholds of all images would cover images of new groups too rarely."""
    generator, apart, together = np.random.default_rng(2), [], []
    for _ in range(100):
        rows, labels = draw(generator, 48)
        groups = [f"g{i}" for i in np.repeat(np.arange(48), 20)]
        rows, labels = np.repeat(rows, 20, 0), np.repeat(labels, 20)
        new, truth = draw(generator, 200)
        for names, seen in (((), apart), (groups, together)):
            limits = thresholds(rows, labels, 0.9, names)
            seen.append((new >= limits)[range(200), truth].mean())
    assert np.mean(apart) < 0.89 < 0.9 <= np.mean(together)


def test_sets_of_a_split():
    generator = np.random.default_rng(3)
    known, own = draw(generator, 200)
    rows, labels = draw(generator, 300)
    found = prediction_sets(rows, labels, "abcd", 0.9, (known, own, ()))
    limits = thresholds(known, own, 0.9)
    sets = [{k for k in range(4) if row[k] >= limits[k]} for row in rows]
    assert found.coverage.value == pytest.approx(
        np.mean([label in one for one, label in zip(sets, labels, strict=True)])
    )
    assert found.mean_size == pytest.approx(np.mean([len(one) for one in sets]))
    assert found.sizes == tuple(sum(len(one) == size for one in sets) for size in range(5))
    name, images, coverage = found.classes[2]
    hits = [2 in one for one, label in zip(sets, labels, strict=True) if label == 2]
    assert (name, images, coverage.value) == ("c", len(hits), pytest.approx(np.mean(hits)))
    assert found.fitted_count == 200 and not found.without_threshold
    rare = prediction_sets(rows, labels, "abcd", 0.9, (known[own != 3], own[own != 3], ()))
    assert rare.without_threshold == ("d",) and rare.classes[3][2].value == 1


def test_as_mapie_where_it_is_installed():
    mapie = pytest.importorskip("mapie.classification")
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Given(ClassifierMixin, BaseEstimator):
        classes_ = np.arange(4)

        def fit(self, x, y):
            return self

        def predict_proba(self, x):
            return x

        def predict(self, x):
            return x.argmax(1)

        def __sklearn_is_fitted__(self):
            return True

    generator = np.random.default_rng(4)
    rows, labels = draw(generator, 200)
    new, _ = draw(generator, 300)
    limits = thresholds(rows, labels, 0.9)
    for k in range(4):  # it has one threshold for all classes: with the images of one class that of the class
        own = labels == k
        other = mapie.SplitConformalClassifier(Given(), confidence_level=0.9, conformity_score="lac", prefit=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the other classes have no images
            other.conformalize(rows[own], labels[own])
        sets = other.predict_set(new)[1][:, :, 0]
        assert np.array_equal(sets[:, k], new[:, k] >= limits[k])


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0, 90])
def test_levels_that_can_not_be(level):
    with pytest.raises(RecipeError, match="--conformal is"):
        check_level(level)
    check_level(None)
    check_level(0.9)
