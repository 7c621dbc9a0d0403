"""The dataset of an experiment: photographs or small images, subsets, and stores that fit."""

from collections import Counter

import numpy as np
import pytest

from alexnet.api import DataOptions
from alexnet.data.decode import encode_png
from alexnet.data.sources.source import Row, Sample, make_source
from alexnet.errors import DataError
from alexnet.experiments.runner import Dataset, count_test_images, open_dataset, prepare_store, subset
from alexnet.recipe import Recipe


def source(counts, splits=("all",)):
    rows = [
        Row(split, Sample(label, f"{split}-{label}-{i:03d}", lambda: np.zeros((8, 8, 3), np.uint8)), "x")
        for split in splits
        for label, count in enumerate(counts)
        for i in range(count)
    ]
    return make_source("set", [f"class {k}" for k in range(len(counts))], rows)


def test_subset_is_even_over_classes():
    full = source([50, 30, 4])
    reduced = subset(full, 20)  # 30 in all, since they are not split yet
    assert Counter(image.label for image in reduced.splits["all"]) == {0: 13, 1: 13, 2: 4}
    assert reduced.fingerprint != full.fingerprint
    assert [p.origin for p in reduced.splits["all"]] == sorted(p.origin for p in reduced.splits["all"])
    assert subset(full, 1000) is full


def test_subset_keeps_given_splits():
    reduced = subset(source([40, 40], ("train", "test")), 20)
    assert {name: len(samples) for name, samples in reduced.splits.items()} == {"train": 20, "test": 10}


def test_photographs_and_small_images(tmp_path):
    for folder, side in (("photos", 130), ("thumbnails", 64), ("icons", 40)):
        for name in ("a", "b"):
            path = tmp_path / folder / name / "1.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(encode_png(np.zeros((side, side + 9, 3), np.uint8)))
    for folder, scale in (("photos", "paper"), ("thumbnails", "medium"), ("icons", "small")):
        dataset = open_dataset(str(tmp_path / folder), DataOptions())
        assert (dataset.scale, dataset.photos) == (scale, scale == "paper")
    dataset = open_dataset("digits", DataOptions())
    assert (dataset.scale, dataset.hflip, dataset.name) == ("small", False, "digits")


@pytest.mark.parametrize(
    ("splits", "limit", "expected"), [(("all",), 0, 20), (("all",), 20, 6), (("train", "test"), 20, 10)]
)
def test_test_images_are_counted_as_they_are_prepared(splits, limit, expected, tmp_path):
    dataset = Dataset("set", source([60, 40], splits), None, "small", hflip=True)
    recipe = Recipe(stored_size=8)
    options = DataOptions(cache=tmp_path)
    prepared = prepare_store(dataset, recipe, limit, options)
    assert count_test_images(dataset, recipe, limit) == len(prepared.split("test")) == expected
    reopened = Dataset("set", None, prepared, "small", hflip=True)
    assert count_test_images(reopened, recipe, limit) == expected


def test_a_store_must_fit_the_plan(digits):
    dataset = open_dataset(str(digits.path), DataOptions())
    assert (dataset.scale, dataset.hflip) == ("small", False)
    recipe = Recipe(stored_size=32)
    assert prepare_store(dataset, recipe, 0, DataOptions()).path == dataset.store.path
    with pytest.raises(DataError, match="holds images of 32 pixels"):
        prepare_store(dataset, recipe.replace(stored_size=64), 0, DataOptions())
    with pytest.raises(DataError, match="160 training images; must be at most 100 for this plan"):
        prepare_store(dataset, recipe, 100, DataOptions())
