"""Shares of a contest's time budget: the arithmetic by hand; and epochs of networks with known speed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.experiments.contest.plan import FINAL_FRACTION
from alexnet.experiments.contest.train import next_share


def test_shares_are_equal_until_a_contestant_takes_too_long():
    equal = 940 / 4
    assert next_share(1000, 0, 4, equal) == equal
    assert next_share(1000, 100, 3, equal) == equal  # the first was faster: the others gain nothing
    assert next_share(1000, 440, 3, equal) == pytest.approx(500 / 3)
    assert next_share(1000, 2000, 2, equal) == 0.0


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8), st.floats(100, 1e5))
def test_shares_never_exceed_the_budget(fractions, budget):
    elapsed, equal = 0.0, budget * (1 - FINAL_FRACTION) / len(fractions)
    for number, fraction in enumerate(fractions):
        elapsed += fraction * next_share(budget, elapsed, len(fractions) - number, equal)
    assert elapsed <= budget * (1 - FINAL_FRACTION) * (1 + 1e-9)
