"""A source is checked, and its fingerprint sees every change."""

import os

import pytest

from alexnet.data.sources import open_source
from alexnet.data.sources.source import Row, Sample, make_source, path_text
from alexnet.errors import DataError


def test_the_fingerprint_sees_every_change(folder):
    root = folder({"a": 2, "b": 2})
    seen = {open_source(root).fingerprint}
    assert open_source(root).fingerprint in seen
    os.utime(root / "a/000.png", ns=(1, 1))
    seen.add(open_source(root).fingerprint)
    (root / "a/001.png").rename(root / "a/002.png")
    seen.add(open_source(root).fingerprint)
    (root / "a").rename(root / "a2")
    seen.add(open_source(root).fingerprint)
    assert len(seen) == 4


def rows(*listed):
    return [Row(split, Sample(label, f"{split}#{number}", bytes), "") for number, (split, label) in enumerate(listed)]


def test_the_fingerprint_sees_labels_splits_classes_and_stamps():
    listed = rows(("train", 0), ("train", 1), ("test", 0))
    changed = [
        make_source("x", "ab", rows(("train", 0), ("train", 1), ("test", 1))),
        make_source("x", "ab", rows(("train", 0), ("train", 1), ("validation", 0))),
        make_source("x", "ac", listed),
        make_source("x", "ab", [listed[0]._replace(stamp="1 2"), *listed[1:]]),
    ]
    assert len({source.fingerprint for source in [make_source("x", "ab", listed), *changed]}) == 5
    assert make_source("y", "ab", listed, allow_hflip=False).fingerprint == make_source("x", "ab", listed).fingerprint


def test_splits_have_one_order():
    source = make_source("x", "ab", rows(("test", 0), ("validation", 0), ("train", 0), ("train", 1), ("test", 1)))
    assert list(source.splits) == ["train", "validation", "test"]
    assert source.notes == ("validation has no image of 'b'",)


def test_a_class_needs_training_images():
    with pytest.raises(DataError, match="x: class 'b' is only in test; must be in train; add training images"):
        make_source("x", "ab", rows(("train", 0), ("test", 1)))
    with pytest.raises(DataError, match="x: class 'c' is without an image"):
        make_source("x", "abc", rows(("all", 0), ("all", 1)))
    with pytest.raises(DataError, match="x: 1 class; must be at least 2 classes"):
        make_source("x", "a", rows(("all", 0)))


def test_a_path_is_shown_on_one_line_of_utf8():
    assert path_text("größe/a b.png") == "größe/a b.png"
    assert path_text(os.fsdecode(b"a\nb\xff")) == "a\\x0ab\\xff"
