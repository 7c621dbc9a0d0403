"""Verdicts on made-up answers."""

import numpy as np
import pytest

from alexnet.experiments.contest import run
from alexnet.experiments.contest.entry import Answers, Entry


def answered(wrong: range) -> Answers:
    """359 images of ten classes, those in ``wrong`` guessed wrong."""
    labels = np.arange(359) % 10
    predictions = np.where(np.isin(np.arange(359), wrong), (labels + 1) % 10, labels)
    return Answers(np.eye(10, dtype=np.float32)[predictions], labels)


@pytest.mark.parametrize(
    ("alexnet", "fisher", "said"),
    [
        (range(6), range(2), "AlexNet 1.7 %, Fisher vectors 0.6 %: cannot tell which is better (p = 0.12)"),
        (range(30), range(2), "AlexNet 8.4 %, Fisher vectors 0.6 %: the runner-up is better (p = 7.5e-09)"),
        (range(2), range(30), "AlexNet 0.6 %, Fisher vectors 8.4 %: AlexNet is better (p = 7.5e-09)"),
        (range(6), range(6), "AlexNet 1.7 %, Fisher vectors 1.7 %: cannot tell which is better (p = 1)"),
    ],
)
def test_a_verdict_needs_more_than_a_few_images(alexnet, fisher, said):
    """Four images that only one has right: the bootstrap would be sure, McNemar's exact test is not."""
    predictions = {"alexnet": answered(alexnet), "fisher": answered(fisher)}
    rows = run.result_rows({name: Entry(name) for name in predictions}, predictions, {}, ())
    assert run.result_verdict(rows) == f"Top-1 test error: {said}"
    other = next(row for row in rows if row.contestant.name == "fisher")
    difference = run._difference(other.against)
    assert difference.startswith(f"{100 * (len(fisher) - len(alexnet)) / 359:+.2f} (") and "-0.0 " not in difference
