"""The description of a store (``dataset.json``), and the backend of a store in a local folder.

The description is read and checked before any other file of the store is opened. ``remote.py`` has the backend of
stores at an address.
"""

import hashlib
import json
import re
import resource
import threading
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from alexnet.data.atomic_io import open_regular, sha256_of
from alexnet.errors import DataError
from alexnet.schema import JSON_BYTES, Sha256, check, checksum_of, class_fault, parse_json

FORMAT = "alexnet-store"
VERSIONS = {"raw": 1, "jpeg": 2}  # encoding → format version
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
    """The fields of ``dataset.json`` except format, version and encoding."""

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
    """One SHA-256 of the content: the classes, the hashes of shards, labels and index, and the encoding."""
    files = {
        name: [
            sha256[file]
            for file in (*description["shards"], description["labels"], *filter(None, [description.get("index")]))
        ]
        for name, description in splits.items()
    }
    content = [classes, files, *([encoding] if encoding != "raw" else [])]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def damaged(address: str, reason: str) -> DataError:
    """The error for a damaged store at ``address``."""
    return DataError(f"{address}: damaged store ({reason})", "", "prepare the data set again")


def read_description(data: bytes, address: str) -> dict[str, Any]:
    """Parse and check ``dataset.json``.

    Args:
        data: its bytes.
        address: the store's path or address, for messages.

    Raises:
        DataError: it is damaged, or of another program or version.
    """
    try:
        description = parse_json(data)
    except ValueError as error:
        raise damaged(address, f"dataset.json: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise DataError(
            f"{address}: dataset.json is of another program", f"of format {FORMAT}", "choose another folder"
        )
    _check_version(description, address)
    try:
        check(description, _Description)
    except ValueError as error:
        raise damaged(address, f"dataset.json: {error}") from error
    if fault := class_fault(description["classes"]):
        raise damaged(address, f"dataset.json: {fault}")
    _check_names(description, address)
    if description["checksum"] != checksum_of(description):
        raise damaged(address, "dataset.json has changed since it was written: its checksum differs")
    encoding = description.get("encoding", "raw")
    if description["fingerprint"] != fingerprint_of(
        description["classes"], description["splits"], description["sha256"], encoding
    ):
        raise damaged(address, "dataset.json: the fingerprint is not that of its classes and files")
    return description


def _check_version(description: Mapping[str, Any], address: str) -> None:
    version, encoding = description.get("version"), description.get("encoding", "raw")
    if version not in VERSIONS.values():
        newer = isinstance(version, int) and version > max(VERSIONS.values())
        todo = "update alexnet" if newer else "prepare the data set again"
        must = "version " + " or ".join(map(str, VERSIONS.values()))
        raise DataError(f"{address}: store of version {version!r}", must, todo)
    if VERSIONS.get(encoding) != version:
        raise damaged(address, f"dataset.json: encoding {encoding!r:.60} in version {version}")


def _check_names(description: Mapping[str, Any], address: str) -> None:
    """Check that all file names are inside the store and have a SHA-256 and a size."""
    if tuple(description["splits"]) != SPLIT_NAMES:
        raise damaged(address, f"splits {', '.join(description['splits'])}")
    splits = description["splits"].values()
    try:
        names = [name for split in splits for name in (*split["shards"], split["labels"])] + [description["mean_image"]]
        names += [split["index"] for split in splits if description["version"] == VERSIONS["jpeg"]]
        for name in (*names, *description["sha256"]):
            if not re.fullmatch(r"(train/|validation/|test/)?[\w-]+(\.[a-z]+)?", name):
                raise damaged(address, f"file name {name!r}")
    except (KeyError, TypeError) as error:
        raise damaged(address, f"splits: {error}") from error
    missing = sorted(set(names) - set(description["sha256"]))
    if missing:
        raise damaged(address, f"no SHA-256 of {missing[0]}")
    if set(description["bytes"]) != set(description["sha256"]):
        raise damaged(address, "bytes and sha256 are not of the same files")


# Files whose SHA-256 this process has verified: path, inode, size and times at that moment.
_checked: set[tuple[str, int, int, int, int]] = set()
_checking = threading.Lock()  # threads that share a file wait for one comparison

Shards = Sequence[NDArray[np.uint8]]  # each uint8 [m, S, S, 3], or the bytes [B] of its JPEGs


