"""The prepared data set: a *store* of plain NumPy files, in a folder or at an address, and its splits.

``dataset.json``, written last, describes everything: classes in order, image size, counts, statistics, and the SHA-256
of every other file. Each split has shards, ``labels.npy`` (int64 [n]) and ``origins.jsonl`` (where each image came
from). Raw shards (version 1) are ``images-00000.npy`` … (uint8 [n, S, S, 3], memory-mapped). JPEG shards (version 2)
are ``jpegs-00000.npy`` … (uint8, concatenated JPEGs) with ``index.npy``, which has for each image the byte at which it
ends and the CRC-32 of its bytes: a flipped bit can decode without an error. docs/data.md describes every field.
"""

import mmap
import shlex
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from alexnet.data.atomic_io import read_jsonl, sha256_of
from alexnet.data.cache import Cache
from alexnet.data.remote import RemoteBackend, is_address
from alexnet.data.store_backend import LocalBackend, StoreBackend, damaged, read_array, read_description
from alexnet.errors import DataError, ImageError
from alexnet.schema import Sha256, check
from alexnet.system import cores

JPEG_RATIO = 8  # raw bytes for each JPEG byte, when shards are planned; about 10 for photographs with quality 88
_MIN_PER_THREAD = 8  # JPEGs for each decoding thread, at least


class JpegBytes(NamedTuple):
    """One JPEG of a shard, with its entry of the index."""

    data: NDArray[np.uint8]  # its bytes [B]
    crc: int
    name: str  # shard and image, for messages


def encode(image: NDArray[np.uint8], quality: int) -> bytes:
    """``image`` uint8 [S, S, 3] as a JPEG with 4:2:0 chroma subsampling."""
    from alexnet.data.decode import encode_jpeg

    return encode_jpeg(image, quality)


def decode_into(out: NDArray[np.uint8], jpegs: Sequence[JpegBytes]) -> None:
    """Decode ``jpegs`` [N] into ``out`` uint8 [N, S, S, 3] on all cores. Raises DataError for a damaged JPEG."""
    threads = min(cores(), len(jpegs) // _MIN_PER_THREAD)
    if threads < 2:
        for row, jpeg in enumerate(jpegs):
            _decode(out[row], jpeg)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="jpegs") as pool:
        for _ in pool.map(_decode, out, jpegs):
            pass


def _decode(out: NDArray[np.uint8], jpeg: JpegBytes) -> None:
    from alexnet.data.decode import decode

    data = jpeg.data.tobytes()
    if zlib.crc32(data) != jpeg.crc:
        raise _damaged_jpeg(jpeg, "its CRC-32 is not the recorded one")
    try:
        image = decode(data, jpeg.name)
    except ImageError as error:
        raise _damaged_jpeg(jpeg, error.what.removeprefix(jpeg.name + ": ")) from error
    if image.shape != out.shape:
        raise _damaged_jpeg(jpeg, f"{image.shape[1]} × {image.shape[0]} pixels")
    out[:] = image


def _damaged_jpeg(jpeg: JpegBytes, reason: str) -> DataError:
    hint = "`alexnet prepare --check` names every damaged file; copy it or prepare the data set again"
    return DataError(f"{jpeg.name}: {reason}", "the JPEG that was stored", hint)


