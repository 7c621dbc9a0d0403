"""Sensitivity, specificity, curves and thresholds by cost, against scikit-learn and slow references."""

import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score, roc_curve

from alexnet.errors import RecipeError
from alexnet.evaluation import one_vs_rest as module
from alexnet.evaluation.intervals import resamples, wilson
from alexnet.evaluation.one_vs_rest import GRID, Cost, binary_rates, curves, one_vs_rest, threshold_by_cost


def sample(count=300, share=0.2, seed=0, ties=False):
    """Calibrated scores [N] and labels drawn by them [N]."""
    generator = np.random.default_rng(seed)
    scores = generator.beta(share, 1 - share, count)
    scores = np.round(scores, 1) if ties else scores
    return scores, generator.random(count) < scores


def test_rates_are_those_of_the_confusion_matrix():
    scores, positive = sample()
    rates = binary_rates(scores >= 0.3, positive, threshold=0.3)
    tn, fp, fn, tp = confusion_matrix(positive, scores >= 0.3).ravel()
    assert rates.counts == (tp, fp, fn, tn)
    assert [rates.sensitivity.value, rates.specificity.value] == pytest.approx([tp / (tp + fn), tn / (tn + fp)])
    assert [rates.ppv.value, rates.npv.value] == pytest.approx([tp / (tp + fp), tn / (tn + fn)])
    assert (rates.sensitivity.low, rates.sensitivity.high) == wilson(tp, tp + fn)
    assert (
        binary_rates(np.zeros(5, bool), np.ones(5, bool)).to_dict()["ppv"]["value"] is None
    )  # none is called positive


def test_groups_widen_the_rates():
    scores, positive = sample(60)
    ten = [np.repeat(x, 10) for x in (scores >= 0.2, positive)]
    groups = [f"g{i // 10}" for i in range(600)]
    apart, together = binary_rates(*ten), binary_rates(*ten, groups)
    for name in ("specificity", "npv"):
        one, other = getattr(apart, name), getattr(together, name)
        assert one.value == other.value and other.high - other.low > 1.8 * (one.high - one.low)


@pytest.mark.parametrize("ties", [False, True])
def test_each_resample_has_the_curve_of_scikit_learn(ties):
    scores, positive = sample(120, ties=ties)
    order, ends = module._by_falling_score(scores)
    (weights,) = resamples(120, number=12, seed=3)
    tpr, precision, auc, average = module._on_grid(weights, positive, order, ends)
    for row, weight in enumerate(weights):
        kept = weight > 0
        y, s, w = positive[kept], scores[kept], weight[kept]
        assert auc[row] == pytest.approx(roc_auc_score(y, s, sample_weight=w))
        assert average[row] == pytest.approx(average_precision_score(y, s, sample_weight=w))
        fpr, hits, _ = roc_curve(y, s, sample_weight=w, drop_intermediate=False)
        assert tpr[row] == pytest.approx([hits[fpr <= x + 1e-9].max() for x in GRID])
        for x in range(1, 101, 9):  # the highest threshold that finds enough
            found = next(t for t in -np.unique(-s) if w[y & (s >= t)].sum() >= x / 100 * w[y].sum() - 1e-6)
            called = s >= found
            assert precision[row, x] == pytest.approx(w[called & y].sum() / w[called].sum())


def test_curves_and_their_areas():
    scores, positive = sample()
    found = curves("ill", scores, positive)
    assert found.roc.area.value == pytest.approx(roc_auc_score(positive, scores))
    assert found.precision_recall.area.value == pytest.approx(average_precision_score(positive, scores))
    for curve in (found.roc, found.precision_recall):
        assert curve.area.low < curve.area.value < curve.area.high
        assert len(curve.low) == len(GRID) and all(a <= b for a, b in zip(curve.low, curve.high, strict=True))
    assert found.roc.x[0] == found.roc.y[0] == 0 and found.roc.x[-1] == found.roc.y[-1] == 1
    assert curves("all", scores, np.ones(300, bool)) is None and curves("none", scores, np.zeros(300, bool)) is None


