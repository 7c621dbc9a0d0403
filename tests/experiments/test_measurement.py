"""Measurements over seeds: intervals and verdicts against numbers worked by hand and SciPy."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.experiments.runner import (
    Measurement,
    detectable_difference,
    judge,
    overall_verdict,
    t_interval,
)


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


@pytest.mark.parametrize(("seeds", "images"), [(2, 2000), (3, 10_000), (5, 10_000)])
def test_the_detectable_difference_is_found_in_four_of_five_studies(seeds, images):
    """By simulation: seeds and test images give each difference the variance that is assumed."""
    import numpy as np

    difference = detectable_difference(seeds, images)
    deviation = (2 * 0.2**2 + 0.5 * 100**2 / images) ** 0.5
    values = np.random.default_rng(0).normal(difference, deviation, (4000, seeds))
    found = sum(judge(t_interval(row)) == "holds" for row in values.tolist())
    assert found / len(values) == pytest.approx(0.8, abs=0.03)  # 4.7 standard errors
    assert detectable_difference(seeds + 1, images) < difference < detectable_difference(seeds, images // 2)


def test_one_value_has_no_interval():
    assert t_interval([3.0]) is None and t_interval([]) is None
    one = Measurement("x", "", (5.0,))
    assert (one.interval, one.verdict, one.mean) == (None, "inconclusive", 5.0)
    none = Measurement("x", "", ())
    assert (none.interval, none.verdict, none.mean) == (None, "inconclusive", None)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.1, 3.0), "holds"),
        ((-3.0, -0.1), "does not hold"),
        ((-0.1, 3.0), "inconclusive"),
        ((0.0, 3.0), "inconclusive"),
        ((-3.0, 0.0), "inconclusive"),
        (None, "inconclusive"),
    ],
)
def test_the_verdict_is_where_the_interval_lies(interval, verdict):
    assert judge(interval) == verdict


def test_ratios_are_averaged_by_their_logarithm():
    """2 and 8: geometric mean 4; twice and half: nothing."""
    measurement = Measurement("x", "6", (2.0, 8.0), "ratio")
    assert measurement.mean == pytest.approx(4)
    reach = 12.7062 * math.log(2) / 1  # s = ln 2·√2, over √2
    assert measurement.interval == pytest.approx((4 * math.exp(-reach), 4 * math.exp(reach)), rel=1e-3)
    assert Measurement("x", "", (0.5, 2.0), "ratio").mean == pytest.approx(1)
    assert Measurement("x", "", (5.0, 6.0, 7.0), "ratio").verdict == "holds"
    assert Measurement("x", "", (0.2, 0.21, 0.19), "ratio").verdict == "does not hold"


def test_claim_holds_if_all_primary_measurements_do():
    yes, no, maybe = (Measurement("", "", values, primary=True) for values in ((1.0, 1.1), (-1.0, -1.1), (-1.0, 1.0)))
    secondary = Measurement("", "", (-1.0, -1.1))
    assert overall_verdict([yes, secondary]) == "holds"
    assert overall_verdict([yes, maybe]) == "inconclusive"
    assert overall_verdict([yes, maybe, no]) == "does not hold"
    assert overall_verdict([secondary]) == "inconclusive"
    assert yes.to_dict()["verdict"] == "holds" and yes.to_dict()["interval"][0] > 0
