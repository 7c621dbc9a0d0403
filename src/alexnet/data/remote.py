"""Stores at an address (``s3://``, ``gs://``, ``https://``, ``memory://`` …), read through fsspec.

Shards are fetched when they are used, and ahead of their use where the order is known. Files are read in pieces and
retried with increasing delays. No file is used before its SHA-256 is verified. Files go to ``cache.py``, because the
caches of fsspec have neither a size limit nor hashes.
"""

import asyncio
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.cache import Cache, default_cache, touch
from alexnet.data.store_backend import Shards, read_array, read_description
from alexnet.errors import AlexNetError, DataError, printable

Obtain = Callable[[str, threading.Event], Path]  # a shard's name -> the file; ends early when the event is set


_MOST_OPEN = 256  # memory maps of a split


class Fetched(Sequence[NDArray[np.uint8]]):
    """A split's shards by number, each a memory map of a file in the cache."""

    def __init__(self, address: str, names: Sequence[str], shapes: Sequence[tuple[int, ...]], obtain: Obtain) -> None:
        self._address, self.names, self._shapes, self._obtain = address, names, shapes, obtain
        self._open: dict[int, tuple[Path, NDArray[np.uint8]]] = {}
        self._lock = threading.Lock()
        self._plans: list[_Plan] = []

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:  # type: ignore[override]  # no slices
        """The shard, fetched if it is not here. Raises DataError."""
        for plan in list(self._plans):
            plan.reached(number)
        with self._lock:
            value = self._open.get(number)
        path, array = value or self._opened(number)
        touch(path)
        return array

    @contextmanager
    def expecting(self, turns: Iterable[int], ahead: int) -> Iterator[None]:
        """While it is open, the shards ``turns`` are fetched in that order, ``ahead`` beyond the one used last."""
        with ThreadPoolExecutor(max(1, ahead), thread_name_prefix="shards") as pool:
            plan = _Plan(list(turns), ahead, lambda n: pool.submit(self._obtain, self.names[n], plan.stop))
            self._plans.append(plan)
            try:
                plan.go_on()
                yield
            finally:
                self._plans.remove(plan)
                plan.end()

    def _opened(self, number: int) -> tuple[Path, NDArray[np.uint8]]:
        for _ in range(3):  # another process may put it out between fetching and opening
            path = self._fetched(number)
            try:
                array = read_array(path, np.uint8, len(self._shapes[number]), self._shown(number))
            except DataError:
                if path.exists():
                    raise
                continue
            if array.shape != self._shapes[number]:
                raise DataError(f"{self._shown(number)}: {array.shape}", str(self._shapes[number]), "prepare it again")
            with self._lock:  # maps of files that were put out would hold their room, and each has a file handle
                left = [(n, (p, a)) for n, (p, a) in self._open.items() if p.exists()]
                self._open = dict(left[-_MOST_OPEN:]) | {number: (path, array)}
            return path, array
        must = "so large that what is in use stays"
        raise DataError(
            f"{self._shown(number)}: put out of the cache again and again", must, "give a larger --cache-gb"
        )

    def _fetched(self, number: int) -> Path:
        for plan in list(self._plans):
            future = plan.futures.pop(number, None)
            if future is not None and not future.cancelled():
                return future.result()
        return self._obtain(self.names[number], threading.Event())

    def _shown(self, number: int) -> str:
        return f"{self._address}/{self.names[number]}"


class _Plan:
    """In which order shards come, and how far the fetching may be ahead of their use."""

    def __init__(self, turns: list[int], ahead: int, start: Callable[[int], Future[Path]]) -> None:
        self.turns, self.ahead, self.start = turns, ahead, start
        self.places = {number: place for place, number in enumerate(turns)}
        self.used, self.begun = -1, 0  # places
        self.futures: dict[int, Future[Path]] = {}
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def reached(self, number: int) -> None:
        """This shard is used now."""
        place = self.places.get(number, -1)
        if place > self.used:
            self.used = place
            self.go_on()

    def go_on(self) -> None:
        """Begin with all that may be fetched by now."""
        with self._lock:
            while self.begun < min(self.used + 1 + self.ahead, len(self.turns)) and not self.stop.is_set():
                number = self.turns[self.begun]
                self.futures[number] = self.start(number)
                self.begun += 1

    def end(self) -> None:
        """Fetch no more; what is being fetched ends at its next piece."""
        self.stop.set()
        for future in list(self.futures.values()):
            future.cancel()


