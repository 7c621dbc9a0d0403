"""The dataset of an experiment: opened by name, reduced to the number of images that a plan asks for, and prepared."""

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.data import decode
from alexnet.data.sources import is_store
from alexnet.data.sources.options import DataOptions
from alexnet.data.sources.source import Sample, Source
from alexnet.data.store import Store
from alexnet.errors import DataError
from alexnet.recipe import Recipe
from alexnet.training.run_data import cached

MIN_PHOTO_SIZE = 128  # shorter side in pixels from which images count as photographs, trained on 224-pixel crops
MIN_PHOTO_STORE_SIZE = 224  # the same for a prepared store


class Dataset(NamedTuple):
    """A dataset that is either not prepared yet (``source``) or already a store (``store``)."""

    name: str
    source: Source | None
    store: Store | None
    photos: bool  # large enough for 224-pixel crops
    hflip: bool  # horizontal flips keep the class (false for digits)


def open_dataset(data: str, options: DataOptions) -> Dataset:
    """Open the dataset that ``data`` names: a path, a store or a built-in name.

    Raises:
        DataError: ``data`` is not a dataset.
    """
    if is_store(data):
        store = Store.open(data)
        return Dataset(store.name, None, store, store.size >= MIN_PHOTO_STORE_SIZE, store.allow_hflip)
    source = options.open(data)
    first = next(images[0] for images in source.splits.values() if images)
    return Dataset(source.name, source, None, _shorter_side(first) >= MIN_PHOTO_SIZE, source.allow_hflip)


def _shorter_side(sample: Sample) -> int:
    loaded = sample.load()
    image = loaded if isinstance(loaded, np.ndarray) else decode.decode(loaded, sample.origin)
    return int(min(image.shape[:2]))


def prepare_store(dataset: Dataset, recipe: Recipe, max_images: int, options: DataOptions) -> Store:
    """Return the store that all trainings of an experiment share, so that all have the same splits.

    Args:
        dataset: The opened dataset.
        recipe: Any recipe of the experiment: its seed, stored size and split fractions are used.
        max_images: Limit for training and validation images together; half as many for the test split. 0: no limit.
        options: Cache folder, logging and layout.

    Raises:
        DataError: A given store does not fit the recipe or the limit.
    """
    if dataset.store is not None:
        return _check_store(dataset.store, recipe, max_images)
    assert dataset.source is not None
    source = subset(dataset.source, max_images) if max_images else dataset.source
    return cached(source, recipe, options)


def _check_store(store: Store, recipe: Recipe, max_images: int) -> Store:
    if (store.size, store.fit) != (recipe.stored_size, recipe.fit):
        raise DataError(
            f"store {store.address} holds images of {store.size} pixels ({store.fit})",
            f"{recipe.stored_size} ({recipe.fit})",
            "pass the original images as DATA",
        )
    for name in ("validation", "test"):
        if not len(store.split(name)):
            raise DataError(f"store {store.address} has no {name} split", "one", "prepare another store")
    if max_images and len(store.split("train")) > max_images:
        raise DataError(
            f"store {store.address} has {len(store.split('train'))} training images",
            f"at most {max_images} for this plan",
            "pass the original images as DATA, or --images 0",
        )
    return store


def subset(source: Source, max_images: int) -> Source:
    """Keep at most ``max_images`` training images and half as many test images, evenly from each class."""
    limits = {
        "train": max_images,
        "validation": max_images // 2,
        "test": max_images // 2,
        "all": max_images * 3 // 2,
    }
    splits = {name: _first_of_each_class(samples, limits[name]) for name, samples in source.splits.items()}
    if splits == dict(source.splits):
        return source
    fingerprint = hashlib.sha256(f"{max_images} of {source.fingerprint}".encode()).hexdigest()
    return dataclasses.replace(source, splits=splits, fingerprint=fingerprint)


def _first_of_each_class(samples: tuple[Sample, ...], limit: int) -> tuple[Sample, ...]:
    """Take the first sample of each class, then the second, and so on up to ``limit``; keep the source's order."""
    if len(samples) <= limit:
        return samples
    last_rank: dict[int, int] = {}
    ranks = []
    for sample in samples:
        last_rank[sample.label] = rank = last_rank.get(sample.label, -1) + 1
        ranks.append(rank)
    indices = sorted(range(len(samples)), key=lambda i: (ranks[i], i))[:limit]
    return tuple(samples[i] for i in sorted(indices))


def display_name(data: Path | str) -> str:
    """Return a short name for folders and titles: the last part of a path, or the dataset name itself."""
    return Path(data).resolve().name if Path(data).exists() else str(data)
