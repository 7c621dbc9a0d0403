"""The prepared data set on disk: a folder of plain NumPy files that anyone can open. Format version 1.

``dataset.json``, written last, says all: classes in order, image size, counts, statistics, and the SHA-256 of every
other file. Per split ``images-00000.npy`` … (uint8 [n, S, S, 3], memory-mapped), ``labels.npy`` (int64 [n]) and
``origins.jsonl`` (where each picture came from). Every field is described in docs/data.md.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.writing import read_jsonl, sha256_of
from alexnet.errors import DataError

FORMAT, VERSION = "alexnet-store", 1
SPLIT_NAMES = ("train", "validation", "test")

_FIELDS: dict[str, type] = {
    "name": str,
    "classes": list,
    "size": int,
    "fit": str,
    "splits": dict,
    "channel_means": list,
    "mean_image": str,
    "color_std": list,
    "color_axes": list,
    "sha256": dict,
    "fingerprint": str,
    "source_fingerprint": str,
    "settings": dict,
    "mirror": bool,
    "skipped": int,
    "created_by": str,
}


def fingerprint_of(classes: list[str], splits: Mapping[str, Any], sha256: Mapping[str, str]) -> str:
    """What the pictures and labels are, as one SHA-256: the classes and the hashes of shards and labels."""
    files = {name: [sha256[file] for file in (*about["shards"], about["labels"])] for name, about in splits.items()}
    return hashlib.sha256(json.dumps([classes, files], sort_keys=True).encode()).hexdigest()


class Split:
    """One split of a store: pictures in memory-mapped shards, and their labels."""

    def __init__(self, root: Path, name: str, about: Mapping[str, Any], size: int) -> None:
        self.name, self.root, self.size = name, root, size
        self.labels: NDArray[np.int64] = _array(root / about["labels"], np.int64, 1)  # [n]
        self._shards = [_array(root / shard, np.uint8, 4) for shard in about["shards"]]  # each [m, S, S, 3]
        self._ends: list[int] = np.cumsum([len(shard) for shard in self._shards], dtype=np.int64).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by name: a worker process maps the files again and copies no picture."""
        return _reopen, (self.root, self.name)

    def gather(self, indices: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The pictures [N, S, S, 3] at ``indices`` [N], into ``out`` if given. Raises IndexError.

        One slice a picture: 13 to 28 times faster here than fancy indexing of a memory map.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"index {indices.min()} to {indices.max()} in {self.name} of {len(self)} pictures")
        if out is None:
            out = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        if len(out) != len(indices):
            raise IndexError(f"out has room for {len(out)} pictures, {len(indices)} are asked for")
        shards = np.searchsorted(self._ends, indices, side="right").tolist()
        for row, (shard, index) in enumerate(zip(shards, indices.tolist(), strict=True)):
            out[row] = self._shards[shard][index - self._ends[shard]]  # counted from the shard's end
        return out

    def origins(self) -> list[dict[str, Any]]:
        """One dictionary a picture: ``origin``, ``sha256`` of the source bytes, ``notes`` of the decoder."""
        return read_jsonl(self.root / self.name / "origins.jsonl")


class Store:
    """A prepared data set, open for reading. Use ``Store.open``."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = path, about
        self.name: str = about["name"]
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.size: int = about["size"]  # pixels a side
        self.fit: str = about["fit"]  # crop, pad or squash
        self.mirror: bool = about["mirror"]  # may a picture be mirrored?
        self.skipped: int = about["skipped"]  # pictures left out, listed in skipped.jsonl
        self.fingerprint: str = about["fingerprint"]  # of the content
        self.channel_means = np.array(about["channel_means"], np.float64)  # [3], 0..255, of the training split
        self.color_std = np.array(about["color_std"], np.float64)  # [3], gray levels, largest first
        self.color_axes = np.array(about["color_axes"], np.float64)  # [3, 3], columns are the axes
        self.mean_image: NDArray[np.float32] = np.array(_array(path / about["mean_image"], np.float32, 3))  # [S, S, 3]
        self.splits = {name: Split(path, name, part, self.size) for name, part in about["splits"].items()}

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open the store in ``path`` and check that all is there. Raises DataError. Contents: see ``verify``."""
        path = Path(path)
        about = _read_about(path)
        try:
            store = cls(path, about)
            _check_shapes(store, about)
        except (KeyError, TypeError, ValueError) as error:
            raise _bad(path, f"{type(error).__name__} {error}") from error
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return Store.open, (self.path,)

    def split(self, name: str) -> Split:
        """train, validation or test; may have no pictures. Raises DataError for another name."""
        if name not in self.splits:
            raise DataError(f"{self.path}: split {name!r}", f"one of {', '.join(self.splits)}", "choose one of these")
        return self.splits[name]

    def damaged(self) -> list[str]:
        """The files whose SHA-256 is not the recorded one."""
        recorded: dict[str, str] = self.about["sha256"]
        return [name for name, sha256 in recorded.items() if not _same(self.path / name, sha256)]

    def verify(self) -> None:
        """Recompute every SHA-256. Raises DataError that names the file that differs."""
        for name in self.damaged():
            raise DataError(f"{self.path / name}: SHA-256 is not the recorded one", "", "prepare the data set again")