class Split:
    """One split of a store: images in shards, and their labels.

    Args:
        root: the store's folder or backend.
        name: train, validation or test.
        description: the split's entry in dataset.json.
        size: height and width of the images, pixels.
    """

    def __init__(self, root: Path | StoreBackend, name: str, description: Mapping[str, Any], size: int) -> None:
        self.backend: StoreBackend = LocalBackend(root) if isinstance(root, Path) else root
        self.name, self.size = name, size
        self.labels: NDArray[np.int64] = self._read(description["labels"], 1)  # [n]
        self._index: NDArray[np.int64] | None = (
            self._read(description["index"], 2) if "index" in description else None
        )  # [n, 2]
        self._names: list[str] = list(description["shards"])
        self._counts: list[int] = description["counts"]
        self._shards = self.backend.shards(self._names, self._shapes()) if self._names else []
        self._checked: set[int] = set()  # shards whose SHA-256 was compared
        mapped = isinstance(self._shards, list) and self._index is None
        self.counts: list[int] = [len(shard) for shard in self._shards] if mapped else list(self._counts)
        self._ends: list[int] = np.cumsum(self.counts, dtype=np.int64).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the address and the name: a worker process maps the files again, and no image is copied."""
        return _reopen, (self.backend.open_args(), self.name)

    def release_memory(self) -> None:
        """Release the pages of local shards that were read, which count as memory of this process.

        Pages that are needed again are read again, from the system's cache or from the disk.
        """
        for shard in self._shards if isinstance(self._shards, list) else ():
            base: Any = shard
            while isinstance(base, np.ndarray):
                base = base.base
            if isinstance(base, mmap.mmap):
                base.madvise(mmap.MADV_DONTNEED)

    def gather(self, indices: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The images at ``indices`` [N]. JPEGs are decoded on all cores.

        Each raw image is copied as one slice, which is 13 to 28 times faster than fancy indexing of a memory map.

        Args:
            out: uint8 [N, S, S, 3], where the images are written; None: a new array.

        Returns:
            uint8 [N, S, S, 3].

        Raises:
            IndexError: an index is out of range, or ``out`` has another length.
            DataError: a file is damaged.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"index {indices.min()} to {indices.max()} in {self.name} of {len(self)} images")
        if out is None:
            out = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        if len(out) != len(indices):
            raise IndexError(f"out has room for {len(out)} images, {len(indices)} are requested")
        shard_numbers = np.searchsorted(self._ends, indices, side="right")
        if self._index is None:  # JPEGs are checked one by one instead
            for number in set(np.unique(shard_numbers).tolist()) - self._checked:
                self.backend.check(self._names[number])
                self._checked.add(number)
        shards = {number: self._shards[number] for number in np.unique(shard_numbers).tolist()}
        positions = zip(shard_numbers.tolist(), indices.tolist(), strict=True)
        if self._index is None:
            for row, (number, index) in enumerate(positions):
                out[row] = shards[number][index - self._ends[number]]  # counted from the shard's end
        else:
            decode_into(out, [self._jpeg(number, index, shards[number]) for number, index in positions])
        return out

    def expecting(self, indices: NDArray[np.int64]) -> AbstractContextManager[None]:
        """A context in which images are gathered about in the order of ``indices`` [N]: shards are fetched ahead.

        It has no effect for a store on a local disk.

        Raises:
            DataError: this order needs more shards at once than the cache has room for.
        """
        shard_numbers = np.searchsorted(self._ends, indices, side="right")  # [N]
        used_shards, first = np.unique(shard_numbers, return_index=True)
        last = len(shard_numbers) - 1 - np.unique(shard_numbers[::-1], return_index=True)[1]
        changes = np.zeros(len(shard_numbers) + 1, np.int64)
        np.add.at(changes, first, 1)
        np.add.at(changes, last + 1, -1)
        max_in_use = int(np.cumsum(changes).max(initial=0))
        return self.backend.expecting(self._shards, used_shards[np.argsort(first)].tolist(), max_in_use)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The group (patient, camera, video) of each image; empty if none has one.

        An image without a group is its own group. Cached because the file would otherwise be read in each epoch.
        """
        rows = self.origins()
        if not any(row.get("group") for row in rows):
            return ()
        return tuple(f"g{row['group']}" if row.get("group") else f"p{row['origin']}" for row in rows)

    def origins(self) -> list[dict[str, Any]]:
        """One dictionary for each image: ``origin``, ``sha256`` of the source bytes, ``notes`` of the decoder."""
        rows = _rows(self.backend, f"{self.name}/origins.jsonl", list[_Origin])
        if len(rows) != len(self):
            raise damaged(self.backend.address, f"{self.name}/origins.jsonl has {len(rows)} rows")
        return rows

    def fault(self) -> str:
        """The first inconsistency of the split's files, or an empty string."""
        if self.counts != self._counts or sum(self.counts) != len(self):
            return "counts of images, labels and dataset.json differ"
        if self._index is not None:
            return self._index_fault(self._index)
        shape = (self.size, self.size, 3)
        local = isinstance(self._shards, list)
        return "images of another size" if local and any(s.shape[1:] != shape for s in self._shards) else ""

    def _index_fault(self, index: NDArray[np.int64]) -> str:
        if index.shape != (len(self), 2) or any(count < 1 for count in self.counts):
            return "index of another shape"
        starts = np.concatenate([[0], index[:-1, 0]]) if len(index) else index[:, 0]
        starts[[end - count for end, count in zip(self._ends, self.counts, strict=True)]] = 0
        if (index[:, 0] <= starts).any():
            return "index out of order"
        shapes = self._shapes()
        local = isinstance(self._shards, list)
        return "index and shards differ" if local and [s.shape for s in self._shards] != shapes else ""

    def _read(self, name: str, dimensions: int) -> NDArray[np.int64]:
        return read_array(self.backend.file(name), np.int64, dimensions, f"{self.backend.address}/{name}")

    def _shapes(self) -> list[tuple[int, ...]]:
        """The shapes that the arrays of the shards must have."""
        counts = self._counts
        if len(counts) != len(self._names):
            raise ValueError("counts and shards differ")
        if self._index is None:
            return [(count, self.size, self.size, 3) for count in counts]
        if self._index.shape != (sum(counts), 2):
            raise ValueError("index of another shape")
        return [(int(self._index[end - 1, 0]),) for end in np.cumsum(counts).tolist()]

    def _jpeg(self, number: int, index: int, shard: NDArray[np.uint8]) -> JpegBytes:
        assert self._index is not None
        first = self._ends[number] - self.counts[number]
        start = int(self._index[index - 1, 0]) if index > first else 0
        end, crc = self._index[index].tolist()
        name = f"{self.backend.address}/{self._names[number]}: image {index - first}"
        if end > len(shard):
            raise DataError(f"{name}: beyond the end of the shard", "inside", "prepare the data set again")
        return JpegBytes(shard[start:end], crc, name)


