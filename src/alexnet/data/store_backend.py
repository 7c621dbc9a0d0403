"""``dataset.json``: what a store says of itself, read and checked before anything else of it is opened.

Where a store lies: a folder on this disk, or something that is read as if it were one (``remote.py``).
"""

import hashlib
import json
import re
import resource
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from alexnet.data.atomic_io import sha256_of
from alexnet.errors import DataError
from alexnet.schema import Sha256, check, checksum_of, class_fault, parse_json

FORMAT = "alexnet-store"
VERSIONS = {"raw": 1, "jpeg": 2}  # encoding → format version; readers before JPEG shards refuse 2 by its number
SPLIT_NAMES = ("train", "validation", "test")


class _Split(msgspec.Struct):
    """One entry of ``splits``."""

    count: Annotated[int, Meta(ge=0)]
    shards: list[str]
    labels: str
    per_class: list[Annotated[int, Meta(ge=0)]]
    counts: list[Annotated[int, Meta(ge=1)]]
    index: str | msgspec.UnsetType = msgspec.UNSET


class _Description(msgspec.Struct):
    """What is checked of ``dataset.json`` beside format, version and file names."""

    name: str
    classes: list[str]
    size: Annotated[int, Meta(ge=1, le=4096)]
    fit: Literal["crop", "pad", "squash"]
    splits: dict[str, _Split]
    channel_means: Annotated[list[Annotated[float, Meta(ge=0, le=255)]], Meta(min_length=3, max_length=3)]
    mean_image: str
    color_std: Annotated[list[Annotated[float, Meta(ge=0)]], Meta(min_length=3, max_length=3)]
    color_axes: list[Annotated[list[float], Meta(min_length=3, max_length=3)]]
    sha256: dict[str, Sha256]
    bytes: dict[str, Annotated[int, Meta(ge=0)]]
    fingerprint: Sha256
    source_fingerprint: str
    settings: dict[str, Any]
    allow_hflip: bool
    skipped: Annotated[int, Meta(ge=0)]
    created_by: str
    checksum: Sha256


def fingerprint_of(
    classes: list[str], splits: Mapping[str, Any], sha256: Mapping[str, str], encoding: str = "raw"
) -> str:
    """What the images and labels are, as one SHA-256: the classes, the hashes of shards and labels, the encoding."""
    files = {
        name: [sha256[file] for file in (*about["shards"], about["labels"], *filter(None, [about.get("index")]))]
        for name, about in splits.items()
    }
    content = [classes, files, *([encoding] if encoding != "raw" else [])]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def damaged(where: str, reason: str) -> DataError:
    """The error for the store ``where`` that is not as it was written."""
    return DataError(f"{where}: damaged store ({reason})", "", "prepare the data set again")


