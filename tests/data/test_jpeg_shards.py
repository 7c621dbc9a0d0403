"""JPEG shards: what training sees is what the stored JPEGs decode to, and no damage goes unseen."""

import io
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from alexnet.data.prepare import prepare
from alexnet.data.sources import open_source
from alexnet.data.sources.source import Sample, Source
from alexnet.data.store import Store
from alexnet.errors import DataError

from .conftest import CHILD, FEW, contents

SIDE = 32


def smooth_source(count=30):
    """Images with gradients, as photographs have."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    images = [np.stack([4 * x + 3 * i, 5 * y, 2 * (x + y) + i], 2).clip(0, 255).astype(np.uint8) for i in range(count)]
    listed = tuple(Sample(i % 3, f"all#{i:04d}", lambda i=i: images[i]) for i in range(count))
    return Source("smooth", ("a", "b", "c"), {"all": listed}, "f" * 64)


SETTINGS = {"size": SIDE, "shard_bytes": 4 * SIDE * SIDE * 3 // 8}  # four JPEGs a shard


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return prepare(smooth_source(), tmp_path_factory.mktemp("jpegs") / "s", encoding="jpeg", **SETTINGS).path


def jpegs_of(store, name):
    """The bytes of every JPEG of a split, found without the reader: index and shards by NumPy alone."""
    part, index = store.metadata["splits"][name], np.load(store.path / name / "index.npy")
    found, at = [], 0
    for shard, count in zip(part["shards"], part["counts"], strict=True):
        data, start = np.load(store.path / shard).tobytes(), 0
        for end in index[at : at + count, 0].tolist():
            found.append(data[start:end])
            start = end
        assert start == len(data)
        at += count
    return found


def test_training_sees_what_the_stored_jpegs_decode_to(made):
    store = Store.open(made)
    assert store.encoding == "jpeg" and store.metadata["version"] == 2
    pixels = {row.origin: row.load() for row in smooth_source().splits["all"]}
    for name, split in store.splits.items():
        seen = split.gather(np.arange(len(split)))
        for image, data, row in zip(seen, jpegs_of(store, name), split.origins(), strict=True):
            np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(data))))
            assert np.abs(image.astype(int) - pixels[row["origin"]]).mean() < 3
    assert len(store.metadata["splits"]["train"]["shards"]) == 6
    store.verify()


def test_statistics_are_of_the_decoded_images(made):
    store = Store.open(made)
    seen = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in jpegs_of(store, "train")]).astype(np.float64)
    np.testing.assert_allclose(store.mean_image, seen.mean(0), rtol=1e-6)
    np.testing.assert_allclose(store.channel_means, seen.mean((0, 1, 2)))
    variances = np.linalg.eigvalsh(np.cov(seen.reshape(-1, 3).T, bias=True))[::-1]
    np.testing.assert_allclose(store.color_std, np.sqrt(variances), rtol=1e-9)


def test_gathered_in_threads_as_one_by_one(made, monkeypatch):
    monkeypatch.setattr("alexnet.data.store.cores", lambda: 4)
    split = Store.open(made).split("train")
    indices = np.random.default_rng(0).integers(0, len(split), 50)
    alone = np.concatenate([split.gather(indices[i : i + 1]) for i in range(50)])
    np.testing.assert_array_equal(split.gather(indices), alone)


def test_the_fingerprint_tells_the_encoding_and_the_quality(made, tmp_path):
    raw = prepare(smooth_source(), tmp_path / "raw", size=SIDE)
    other = prepare(smooth_source(), tmp_path / "other", encoding="jpeg", quality=40, **SETTINGS)
    assert len({raw.fingerprint, other.fingerprint, Store.open(made).fingerprint}) == 3
    assert "encoding" not in raw.metadata and raw.metadata["version"] == 1  # readers before JPEG shards can read it
    sizes = [sum(map(len, jpegs_of(store, "train"))) for store in (other, Store.open(made))]
    assert sizes[0] < sizes[1] < raw.metadata["bytes"]["train/images-00000.npy"] / 3
    with pytest.raises(DataError, match="is a store of other"):
        prepare(smooth_source(), raw.path, size=SIDE, encoding="jpeg")


@pytest.mark.parametrize(("change", "message"), [({"encoding": "gif"}, "'gif'"), ({"quality": 96}, "quality 96; must")])
def test_wrong_config_are_refused(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        prepare(smooth_source(), tmp_path / "s", size=SIDE, **{"encoding": "jpeg"} | change)


def harmed(made, tmp_path, change):
    import shutil

    path = shutil.copytree(made, tmp_path / "harmed")
    shard = path / "train" / "jpegs-00002.npy"
    data = bytearray(shard.read_bytes())
    shard.write_bytes(change(data, 128 + int(np.load(path / "train" / "index.npy")[9, 0])))  # behind its second JPEG
    return path


def test_a_flipped_bit_that_decodes_is_told_with_shard_and_image(made, tmp_path):
    def flip(data, at):
        data[at - 40] ^= 1
        return data

    path = harmed(made, tmp_path, flip)
    store = Store.open(path)
    split = store.split("train")
    assert split.gather(np.array([8, 10])).shape == (2, SIDE, SIDE, 3)  # its neighbors
    what = r"train/jpegs-00002\.npy: image 1: its CRC-32 is not the recorded one; must be the JPEG"
    for indices in ([9], np.arange(len(split))):
        with pytest.raises(DataError, match=what):
            split.gather(np.array(indices))
    assert store.damaged() == ["train/jpegs-00002.npy"]


def test_a_shard_cut_short_does_not_open(made, tmp_path):
    with pytest.raises(DataError, match=r"jpegs-00002\.npy"):
        Store.open(harmed(made, tmp_path, lambda data, at: data[:at]))


@pytest.mark.parametrize("harm", ["order", "short", "version"])
def test_an_index_that_does_not_fit_is_refused(made, tmp_path, harm, reseal):
    path = harmed(made, tmp_path, lambda data, at: data)
    index = np.load(path / "train" / "index.npy")
    if harm == "version":
        reseal(path, encoding="raw")
    else:
        index[5, 0] = index[6, 0] + 1
        np.save(path / "train" / "index.npy", index if harm == "order" else index[:-1])
        reseal(path)
    with pytest.raises(DataError, match=r"index out of order|index of another shape|encoding 'raw' in version 2"):
        Store.open(path)


def test_killed_and_run_again_gives_the_same_bytes(folder, tmp_path):
    root = folder({"a": 10, "b": 6})
    settings = FEW | {"encoding": "jpeg", "shard_bytes": FEW["shard_bytes"] // 8}
    whole = prepare(open_source(root), tmp_path / "whole", **settings, workers=1)
    code = textwrap.dedent(CHILD).replace("shard_bytes=4 * 8 * 8 * 3", 'encoding="jpeg", shard_bytes=96')
    for stop in (6, 11):
        run = [sys.executable, "-c", code, str(root), str(tmp_path / "killed"), str(stop)]
        assert subprocess.run(run, capture_output=True).returncode == -signal.SIGKILL
    seen = []
    store = prepare(open_source(root), tmp_path / "killed", **settings, workers=3, progress=lambda d, t: seen.append(d))
    assert contents(store.path) == contents(whole.path) and len(seen) < 16


def test_images_in_a_drawn_order(tmp_path):
    named, mixed = (prepare(smooth_source(), tmp_path / str(m), size=SIDE, mixed=m) for m in (False, True))
    for name, split in named.splits.items():
        first, second = ([row["origin"] for row in s.split(name).origins()] for s in (named, mixed))
        assert first == sorted(second) and (len(split) < 4 or first != second)
    again = prepare(smooth_source(), tmp_path / "again", size=SIDE, mixed=True)
    assert again.fingerprint == mixed.fingerprint != named.fingerprint
