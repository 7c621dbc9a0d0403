"""Disjoint, complete, stratified, and the same whatever the order of the files."""

import random
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet.data.sources.source import Sample, Source
from alexnet.data.splits import all_as_test, assign_splits
from alexnet.errors import DataError


def images(counts: list[int], prefix: str = "") -> tuple[Sample, ...]:
    return tuple(
        Sample(label, f"{prefix}{label}/{index:04d}", bytes) for label, n in enumerate(counts) for index in range(n)
    )


def source(counts: list[int], **splits) -> Source:
    return Source("set", tuple(f"class{k}" for k in range(len(counts))), splits or {"all": images(counts)}, "f")


def origins(split):
    return [image.origin for image in split]


FRACTION = st.floats(0, 0.95)
COUNTS = st.lists(st.integers(1, 40), min_size=2, max_size=6)


@settings(max_examples=150, deadline=None)
@given(COUNTS, FRACTION, FRACTION, st.integers(0, 2**40))
def test_disjoint_complete_and_stratified_within_one(counts, validation, test, seed):
    every = source(counts)
    splits = assign_splits(every, validation=validation, test=test, seed=seed)
    assert list(splits) == ["train", "validation", "test"]
    assert sorted(origins(chain(*splits.values()))) == sorted(origins(every.splits["all"]))
    per_class = {k: np.bincount([p.label for p in v], minlength=len(counts)) for k, v in splits.items()}
    left = np.array(counts) - per_class["test"]
    for of, name, fraction in ((np.array(counts), "test", test), (left, "validation", validation)):
        assert (np.abs(per_class[name] - of * fraction) <= 1).all()
        if fraction > 0:
            assert (per_class[name][of >= 3] >= 1).all()
        else:
            assert per_class[name].sum() == 0
    assert (per_class["train"] >= 1).all()


@settings(max_examples=30, deadline=None)
@given(COUNTS, st.integers(0, 1000), st.randoms())
def test_the_order_of_files_does_not_matter(counts, seed, order):
    listed = list(images(counts))
    order.shuffle(listed)
    mixed = assign_splits(source(counts, all=tuple(listed)), validation=0.2, test=0.2, seed=seed)
    assert mixed == assign_splits(source(counts), validation=0.2, test=0.2, seed=seed)
    assert all(origins(split) == sorted(origins(split)) for split in mixed.values())


def test_the_seed_matters_and_the_total_is_nearest():
    every = source([100, 100, 100])
    first, second = (assign_splits(every, validation=0.1, test=0.25, seed=seed) for seed in (0, 1))
    assert origins(first["test"]) != origins(second["test"])
    assert [len(first[name]) for name in ("train", "validation", "test")] == [203, 22, 75]  # 0.1 of 225 is 22.5


def test_a_new_class_leaves_the_draw_of_others_alone():
    few = assign_splits(source([40, 40]), validation=0, test=0.25, seed=3)
    more = assign_splits(source([40, 40, 40]), validation=0, test=0.25, seed=3)
    assert origins(few["test"]) == [origin for origin in origins(more["test"]) if not origin.startswith("2/")]


def test_given_splits_are_kept():
    three = {name: images([4, 4], name) for name in ("train", "validation", "test")}
    assert assign_splits(source([0, 0], **three), validation=0.5, test=0.5, seed=0) == three
    two = {name: images([4, 4], name) for name in ("train", "test")}
    splits = assign_splits(source([0, 0], **two), validation=0.25, test=0.9, seed=0)
    assert splits["test"] == two["test"] and len(splits["train"]) == 6 and len(splits["validation"]) == 2
    assert assign_splits(source([0, 0], **two), validation=0, test=0.9, seed=0)["validation"] == ()


@pytest.mark.parametrize("names", [("all",), ("train", "test"), ("train", "validation", "test")])
def test_the_whole_is_evaluated(names):
    given = source([0, 0], **{name: images([4, 1], name) for name in names})
    all_of_it = all_as_test(given)
    splits = assign_splits(all_of_it, validation=0.3, test=0.2, seed=0)
    assert splits["train"] == splits["validation"] == ()
    assert origins(splits["test"]) == sorted(origins(chain(*given.splits.values())))
    assert all_of_it.fingerprint != given.fingerprint and all_of_it.classes == given.classes


def test_errors_name_the_class_and_the_number():
    lacking = source([1, 1], train=images([3, 0]), validation=images([1, 1], "v"), test=images([1, 2], "t"))
    with pytest.raises(DataError, match="class 'class1' has 3 images and none for training; must be at least one"):
        assign_splits(lacking, validation=0.1, test=0.1, seed=0)
    for wrong in ({"validation": 1.0}, {"test": -0.1}, {"test": float("nan")}, {"seed": -1}):
        with pytest.raises(DataError, match="must be at least 0"):
            assign_splits(source([5, 5]), **{"validation": 0.1, "test": 0.1, "seed": 0, **wrong})
    with pytest.raises(DataError, match="splits train; must be all, or train and test"):
        assign_splits(source([5, 5], train=images([5, 5])), validation=0.1, test=0.1, seed=0)


def test_nothing_draws_from_a_global_generator():
    before = random.getstate(), np.random.get_state()[1].tolist()
    assign_splits(source([9, 9]), validation=0.1, test=0.1, seed=0)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
