"""Intervals and verdicts against hand-worked numbers and SciPy."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.experiments.runner import Finding, judge, overall, t_interval


def test_an_interval_by_hand():
    """1, 2, 3: mean 2, s = 1, t(2 degrees, 97.5 %) = 4.3027 from the tables, so 2 ± 4.3027 / √3."""
    low, high = t_interval([1, 2, 3])
    assert (low, high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12).filter(lambda v: max(v) - min(v) > 1e-3))
def test_intervals_are_scipys(values):
    import numpy as np
    from scipy import stats

    expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert t_interval(values) == pytest.approx(tuple(expected), rel=1e-9, abs=1e-9)


def test_one_value_has_no_interval():
    assert t_interval([3.0]) is None and t_interval([]) is None
    one = Finding("x", "", (5.0,))
    assert (one.interval, one.verdict, one.mean) == (None, "cannot tell", 5.0)
    none = Finding("x", "", ())
    assert (none.interval, none.verdict, none.mean) == (None, "cannot tell", None)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.1, 3.0), "holds"),
        ((-3.0, -0.1), "does not hold"),
        ((-0.1, 3.0), "cannot tell"),
        ((0.0, 3.0), "cannot tell"),
        ((-3.0, 0.0), "cannot tell"),
        (None, "cannot tell"),
    ],
)
def test_the_verdict_is_where_the_interval_lies(interval, verdict):
    assert judge(interval) == verdict


def test_ratios_are_eval_model_by_their_logarithm():
    """2 and 8: geometric mean 4; twice and half: nothing."""
    found = Finding("x", "6", (2.0, 8.0), "ratio")
    assert found.mean == pytest.approx(4)
    reach = 12.7062 * math.log(2) / 1  # s = ln 2·√2, over √2
    assert found.interval == pytest.approx((4 * math.exp(-reach), 4 * math.exp(reach)), rel=1e-3)
    assert Finding("x", "", (0.5, 2.0), "ratio").mean == pytest.approx(1)
    assert Finding("x", "", (5.0, 6.0, 7.0), "ratio").verdict == "holds"
    assert Finding("x", "", (0.2, 0.21, 0.19), "ratio").verdict == "does not hold"


def test_a_claim_holds_if_all_that_decides_it_does():
    yes, no, maybe = (Finding("", "", values, primary=True) for values in ((1.0, 1.1), (-1.0, -1.1), (-1.0, 1.0)))
    auxiliary_head = Finding("", "", (-1.0, -1.1))
    assert overall([yes, auxiliary_head]) == "holds"
    assert overall([yes, maybe]) == "cannot tell"
    assert overall([yes, maybe, no]) == "does not hold"
    assert overall([auxiliary_head]) == "cannot tell"
    assert yes.to_dict()["verdict"] == "holds" and yes.to_dict()["interval"][0] > 0
