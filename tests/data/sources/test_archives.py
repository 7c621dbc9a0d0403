"""Tars are read in place; what could hurt is refused; nothing is ever written."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.data.sources import archives, open_source
from alexnet.errors import DataError, ImageError
from data.conftest import contents, counts, png_bytes


def tar_bytes(files, kind=tarfile.PAX_FORMAT):
    """A tar of ``files``: name → bytes, or a TarInfo made ready."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data in files:
            if isinstance(data, tarfile.TarInfo):
                tar.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write(tmp_path, files, name="set.tar", **options):
    (tmp_path / name).write_bytes(tar_bytes(files, **options))
    return tmp_path / name


GOOD = [(f"{c}/{i}.png", png_bytes(i + 10 * (c == "b"))) for c in "ab" for i in range(3)]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("above", ["", "./", "images/", "./data/images/"])
def test_class_folders(tmp_path, above, kind):
    path = write(tmp_path, [(above + name, data) for name, data in GOOD], kind=kind)
    before = contents(tmp_path)
    source = open_source(path)
    assert source.name == "set" and source.classes == ("a", "b")
    assert {p.origin: p.load() for p in source.splits["all"]} == dict(GOOD)
    assert contents(tmp_path) == before, "nothing is extracted"


def test_split_folders_long_names_and_other_files(tmp_path):
    files = [(f"set/{split}/{name}", data) for split in ("train", "val") for name, data in GOOD]
    files += [("set/train/a/" + "x" * 150 + ".png", png_bytes(99)), ("set/train/a/notes.txt", b"x")]
    files += [("set/train/a/.DS_Store", b"x"), ("set/train/a/._0.png", b"x")]
    source = open_source(write(tmp_path, files))
    assert counts(source) == {"train": 7, "test": 6}
    assert next(p for p in source.splits["train"] if "xxx" in p.origin).load() == png_bytes(99)
    assert "2 left out as hidden or of other programs: .DS_Store, ._*" in source.notes
    assert "not read as images: 1 file with the suffix '.txt'" in source.notes


def test_a_tar_for_each_class_in_a_tar(tmp_path):
    inner = [(f"n{c}.tar", tar_bytes([(f"n{c}_{i}.JPEG", png_bytes(7 * c + i)) for i in range(3)])) for c in (1, 2)]
    source = open_source(write(tmp_path, inner))
    assert source.classes == ("n1", "n2")
    assert {p.origin: p.load() for p in source.splits["all"]} == {
        f"n{c}/n{c}_{i}.JPEG": png_bytes(7 * c + i) for c in (1, 2) for i in range(3)
    }


def link(name, kind, target="a/0.png"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([*GOOD, ("../evil.png", b"x")], "../evil.png is a name that leads out of the archive"),
        ([*GOOD, ("a/../../evil.png", b"x")], "leads out of the archive"),
        ([*GOOD, ("/etc/evil.png", b"x")], "/etc/evil.png is a name that leads out"),
        ([*GOOD, ("", link("a/l.png", tarfile.SYMTYPE, "/etc/passwd"))], "a/l.png is a link"),
        ([*GOOD, ("", link("a/l.png", tarfile.LNKTYPE))], "a/l.png is a link"),
        ([*GOOD, ("", link("a/f.png", tarfile.FIFOTYPE))], "a/f.png is a device"),
        ([*GOOD, ("", link("a/d.png", tarfile.CHRTYPE))], "a/d.png is a device"),
        ([*GOOD, GOOD[0]], "a/0.png twice"),
        ([*GOOD, ("x/" * 250_000 + "a.png", b"x")], "is a name of 250,001 folders"),
        ([*GOOD, ("a/x\n.png", b"x")], "not named in printable UTF-8"),
        ([("train/a/0.png", b"x"), ("c/0.png", b"x")], "split folders beside 'c'"),
        ([("train/a/0.png", b"x"), ("train/b/0.png", b"x"), ("x.png", b"")], "split folders train; must be train and"),
        ([(f"{s}/{c}/0.png", b"x") for s in ("train", "val", "valid") for c in "ab"], "name the same split"),
        ([("0.png", b"x")], "images but no class folders"),
        ([], "no class folders"),
        ([("a/0.png", b"x")], "1 class"),
        ([("a.tar", tar_bytes([("b.tar", tar_bytes(GOOD))]))], "a tar in a tar in a tar"),
        ([("a.tar", b"")], "cannot be read (empty)"),
        ([("a.tar", tar_bytes([("../0.png", b"x")]))], "leads out of the archive"),
    ],
)
def test_wrong_tars_have_their_reason(tmp_path, files, message):
    path = write(tmp_path, files)
    before = contents(tmp_path)
    with pytest.raises(DataError) as caught:
        open_source(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_a_million_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 5)
    with pytest.raises(DataError, match="more than 5 files"):
        open_source(write(tmp_path, GOOD))


def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path):
    info = tarfile.TarInfo("a/x.png")
    info.type, info.size = tarfile.XHDTYPE, (1 << 33) - 1
    path = tmp_path / "set.tar"
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(10240))
    with pytest.raises(DataError, match=r"header of [\d,]+ bytes"):
        open_source(path)


def test_a_image_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    source = open_source(write(tmp_path, [*GOOD, ("a/big.png", bytes(5000))]))
    monkeypatch.setattr("alexnet.data.decode.MAX_BYTES", 4000)
    big = next(p for p in source.splits["all"] if p.origin == "a/big.png")
    with pytest.raises(ImageError, match="5,000 bytes; must be at most 4,000"):
        big.load()


def test_compressed_tars_and_cut_ones(tmp_path):
    (tmp_path / "set.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"is compressed.*must be a plain \.tar"):
        open_source(tmp_path / "set.tar.gz")
    data = tar_bytes(GOOD)
    for cut in (0, 512, 700, 1024 + 5, 1024, 2048):  # in a header, in an image, between two, without the end
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        with pytest.raises(DataError):
            open_source(tmp_path / "cut.tar")
    path = write(tmp_path, GOOD)
    source = open_source(path)
    path.write_bytes(data[:600])
    with pytest.raises(ImageError, match="the archive ends in it"):
        source.splits["all"][-1].load()
    path.unlink()
    with pytest.raises(ImageError, match="cannot be read"):
        source.splits["all"][0].load()


def test_the_doctor_reads_on_where_a_class_is_missing_in_train(tmp_path):
    files = [
        (f"{s}/{c}/0.png", png_bytes(1)) for s, c in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "c"))
    ]
    problems = []
    assert open_source(write(tmp_path, files), problems=problems).classes == ("a", "b", "c")
    assert ["class 'c' is only in test" in str(fault) for fault in problems] == [True]


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_a_damaged_tar_is_read_or_refused(tmp_path_factory, seed, count):
    import random

    draw, data = random.Random(seed), bytearray(tar_bytes(GOOD[:4]))
    for _ in range(count):
        data[draw.randrange(3000)] = draw.randrange(256)
    path = tmp_path_factory.mktemp("t") / "x.tar"
    path.write_bytes(data)
    try:
        for image in open_source(path).splits["all"]:
            image.load()
    except (DataError, ImageError) as error:
        assert "\n" not in str(error)
