"""Parquet files in the layout of Hugging Face, right and wrong."""

import json
import pickle
import resource
import sys

import numpy as np
import pytest

from alexnet.data.sources import open_source
from alexnet.data.sources.layout import LayoutOptions
from alexnet.errors import DataError, ImageError
from data.conftest import counts, png_bytes


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


def test_chosen_columns(tmp_path):
    """A file of other columns is read by those that are named; one with the usual names too."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    for split in ("train", "test"):
        columns = {
            "photo": [png_bytes(0), png_bytes(1), png_bytes(2)],
            "kind": [1, 0, 1],
            "image": [png_bytes(3), png_bytes(4), png_bytes(5)],
            "label": [0, 1, 1],
        }
        parquet.write_table(arrow.table(columns), tmp_path / f"{split}-0.parquet")
    for image, label, first, labels in (
        ("photo", "kind", 0, [1, 0, 1]),
        (None, "kind", 3, [1, 0, 1]),
        ("photo", None, 0, [0, 1, 1]),
        (None, None, 3, [0, 1, 1]),
    ):
        source = open_source(tmp_path, layout=LayoutOptions(image_column=image, label_column=label))
        images = source.splits["train"]
        assert [one.label for one in images] == labels and images[0].load() == png_bytes(first)
        assert pickle.loads(pickle.dumps(images[2])).load() == png_bytes(first + 2)  # in another process
    for options, expected in (
        (LayoutOptions(image_column="foto"), "foto, and label or fine_label"),
        (LayoutOptions(label_column="\x1b[31m"), r"img or image, and \\x1b\[31m"),
        (LayoutOptions(image_column="kind"), "encoded images"),
        (LayoutOptions(label_column="photo"), "an integer or a class name"),
    ):
        with pytest.raises(DataError, match=expected) as caught:
            open_source(tmp_path, layout=options)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["rows", "bytes"])
def test_a_small_file_that_expands_without_bound_is_refused(tmp_path, kind):
    """200,000 rows in a few kilobytes, or 100 MB in one cell: columns are compressed."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    rows = 200_000 if kind == "rows" else 1
    columns = {"image": [png_bytes(0) if kind == "rows" else bytes(100 << 20)] * rows, "label": [0] * rows}
    for split in ("train", "test"):
        parquet.write_table(arrow.table(columns), tmp_path / f"{split}-0.parquet", compression="zstd")
    assert (tmp_path / "train-0.parquet").stat().st_size < 100_000
    with pytest.raises(DataError, match="hardly compress"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ("image", r"more than 1\d\d,\d{3},\d{3} bytes in column image"),
        ("label", r"more than 1\d\d,\d{3},\d{3} bytes in column label"),
        ("path", ""),  # which nothing reads
        ("categories", "text of 1 to 10,000 characters"),  # labels of Arrow's type dictionary
    ],
)
def test_a_long_value_that_a_dictionary_repeats_is_not_read_into_every_row(tmp_path, column, problem):
    """1 MB that does not compress, in every second of 20,000 rows: 10 GB if it were read, in a file of 1 MB."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    rows, long = 20_000, np.random.default_rng(0).bytes(500_000).hex()

    def repeated(*values):
        return arrow.DictionaryArray.from_arrays(np.arange(rows, dtype=np.int32) % 2, arrow.array(values))

    image = repeated(png_bytes(0), long.encode() if column == "image" else png_bytes(1))
    path = repeated("x.png", long if column == "path" else "y.png")
    label = repeated("cat", long) if column in ("label", "categories") else arrow.array(np.arange(rows) % 2)
    if column == "categories":
        cells = image.dictionary.take(image.indices)
    else:
        cells = arrow.StructArray.from_arrays([image, path], ["bytes", "path"])
    table = arrow.table({"image": cells, "label": label})
    for split in ("train", "test"):
        file = tmp_path / f"{split}-0.parquet"
        parquet.write_table(table, file, store_schema=column == "categories")
    assert file.stat().st_size < 2_500_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if problem:
        with pytest.raises(DataError, match=problem):
            open_source(tmp_path).splits["train"][7].load()
    else:
        assert open_source(tmp_path).splits["train"][7].load() == png_bytes(1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_labels_that_are_class_names(tmp_path, kind):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    kinds = {
        "string": arrow.string(),
        "large_string": arrow.large_string(),
        "dictionary": arrow.dictionary(arrow.int32(), arrow.string()),
    }
    for split, names in (("train", ["cat", "dog ", "cafe\u0301"]), ("test", ["dog", "caf\u00e9"])):
        labels = arrow.array(names, arrow.string()).cast(kinds[kind])
        table = arrow.table({"image": [png_bytes(i) for i in range(len(names))], "label": labels})
        parquet.write_table(table, tmp_path / f"{split}-0.parquet")
    source = open_source(tmp_path)
    assert source.classes == ("caf\u00e9", "cat", "dog")
    assert [one.label for split in ("train", "test") for one in source.splits[split]] == [1, 2, 0, 2, 0]
    for wrong in (None, "", "nan"):
        table = arrow.table({"image": [png_bytes(i) for i in range(2)], "label": ["cat", wrong]})
        parquet.write_table(table, tmp_path / "test-0.parquet")
        with pytest.raises(DataError, match=r"test-0.parquet#0000001: label None; must be an integer or a class name"):
            open_source(tmp_path)
    parquet.write_table(arrow.table({"image": [png_bytes(0)], "label": [0]}), tmp_path / "test-0.parquet")
    with pytest.raises(DataError, match="other class names than"):  # names in one file, numbers in the other
        open_source(tmp_path)


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


def test_parquet_without_a_row(tmp_path):
    write_parquet(tmp_path, names=(), labels=())
    write_parquet(tmp_path, names=(), labels=(), split="test")
    with pytest.raises(DataError, match="0 class; must be at least 2 classes"):
        open_source(tmp_path)


def test_a_damaged_row_group_is_bad_images(tmp_path):
    import pyarrow.parquet as parquet

    write_parquet(tmp_path)
    write_parquet(tmp_path, split="test")
    path = tmp_path / "train-00000-of-00001.parquet"
    column = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    end = column.data_page_offset + column.total_compressed_size
    end -= column.data_page_offset - (column.dictionary_page_offset or column.data_page_offset)
    data[end - 8 : end] = b"\xff" * 8
    path.write_bytes(data)
    images = open_source(tmp_path).splits["train"]
    for index in (2, 3):
        with pytest.raises(ImageError, match=r"train-.*\.parquet: row group 1 is damaged \(.*get the file again"):
            images[index].load()
    assert [images[index].load() for index in (0, 4)] == [png_bytes(0), png_bytes(4)]


def test_every_row_group_is_read_once_and_two_are_kept(tmp_path, monkeypatch):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    from alexnet.data.prepare import prepare
    from alexnet.data.sources import parquet as ours

    for split, count in (("train", 160), ("validation", 40), ("test", 40)):
        cells = [{"bytes": png_bytes(index % 7), "path": f"{index}.png"} for index in range(count)]
        table = arrow.table({"image": cells, "label": [index % 2 for index in range(count)]})
        parquet.write_table(table, tmp_path / f"{split}-0.parquet", row_group_size=20)
    read, kept, original = [], [], ours._Table._read_group

    def counted(table, group):
        read.append((table.path.name, group))
        kept.append(len(table.groups))
        return original(table, group)

    monkeypatch.setattr(ours._Table, "_read_group", counted)
    source = open_source(tmp_path)
    store = prepare(source, tmp_path / "s", size=8, shard_bytes=30 * 192, workers=2)
    assert sum(map(len, store.splits.values())) == 240 and len(read) == len(set(read)) == 8 + 2 + 2 and max(kept) <= 2
    with pytest.raises(DataError, match="mixed, of parquet files"):
        prepare(source, tmp_path / "t", size=8, mixed=True)


@pytest.mark.parametrize(
    "cells",
    [
        [1, 2],
        ["a", "b"],
        [1.5, 2.0],
        [True, False],
        [None, None],
        [[1], [2]],
        [{"path": "a"}] * 2,
        [{"bytes": 9_000_000_000_000, "path": "a"}] * 2,
        [{"bytes": "text", "path": "a"}] * 2,
        [{"bytes": [1, 2], "path": "a"}] * 2,
    ],
    ids=["integers", "text", "floats", "booleans", "nulls", "lists", "paths", "sizes", "texts", "lists of bytes"],
)
def test_a_column_that_holds_no_encoded_images_is_refused_in_one_line(tmp_path, cells):
    """An integer in place of bytes asked for as many zeros, others were tracebacks at the first image."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    for split in ("train", "test"):
        parquet.write_table(arrow.table({"img": cells, "label": [0, 1]}), tmp_path / f"{split}-0.parquet")
    with pytest.raises(
        DataError, match=r"column img holds .*; must be encoded images: .*; convert the column"
    ) as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)


