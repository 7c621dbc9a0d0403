"""A batch depends on (seed, epoch, position) alone."""

import dataclasses
import threading
import time

import numpy as np
import pytest
import torch

from alexnet.data.store import Split, Store
from alexnet.loader import augmentation, sampler
from alexnet.loader.augmentation import Normalization
from alexnet.loader.loader import Batch, Loader, sequential_batches, to_device
from alexnet.recipe import Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(
    stored_size=32, batch_size=33, crop="resized", random_erase_prob=0.3, mixup_prob=0.0, progressive_fraction=0.0
)  # 160 = 4 · 33 + 28


def statistics_of(store: Store) -> Normalization:
    return Normalization(
        torch.from_numpy(store.mean_image),
        torch.tensor(store.color_std).float(),
        torch.tensor(store.color_axes).float(),
        torch.tensor(2.0),
    )


def loader(store: Store, workers: int = 1, recipe: Recipe = RECIPE, split: Split | None = None) -> Loader:
    return Loader(
        split or store.split("train"),
        recipe,
        statistics_of(store),
        image_size=28,
        channels=3,
        device=CPU,
        num_workers=workers,
    )


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) and np.array_equal(x.indices, y.indices)
        for x, y in zip(a, b, strict=True)
    )


def workers_alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_the_number_of_workers_changes_nothing(digits):
    one = list(loader(digits).epoch(3))
    assert same(one, list(loader(digits, workers=2).epoch(3)))
    assert same(one, list(loader(digits, workers=5).epoch(3)))
    assert workers_alive() == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_makes_batches_takes_no_cores_from_the_network(digits, monkeypatch, device):
    """On a processor its operations are done by its own thread; nobody else's are later, however they coincide."""
    found, later, said = [], [], torch.set_num_threads

    def slowly(threads):
        said(threads)
        time.sleep(0.05)  # so that the second thread begins within the first one's words

    def crop(*_):
        found.append((threading.current_thread().name, torch.get_num_threads()))
        time.sleep(0.05)

    before = torch.get_num_threads()
    said(3)
    try:
        made = loader(digits, workers=2)
        made.device = torch.device(device)
        monkeypatch.setattr(torch, "set_num_threads", slowly)
        monkeypatch.setattr(made, "_crop", crop)
        monkeypatch.setattr(made, "_finish", lambda *_: None)
        assert len(list(made.epoch(0))) == 5
        assert torch.get_num_threads() == 3
        other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        other.start()
        other.join()
    finally:
        said(before)
    assert {name for name, _ in found} == {"batches_0", "batches_1"}
    assert {threads for _, threads in found} == {1 if device == "cpu" else 3} and later == [3]


def test_a_start_within_an_epoch_gives_its_tail(digits):
    whole = list(loader(digits).epoch(2))
    for start in range(len(whole) + 1):
        assert same(whole[start:], list(loader(digits, workers=2).epoch(2, start)))


def test_every_image_once_and_the_last_batch_smaller(digits):
    made = loader(digits)
    batches = list(made.epoch(0))
    assert [len(batch.labels) for batch in batches] == [33, 33, 33, 33, 28]
    assert len(made) == 5
    indices = np.concatenate([batch.indices for batch in batches])
    assert sorted(indices.tolist()) == list(range(160))
    assert np.array_equal(indices, sampler.epoch_order(160, 0, 0))
    labels = torch.cat([batch.labels for batch in batches])
    assert labels.dtype == torch.int64
    assert labels.tolist() == digits.split("train").labels[indices].tolist()


def test_fewer_images_than_a_batch(digits):
    (batch,) = loader(digits, recipe=RECIPE.replace(batch_size=1000)).epoch(0)
    assert batch.images.shape == (160, 3, 28, 28)
    assert batch.images.dtype == torch.float32


def test_epochs_and_seeds_give_other_orders_and_crops(digits):
    first = next(loader(digits).epoch(0))
    for other in (loader(digits).epoch(1), loader(digits, recipe=RECIPE.replace(seed=1)).epoch(0)):
        batch = next(other)
        assert not np.array_equal(first.indices, batch.indices)
        assert not torch.equal(first.images, batch.images)


def test_a_image_s_view_does_not_depend_on_its_batch(digits):
    """Another batch size: the same order, and every image with the same view."""
    small = list(loader(digits, recipe=RECIPE.replace(batch_size=7)).epoch(4))
    large = list(loader(digits).epoch(4))
    assert torch.equal(torch.cat([b.images for b in small]), torch.cat([b.images for b in large]))


def test_a_batch_is_the_images_cut_and_colored(digits):
    normalization, split = statistics_of(digits), digits.split("train")
    batch = next(loader(digits).epoch(5, start=1))
    indices = sampler.epoch_order(160, 0, 5)[33:66]
    box, colors = augmentation.crop_numbers(0, 5, indices)
    boxes = augmentation.draw_boxes(RECIPE, box, 32, 28)
    cuts = augmentation.crop(torch.from_numpy(split.gather(indices)), boxes, 28)
    drawn = augmentation.draw_colors(RECIPE, colors, normalization)
    assert torch.equal(batch.images, augmentation.normalize(cuts, boxes, drawn, normalization, 3))


def test_small_crops_show_the_same_parts(digits):
    recipe = RECIPE.replace(pca_noise_std=0.0, color_jitter=0.0, random_erase_prob=0.0)
    full, small = (next(loader(digits, recipe=recipe).epoch(0, size=size)) for size in (None, 14))
    assert small.images.shape == (33, 3, 14, 14)
    assert np.array_equal(full.indices, small.indices)
    shrunk = torch.nn.functional.avg_pool2d(full.images, 2)
    # Other weights and rounding, the same part: alike as far as neighbors are (strokes are 16 to 255, divided by 2).
    assert torch.corrcoef(torch.stack([shrunk.flatten(), small.images.flatten()]))[0, 1] > 0.95