class StoreBackend(Protocol):
    """Access to the files of a store."""

    address: str  # the path or address that the user passed

    @property
    def absolute(self) -> str:
        """The absolute path, or the address."""

    @property
    def folder(self) -> Path:
        """The store's folder on this disk. Raises DataError for a store at an address."""

    def description(self) -> bytes:
        """The bytes of dataset.json. Raises DataError."""

    def set_description(self, description: Mapping[str, Any]) -> None:
        """Set the description, which has the sizes and hashes of the files."""

    def check(self, name: str) -> None:
        """Compare a file with its recorded SHA-256 before its first use in this process. Raises DataError."""

    def file(self, name: str) -> Path:
        """The path of a complete, verified copy of a file on this disk. Raises DataError."""

    def shards(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Shards:
        """The shards of a split; ``shapes`` are those of the description."""

    def expecting(self, shards: Shards, order: Iterable[int], max_in_use: int) -> AbstractContextManager[None]:
        """A context in which shards are fetched in ``order``; at most ``max_in_use`` are used at the same time."""

    def open_args(self) -> tuple[Any, ...]:
        """Arguments of ``Store.open`` for another process."""


class LocalBackend:
    """A store in a folder on a local or network disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, str(folder)
        self._sha256: Mapping[str, str] = {}  # empty while the store is being prepared

    @property
    def absolute(self) -> str:
        return str(self.folder.resolve())

    def description(self) -> bytes:
        path = self.folder / "dataset.json"
        try:
            with open_regular(path) as file:
                return file.read(JSON_BYTES + 1)
        except FileNotFoundError as error:
            todo = "make it with: alexnet prepare"
            raise DataError(f"{self.address}: no store", "a folder with dataset.json", todo) from error
        except OSError as error:
            todo = "prepare the data set again"
            raise DataError(f"{self.address}: damaged store (dataset.json: {error})", "", todo) from error

    def set_description(self, description: Mapping[str, Any]) -> None:
        self._sha256 = description["sha256"]

    def check(self, name: str) -> None:
        if name not in self._sha256:
            return
        path, label = self.folder / name, f"{self.address}/{name}"
        try:
            status = path.stat()
            state = (str(path.absolute()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            with _checking:
                if state in _checked:
                    return
                matches = sha256_of(path) == self._sha256[name]
                if matches:
                    _checked.add(state)
        except OSError as error:
            raise DataError(f"{label}: {error.strerror}", "a whole file", "prepare the data set again") from error
        if not matches:
            raise DataError(f"{label}: SHA-256 is not the recorded one", "", "prepare the data set again")

    def file(self, name: str) -> Path:
        self.check(name)
        return self.folder / name

    def shards(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Shards:
        _raise_file_limit(len(names), self.address)
        return [read_array(self.folder / name, np.uint8, len(shapes[0])) for name in names]

    def expecting(self, shards: Shards, order: Iterable[int], max_in_use: int) -> AbstractContextManager[None]:
        return nullcontext()

    def open_args(self) -> tuple[Any, ...]:
        return (self.folder,)


def _raise_file_limit(files: int, address: str) -> None:
    """Raise the limit of open files if ``files`` memory maps need it. Raises DataError if that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files + len(list(Path("/dev/fd").iterdir())) + 256  # plus other files of this process
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        must = f"fewer than the {hard:,} open files that a process may have"
        raise DataError(f"{address}: {files:,} shards", must, "raise the limit (ulimit -n) or prepare larger shards")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


# NumPy parses the header of a file by ast.literal_eval, which Python up to 3.11.7 and 3.12.0 does not survive in
# several threads at a time: "AST constructor recursion depth mismatch" (gh-106905).
_HEADER = threading.Lock()


def read_array(path: Path, dtype: Any, dimensions: int, name: str = "") -> NDArray[Any]:
    """Read a ``.npy`` file. A uint8 file is mapped to memory.

    Args:
        dtype: the expected type of its elements.
        dimensions: the expected number of dimensions.
        name: for messages; empty: the path.

    Raises:
        DataError: the file is damaged, too short or of another type.
    """
    mapped = dtype == np.uint8
    label = name or str(path)
    try:
        with open_regular(path), _HEADER:
            array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, OverflowError, SyntaxError, tokenize.TokenError) as error:
        problem = f"{label}: {getattr(error, 'strerror', None) or error}"
        raise DataError(problem, "a whole NumPy file", "prepare the data set again") from error
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != dimensions:
        raise DataError(f"{label}: not {np.dtype(dtype)} of {dimensions} dimensions", "", "prepare the data set again")
    return np.asarray(array)
