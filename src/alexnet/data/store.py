"""The prepared data set: a *store* of plain NumPy files, in a folder or at an address, and its splits.

``dataset.json``, written last, describes everything: classes in order, image size, counts, statistics, and the SHA-256
of every other file. Each split has shards, ``labels.npy`` (int64 [n]) and ``origins.jsonl`` (where each image came
from). Raw shards (version 1) are ``images-00000.npy`` … (uint8 [n, S, S, 3], memory-mapped). JPEG shards (version 2)
are ``jpegs-00000.npy`` … (uint8, concatenated JPEGs) with ``index.npy``, which has for each image the byte at which it
ends and the CRC-32 of its bytes: a flipped bit can decode without an error. docs/data.md describes every field.
"""

import shlex
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data.atomic_io import read_jsonl, sha256_of
from alexnet.data.cache import Cache
from alexnet.data.remote import RemoteBackend, is_address
from alexnet.data.store_backend import LocalBackend, StoreBackend, damaged, read_array, read_description
from alexnet.errors import DataError, ImageError
from alexnet.system import cores

SMALLER = 8  # raw bytes for a byte of JPEG, when shards are planned; photographs in quality 88 have about 10
_FEW = 8  # images below which a second thread does not pay


class Piece(NamedTuple):
    """A JPEG in a shard, as the index has it."""

    data: NDArray[np.uint8]  # its bytes [B]
    crc: int
    where: str  # shard and image, for people


def encode(image: NDArray[np.uint8], quality: int) -> bytes:
    """``image`` uint8 [S, S, 3] as a JPEG with halved color (4:2:0)."""
    from alexnet.data.decode import encode_jpeg

    return encode_jpeg(image, quality)


def decode_into(out: NDArray[np.uint8], pieces: Sequence[Piece]) -> None:
    """Decode ``pieces`` [N] into ``out`` [N, S, S, 3], on all cores. Raises DataError for a damaged one."""
    threads = min(cores(), len(pieces) // _FEW)
    if threads < 2:
        for row, piece in enumerate(pieces):
            _decode(out[row], piece)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="jpegs") as pool:
        for _ in pool.map(_decode, out, pieces):
            pass


def _decode(out: NDArray[np.uint8], piece: Piece) -> None:
    from alexnet.data.decode import decode

    data = piece.data.tobytes()
    if zlib.crc32(data) != piece.crc:
        raise _broken(piece, "its bytes are not those that were stored")
    try:
        image = decode(data, piece.where)
    except ImageError as error:
        raise _broken(piece, error.what.removeprefix(piece.where + ": ")) from error
    if image.shape != out.shape:
        raise _broken(piece, f"{image.shape[1]} × {image.shape[0]} pixels")
    out[:] = image


def _broken(piece: Piece, reason: str) -> DataError:
    todo = "`alexnet prepare --check` names every damaged file; copy it or prepare the data set again"
    return DataError(f"{piece.where}: {reason}", "the JPEG that was stored", todo)


