"""Thresholds: what they promise, tested on answers whose true error is known."""

import numpy as np
import pytest
from scipy.stats import binom

from alexnet.evaluation.calibration import at_threshold, choose_threshold, min_predictions, risk_coverage, upper_bound


def drawn(generator, count):
    """First predictions that are right as often as they say: about 80 % of them."""
    confidence = 0.1 + 0.9 * generator.beta(2, 0.6, count)
    return confidence, generator.random(count) < confidence


def test_the_curve_against_loops():
    confidence, correct = drawn(np.random.default_rng(0), 60)
    confidence = confidence.round(1)  # ties: none of them is answered without the others
    found = risk_coverage(confidence, correct)
    for coverage, risk, threshold in zip(found.coverage, found.risk, found.thresholds, strict=True):
        given = [c for c, sure in zip(correct, confidence, strict=True) if sure >= threshold]
        assert (coverage, risk) == (pytest.approx(len(given) / 60), pytest.approx(1 - np.mean(given)))
    assert found.coverage[-1] == 1 and found.risk[-1] == pytest.approx(1 - correct.mean())
    assert found.area == pytest.approx(
        sum(
            risk * (coverage - before)
            for risk, coverage, before in zip(found.risk, found.coverage, (0, *found.coverage), strict=False)
        )
    )
    assert found.at(0.5)[0] == next(t for c, t in zip(found.coverage, found.thresholds, strict=True) if c >= 0.5)


def test_the_surest_predictions_are_the_best():
    found = risk_coverage(*drawn(np.random.default_rng(1), 4000))
    assert found.at(0.3)[1] < found.at(0.6)[1] < found.at(1.0)[1]


def test_a_threshold_counts():
    confidence, correct = np.array([0.9, 0.6, 0.6, 0.2]), np.array([True, False, True, False])
    found = at_threshold(confidence, correct, 0.6)
    assert (found.answered, found.errors, found.coverage) == (3, 1, 0.75)
    assert found.error == pytest.approx(1 / 3)
    assert found.low < 1 / 3 < found.high
    none = at_threshold(confidence, correct, 0.95)
    assert none.answered == 0 and np.isnan(none.error) and none.to_dict()["error"] is None


@pytest.mark.parametrize(("errors", "count"), [(0, 29), (1, 50), (7, 100), (49, 50)])
def test_the_bound_is_where_five_percent_are_left(errors, count):
    bound = upper_bound(errors, count)
    assert binom.cdf(errors, count, bound) == pytest.approx(0.05)
    assert upper_bound(count, count) == 1


def test_how_many_prove_what():
    assert [min_predictions(target) for target in (0.01, 0.02, 0.05, 0.1)] == [299, 149, 59, 29]


@pytest.mark.parametrize(("target", "count"), [(0.1, 300), (0.05, 1000), (0.02, 4000)])
def test_the_promise_holds_in_at_least_95_of_100(target, count):
    """Thresholds from validation splits of one classifier, judged by the error over very many other images."""
    generator = np.random.default_rng(2)
    many, right = drawn(generator, 400_000)
    order = np.argsort(-many)
    falling, errors = many[order], np.cumsum(~right[order])
    broken = made = 0
    for _ in range(300):
        threshold = choose_threshold(*drawn(generator, count), target)
        if threshold is not None:
            answered = int(np.searchsorted(-falling, -threshold, side="right"))
            made += 1
            broken += errors[answered - 1] / answered > target
    assert made > 200  # it does not hold by never promising
    assert broken <= 0.05 * made


def test_on_other_images_the_target_lies_in_the_interval_or_above_it():
    generator, inside = np.random.default_rng(3), 0
    for _ in range(200):
        threshold = choose_threshold(*drawn(generator, 1000), 0.1)
        inside += at_threshold(*drawn(generator, 1000), threshold).low <= 0.1
    assert inside >= 190


def test_few_images_promise_nothing():
    sure, right = np.linspace(0.5, 1, 28), np.ones(28, bool)
    assert choose_threshold(sure, right, 0.1) is None
    assert choose_threshold(np.append(sure, 0.4), np.append(right, True), 0.1) == pytest.approx(0.4)
    assert choose_threshold(np.linspace(0.5, 1, 500), np.zeros(500, bool), 0.1) is None


def test_ties_are_answered_together():
    confidence = np.array([1.0] * 100 + [0.5] * 100)
    correct = np.array([True] * 100 + [True, False] * 50)
    assert choose_threshold(confidence, correct, 0.05) == 1.0
    mixed = np.array([True, False] * 50 + [True] * 100)
    assert choose_threshold(confidence, mixed, 0.05) is None
