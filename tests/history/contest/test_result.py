"""Verdicts on made-up answers."""

import numpy as np
import pytest

from alexnet.history.contest import result
from alexnet.history.contest.answers import Answers
from alexnet.history.contest.entry import Entry


def answered(wrong: range) -> Answers:
    """359 pictures of ten classes, those in ``wrong`` guessed wrong."""
    labels = np.arange(359) % 10
    guesses = np.where(np.isin(np.arange(359), wrong), (labels + 1) % 10, labels)
    return Answers(np.eye(10, dtype=np.float32)[guesses], labels)


@pytest.mark.parametrize(
    ("alexnet", "fisher", "said"),
    [
        (range(6), range(2), "AlexNet 1.7 %, Fisher vectors 0.6 %: cannot tell which is better (p = 0.12)"),
        (range(30), range(2), "AlexNet 8.4 %, Fisher vectors 0.6 %: the runner-up is better (p = 7.5e-09)"),
        (range(2), range(30), "AlexNet 0.6 %, Fisher vectors 8.4 %: AlexNet is better (p = 7.5e-09)"),
        (range(6), range(6), "AlexNet 1.7 %, Fisher vectors 1.7 %: cannot tell which is better (p = 1)"),
    ],
)
def test_a_verdict_needs_more_than_a_few_pictures(alexnet, fisher, said):
    """Four pictures that only one has right: the bootstrap would be sure, McNemar's exact test is not."""
    answers = {"alexnet": answered(alexnet), "fisher": answered(fisher)}
    rows = result.rows({name: Entry(name) for name in answers}, answers, {}, ())
    assert result.verdict(rows) == f"Top-1 test error: {said}"
    other = next(row for row in rows if row.entrant.name == "fisher")
    difference = result._difference(other.against)
    assert difference.startswith(f"{100 * (len(fisher) - len(alexnet)) / 359:+.2f} (") and "-0.0 " not in difference