class Vanished(Split):
    """A split whose disk goes away after the first batches."""

    def gather(self, indices, out=None):
        if np.isin(indices, sampler.epoch_order(160, 0, 0)[70:80]).any():
            raise OSError(5, "Input/output error", "images-00000.npy")
        return super().gather(indices, out)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_an_error_in_a_worker_surfaces_and_no_thread_is_left(digits, workers):
    split = Vanished(digits.path, "train", digits.metadata["splits"]["train"], 32)
    batches, seen = loader(digits, workers, split=split).epoch(0), 0
    with pytest.raises(OSError, match=r"Input/output error: 'images-00000\.npy'"):
        for batch in batches:
            seen += len(batch.labels)
    assert seen == 66  # those before it came
    assert workers_alive() == []


def test_a_shard_that_is_gone_is_an_error(digits):
    split = Store.open(digits.path).split("train")
    split._shards.clear()
    with pytest.raises(IndexError):
        next(loader(digits, 2, split=split).epoch(0))
    assert workers_alive() == []


def test_leaving_an_epoch_early_ends_the_threads(digits):
    batches = loader(digits, workers=3).epoch(0)
    next(batches)
    assert workers_alive()
    batches.close()
    assert workers_alive() == []


def test_in_order_is_every_image_once_as_stored(digits):
    split = digits.split("test")
    made = list(sequential_batches(split, 16))
    assert [len(images) for images, _ in made] == [16, 16, 16, 2]
    assert np.concatenate([indices for _, indices in made]).tolist() == list(range(50))
    images = torch.cat([images for images, _ in made])
    assert images.dtype == torch.uint8
    assert np.array_equal(images.numpy(), split.gather(np.arange(50)))


def test_statistics_keep_their_places_on_a_device(digits):
    normalization = statistics_of(digits)
    moved = to_device(normalization, CPU)
    assert all(torch.equal(moved.tensors()[name], value) for name, value in normalization.tensors().items())
    assert len(normalization.tensors()) == 4
    assert to_device(dataclasses.replace(normalization, mean_follows_crop=False), CPU).mean_follows_crop is False


def offsets(digits: Store, recipe: Recipe, epoch: int, **how) -> list[tuple]:
    """What each image's view shows, found by looking for the view in the image, in the epoch's order."""
    made = loader(digits, recipe=recipe, **how)
    flat = dataclasses.replace(made.normalization, mean=torch.zeros(3), divide=torch.tensor(1.0))
    made.normalization = flat
    found = []
    for batch in made.epoch(epoch):
        images = torch.from_numpy(digits.split("train").gather(batch.indices)).float()
        for image, view in zip(images, batch.images.permute(0, 2, 3, 1), strict=True):
            cuts = {(y, x): image[y : y + 28, x : x + 28] for y in range(5) for x in range(5)}
            places = [
                (at, m) for at, cut in cuts.items() for m in (0, 1) if torch.equal(cut.flip(1) if m else cut, view)
            ]
            found.append(frozenset(places))
    return found


SHARED = Recipe(
    stored_size=32,
    batch_size=20,
    crop="random",
    pca_noise_std=0,
    color_jitter=0,
    mixup_prob=0,
    crop_group_size=32,
)


def test_crops_are_shared_by_neighbors_of_the_epochs_order_whatever_the_batch(digits):
    found = offsets(digits, SHARED, 3)
    groups = [frozenset.intersection(*found[at : at + 32]) for at in range(0, 160, 32)]
    assert all(groups)  # each group of 32 has a place in common
    assert len(set(groups)) > 1
    alone = offsets(digits, SHARED.replace(crop_group_size=1), 3)
    assert not all(frozenset.intersection(*alone[at : at + 32]) for at in range(0, 160, 32))
    assert offsets(digits, SHARED.replace(batch_size=33), 3, workers=3) == found
    assert offsets(digits, SHARED, 4) != found
    tail = list(loader(digits, recipe=SHARED).epoch(3, start=5))
    assert same(tail, list(loader(digits, recipe=SHARED).epoch(3))[5:])


def test_validation_images_join_the_training(digits):
    recipe = RECIPE.replace(train_on_val_from_epoch=2, select_weights="last")
    validation = digits.split("validation")
    made = Loader(
        digits.split("train"),
        recipe,
        statistics_of(digits),
        image_size=28,
        channels=3,
        device=CPU,
        validation=validation,
        num_workers=2,
    )
    assert [made.steps(epoch) for epoch in (0, 1, 2, 3)] == [5, 5, 7, 7]  # of 160 and of 200 images
    assert same(list(made.epoch(1)), list(loader(digits, recipe=recipe).epoch(1)))
    batches = list(made.epoch(2))
    indices = np.concatenate([batch.indices for batch in batches])
    assert sorted(indices.tolist()) == list(range(200))
    both = np.concatenate([digits.split("train").labels, validation.labels])
    assert torch.cat([batch.labels for batch in batches]).tolist() == both[indices].tolist()
    some = np.array([199, 0, 159, 160, 5])
    images = np.concatenate([digits.split("train").gather(np.arange(160)), validation.gather(np.arange(40))])
    assert np.array_equal(made.split_of(2).gather(some), images[some])


def test_color_noise_ends_at_its_epoch(digits):
    noisy = RECIPE.replace(pca_noise_std=0.5, pca_noise_until_epoch=3, pca_noise_rescale=True)
    still = RECIPE.replace(pca_noise_std=0.0)
    for epoch in (2, 3, 4):
        pair = [list(loader(digits, recipe=recipe).epoch(epoch)) for recipe in (noisy, still)]
        assert same(*pair) == (epoch >= 3)
