"""Where a store lies: a folder on this disk, or something that is read as if it were one (``remote.py``)."""

import resource
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from alexnet.data.writing import sha256_of
from alexnet.errors import DataError

# Files that this process compared with their SHA-256, as they were then: path, inode, size, times.
_checked: set[tuple[str, int, int, int, int]] = set()
_checking = threading.Lock()  # threads that share a file wait for one comparison instead of making their own

Shards = Sequence[NDArray[np.uint8]]  # each [m, S, S, 3], or the bytes [B] of its JPEGs


class Place(Protocol):
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


class Folder:
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
    """A ``.npy`` file as a plain array, mapped to memory if it holds pictures. Raises DataError that tells ``name``.

    ``np.load`` refuses a file that is too short.
    """
    pictures = kind == np.uint8
    shown = name or str(path)
    try:
        array = np.load(path, mmap_mode="r" if pictures else None, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise DataError(f"{shown}: {error}", "a whole NumPy file", "prepare the data set again") from error
    if not isinstance(array, np.ndarray) or array.dtype != kind or array.ndim != dimensions:
        raise DataError(f"{shown}: not {np.dtype(kind)} of {dimensions} dimensions", "", "prepare the data set again")
    return np.asarray(array)
