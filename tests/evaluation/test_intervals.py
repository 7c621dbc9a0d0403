"""Intervals against simulations whose truth is known, and against plain resampling written out."""

import numpy as np
import pytest

from alexnet.evaluation.intervals import (
    Estimate,
    bootstrap,
    estimate,
    f1_estimate,
    percentile_interval,
    proportion_ci,
    resamples,
    wilson,
)


def covered(draw, statistic, truth, times, number):
    """How often the interval of a draw holds the truth. ``draw(generator)`` -> (values, groups)."""
    generator, hits = np.random.default_rng(5), 0
    for time in range(times):
        values, groups = draw(generator)
        low, high = percentile_interval(
            bootstrap(lambda w, v=values: statistic(w, v), len(values), groups, number=number, seed=time)
        )
        hits += low <= truth <= high
    return hits / times


def mean(weights, values):
    return (weights @ values) / weights.sum(1)


def test_of_a_hundred_intervals_ninety_five_hold_the_truth():
    found = covered(lambda g: ((g.random(300) < 0.8).astype(np.float64), ()), mean, 0.8, times=600, number=250)
    assert 0.93 <= found <= 0.97


def patients(generator):
    """40 patients with 5 to 15 images each, all images of one alike."""
    sizes = generator.integers(5, 16, 40)
    good = np.repeat(generator.random(40) < 0.7, sizes).astype(np.float64)
    return good, tuple(np.repeat([f"p{i}" for i in range(40)], sizes))


def test_groups_are_resampled_whole():
    assert 0.91 <= covered(patients, mean, 0.7, times=300, number=250) <= 0.97
    # The control: as if ten images of one patient were ten witnesses.
    assert covered(lambda g: (patients(g)[0], ()), mean, 0.7, times=100, number=250) < 0.6


@pytest.mark.parametrize(("count", "truth"), [(8, 0.9), (15, 0.8), (30, 0.97), (100, 0.9)])
def test_shares_of_few_images_are_covered_too(count, truth):
    generator, hits = np.random.default_rng(1), 0
    cache = {}
    for _ in range(1500):
        good = int((generator.random(count) < truth).sum())
        if good not in cache:
            cache[good] = proportion_ci(np.arange(count) < good)
        hits += cache[good].low <= truth <= cache[good].high
    assert hits / 1500 >= 0.925  # a share of few images takes few values: it cannot be 95 % everywhere


def test_nothing_is_ever_certain():
    for perfect in (np.ones(500, bool), np.zeros(500, bool)):
        found = proportion_ci(perfect)
        assert [found.low, found.high] == pytest.approx(wilson(int(perfect.sum()), 500))
        assert found.high > found.low
    few = proportion_ci(np.array([True] * 9 + [False]))
    assert (few.low, few.high) == wilson(9, 10)


def test_a_share_is_a_share():
    found = proportion_ci(np.arange(200) < 150, seed=3)
    assert (found.value, found.count) == (0.75, 200)
    assert found.low == pytest.approx(0.75 - 1.96 * np.sqrt(0.75 * 0.25 / 200), abs=0.01)
    assert found.high == pytest.approx(0.75 + 1.96 * np.sqrt(0.75 * 0.25 / 200), abs=0.01)
    assert np.isnan(proportion_ci(np.zeros(0, bool)).value)
    assert Estimate(float("nan"), float("nan"), float("nan")).to_dict() == {
        "value": None,
        "interval": [None, None],
        "count": 0,
    }


def test_resamples_are_those_of_the_seed_and_hold_as_many_images():
    found = np.concatenate(list(resamples(7, number=500, seed=1)))
    assert found.shape == (500, 7)
    assert (found.sum(1) == 7).all()
    assert found.mean(0) == pytest.approx(np.ones(7), abs=0.2)
    assert np.array_equal(found, np.concatenate(list(resamples(7, number=500, seed=1))))
    assert not np.array_equal(found, np.concatenate(list(resamples(7, number=500, seed=2))))


def test_resamples_of_groups_count_all_of_a_group_alike():
    groups = ("a", "b", "a", "c", "b", "b")
    for weights in np.concatenate(list(resamples(6, groups, number=50))):
        assert weights[0] == weights[2] and weights[1] == weights[4] == weights[5]
        assert weights[0] + weights[1] + weights[3] == 3


def test_chunks_change_nothing(monkeypatch):
    whole = np.concatenate(list(resamples(11, number=40, seed=9)))
    monkeypatch.setattr("alexnet.evaluation.intervals._CHUNK", 30)
    assert np.array_equal(whole, np.concatenate(list(resamples(11, number=40, seed=9))))


def test_resamples_without_a_number_are_left_out():
    values = np.array([[0.1, np.nan], [0.3, np.nan], [np.nan, np.nan]])
    low, high = percentile_interval(values)
    assert low[0] == pytest.approx(0.105) and high[0] == pytest.approx(0.295)
    assert np.isnan(low[1]) and np.isnan(high[1])


def test_an_estimate_lies_in_its_interval():
    found = estimate(0.5, np.linspace(0.6, 0.9, 100), 100)
    assert found.low <= found.value <= found.high
    perfect = f1_estimate(1.0, np.ones(100), 60)
    low = wilson(60, 60)[0]
    assert [perfect.low, perfect.high] == pytest.approx([2 * low / (1 + low), 1.0])
    assert f1_estimate(0.8, np.linspace(0.7, 0.9, 100), 60) == estimate(0.8, np.linspace(0.7, 0.9, 100), 60)
