"""What goes is what is smallest; shares are where a byte buys the same everywhere; sizes as foreseen."""

import math

import numpy as np
import pytest
import torch

from alexnet.compression.pruning import GRID, Curve, allocate, estimate, gone, gradual, threshold


def test_the_smallest_go():
    weights = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    for share in (0.001, 0.1, 0.5, 1.0):
        dead = gone(weights, share)
        assert int((~dead).sum()) == max(1, round(share * 2000))
        if dead.any():
            assert weights.abs()[dead].max() < weights.abs()[~dead].min()
    assert threshold(weights, 1e-9) == float(weights.abs().max())


def test_what_is_zero_stays_so_and_equal_ones_stay_together():
    weights = torch.tensor([0.0, 1.0, -1.0, 0.0, 1.0, 0.5])
    assert gone(weights, 1.0).tolist() == [True, False, False, True, False, False]
    assert gone(weights, 1 / 6).tolist() == [True, False, False, True, False, True]
    assert gone(torch.zeros(4), 0.5).all()


def test_gradual_cutting_is_the_published_cubic():
    """Zhu and Gupta 2017, (1): sparsity s_t = s_f + (s_i − s_f)(1 − t)³."""
    for t in np.linspace(0, 1, 11):
        sparsity = 0.95 + (0.1 - 0.95) * (1 - t) ** 3
        assert gradual(t, 0.9, 0.05) == pytest.approx(1 - sparsity)
    assert gradual(-1, 1, 0.1) == 1
    assert gradual(7, 1, 0.1) == pytest.approx(0.1)


CURVE = Curve(1000, 5, 1.0, {0.5: 1.1, 0.25: 1.05, 0.1: 2.0})


def test_a_curve_between_what_was_measured():
    assert CURVE.rise(1.0) == 0
    assert CURVE.rise(0.5) == pytest.approx(0.1)
    assert CURVE.rise(math.sqrt(0.5)) == pytest.approx(0.05)  # halfway, by the logarithm
    assert CURVE.rise(0.3) == pytest.approx(0.1)  # noise at 0.25: a curve does not fall
    assert CURVE.rise(math.sqrt(0.25 * 0.1)) == pytest.approx(0.1 + 0.5 * 0.9)
    assert CURVE.rise(0.09) == math.inf


def test_allocation_is_the_best_there_is():
    """Against every pair of shares of the grid: none that fits costs less loss."""
    curves = {
        "a": Curve(5000, 8, 1.0, {0.5: 1.02, 0.1: 1.4, 0.02: 3.0}),
        "b": Curve(50_000, 5, 1.0, {0.5: 1.001, 0.1: 1.01, 0.02: 1.2}),
    }
    for budget in (20_000, 9000, 4000):
        found = allocate(curves, budget)
        assert estimate(curves, found) <= budget
        cost = sum(curve.rise(found[name]) for name, curve in curves.items())
        least = min(
            curves["a"].rise(x) + curves["b"].rise(y)
            for x in GRID
            for y in GRID
            if estimate(curves, {"a": x, "b": y}) <= estimate(curves, found)
        )
        assert cost == pytest.approx(least, abs=1e-9)


def test_beyond_the_curves_all_are_cut_alike():
    curves = {"a": CURVE, "b": CURVE}
    found = allocate(curves, 40)
    assert estimate(curves, found) <= 40
    assert found["a"] == found["b"] < 0.1
