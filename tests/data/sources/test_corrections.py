"""Corrections: read and written, applied without moving any image to another split, refused where they do not fit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet.data.prepare import check, prepare
from alexnet.data.sources import open_source
from alexnet.data.sources.corrections import (
    Decision,
    apply_corrections,
    corrections_file,
    read_corrections,
    write_corrections,
)
from alexnet.data.sources.options import DataOptions
from alexnet.data.splits import all_as_test, assign_splits
from alexnet.errors import DataError

HEADER = "path,decision,label,was\n"
SPLIT = {"validation": 0.2, "test": 0.2, "seed": 3}


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(path)


@pytest.fixture
def images(tmp_path):
    for number in range(40):
        paint(tmp_path / "images" / ("cats", "dogs")[number % 2] / f"{number:02d}.png", number)
    paint(tmp_path / "new" / "one.png", 100)
    return tmp_path / "images"


def corrected(images, text):
    path = images.parent / "images.labels.csv"
    path.write_text(HEADER + text, encoding="utf-8")
    return apply_corrections(open_source(images), path)


DECISIONS = "cats/00.png,relabel,dogs,cats\ncats/02.png,exclude,,cats\ndogs/01.png,keep,,dogs\nnew/one.png,add,cats,\n"


def test_decisions_are_applied_and_move_no_image_to_another_split(images):
    before = assign_splits(open_source(images), **SPLIT)
    source = corrected(images, DECISIONS)
    after = assign_splits(source, **SPLIT)
    for name, samples in before.items():
        kept = [image.origin for image in samples if image.origin != "cats/02.png"]
        assert [image.origin for image in after[name] if image.origin != "new/one.png"] == kept
    everything = {image.origin: (image.label, name) for name, split in after.items() for image in split}
    assert everything["cats/00.png"][0] == 1 and everything["cats/04.png"][0] == 0
    assert everything["new/one.png"] == (0, "train") and source.reviewed == {"dogs/01.png"}
    assert [image.origin for image in after["train"]] == sorted(image.origin for image in after["train"])
    assert "1 relabeled, 1 excluded, 1 added" in source.notes[-1]
    assert "new/one.png" not in {image.origin for image in assign_splits(all_as_test(source), **SPLIT)["train"]}


def test_the_store_has_the_corrected_labels_and_is_another_one(images, tmp_path):
    how = {"size": 8, **SPLIT}
    plain = prepare(open_source(images), tmp_path / "plain", **how)
    source = corrected(images, DECISIONS)
    store = prepare(source, tmp_path / "corrected", **how)
    labels = {
        row["origin"]: int(label)
        for split in store.splits.values()
        for row, label in zip(split.origins(), split.labels, strict=True)
    }
    assert labels["cats/00.png"] == 1 and labels["new/one.png"] == 0 and "cats/02.png" not in labels
    assert store.fingerprint != plain.fingerprint and check(source, store) == []
    assert any("cats/00.png: class number 1 before, 0 now" in line for line in check(open_source(images), store))
    with pytest.raises(DataError, match="is a store of other"):
        prepare(corrected(images, "cats/00.png,relabel,dogs,cats\n"), tmp_path / "corrected", **how)
    prepare(corrected(images, DECISIONS), tmp_path / "corrected", **how)  # the same decisions: the same store


def test_decisions_to_keep_do_not_make_another_store(images):
    assert corrected(images, "dogs/01.png,keep,,dogs\n").selection() == open_source(images).selection()
    relabeled = corrected(images, "cats/00.png,relabel,dogs,\n").selection()
    assert set(relabeled) == {"corrections"}
    paint(images.parent / "new" / "one.png", 100)
    added = corrected(images, "new/one.png,add,dogs,\n").selection()
    paint(images.parent / "new" / "one.png", 101)
    assert corrected(images, "new/one.png,add,dogs,\n").selection() != added, "another image under the same name"


def test_a_file_is_read_as_it_was_written(tmp_path):
    decisions = {
        'b, "quoted".png': Decision("relabel", "dogs, small", "cats"),
        "a.png": Decision("exclude", "", "cats"),
        "ä.png": Decision("keep", "", "dogs"),
        "=1+1.png": Decision("relabel", "-dogs", "@cats"),
        "'.png": Decision("keep", "", "'-cats"),
    }
    write_corrections(tmp_path / "x.csv", decisions)
    assert read_corrections(tmp_path / "x.csv") == decisions
    assert (tmp_path / "x.csv").read_text(encoding="utf-8").splitlines()[3] == "a.png,exclude,,cats"
    (tmp_path / "y.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "x.csv").read_bytes().replace(b"\n", b"\r\n"))
    assert read_corrections(tmp_path / "y.csv") == decisions, "as a spreadsheet program saves it"
    with pytest.raises(DataError, match="cannot be written"):
        write_corrections(tmp_path / "no" / "x.csv", decisions)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", "first line is 'path,label'; must be path,decision,label,was"),
        ("", "first line is ''"),
        (HEADER + "a.png,keep\n", r"line 2: 2 cells; must be path,decision,label,was"),
        (HEADER + "a.png,relable,dogs,\n", "line 2: decision 'relable'.*Did you mean 'relabel'"),
        (HEADER + "a.png,relabel,,cats\n", "line 2: label '' for relabel; must be a class"),
        (HEADER + "a.png,exclude,dogs,cats\n", "line 2: label 'dogs' for exclude; must be empty"),
        (HEADER + ",keep,,\n", "line 2: no path"),
        (HEADER + "a.png,keep,,\na.png,exclude,,\n", "line 3: 'a.png' is listed twice"),
        (HEADER + '"a.png,keep,,\n', "line 2: .*a CSV table"),
    ],
)
def test_invalid_files(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_corrections(tmp_path / "x.csv")


def test_files_that_are_no_text_or_missing(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="byte 0 is no UTF-8"):
        read_corrections(tmp_path / "x.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_corrections(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cats/00.png,relabel,dosg,cats\n", "has the class 'dosg'; must be a class of the data. Did you mean 'dogs'"),
        ("cats/00.png,exclude,,dogs\n", "was of class 'dogs' and is of class 'cats' now"),
        ("birds/00.png,exclude,,\n", "none of its 1 image is in images, such as 'birds/00.png'"),
        ("cats/00.png,add,dogs,\n", "is in the data set and cannot be added"),
        ("new/two.png,add,dogs,\n", "new/two.png, which is to be added, is not there; must be an image file"),
        ("new,add,dogs,\n", "new, which is to be added, is no file; must be an image file"),
    ],
)
def test_corrections_that_do_not_fit(images, text, message):
    with pytest.raises(DataError, match=message):
        corrected(images, text)


def test_images_that_are_gone_are_a_note_and_done_corrections_are_fine(images):
    source = corrected(images, "cats/98.png,exclude,,cats\ndogs/01.png,relabel,dogs,cats\n")
    assert "not in images: 1 of 2 images" in source.notes[-1]
    now, before = (assign_splits(one, **SPLIT) for one in (source, open_source(images)))
    labels = [[(image.origin, image.label) for split in one.values() for image in split] for one in (now, before)]
    assert labels[0] == labels[1]


def test_the_default_file_lies_beside_the_data(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "birds.csv").touch()
    assert corrections_file(tmp_path / "a") == tmp_path / "a.labels.csv"
    assert corrections_file(tmp_path / "birds.csv") == tmp_path / "birds.labels.csv"
    assert corrections_file("no-such-digits") == Path("no-such-digits.labels.csv")


def test_options_are_recorded_and_read_again(images):
    options = DataOptions(corrections=Path("images.labels.csv"))
    assert options.to_args() == ["--corrections", "images.labels.csv"]
    (images.parent / "images.labels.csv").write_text(HEADER + "cats/00.png,relabel,dogs,cats\n")
    again = DataOptions().with_recorded(options.to_args(), images.parent)
    assert again.open(images).relabeled == {"cats/00.png": 1}
    assert DataOptions().with_recorded(options.to_args(), images.parent, only_layout=True).corrections is None


@pytest.mark.parametrize("cells", [("a.png", "x" * 20_000, "", ""), ("a.png", "keep", "x" * 9_000, "")])
def test_a_cell_of_any_length_is_a_short_line(tmp_path, cells):
    (tmp_path / "c.csv").write_text("path,decision,label,was\n" + ",".join(cells) + "\n")
    with pytest.raises(DataError) as caught:
        read_corrections(tmp_path / "c.csv")
    assert len(str(caught.value)) < 400
