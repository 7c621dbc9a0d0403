"""The color of filters, filter by filter in plain loops; what chance does to it."""

import numpy as np
import pytest

from alexnet.explain.units import UNTRAINED, specialization


def slow_color(filters: np.ndarray) -> float:
    """Energy along directions that a gray image does not have: two axes at right angles to (1, 1, 1)."""
    axes = [np.array([1, -1, 0]) / np.sqrt(2), np.array([1, 1, -2]) / np.sqrt(6)]
    color = total = 0.0
    for one in filters:
        for y in range(one.shape[1]):
            for x in range(one.shape[2]):
                color += sum(float(one[:, y, x] @ axis) ** 2 for axis in axes)
                total += float(one[:, y, x] @ one[:, y, x])
    return color / total


def drawn(count: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 5, 5))


def test_the_color_of_filters_and_towers_is_that_of_a_loop():
    weights = drawn() * np.arange(1, 9)[:, None, None, None]
    found = specialization(weights, 2)
    assert found.filters == pytest.approx([slow_color(weights[k : k + 1]) for k in range(8)])
    assert found.towers == pytest.approx([slow_color(weights[:4]), slow_color(weights[4:])])
    assert found.difference == pytest.approx(abs(found.towers[0] - found.towers[1]))


def test_gray_filters_have_none_and_colored_ones_have_all():
    gray = np.repeat(drawn(4)[:, :1], 3, axis=1)
    colored = drawn(4) - drawn(4).mean(1, keepdims=True)
    found = specialization(np.concatenate([gray, colored]), 2)
    assert found.towers == pytest.approx([0, 1], abs=1e-12) and found.colored == (0, 4)
    assert found.difference == pytest.approx(1) and found.by_chance < 0.05  # 2 of the 70 divisions do as well


def test_untrained_weights_have_two_thirds_and_no_specialization():
    chances = []
    for seed in range(20):
        found = specialization(drawn(96, seed), 2)
        assert found.towers == pytest.approx([UNTRAINED] * 2, abs=0.03)
        chances.append(found.by_chance)
    assert 0.2 < np.mean(chances) < 0.8 and min(chances) > 0.001
    assert found.to_dict()["untrained"] == UNTRAINED and found.to_dict()["filters"] == list(found.filters)


def test_gray_networks_dead_filters_and_uneven_towers_have_none():
    assert specialization(drawn()[:, :1], 1) is None
    assert specialization(drawn(7), 2) is None
    assert specialization(np.zeros((4, 3, 2, 2)), 2) is None
    assert specialization(np.full((4, 3, 2, 2), np.nan), 2) is None
    assert specialization(drawn(), 1).difference == 0