def test_images_as_plain_or_large_binary_are_read(tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    for split, kind in (("train", arrow.binary()), ("test", arrow.large_binary())):
        cells = arrow.array([png_bytes(0), png_bytes(1)], kind)
        parquet.write_table(arrow.table({"img": cells, "label": [0, 1]}), tmp_path / f"{split}-0.parquet")
    source = open_source(tmp_path)
    for split in ("train", "test"):
        assert [image.load() for image in source.splits[split]] == [png_bytes(0), png_bytes(1)]


@pytest.mark.parametrize("label", [1.0, None, [1], b"a", {"a": 1}, -1, 2**62, 2_000_000_000])
def test_labels_that_number_no_class_are_refused(tmp_path, label):
    """Without class names the largest label tells how many there are: 2^62 would be a list of as many names."""
    for split in ("train", "test"):
        write_parquet(tmp_path, names=(), split=split, labels=[label] * 2 if not isinstance(label, int) else [0, label])
    with pytest.raises(DataError, match=r"#000000\d: label .*; must be (an integer or a class name|0 to \d+)"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("ab", "not a list"),
        ({"a": 0, "b": 1}, "not a list"),
        ([1, 2], "class 0 is 1"),
        (["a", "a"], "the same name"),
        (["a", ""], "class 1 is ''"),
        (["a", None], "class 1 is None"),
        (["a", "x" * 10_001], "class 1 is"),
        (["a", "\x1b[31m"], "control"),
        (["a", "b\nc"], "control"),
        (["a\u202eb", "c"], "text-dir"),
        (["a"], "1 cl"),
    ],
)
def test_class_names_of_the_wrong_kind_are_refused(tmp_path, names, reason):
    import pyarrow.parquet as parquet

    about = json.dumps({"info": {"features": {"label": {"names": names}}}})
    for split in ("train", "test"):
        write_parquet(tmp_path, names=(), split=split, labels=(0, 1))
        path = tmp_path / f"{split}-00000-of-00001.parquet"
        parquet.write_table(parquet.read_table(path).replace_schema_metadata({"huggingface": about}), path)
    with pytest.raises(DataError, match=reason) as caught:
        open_source(tmp_path)
    assert str(caught.value).isprintable()


def test_files_that_number_the_classes_otherwise_are_refused(tmp_path):
    write_parquet(tmp_path, names=("a", "b"))
    write_parquet(tmp_path, names=("b", "a"), split="test", labels=(0, 1))
    with pytest.raises(DataError, match="other class names than"):
        open_source(tmp_path)


def test_a_column_that_comes_twice_is_refused(tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    for split in ("train", "test"):
        columns = [arrow.array([png_bytes(0), png_bytes(1)])] * 2 + [arrow.array([0, 1])]
        table = arrow.Table.from_arrays(columns, ["img", "img", "label"])
        parquet.write_table(table, tmp_path / f"{split}-0.parquet")
    with pytest.raises(DataError, match="column 'img' twice"):
        open_source(tmp_path)
