"""The layouts in which people get their images: what is a split, what a class, and what is said of the rest."""

import io
import os
import unicodedata

import pytest
from PIL import Image

from alexnet.data.sources import open_source
from alexnet.data.sources.folders import image_files
from alexnet.data.sources.layout import LayoutOptions
from alexnet.data.sources.source import split_words
from alexnet.errors import DataError
from data.conftest import counts, png_bytes

from .test_archives import tar_bytes


def contains(source, text):
    return any(text in note for note in source.notes)


def as_tar(root):
    files = [(p.relative_to(root).as_posix(), p.read_bytes()) for p in sorted(root.rglob("*")) if p.is_file()]
    path = root.with_suffix(".tar")
    path.write_bytes(tar_bytes(files))
    return path


@pytest.mark.parametrize(
    ("layout", "expected", "note"),
    [
        (["training_set/training_set", "test_set/test_set"], {"train": 4, "test": 4}, "holds nothing else"),
        (["seg_train/seg_train", "seg_test/seg_test"], {"train": 4, "test": 4}, "holds nothing else"),
        (["trainData", "validData", "testData"], {"train": 4, "validation": 4, "test": 4}, ""),
        (["train_images", "dev_images"], {"train": 4, "test": 4}, "two splits"),
        (["pets/archive/train2017", "pets/archive/val2017"], {"train": 4, "test": 4}, "pets/archive is read"),
        (["pets/archive"], {"all": 4}, "pets/archive is read"),
        (["Train"], {"all": 4}, "Train is read"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_split_folders_and_folders_that_hold_everything(folder, layout, expected, note, packed):
    root = folder({f"{place}/{title}": 2 for place in layout for title in ("cats", "dogs")})
    source = open_source(as_tar(root) if packed else root)
    assert source.classes == ("cats", "dogs") and counts(source) == expected
    assert contains(source, note) or not note


def test_images_to_predict_beside_splits_are_a_note(folder):
    root = folder({f"seg_{s}/seg_{s}/{c}": 2 for s in ("train", "test") for c in "ab"} | {"seg_pred/seg_pred": 3})
    source = open_source(root)
    assert source.classes == ("a", "b") and counts(source) == {"train": 4, "test": 4}
    assert contains(source, "seg_pred: not used: 3 images without labels, for prediction (alexnet predict RUN")


@pytest.mark.parametrize("place", ["test", "test1", "test/images"])
def test_a_flat_test_can_be_predicted_and_not_tested(folder, place):
    source = open_source(folder({"train/a": 2, "train/b": 2, place: 3}))
    assert counts(source) == {"all": 4}
    assert contains(source, "not used: 3 images without labels, for prediction")
    assert contains(source, "only train has labels: test and validation are cut from it")


def test_tiny_imagenet(folder):
    root = folder({f"train/{c}/images": 2 for c in ("n01", "n02")} | {"val/images": 3, "test/images": 2})
    for c in ("n01", "n02"):
        (root / f"train/{c}/{c}_boxes.txt").write_text("000.png\t0\t0\t1\t1\n")
    lines = [f"{i:03d}.png\t{c}\t0\t32\t44\t62\n" for i, c in enumerate(("n02", "n01", "n02"))]
    (root / "val/val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("n01\nn02\n")
    source = open_source(root)
    assert source.classes == ("n01", "n02") and counts(source) == {"train": 4, "test": 3}
    assert [p.label for p in source.splits["test"]] == [0, 1, 1]
    assert [p.origin for p in source.splits["test"]] == [f"val/images/{i:03d}.png" for i in (1, 0, 2)]
    assert contains(source, "the labels of validation are from val_annotations.txt")
    assert contains(source, "test/images: not used: 2 images without labels")
    (root / "val/val_annotations.txt").unlink()
    with pytest.raises(DataError, match="val/images: images but no class folders"):
        open_source(root)


def test_ilsvrc_unpacked_reads_its_ground_truth(folder):
    root = folder({"train/n01": 2, "train/n02": 2, "val": 3})
    (root / "val.txt").write_text("000.png 1\n001.png 0\n002.png 1\n")
    assert [p.label for p in open_source(root).splits["test"]] == [0, 1, 1]
    (root / "val.txt").write_text("000.png 1\n001.png 0\n")
    with pytest.raises(DataError, match="002 is not listed"):
        open_source(root)


def test_a_ground_truth_of_class_names_that_are_numbers(folder):
    """Class 10 is not the eleventh class in the order of texts: 0, 1, 10, 2."""
    root = folder({f"train/{c}": 1 for c in range(12)} | {"val": 3})
    (root / "val.txt").write_text("000.png 2\n001.png 10\n002.png 11\n")
    source = open_source(root)
    assert {p.origin: source.classes[p.label] for p in source.splits["test"]} == {
        "val/000.png": "2",
        "val/001.png": "10",
        "val/002.png": "11",
    }


@pytest.mark.parametrize(
    "lines",
    [
        "\ufeffa b.png dog\n001.png cat\n",
        "a b.png\tdog\t0\n001.png\tcat\t0\n",
        "file,label\na b.png,dog\n001.png,cat\n",
        "a b 1\n001 0\n",
    ],
)
def test_a_ground_truth_as_other_programs_write_it(folder, lines):
    """With a byte order mark, names with spaces, tabs, commas: each was refused with an error of Python."""
    root = folder({"train/cat": 2, "train/dog": 2, "val": 2})
    (root / "val/000.png").rename(root / "val/a b.png")
    (root / "val.txt").write_text(lines)
    source = open_source(root)
    assert {p.origin: source.classes[p.label] for p in source.splits["test"]} == {
        "val/a b.png": "dog",
        "val/001.png": "cat",
    }


def test_a_wrong_ground_truth_says_what_is_wrong(folder):
    root = folder({"train/cat": 2, "train/dog": 2, "val": 2})
    for text, message in (
        ("000.png 1\n001.png 2\n", "001 has the class number 2, and the numbers are 0 to 1"),
        ("000.png 1\n001.png\n", "no class in the line '001.png'"),
    ):
        (root / "val.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            open_source(root)
    (root / "val.txt").unlink()
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n")
    (root / "meta.mat").write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")  # HDF5
    with pytest.raises(DataError, match=r"meta\.mat: .*v7\.3"):
        open_source(root)


def test_lists_of_splits_beside_class_folders_are_a_note(folder):
    root = folder({"images/a": 2, "images/b": 2})
    (root / "meta").mkdir()
    for name in ("train.txt", "test.txt", "classes.txt"):
        (root / "meta" / name).write_text("a/000\n")
    with pytest.raises(DataError, match=r"meta: no image.*--ignore 'meta'"):
        open_source(root)
    source = open_source(root, layout=LayoutOptions(ignore=("meta",)))
    assert source.classes == ("a", "b")
    for name in ("train.txt", "test.txt", "classes.txt"):
        (root / "meta" / name).rename(root / name)
    (root / "meta").rmdir()
    source = open_source(root)
    assert counts(source) == {"all": 4}
    assert contains(source, "not used: test.txt, train.txt: all splits are drawn anew. To use such lists, name a table")
    (root / "train.txt").unlink()
    assert not contains(open_source(root), "all splits are drawn anew")


def test_folders_beside_splits_without_images_are_a_note_and_with_images_need_a_choice(folder):
    root = folder({f"{s}/{c}": 2 for s in ("train", "test") for c in "ab"} | {"annotations": 0, "extra/a": 1})
    with pytest.raises(DataError, match=r"split folders beside 'extra'.*--ignore 'extra'"):
        open_source(root)
    for pattern in ("extra", "ext*", "extra/"):
        source = open_source(root, layout=LayoutOptions(ignore=(pattern,)))
        assert counts(source) == {"train": 4, "test": 4}
        assert contains(source, "1 left out by --ignore: extra")
        assert contains(source, "folder 'annotations' holds no images and is not used")


def test_ignore_leaves_out_a_folder_that_is_no_class_in_folders_and_tars(folder):
    root = folder({"a": 2, "b": 2, "masks/a": 2, "b/preview": 1})
    options = LayoutOptions(ignore=("masks", "b/preview"))
    for data in (root, as_tar(root)):
        assert open_source(data).classes == ("a", "b", "masks")
        source = open_source(data, layout=options)
        assert source.classes == ("a", "b") and counts(source) == {"all": 4}


@pytest.mark.parametrize("packed", [False, True])
def test_class_folders_that_hold_the_same_folders_need_a_choice(folder, packed):
    root = folder({f"{kind}/{title}": 2 for kind in ("color", "gray") for title in ("apple", "corn", "rice")})
    data = as_tar(root) if packed else root
    with pytest.raises(
        DataError, match=r"all hold the same folders .*name one of them .*/color.*--classes top or leaves"
    ):
        open_source(data)
    assert open_source(data, layout=LayoutOptions(classes="top")).classes == ("color", "gray")
    leaves = open_source(data, layout=LayoutOptions(classes="leaves"))
    assert leaves.classes[:2] == ("color/apple", "color/corn") and len(leaves.classes) == 6
    problems = []
    open_source(data, problems=problems)
    assert "all hold the same folders" in str(problems[0])


def test_splits_inside_of_class_folders(folder):
    source = open_source(folder({f"{c}/{s}": 2 for c in ("cats", "dogs") for s in ("train", "test")}))
    assert source.classes == ("cats", "dogs") and counts(source) == {"train": 4, "test": 4}
    assert contains(source, "every class folder holds")


def test_folders_in_classes_that_are_called_like_splits_are_a_note(folder):
    """Not every class has them, so they are not the splits."""
    for places in (("cat/train", "cat/test", "dog/train"), ("cat", "cat/test", "dog", "dog/test")):
        source = open_source(folder(dict.fromkeys(places, 2), places[-1].replace("/", "-") + "s"))
        assert source.classes == ("cat", "dog") and counts(source) == {"all": 2 * len(places)}
        assert contains(source, "read as images of their class, though called like splits or previews: cat/test")


@pytest.mark.parametrize("name", ["thumbnails", "_Thumbs", "cat/Previews", "Recycle"])
def test_folders_that_may_be_previews_are_a_note(folder, name):
    source = open_source(folder({"cat": 2, "dog": 2, name: 2}))
    assert contains(source, f"class {name!r} is called like a folder of previews" if "/" not in name else f": {name}")


def test_classes_that_are_called_like_splits(folder):
    source = open_source(folder({"train": 2, "plane": 2, "car": 2}, "vehicles"))
    assert source.classes == ("car", "plane", "train") and contains(source, "class 'train' is called like a split")
    with pytest.raises(DataError, match="all classes are called like splits"):
        open_source(folder({"a_train": 2, "b_test": 2}, "wrong"))


def test_nested_classes(folder):
    places = ["Fruit/Apple/Green", "Fruit/Apple/Red", "Fruit/Plum", "Nut/Hazel"]
    root = folder(dict.fromkeys(places, 2))
    top = open_source(root)
    assert top.classes == ("Fruit", "Nut") and contains(top, "classes are the 2 top folders, with the")
    leaves = open_source(root, layout=LayoutOptions(classes="leaves"))
    assert leaves.classes == tuple(places) and contains(leaves, "4 classes: every folder that holds images")
    assert leaves.fingerprint != top.fingerprint
    tiny = open_source(folder({"n1/images": 1, "n2/images": 1}, "t"), layout=LayoutOptions(classes="leaves"))
    assert tiny.classes == ("n1", "n2")


def test_linked_folders_are_followed_once_and_counted(folder, tmp_path):
    root = folder({"a": 2})
    elsewhere = folder({"b": 3}, "elsewhere")
    (root / "b").symlink_to(elsewhere / "b")
    (root / "a/loop").symlink_to(root)
    (root / "a/self").symlink_to("self")
    source = open_source(root)
    assert source.classes == ("a", "b") and counts(source) == {"all": 5}
    assert contains(source, "followed: 1 linked folder")
    assert contains(source, "not followed, since what it leads to is read already: 1 linked folder: a/loop")
    assert contains(source, "not followed, since what it leads to is not there: 1 link: a/self")
    (root / "moved").symlink_to("gone")  # a class that is missing
    assert contains(open_source(root), "is not there: 2 links: a/self, moved")
    (root / "moved").unlink()
    (root / "a/again").symlink_to(elsewhere / "b")
    assert len(image_files(root)) == 5


@pytest.mark.parametrize("link", ["aa", "zz"])
def test_a_link_to_a_class_is_no_second_class(folder, link):
    """Whatever the order of their names: each image would have two labels."""
    root = folder({"cat": 2, "dog": 2})
    (root / link).symlink_to("cat")
    source = open_source(root)
    assert source.classes == ("cat", "dog") and counts(source) == {"all": 4}
    assert contains(source, f"not followed, since what it leads to is read already: 1 linked folder: {link}")


def test_links_among_folders_do_not_multiply(folder):
    names = [f"d{i}" for i in range(12)]
    root = folder(dict.fromkeys(names, 1))
    for one in names:
        for other in names:
            (root / one / f"to_{other}").symlink_to(root / other)
    assert len(open_source(root).splits["all"]) == 12


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_split_of_links_to_folders_of_another_split_says_so(folder, split):
    """Each image is in one split. The message said "no class folders", though they are there."""
    root = folder({"train/cat": 3, "train/dog": 3})
    (root / split).mkdir()
    for name in ("cat", "dog"):
        (root / split / name).symlink_to(f"../train/{name}")
    with pytest.raises(DataError) as caught:
        open_source(root)
    assert f"/{split}: holds only links to folders that were read already (cat, dog); must be images" in str(
        caught.value
    )


# What the commands write by default below the current folder, which may be that of the images.
WRITTEN = {
    "runs/photos-alexnet": ("run.json", "recipe.toml", "plots/curves.png", "bundle/reference/00.png"),
    "runs/sweep/photos": ("plan.json", "sweep.png", "trial-0/run.json", "trial-0/recipe.toml"),
    "small": ("compression.json", "bundle/config.json", "plots/compression.png"),
    "a/model": ("config.json", "model.safetensors", "reference/00.png"),
    "store": ("dataset.json", "skipped.jsonl", "mean.npy"),
    "page": ("metadata.json", "model.onnx.gz", "samples/0.png"),
    "probes": ("probes.json", "probes.png"),
    "runs/lr-find": ("photos.png",),
}


@pytest.mark.parametrize(("place", "packed"), [(p, tar) for p in WRITTEN for tar in (False, True)][:-1])
def test_what_the_commands_wrote_into_the_data_is_no_class(folder, place, packed):
    """``alexnet train .`` makes runs/, whose plots were a class of the next training."""
    root = folder({"a": 2, "b": 2})
    for name in WRITTEN[place]:
        (root / place / name).parent.mkdir(parents=True, exist_ok=True)
        (root / place / name).write_bytes(png_bytes(99))
    source = open_source(as_tar(root) if packed else root)
    assert source.classes == ("a", "b") and counts(source) == {"all": 4}
    assert contains(source, f"1 left out as written by alexnet: {place}")
    assert len(image_files(root)) == 4
    if place != "runs/lr-find":
        with pytest.raises(
            DataError, match=r"is a run, bundle, study or export that alexnet wrote|is a prepared store"
        ):
            open_source(root / place)


def test_a_class_with_a_file_that_a_run_may_have_is_a_class(folder):
    root = folder({"a": 2, "b": 2})
    for name in ("config.json", "plan.json", "metadata.json", "dataset.json"):
        (root / "a" / name).write_text("{}")
    assert counts(open_source(root)) == {"all": 4}


LEFT_BEHIND = [
    *("@eaDir/000.png/SYNOPHOTO_THUMB_M.jpg", ".thumbnails/000.png", "__MACOSX/a/._000.png", "a/._000.png"),
    *(".ipynb_checkpoints/000-checkpoint.png", "a/Thumbs.db", "lost+found/000.png", "#recycle/000.png"),
    *("$RECYCLE.BIN/x.png", "System Volume Information/x.png", "a/@eaDir/x.jpg", "a/SYNOPHOTO_THUMB_B.jpg"),
    *("PaxHeaders.1234/a/000.png", "a/PaxHeader/000.png", "~snapshot/a/000.png", "a/@Transcode/000.jpg"),
    *("a/.@__thumb/x.jpg", ".git/x.png", "a/~$x.png", "a/desktop.ini"),
]


@pytest.mark.parametrize("left", LEFT_BEHIND)
@pytest.mark.parametrize("packed", [False, True])
def test_what_tools_leave_behind_is_no_image_and_is_counted(folder, left, packed):
    root = folder({"a": 2, "b": 2})
    (root / left).parent.mkdir(parents=True, exist_ok=True)
    (root / left).write_bytes(png_bytes(99))
    source = open_source(as_tar(root) if packed else root)
    assert source.classes == ("a", "b") and counts(source) == {"all": 4}
    assert contains(source, "1 left out as hidden or of other programs")
    assert len(image_files(root)) == 4


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "jif", "JFIF", "pjpeg"])
def test_every_suffix_of_a_jpeg_is_read(folder, suffix):
    from alexnet.data import decode

    root = folder({"a": 1, "b": 1})
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    (root / f"a/x.{suffix}").write_bytes(buffer.getvalue())
    source = open_source(root)
    assert counts(source) == {"all": 3}
    image = source.splits["all"][1]
    assert image.origin == f"a/x.{suffix}" and decode.decode_with_notes(image.load(), image.origin)[2] == ()


def test_one_name_in_two_unicode_forms_is_one_class(folder):
    one, two = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    source = open_source(folder({f"train/{one}": 2, "train/tea": 2, f"test/{two}": 1, "test/tea": 1}))
    assert source.classes == (one, "tea") and counts(source) == {"train": 4, "test": 2}
    source = open_source(folder({one: 2, two: 1, "tea": 2}, "beside"))
    assert source.classes == (one, "tea") and contains(source, "differ only in their Unicode form")


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        (("Cat", "cat"), "differ in case only"),
        (("1", "1.0"), "are one number"),
        (("01", "1"), "are one number"),
        (("1e1", "10"), "are one number"),
        (("1.", "+1"), "are one number"),
        (("\uff11", "1"), "are one number"),
        (("-0", "0"), "are one number"),
        (("01", "1 "), "are one number"),
        (("\N{MINUS SIGN}1", "-1"), "are one number"),
        (("+.5", "0.50"), "are one number"),
        (("00000000000000000007", "7"), "are one number"),
        (("\N{ARABIC-INDIC DIGIT THREE}", "3"), "are one number"),
        (("heart\N{VARIATION SELECTOR-16}", "heart"), "look the same"),
        (("reference retriever", "reference_retriever"), "look the same"),
        (("\N{LATIN SMALL LIGATURE FI}n", "fin"), "look the same"),
    ],
)
def test_names_that_a_person_would_call_one_class(folder, names, cause):
    with pytest.raises(DataError, match=cause) as caught:
        open_source(folder({names[0]: 2, names[1]: 2, "dog": 2}))
    assert all(repr(name) in str(caught.value) for name in names)
    with pytest.raises(DataError, match=rf"{cause}.*one spelling"):
        open_source(folder({f"train/{names[0]}": 2, "train/dog": 2, f"test/{names[1]}": 2, "test/dog": 2}, "split"))


def test_numbers_that_differ_in_the_twentieth_digit_are_two_classes(folder):
    names = ("0.12345678901234567890", "0.12345678901234567891")
    assert open_source(folder(dict.fromkeys(names, 1))).classes == names


def test_letters_in_two_cases_are_two_classes(folder):
    assert open_source(folder({"A": 1, "a": 1, "B": 1})).classes == ("A", "B", "a")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train", ("train", "")),
        ("TRAINING_SET", ("train", "")),
        ("seg_test", ("test", "seg")),
        ("val2017", ("validation", "")),
        ("testData", ("test", "")),
        ("train_test", None),
        ("trains", None),
        ("contest", None),
        ("latest", None),
        ("ValidationImages", ("validation", "")),
    ],
)
def test_which_names_are_splits(name, expected):
    assert split_words(name) == expected


def test_a_folder_too_deep_is_refused(folder):
    root = folder({"a": 1, "b": 1})
    os.makedirs(root / "/".join(["x"] * 105))  # noqa: PTH103
    with pytest.raises(DataError, match="over 100 folders in each other"):
        open_source(root)
