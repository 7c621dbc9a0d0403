"""An epoch that has only a few shards in use at a time: which order, how well mixed, and the same from anywhere."""

import dataclasses

import numpy as np
import pytest

from alexnet.loader import sampler

COUNTS = [40] * 29 + [17]


def test_every_image_once_and_a_pure_function():
    order = sampler.windowed_order(COUNTS, 3, 5, 4)
    assert order.dtype == np.int64 and np.array_equal(np.sort(order), np.arange(sum(COUNTS)))
    assert np.array_equal(order, sampler.windowed_order(COUNTS, 3, 5, 4))
    others = [(4, 5, 4), (3, 6, 4), (3, 5, 5)]
    assert all(not np.array_equal(order, sampler.windowed_order(COUNTS, *other)) for other in others)


@pytest.mark.parametrize("window", [1, 4, 7])
def test_by_the_slow_formula(window):
    """Each image's time by itself, in plain Python floats."""
    seed, epoch, shards = 11, 2, len(COUNTS)
    drawn = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 2])).permutation(shards).tolist()
    own = sampler.step_seed(seed, epoch, stream=4)
    timed, image = [], 0
    for shard, count in enumerate(COUNTS):
        for _ in range(count):
            number = float(sampler.uniforms(own, epoch, np.array([image]), 1)[0, 0])
            time = abs(drawn.index(shard) + 0.5 + window * (number - 0.5))
            timed.append((2 * shards - time if time > shards else time, image))
            image += 1
    assert sampler.windowed_order(COUNTS, seed, epoch, window).tolist() == [image for _, image in sorted(timed)]


def in_use(order, counts):
    """How many shards are between their first and last image, at each place of the order."""
    shard = np.repeat(np.arange(len(counts)), counts)[order]
    spans = [np.flatnonzero(shard == number)[[0, -1]] for number in range(len(counts))]
    return np.array([sum(a <= place <= b for a, b in spans) for place in range(len(order))])


@pytest.mark.parametrize("window", [1, 4, 8])
def test_no_more_shards_are_in_use_than_the_window_and_one(window):
    for epoch in range(3):
        used = in_use(sampler.windowed_order(COUNTS, 0, epoch, window), COUNTS)
        assert used.max() <= window + 1
        assert used[300:-300].mean() > 0.8 * window  # and not many fewer: they are mixed
    assert in_use(sampler.epoch_order(sum(COUNTS), 0, 0), COUNTS)[300:-300].min() == len(COUNTS)


def test_a_window_of_all_shards_is_the_full_permutation():
    for window in (30, 31, 10**6):
        assert np.array_equal(sampler.windowed_order(COUNTS, 1, 2, window), sampler.epoch_order(sum(COUNTS), 1, 2))
    assert len(sampler.windowed_order([], 0, 0, 1)) == 0


def test_every_image_comes_early_and_late_alike_over_the_epochs():
    """The mean place over 400 epochs is the middle, to five standard errors, for whatever their shard."""
    n = sum(COUNTS)
    places = np.array([np.argsort(sampler.windowed_order(COUNTS, 0, epoch, 6)) for epoch in range(400)])  # [E, n]
    error = n / np.sqrt(12 * 400)
    for image in (0, 1, 600, n - 1):
        assert abs(places[:, image].mean() - (n - 1) / 2) < 5 * error
        assert abs(np.corrcoef(places[:, 0], places[:, n - 1])[0, 1]) < 0.2


def test_classes_in_a_batch_where_each_shard_is_one_class():
    """The worst case, shards in the order of classes: a batch of 64 has as many classes as 64 draws from the shards in
    use would give, window · (1 − (1 − 1/window)^64), and the full permutation those of all 300."""
    counts, labels = [50] * 300, np.repeat(np.arange(300), 50)

    def classes(order):  # in the middle third of an epoch
        return np.mean([len(np.unique(labels[batch])) for batch in sampler.batches(order, 64)[78:-78]])

    for window, expected in ((4, 4.0), (16, 15.7), (64, 64 * (1 - (63 / 64) ** 64))):
        found = np.mean([classes(sampler.windowed_order(counts, 0, epoch, window)) for epoch in range(5)])
        assert expected - 1.5 < found < expected + 1.5, (window, found)
    assert classes(sampler.epoch_order(15000, 0, 0)) == pytest.approx(300 * (1 - (299 / 300) ** 64), abs=1.5)