def test_the_band_contains_the_true_sensitivity():
    """Scores N(0, 1) and N(1.5, 1): the sensitivity at a false positive rate of 0.1 and 0.3 is known."""
    from scipy.stats import norm

    inside = np.zeros(2)
    for seed in range(60):
        generator = np.random.default_rng(seed)
        positive = np.arange(300) < 120
        found = curves("x", generator.normal(1.5 * positive, 1), positive, number=100, seed=seed).roc
        for i, place in enumerate((10, 30)):
            truth = norm.cdf(norm.ppf(GRID[place]) + 1.5)
            inside[i] += found.low[place] <= truth <= found.high[place]
    assert (inside / 60 > 0.85).all(), inside


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("text", ["FP=1,FN=20", "FN=1,FP=3", "FP=2.5, FN=2.5"])
def test_the_threshold_has_the_lowest_cost(text, ties):
    cost = Cost.parse(text)
    for seed in range(10):
        scores, positive = sample(80, seed=seed, ties=ties)
        found = threshold_by_cost(scores, positive, cost)
        every = np.concatenate([np.linspace(0, 1, 2001), [1.1]])
        costs = [cost.of(scores >= t, positive).mean() for t in every]
        assert cost.of(scores >= found, positive).mean() == pytest.approx(min(costs))
        assert 0 <= found <= 1.001


def test_with_many_images_it_is_the_threshold_of_calibrated_scores():
    cost = Cost(1, 20)
    assert threshold_by_cost(*sample(200_000), cost) == pytest.approx(cost.bayes_threshold, abs=0.02)
    with_none = threshold_by_cost(np.full(10, 0.9), np.zeros(10, bool), cost)  # no positive image: none is called so
    assert with_none > 0.9


def test_expected_cost_and_its_interval():
    below = beta(1.2, 0.8).cdf(0.05)  # E[s; s < t] / E[s]
    above = beta(0.2, 1.8).sf(0.05)  # E[1 − s; s ≥ t] / E[1 − s]
    truth, inside = 20 * 0.2 * below + 0.8 * above, 0
    for seed in range(400):
        scores, positive = sample(200, seed=seed)
        found = Cost(1, 20).expected(scores >= 0.05, positive)
        inside += found.low <= truth <= found.high
    assert 0.93 <= inside / 400 <= 0.985
    assert Cost(1, 20).expected(np.array([False]), np.array([True])).value == 20


def test_all_of_one_class():
    generator = np.random.default_rng(0)
    rows = generator.dirichlet([1, 1, 2], 400)
    labels = np.array([generator.choice(3, p=row) for row in rows])
    found = one_vs_rest("c", 2, rows[:200], labels[:200], cost=Cost(1, 5), validation=(rows[200:], labels[200:]))
    assert found.top1.counts[0] == ((rows[:200].argmax(1) == 2) & (labels[:200] == 2)).sum()
    by_cost = found.by_cost
    assert by_cost.chosen_on == ("validation", 200)
    threshold = threshold_by_cost(rows[200:, 2], labels[200:] == 2, Cost(1, 5))  # not by the reported images
    assert by_cost.threshold == by_cost.rates.threshold == threshold
    others = dict(by_cost.others)
    assert others["none positive"].value == pytest.approx(5 * (labels[:200] == 2).mean())
    assert others["all positive"].value == pytest.approx((labels[:200] != 2).mean())
    assert by_cost.expected.value == pytest.approx(by_cost.rates.counts[1] / 200 + 5 * by_cost.rates.counts[2] / 200)
    plain = found.to_dict()
    assert plain["positive"] == "c" and plain["by_cost"]["cost"] == {"false_positive": 1, "false_negative": 5}
    assert one_vs_rest("c", 2, rows, labels).by_cost is None


@pytest.mark.parametrize(
    "text", ["", "1,20", "FP=1", "FP=1,FN=x", "FP=1,FN=2,TP=0", "FP=1,FP=2", "FP=0,FN=1", "FP=-1,FN=1"]
)
def test_costs_that_can_not_be(text):
    with pytest.raises(RecipeError, match="--cost is"):
        Cost.parse(text)
