"""A store opens as it was written, and only then."""

import json
import os
import pickle
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from alexnet.data.atomic_io import sha256_of as places_sha256
from alexnet.data.prepare import prepare
from alexnet.data.store import Store
from alexnet.data.store_backend import read_array
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
    truth = {image.origin: image for image in array_source().splits["all"]}
    for split in store.splits.values():
        for index, row in enumerate(split.origins()):
            image = truth[row["origin"]]
            assert split.labels[index] == image.label
            np.testing.assert_array_equal(split.gather(np.array([index]))[0], image.load())
    store.verify()


def test_anyone_can_open_the_shards(store):
    shards = [np.load(store.path / name) for name in store.metadata["splits"]["train"]["shards"]]
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
    with pytest.raises(IndexError, match="out has room for 6 images, 1 are requested"):
        split.gather(np.array([0]), out)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_that_were_read_can_be_released(store):
    """As they count as memory of the process, preparing a million images would seem to take all of it."""
    split = store.split("train")
    everything = split.gather(np.arange(len(split)))
    assert _resident(store.path) > 0
    split.release_memory()
    assert _resident(store.path) == 0
    np.testing.assert_array_equal(split.gather(np.arange(len(split))), everything)


def _resident(folder):
    """Kilobytes of the files in ``folder`` that are mapped and in memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = f" {folder}/" in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


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


EDITS = {
    "means": {"channel_means": [1.0, 2.0, 3.0]},
    "classes swapped": {"classes": ["k1", "k0", "k2"]},
    "class renamed": {"classes": ["k0", "k1", "zebra"]},
    "fit": {"fit": "pad"},
    "allow_hflip": {"allow_hflip": False},
    "fingerprint": {"fingerprint": "0" * 64},
    "source": {"source_fingerprint": "0" * 64},
    "settings": {"settings": {}},
    "color": {"color_std": [1.0, 1.0, 1.0]},
    "skipped": {"skipped": 3},
    "an entry more": {"note": "mine"},
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_description_is_refused(store, name):
    about = json.loads((store.path / "dataset.json").read_text())
    (store.path / "dataset.json").write_text(json.dumps(about | EDITS[name]))
    with pytest.raises(DataError, match="has changed since it was written: its checksum differs"):
        Store.open(store.path)


def test_a_description_without_a_seal_is_refused(store):
    about = json.loads((store.path / "dataset.json").read_text())
    del about["checksum"]
    (store.path / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="missing required field `checksum`"):
        Store.open(store.path)


def test_a_fingerprint_of_other_content_is_refused(store, reseal):
    reseal(store.path, fingerprint="0" * 64)
    with pytest.raises(DataError, match="the fingerprint is not that of its classes and files"):
        Store.open(store.path)


USES = {
    "train/images-00002.npy": lambda s: s.split("train").gather(np.arange(len(s.split("train")))),
    "test/images-00001.npy": lambda s: s.split("test").gather(np.array([5])),
    "train/labels.npy": lambda s: s.split("train").labels,
    "mean.npy": lambda s: s.mean_image,
    "train/origins.jsonl": lambda s: s.split("train").origins(),
    "skipped.jsonl": lambda s: s.left_out(),
}


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("opened", ["in this process", "in another process"])
def test_a_flipped_bit_is_noticed_at_first_use(store, name, opened):
    """Not only by verify; also where the system does not tell that the file changed, as when a disk decays."""
    from alexnet.data import store_backend

    path = store.path / name
    data, status = bytearray(path.read_bytes() or b"x"), path.stat()
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    if opened == "in another process":
        store_backend._checked.clear()
    with pytest.raises(DataError, match=f"{name}: SHA-256 is not the recorded one; prepare the data set again"):
        USES[name](Store.open(store.path))


@pytest.mark.parametrize("name", ["dataset.json", *USES])
@pytest.mark.parametrize("kind", ["pipe", "link to a device"])
def test_a_file_that_never_ends_is_refused(store, name, kind):
    """In place of any file of a store: it was read without end."""
    path = store.path / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="not a regular file"):
        USES.get(name, lambda _store: None)(Store.open(store.path))
    if name != "dataset.json":
        with pytest.raises(DataError, match=f"{name}: SHA-256 is not the recorded one"):
            store.verify()


def test_no_two_threads_parse_a_header(store, monkeypatch):
    """Python's parser fails in two threads at a time ("AST constructor recursion depth mismatch")."""
    inside, most, load = [], [], np.load

    def recorded(*args, **kwargs):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.005)  # here the others come, if they may
        inside.pop()
        return load(*args, **kwargs)

    monkeypatch.setattr(np, "load", recorded)
    shard = store.path / "train" / "images-00000.npy"
    with ThreadPoolExecutor(8) as pool:
        arrays = list(pool.map(lambda _: read_array(shard, np.uint8, 4), range(40)))
    assert max(most) == 1 and all(np.array_equal(arrays[0], array) for array in arrays)