class Split:
    """One split of a store: images in shards, and their labels."""

    def __init__(self, root: Path | StoreBackend, name: str, about: Mapping[str, Any], size: int) -> None:
        self.backend: StoreBackend = LocalBackend(root) if isinstance(root, Path) else root
        self.name, self.size = name, size
        self.labels: NDArray[np.int64] = self._read(about["labels"], 1)  # [n]
        self._index: NDArray[np.int64] | None = self._read(about["index"], 2) if "index" in about else None  # [n, 2]
        self._names: list[str] = list(about["shards"])
        self._said: list[int] = about["counts"]
        self._shards = self.backend.shards(self._names, self._shapes()) if self._names else []
        self._checked: set[int] = set()  # shards whose SHA-256 was compared
        mapped = isinstance(self._shards, list) and self._index is None
        self.counts: list[int] = [len(shard) for shard in self._shards] if mapped else list(self._said)
        self._ends: list[int] = np.cumsum(self.counts, dtype=np.int64).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by name: a worker process maps the files again and copies no image."""
        return _reopen, (self.backend.again(), self.name)

    def gather(self, indices: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The images [N, S, S, 3] at ``indices`` [N], into ``out`` if given. Raises IndexError, and DataError.

        One slice an image: 13 to 28 times faster here than fancy indexing of a memory map. JPEGs are decoded on all
        cores.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"index {indices.min()} to {indices.max()} in {self.name} of {len(self)} images")
        if out is None:
            out = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        if len(out) != len(indices):
            raise IndexError(f"out has room for {len(out)} images, {len(indices)} are asked for")
        numbers = np.searchsorted(self._ends, indices, side="right")
        if self._index is None:  # each JPEG has a checksum of its own
            for number in set(np.unique(numbers).tolist()) - self._checked:
                self.backend.check(self._names[number])
                self._checked.add(number)
        shards = {number: self._shards[number] for number in np.unique(numbers).tolist()}
        wanted = zip(numbers.tolist(), indices.tolist(), strict=True)
        if self._index is None:
            for row, (number, index) in enumerate(wanted):
                out[row] = shards[number][index - self._ends[number]]  # counted from the shard's end
        else:
            decode_into(out, [self._piece(number, index, shards[number]) for number, index in wanted])
        return out

    def expecting(self, indices: NDArray[np.int64]) -> AbstractContextManager[None]:
        """While it is open, images are gathered about in the order of ``indices`` [N]: shards are fetched ahead.

        Raises DataError if that order needs more shards at once than there is room for. On a local disk it does
        nothing.
        """
        numbers = np.searchsorted(self._ends, indices, side="right")  # [N]
        turns, first = np.unique(numbers, return_index=True)
        last = len(numbers) - 1 - np.unique(numbers[::-1], return_index=True)[1]
        steps = np.zeros(len(numbers) + 1, np.int64)
        np.add.at(steps, first, 1)
        np.add.at(steps, last + 1, -1)
        need = int(np.cumsum(steps).max(initial=0))
        return self.backend.expecting(self._shards, turns[np.argsort(first)].tolist(), need)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The group (patient, camera, video) of each image; empty if none has one.

        An image without a group is a group of its own. Cached, since the file is read once an epoch otherwise.
        """
        rows = self.origins()
        if not any(row.get("group") for row in rows):
            return ()
        return tuple(f"g{row['group']}" if row.get("group") else f"p{row['origin']}" for row in rows)

    def origins(self) -> list[dict[str, Any]]:
        """One dictionary an image: ``origin``, ``sha256`` of the source bytes, ``notes`` of the decoder."""
        return read_jsonl(self.backend.file(f"{self.name}/origins.jsonl"))

    def fault(self) -> str:
        """The first inconsistency of the files, for ``Store.open``; empty if there is none."""
        if self.counts != self._said or sum(self.counts) != len(self):
            return "counts of images, labels and dataset.json differ"
        if self._index is not None:
            return self._index_fault(self._index)
        square = (self.size, self.size, 3)
        local = isinstance(self._shards, list)
        return "images of another size" if local and any(s.shape[1:] != square for s in self._shards) else ""

    def _index_fault(self, index: NDArray[np.int64]) -> str:
        if index.shape != (len(self), 2) or any(count < 1 for count in self.counts):
            return "index of another shape"
        begins = np.concatenate([[0], index[:-1, 0]]) if len(index) else index[:, 0]
        begins[[end - count for end, count in zip(self._ends, self.counts, strict=True)]] = 0
        if (index[:, 0] <= begins).any():
            return "index out of order"
        shapes = self._shapes()
        local = isinstance(self._shards, list)
        return "index and shards differ" if local and [s.shape for s in self._shards] != shapes else ""

    def _read(self, name: str, dimensions: int) -> NDArray[np.int64]:
        return read_array(self.backend.file(name), np.int64, dimensions, f"{self.backend.address}/{name}")

    def _shapes(self) -> list[tuple[int, ...]]:
        """Of the shards' arrays, by the description."""
        counts = self._said
        if len(counts) != len(self._names):
            raise ValueError("counts and shards differ")
        if self._index is None:
            return [(count, self.size, self.size, 3) for count in counts]
        if self._index.shape != (sum(counts), 2):
            raise ValueError("index of another shape")
        return [(int(self._index[end - 1, 0]),) for end in np.cumsum(counts).tolist()]

    def _piece(self, number: int, index: int, shard: NDArray[np.uint8]) -> Piece:
        assert self._index is not None
        first = self._ends[number] - self.counts[number]
        start = int(self._index[index - 1, 0]) if index > first else 0
        end, crc = self._index[index].tolist()
        where = f"{self.backend.address}/{self._names[number]}: image {index - first}"
        if end > len(shard):
            raise DataError(f"{where}: behind the end of the shard", "inside", "prepare the data set again")
        return Piece(shard[start:end], crc, where)


class Subset(Split):
    """The images of ``split`` at ``rows`` int64 [n], in that order, as a split of their own."""

    def __init__(self, split: Split, rows: NDArray[np.int64]) -> None:
        self.split, self.rows = split, rows
        self.backend, self.name, self.size = split.backend, split.name, split.size
        self.labels = split.labels[rows]

    def __reduce__(self) -> tuple[Any, ...]:
        return Subset, (self.split, self.rows)

    def gather(self, indices: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        indices = np.asarray(indices, np.int64)
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"index {indices.min()} to {indices.max()} in {self.name} of {len(self)} images")
        return self.split.gather(self.rows[indices], out)

    def expecting(self, indices: NDArray[np.int64]) -> AbstractContextManager[None]:
        return self.split.expecting(self.rows[indices])

    def origins(self) -> list[dict[str, Any]]:
        rows = self.split.origins()
        return [rows[i] for i in self.rows.tolist()]


