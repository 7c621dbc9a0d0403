"""Images to predict: every kind of input, in order, each once, listed without being opened."""

import io
import pickle
import sys

import pytest

from alexnet.data import remote
from alexnet.data.sources.unlabeled import UnlabeledImages
from alexnet.errors import DataError, ImageError
from data.conftest import png_bytes
from data.object_server import served
from data.sources.test_archives import tar_bytes


def names(*inputs):
    return [image.name for image in UnlabeledImages(inputs)]


def test_a_folder_is_listed_in_the_order_of_its_paths(folder):
    root = folder({"b": 2, "a/deep": 1, "a-b": 1, ".hidden": 1, "@eaDir": 1})
    (root / "a" / "deep.png").write_bytes(png_bytes(7))
    (root / "notes.txt").write_text("no image")
    visible = [path for path in sorted(root.rglob("*.png")) if not {".hidden", "@eaDir"} & {*path.parts}]
    assert names(root) == [*map(str, visible)]
    assert names(str(root)) == names(root) and len(names(root)) == 5
    assert UnlabeledImages([root]).count() == 5
    (image, *_) = UnlabeledImages([root / "b"])
    assert pickle.loads(pickle.dumps(image)).load() == png_bytes(0)


def test_several_inputs_are_listed_in_their_order_and_each_image_once(folder):
    root = folder({"b": 2, "a": 2})
    first, second = (str(root / "b" / f"00{i}.png") for i in range(2))
    assert names(second, root / "b", f"{root}/*/001.png") == [second, first, str(root / "a" / "001.png")]


def test_a_glob_that_is_a_name_too(tmp_path):
    (tmp_path / "cat[1].png").write_bytes(png_bytes(1))
    (tmp_path / "cat1.png").write_bytes(png_bytes(2))
    assert names(f"{tmp_path}/cat[1].png") == [f"{tmp_path}/cat[1].png"]
    assert names(f"{tmp_path}/cat?.png") == [f"{tmp_path}/cat1.png"]
    assert names(tmp_path / "dog[1].png") == [f"{tmp_path}/dog[1].png"]  # a path, not a glob: it is missing
    with pytest.raises(ImageError, match="cannot be read"):
        next(iter(UnlabeledImages([tmp_path / "dog[1].png"]))).load()


@pytest.mark.parametrize("entry", ["empty", "empty/*.png", "memory://nowhere/"])
def test_an_input_without_images_is_one_line(tmp_path, monkeypatch, entry):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match=f"'{entry}' holds no images; must be a file, a folder".replace("*", r"\*")):
        UnlabeledImages([entry]).count()


OURS = [
    "runs/7/run.json",
    "runs/7/recipe.toml",
    "runs/7/plots/a.png",
    "b/config.json",
    "b/model.safetensors",
    "b/1.png",
]


def test_what_this_program_wrote_is_no_image_of_a_tar_or_an_address(tmp_path, bucket):
    """As in a folder: plots of a run and the reference images of a bundle."""
    files = {name: png_bytes(i) for i, name in enumerate([*OURS, "runs/cat.png", "c/config.json", "c/2.png"])}
    (tmp_path / "set.tar").write_bytes(tar_bytes(list(files.items())[::-1]))
    bucket.pipe({f"/bucket/z/{name}": data for name, data in files.items()})
    assert {name.rpartition("set.tar/")[2] for name in names(tmp_path / "set.tar")} == {"runs/cat.png", "c/2.png"}
    for address in ("memory://bucket/z/", "memory://bucket/z"):
        assert {name.rpartition("/z/")[2] for name in names(address)} == {"runs/cat.png", "c/2.png"}
    assert len(names("memory://bucket/z/runs/7/")) == len(names("memory://bucket/z/b/*.png")) == 1  # as requested


