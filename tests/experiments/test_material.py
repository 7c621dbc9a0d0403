"""Images of a claim: taken evenly from each class, and large or small."""

from collections import Counter

import numpy as np
import pytest

from alexnet.api import DataOptions
from alexnet.data.decode import encode_png
from alexnet.data.sources.listing import Row, Sample, make_source
from alexnet.errors import DataError
from alexnet.experiments import plan
from alexnet.recipe import Recipe


def source(counts, splits=("all",)):
    rows = [
        Row(split, Sample(label, f"{split}-{label}-{i:03d}", lambda: np.zeros((8, 8, 3), np.uint8)), "x")
        for split in splits
        for label, count in enumerate(counts)
        for i in range(count)
    ]
    return make_source("set", [f"class {k}" for k in range(len(counts))], rows)


def test_few_are_taken_evenly():
    whole = source([50, 30, 4])
    few = plan.few(whole, 20)  # 30 in all, since they are not split yet
    assert Counter(image.label for image in few.splits["all"]) == {0: 13, 1: 13, 2: 4}
    assert few.fingerprint != whole.fingerprint
    assert [p.origin for p in few.splits["all"]] == sorted(p.origin for p in few.splits["all"])
    assert plan.few(whole, 1000) is whole


def test_given_splits_keep_their_shares():
    few = plan.few(source([40, 40], ("train", "test")), 20)
    assert {name: len(found) for name, found in few.splits.items()} == {"train": 20, "test": 10}


def test_photographs_are_told_from_small_images(tmp_path):
    for folder, side in (("photos", 130), ("icons", 40)):
        for name in ("a", "b"):
            path = tmp_path / folder / name / "1.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(encode_png(np.zeros((side, side + 9, 3), np.uint8)))
    assert plan.find(str(tmp_path / "photos"), DataOptions()).photos
    assert not plan.find(str(tmp_path / "icons"), DataOptions()).photos
    found = plan.find("digits", DataOptions())
    assert (found.photos, found.mirror, found.name) == (False, False, "digits")


def test_a_store_must_fit_the_plan(digits):
    found = plan.find(str(digits.path), DataOptions())
    assert (found.photos, found.mirror) == (False, False)
    recipe = Recipe(stored_size=32)
    assert plan.prepare(found, recipe, 0, DataOptions()).path == found.store.path
    with pytest.raises(DataError, match="holds images of 32 pixels"):
        plan.prepare(found, recipe.replace(stored_size=64), 0, DataOptions())
    with pytest.raises(DataError, match="160 training images; must be at most 100 for this plan"):
        plan.prepare(found, recipe, 100, DataOptions())