class ConcatSplit(Split):
    """Several splits as one: the images of the first split come first, then those of the second, and so on."""

    def __init__(self, splits: Sequence[Split]) -> None:
        self.splits = splits
        self.backend, self.name, self.size = splits[0].backend, "+".join(split.name for split in splits), splits[0].size
        self.labels = np.concatenate([split.labels for split in splits])  # int64 [n]
        self.counts = [count for split in splits for count in split.counts]  # images of each shard
        self._split_ends = np.cumsum([len(split) for split in splits])

    def __reduce__(self) -> tuple[Any, ...]:
        return ConcatSplit, (self.splits,)

    def gather(self, indices: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        if out is None:
            out = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        for split, rows, inner in self._by_split(indices):
            out[rows] = split.gather(inner)
        return out

    @contextmanager
    def expecting(self, indices: NDArray[np.int64]) -> Iterator[None]:
        with ExitStack() as stack:
            for split, _, inner in self._by_split(indices):
                stack.enter_context(split.expecting(inner))
            yield

    def origins(self) -> list[dict[str, Any]]:
        return [row for split in self.splits for row in split.origins()]

    def _by_split(self, indices: NDArray[np.int64]) -> Iterator[tuple[Split, NDArray[np.bool_], NDArray[np.int64]]]:
        """Each split, which of ``indices`` [N] are in it (a mask [N]), and their indices within the split."""
        numbers = np.searchsorted(self._split_ends, indices, side="right")
        for number, split in enumerate(self.splits):
            rows = numbers == number
            yield split, rows, indices[rows] - (self._split_ends[number] - len(split))


def _reopen(where: tuple[Any, ...], name: str) -> Split:
    return Store.open(*where).split(name)


class Store:
    """A prepared data set, open for reading. Use ``Store.open``."""

    def __init__(self, place: StoreBackend, about: Mapping[str, Any]) -> None:
        self.backend, self.metadata = place, about
        self.address: str = place.address  # as it was given: a path, or s3://…
        self.name: str = about["name"]
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.size: int = about["size"]  # pixels a side
        self.fit: str = about["fit"]  # crop, pad or squash
        self.encoding: str = about.get("encoding", "raw")  # raw or jpeg
        self.allow_hflip: bool = about["allow_hflip"]  # may training flip images horizontally?
        self.skipped: int = about["skipped"]  # images left out, listed in skipped.jsonl
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
        Checks that all is there, without reading every image: for that see ``verify``. Raises DataError.
        """
        place: StoreBackend = RemoteBackend(str(path), cache) if is_address(path) else LocalBackend(Path(path))
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
        return self.backend.folder

    @property
    def absolute(self) -> str:
        """The absolute path, or the address."""
        return self.backend.absolute

    def __reduce__(self) -> tuple[Any, ...]:
        return Store.open, self.backend.again()

    def split(self, name: str) -> Split:
        """train, validation or test; may have no images. Raises DataError for another name."""
        if name not in self.splits:
            raise DataError(
                f"{self.address}: split {name!r}", f"one of {', '.join(self.splits)}", "choose one of these"
            )
        return self.splits[name]

    def left_out(self) -> list[dict[str, Any]]:
        """One dictionary an image that could not be used: ``split``, ``origin``, ``reason``."""
        return read_jsonl(self.backend.file("skipped.jsonl"))

    def damaged(self) -> list[str]:
        """The files whose SHA-256 is not the recorded one; all are read."""
        recorded: dict[str, str] = self.metadata["sha256"]
        return [name for name, sha256 in recorded.items() if not self._same(name, sha256)]

    def verify(self) -> None:
        """Recompute every SHA-256. Raises DataError that names the file that differs."""
        for name in self.damaged():
            raise DataError(f"{self.address}/{name}: SHA-256 is not the recorded one", "", "prepare the data set again")

    def _same(self, name: str, sha256: str) -> bool:
        try:
            local = isinstance(self.backend, LocalBackend)
            return sha256_of(self.path / name if local else self.backend.file(name)) == sha256
        except (OSError, DataError):
            return False


def recorded_store(run: Path, about: Mapping[str, Any]) -> str:
    """Address of the store that a run's ``about`` (run.json) names. Raises DataError if it was deleted or moved."""
    address = str(about["store"])
    if is_address(address) or (Path(address) / "dataset.json").exists():
        return address
    data = shlex.join([str(about.get("data", "DATA")), *map(str, about.get("options", ()))])
    todo = (
        f"name the data again: alexnet evaluate {shlex.quote(str(run))} --data {data} (prepares it again); or where"
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
            raise damaged(store.address, f"{name}: images per class differ from dataset.json")
