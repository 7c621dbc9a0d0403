"""Calibration against slow formulas, and on answers whose truth is known because it was drawn from them."""

import json

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from alexnet.evaluation.calibration import (
    calibrate,
    ece,
    fit_temperature,
    probabilities,
    reliability,
    temperature_warning,
)
from alexnet.evaluation.detailed import detailed_scores
from alexnet.evaluation.evaluate import SplitPredictions


def drawn(temperature, count=3000, classes=5, seed=0):
    """Logits that are honest at ``temperature``: labels are drawn from softmax(logits / temperature)."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(count, classes)) * 3
    labels = (softmax(logits / temperature, 1).cumsum(1) < generator.random((count, 1))).sum(1)
    return log_softmax(logits, 1).astype(np.float32), np.minimum(labels, classes - 1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_is_found_again(temperature):
    logs, labels = drawn(temperature, count=20_000)
    assert fit_temperature(logs, labels) == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_calibration_error_falls_on_images_that_nothing_was_fitted_on(temperature):
    made = calibrate(*drawn(temperature, 1000, seed=1))
    logs, labels = drawn(temperature, seed=2)
    before, after = (reliability(probabilities(logs, t), labels) for t in (1.0, made.temperature))
    assert after.ece < before.ece / 3
    assert after.ece < 2 * after.ece_by_chance
    assert after.nll < before.nll and after.brier < before.brier
    assert made.ece_after < made.ece_before
    assert np.array_equal(probabilities(logs, made.temperature).argmax(1), logs.argmax(1))


def slow_loss(logs, labels, temperature):
    """−ln p of the labels; where all first predictions are right, and of half an image whose second prediction is."""
    rows = [[x / temperature for x in row] for row in logs.astype(float).tolist()]
    found = [[x - np.log(sum(np.exp(v) for v in row)) for x in row] for row in rows]
    own = -sum(row[k] for row, k in zip(found, labels, strict=True))
    if any(max(row) != row[k] for row, k in zip(found, labels, strict=True)):
        return own
    return own - 0.5 * sum(sorted(row)[-2] for row in found) / len(found)


@pytest.mark.parametrize("perfect", [False, True])
def test_no_temperature_near_it_has_a_lower_loss(perfect):
    logs, labels = drawn(1.7, count=60)
    labels = logs.argmax(1) if perfect else labels
    best = fit_temperature(logs, labels)
    losses = [slow_loss(logs, labels, t) for t in np.geomspace(0.1, 10, 400)]
    assert slow_loss(logs, labels, best) <= min(losses) + 1e-6


def test_a_split_without_a_mistake_makes_nothing_certain():
    logs, _ = drawn(1.0, count=100)
    found = fit_temperature(logs, logs.argmax(1))
    assert 0.03 < found < 1  # the range begins at 0.02, where there would be no doubt left
    rows = probabilities(logs, found)
    assert 0.001 < np.mean(1 - rows.max(1)) < 0.05  # doubt in the order of half a mistake in 100


def test_ece_by_hand():
    confidence = np.array([0.95, 0.95, 0.55, 0.5, 0.2])
    correct = np.array([True, False, True, False, False])
    # bins of 0.1: (0.9, 1]: 2 images, 0.95 against 0.5; (0.5, 0.6]: 0.55 against 1; (0.4, 0.5]; (0.1, 0.2]
    expected = (2 * 0.45 + 0.45 + 0.5 + 0.2) / 5
    assert ece(confidence, correct, 10) == pytest.approx(expected)


def test_reliability_against_loops():
    logs, labels = drawn(1.5, count=400)
    rows = probabilities(logs)
    found = reliability(rows, labels)
    total = 0.0
    for one in found.bins:
        own = [i for i in range(400) if one.low < rows[i].max() <= one.high]
        assert one.count == len(own)
        if own:
            assert one.confidence == pytest.approx(np.mean([rows[i].max() for i in own]))
            assert one.accuracy == pytest.approx(np.mean([rows[i].argmax() == labels[i] for i in own]))
            assert one.accuracy_low <= one.accuracy <= one.accuracy_high
            total += len(own) / 400 * abs(one.accuracy - one.confidence)
    assert found.ece == pytest.approx(total)
    assert sum(one.count for one in found.bins) == found.count == 400
    assert found.nll == pytest.approx(-np.mean([np.log(rows[i, k]) for i, k in enumerate(labels)]))
    hot = np.eye(5)[labels]
    assert found.brier == pytest.approx(((rows - hot) ** 2).sum(1).mean())
    json.dumps(found.to_dict(), allow_nan=False)


def test_by_chance_is_what_honest_predictions_show():
    found = [reliability(probabilities(*[x[0]]), x[1]) for x in (drawn(1.0, 500, seed=s) for s in range(20))]
    assert np.mean([x.ece for x in found]) == pytest.approx(np.mean([x.ece_by_chance for x in found]), rel=0.2)


def test_probabilities_are_a_softmax():
    logs, _ = drawn(1.0, count=20)
    assert probabilities(logs, 2.0) == pytest.approx(softmax(logs.astype(np.float64) / 2, 1))
    assert probabilities(np.array([[0.0, -1e9]]), 0.02).tolist() == [[1.0, 0.0]]


def test_too_few_images_fit_nothing():
    logs, labels = drawn(2.0, count=29)
    assert calibrate(logs, labels) is None
    assert calibrate(*drawn(2.0, count=30)) is not None


def test_a_block_for_the_bundle():
    logs, labels = drawn(0.5, count=2000, seed=4)
    made = calibrate(logs, labels)
    block = json.loads(json.dumps(made.to_dict()))
    assert (block["fitted_on"], block["count"]) == ("validation", 2000)
    assert set(block["thresholds"]) <= {"0.01", "0.02", "0.05", "0.1"} and "0.1" in block["thresholds"]
    rising = [block["thresholds"][key] for key in ("0.1", "0.05", "0.02", "0.01") if key in block["thresholds"]]
    assert rising == sorted(rising)  # a stricter target needs a surer answer


def test_a_temperature_that_makes_calibration_worse_is_not_applied():
    worse = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        logs = np.log(generator.dirichlet(np.ones(3), 40)).astype(np.float32)
        labels = np.array([generator.choice(3, p=row / row.sum()) for row in np.exp(logs.astype(np.float64))])
        made = calibrate(logs, labels)
        assert made.ece_after <= made.ece_before
        worse += made.temperature == 1.0
    assert 0 < worse < 40


def test_a_temperature_that_makes_calibration_worse_on_other_images_is_reported():
    """Fitted on overconfident images, applied to images whose probabilities are right as they are."""
    temperature = calibrate(*drawn(2.5, 1000, seed=1)).temperature
    logs, labels = drawn(1.0, 1000, seed=2)
    logs = np.log(probabilities(logs)).astype(np.float32)
    classes = [str(k) for k in range(logs.shape[1])]
    details = detailed_scores(SplitPredictions("test", 1, labels, logs), classes, temperature, [])
    before, after = (reliability(probabilities(logs, t), labels).ece for t in (1.0, temperature))
    assert after > before + 0.05
    assert f"{100 * before:.1f} % without it and {100 * after:.1f} % with it" in details.temperature_warning
    helped = detailed_scores(SplitPredictions("test", 1, *reversed(drawn(2.5, 1000, seed=3))), classes, temperature, [])
    assert helped.temperature_warning == ""
    assert temperature_warning(1.0, details.calibrated, details.uncalibrated) == ""
