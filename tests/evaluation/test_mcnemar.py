import math

import numpy as np
import pytest

from alexnet.evaluation.intervals import compare, mcnemar


@pytest.mark.parametrize(("a", "b"), [(0, 0), (0, 1), (5, 5), (3, 12), (40, 20), (0, 10)])
def test_the_exact_test_is_a_sum_of_coins(a, b):
    n = a + b
    tail = sum(math.comb(n, k) for k in range(min(a, b) + 1)) / 2**n
    assert mcnemar(a, b) == pytest.approx(min(1, 2 * tail))
    assert mcnemar(a, b) == mcnemar(b, a)


def test_what_is_counted():
    first = np.array([True] * 60 + [False] * 40)
    second = np.array([True] * 50 + [False] * 10 + [True] * 25 + [False] * 15)
    found = compare(first, second)
    assert (found.both, found.only_old, found.only_new, found.neither) == (50, 10, 25, 15)
    assert (found.old.value, found.new.value) == (0.6, 0.75)
    assert found.difference.value == pytest.approx(0.15)
    spread = 1.96 * np.sqrt((35 / 100 - 0.15**2) / 100)
    assert [found.difference.low, found.difference.high] == pytest.approx([0.15 - spread, 0.15 + spread], abs=0.025)
    assert found.p_value == mcnemar(10, 25)
    assert found.to_dict()["groups"] == 0


def test_luck_is_called_luck_in_95_of_100():
    generator, called = np.random.default_rng(0), 0
    for _ in range(1000):
        a, b = generator.random((2, 200)) < 0.8
        called += mcnemar(int((a & ~b).sum()), int((b & ~a).sum())) < 0.05
    assert 0.015 < called / 1000 <= 0.05  # exact tests on integers are a little careful


def test_groups_widen_the_difference():
    first, second = np.random.default_rng(1).random((2, 50)) < 0.7
    groups = tuple(f"g{i // 10}" for i in range(500))
    wide, narrow = (compare(np.repeat(first, 10), np.repeat(second, 10), g) for g in (groups, ()))
    assert wide.difference.high - wide.difference.low > 2 * (narrow.difference.high - narrow.difference.low)
    assert wide.groups == 50
