"""Files from elsewhere on this disk: named by their SHA-256, bounded in bytes, least recently used out first.

Only names that this module writes are counted and removed: 64 hexadecimal digits, with or without ``.part``. Other
files, folders and links in the folder stay as they are.

Threads and processes may share a folder: who fetches a file holds its lock, and the others wait for it. A file gets its
name when all of it is there and verified. What a killed process left is swept by the next one.
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

_PATIENCE = 60.0  # seconds to wait for room that other fetches hold
_OWN_NAME = re.compile(r"[0-9a-f]{64}(\.part)?")
_verified: set[str] = set()  # files that this process has seen whole


@dataclass(frozen=True)
class Cache:
    """Where fetched files lie, how much they may take, and how stubbornly they are fetched."""

    folder: Path = field(default_factory=lambda: cache_folder() / "remote")
    max_bytes: int = 32 << 30
    ahead: int = 4  # shards that are fetched at once, before they are asked for
    attempts: int = 5  # for each file
    first_wait: float = 0.5  # seconds before the second attempt; twice as long before each further one

    def obtain(self, sha256: str, size: int, name: str, fetch: Callable[[IO[bytes]], None]) -> Path:
        """The file of that hash and ``size`` in bytes, fetched into an open file by ``fetch`` if it is not there.

        ``fetch`` verifies what it writes. Raises DataError if there can be no room, and what ``fetch`` raises.
        """
        path, part = self.folder / sha256, self.folder / (sha256 + ".part")
        if _there(path, size, sha256):
            return path
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _held(part) as file:
                if not _there(path, size, sha256):  # another one may have fetched it while this one waited
                    self._reserve(part, size, name)
                    fetch(file)
                    part.replace(path)
                    touch(path)
                    _verified.add(str(path))
        except OSError as error:
            raise self._disk_error(error, size) from error
        return path

    def _reserve(self, part: Path, size: int, name: str) -> None:
        """Make room for ``size`` bytes and take it, by giving the file ``part`` that length."""
        if size > self.max_bytes:
            must = f"at most the cache's {self.max_bytes:,}"
            raise DataError(f"{name}: {size:,} bytes", must, "give a larger --cache-gb, or prepare smaller shards")
        until = time.monotonic() + _PATIENCE
        while not self._took(part, size):
            if time.monotonic() > until:
                what = f"{self.folder}: no room for {size:,} bytes among {self.max_bytes:,}, all being fetched"
                raise DataError(what, "", "give a larger --cache-gb, or prepare smaller shards")
            time.sleep(0.05)

    def _took(self, part: Path, size: int) -> bool:
        with _held(self.folder / "lock"):
            files = sorted(_sizes(self.folder, part))  # by the time of their last use
            total = sum(taken for _, taken, _ in files)
            for _, taken, path in files:
                if total + size <= self.max_bytes:
                    break
                if _put_out(path):
                    _verified.discard(str(path))
                    total -= taken
            if total + size > self.max_bytes:
                return False
            os.truncate(part, size)
            return True

    def _disk_error(self, error: OSError, size: int) -> DataError:
        place = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        free = shutil.disk_usage(place).free
        what = f"{self.folder}: {error.strerror or error}, {size:,} bytes needed, {free:,} free"
        return DataError(what, "", "make room, or name another folder (--cache) or a smaller bound (--cache-gb)")


_chosen: list[Cache] = []


def set_default_cache(cache: Cache) -> None:
    """The cache of this process for stores that are opened without one."""
    _chosen[:] = [cache]


def default_cache() -> Cache:
    """The cache that was chosen, or the default one."""
    return _chosen[0] if _chosen else Cache()


def touch(path: Path) -> None:
    """Mark a file as used now."""
    with suppress(OSError):  # it may have been put out: whoever has it open keeps it
        now = time.time_ns()  # finer than the clock that the system stamps files with
        os.utime(path, ns=(now, now))


def _there(path: Path, size: int, sha256: str) -> bool:
    """Is the file here, whole? Its hash is computed once a process."""
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
def _held(path: Path) -> Iterator[IO[bytes]]:
    """The file ``path``, open and locked; another thread or process waits. A file to be fetched is removed if that
    fails. A link is refused: what it names is not ours to write."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                break
        file.close()  # renamed or removed by the one before
    with file:
        try:
            yield file
        finally:
            if path.suffix == ".part":  # after a rename there is none
                path.unlink(missing_ok=True)


def _sizes(folder: Path, own: Path) -> Iterator[tuple[int, int, Path]]:
    """(time of the last use, bytes, path) of every fetched file but ``own``."""
    for path in folder.iterdir():
        if path != own and _OWN_NAME.fullmatch(path.name):
            with suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    yield status.st_mtime_ns, status.st_size, path


def _put_out(path: Path) -> bool:
    """Remove a file, unless it is being fetched. False if it is."""
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