def test_each_file_is_hashed_once_a_process(store, monkeypatch):
    from alexnet.data import store_backend

    hashed = []
    monkeypatch.setattr(store_backend, "sha256_of", lambda path: hashed.append(path) or places_sha256(path))
    store_backend._checked.clear()
    for _ in range(3):
        split = Store.open(store.path).split("train")
        split.gather(np.arange(len(split)))
    assert len(hashed) == len(set(hashed)) == 4 + len(store.metadata["splits"]["train"]["shards"])  # mean, three labels


def test_a_newer_version_is_refused_with_its_number(store, reseal):
    reseal(store.path, version=7)
    with pytest.raises(DataError, match="store of version 7; must be version 1 or 2; update alexnet"):
        Store.open(store.path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "other"}, "dataset.json is of another program"),
        ({"version": "one"}, "store of version 'one'"),
        ({"size": "6"}, "Expected `int`, got `str` - at `$.size`"),
        ({"size": 20000}, "Expected `int` <= 4096 - at `$.size`"),
        ({"size": 32.5}, "at `$.size`"),
        ({"fit": "zoom"}, "at `$.fit`"),
        ({"classes": ["k0"]}, "1 classes: at least 2 are needed"),
        ({"classes": ["k0", "k1", 2]}, "at `$.classes[2]`"),
        ({"classes": ["k0", "k1", "k0"]}, "the same name 'k0'"),
        ({"classes": ["k0", "k1", "\x1b[2J"]}, "control and text-direction characters"),
        ({"skipped": -1}, "at `$.skipped`"),
        ({"channel_means": [float("nan"), 1, 2]}, "NaN in place of a number"),
        ({"classes": ["k0", "k1"]}, "a label that is no class"),
        ({"channel_means": [1, 2]}, "at `$.channel_means`"),
        ({"color_axes": [[1, 0, "x"]]}, "at `$.color_axes"),
        ({"splits": {}}, "damaged store"),
        ({"mean_image": "../../etc/passwd"}, "file name '../../etc/passwd'"),
        ({"size": 7}, "statistics of another shape"),
        ({"sha256": {}}, "no SHA-256 of"),
        ({"sha256": {"mean.npy": "1"}}, "at `$.sha256"),
    ],
)
def test_a_wrong_description_is_refused(store, reseal, fields, message):
    reseal(store.path, **fields)
    with pytest.raises(DataError) as caught:
        Store.open(store.path)
    assert message in str(caught.value)


def test_a_shard_outside_the_store_is_refused(store, reseal):
    splits = json.loads((store.path / "dataset.json").read_text())["splits"]
    splits["train"]["shards"][0] = "../train/images-00000.npy"
    reseal(store.path, splits=splits)
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


ROW = {"origin": "all#0", "sha256": "0" * 64, "notes": []}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (3, "train/origins.jsonl: Expected `object`, got `int`"),
        ({}, "missing required field `origin`"),
        (ROW | {"origin": None}, "$[0].origin"),
        (ROW | {"sha256": "x"}, "$[0].sha256"),
        (ROW | {"notes": "truncated"}, "$[0].notes"),
        (ROW | {"group": 3}, "$[0].group"),
        (ROW | {"columns": {"camera": 3}}, "$[0].columns"),
        (None, "train/origins.jsonl has"),
    ],
)
def test_rows_of_another_form_are_refused(store, reseal, row, message):
    """Of a store with valid hashes, they were tracebacks of whatever read them."""
    path = store.path / "train" / "origins.jsonl"
    lines = path.read_text().splitlines()[1:]
    path.write_text("\n".join(([] if row is None else [json.dumps(row)]) + lines) + "\n")
    sha256 = store.metadata["sha256"] | {"train/origins.jsonl": places_sha256(path)}
    reseal(store.path, sha256=sha256, bytes=store.metadata["bytes"] | {"train/origins.jsonl": path.stat().st_size})
    with pytest.raises(DataError, match="damaged store") as caught:
        Store.open(store.path).split("train").origins()
    assert message in str(caught.value)


def test_a_mean_image_without_numbers_is_refused(store, reseal):
    path = store.path / "mean.npy"
    for value in (float("nan"), -1.0, 1e30):
        np.save(path, np.full((SIDE, SIDE, 3), value, np.float32))
        reseal(store.path, sha256=store.metadata["sha256"] | {"mean.npy": places_sha256(path)})
        with pytest.raises(DataError, match=r"mean\.npy: values that are no gray levels"):
            Store.open(store.path)


@pytest.mark.parametrize(
    "header", [b"(" * 100, b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 6, 6, 3), }", b"{"]
)
def test_a_shard_with_a_strange_header_is_refused(store, reseal, header):
    """NumPy raises a TokenError or an OverflowError of such ones."""
    name = store.metadata["splits"]["train"]["shards"][0]
    path = store.path / name
    path.write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header.ljust(117) + b"\n" + path.read_bytes()[128:])
    reseal(store.path, sha256=store.metadata["sha256"] | {name: places_sha256(path)})
    with pytest.raises(DataError, match=r"images-00000\.npy"):
        Store.open(store.path)
