"""Images become a store, once; and what has changed since is found."""

import hashlib
import os

import numpy as np
import pytest

from alexnet.data import decode
from alexnet.data.prepare import check, prepare
from alexnet.data.sources import open_source
from alexnet.data.splits import all_as_test
from alexnet.data.store import Store
from alexnet.errors import DataError

from .conftest import FEW, SIDE, SIZE, array_source, png_bytes


def test_a_folder_becomes_a_store(folder, tmp_path):
    root = folder({"a": 10, "b": 6})
    seen = []
    store = prepare(open_source(root), tmp_path / "s", **FEW, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 16) for done in range(1, 17)]
    assert sum(map(len, store.splits.values())) == 16 and store.skipped == 0 and store.allow_hflip
    assert sorted(path.name for path in store.path.iterdir()) == sorted(
        ["dataset.json", "mean.npy", "skipped.jsonl", "test", "train", "validation"]
    )
    assert not (tmp_path / "s.partial").exists()
    split = store.split("train")
    for index, row in enumerate(split.origins()):
        data = (root / row["origin"]).read_bytes()
        assert row == {"origin": row["origin"], "sha256": hashlib.sha256(data).hexdigest(), "notes": []}
        expected = decode.fit(decode.decode(data), SIZE, "crop")
        np.testing.assert_array_equal(split.gather(np.array([index]))[0], expected)
        assert store.classes[split.labels[index]] == row["origin"][0]
    store.verify()
    assert check(open_source(root), store) == []


def test_digits(tmp_path):
    store = prepare(open_source("digits"), tmp_path / "digits", size=8)
    assert not store.allow_hflip and sum(map(len, store.splits.values())) == 1797
    first = store.split("test").origins()[0]["origin"]
    truth = next(p for p in open_source("digits").splits["all"] if p.origin == first)
    np.testing.assert_array_equal(store.split("test").gather(np.array([0]))[0], truth.load())


@pytest.mark.parametrize("option", [{"size": 9}, {"fit": "pad"}, {"seed": 1}, {"test": 0.4}, {"validation": 0.4}])
def test_every_option_has_an_effect(folder, tmp_path, option):
    source = open_source(folder({"a": 10, "b": 6}))
    plain = prepare(source, tmp_path / "plain", **FEW)
    assert prepare(source, tmp_path / "other", **{**FEW, **option}).fingerprint != plain.fingerprint


def test_a_finished_store_is_returned_or_refused(folder, tmp_path):
    root = folder({"a": 10, "b": 6})
    store = prepare(open_source(root), tmp_path / "s", **FEW)
    (store.path / "lock").touch()  # as a kill between the last rename and the sweep leaves it
    before = (store.path / "dataset.json").stat().st_mtime_ns
    assert prepare(open_source(root), tmp_path / "s", **FEW).fingerprint == store.fingerprint
    assert (store.path / "dataset.json").stat().st_mtime_ns == before and not (store.path / "lock").exists()
    with pytest.raises(DataError, match="is a store of other size, fit; must be the same source and settings"):
        prepare(open_source(root), tmp_path / "s", **{**FEW, "size": 9, "fit": "pad"})
    os.utime(root / "a/000.png", ns=(1, 1))
    lines = []
    assert prepare(open_source(root), tmp_path / "s", **FEW, log=lines.append).fingerprint == store.fingerprint
    assert "comparing their SHA-256" in lines[0]
    (root / "a/000.png").write_bytes(png_bytes(99))
    with pytest.raises(DataError, match="is a store of other source;"):
        prepare(open_source(root), tmp_path / "s", **FEW)


@pytest.mark.parametrize("exchange", ["rename", "rewrite"])
def test_exchanged_files_of_equal_size_and_time_are_not_found_prepared(folder, tmp_path, exchange):
    """As after unzip: two images in each other's class folder, with the same size and time."""
    root = folder({"a": 10, "b": 6})
    first, second = root / "a/000.png", root / "b/000.png"
    length = max(path.stat().st_size for path in (first, second))
    data = [path.read_bytes().ljust(length, b"\0") for path in (first, second)]

    def write(one, two):
        for path, content in ((first, one), (second, two)):
            path.write_bytes(content)
            os.utime(path, ns=(10**18, 10**18))

    write(*data)
    before = open_source(root)
    store = prepare(before, tmp_path / "s", **FEW)
    if exchange == "rename":
        first.rename(root / "a/x")
        second.rename(first)
        (root / "a/x").rename(second)
    else:
        write(*reversed(data))
    assert open_source(root).fingerprint != before.fingerprint
    with pytest.raises(DataError, match="is a store of other source;"):
        prepare(open_source(root), tmp_path / "s", **FEW)
    store.verify()


@pytest.mark.parametrize("wrong", [{"size": 0}, {"fit": "zoom"}, {"bad": "ignore"}, {"shard_bytes": 0}, {"workers": 0}])
def test_wrong_arguments(folder, tmp_path, wrong):
    with pytest.raises(DataError, match="must be"):
        prepare(open_source(folder({"a": 3, "b": 3})), tmp_path / "s", **wrong)


# -- check


def test_check_finds_every_change(folder, tmp_path):
    root = folder({"a": 10, "b": 6})
    store = prepare(open_source(root), tmp_path / "s", **FEW)
    data = bytearray((root / "a/003.png").read_bytes())
    data[200] ^= 1
    (root / "a/003.png").write_bytes(data)
    (root / "a/004.png").unlink()
    (root / "b/new.png").write_bytes(png_bytes(1))
    shard = store.path / "train/images-00001.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x99")
    found = check(open_source(root), store)
    assert sorted(found) == sorted(
        [
            f"{shard}: SHA-256 is not the recorded one",
            "a/003.png: changed",
            "a/004.png: gone",
            "b/new.png: not in the store",
        ]
    )


def test_check_finds_a_flipped_byte_that_decodes(folder, tmp_path):
    """Every decoder shows a damaged JPEG without a word; the recorded SHA-256 does not."""
    import io

    from PIL import Image

    root = folder({"a": 4, "b": 4})
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    (root / "a/photo.jpg").write_bytes(buffer.getvalue())
    store = prepare(open_source(root), tmp_path / "s", **FEW)
    data = bytearray(buffer.getvalue())
    data[len(data) // 2] ^= 4
    (root / "a/photo.jpg").write_bytes(data)
    assert decode.decode(bytes(data)).shape == (64, 64, 3)
    assert check(open_source(root), store) == ["a/photo.jpg: changed"]


def test_check_finds_renamed_classes(folder, tmp_path):
    root = folder({"a": 4, "b": 4})
    store = prepare(open_source(root), tmp_path / "s", **FEW)
    (root / "a").rename(root / "c")
    found = check(open_source(root), store)
    assert "classes: now b, c; in the store a, b" in found and "a/000.png: gone" in found


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


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_link_that_leads_nowhere_is_no_place_for_a_store(tmp_path, target):
    """It was noticed when everything was done: "Not a directory; free disk space"."""
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(DataError, match="is a link that leads nowhere; must be a new name"):
        prepare(array_source(), tmp_path / "link", size=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]