# -- through the loader


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """160 digits to train in shards of 16, and the same behind memory://."""
    import fsspec

    from alexnet.data.cache import Cache
    from alexnet.data.prepare import prepare
    from alexnet.data.sources import open_source
    from alexnet.data.store import Store

    root = tmp_path_factory.mktemp("windowed")
    source = open_source("digits")
    few = dataclasses.replace(source, splits={"all": source.splits["all"][:250]}, fingerprint="first 250")
    local = prepare(few, root / "s", size=32, validation=0.2, test=0.2, shard_bytes=16 * 32 * 32 * 3)
    system = fsspec.filesystem("memory")
    system.put(str(local.path), "/windowed", recursive=True)
    yield local, Store.open("memory://windowed", Cache(root / "cache", max_bytes=16 * 50000, first_wait=0.01))
    system.rm("/windowed", recursive=True)


def batches_of(store, recipe, epoch, start=0, workers=1):
    import torch

    from alexnet.loader.augmentation import Normalization
    from alexnet.loader.loader import Loader

    axes = torch.tensor(store.color_axes).float()
    normalization = Normalization(torch.from_numpy(store.mean_image), torch.ones(3), axes, torch.tensor(1.0))
    made = Loader(
        store.split("train"),
        recipe,
        normalization,
        image_size=28,
        channels=3,
        device=torch.device("cpu"),
        num_workers=workers,
        validation=store.split("validation"),
    )
    return list(made.epoch(epoch, start))


def test_the_same_batches_from_an_address_and_from_the_middle_of_an_epoch(cut):
    import torch

    from alexnet.recipe import Recipe

    local, remote = cut
    recipe = Recipe(stored_size=32, batch_size=20, shuffle_window=3, train_on_val_from_epoch=2, select_weights="last")
    for epoch in (1, 2):  # in epoch 2 validation images train too
        whole = batches_of(local, recipe, epoch)
        assert len(whole) == 8 + 2 * (epoch == 2)
        for made in (batches_of(remote, recipe, epoch, workers=3), whole[:3] + batches_of(remote, recipe, epoch, 3)):
            assert all(torch.equal(a.images, b.images) for a, b in zip(whole, made, strict=True))
            assert all(np.array_equal(a.indices, b.indices) for a, b in zip(whole, made, strict=True))
    other = batches_of(local, recipe.replace(shuffle_window=0), 1)
    assert not all(
        np.array_equal(a.indices, b.indices) for a, b in zip(batches_of(local, recipe, 1), other, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_a_shard_that_can_not_be_had_ends_the_epoch_with_its_name_and_no_thread(cut, monkeypatch, workers):
    import threading

    from alexnet.data.cache import Cache
    from alexnet.data.remote import RemoteBackend
    from alexnet.data.store import Store
    from alexnet.errors import DataError
    from alexnet.recipe import Recipe

    local, _ = cut
    read = RemoteBackend._read

    def lost(self, name, start, end):
        if name == "train/images-00004.npy":
            raise ConnectionResetError(104, "Connection reset by peer")
        return read(self, name, start, end)

    monkeypatch.setattr(RemoteBackend, "_read", lost)
    cache = Cache(local.path.parent / f"lost{workers}", attempts=3, first_wait=0.01)
    store, recipe = Store.open("memory://windowed", cache), Recipe(stored_size=32, batch_size=20, shuffle_window=3)
    with pytest.raises(DataError, match=r"images-00004\.npy: cannot be fetched \(ConnectionResetError.*tried 3 times"):
        batches_of(store, recipe, 0, workers=workers)
    assert not [t.name for t in threading.enumerate() if t.name.startswith(("batches", "shards", "jpegs"))]
