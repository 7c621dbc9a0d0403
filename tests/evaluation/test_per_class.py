"""Numbers by class against scikit-learn, and against sums written out."""

import json
import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from alexnet.evaluation.detailed import areas, per_class
from alexnet.evaluation.evaluate import SplitPredictions
from alexnet.evaluation.intervals import resamples, wilson
from alexnet.evaluation.one_vs_rest import binary_rates


def predictions(count=300, classes=4, seed=0, groups=()):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(count, classes))
    labels = generator.integers(0, classes, count)
    logits[np.arange(count), labels] += 1
    logits = logits.round(1)  # ties
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return SplitPredictions("test", 1, labels.astype(np.int64), logs.astype(np.float32), groups)


NAMES = ["a", "b", "c", "d"]


def test_the_numbers_are_scikit_learns():
    given = predictions()
    found = per_class(given, NAMES, resamples=50)
    expected = sk.precision_recall_fscore_support(given.labels, given.predicted)
    for k, one in enumerate(found.classes):
        assert [one.precision.value, one.recall.value, one.f1.value] == pytest.approx([x[k] for x in expected[:3]])
        assert (one.images, one.predicted) == (expected[3][k], (given.predicted == k).sum())
        scores = np.exp(given.log_probabilities.astype(np.float64))
        scores /= scores.sum(1, keepdims=True)
        # The softmax rounds: with some versions of NumPy it orders a pair of equal scores.
        assert one.auroc.value == pytest.approx(sk.roc_auc_score(given.labels == k, scores[:, k]), abs=1e-4)
    assert found.top1.value == sk.accuracy_score(given.labels, given.predicted)
    assert found.balanced_accuracy.value == pytest.approx(sk.balanced_accuracy_score(given.labels, given.predicted))
    assert found.macro_f1.value == pytest.approx(sk.f1_score(given.labels, given.predicted, average="macro"))
    assert found.macro_precision.value == pytest.approx(expected[0].mean())
    assert found.macro_auroc.value == pytest.approx(np.mean([one.auroc.value for one in found.classes]))
    json.dumps(found.to_dict(), allow_nan=False)


def test_intervals_are_those_of_the_resampled_images():
    """Each resample written out as a list of images, and scored by scikit-learn."""
    given = predictions(count=120)
    found = per_class(given, NAMES, resamples=150, seed=4)
    rows = []
    for weights in np.concatenate(list(resamples(120, number=150, seed=4))):
        own = np.repeat(np.arange(120), weights.astype(int))
        labels, predicted = given.labels[own], given.predicted[own]
        rows.append(
            [
                sk.balanced_accuracy_score(labels, predicted),
                sk.f1_score(labels, predicted, average="macro"),
            ]
        )
    low, high = np.percentile(rows, [2.5, 97.5], axis=0)
    assert [found.balanced_accuracy.low, found.macro_f1.low] == pytest.approx(low)
    assert [found.balanced_accuracy.high, found.macro_f1.high] == pytest.approx(high)
    one = found.classes[1].precision
    assert (one.low, one.high) == wilson((given.labels[given.predicted == 1] == 1).sum(), one.count)


def slow_area(scores, positive):
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    return float(np.mean(pairs)) if pairs else float("nan")


def test_areas_of_weighted_images_by_pairs():
    given = predictions(count=40)
    scores = given.log_probabilities.astype(np.float64)
    weights = np.concatenate(list(resamples(40, number=6, seed=2)))
    found = areas(scores, given.labels, weights)
    for row, own in zip(found, weights, strict=True):
        chosen = np.repeat(np.arange(40), own.astype(int))
        expected = [slow_area(scores[chosen, k], given.labels[chosen] == k) for k in range(4)]
        assert row == pytest.approx(expected, nan_ok=True)


def test_a_class_without_images_has_no_numbers_and_counts_in_no_mean():
    given = predictions(classes=4)
    absent = SplitPredictions("test", 1, np.where(given.labels == 3, 0, given.labels), given.log_probabilities)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = per_class(absent, NAMES, resamples=30)
    last = found.classes[3]
    assert (last.images, last.recall.to_dict()["value"], last.auroc.to_dict()["value"]) == (0, None, None)
    assert last.precision.value == 0  # it was guessed, always wrongly
    assert found.balanced_accuracy.value == pytest.approx(np.mean([one.recall.value for one in found.classes[:3]]))


def test_groups_widen_the_intervals():
    one = predictions(count=30)
    tenfold = SplitPredictions("test", 1, np.repeat(one.labels, 10), np.repeat(one.log_probabilities, 10, 0))
    groups = tuple(f"g{i // 10}" for i in range(300))
    alone = per_class(tenfold, NAMES, resamples=200)
    whole = per_class(
        SplitPredictions("test", 1, tenfold.labels, tenfold.log_probabilities, groups), NAMES, resamples=200
    )
    assert alone.top1.value == whole.top1.value
    assert whole.top1.high - whole.top1.low > 2 * (alone.top1.high - alone.top1.low)
    assert (whole.top1.count, alone.top1.count) == (30, 300)


def test_a_perfect_class_is_not_certain():
    labels = np.repeat(np.arange(2), 100)
    logs = np.log(np.where(np.eye(2)[labels] > 0, 0.9, 0.1)).astype(np.float32)
    found = per_class(SplitPredictions("test", 1, labels, logs), ["a", "b"], resamples=50)
    for one in found.classes:
        for number in (one.precision, one.recall, one.f1, one.auroc):
            assert number.value == 1 and 0.95 < number.low < 1


@pytest.mark.parametrize("grouped", [False, True])
def test_a_rate_has_one_interval(grouped):
    """The tables of all classes and of one class against the rest are in one output."""
    given = predictions(180, groups=[f"patient {i % 50}" for i in range(180)] if grouped else ())
    for k, found in enumerate(per_class(given, NAMES).classes):
        rates = binary_rates(given.predicted == k, given.labels == k, given.groups)
        assert found.recall == rates.sensitivity and found.precision == rates.ppv
        assert found.specificity == rates.specificity and found.npv == rates.npv
        assert 0 < found.recall.low < found.recall.value < found.recall.high < 1
