"""Uniformity is judged on fixed seeds, so a test that passes once passes always; thresholds are about 5 sigma."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from alexnet.loader.sampler import balanced_order, batches, epoch_order, normals, step_seed, uniforms

SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 10**6)
MASK = 2**64 - 1


@given(st.integers(0, 500), SEEDS, EPOCHS)
def test_an_order_is_a_permutation_and_always_the_same(count, seed, epoch):
    order = epoch_order(count, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, epoch_order(count, seed, epoch))


def test_orders_of_seeds_and_epochs_differ():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def test_every_image_comes_equally_often_at_every_place():
    count, times = 8, 2000
    found = np.zeros((count, count))
    for epoch in range(times):
        found[np.arange(count), epoch_order(count, 7, epoch)] += 1
    statistic = ((found - times / count) ** 2 / (times / count)).sum()
    assert stats.chi2.sf(statistic, (count - 1) ** 2) > 1e-6


@given(st.integers(0, 300), st.integers(1, 70))
def test_batches_hold_every_image_once(count, size):
    order = epoch_order(count, 1, 2)
    made = batches(order, size)
    assert np.array_equal(np.concatenate([*made, np.empty(0, np.int64)]), order)
    assert all(len(batch) == size for batch in made[:-1])
    assert not made or 1 <= len(made[-1]) <= size
    assert len(made) == -(-count // size)


def mix(x: int) -> int:
    """SplitMix64 as printed (Steele, Lea, Flood 2014), in Python's integers."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@given(SEEDS, EPOCHS, st.integers(0, 10**9), st.integers(1, 6))
def test_uniforms_are_splitmix64(seed, epoch, index, draws):
    row = mix((mix((mix(seed) + epoch) & MASK) + index) & MASK)
    expected = [(mix((row + k * 0x9E3779B97F4A7C15) & MASK) >> 11) / 2**53 for k in range(1, draws + 1)]
    assert uniforms(seed, epoch, np.array([index]), draws)[0].tolist() == expected


def test_splitmix64_s_published_numbers():
    """The first outputs of the reference program for the seed 1234567."""
    state, found = 1234567, []
    for _ in range(3):
        found.append(mix(state))
        state = (state + 0x9E3779B97F4A7C15) & MASK
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(SEEDS, EPOCHS, st.lists(st.integers(0, 10**9), min_size=1, max_size=20, unique=True), st.randoms())
def test_a_image_s_numbers_do_not_depend_on_the_others_asked_for(seed, epoch, indices, random):
    alone = {i: uniforms(seed, epoch, np.array([i]), 5)[0].tolist() for i in indices}
    random.shuffle(indices)
    together = uniforms(seed, epoch, np.array(indices), 8)  # nor on how many numbers
    assert [row[:5].tolist() for row in together] == [alone[i] for i in indices]


def test_uniforms_are_uniform():
    numbers = uniforms(3, 4, np.arange(20_000), 10)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for column in numbers.T:
        observed = np.histogram(column, 50, (0, 1))[0]
        assert stats.chisquare(observed).pvalue > 1e-6
        assert stats.kstest(column, "uniform").pvalue > 1e-6


@pytest.mark.parametrize("along", ["indices", "epochs", "seeds", "draws"])
def test_neighbors_are_independent(along):
    n = 20_000
    if along == "indices":
        numbers = uniforms(1, 1, np.arange(n + 1), 1)[:, 0]
    elif along == "epochs":
        numbers = np.array([uniforms(1, e, np.array([5]), 1)[0, 0] for e in range(2001)])
    elif along == "seeds":
        numbers = np.array([uniforms(s, 1, np.array([5]), 1)[0, 0] for s in range(2001)])
    else:
        numbers = uniforms(1, 1, np.array([5]), n + 1)[0]
    a, b = numbers[:-1], numbers[1:]
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(len(a))
    table = np.histogram2d(a, b, 8, ((0, 1), (0, 1)))[0]
    assert stats.chi2_contingency(table).pvalue > 1e-6


def test_columns_are_independent_of_each_other():
    numbers = uniforms(9, 2, np.arange(20_000), 19)
    off = np.corrcoef(numbers.T)[~np.eye(19, dtype=bool)]
    assert np.abs(off).max() < 5 / np.sqrt(20_000)


def test_epochs_and_seeds_are_not_interchangeable():
    a = uniforms(1, 2, np.arange(100), 3)
    assert not (a == uniforms(2, 1, np.arange(100), 3)).any()
    assert not (a == uniforms(1, 3, np.arange(100), 3)).any()
    assert not (a[1:] == uniforms(1, 3, np.arange(99), 3)).any()  # an epoch on is not an index on


def test_normals_are_normal():
    made = normals(uniforms(5, 6, np.arange(20_000), 6))
    assert made.shape == (20_000, 3)
    n = len(made)
    for column in made.T:  # standard errors of the moments: 1, √2, √15, √96 over √n
        for power, moment, error in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            assert abs((column**power).mean() - moment) < 5 * np.sqrt(error / n)
        assert stats.kstest(column, "norm").pvalue > 1e-6
    assert np.abs(np.corrcoef(made.T)[~np.eye(3, dtype=bool)]).max() < 5 / np.sqrt(n)


def test_normals_at_the_ends():
    assert normals(np.array([[0.0, 0.5], [1 - 2**-53, 0.0]]))[:, 0] == pytest.approx([0, np.sqrt(2 * 53 * np.log(2))])


def test_step_seeds_differ():
    seeds = {step_seed(s, t, k) for s in range(5) for t in range(200) for k in range(3)}
    assert len(seeds) == 3000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(3, 4, 1) == mix((mix((mix(3) + 4) & MASK) + 1) & MASK) >> 1


LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=80).map(np.array)


@given(LABELS, SEEDS, EPOCHS)
def test_a_balanced_order_has_each_class_equally_often(labels, seed, epoch):
    places = balanced_order(labels, seed, epoch)
    images, count = places % len(labels), len(labels)
    assert places.dtype == np.int64 and len(places) == count
    each = np.bincount(labels[images], minlength=5)[np.unique(labels)]
    assert each.max() - each.min() <= 1
    assert len(set(places.tolist())) == count  # an image that comes twice has two numbers, so two crops
    for label in np.unique(labels):
        often = np.bincount(images[labels[images] == label], minlength=count)[labels == label]
        assert often.max() - often.min() <= 1
    assert np.array_equal(places, balanced_order(labels, seed, epoch))


def test_balanced_orders_of_seeds_and_epochs_differ_and_reach_every_image():
    labels = np.array([0] * 90 + [1] * 10)
    orders = {tuple(balanced_order(labels, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100
    seen = np.concatenate([balanced_order(labels, 3, epoch) % 100 for epoch in range(12)])
    assert len(set(seen.tolist())) == 100
    assert len(balanced_order(labels[:0], 0, 0)) == 0
