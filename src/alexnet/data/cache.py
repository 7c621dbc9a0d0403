"""A cache of remote files on this disk, named by their SHA-256, limited in bytes, least recently used removed first.

Only the files of this module are counted and removed: 64 hexadecimal digits and ``.shard``, with or without ``.part``.
Other files, folders and links in the folder are left unchanged, also those that another program names by their SHA-256.

Threads and processes may share a folder: the one that fetches a file holds its lock, and the others wait. A file gets
its name when it is complete and verified. Partial files of a killed process are removed by the next one.
"""

import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from alexnet.data.atomic_io import sha256_of
from alexnet.errors import DataError
from alexnet.system import cache_folder

_SPACE_TIMEOUT = 60.0  # seconds to wait for space that other fetches have reserved
_CACHE_NAME = re.compile(r"[0-9a-f]{64}\.shard(\.part)?")
_verified: set[str] = set()  # files whose hash this process has checked


@dataclass(frozen=True)
class Cache:
    """The folder of fetched files, its limit, and how files are fetched."""

    folder: Path = field(default_factory=lambda: cache_folder() / "remote")
    max_bytes: int = 32 << 30
    ahead: int = 4  # shards that are prefetched at the same time
    attempts: int = 5  # for each file
    first_wait: float = 0.5  # seconds before the second attempt; twice as long before each further one

    def obtain(self, sha256: str, size: int, name: str, fetch: Callable[[IO[bytes]], None]) -> Path:
        """The path of a cached file, which is fetched if it is missing.

        Args:
            sha256: hash of the file.
            size: bytes of the file.
            name: name of the file for messages.
            fetch: writes the file into an open file, and verifies it.

        Raises:
            DataError: if there is not enough space. Errors of ``fetch`` are passed on.
        """
        path, part = self.folder / f"{sha256}.shard", self.folder / f"{sha256}.shard.part"
        if _is_cached(path, size, sha256):
            return path
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(part) as file:
                if not _is_cached(path, size, sha256):  # another thread or process may have fetched it
                    self._reserve(part, size, name)
                    fetch(file)
                    part.replace(path)
                    touch(path)
                    _verified.add(str(path))
        except OSError as error:
            raise self._disk_error(error, size) from error
        return path

    def check_size(self, size: int, name: str) -> None:
        """Raise DataError if a file of ``size`` bytes is larger than the whole cache may be."""
        if size > self.max_bytes:
            expected = f"at most the cache's {self.max_bytes:,}"
            raise DataError(f"{name}: {size:,} bytes", expected, "give a larger --cache-gb, or prepare smaller shards")

    def _reserve(self, part: Path, size: int, name: str) -> None:
        """Free ``size`` bytes and reserve them by extending the file ``part`` to that length."""
        self.check_size(size, name)
        deadline = time.monotonic() + _SPACE_TIMEOUT
        while not self._try_reserve(part, size):
            if time.monotonic() > deadline:
                problem = f"{self.folder}: no room for {size:,} bytes among {self.max_bytes:,}, all being fetched"
                raise DataError(problem, "", "give a larger --cache-gb, or prepare smaller shards")
            time.sleep(0.05)

    def _try_reserve(self, part: Path, size: int) -> bool:
        with _locked(self.folder / "lock"):
            files = sorted(_sizes(self.folder, part))  # least recently used first
            total = sum(used for _, used, _ in files)
            for _, used, path in files:
                if total + size <= self.max_bytes:
                    break
                if _evict(path):
                    _verified.discard(str(path))
                    total -= used
            if total + size > self.max_bytes:
                return False
            os.truncate(part, size)
            return True

    def _disk_error(self, error: OSError, size: int) -> DataError:
        existing = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        problem = f"{self.folder}: {error.strerror or error}, {size:,} bytes needed, {free:,} free"
        return DataError(problem, "", "make room, or name another folder (--cache) or a smaller bound (--cache-gb)")


_default: list[Cache] = []


def set_default_cache(cache: Cache) -> None:
    """Set the cache of this process for stores that are opened without one."""
    _default[:] = [cache]


def default_cache() -> Cache:
    """The cache of :func:`set_default_cache`, or one with default values."""
    return _default[0] if _default else Cache()


def touch(path: Path) -> None:
    """Mark a file as used now."""
    with suppress(OSError):  # it may have been removed: processes that opened it keep it
        now = time.time_ns()  # finer than the clock of the file system
        os.utime(path, ns=(now, now))


def _is_cached(path: Path, size: int, sha256: str) -> bool:
    """Whether the file exists with this size and hash. The hash is computed once per process."""
    try:
        if path.stat().st_size != size:
            return False
        if str(path) not in _verified and sha256_of(path) != sha256:
            path.unlink(missing_ok=True)
            return False
    except OSError:
        return False
    _verified.add(str(path))
    touch(path)
    return True


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """Open and lock the file ``path``; other threads and processes wait.

    A ``.part`` file is removed at the end, unless it was renamed. A link is refused: its target is not a cache file.
    """
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                break
        file.close()  # the previous holder of the lock renamed or removed it
    with file:
        try:
            yield file
        finally:
            if path.suffix == ".part":  # missing after a rename
                path.unlink(missing_ok=True)


def _sizes(folder: Path, excluded: Path) -> Iterator[tuple[int, int, Path]]:
    """(time of the last use in ns, bytes, path) of every cached file except ``excluded``."""
    for path in folder.iterdir():
        if path != excluded and _CACHE_NAME.fullmatch(path.name):
            with suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    yield status.st_mtime_ns, status.st_size, path


def _evict(path: Path) -> bool:
    """Remove a file. Returns False if it is being fetched."""
    try:
        with path.open("rb") as file:
            if path.suffix == ".part":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True
