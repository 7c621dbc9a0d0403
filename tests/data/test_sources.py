"""Every place that pictures come from, and every way in which a folder can be wrong."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from alexnet.data import sources
from alexnet.data.sources import is_store, open_source
from alexnet.errors import DataError

from .conftest import png_bytes


def counts(source):
    return {name: len(pictures) for name, pictures in source.splits.items()}


def test_digits_are_embedded():
    source = open_source("digits")
    assert counts(source) == {"all": 1797} and source.classes == tuple("0123456789") and not source.mirror
    image = source.splits["all"][0].load()
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8
    assert max(picture.load().max() for picture in source.splits["all"]) == 255
    assert len({picture.origin for picture in source.splits["all"]}) == 1797
    assert source.fingerprint == open_source("digits").fingerprint


def test_a_folder_of_classes(folder):
    root = folder({"b": 3, "a": 2, "C": 2, ".hidden": 2})
    (root / "a" / "deeper").mkdir()
    (root / "a" / "deeper" / "x.JPeG").write_bytes(png_bytes(77))
    (root / "a" / ".DS_Store").write_bytes(b"x")
    (root / "b" / "notes.txt").write_text("x")
    source = open_source(root)
    assert source.classes == ("C", "a", "b") and source.name == "pictures" and source.mirror
    assert [picture.origin for picture in source.splits["all"]][:5] == [
        *("C/000.png", "C/001.png", "a/000.png", "a/001.png", "a/deeper/x.JPeG")
    ]
    assert [picture.label for picture in source.splits["all"]] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert source.splits["all"][4].load() == png_bytes(77)
    assert source.notes == ("1 files that end in '.txt' are no pictures",)


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "TEST"), ("train", "eval"), ("train", "valid")])
def test_of_two_splits_the_second_is_the_test_split(folder, names):
    root = folder({f"{names[0]}/a": 3, f"{names[0]}/b": 2, f"{names[1]}/a": 1, f"{names[1]}/b": 1})
    source = open_source(str(root))
    assert counts(source) == {"train": 5, "test": 2}
    assert any("validation is used as test" in note for note in source.notes) == (names[1].lower() != "test")


def test_three_splits_and_a_class_that_one_lacks(folder):
    root = folder({"train/a": 3, "train/b": 2, "val/a": 1, "val/b": 1, "testing/a": 1, "testing/b": 0})
    source = open_source(root)
    assert list(source.splits) == ["train", "validation", "test"] and counts(source)["validation"] == 2
    assert source.notes == ("test has no picture of 'b'",)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "no such data; must be a folder, or one of cifar10, digits"),
        ({".": 0}, "no class folders and no parquet files; must be one folder of pictures for each class"),
        ({".": 2}, "pictures but no class folders"),
        ({"a": 2, "b": 0}, "b: no picture; must be at least one; fill or remove this class folder"),
        ({"a": 2}, "1 class; must be at least 2 classes"),
        ({"train/a": 1, "train/b": 1, "dogs": 1}, "split folders beside 'dogs'"),
        ({"train/a": 1, "train/b": 1, "test/a": 1, "test/c": 1}, "class 'c' is only in test; must be in train"),
        ({"train/a": 1, "train/b": 1, "val/c": 1, "valid/c": 1}, "val and valid name the same split"),
        ({"train/a": 1, "train/b": 1}, "split folders train; must be train and test"),
        ({"val/a": 1, "test/b": 1}, "must be train and test"),
        ({"train/a": 1, "train/b": 1, "test": 1}, "test: pictures but no class folders"),
        ({"train/a": 1, "train/b": 0, "test/a": 1}, "b: no picture"),
    ],
)
def test_wrong_folders_have_their_reason(folder, layout, message):
    if "." in layout:
        root = folder({}, "x")
        root.mkdir()
        for index in range(layout["."]):
            (root / f"{index}.png").write_bytes(png_bytes(index))
    else:
        root = folder(layout)
    with pytest.raises(DataError) as caught:
        open_source(root)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_names_that_are_not_utf8(folder):
    root = folder({"a": 2, "b": 2})
    (root / "a" / os.fsdecode(b"gr\xfc\xdf.png")).write_bytes(png_bytes(5))
    picture = open_source(root).splits["all"][-3]
    assert picture.origin == "a/gr\\xfc\\xdf.png" and picture.load() == png_bytes(5)
    (root / os.fsdecode(b"\xfcber")).mkdir()
    with pytest.raises(DataError, match="folder name is no printable UTF-8") as caught:
        open_source(root)
    str(caught.value).encode()


def test_unknown_names_get_the_nearest(tmp_path):
    for wrong, right in [("cifar-10", "cifar10"), ("Digits", "digits"), ("fashionmnist", "fashion_mnist")]:
        with pytest.raises(DataError, match=f"did you mean {right}"):
            open_source(wrong)
    (tmp_path / "file.zip").write_bytes(b"x")
    with pytest.raises(DataError, match="is a file; must be a folder"):
        open_source(tmp_path / "file.zip")


def test_a_store_is_not_a_source(folder):
    root = folder({"a": 1, "b": 1})
    assert not is_store(root)
    (root / "dataset.json").write_text("{}")
    assert is_store(root)
    with pytest.raises(DataError, match=r"is a prepared store; .*Store\.open"):
        open_source(root)


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


def test_a_dangling_link_is_listed_and_fails_when_read(folder):
    root = folder({"a": 1, "b": 1})
    (root / "a/zzz.png").symlink_to(root / "gone.png")
    with pytest.raises(Exception, match="can not be read"):
        open_source(root).splits["all"][1].load()


# -- torchvision


def write_mnist(root, name="MNIST"):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        head = np.array([0x803, count, 28, 28], ">u4").tobytes()
        images = np.arange(count * 784, dtype=np.uint32).astype(np.uint8).tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images)
        labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(np.array([0x801, count], ">u4").tobytes() + labels)


def test_mnist_that_lies_there(tmp_path):
    write_mnist(tmp_path)
    source = open_source("mnist", data_root=tmp_path)
    assert counts(source) == {"train": 20, "test": 10} and source.classes == tuple("0123456789") and not source.mirror
    image = source.splits["train"][1].load()
    assert image.shape == (28, 28, 3) and image[0, :3, 0].tolist() == [784 % 256, 785 % 256, 786 % 256]
    write_mnist(tmp_path, "FashionMNIST")
    fashion = open_source("fashion_mnist", data_root=tmp_path)
    assert fashion.mirror and fashion.classes[0] == "T-shirt/top"


def test_imagenette_that_lies_there(tmp_path):
    for split in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            place = tmp_path / "imagenette2-160" / split / wnid
            place.mkdir(parents=True)
            (place / "x.JPEG").write_bytes(png_bytes(1))
    source = open_source("imagenette", data_root=tmp_path)
    assert source.classes == ("tench", "English springer") and counts(source) == {"train": 2, "test": 2}
    assert source.splits["train"][0].load() == png_bytes(1)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "fashion_mnist", "imagenette"])
def test_sets_that_are_absent_or_can_not_be_fetched(tmp_path, monkeypatch, name):
    with pytest.raises(DataError, match=f"{name}: not found in .*pass --download to fetch it, or --data-root"):
        open_source(name, data_root=tmp_path)
    from torchvision import datasets

    nowhere = "http://127.0.0.1:9/"
    monkeypatch.setattr(datasets.CIFAR10, "url", nowhere + "x.tar.gz")
    monkeypatch.setattr(datasets.MNIST, "mirrors", [nowhere])
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [nowhere])
    monkeypatch.setattr(datasets.Imagenette, "_ARCHIVES", {"320px": (nowhere + "imagenette2-320.tgz", None)})
    with pytest.raises(DataError, match=f"{name}: download to .* failed .*check the network"):
        open_source(name, data_root=tmp_path, download=True)


# -- parquet


def write_parquet(root, names=("a", "b"), label="label", image="img", split="train", labels=(0, 1, 1, 0, 1)):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    cells = [{"bytes": png_bytes(index), "path": f"{index}.png"} for index in range(len(labels))]
    table = arrow.table({image: cells, label: list(labels)})
    if names:
        about = {"info": {"features": {label: {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    root.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, root / f"{split}-00000-of-00001.parquet", row_group_size=2)


@pytest.mark.parametrize("place", ["", "data"])
def test_parquet_of_the_hugging_face_layout(tmp_path, place):
    write_parquet(tmp_path / place)
    write_parquet(tmp_path / place, split="test", labels=(0, 1))
    source = open_source(tmp_path)
    assert source.classes == ("a", "b") and counts(source) == {"train": 5, "test": 2}
    for index in (4, 0, 3, 1, 2):  # every row group, out of order
        assert source.splits["train"][index].load() == png_bytes(index)
    assert source.splits["train"][3].origin.endswith("train-00000-of-00001.parquet#0000003")


def test_parquet_without_names_and_with_fine_labels(tmp_path):
    write_parquet(tmp_path, names=(), label="fine_label", image="image")
    write_parquet(tmp_path, names=(), label="fine_label", image="image", split="validation", labels=(0, 1))
    assert open_source(tmp_path).classes == ("0", "1")


def test_wrong_parquet_files(tmp_path, monkeypatch):
    write_parquet(tmp_path / "1", label="kind")
    write_parquet(tmp_path / "1", label="kind", split="test")
    with pytest.raises(DataError, match="columns img, kind; must be img or image, and label or fine_label"):
        open_source(tmp_path / "1")
    write_parquet(tmp_path / "2", labels=(0, 1, 7))
    write_parquet(tmp_path / "2", split="test")
    with pytest.raises(DataError, match=r"#0000002: label 7; must be 0 to 1"):
        open_source(tmp_path / "2")
    write_parquet(tmp_path / "3")
    with pytest.raises(DataError, match="parquet files of train; must be of train and test"):
        open_source(tmp_path / "3")
    (tmp_path / "3" / "test-0.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(DataError, match="must be readable parquet files"):
        open_source(tmp_path / "3")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'alexnet\[data\]'"):
        open_source(tmp_path / "2")


def test_the_import_is_light():
    heavy = "'torch', 'PIL', 'sklearn', 'pyarrow'"
    code = f"import sys, alexnet.data.sources; print([name for name in ({heavy}) if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_suffixes_are_those_that_the_decoder_knows():
    from alexnet.data.pixels import EXTENSIONS

    assert {suffix for suffixes in EXTENSIONS.values() for suffix in suffixes} == sources.SUFFIXES