def _reopen(root: Path, name: str) -> Split:
    return Store.open(root).split(name)


def _same(path: Path, sha256: str) -> bool:
    try:
        return sha256_of(path) == sha256
    except OSError:
        return False


def _bad(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: damaged store ({reason})", "", "prepare the data set again")


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no store", "a folder with dataset.json", "make it with: alexnet prepare") from error
    except (OSError, ValueError) as error:
        raise _bad(path, f"dataset.json: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise DataError(f"{path}: dataset.json is of another program", f"of format {FORMAT}", "choose another folder")
    version = about.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        todo = "update alexnet" if newer else "prepare the data set again"
        raise DataError(f"{path}: store of version {version!r}", f"version {VERSION}", todo)
    for field, kind in _FIELDS.items():
        if not isinstance(about.get(field), kind):
            raise _bad(path, f"dataset.json: {field} is {about.get(field)!r:.60}")
    _check_names(path, about)
    return about


def _check_names(path: Path, about: Mapping[str, Any]) -> None:
    """Only files inside the store are opened, whatever dataset.json says."""
    if tuple(about["splits"]) != SPLIT_NAMES:
        raise _bad(path, f"splits {', '.join(about['splits'])}")
    parts = about["splits"].values()
    try:
        names = [name for part in parts for name in (*part["shards"], part["labels"])] + [about["mean_image"]]
        for name in (*names, *about["sha256"]):
            if not re.fullmatch(r"(train/|validation/|test/)?[\w-]+(\.[a-z]+)?", name):
                raise _bad(path, f"file name {name!r}")
    except (KeyError, TypeError) as error:
        raise _bad(path, f"splits: {error}") from error
    missing = sorted(set(names) - set(about["sha256"]))
    if missing:
        raise _bad(path, f"no SHA-256 of {missing[0]}")


def _array(path: Path, kind: Any, dimensions: int) -> NDArray[Any]:
    """A ``.npy`` file as a plain array over its memory map; ``np.load`` refuses one that is too short."""
    try:
        array = np.load(path, mmap_mode="r" if dimensions == 4 else None, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise DataError(f"{path}: {error}", "a whole NumPy file", "prepare the data set again") from error
    if not isinstance(array, np.ndarray) or array.dtype != kind or array.ndim != dimensions:
        raise DataError(f"{path}: not {np.dtype(kind)} of {dimensions} dimensions", "", "prepare the data set again")
    return np.asarray(array)


def _check_shapes(store: Store, about: Mapping[str, Any]) -> None:
    square = (store.size, store.size, 3)
    if store.mean_image.shape != square or store.channel_means.shape != (3,) or store.color_std.shape != (3,):
        raise _bad(store.path, "statistics of another shape")
    if store.color_axes.shape != (3, 3) or len(set(store.classes)) != len(store.classes) or len(store.classes) < 2:
        raise _bad(store.path, "color axes or classes")
    for name, split in store.splits.items():
        part = about["splits"][name]
        if len(split) != part["count"] or sum(map(len, split._shards)) != part["count"]:
            raise _bad(store.path, f"{name}: counts of pictures, labels and dataset.json differ")
        if any(shard.shape[1:] != square for shard in split._shards):
            raise _bad(store.path, f"{name}: pictures of another size")
        if split.labels.size and not (split.labels.min() >= 0 and split.labels.max() < len(store.classes)):
            raise _bad(store.path, f"{name}: a label that is no class")
        if np.bincount(split.labels, minlength=len(store.classes)).tolist() != part["per_class"]:
            raise _bad(store.path, f"{name}: pictures per class differ from dataset.json")
