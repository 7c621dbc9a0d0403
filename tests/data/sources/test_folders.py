"""Every way in which a folder of images can be right or wrong."""

import os
import subprocess
import sys
import tarfile

import pytest

from alexnet.data.decode import EXTENSIONS
from alexnet.data.sources import open_source
from alexnet.data.sources.source import SUFFIXES, is_image_name
from alexnet.errors import DataError
from data.conftest import counts, png_bytes


def test_a_folder_of_classes(folder):
    root = folder({"b": 3, "a": 2, "C": 2, ".hidden": 2})
    (root / "a" / "deeper").mkdir()
    (root / "a" / "deeper" / "x.JPeG").write_bytes(png_bytes(77))
    (root / "a" / ".DS_Store").write_bytes(b"x")
    (root / "b" / "notes.txt").write_text("x")
    source = open_source(root)
    assert source.classes == ("C", "a", "b") and source.name == "images" and source.allow_hflip
    assert [image.origin for image in source.splits["all"]][:5] == [
        *("C/000.png", "C/001.png", "a/000.png", "a/001.png", "a/deeper/x.JPeG")
    ]
    assert [image.label for image in source.splits["all"]] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert source.splits["all"][4].load() == png_bytes(77)
    assert source.notes == (
        "not read as images: 1 file with the suffix '.txt'",
        "2 left out as hidden or of other programs: .hidden, .DS_Store",
    )


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
    assert source.notes == ("test has no image of 'b'",)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "no such data; must be a folder, or one of cifar10, digits"),
        ({".": 0}, "no class folders; must be one folder of images for each class"),
        ({".": 2}, "images but no class folders"),
        (
            {"a": 2, "b": 0},
            "b: no image; must be at least one; fill or remove this class folder, or leave it out with --ignore 'b'",
        ),
        ({"a": 2}, "1 class; must be at least 2 classes"),
        ({"train/a": 1, "train/b": 1, "dogs": 1}, "split folders beside 'dogs'"),
        ({"train/a": 1, "train/b": 1, "test/a": 1, "test/c": 1}, "class 'c' is only in test; must be in train"),
        ({"train/a": 1, "train/b": 1, "val/c": 1, "valid/c": 1}, "val and valid name the same split"),
        ({"val/a": 1, "test/b": 1}, "must be train and test"),
        ({"train/a": 1, "train/b": 1, "val": 1}, "val: images but no class folders"),
        ({"train/a": 1, "train/b": 0, "test/a": 1}, "b: no image"),
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


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_pipes_and_folders_with_the_names_of_files(folder, tmp_path, suffix):
    """A pipe was waited for without end; class folders in ``images-train.tar/`` could not be read."""
    pipes = tmp_path / "pipes"
    pipes.mkdir()
    for split in ("train", "test"):
        os.mkfifo(pipes / f"{split}-0.{suffix}")
    writers = [os.open(pipe, os.O_RDWR | os.O_NONBLOCK) for pipe in pipes.iterdir()]  # nobody waits for one
    with pytest.raises(DataError, match="no class folders"):
        open_source(pipes)
    assert all(os.close(writer) is None for writer in writers)
    root = folder({f"{split}-0.{suffix}/{c}": 2 for split in ("train", "test") for c in "ab"})
    assert counts(open_source(root)) == {"train": 4, "test": 4}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("images.zip", "unpack .zip files"),
        ("images.7z", "unpack .7z files"),
        ("part-0.parquet", "called train-*.parquet and test-*.parquet"),
        ("images.h5", "save its images as files"),
        ("image.png", "name its folder"),
    ],
)
def test_files_that_are_not_read_say_what_to_do(tmp_path, name, hint):
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / name).write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        open_source(tmp_path / "download" / name)
    assert hint in str(caught.value)
    if name.endswith((".zip", ".7z", ".parquet")):
        with pytest.raises(DataError) as caught:
            open_source(tmp_path / "download")
        assert hint in str(caught.value)


def test_names_that_are_equal_when_they_are_printed(folder):
    """The two were one name in lists, in corrections and for ``prepare --check``."""
    root = folder({"a": 2, "b": 2})
    (root / "a" / "x\ny.png").write_bytes(png_bytes(5))
    assert counts(open_source(root)) == {"all": 5}
    (root / "a" / "x\\x0ay.png").write_bytes(png_bytes(6))
    with pytest.raises(DataError, match=r"two files are called a/x\\x0ay\.png"):
        open_source(root)


def test_names_that_are_not_utf8(folder):
    root = folder({"a": 2, "b": 2})
    (root / "a" / os.fsdecode(b"gr\xfc\xdf.png")).write_bytes(png_bytes(5))
    image = open_source(root).splits["all"][-3]
    assert image.origin == "a/gr\\xfc\\xdf.png" and image.load() == png_bytes(5)
    (root / os.fsdecode(b"\xfcber")).mkdir()
    with pytest.raises(DataError, match="folder name is no printable UTF-8") as caught:
        open_source(root)
    str(caught.value).encode()


def test_a_dangling_link_is_listed_and_fails_when_read(folder):
    root = folder({"a": 1, "b": 1})
    (root / "a/zzz.png").symlink_to(root / "gone.png")
    with pytest.raises(Exception, match="cannot be read"):
        open_source(root).splits["all"][1].load()


def test_the_suffixes_are_those_that_the_decoder_knows():
    assert {suffix for suffixes in EXTENSIONS.values() for suffix in suffixes} == SUFFIXES
    assert is_image_name("a.b.JPeG") and not is_image_name("jpeg") and not is_image_name("a.jpeg.txt")


def test_names_in_a_locale_without_their_letters(folder, tmp_path):
    """The names are UTF-8, the locale is not: that is what the message says. A tar has names of its own."""
    root = folder({"caf\u00e9": 1, "tea": 1})
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(root, "set")
    code = "import sys; from alexnet.data.sources import open_source; print(ascii(open_source(sys.argv[1]).classes))"
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}

    def opened(path):
        return subprocess.run([sys.executable, "-c", code, path], env=environment, capture_output=True, text=True)

    assert "folder name in a locale whose encoding is ascii; must be UTF-8; set the environment" in opened(root).stderr
    assert opened(tmp_path / "set.tar").stdout == "('caf\\xe9', 'tea')\n"