PIECE = 16 << 20  # bytes asked for at a time
_SECONDS = 120.0  # for one piece; what hangs longer is a fault
_CLIENTS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp", "abfs": "adlfs"}
_TODO = "check address, network and rights, and run it again: what was fetched stays"


class _Stopped(Exception):  # noqa: N818 - nobody waits for this file any more
    pass


def is_address(path: object) -> bool:
    """Is this an address (``scheme://…``) and no path?"""
    return isinstance(path, str) and re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def local_path(path: str | Path) -> Path:
    """``path`` as a path on this disk. Raises DataError for an address, which ``Path`` would turn into ``s3:/…``."""
    if is_address(path):
        todo = "only a prepared store (DATA, --store) may be at an address"
        raise DataError(f"{printable(str(path))}: is an address", "a path on this disk", todo)
    return Path(path)


class RemoteBackend:
    """What lies behind an address, as a place of a store."""

    def __init__(self, address: str, cache: Cache | None = None) -> None:
        self.address, self.cache = printable(address.rstrip("/")), cache or default_cache()
        self.system, self.root = _system(address.rstrip("/"))
        self._sha256: dict[str, str] = {}
        self._bytes: dict[str, int] = {}

    @property
    def absolute(self) -> str:
        return self.address

    @property
    def folder(self) -> Path:
        raise DataError(f"{self.address}: is no folder on this disk", "a path", "copy the store to a disk first")

    def again(self) -> tuple[Any, ...]:
        return self.address, self.cache

    def description(self) -> bytes:
        return bytes(self._patiently("dataset.json", partial(self._read, "dataset.json", 0, None), threading.Event()))

    def know(self, about: Mapping[str, Any]) -> None:
        self._sha256, self._bytes = about["sha256"], about["bytes"]

    def check(self, name: str) -> None:
        """Nothing: the cache compares what it fetches."""

    def file(self, name: str) -> Path:
        return self.obtain(name, threading.Event())

    def shards(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Shards:
        return Fetched(self.address, names, shapes, self.obtain)

    def expecting(self, shards: Shards, turns: Iterable[int], need: int) -> AbstractContextManager[None]:
        turns = list(turns)
        if not isinstance(shards, Fetched) or not turns:
            return nullcontext()
        sizes = [self._bytes[shards.names[turn]] for turn in turns]
        room = min(sum(sizes), need * max(sizes))
        if room > self.cache.max_bytes:
            what = f"{self.address}: {need} shards of up to {max(sizes):,} bytes are used at once"
            must = f"at most {self.cache.max_bytes:,} bytes, the cache's bound"
            raise DataError(what, must, "give --cache-gb more, --shuffle-window less, or prepare smaller shards")
        return shards.expecting(turns, min(self.cache.ahead, (self.cache.max_bytes - room) // max(sizes)))

    def obtain(self, name: str, stop: threading.Event) -> Path:
        """A file of the store in the cache, fetched and verified if it is not there. Raises DataError."""
        fetch = partial(self._fetch, name, stop)
        return self.cache.obtain(self._sha256[name], self._bytes[name], f"{self.address}/{name}", fetch)

    def send(self, folder: Path, log: Callable[[str], None]) -> None:
        """Copy the finished store in ``folder`` here, ``dataset.json`` last. Raises DataError.

        Files that an earlier call sent are not sent again: a list in ``FOLDER.sent`` has them. A store that is here
        already must be the same.
        """
        about = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        if (there := self._fingerprint()) is not None:
            if there != about["fingerprint"]:
                raise DataError(f"{self.address}: holds another store", "a new address", "name another or remove it")
            return
        record = folder.with_name(folder.name + ".sent")
        sent = set(record.read_text(encoding="utf-8").splitlines()) if record.exists() else set()
        for name, sha256 in (about["sha256"] | {"dataset.json": about["fingerprint"]}).items():
            if (line := f"{sha256} {self.address}/{name}") not in sent:
                log(f"sending {name}")
                self._patiently(name, partial(self._put, folder / name, name), threading.Event(), "written")
                with record.open("a", encoding="utf-8") as lines:
                    lines.write(line + "\n")
        record.unlink()

    def _put(self, path: Path, name: str) -> None:
        self.system.makedirs(f"{self.root}/{name}".rpartition("/")[0], exist_ok=True)
        self.system.put_file(str(path), f"{self.root}/{name}")

    def _fingerprint(self) -> Any:
        """Of the store that is here; None if there is none."""
        try:
            if not self.system.exists(f"{self.root}/dataset.json"):
                return None
        except Exception as error:  # of each client its own
            raise DataError(f"{self.address}: {_told(error)}", "an address that can be read", _TODO) from error
        return read_description(self.description(), self.address)["fingerprint"]

    def _fetch(self, name: str, stop: threading.Event, file: IO[bytes]) -> None:
        self._patiently(name, partial(self._copy, name, file, [hashlib.sha256()], stop), stop)

    def _copy(self, name: str, file: IO[bytes], digest: list[Any], stop: threading.Event) -> None:
        """Go on copying where the last attempt ended; from the beginning if all that was copied was wrong."""
        size = self._bytes[name]
        while (at := file.tell()) < size:
            if stop.is_set():
                raise _Stopped
            piece = self._read(name, at, min(at + PIECE, size))
            digest[0].update(piece)
            os.pwrite(file.fileno(), piece, at)
            file.seek(at + len(piece))
        if digest[0].hexdigest() != self._sha256[name]:
            file.seek(0)
            digest[0] = hashlib.sha256()
            raise ValueError("SHA-256 is not the recorded one")

    def _read(self, name: str, start: int, end: int | None) -> bytes:
        """Bytes ``start`` to ``end`` of a file, or all of it where the end is not known."""
        limits = {} if end is None else {"start": start, "end": end}
        path = f"{self.root}/{name}"
        if self.system.async_impl:
            from fsspec.asyn import sync

            read = self.system._cat_file
            data: bytes = sync(self.system.loop, read, path, timeout=_SECONDS, **limits)
        else:
            data = self.system.cat_file(path, **limits)
        if end is not None and len(data) == self._bytes[name] > end - start:
            data = data[start:end]  # a server that knows no ranges sends all
        if end is not None and len(data) != end - start:
            raise ValueError(f"{len(data):,} bytes came instead of {end - start:,}")
        return data

    def _patiently(self, name: str, work: Any, stop: threading.Event, done: str = "fetched") -> Any:
        """What ``work`` gives, tried again after each fault. Raises DataError after the last, or if it is hopeless."""
        where, wait, reason = f"{self.address}/{name}", self.cache.first_wait, ""
        for attempt in range(self.cache.attempts):
            if attempt and stop.wait(wait * 2 ** (attempt - 1) * (1 + os.getpid() % 16 / 16)):  # no herd of machines
                raise _Stopped
            try:
                return work()
            except (FileNotFoundError, PermissionError) as error:
                reason = "it is not there" if isinstance(error, FileNotFoundError) else "there is no right to it"
                raise DataError(f"{where}: {reason}", "a store's file", _TODO) from error
            except NotImplementedError as error:
                raise DataError(
                    f"{where}: can not be {done}", "s3://, gs:// or another that takes files", ""
                ) from error
            except (AlexNetError, _Stopped):
                raise
            except OSError as error:
                if error.errno is not None and _of_this_disk(error):
                    raise
                reason = _told(error)
            except (Exception, asyncio.CancelledError) as error:  # every client has errors of its own
                reason = _told(error)
        raise DataError(f"{where}: can not be {done} ({reason}; tried {self.cache.attempts} times)", "", _TODO)


def _of_this_disk(error: OSError) -> bool:
    import errno

    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def _told(error: BaseException) -> str:
    text = printable(" ".join(str(error).split()))[:200]
    return (
        f"{type(error).__name__}: {text}"
        if text and not isinstance(error, ValueError)
        else text or type(error).__name__
    )


def _system(address: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it). Raises DataError."""
    scheme = address.partition("://")[0]
    try:
        from fsspec.core import url_to_fs

        system, root = url_to_fs(address)
    except ImportError as error:
        client = _CLIENTS.get(scheme, "its fsspec client")
        raise DataError(f"{address}: {scheme} needs {client}", "installed", f"pip install {client}") from error
    except Exception as error:  # whatever a client makes of a wrong address
        raise DataError(f"{printable(address)}: {_told(error)}", "an address that fsspec knows", _TODO) from error
    return system, str(root).rstrip("/")