def read_description(data: bytes, where: str) -> dict[str, Any]:
    """``dataset.json`` of the store ``where`` (a path or an address), checked. Raises DataError."""
    try:
        about = parse_json(data)
    except ValueError as error:
        raise damaged(where, f"dataset.json: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise DataError(f"{where}: dataset.json is of another program", f"of format {FORMAT}", "choose another folder")
    _check_version(about, where)
    try:
        check(about, _Description)
    except ValueError as error:
        raise damaged(where, f"dataset.json: {error}") from error
    if fault := class_fault(about["classes"]):
        raise damaged(where, f"dataset.json: {fault}")
    _check_names(about, where)
    if about["checksum"] != checksum_of(about):
        raise damaged(where, "dataset.json has changed since it was written: its checksum differs")
    encoding = about.get("encoding", "raw")
    if about["fingerprint"] != fingerprint_of(about["classes"], about["splits"], about["sha256"], encoding):
        raise damaged(where, "dataset.json: the fingerprint is not that of its classes and files")
    return about


def _check_version(about: Mapping[str, Any], where: str) -> None:
    version, encoding = about.get("version"), about.get("encoding", "raw")
    if version not in VERSIONS.values():
        newer = isinstance(version, int) and version > max(VERSIONS.values())
        todo = "update alexnet" if newer else "prepare the data set again"
        must = "version " + " or ".join(map(str, VERSIONS.values()))
        raise DataError(f"{where}: store of version {version!r}", must, todo)
    if VERSIONS.get(encoding) != version:
        raise damaged(where, f"dataset.json: encoding {encoding!r:.60} in version {version}")


def _check_names(about: Mapping[str, Any], where: str) -> None:
    """Only files inside the store are opened, whatever dataset.json says."""
    if tuple(about["splits"]) != SPLIT_NAMES:
        raise damaged(where, f"splits {', '.join(about['splits'])}")
    parts = about["splits"].values()
    try:
        names = [name for part in parts for name in (*part["shards"], part["labels"])] + [about["mean_image"]]
        names += [part["index"] for part in parts if about["version"] == VERSIONS["jpeg"]]
        for name in (*names, *about["sha256"]):
            if not re.fullmatch(r"(train/|validation/|test/)?[\w-]+(\.[a-z]+)?", name):
                raise damaged(where, f"file name {name!r}")
    except (KeyError, TypeError) as error:
        raise damaged(where, f"splits: {error}") from error
    missing = sorted(set(names) - set(about["sha256"]))
    if missing:
        raise damaged(where, f"no SHA-256 of {missing[0]}")
    if set(about["bytes"]) != set(about["sha256"]):
        raise damaged(where, "bytes and sha256 are not of the same files")


# Files that this process compared with their SHA-256, as they were then: path, inode, size, times.
_checked: set[tuple[str, int, int, int, int]] = set()
_checking = threading.Lock()  # threads that share a file wait for one comparison instead of making their own

Shards = Sequence[NDArray[np.uint8]]  # each [m, S, S, 3], or the bytes [B] of its JPEGs


class StoreBackend(Protocol):
    """What a store needs of the place where it lies."""

    address: str  # as a person gave it

    @property
    def absolute(self) -> str:
        """The address as it holds from any folder."""

    @property
    def folder(self) -> Path:
        """The folder on this disk. Raises DataError where there is none."""

    def description(self) -> bytes:
        """The bytes of dataset.json. Raises DataError."""

    def know(self, about: Mapping[str, Any]) -> None:
        """Keep what the description says of the files."""

    def check(self, name: str) -> None:
        """Compare a file with its recorded SHA-256 before its first use in this process. Raises DataError."""

    def file(self, name: str) -> Path:
        """A file of the store, whole and on this disk. Raises DataError."""

    def shards(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Shards:
        """The shards of a split; ``shapes`` is what the description says of them."""

    def expecting(self, shards: Shards, turns: Iterable[int], need: int) -> AbstractContextManager[None]:
        """While it is open, shards are made ready in the order of ``turns``; at most ``need`` are in use at once."""

    def again(self) -> tuple[Any, ...]:
        """Arguments of ``Store.open`` for another process."""


class LocalBackend:
    """A store in a folder on this disk, or on a network disk that looks like one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, str(folder)
        self._sha256: Mapping[str, str] = {}  # empty while the store is being prepared

    @property
    def absolute(self) -> str:
        return str(self.folder.resolve())

    def description(self) -> bytes:
        try:
            return (self.folder / "dataset.json").read_bytes()
        except FileNotFoundError as error:
            todo = "make it with: alexnet prepare"
            raise DataError(f"{self.address}: no store", "a folder with dataset.json", todo) from error
        except OSError as error:
            todo = "prepare the data set again"
            raise DataError(f"{self.address}: damaged store (dataset.json: {error})", "", todo) from error

    def know(self, about: Mapping[str, Any]) -> None:
        self._sha256 = about["sha256"]

    def check(self, name: str) -> None:
        if name not in self._sha256:
            return
        path, where = self.folder / name, f"{self.address}/{name}"
        try:
            status = path.stat()
            state = (str(path.absolute()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            with _checking:
                if state in _checked:
                    return
                same = sha256_of(path) == self._sha256[name]
                if same:
                    _checked.add(state)
        except OSError as error:
            raise DataError(f"{where}: {error.strerror}", "a whole file", "prepare the data set again") from error
        if not same:
            raise DataError(f"{where}: SHA-256 is not the recorded one", "", "prepare the data set again")

    def file(self, name: str) -> Path:
        self.check(name)
        return self.folder / name

    def shards(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Shards:
        _room_for(len(names), self.address)
        return [read_array(self.folder / name, np.uint8, len(shapes[0])) for name in names]

    def expecting(self, shards: Shards, turns: Iterable[int], need: int) -> AbstractContextManager[None]:
        return nullcontext()

    def again(self) -> tuple[Any, ...]:
        return (self.folder,)


def _room_for(files: int, where: str) -> None:
    """A memory map holds a file handle: ask the system for so many, where its limit is lower. Raises DataError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files + len(list(Path("/dev/fd").iterdir())) + 256  # others of this process, now and later
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        must = f"fewer than the {hard:,} open files that a process may have"
        raise DataError(f"{where}: {files:,} shards", must, "raise the limit (ulimit -n) or prepare larger shards")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def read_array(path: Path, kind: Any, dimensions: int, name: str = "") -> NDArray[Any]:
    """A ``.npy`` file as a plain array, mapped to memory if it holds images. Raises DataError that tells ``name``.

    ``np.load`` refuses a file that is too short.
    """
    images = kind == np.uint8
    text = name or str(path)
    try:
        array = np.load(path, mmap_mode="r" if images else None, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise DataError(f"{text}: {error}", "a whole NumPy file", "prepare the data set again") from error
    if not isinstance(array, np.ndarray) or array.dtype != kind or array.ndim != dimensions:
        raise DataError(f"{text}: not {np.dtype(kind)} of {dimensions} dimensions", "", "prepare the data set again")
    return np.asarray(array)
