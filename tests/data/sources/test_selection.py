"""Groups from columns and names, lists of what is left out; both are known again later."""

import pytest

from alexnet.data.prepare import check, prepare
from alexnet.data.sources.options import DataOptions, exclude_images, group_images, regroup_images
from alexnet.data.sources.source import Sample, Source
from alexnet.data.splits import assign_splits
from alexnet.errors import DataError
from data.conftest import array_source


def source():
    listed = tuple(
        Sample(i % 2, f"c{i % 2}/p{i // 4:02d}_{i}.png", bytes, "", {"site": f"s{i % 3}" if i else ""})
        for i in range(40)
    )
    return Source("set", ("a", "b"), {"all": listed}, "f")


def test_groups_by_column_and_by_name():
    by_column = group_images(source(), column="Site")
    assert [p.group for p in by_column.splits["all"][:4]] == ["", "s1", "s2", "s0"]
    assert by_column.grouping == "column Site" and "no group by column Site: 1 of 40 images" in by_column.notes[-1]
    by_name = group_images(source(), pattern=r"/(p\d+)_")
    assert [p.group for p in by_name.splits["all"][3:5]] == ["p00", "p01"] and not by_name.notes
    assert group_images(source(), pattern=r"p\d+").splits == by_name.splits, "without a parenthesis all of it counts"
    for one in (by_column, by_name):
        assert regroup_images(source(), one.grouping).splits == one.splits
    assert regroup_images(source(), "") == source()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"column": "age"}, "no column 'age'; must be one of site"),
        ({"pattern": "("}, "a regular expression"),
        ({"pattern": "xyz"}, "finds no group"),
        ({"pattern": "x", "column": "site"}, "leave one out"),
    ],
)
def test_wrong_groups(how, message):
    with pytest.raises(DataError, match=message):
        group_images(source(), **how)
    with pytest.raises(DataError, match=r"no column 'site'; must be a table with columns"):
        group_images(array_source(), column="site")


def test_leaving_out_moves_no_other_image(tmp_path):
    listed = tmp_path / "list"
    listed.write_text("# remark\nall#0003\tleak\nall#0007\n\nall#0999\tgone\n")
    left_out = exclude_images(array_source(), listed)
    assert left_out.excluded == {"all#0003", "all#0007"} and "1 of 3 names" in left_out.notes[-1]
    how = {"validation": 0.2, "test": 0.2, "seed": 1}
    before, after = assign_splits(array_source(), **how), assign_splits(left_out, **how)
    for name, own in before.items():
        assert [p.origin for p in after[name]] == [p.origin for p in own if p.origin not in left_out.excluded]


def test_a_byte_order_mark_is_not_of_the_first_name(tmp_path):
    """An editor had added it: the first image of the list stayed in the data."""
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbfall#0003\r\nall#0007\r\n")
    assert exclude_images(array_source(), tmp_path / "list").excluded == {"all#0003", "all#0007"}


def test_a_name_that_begins_as_a_remark_is_left_out(tmp_path):
    """A class folder called "#1"."""
    images = tuple(Sample(i % 2, f"{'#1' if i % 2 else 'b'}/{i}.png", bytes) for i in range(10))
    (tmp_path / "list").write_text("# remark\n#1/3.png\tleak\n")
    assert exclude_images(Source("set", ("#1", "b"), {"all": images}, "f"), tmp_path / "list").excluded == {"#1/3.png"}


def test_wrong_lists(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        exclude_images(array_source(), tmp_path / "none")
    (tmp_path / "list").write_text("other\tx\n")
    with pytest.raises(DataError, match="none of its 1 names is in arrays, such as 'other'"):
        exclude_images(array_source(), tmp_path / "list")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        exclude_images(array_source(), tmp_path / "bytes")
    (tmp_path / "empty").write_text("# nothing\n")
    assert exclude_images(array_source(), tmp_path / "empty").excluded == frozenset()


def test_a_class_that_is_left_out_entirely_is_refused(tmp_path):
    names = [p.origin for p in array_source().splits["all"] if p.label == 1]
    (tmp_path / "list").write_text("\n".join(names))
    with pytest.raises(DataError, match="none for training"):
        assign_splits(exclude_images(array_source(), tmp_path / "list"), validation=0.1, test=0.2, seed=0)


def test_a_store_knows_its_groups_and_what_was_left_out(tmp_path):
    (tmp_path / "list").write_text("all#0003\n")
    plain = prepare(array_source(), tmp_path / "plain", size=8)
    assert not {"grouping", "excluded"} & plain.metadata["settings"].keys()
    cut = exclude_images(group_images(array_source(), pattern=r"\d\d$"), tmp_path / "list")
    store = prepare(cut, tmp_path / "cut", size=8)
    assert (
        store.metadata["settings"]["grouping"] == r"pattern \d\d$" and len(store.metadata["settings"]["excluded"]) == 64
    )
    rows = [row for split in store.splits.values() for row in split.origins()]
    assert len(rows) == 29 and all(row["group"] == row["origin"][-2:] for row in rows)
    assert check(cut, store) == [] and check(array_source(), store) == ["all#0003: not in the store"]
    with pytest.raises(DataError, match="is a store of other"):
        prepare(array_source(), tmp_path / "cut", size=8)
    assert prepare(cut, tmp_path / "cut", size=8).fingerprint == store.fingerprint


def test_options_open_in_one_way(tmp_path, folder):
    root, told = folder({"a": 3, "b": 3}), []
    (tmp_path / "list").write_text("a/000.png\nnot/there.png\n")
    options = DataOptions(exclude=tmp_path / "list", group_pattern=r"^\w/", log=told.append)
    opened = options.open(root)
    assert opened.excluded == {"a/000.png"} and opened.splits["all"][0].group == "a/"
    assert any("1 of 2 names" in line for line in told)


def test_a_line_that_comes_again_is_logged_once():
    lines: list[str] = []
    once = DataOptions(log=lines.append).log_once()
    for text in ("found prepared", "left out", "found prepared"):
        once.log_line(text)
    assert lines == ["found prepared", "left out"]
    DataOptions().log_once().log_line("nobody reads it")
