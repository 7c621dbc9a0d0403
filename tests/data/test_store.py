"""A store opens as it was written, and only then."""

import json
import pickle
import shutil

import numpy as np
import pytest

from alexnet.data.prepare import prepare
from alexnet.data.store import Store
from alexnet.errors import DataError

from .conftest import SIDE, array_source


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "made"
    prepare(array_source(), path, size=SIDE, shard_bytes=SIDE * SIDE * 3 * 4, workers=2)
    return path


@pytest.fixture
def store(made, tmp_path):
    """A copy that may be harmed."""
    return Store.open(shutil.copytree(made, tmp_path / "store"))


def test_open_gives_what_was_written(store):
    assert store.name == "arrays" and store.classes == ("k0", "k1", "k2") and store.size == SIDE
    assert {name: len(split) for name, split in store.splits.items()} == {"train": 21, "validation": 3, "test": 6}
    truth = {picture.origin: picture for picture in array_source().splits["all"]}
    for split in store.splits.values():
        for index, row in enumerate(split.origins()):
            picture = truth[row["origin"]]
            assert split.labels[index] == picture.label
            np.testing.assert_array_equal(split.gather(np.array([index]))[0], picture.load())
    store.verify()


def test_anyone_can_open_the_shards(store):
    shards = [np.load(store.path / name) for name in store.about["splits"]["train"]["shards"]]
    assert len(shards) > 3 and all(shard.dtype == np.uint8 for shard in shards)
    everything = store.split("train").gather(np.arange(len(store.split("train"))))
    np.testing.assert_array_equal(np.concatenate(shards), everything)


def test_gather_any_order_with_repeats_and_into_a_buffer(store):
    split = store.split("train")
    everything = split.gather(np.arange(len(split)))
    indices = np.array([20, 0, 5, 5, 13, 0])
    out = np.zeros((6, SIDE, SIDE, 3), np.uint8)
    assert split.gather(indices, out) is out
    np.testing.assert_array_equal(out, everything[indices])
    assert split.gather(np.zeros(0, np.int64)).shape == (0, SIDE, SIDE, 3)
    for wrong in ([len(split)], [-1]):
        with pytest.raises(IndexError):
            split.gather(np.array(wrong))
    with pytest.raises(IndexError, match="out has room for 6 pictures, 1 are asked for"):
        split.gather(np.array([0]), out)


def test_pickled_by_name(store):
    split = store.split("test")
    data = pickle.dumps((store, split))
    assert len(data) < 2000
    again, part = pickle.loads(data)
    assert again.fingerprint == store.fingerprint
    np.testing.assert_array_equal(part.gather(np.array([1])), split.gather(np.array([1])))


def test_a_missing_split_is_named(store):
    with pytest.raises(DataError, match="split 'val'; must be one of train, validation, test"):
        store.split("val")


def test_the_fingerprint_is_of_the_content(made, tmp_path):
    again = prepare(array_source(), tmp_path / "again", size=SIDE, shard_bytes=SIDE * SIDE * 3 * 4, workers=1)
    other = prepare(array_source(29), tmp_path / "other", size=SIDE)
    assert again.fingerprint == Store.open(made).fingerprint != other.fingerprint


# -- harm


def change(store, **fields):
    about = json.loads((store.path / "dataset.json").read_text())
    (store.path / "dataset.json").write_text(json.dumps(about | fields))


def test_a_newer_version_is_refused_with_its_number(store):
    change(store, version=7)
    with pytest.raises(DataError, match="store of version 7; must be version 1 or 2; update alexnet"):
        Store.open(store.path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "other"}, "dataset.json is of another program"),
        ({"version": "one"}, "store of version 'one'"),
        ({"size": "6"}, "size is '6'"),
        ({"classes": ["k0"]}, "color axes or classes"),
        ({"classes": ["k0", "k1"]}, "a label that is no class"),
        ({"channel_means": [1, 2]}, "statistics of another shape"),
        ({"color_axes": [[1, "x"]]}, "ValueError"),
        ({"splits": {}}, "damaged store"),
        ({"mean_image": "../../etc/passwd"}, "file name '../../etc/passwd'"),
        ({"size": 7}, "statistics of another shape"),
        ({"sha256": {}}, "no SHA-256 of"),
    ],
)
def test_a_wrong_description_is_refused(store, fields, message):
    change(store, **fields)
    with pytest.raises(DataError) as caught:
        Store.open(store.path)
    assert message in str(caught.value)


def test_a_shard_outside_the_store_is_refused(store):
    splits = store.about["splits"]
    splits["train"]["shards"][0] = "../train/images-00000.npy"
    change(store, splits=splits)
    with pytest.raises(DataError, match="file name"):
        Store.open(store.path)


@pytest.mark.parametrize("name", ["train/images-00001.npy", "train/labels.npy", "mean.npy"])
@pytest.mark.parametrize("harm", ["gone", "short", "empty", "pickle"])
def test_missing_and_short_files_are_refused(store, name, harm):
    path = store.path / name
    if harm == "gone":
        path.unlink()
    elif harm == "pickle":
        np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    else:
        path.write_bytes(path.read_bytes()[: -5 if harm == "short" else 0])
    with pytest.raises(DataError, match=name):
        Store.open(store.path)


def test_no_store_no_json(store, tmp_path):
    with pytest.raises(DataError, match=r"no store; must be a folder with dataset\.json"):
        Store.open(tmp_path / "nothing")
    (store.path / "dataset.json").write_bytes(b'{"format": "alexnet-st')
    with pytest.raises(DataError, match="damaged store"):
        Store.open(store.path)


@pytest.mark.parametrize("name", ["train/images-00002.npy", "test/labels.npy", "train/origins.jsonl", "skipped.jsonl"])
def test_verify_names_the_file_of_a_flipped_bit(store, name):
    store.verify()
    data = bytearray((store.path / name).read_bytes() or b"x")
    data[-1] ^= 1
    (store.path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name}: SHA-256 is not the recorded one; prepare the data set again"):
        store.verify()


@pytest.mark.parametrize(
    ("soft", "hard", "said"), [(64, 4096, "opened"), (64, 64, "100 shards; must be fewer than the 64")]
)
def test_too_few_file_handles(tmp_path, soft, hard, said):
    """A memory map holds a handle: as many as the system gives are asked for, else the line says what to change."""
    import subprocess
    import sys

    prepare(array_source(150), tmp_path / "s", size=SIDE, shard_bytes=SIDE * SIDE * 3, validation=0.1, test=0.26)
    code = """
import resource, sys
from alexnet.data.store import Store
from alexnet.errors import DataError
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[3])))
try:
    print("opened", len(Store.open(sys.argv[1]).splits))
except DataError as error:
    print(error)
"""
    words = [sys.executable, "-c", code, str(tmp_path / "s"), str(soft), str(hard)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert said in done.stdout and "Too many open" not in done.stdout, done.stdout + done.stderr
