"""Stores behind an address: the same images bit for bit, whatever the network does, or one clear line."""

import pickle
import shutil
import threading

import numpy as np
import pytest

from alexnet.data.cache import Cache, default_cache, set_default_cache
from alexnet.data.prepare import prepare
from alexnet.data.remote import RemoteBackend, is_address
from alexnet.data.sources import is_store, open_source
from alexnet.data.store import Store
from alexnet.errors import DataError

from .conftest import SIDE, array_source
from .object_server import served

SHARD = 4 * SIDE * SIDE * 3 + 128  # bytes of a shard of four images


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def made(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / request.param
    more = {"encoding": "jpeg", "shard_bytes": SIDE * SIDE * 3 // 2} if request.param == "jpeg" else {}
    return prepare(array_source(), path, size=SIDE, **{"shard_bytes": SIDE * SIDE * 3 * 4} | more).path


@pytest.fixture
def raw(tmp_path):
    return prepare(array_source(), tmp_path / "raw", size=SIDE, shard_bytes=SIDE * SIDE * 3 * 4).path


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", ahead=2, attempts=4, first_wait=0.01)


@pytest.fixture
def in_memory():
    """``in_memory(folder)`` copies a store to memory:// and gives its address."""
    import fsspec

    system = fsspec.filesystem("memory")

    def put(folder):
        system.put(str(folder), "/bucket/store", recursive=True)
        return "memory://bucket/store"

    yield put
    system.rm("/bucket", recursive=True)


def same(a, b):
    for name, split in a.splits.items():
        other, everything = b.split(name), np.arange(len(split))
        np.testing.assert_array_equal(split.gather(everything), other.gather(everything))
        np.testing.assert_array_equal(split.labels, other.labels)
        assert split.origins() == other.origins() and split.counts == other.counts
    np.testing.assert_array_equal(a.mean_image, b.mean_image)
    return a.fingerprint == b.fingerprint and a.left_out() == b.left_out()


def test_memory_equals_local_bit_for_bit(made, in_memory, cache):
    address = in_memory(made)
    assert is_address(address) and is_store(address) and not is_address(str(made))
    store = Store.open(address + "/", cache)
    assert same(Store.open(made), store) and store.absolute == address
    store.verify()
    with pytest.raises(DataError, match="memory://bucket/store: is not a folder on this disk"):
        _ = store.path


def test_http_equals_local_with_every_fault(made, cache):
    local = Store.open(made)
    with served(made) as objects:
        objects.faults = {name: ["500", "cut", "wrong"] for name in local.metadata["sha256"]} | {
            "dataset.json": ["500"]
        }
        assert same(local, Store.open(objects.address, cache))
        assert {objects.asked[name] for name in local.metadata["splits"]["train"]["shards"]} == {4}
        again = objects.asked.total()
        assert same(local, Store.open(objects.address, cache))
        assert objects.asked.total() == again + 1  # only dataset.json: the rest is in the cache


def test_a_server_without_ranges(raw, cache, monkeypatch):
    monkeypatch.setattr("alexnet.data.remote.CHUNK", 100)
    with served(raw) as objects:
        objects.ranges = False
        assert same(Store.open(raw), Store.open(objects.address, cache))


@pytest.mark.parametrize(
    ("kind", "reason"), [("500", "500"), ("cut", "not enough data|payload"), ("wrong", "SHA-256 is not")]
)
def test_what_stays_wrong_is_one_line_with_the_shard(raw, cache, kind, reason):
    with served(raw) as objects:
        split = Store.open(objects.address, cache).split("train")
        objects.faults = {"train/images-00001.npy": [kind] * 99}
        with pytest.raises(DataError, match=r"train/images-00001\.npy: cannot be fetched") as caught:
            split.gather(np.arange(len(split)))
        said = str(caught.value)
        assert "tried 4 times); check the address, network and permissions" in said and "\n" not in said
        assert any(word in said.lower() for word in reason.lower().split("|")), said
        assert objects.asked["train/images-00001.npy"] == 4
        objects.faults.clear()
        assert len(split.gather(np.array([5]))) == 1  # the same store goes on when the network does
    assert not list(cache.folder.glob("*.part"))


def test_a_server_that_hangs_is_an_error_in_bounded_time(raw, cache, monkeypatch):
    monkeypatch.setattr("alexnet.data.remote._TIMEOUT_S", 0.3)
    with served(raw) as objects:
        split = Store.open(objects.address, cache).split("train")
        objects.pause = 2.0
        with pytest.raises(DataError, match=r"images-00000\.npy: cannot be fetched \(FSTimeoutError; tried 4 times\)"):
            split.gather(np.array([0]))


def test_what_is_hopeless_is_told_at_once(raw, cache):
    with served(raw) as objects:
        holds_none = r"nothing: holds no store .dataset\.json does not exist.; must be the address of a store.*prepare"
        with pytest.raises(DataError, match=holds_none):
            Store.open(objects.address + "/nothing", cache)
        (raw / "train" / "images-00000.npy").unlink()
        with pytest.raises(DataError, match=r"train/images-00000\.npy: the file does not exist"):
            Store.open(objects.address, cache).split("train").gather(np.array([0]))
        assert objects.asked["train/images-00000.npy"] == 1
    with pytest.raises(DataError, match="nosuch://a: Protocol not known: nosuch; must be an address"):
        Store.open("nosuch://a", cache)
    with pytest.raises(DataError, match="images cannot be read from an address"):
        open_source("s3://bucket/images")


def test_a_missing_client_is_named(monkeypatch, cache):
    import sys

    import fsspec

    monkeypatch.setitem(sys.modules, "s3fs", None)
    fsspec.registry.target.pop("s3", None) if hasattr(fsspec.registry, "target") else None
    with pytest.raises(DataError, match=r"s3://b/s: s3 needs s3fs; must be installed; pip install s3fs"):
        Store.open("s3://b/s", cache)


def test_a_damaged_file_in_the_cache_is_fetched_again(raw, cache):
    from alexnet.data import cache as caching

    with served(raw) as objects:
        store = Store.open(objects.address, cache)
        store.split("train").gather(np.array([0]))
        kept = cache.folder / (store.metadata["sha256"]["train/images-00000.npy"] + ".shard")
        data = bytearray(kept.read_bytes())
        data[-1] ^= 1
        kept.write_bytes(data)
        caching._verified.clear()  # as a new process begins
        assert same(Store.open(raw), Store.open(objects.address, cache))


def test_the_bound_holds_and_the_least_recently_used_goes_first(raw, in_memory, cache):
    import dataclasses

    bound = 5 * SHARD
    store = Store.open(in_memory(raw), dataclasses.replace(cache, max_bytes=bound))
    local, split = Store.open(raw).split("train"), store.split("train")
    rng = np.random.default_rng(0)
    for _ in range(60):
        indices = rng.integers(0, len(split), 3)
        np.testing.assert_array_equal(split.gather(indices), local.gather(indices))
        assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= bound
    names = [
        cache.folder / (store.metadata["sha256"][name] + ".shard")
        for name in store.metadata["splits"]["train"]["shards"]
    ]
    for number in (0, 1, 2, 3, 0, 4, 5):
        split.gather(np.array([4 * number]))
    assert names[0].exists() and names[5].exists() and not names[1].exists()
    with pytest.raises(DataError, match=r"6 shards of up to \d+ bytes are used at once; must be at most"):
        split.expecting(rng.permutation(len(split)))
    with pytest.raises(DataError, match="560 bytes; must be at most the cache's 500; give a larger --cache-gb"):
        dataclasses.replace(cache, max_bytes=500).obtain("0" * 64, 560, "x", lambda file: None)
    largest = max(store.metadata["bytes"].values())
    with pytest.raises(DataError, match=rf"memory://.*: {largest:,} bytes; .* give a larger --cache-gb"):
        Store.open("memory://bucket/store", dataclasses.replace(cache, max_bytes=largest - 1))


def test_fetching_ahead_overlaps_with_use(raw, cache):
    with served(raw) as objects:
        split = Store.open(objects.address, cache).split("train")
        objects.asked.clear()
        everything = np.arange(len(split))
        with split.expecting(everything):
            split.gather(everything[:1])
            for _ in range(500):  # while the first is used, the next two come by themselves
                if len(objects.asked) == 3:
                    break
                threading.Event().wait(0.01)
            shards = [f"train/images-{number:05d}.npy" for number in range(6)]
            assert sorted(objects.asked) == shards[:3]
            objects.pause = 0.1
            np.testing.assert_array_equal(split.gather(everything), Store.open(raw).split("train").gather(everything))
        assert objects.most_busy == 2 and sorted(objects.asked) == shards
        assert set(objects.asked.values()) == {1}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shards")]


def test_leaving_early_fetches_no_more(raw, cache):
    with served(raw) as objects:
        split = Store.open(objects.address, cache).split("train")
        objects.asked.clear()
        with split.expecting(np.arange(len(split))):
            split.gather(np.array([0]))
        assert len(objects.asked) <= 3
        split.gather(np.array([20]))  # not ahead: asked for by itself
        assert "train/images-00005.npy" in objects.asked


def test_many_threads_fetch_a_file_once(raw, cache):
    with served(raw) as objects:
        objects.pause = 0.05
        splits = [Store.open(objects.address, cache).split("train") for _ in range(4)]
        threads = [threading.Thread(target=split.gather, args=(np.array([0]),)) for split in splits]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert objects.asked["train/images-00000.npy"] == 1


def test_what_a_killed_process_left_is_swept(raw, in_memory, cache):
    cache.folder.mkdir()
    store = Store.open(in_memory(raw), cache)
    left = [
        cache.folder / (sha + ".shard.part") for sha in ("0" * 64, store.metadata["sha256"]["train/images-00000.npy"])
    ]
    for path in left:
        path.write_bytes(bytes(5000))
    import dataclasses

    small = Store.open("memory://bucket/store", dataclasses.replace(cache, max_bytes=10 * SHARD))
    assert same(Store.open(raw), small)
    assert not list(cache.folder.glob("*.part"))


def test_a_full_disk_is_told(raw, in_memory, cache, monkeypatch):
    store = Store.open(in_memory(raw), cache)

    def full(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(DataError, match=r"cache: No space left on device, 560 bytes needed, .* free; make room"):
        store.split("train").gather(np.array([0]))


def test_pickled_by_address(raw, in_memory, cache):
    store = Store.open(in_memory(raw), cache)
    again, part = pickle.loads(pickle.dumps((store, store.split("test"))))
    assert again.fingerprint == store.fingerprint and again.backend.cache == cache
    np.testing.assert_array_equal(part.gather(np.array([1])), store.split("test").gather(np.array([1])))


def test_the_chosen_cache_is_used(raw, in_memory, cache):
    before = default_cache()
    set_default_cache(cache)
    try:
        assert Store.open(in_memory(raw)).backend.cache is cache
    finally:
        set_default_cache(before)
    shutil.rmtree(cache.folder)


def test_a_store_is_sent_whole_and_goes_on_where_it_was_cut_off(raw, in_memory, cache, monkeypatch):
    import fsspec

    system, said, put = fsspec.filesystem("memory"), [], RemoteBackend._put
    place = RemoteBackend("memory://bucket/new", cache)

    def fails(self, path, name):
        if name == "train/images-00002.npy":
            raise OSError("connection reset")
        put(self, path, name)

    system.mkdir("/bucket")
    monkeypatch.setattr(RemoteBackend, "_put", fails)
    with pytest.raises(DataError, match=r"images-00002\.npy: cannot be written \(OSError: connection reset; tried 4"):
        place.send(raw, said.append)
    assert not system.exists("/bucket/new/dataset.json") and said[-1] == "sending train/images-00002.npy"
    monkeypatch.setattr(RemoteBackend, "_put", put)
    first = len(said)
    place.send(raw, said.append)
    names = [line.removeprefix("sending ") for line in said]
    assert (
        names[first] == "train/images-00002.npy" and names[-1] == "dataset.json" and len(set(names)) == len(names) - 1
    )
    assert same(Store.open(raw), Store.open("memory://bucket/new", cache))
    place.send(raw, said.append)
    assert len(said) == len(names)  # the same store is there: nothing to do
    other = prepare(array_source(29), raw.parent / "other", size=SIDE)
    with pytest.raises(DataError, match="memory://bucket/new: holds another store"):
        place.send(other.path, said.append)


class Buckets:
    """A file system as those of s3fs and gcsfs: it has no folders, and ``makedirs`` creates a bucket."""

    def exists(self, path):
        return False

    def makedirs(self, path, exist_ok):
        raise AssertionError("a bucket would be created")

    def put_file(self, local, path):
        raise FileNotFoundError("The specified bucket does not exist")


def test_a_missing_bucket_is_not_created(raw, cache, monkeypatch):
    monkeypatch.setattr("alexnet.data.remote._file_system", lambda address: (Buckets(), "misspelled/store"))
    place = RemoteBackend("s3://misspelled/store", cache)
    with pytest.raises(DataError, match=r"s3://misspelled/store: cannot be written .there is no such bucket"):
        place.send(raw, lambda line: None)


def test_a_place_that_takes_no_files_is_refused(raw, cache):
    with served(raw / "train") as objects, pytest.raises(DataError, match="cannot be written"):
        RemoteBackend(objects.address, cache).send(raw, lambda line: None)


def test_making_room_leaves_what_is_not_the_caches(raw, in_memory, cache, tmp_path):
    """A thesis, a folder, links to files elsewhere, and names that only resemble those of the cache."""
    import dataclasses
    import os

    cache.folder.mkdir()
    thesis, target = cache.folder / "thesis.pdf", tmp_path / "target"
    others = [thesis, cache.folder / ("0" * 64 + ".txt"), cache.folder / ("0" * 63 + ".shard"), target]
    others += [cache.folder / ("3" * 64), cache.folder / ("4" * 64 + ".part")]  # of a program that names files so
    for path in others:
        path.write_bytes(b"mine" * 5000)
        os.utime(path, ns=(1, 1))  # the least recently used of all
    (cache.folder / ("1" * 64 + ".shard")).mkdir()
    (cache.folder / ("2" * 64 + ".shard")).symlink_to(target)
    (cache.folder / "folder").mkdir()
    store = Store.open(in_memory(raw), dataclasses.replace(cache, max_bytes=5 * SHARD))
    split = store.split("train")
    np.testing.assert_array_equal(
        split.gather(np.arange(len(split))), Store.open(raw).split("train").gather(np.arange(len(split)))
    )
    assert all(path.read_bytes() == b"mine" * 5000 for path in others)
    assert (cache.folder / ("1" * 64 + ".shard")).is_dir() and (cache.folder / ("2" * 64 + ".shard")).is_symlink()


def test_a_link_in_the_place_of_a_partial_file_is_not_written_through(raw, in_memory, cache, tmp_path):
    store = Store.open(in_memory(raw), cache)
    target = tmp_path / "thesis.pdf"
    target.write_bytes(b"mine")
    (cache.folder / (store.metadata["sha256"]["train/images-00000.npy"] + ".shard.part")).symlink_to(target)
    with pytest.raises(DataError, match="bytes needed"):
        store.split("train").gather(np.array([0]))
    assert target.read_bytes() == b"mine"
