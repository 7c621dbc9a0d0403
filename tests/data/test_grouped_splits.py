"""No group is in two splits; shares are near; every class can be learned."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet.data.sources.source import Sample, Source
from alexnet.data.splits import assign_splits, cut_groups
from alexnet.errors import DataError

SIZES = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 2)), min_size=6, max_size=40)


def images(sizes):
    """Groups of so many images; a group's main class, with every fifth image of the next one."""
    return tuple(
        Sample((label + (index % 5 == 4)) % 3, f"{group}-{index}", bytes, f"g{group}")
        for group, (count, label) in enumerate(sizes)
        for index in range(count)
    )


@settings(max_examples=100)
@given(SIZES, st.floats(0.05, 0.5), st.integers(0, 2**32))
def test_groups_stay_whole_and_shares_are_near(sizes, fraction, seed):
    every = images(sizes)
    try:
        left, cut = cut_groups(every, 3, fraction, [seed])
    except DataError as error:
        assert "can be kept apart" in str(error)
        return
    assert sorted(p.origin for p in (*left, *cut)) == sorted(p.origin for p in every)
    assert not {p.group for p in left} & {p.group for p in cut}
    for label in {p.label for p in every}:
        assert any(p.label == label for p in left)
    assert len(cut) <= fraction * len(every) + 3 * 12


def test_many_small_groups_come_near_the_share():
    every = images([(4, k % 3) for k in range(150)])
    splits = assign_splits(Source("s", ("a", "b", "c"), {"all": every}, "f"), validation=0.1, test=0.2, seed=3)
    assert abs(len(splits["test"]) - 120) <= 12 and abs(len(splits["validation"]) - 48) <= 12
    for name in ("validation", "test"):
        assert np.bincount([p.label for p in splits[name]]).min() > 0.7 * len(splits[name]) / 3
    groups = [{p.group for p in own} for own in splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
    again = assign_splits(Source("s", ("a", "b", "c"), {"all": every[::-1]}, "f"), validation=0.1, test=0.2, seed=3)
    assert again == splits, "the order of files does not matter"
    assert assign_splits(Source("s", ("a", "b", "c"), {"all": every}, "f"), validation=0.1, test=0.2, seed=4) != splits


def test_validation_is_cut_by_group_where_the_test_is_given():
    train = images([(4, k % 3) for k in range(60)])
    test = tuple(Sample(k % 3, f"t{k}", bytes) for k in range(9))
    splits = assign_splits(
        Source("s", ("a", "b", "c"), {"train": train, "test": test}, "f"), validation=0.2, test=0, seed=0
    )
    assert splits["test"] == test and splits["validation"]
    assert not {p.group for p in splits["train"]} & {p.group for p in splits["validation"]}


def test_one_group_can_not_be_split():
    every = tuple(Sample(k % 2, f"{k}", bytes, "same") for k in range(20))
    with pytest.raises(DataError, match=r"no group of 1 can be kept apart: too large.*several groups in each class"):
        assign_splits(Source("s", ("a", "b"), {"all": every}, "f"), validation=0.1, test=0.2, seed=0)
