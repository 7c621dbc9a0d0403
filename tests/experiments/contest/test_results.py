"""Rows, verdicts and CSV of made-up predictions."""

import csv

import numpy as np
import pytest

from alexnet.experiments.contest.results import _error_difference, csv_text, result_rows, verdict
from alexnet.experiments.contest.train import ContestantResult, Predictions

NOT_SIGNIFICANT = "the difference is not statistically significant"


def predictions_of(wrong: range) -> Predictions:
    """359 images of ten classes, those in ``wrong`` misclassified."""
    labels = np.arange(359) % 10
    predicted = np.where(np.isin(np.arange(359), wrong), (labels + 1) % 10, labels)
    return Predictions(np.eye(10, dtype=np.float32)[predicted], labels)


@pytest.mark.parametrize(
    ("alexnet", "fisher", "message"),
    [
        (
            range(6),
            range(2),
            f"AlexNet 1.7 %, Fisher vectors 0.6 %; {NOT_SIGNIFICANT} (p = 0.12)",
        ),
        (range(30), range(2), "AlexNet 8.4 %, Fisher vectors 0.6 %; Fisher vectors are better (p = 7.5e-09)"),
        (range(2), range(30), "AlexNet 0.6 %, Fisher vectors 8.4 %; AlexNet is better (p = 7.5e-09)"),
        (
            range(6),
            range(6),
            f"AlexNet 1.7 %, Fisher vectors 1.7 %; {NOT_SIGNIFICANT} (p = 1)",
        ),
    ],
)
def test_verdict_needs_a_significant_difference(alexnet, fisher, message):
    """With four differing images the bootstrap interval excludes 0, but McNemar's exact test is not significant."""
    predictions = {"alexnet": predictions_of(alexnet), "fisher": predictions_of(fisher)}
    rows = result_rows({name: ContestantResult(name) for name in predictions}, predictions, {}, ())
    assert verdict(rows) == f"Top-1 test error: {message}"
    other = next(row for row in rows if row.contestant.name == "fisher")
    difference = _error_difference(other.comparison)
    assert difference.startswith(f"{100 * (len(fisher) - len(alexnet)) / 359:+.2f} (") and "-0.0 " not in difference


def test_csv_has_no_spreadsheet_formulas():
    result = ContestantResult("alexnet", diverged="=HYPERLINK(1)")
    (line,) = csv.DictReader(csv_text(result_rows({"alexnet": result}, {}, {}, ())).splitlines())
    assert line["diverged"] == "'=HYPERLINK(1)" and line["name"] == "alexnet"