def test_a_tar_archive(tmp_path):
    files = [("cats/1.png", png_bytes(1)), ("cats/note.txt", b"x"), ("._2.png", b"x"), ("2.PNG", png_bytes(2))]
    (tmp_path / "set.tar").write_bytes(tar_bytes(files))
    images = list(UnlabeledImages([tmp_path / "set.tar"]))
    assert [image.name for image in images] == [f"{tmp_path}/set.tar/cats/1.png", f"{tmp_path}/set.tar/2.PNG"]
    assert [image.load() for image in images] == [png_bytes(1), png_bytes(2)]
    (tmp_path / "cut.tar").write_bytes(tar_bytes(files)[:1024])
    with pytest.raises(DataError, match=r"cut\.tar: cannot be read"):
        UnlabeledImages([tmp_path / "cut.tar"]).count()
    (tmp_path / "set.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match="is compressed"):
        names(f"{tmp_path}/*.gz")


def test_a_parquet_file_without_labels(tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    path = tmp_path / "some.parquet"
    cells = [{"bytes": png_bytes(index), "path": None} for index in range(5)]
    parquet.write_table(arrow.table({"image": cells}), path, row_group_size=2)
    images = list(UnlabeledImages([path]))
    assert [image.name for image in images] == [f"{path}#{index:07d}" for index in range(5)]
    for index in (4, 0, 3):
        assert pickle.loads(pickle.dumps(images[index])).load() == png_bytes(index)
    parquet.write_table(arrow.table({"image": [1, 2]}), path)
    with pytest.raises(DataError, match="column image holds int64; must be encoded images"):
        names(path)
    parquet.write_table(arrow.table({"x": [1]}), path)
    with pytest.raises(DataError, match="columns x; must be img or image; rename the column"):
        names(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"some\.parquet: .*; must be a readable parquet file"):
        names(path)


def test_without_pyarrow_the_line_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'alexnet\[data\]'"):
        names(tmp_path / "a.parquet")


@pytest.fixture
def bucket():
    """Objects in fsspec's memory."""
    import fsspec

    system = fsspec.filesystem("memory")
    files = {f"/bucket/{name}": png_bytes(i) for i, name in enumerate(["x/b.png", "x/a.png", "x/.a.png", "x/y/c.png"])}
    system.pipe(files | {"/bucket/x/notes.txt": b"x"})
    yield system
    system.store.clear()


def test_a_folder_and_a_glob_at_an_address(bucket):
    images = list(UnlabeledImages(["memory://bucket/x/"]))
    assert [image.name.rpartition("bucket/")[2] for image in images] == ["x/a.png", "x/b.png", "x/y/c.png"]
    assert [image.load() for image in images] == [png_bytes(1), png_bytes(0), png_bytes(3)]
    assert len(names("memory://bucket/x/*.png")) == 2
    assert len(names("memory://bucket/x/b.png", "memory://bucket/x/*")) == 3


def test_what_is_not_at_an_address_is_unreadable(bucket, monkeypatch):
    (image,) = UnlabeledImages(["memory://bucket/none.png"])
    with pytest.raises(ImageError, match=r"memory://bucket/none\.png: the file does not exist"):
        image.load()
    monkeypatch.setattr("alexnet.data.decode.MAX_BYTES", 10)
    with pytest.raises(ImageError, match="bytes; must be at most 10 bytes"):
        next(iter(UnlabeledImages(["memory://bucket/x/a.png"]))).load()


def test_a_server_that_fails_is_tried_again_and_then_the_prediction_stops(tmp_path, monkeypatch):
    """Every other image of a broken server would be listed as unreadable."""
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.001)
    (tmp_path / "a.png").write_bytes(png_bytes(1))
    with served(tmp_path) as objects:
        image, missing = UnlabeledImages([f"{objects.address}/a.png", f"{objects.address}/b.png"])
        objects.faults["a.png"] = ["500", "cut"]
        assert image.load() == png_bytes(1)
        with pytest.raises(ImageError, match=r"b\.png: the file does not exist"):
            missing.load()
        objects.faults["a.png"] = ["500"] * 20
        with pytest.raises(DataError, match=r"a\.png: cannot be read .*tried 5 times"):
            image.load()


def test_the_bytes_of_a_tar_are_not_read_while_it_is_listed(tmp_path, monkeypatch):
    (tmp_path / "set.tar").write_bytes(tar_bytes([("a.png", png_bytes(1))]))
    monkeypatch.setattr("alexnet.data.sources.archives._read", lambda *args: io.BytesIO().read(-2))
    assert UnlabeledImages([tmp_path / "set.tar"]).count() == 1
