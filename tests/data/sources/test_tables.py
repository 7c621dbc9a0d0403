"""CSV and TSV: what they say is what is read, and every wrong line is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.data.sources import open_source
from alexnet.data.sources.layout import LayoutOptions
from alexnet.data.splits import assign_splits
from alexnet.errors import DataError, ImageError
from data.conftest import counts, png_bytes


@pytest.fixture
def table(tmp_path):
    """``table("path,label", "a.png,x", …)`` writes a CSV beside six images a.png … f.png and one in sub/."""
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(["a", "b", "c", "d", "e", "f", "sub/g"]):
        (tmp_path / f"{name}.png").write_bytes(png_bytes(number))

    def make(*lines, name="list.csv", data=None):
        (tmp_path / name).write_bytes("\n".join(lines).encode() if data is None else data)
        return tmp_path / name

    return make


def test_paths_and_labels(table, tmp_path):
    path = table("path,label", "b.png,dog", f"{tmp_path}/a.png,cat", "./sub/../c.png,dog", "", '"sub/g.png",cat')
    source = open_source(path)
    assert source.name == "list" and source.classes == ("cat", "dog")
    images = source.splits["all"]
    assert [(p.origin, p.label) for p in images] == [("b.png", 1), ("a.png", 0), ("c.png", 1), ("sub/g.png", 0)]
    assert [p.load() for p in images] == [png_bytes(1), png_bytes(0), png_bytes(2), png_bytes(6)]


def test_tsv_byte_order_mark_groups_splits_and_other_columns(table):
    lines = [
        "Label\tPATH\tgroup\tSplit\tage",
        *(
            f"{'xy'[i % 2]}\t{'abcdef'[i]}.png\tp{i // 2}\t{s}\t{i}"
            for i, s in enumerate(["train", "Training", "val", "validation", "test", "testing"])
        ),
    ]
    source = open_source(table(name="list.tsv", data="\n".join(lines).encode("utf-8-sig")))
    assert counts(source) == {"train": 2, "validation": 2, "test": 2}
    assert [p.group for own in source.splits.values() for p in own] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert source.splits["test"][1].columns == {"group": "p2", "age": "5"}


def test_two_splits_are_train_and_test(table):
    rows = ["a.png,x,train", "b.png,y,train", "c.png,x,val", "d.png,y,val"]
    assert counts(open_source(table("path,label,split", *rows))) == {"train": 2, "test": 2}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "first line holds nothing; must be path,label"),
        (["name,kind", "dog,x"], "first line holds name, kind; must be path,label[,group,split]"),
        (["path,label,Label", "a.png,x,y"], "column 'label' twice"),
        (["path,label"], "no rows"),
        (["path,label", "a.png"], "line 2: 1 cell; must be 2"),
        (["path,label", "a.png,x,y"], "line 2: 3 cells"),
        (["path,label", "a.png,"], "line 2: empty path or label"),
        (["path,label", ",x"], "line 2: empty path or label"),
        (["path,label", "../a.png,x"], "line 2: path '../a.png' leads out of"),
        (["path,label", "sub/../../a.png,x"], "leads out of"),
        (["path,label", "/etc/passwd,x"], "line 2: path '/etc/passwd' leads out of"),
        (["path,label", ".,x"], "leads out of"),
        (["path,label,split", "a.png,x,train", "b.png,y,exam"], "line 3: split 'exam'; must be one of train"),
        (["path,label,split", "a.png,x,train", "b.png,y,"], "line 3: split ''"),
        (["path,label,split", "a.png,x,train", "b.png,y,train"], "splits train; must be train and test"),
        (["path,label,split", "a.png,x,test", "b.png,y,val"], "splits test, validation; must be train and test"),
        (["path,label,split", "a.png,x,train", "b.png,y,test"], "class 'y' is only in test"),
        (["path,label", "nope.png,x", "gone.png,y"], "none of its 2 files exist, such as nope.png"),
        (["path,label", "a.png,x", "b.png,x"], "1 class; must be at least 2"),
        (["path,label", "a.png,x", "b.png,y", "a.png,x"], "lines 2 and 4: a.png twice"),
        (["path,label", "a.png,x", "b.png,y", "./a.png,y"], "lines 2 and 4: a.png twice (x, then y)"),
        (["path,label", '"a.png,x'], "cannot be read"),
    ],
)
def test_wrong_tables_have_their_reason(table, lines, message):
    with pytest.raises(DataError) as caught:
        open_source(table(*lines))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_bytes_that_are_no_text(table):
    with pytest.raises(DataError, match=r"byte 11 is no UTF-8"):
        open_source(table(data=b"path,label\n\xff.png,x\n"))
    with pytest.raises(DataError, match=r"empty path or label|cannot be read"):
        open_source(table(data=b"path,label\na\0.png,x\n"))


def test_a_missing_file_is_a_bad_image(table):
    source = open_source(table("path,label", "a.png,x", "gone.png,y", "b.png,y"))
    with pytest.raises(ImageError, match=r"gone\.png: cannot be read"):
        source.splits["all"][1].load()


def test_the_doctor_reads_on_where_a_image_is_listed_twice(table):
    problems = []
    source = open_source(table("path,label", "a.png,x", "b.png,y", "a.png,y"), problems=problems)
    assert [p.origin for p in source.splits["all"]] == ["a.png", "b.png", "a.png (line 4)"]
    assert len(problems) == 1 and "twice (x, then y)" in str(problems[0])


def test_groups_of_a_table_are_never_cut_apart(table, tmp_path):
    for number in range(60):
        (tmp_path / f"{number}.png").write_bytes(b"")
    rows = [f"{number}.png,{'xy'[number % 2]},p{number // 5}" for number in range(60)]
    splits = assign_splits(open_source(table("path,label,group", *rows)), validation=0.2, test=0.2, seed=0)
    groups = {name: {p.group for p in own} for name, own in splits.items()}
    assert not groups["train"] & groups["test"] and not groups["train"] & groups["validation"]
    assert len(groups["test"]) == 2 or 8 <= len(splits["test"]) <= 16


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("t") / "x.csv"
    for start in (b"", b"path,label\n"):
        path.write_bytes(start + data)
        with pytest.raises(DataError) as caught:
            open_source(path)
        assert "\n" not in str(caught.value)


def labels(source):
    return {p.origin: source.classes[p.label] for own in source.splits.values() for p in own}


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.txt"])
def test_a_delimiter_is_found_in_the_first_line(table, delimiter, name):
    lines = [delimiter.join(cells) for cells in (("path", "label"), ("a.png", "x y"), ("b.png", "z"))]
    assert labels(open_source(table(*lines, name=name))) == {"a.png": "x y", "b.png": "z"}


def test_columns_by_their_usual_names_and_by_a_persons(table):
    rows = ["file_name,kind,class", "a.png,small,x", "b.png,large,y"]
    source = open_source(table(*rows))
    assert labels(source) == {"a.png": "x", "b.png": "y"}
    assert "images by column 'file_name', labels by 'class'" in source.notes[0]
    assert labels(open_source(table(*rows), layout=LayoutOptions(label_column="Kind"))) == {
        "a.png": "small",
        "b.png": "large",
    }
    with pytest.raises(DataError, match=r"must be column 'nope'; .*--label-column"):
        open_source(table(*rows), layout=LayoutOptions(label_column="nope"))
    rows = ["where~what", "a.png~x", "b.png~y"]
    options = LayoutOptions(image_column="where", label_column="what", delimiter="~")
    assert labels(open_source(table(*rows), layout=options)) == {"a.png": "x", "b.png": "y"}
    with pytest.raises(DataError, match="--delimiter is 'xy'"):
        open_source(table(*rows), layout=LayoutOptions(delimiter="xy"))


@pytest.mark.parametrize(
    "lines",
    [
        ["a.png x", "sub/g.png y"],
        ["a.png\tx", "sub/g.png\ty"],
        ["a.png,x", "sub/g.png,y"],
        ["x a.png", "y sub/g.png"],
        ["a.png\tx\t0\t1\t2", "sub/g.png\ty\t3\t4\t5"],
    ],
)
def test_lists_without_a_first_line_of_names(table, lines):
    assert labels(open_source(table(*lines, name="all.txt"))) == {"a.png": "x", "sub/g.png": "y"}


def test_lists_for_each_split_and_tables_beside_images(table, tmp_path):
    for name, rows in (("train", ("a.png 0", "b.png 1")), ("val", ("c.png 0", "d.png 1"))):
        table(*rows, name=f"{name}.txt")
    source = open_source(tmp_path)
    assert counts(source) == {"train": 2, "test": 2} and source.classes == ("0", "1")
    assert "images and labels are from train.txt, val.txt" in source.notes
    assert labels(open_source(tmp_path / "train.txt")) == {"a.png": "0", "b.png": "1"}
    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").unlink()
    table("file_name,label", "a.png,x", "b.png,y", name="metadata.csv")
    (tmp_path / "README.txt").write_text("read me")
    assert labels(open_source(tmp_path)) == {"a.png": "x", "b.png": "y"}
    table("file_name,label", "a.png,x", "b.png,y", name="other.csv")
    with pytest.raises(DataError, match=r"metadata\.csv and other\.csv list images; must be one table"):
        open_source(tmp_path)


def test_a_table_beside_the_folder_of_its_images(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(4):
        (tmp_path / f"images/{number}.jpg").write_bytes(png_bytes(number))
    (tmp_path / "labels.csv").write_text("id,breed\n0,x\n1,y\n2,x\n3,y\n")
    source = open_source(tmp_path)
    assert labels(source) == {"images/0.jpg": "x", "images/1.jpg": "y", "images/2.jpg": "x", "images/3.jpg": "y"}
    assert any("paths are completed, such as 0 to images/0.jpg" in note for note in source.notes)


def test_paths_of_windows_and_paths_without_suffix(table):
    source = open_source(table("path,label", "sub\\g.png,x", ".\\a.png,y"))
    assert labels(source) == {"sub/g.png": "x", "a.png": "y"}
    assert any(r"2 paths with \ read with /" in note for note in source.notes)
    assert labels(open_source(table("path,label", "sub/g,x", "a,y"))) == {"sub/g.png": "x", "a.png": "y"}
    with pytest.raises(DataError, match="begins with a drive of another machine"):
        open_source(table("path,label", "C:\\data\\a.png,x", "b.png,y"))
    with pytest.raises(DataError, match="leads out of"):
        open_source(table("path,label", "..\\a.png,x", "b.png,y"))


@pytest.mark.parametrize("missing", ["nan", "NaN", "NULL", "<NA>", "N/A"])
def test_labels_that_are_missing_values(table, missing):
    lines = ["path,label", "a.png,x", f"b.png,{missing}", "c.png,y", f"d.png,{missing}"]
    with pytest.raises(
        DataError, match=rf"line 3: label '{missing}', as a program writes a missing value.*2 such lines"
    ):
        open_source(table(*lines))
    problems = []
    assert labels(open_source(table(*lines), problems=problems)) == {"a.png": "x", "c.png": "y"} and len(problems) == 1


def test_labels_that_are_one_number(table):
    with pytest.raises(DataError, match=r"classes '1' .* and '1\.0' .* are one number"):
        open_source(table("path,label", "a.png,1", "b.png,1.0", "c.png,2"))


def test_a_label_that_is_too_long_to_be_a_class_is_refused_before_training(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png_bytes(0))
    (tmp_path / "t.csv").write_text(f"path,label\na.png,{'x' * 10_001}\nb.png,b\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"class 1 is 'xxx.*: it must be text of 1 to 10,000 characters; rename"):
        open_source(tmp_path / "t.csv")


@pytest.mark.parametrize("label", ["NA", "None", "?", "-1", "Unlabeled"])
def test_a_label_that_may_mean_none_has_a_note(table, label):
    source = open_source(table("path,label", "a.png,cat", f"b.png,{label}", "c.png,dog", f"d.png,{label}"))
    assert label in source.classes
    assert source.notes == (
        f"{label!r} (2 images) is a class here; if the name means a missing label, leave out its images",
    )
    assert not open_source(table("path,label", "a.png,cat", "c.png,narwhal")).notes


@pytest.mark.parametrize("label", ['"cat,dog"', '"dog | cat"', "cat;dog", "['cat']"])
def test_a_label_that_is_several_labels_has_a_note(table, label):
    """Each combination was a class of its own, without a word."""
    source = open_source(table("path,label", "a.png,cat", f"b.png,{label}", "c.png,dog", f"d.png,{label}"))
    assert len(source.classes) == 3
    (note,) = source.notes
    assert "is a class here; if the name means several labels, choose one" in note
    assert not open_source(table("path,label", "a.png,cat", 'b.png,"dog, small"', "c.png,dog")).notes


@pytest.mark.usefixtures("table")
def test_a_text_of_gigabytes_beside_images_is_not_read(tmp_path):
    with (tmp_path / "log.txt").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="1 class; must be"):
        open_source(tmp_path)
    with pytest.raises(DataError, match=r"cannot be read .*1,099,511,627,776 bytes, more than"):
        open_source(tmp_path / "log.txt")


def test_a_first_line_that_cannot_be_parsed_is_shown(table):
    with pytest.raises(DataError, match=r'first line holds \[\{"path"'):
        open_source(table('[{"path": "a.png", "label": "x"}]'))
    with pytest.raises(DataError) as caught:
        open_source(table(data=b"PK\3\4" + bytes(5000)))  # a workbook
    assert len(str(caught.value)) < 600


def test_two_labels_that_may_mean_none_have_one_note(table):
    (note,) = open_source(table("path,label", "a.png,cat", "b.png,?", "c.png,na")).notes
    assert note.startswith("'?' (1 image) and 'na' (1 image) are classes here")


@pytest.mark.parametrize(
    ("header", "values"),
    [("set", ("train", "Test")), ("Fold", ("training", "val")), ("is_train", "10"), ("test", "01")],
)
def test_a_column_that_seems_to_hold_splits_has_a_note(table, header, values):
    """They were drawn anew without a word."""
    rows = [f"a.png,x,{values[0]}", f"b.png,y,{values[0]}", f"c.png,x,{values[1]}", f"d.png,y,{values[1]}"]
    (note,) = open_source(table(f"path,label,{header}", *rows)).notes
    assert f"column '{header.lower()}' seems to hold splits and is not used: call it 'split'" in note
    for other in ("path,label,test_score", "path,label,split"):
        rows = [row if other.endswith("score") else row.replace(",0", ",test").replace(",1", ",train") for row in rows]
        if set(values) <= {"0", "1"}:
            assert not open_source(table(other, *rows)).notes
