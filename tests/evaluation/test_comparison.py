"""Non-inferiority and equivalence: against slow references, and how often they err in simulations with known truth."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm, t

from alexnet.evaluation.comparison import (
    compare_subsets,
    difference_interval,
    equivalence,
    holm,
    standardized,
    tango,
)
from alexnet.evaluation.intervals import mcnemar


def answers(both, only_new, only_old, neither):
    """Which images the old and the new classifier have right."""
    old = [True] * both + [False] * only_new + [True] * only_old + [False] * neither
    new = [True] * both + [True] * only_new + [False] * only_old + [False] * neither
    return np.array(old), np.array(new)


def slow_tango(count, only_new, only_old, shift):
    """The score statistic with the nuisance parameter found by maximizing the likelihood."""

    def loss(alone):  # probability that the old one alone is right
        cells = ((only_new, alone + shift), (only_old, alone), (count - only_new - only_old, 1 - 2 * alone - shift))
        return -sum(n * math.log(max(p, 1e-300)) for n, p in cells if n)

    low, high = max(0.0, -shift), (1 - shift) / 2
    alone = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (only_new - only_old - count * shift) / math.sqrt(count * (2 * alone + shift - shift**2))


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 3), (12, 5), (5, 12), (0, 9), (40, 60)])
@pytest.mark.parametrize("shift", [-0.3, -0.02, 0.01, 0.2])
def test_tangos_statistic(b, c, shift):
    assert tango(200, b, c, shift) == pytest.approx(slow_tango(200, b, c, shift), rel=1e-4, abs=1e-4)
    assert tango(200, b, c, shift) == pytest.approx(-tango(200, c, b, -shift))


def test_without_a_shift_it_is_mcnemars():
    assert tango(300, 30, 12, 0.0) == pytest.approx((30 - 12) / math.sqrt(30 + 12))
    assert tango(300, 0, 0, 0.0) == 0


def test_an_interval_is_what_its_test_does_not_reject():
    for cells in ((150, 12, 20, 18), (200, 0, 0, 0), (50, 30, 0, 20), (0, 40, 0, 0)):
        pair = answers(*cells)
        low, high = difference_interval(*pair, level=0.9)
        assert -1 <= low <= (cells[1] - cells[2]) / sum(cells) <= high <= 1
        for end in (low, high):
            if abs(end) < 1:
                assert abs(standardized(*pair, end).value) == pytest.approx(norm.ppf(0.95), abs=1e-3)
    groups = [f"g{i % 30}" for i in range(200)]
    pair = answers(150, 12, 20, 18)
    low, high = difference_interval(*pair, groups)
    assert low < -0.04 < high
    for end in (low, high):
        found = standardized(*pair, end, groups)
        assert t(found.freedom).cdf(found.value) == pytest.approx(0.975 if end == low else 0.025)


@pytest.mark.parametrize(
    ("cells", "noninferior", "equivalent"),
    [((900, 20, 20, 60), True, True), ((900, 60, 10, 30), True, False), ((900, 10, 60, 30), False, False)],
)
def test_what_is_shown(cells, noninferior, equivalent):
    found = equivalence(*answers(*cells), 0.015)
    assert (found.noninferior, found.equivalent) == (noninferior, equivalent)
    assert found.noninferior == (found.low > -0.015) and found.equivalent == (-0.015 < found.low <= found.high < 0.015)
    assert found.to_dict()["p_noninferior"] == found.p_noninferior


def test_a_worse_classifier_passes_in_five_of_a_hundred():
    """The new classifier is worse by exactly the margin."""
    generator, margin, count = np.random.default_rng(0), 0.02, 500
    for only_new in (0.01, 0.05):
        cells = generator.multinomial(count, [0.8, only_new, only_new + margin, 0.18 - 2 * only_new], 4000)
        passed = np.mean([norm.sf(tango(count, b, c, -margin)) < 0.05 for _, b, c, _ in cells])
        assert 0.03 < passed < 0.062, (only_new, passed)


def test_groups_count_and_not_their_images():
    """The same, with whole groups gained and lost: over images a worse classifier would pass far too often."""
    generator, passed = np.random.default_rng(1), np.zeros(2)
    for _ in range(400):
        kinds = generator.choice(4, 80, p=[0.7, 0.08, 0.13, 0.09])
        sizes = generator.integers(2, 12, 80)
        old, new = (np.repeat(np.isin(kinds, right), sizes) for right in ((0, 2), (0, 1)))
        groups = [f"g{i}" for i in np.repeat(np.arange(80), sizes)]
        together, apart = standardized(old, new, -0.05, groups), standardized(old, new, -0.05)
        passed += [t(together.freedom).sf(together.value) < 0.05, norm.sf(apart.value) < 0.05]
    together, apart = passed / 400
    assert together < 0.085 < 0.12 < apart, passed


def test_groups_without_a_difference():
    old = np.ones(90, bool)
    groups = [f"g{i // 3}" for i in range(90)]
    found = equivalence(old, old, 0.05, groups)
    assert found.p_noninferior == pytest.approx(norm.sf(tango(30, 0, 0, -0.05)))  # 30 groups, not 90 images


def test_holms_method_is_closed_testing():
    generator = np.random.default_rng(2)
    for _ in range(20):
        p = generator.random(5) ** 3
        sets = [s for size in range(1, 6) for s in itertools.combinations(range(5), size)]
        expected = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(5)]
        assert holm(p.tolist()) == pytest.approx(expected)
    assert holm([]) == []


def test_subsets_are_compared_with_a_correction():
    names, old, new = [], [], []
    for name, cells in (("a", (80, 1, 1, 0)), ("b", (60, 0, 14, 6)), ("c", (40, 3, 8, 4))):
        pair = answers(*cells)
        names += [name] * len(pair[0])
        old, new = [*old, *pair[0]], [*new, *pair[1]]
    found = {one.name: one for one in compare_subsets(np.array(old), np.array(new), names, 0.08)}
    assert found["b"].p_value == pytest.approx(3 * mcnemar(14, 0)) and found["b"].verdict == "worse"
    assert found["c"].p_value == pytest.approx(min(1, 2 * mcnemar(8, 3))) and found["c"].verdict == "inconclusive"
    assert found["a"].verdict == "not worse"
    worse = equivalence(*answers(80, 1, 1, 0), 0.08)
    assert found["a"].p_noninferior == pytest.approx(3 * worse.p_noninferior)
    one = found["b"]
    assert (one.images, one.old.value, one.new.value) == (80, 74 / 80, 60 / 80)
    assert one.difference.value == pytest.approx(-14 / 80) and one.difference.low < -14 / 80 < one.difference.high < 0
    assert found["a"].to_dict()["verdict"] == "not worse"
    without = compare_subsets(np.array(old), np.array(new), names)
    assert without[0].p_noninferior is None and without[0].verdict == "inconclusive"
    grouped = compare_subsets(np.array(old), np.array(new), names, 0.05, [f"g{i // 8}" for i in range(len(old))])
    assert grouped[1].p_value > one.p_value  # ten groups say less than eighty images


def test_by_chance_alone_a_class_is_called_different_in_five_of_a_hundred_comparisons():
    generator, called = np.random.default_rng(3), 0
    names = [str(i % 10) for i in range(500)]
    for _ in range(60):
        old, new = generator.random((2, 500)) < 0.8
        p = [mcnemar(int((old & ~new)[k::10].sum()), int((new & ~old)[k::10].sum())) for k in range(10)]
        called += min(holm(p)) < 0.05
    assert called / 60 <= 0.1
    assert len(compare_subsets(old, new, names)) == 10
