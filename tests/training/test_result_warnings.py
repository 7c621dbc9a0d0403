"""Warnings about the numbers of a run: only where chance does not explain them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from alexnet import api, cli
from alexnet.evaluation.metrics import MetricAccumulator
from alexnet.training.run import score_warnings

CLASSES = 4


def scores(split: str, labels: np.ndarray, right: int):
    """The scores of a classifier that has the first ``right`` images of a split right."""
    predicted = torch.from_numpy(np.where(np.arange(len(labels)) < right, labels, (labels + 1) % CLASSES))
    counter = MetricAccumulator(CLASSES, len(labels))
    probabilities = torch.nn.functional.one_hot(predicted, CLASSES).double().add(1e-3).log_softmax(1)
    counter.add(probabilities, torch.from_numpy(labels), torch.arange(len(labels)))
    return counter.scores(split, 1)


def made(test_right: int, validation_right: int | None, often: int = 50):
    """200 test images, ``often`` of the first class, and 200 validation images."""
    test = np.repeat(np.arange(CLASSES), [often, 100 - often, 50, 50])
    validation = np.repeat(np.arange(CLASSES), 50)
    found = {"test": scores("test", test, test_right)}
    if validation_right is not None:
        found["validation"] = scores("validation", validation, validation_right)
    return score_warnings(found)


def test_a_good_result_has_none():
    assert made(180, 184) == made(150, 160) == made(180, 100) == made(180, None) == ()


def test_a_test_far_below_validation():
    (warning,) = made(100, 142)
    assert warning.startswith("test top-1 is 50.0 % (95 % CI 43.1 to 56.9 %), validation top-1 is 71.0 % (95 % CI 6")
    assert "alexnet doctor" in warning


@pytest.mark.parametrize(
    ("right", "often", "warned"), [(50, 50, True), (60, 50, True), (66, 50, False), (66, 90, True)]
)
def test_no_better_than_the_most_frequent_class(right, often, warned):
    found = made(right, None, often)
    assert len(found) == warned
    if warned:
        share = f"always predicting the most frequent class has {often / 2:.1f} %"
        assert share in found[0] and f"test top-1 is {right / 2:.1f} %" in found[0]


def test_without_a_test_split_the_validation_scores_count():
    labels = np.repeat(np.arange(CLASSES), 50)
    (warning,) = score_warnings({"validation": scores("validation", labels, 52)})
    assert warning.startswith("validation top-1 is 26.0 %")
    assert score_warnings({}) == ()


def test_evaluate_says_so_too(monkeypatch, capsys):
    labels = np.repeat(np.arange(CLASSES), 50)
    monkeypatch.setattr(api, "provenance", lambda _: None)
    for right, warned in ((52, True), (150, False)):
        monkeypatch.setattr(
            api, "evaluate", lambda *_, right=right, **__: replace(scores("test", labels, right), seconds=1.0)
        )
        assert cli.run(["evaluate", "run", "data"]) == 0
        assert ("WARNING: test top-1 is 26.0 %" in capsys.readouterr().out) == warned


def test_calibrating_says_that_the_test_images_are_calibrated_worse(monkeypatch, capsys):
    fitted = SimpleNamespace(temperature=1.5, count=60, ece_before=0.3, ece_after=0.2)
    labels = np.repeat(np.arange(CLASSES), 50)
    details = SimpleNamespace(
        scores=replace(scores("test", labels, 150), seconds=1.0),
        temperature_warning="The temperature 1.500 makes it worse.",
        provenance=SimpleNamespace(lines=list),
        **dict.fromkeys(("slices", "thresholds", "ood", "ood_scores"), ()),
        **dict.fromkeys(("one_vs_rest", "sets", "groups")),
    )
    monkeypatch.setattr(api, "calibrate", lambda *_, **__: fitted)
    monkeypatch.setattr(api, "evaluate_detailed", lambda *_, **__: details)
    assert cli.run(["evaluate", "run", "--calibrate"]) == 0
    assert "WARNING: The temperature 1.500 makes it worse." in capsys.readouterr().out