class _Origin(msgspec.Struct):
    """A row of ``origins.jsonl``."""

    origin: str
    sha256: Sha256
    notes: list[str]
    group: str = ""
    columns: dict[str, str] = {}


class _LeftOut(msgspec.Struct):
    """A row of ``skipped.jsonl``."""

    split: Literal["train", "validation", "test"]
    origin: str
    reason: str


def _rows(backend: StoreBackend, name: str, schema: type[list[Any]]) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines. Raises DataError unless each is of the ``schema``."""
    rows = read_jsonl(backend.file(name))
    try:
        check(rows, schema)
    except ValueError as error:
        raise damaged(backend.address, f"{name}: {error}") from error
    return rows


class Subset(Split):
    """A split with the images of ``split`` at ``rows`` int64 [n], in that order."""

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
        """Yields each split, the mask [N] of the ``indices`` [N] that are in it, and their indices within the split."""
        numbers = np.searchsorted(self._split_ends, indices, side="right")
        for number, split in enumerate(self.splits):
            rows = numbers == number
            yield split, rows, indices[rows] - (self._split_ends[number] - len(split))


def _reopen(open_args: tuple[Any, ...], name: str) -> Split:
    return Store.open(*open_args).split(name)


class Store:
    """A prepared data set, open for reading. Use ``Store.open``."""

    def __init__(self, backend: StoreBackend, description: Mapping[str, Any]) -> None:
        self.backend, self.metadata = backend, description
        self.address: str = backend.address  # the path or address that was passed to ``open``
        self.name: str = description["name"]
        self.classes: tuple[str, ...] = tuple(description["classes"])
        self.size: int = description["size"]  # height and width of the images, pixels
        self.fit: str = description["fit"]  # crop, pad or squash
        self.encoding: str = description.get("encoding", "raw")  # raw or jpeg
        self.allow_hflip: bool = description["allow_hflip"]  # whether training may flip images horizontally
        self.skipped: int = description["skipped"]  # images left out, listed in skipped.jsonl
        self.fingerprint: str = description["fingerprint"]  # of the content
        self.channel_means = np.array(description["channel_means"], np.float64)  # [3], 0..255, of the training split
        self.color_std = np.array(description["color_std"], np.float64)  # [3], gray levels, largest first
        self.color_axes = np.array(description["color_axes"], np.float64)  # [3, 3], columns are the axes
        name = description["mean_image"]
        self.mean_image: NDArray[np.float32] = read_array(backend.file(name), np.float32, 3, f"{self.address}/{name}")
        self.splits = {name: Split(backend, name, entry, self.size) for name, entry in description["splits"].items()}

    @classmethod
    def open(cls, path: str | Path, cache: Cache | None = None) -> "Store":
        """Open a store and check that its files are consistent. Images are not read: see ``verify``.

        Args:
            path: a folder or an address (``s3://…``, ``https://…``, ``memory://…``).
            cache: where the shards of a store at an address are kept; None: the default cache.

        Raises:
            DataError: there is no store, or it is damaged.
        """
        backend: StoreBackend = RemoteBackend(str(path), cache) if is_address(path) else LocalBackend(Path(path))
        description = read_description(backend.description(), backend.address)
        backend.set_description(description)
        try:
            store = cls(backend, description)
            _check_shapes(store, description)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(backend.address, f"{type(error).__name__} {error}") from error
        return store

    @property
    def path(self) -> Path:
        """The store's folder. Raises DataError for a store at an address."""
        return self.backend.folder

    @property
    def absolute(self) -> str:
        """The absolute path, or the address."""
        return self.backend.absolute

    def __reduce__(self) -> tuple[Any, ...]:
        return Store.open, self.backend.open_args()

    def split(self, name: str) -> Split:
        """The split ``name``: train, validation or test. It may be empty. Raises DataError for another name."""
        if name not in self.splits:
            raise DataError(
                f"{self.address}: split {name!r}", f"one of {', '.join(self.splits)}", "choose one of these"
            )
        return self.splits[name]

    def left_out(self) -> list[dict[str, Any]]:
        """One dictionary for each image that could not be used: ``split``, ``origin``, ``reason``."""
        return _rows(self.backend, "skipped.jsonl", list[_LeftOut])

    def damaged(self) -> list[str]:
        """The names of the files whose SHA-256 is not the recorded one. All files are read."""
        recorded: dict[str, str] = self.metadata["sha256"]
        return [name for name, sha256 in recorded.items() if not self._same(name, sha256)]

    def verify(self) -> None:
        """Compare every file with its SHA-256. Raises DataError for the first that differs."""
        for name in self.damaged():
            raise DataError(f"{self.address}/{name}: SHA-256 is not the recorded one", "", "prepare the data set again")

    def _same(self, name: str, sha256: str) -> bool:
        try:
            local = isinstance(self.backend, LocalBackend)
            return sha256_of(self.path / name if local else self.backend.file(name)) == sha256
        except (OSError, DataError):
            return False


def recorded_store(run: Path, run_metadata: Mapping[str, Any]) -> str:
    """The address of the store that ``run_metadata`` (run.json) names.

    Raises:
        DataError: the store was deleted or moved.
    """
    address = str(run_metadata["store"])
    if is_address(address) or (Path(address) / "dataset.json").exists():
        return address
    data = shlex.join([str(run_metadata.get("data", "DATA")), *map(str, run_metadata.get("options", ()))])
    hint = (
        f"name the data again: alexnet evaluate {shlex.quote(str(run))} --data {data} (prepares it again); or where"
        " the store is now: as DATA of evaluate and compare, --store of report, plot, bench and"
        " train --resume, --data of export"
    )
    raise DataError(f"{run}: its prepared images are not in {address}", "a store that was not deleted or moved", hint)


def _check_shapes(store: Store, description: Mapping[str, Any]) -> None:
    shape = (store.size, store.size, 3)
    if store.mean_image.shape != shape or store.channel_means.shape != (3,) or store.color_std.shape != (3,):
        raise damaged(store.address, "statistics of another shape")
    if not ((store.mean_image >= 0) & (store.mean_image <= 255)).all():
        raise damaged(store.address, f"{description['mean_image']}: values that are no gray levels")
    if store.color_axes.shape != (3, 3) or len(set(store.classes)) != len(store.classes) or len(store.classes) < 2:
        raise damaged(store.address, "color axes or classes")
    for name, split in store.splits.items():
        entry = description["splits"][name]
        if fault := split.fault() or ("counts differ" if len(split) != entry["count"] else ""):
            raise damaged(store.address, f"{name}: {fault}")
        if split.labels.size and not (split.labels.min() >= 0 and split.labels.max() < len(store.classes)):
            raise damaged(store.address, f"{name}: a label that is no class")
        if np.bincount(split.labels, minlength=len(store.classes)).tolist() != entry["per_class"]:
            raise damaged(store.address, f"{name}: images per class differ from dataset.json")
