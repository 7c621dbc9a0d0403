"""An index of neighbors, against a loop over all images; what is stale or damaged is refused."""

import tracemalloc

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from alexnet.bundle import Bundle
from alexnet.data import decode
from alexnet.errors import ModelError, RunError
from alexnet.explain import neighbors
from alexnet.explain.neighbors import Neighbors
from alexnet.export.classifier import Classifier
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model


@pytest.fixture(scope="module")
def bundle(digits):
    network = create_model("lenet5", generator=torch.Generator().manual_seed(0))
    normalization = Normalization(torch.tensor([60.0] * 3), torch.ones(3), torch.eye(3), torch.tensor(60.0))
    return Bundle(network, digits.classes, normalization, stored_size=32, fit="crop")


@pytest.fixture(scope="module")
def index(digits, bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "neighbors.safetensors"
    told = []
    made = Neighbors.build(path, bundle, digits, "ab" * 32, progress=lambda done, total: told.append((done, total)))
    assert told == [(64, 160), (128, 160), (160, 160)]
    return made


def features(digits, bundle, split="train"):
    own = digits.split(split)
    return Classifier(bundle).embed(list(own.gather(np.arange(len(own)))))


def test_it_holds_what_the_classifier_says_of_every_training_image(digits, bundle, index):
    split, origins = digits.split("train"), digits.split("train").origins()
    with safe_open(index.path, "np") as file:  # the library reads what was written without it
        np.testing.assert_allclose(file.get_tensor("features"), features(digits, bundle), atol=1e-6)
    assert len(index) == 160 and index.classes == digits.classes and index.fingerprint == digits.fingerprint
    for row in (0, 1, 77, 159):
        assert index.label(row) == digits.classes[split.labels[row]] and index.origin(row) == origins[row]["origin"]
        expected = decode.fit(split.gather(np.array([row]))[0], 64, "squash")
        assert (index.thumbnail(row) == expected).all() and expected.shape == (64, 64, 3)


@pytest.mark.parametrize("block", [neighbors.BLOCK, 84 * 8 * 7])  # all rows at once, and seven at a time
def test_the_nearest_are_those_of_a_loop(digits, bundle, index, monkeypatch, block):
    monkeypatch.setattr(neighbors, "BLOCK", block)
    wanted, known = features(digits, bundle, "test")[:9], features(digits, bundle).astype(np.float64)
    distances, rows = index.nearest(wanted, 6)
    assert distances.dtype == np.float64 and rows.dtype == np.int64
    for one, found, which in zip(wanted, distances, rows, strict=True):
        every = [float(np.sqrt(np.square(one.astype(np.float64) - other).sum())) for other in known]
        expected = sorted(range(160), key=lambda row: (every[row], row))[:6]
        np.testing.assert_allclose(found, [every[row] for row in expected], rtol=1e-6)
        assert which.tolist() == expected


def test_a_training_image_is_its_own_neighbor(digits, bundle, index):
    distances, rows = index.nearest(features(digits, bundle)[[5, 100]], 1)
    assert rows.tolist() == [[5], [100]] and distances.max() < 1e-4
    distances, rows = index.nearest(features(digits, bundle)[:2], 1000)
    assert rows.shape == (2, 160) and (np.diff(distances, axis=1) >= 0).all()
    assert index.nearest(np.zeros((0, 84), np.float32), 3)[0].shape == (0, 3)


@pytest.mark.parametrize("spread", [1e-7, 1.0, 1e30])
def test_rows_that_differ_by_less_than_float32_multiplications_tell_apart_are_in_order(tmp_path, spread):
    """A thousand rows around one point: float32 multiplications order them at random, exact distances do not."""
    random = np.random.default_rng(0)
    rows = (1000.0 + spread * random.normal(size=(1000, 32))).astype(np.float32)
    path = written(tmp_path / "close.safetensors", rows)
    wanted = rows[:3].astype(np.float64) + spread / 3
    distances, indices = Neighbors.open(path).nearest(wanted, 9)
    every = np.sqrt(np.square(wanted[:, None] - rows[None].astype(np.float64)).sum(2))  # [3, 1000]
    assert indices.tolist() == np.argsort(every, axis=1, kind="stable")[:, :9].tolist()
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :9], rtol=1e-9)


def test_a_search_reads_the_file_in_place(tmp_path):
    """16 MB of features: their squares are summed once, and a search copies none of them."""
    path = written(tmp_path / "large.safetensors", np.random.default_rng(0).normal(size=(8000, 512)))
    opened = Neighbors.open(path)
    wanted = np.zeros((1, 512))
    first = opened.nearest(wanted, 5)
    tracemalloc.start()
    second = opened.nearest(wanted, 5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6 and [part.tolist() for part in first] == [part.tolist() for part in second]


def written(path, features):
    """An index with these features and nothing else of interest."""
    count = len(features)
    save_file(
        {
            "features": features.astype(np.float32),
            "labels": np.zeros(count, np.int64),
            "thumbnails": np.zeros((count, 64, 64, 3), np.uint8),
            "origins": np.zeros(count, np.uint8),
            "ends": np.arange(1, count + 1),
        },
        path,
        {
            "format": neighbors.FORMAT,
            "version": neighbors.VERSION,
            "weights": "",
            "store": "",
            "classes": '["a", "b"]',
            "sha256": neighbors.NO_DIGEST,
        },
    )
    with path.open("r+b") as file:
        neighbors._checksum(file)
    return path


def test_what_can_not_be_asked_is_said(index):
    with pytest.raises(ModelError, match=r"features \[1, 3\] and k = 2; must be \[M, 84\]"):
        index.nearest(np.zeros((1, 3)), 2)
    with pytest.raises(ModelError, match="finite, and k at least 1"):
        index.nearest(np.full((1, 84), np.nan), 2)
    with pytest.raises(ModelError, match="k = 0"):
        index.nearest(np.zeros((1, 84)), 0)


def test_a_stale_missing_or_damaged_index_is_refused(index, tmp_path):
    assert Neighbors.open(index.path, "ab" * 32).weights == "ab" * 32
    with pytest.raises(
        RunError, match=r"was made with other weights, SHA-256 abababababab…; must be cdcdcdcdcdcd…; build it again"
    ):
        Neighbors.open(index.path, "cd" * 32)
    with pytest.raises(RunError, match="no index of neighbors at"):
        Neighbors.open(tmp_path / "none")
    content = index.path.read_bytes()
    for damaged in (content[:-9], b"hello", b"", content.replace(b'"labels"', b'"lables"')):
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(RunError, match="damaged"):
            Neighbors.open(tmp_path / "damaged")
    for place in [*range(0, 1200, 7), *range(1200, len(content), 50_001), len(content) - 1]:
        (tmp_path / "damaged").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(RunError) as caught:
            Neighbors.open(tmp_path / "damaged")
        assert str(caught.value).isprintable()
    other = tmp_path / "version"
    other.write_bytes(content.replace(b'"version": "1"', b'"version": "2"'))
    with pytest.raises(RunError, match="is no index of neighbors; must be of format alexnet-neighbors, version 1"):
        Neighbors.open(other)


def test_half_an_index_is_none(digits, bundle, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Neighbors.build(tmp_path / "index", bundle, digits, "", progress=stop)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RunError, match="cannot be written"):
        Neighbors.build(tmp_path / "no" / "index", bundle, digits, "")
