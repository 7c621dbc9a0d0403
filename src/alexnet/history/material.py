"""The pictures of a claim: a data set that a person named, cut to what a plan needs, and how large they are."""

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.api.stores import cached
from alexnet.data import pixels
from alexnet.data.listing import Picture, Source
from alexnet.data.options import DataOptions
from alexnet.data.sources import is_store
from alexnet.data.store import Store
from alexnet.errors import DataError
from alexnet.recipe import Recipe

SMALL, LARGE = 32, 256  # sides of stored pictures, pixels
PHOTOS = 128  # pictures with a shorter side of at least so many pixels are photographs, for 224-pixel views


class Material(NamedTuple):
    """A data set before it is prepared (``source``), or a store."""

    name: str
    source: Source | None
    store: Store | None
    photos: bool  # large enough for 224-pixel views?
    mirror: bool  # may its pictures be mirrored?


def find(data: str, options: DataOptions) -> Material:
    """What ``data`` names. Raises :class:`DataError`."""
    if is_store(data):
        store = Store.open(data)
        return Material(store.name, None, store, store.size >= 224, store.mirror)
    source = options.open(data)
    first = next(pictures[0] for pictures in source.splits.values() if pictures)
    return Material(source.name, source, None, _side(first) >= PHOTOS, source.mirror)


def _side(picture: Picture) -> int:
    loaded = picture.load()
    image = loaded if isinstance(loaded, np.ndarray) else pixels.decode(loaded, picture.origin)
    return int(min(image.shape[:2]))


def prepare(material: Material, recipe: Recipe, pictures: int, options: DataOptions) -> Store:
    """The store that all members share. ``pictures``: most to train and choose, half as many to test; 0: all.

    The recipe's seed, size and shares are those of the plan's first member, so that every member has the same splits.
    """
    if material.store is not None:
        return _usable(material.store, recipe, pictures)
    assert material.source is not None
    source = few(material.source, pictures) if pictures else material.source
    return cached(source, recipe, options)


def _usable(store: Store, recipe: Recipe, pictures: int) -> Store:
    if (store.size, store.fit) != (recipe.stored_size, recipe.fit):
        raise DataError(
            f"store {store.address} holds pictures of {store.size} pixels ({store.fit})",
            f"{recipe.stored_size} ({recipe.fit})",
            "give the pictures themselves",
        )
    for name in ("validation", "test"):
        if not len(store.split(name)):
            raise DataError(f"store {store.address} has no {name} split", "one", "prepare another")
    if pictures and len(store.split("train")) > pictures:
        raise DataError(
            f"store {store.address} has {len(store.split('train'))} training pictures",
            f"at most {pictures} for this plan",
            "give the pictures themselves, of which some are taken, or --pictures 0",
        )
    return store


def few(source: Source, pictures: int) -> Source:
    """At most ``pictures`` of the training pictures and half as many of the test's, evenly from each class."""
    limits = {"train": pictures, "validation": pictures // 2, "test": pictures // 2, "all": pictures * 3 // 2}
    splits = {name: _few(found, limits[name]) for name, found in source.splits.items()}
    if splits == dict(source.splits):
        return source
    fingerprint = hashlib.sha256(f"{pictures} of {source.fingerprint}".encode()).hexdigest()
    return dataclasses.replace(source, splits=splits, fingerprint=fingerprint)


def _few(found: tuple[Picture, ...], limit: int) -> tuple[Picture, ...]:
    """The first of each class in turn, in the order of the source, until there are ``limit``."""
    if len(found) <= limit:
        return found
    seen: dict[int, int] = {}
    ranks = []
    for picture in found:
        seen[picture.label] = rank = seen.get(picture.label, -1) + 1
        ranks.append(rank)
    chosen = sorted(range(len(found)), key=lambda i: (ranks[i], i))[:limit]
    return tuple(found[i] for i in sorted(chosen))


def shown(path: Path | str) -> str:
    """A name for folders: the last part of a path, or the word itself."""
    return Path(path).resolve().name if Path(path).exists() else str(path)
