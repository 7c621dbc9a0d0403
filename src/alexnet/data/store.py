"""The prepared data set: plain NumPy files that anyone can open, in a folder or behind an address. Format 1 and 2.

``dataset.json``, written last, says all: classes in order, image size, counts, statistics, and the SHA-256 of every
other file. Per split shards, ``labels.npy`` (int64 [n]) and ``origins.jsonl`` (where each picture came from). Raw
shards (version 1) are ``images-00000.npy`` … (uint8 [n, S, S, 3], memory-mapped); those of JPEGs (version 2) are
``jpegs-00000.npy`` … (uint8, one JPEG behind the other) with ``index.npy``. docs/data.md describes every field.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.cache import Cache
from alexnet.data.description import damaged, read_description
from alexnet.data.places import Folder, Place, read_array
from alexnet.data.remote import Remote, is_address
from alexnet.data.split import Split
from alexnet.data.writing import read_jsonl, sha256_of
from alexnet.errors import DataError

__all__ = ["Split", "Store", "recorded"]


class Store:
    """A prepared data set, open for reading. Use ``Store.open``."""

    def __init__(self, place: Place, about: Mapping[str, Any]) -> None:
        self.place, self.about = place, about
        self.address: str = place.address  # as it was given: a path, or s3://…
        self.name: str = about["name"]
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.size: int = about["size"]  # pixels a side
        self.fit: str = about["fit"]  # crop, pad or squash
        self.encoding: str = about.get("encoding", "raw")  # raw or jpeg
        self.mirror: bool = about["mirror"]  # may a picture be mirrored?
        self.skipped: int = about["skipped"]  # pictures left out, listed in skipped.jsonl
        self.fingerprint: str = about["fingerprint"]  # of the content
        self.channel_means = np.array(about["channel_means"], np.float64)  # [3], 0..255, of the training split
        self.color_std = np.array(about["color_std"], np.float64)  # [3], gray levels, largest first
        self.color_axes = np.array(about["color_axes"], np.float64)  # [3, 3], columns are the axes
        name = about["mean_image"]
        self.mean_image: NDArray[np.float32] = read_array(place.file(name), np.float32, 3, f"{self.address}/{name}")
        self.splits = {name: Split(place, name, part, self.size) for name, part in about["splits"].items()}

    @classmethod
    def open(cls, path: str | Path, cache: Cache | None = None) -> "Store":
        """Open the store in the folder ``path``, or behind an address (``s3://…``, ``https://…``, ``memory://…``).

        Of a store behind an address, shards are fetched into ``cache`` when they are needed, and verified there.
        Checks that all is there, without reading every picture: for that see ``verify``. Raises DataError.
        """
        place: Place = Remote(str(path), cache) if is_address(path) else Folder(Path(path))
        about = read_description(place.description(), place.address)
        place.know(about)
        try:
            store = cls(place, about)
            _check_shapes(store, about)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(place.address, f"{type(error).__name__} {error}") from error
        return store

    @property
    def path(self) -> Path:
        """The store's folder. Raises DataError for one that is not on this disk."""
        return self.place.folder

    @property
    def absolute(self) -> str:
        """Path or address as it holds from any folder."""
        return self.place.absolute

    def __reduce__(self) -> tuple[Any, ...]:
        return Store.open, self.place.again()

    def split(self, name: str) -> Split:
        """train, validation or test; may have no pictures. Raises DataError for another name."""
        if name not in self.splits:
            raise DataError(
                f"{self.address}: split {name!r}", f"one of {', '.join(self.splits)}", "choose one of these"
            )
        return self.splits[name]

    def left_out(self) -> list[dict[str, Any]]:
        """One dictionary a picture that could not be used: ``split``, ``origin``, ``reason``."""
        return read_jsonl(self.place.file("skipped.jsonl"))

    def damaged(self) -> list[str]:
        """The files whose SHA-256 is not the recorded one; all are read."""
        recorded: dict[str, str] = self.about["sha256"]
        return [name for name, sha256 in recorded.items() if not self._same(name, sha256)]

    def verify(self) -> None:
        """Recompute every SHA-256. Raises DataError that names the file that differs."""
        for name in self.damaged():
            raise DataError(f"{self.address}/{name}: SHA-256 is not the recorded one", "", "prepare the data set again")

    def _same(self, name: str, sha256: str) -> bool:
        try:
            local = isinstance(self.place, Folder)
            return sha256_of(self.path / name if local else self.place.file(name)) == sha256
        except (OSError, DataError):
            return False


def recorded(run: Path, about: Mapping[str, Any]) -> str:
    """Address of the store that a run's ``about`` (run.json) names. Raises DataError if it was deleted or moved."""
    address = str(about["store"])
    if is_address(address) or (Path(address) / "dataset.json").exists():
        return address
    data = shlex.join([str(about.get("data", "DATA")), *map(str, about.get("options", ()))])
    todo = (
        f"name the data again: alexnet evaluate {shlex.quote(str(run))} {data} (prepares it again); or where"
        " the store is now: as DATA of evaluate and compare, --store of report and train --resume, --data of export"
    )
    raise DataError(f"{run}: its prepared images are not in {address}", "a store that was not deleted or moved", todo)


def _check_shapes(store: Store, about: Mapping[str, Any]) -> None:
    square = (store.size, store.size, 3)
    if store.mean_image.shape != square or store.channel_means.shape != (3,) or store.color_std.shape != (3,):
        raise damaged(store.address, "statistics of another shape")
    if store.color_axes.shape != (3, 3) or len(set(store.classes)) != len(store.classes) or len(store.classes) < 2:
        raise damaged(store.address, "color axes or classes")
    for name, split in store.splits.items():
        part = about["splits"][name]
        if fault := split.fault() or ("counts differ" if len(split) != part["count"] else ""):
            raise damaged(store.address, f"{name}: {fault}")
        if split.labels.size and not (split.labels.min() >= 0 and split.labels.max() < len(store.classes)):
            raise damaged(store.address, f"{name}: a label that is no class")
        if np.bincount(split.labels, minlength=len(store.classes)).tolist() != part["per_class"]:
            raise damaged(store.address, f"{name}: pictures per class differ from dataset.json")
