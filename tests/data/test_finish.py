"""What a store has beside its shards: statistics of the training split, and no class without a training image."""

import numpy as np
import pytest

from alexnet.data.prepare import prepare
from alexnet.data.sources import open_source
from alexnet.data.splits import all_as_test
from alexnet.data.store import Store
from alexnet.errors import DataError

from .conftest import FEW, SIDE, SIZE, array_source


def test_statistics_against_the_plain_formula(tmp_path):
    store = prepare(array_source(), tmp_path / "s", size=SIDE, shard_bytes=SIDE * SIDE * 3 * 4)
    split = store.split("train")
    images = split.gather(np.arange(len(split))).astype(np.float64)
    np.testing.assert_allclose(store.mean_image, images.mean(0), rtol=1e-6)
    pixels = images.reshape(-1, 3)
    np.testing.assert_allclose(store.channel_means, pixels.mean(0), rtol=1e-12)
    covariance = store.color_axes @ np.diag(store.color_std**2) @ store.color_axes.T
    np.testing.assert_allclose(covariance, np.cov(pixels.T, bias=True), atol=1e-8)
    assert (np.diff(store.color_std) <= 0).all()
    np.testing.assert_allclose(store.color_axes.T @ store.color_axes, np.eye(3), atol=1e-12)
    largest = store.color_axes[np.abs(store.color_axes).argmax(0), range(3)]
    assert (largest > 0).all()


def test_a_class_without_a_good_training_image(folder, tmp_path):
    root = folder({"a": 10, "b": 2})
    for path in (root / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"class 'b' has no training image left \(2 excluded, such as: b/00.*is empty"):
        prepare(open_source(root), tmp_path / "s", size=SIZE, shard_bytes=1)


def test_a_whole_folder_is_evaluated(folder, tmp_path):
    root = folder({"a": 10, "b": 1})
    (root / "b/page.jpg").write_bytes(b"<!DOCTYPE html>")
    made = prepare(all_as_test(open_source(root)), tmp_path / "s", **FEW)
    store = Store.open(made.path)
    assert {name: len(split) for name, split in store.splits.items()} == {"train": 0, "validation": 0, "test": 11}
    assert store.skipped == 1 and np.bincount(store.split("test").labels).tolist() == [10, 1]
    assert store.split("test").gather(np.arange(11)).shape == (11, SIZE, SIZE, 3)
    assert store.split("train").gather(np.zeros(0, np.int64)).shape == (0, SIZE, SIZE, 3)
    assert not store.mean_image.any() and store.channel_means.tolist() == store.color_std.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(store.color_axes, np.eye(3))
    store.verify()


def test_a_store_of_the_whole_is_not_one_of_the_parts(folder, tmp_path):
    source = open_source(folder({"a": 10, "b": 6}))
    prepare(all_as_test(source), tmp_path / "s", **FEW)
    with pytest.raises(DataError, match="is a store of other source;"):
        prepare(source, tmp_path / "s", **FEW)
