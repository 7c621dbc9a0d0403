"""Stores at an address (``s3://``, ``gs://``, ``https://``, ``memory://`` …), read through fsspec.

Shards are fetched when they are used, and ahead of their use where the order is known. Files are read in pieces and
retried with increasing delays. No file is used before its SHA-256 is verified. Files go to ``cache.py``, because the
caches of fsspec have neither a size limit nor hashes.
"""

import asyncio
import glob
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

from alexnet.data.atomic_io import read_regular
from alexnet.data.cache import Cache, default_cache, touch
from alexnet.data.store_backend import Shards, read_array, read_description
from alexnet.errors import AlexNetError, DataError, ImageError, printable

FetchFile = Callable[[str, threading.Event], Path]  # a file's name -> its path; stops when the event is set


_MAX_OPEN = 256  # memory maps of a split that are kept open


class RemoteShards(Sequence[NDArray[np.uint8]]):
    """The shards of a split, each a memory map of a file in the cache."""

    def __init__(
        self, address: str, names: Sequence[str], shapes: Sequence[tuple[int, ...]], obtain: FetchFile
    ) -> None:
        self._address, self.names, self._shapes, self._obtain = address, names, shapes, obtain
        self._open: dict[int, tuple[Path, NDArray[np.uint8]]] = {}
        self._lock = threading.Lock()
        self._plans: list[_Plan] = []

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:  # type: ignore[override]  # no slices
        """The shard, fetched if it is not in the cache. Raises DataError."""
        for plan in list(self._plans):
            plan.mark_used(number)
        with self._lock:
            value = self._open.get(number)
        path, array = value or self._opened(number)
        touch(path)
        return array

    @contextmanager
    def expecting(self, order: Iterable[int], ahead: int) -> Iterator[None]:
        """A context in which shards are fetched in ``order``, up to ``ahead`` beyond the one used last."""
        with ThreadPoolExecutor(max(1, ahead), thread_name_prefix="shards") as pool:
            plan = _Plan(list(order), ahead, lambda n: pool.submit(self._obtain, self.names[n], plan.stop))
            self._plans.append(plan)
            try:
                plan.submit()
                yield
            finally:
                self._plans.remove(plan)
                plan.cancel()

    def _opened(self, number: int) -> tuple[Path, NDArray[np.uint8]]:
        for _ in range(3):  # another process may remove it between fetching and opening
            path = self._fetched(number)
            try:
                array = read_array(path, np.uint8, len(self._shapes[number]), self._label(number))
            except DataError:
                if path.exists():
                    raise
                continue
            if array.shape != self._shapes[number]:
                raise DataError(f"{self._label(number)}: {array.shape}", str(self._shapes[number]), "prepare it again")
            with self._lock:  # a map of a removed file holds disk space and a file handle
                open_maps = [(n, (p, a)) for n, (p, a) in self._open.items() if p.exists()]
                self._open = dict(open_maps[-_MAX_OPEN:]) | {number: (path, array)}
            return path, array
        must = "large enough for the shards in use"
        raise DataError(
            f"{self._label(number)}: removed from the cache again and again", must, "give a larger --cache-gb"
        )

    def _fetched(self, number: int) -> Path:
        for plan in list(self._plans):
            future = plan.futures.pop(number, None)
            if future is not None and not future.cancelled():
                return future.result()
        return self._obtain(self.names[number], threading.Event())

    def _label(self, number: int) -> str:
        return f"{self._address}/{self.names[number]}"


class _Plan:
    """The order in which shards are used, and the fetches that run ahead of their use."""

    def __init__(self, order: list[int], ahead: int, start: Callable[[int], Future[Path]]) -> None:
        self.order, self.ahead, self.start = order, ahead, start
        self.positions = {number: position for position, number in enumerate(order)}
        self.used, self.submitted = -1, 0  # positions in the order
        self.futures: dict[int, Future[Path]] = {}
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def mark_used(self, number: int) -> None:
        """Note that this shard is used now, and submit more fetches."""
        position = self.positions.get(number, -1)
        if position > self.used:
            self.used = position
            self.submit()

    def submit(self) -> None:
        """Submit all fetches up to ``ahead`` beyond the shard used last."""
        with self._lock:
            while self.submitted < min(self.used + 1 + self.ahead, len(self.order)) and not self.stop.is_set():
                number = self.order[self.submitted]
                self.futures[number] = self.start(number)
                self.submitted += 1

    def cancel(self) -> None:
        """Cancel all fetches. A running one stops at its next chunk."""
        self.stop.set()
        for future in list(self.futures.values()):
            future.cancel()


CHUNK = 16 << 20  # bytes of one request
_TIMEOUT_S = 120.0  # for one request
_CLIENTS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp", "abfs": "adlfs"}
_BUCKETS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")  # they need no folders; a missing bucket would be created
_HINT = "check the address, network and permissions, then run it again: fetched files are kept"


class _Stopped(Exception):  # noqa: N818
    """The file is not needed any more."""


def is_address(path: object) -> bool:
    """Whether ``path`` is an address (``scheme://…``)."""
    return isinstance(path, str) and re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def local_path(path: str | Path) -> Path:
    """``path`` as a local path.

    Raises DataError for an address, which ``Path`` would turn into ``s3:/…``, and for "", which it would turn into the
    current folder.
    """
    if path == "":
        raise DataError("a path is empty", "the name of a file or folder", "check the variables of the shell")
    if is_address(path):
        hint = "only images to predict and a prepared store may be at an address: DATA of train, --data, --store"
        raise DataError(f"{printable(str(path))}: is an address", "a path on this disk", hint)
    return Path(path)


class RemoteBackend:
    """A store at an address.

    Args:
        address: the address of the store's folder.
        cache: where fetched files are kept; None: the default cache.
    """

    def __init__(self, address: str, cache: Cache | None = None) -> None:
        self.address, self.cache = printable(address.rstrip("/")), cache or default_cache()
        self.system, self.root = _file_system(address.rstrip("/"))
        self._sha256: dict[str, str] = {}
        self._bytes: dict[str, int] = {}

    @property
    def absolute(self) -> str:
        return self.address

    @property
    def folder(self) -> Path:
        raise DataError(f"{self.address}: is not a folder on this disk", "a path", "copy the store to a disk first")

    def open_args(self) -> tuple[Any, ...]:
        return self.address, self.cache

    def description(self) -> bytes:
        return bytes(
            self._with_retries("dataset.json", partial(self._read, "dataset.json", 0, None), threading.Event())
        )

    def set_description(self, description: Mapping[str, Any]) -> None:
        self._sha256, self._bytes = description["sha256"], description["bytes"]
        name = max(self._bytes, key=lambda name: self._bytes[name])
        self.cache.check_size(self._bytes[name], f"{self.address}/{name}")  # before the first epoch asks for it

    def check(self, name: str) -> None:
        """No effect: the cache verifies each file that it fetches."""

    def file(self, name: str) -> Path:
        return self.obtain(name, threading.Event())

    def shards(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Shards:
        return RemoteShards(self.address, names, shapes, self.obtain)

    def expecting(self, shards: Shards, order: Iterable[int], max_in_use: int) -> AbstractContextManager[None]:
        order = list(order)
        if not isinstance(shards, RemoteShards) or not order:
            return nullcontext()
        sizes = [self._bytes[shards.names[number]] for number in order]
        cache_bytes = min(sum(sizes), max_in_use * max(sizes))
        if cache_bytes > self.cache.max_bytes:
            what = f"{self.address}: {max_in_use} shards of up to {max(sizes):,} bytes are used at once"
            must = f"at most {self.cache.max_bytes:,} bytes, the cache's bound"
            raise DataError(what, must, "give --cache-gb more, --shuffle-window less, or prepare smaller shards")
        return shards.expecting(order, min(self.cache.ahead, (self.cache.max_bytes - cache_bytes) // max(sizes)))

    def obtain(self, name: str, stop: threading.Event) -> Path:
        """The path of a file in the cache, fetched and verified if necessary. Raises DataError."""
        fetch = partial(self._fetch, name, stop)
        return self.cache.obtain(self._sha256[name], self._bytes[name], f"{self.address}/{name}", fetch)

    def send(self, folder: Path, log: Callable[[str], None]) -> None:
        """Copy the store in ``folder`` to this address, ``dataset.json`` last.

        ``FOLDER.sent`` lists the files that an earlier, interrupted call has sent; they are not sent again.

        Args:
            log: called with a message for each file.

        Raises:
            DataError: a file cannot be written, or the address holds another store.
        """
        description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        if (fingerprint := self._fingerprint()) is not None:
            if fingerprint != description["fingerprint"]:
                raise DataError(f"{self.address}: holds another store", "a new address", "name another or remove it")
            return
        record = folder.with_name(folder.name + ".sent")
        sent = set(read_regular(record).decode("utf-8", "replace").splitlines()) if record.exists() else set()
        for name, sha256 in (description["sha256"] | {"dataset.json": description["fingerprint"]}).items():
            if (entry := f"{sha256} {self.address}/{name}") not in sent:
                log(f"sending {name}")
                self._with_retries(name, partial(self._put, folder / name, name), threading.Event(), "written")
                with record.open("a", encoding="utf-8") as record_file:
                    record_file.write(entry + "\n")
        record.unlink()

    def _put(self, path: Path, name: str) -> None:
        if self.address.partition("://")[0] not in _BUCKETS:
            self.system.makedirs(f"{self.root}/{name}".rpartition("/")[0], exist_ok=True)
        self.system.put_file(str(path), f"{self.root}/{name}")

    def _fingerprint(self) -> Any:
        """The fingerprint of the store at this address; None if there is none."""
        try:
            if not self.system.exists(f"{self.root}/dataset.json"):
                return None
        except Exception as error:  # every client has its own exceptions
            raise DataError(f"{self.address}: {_message(error)}", "an address that can be read", _HINT) from error
        return read_description(self.description(), self.address)["fingerprint"]

    def _fetch(self, name: str, stop: threading.Event, file: IO[bytes]) -> None:
        self._with_retries(name, partial(self._copy, name, file, [hashlib.sha256()], stop), stop)

    def _copy(self, name: str, file: IO[bytes], digest: list[Any], stop: threading.Event) -> None:
        """Continue the copy where the last attempt ended; start again if the complete copy has the wrong hash."""
        size = self._bytes[name]
        while (position := file.tell()) < size:
            if stop.is_set():
                raise _Stopped
            chunk = self._read(name, position, min(position + CHUNK, size))
            digest[0].update(chunk)
            os.pwrite(file.fileno(), chunk, position)
            file.seek(position + len(chunk))
        if digest[0].hexdigest() != self._sha256[name]:
            file.seek(0)
            digest[0] = hashlib.sha256()
            raise ValueError("SHA-256 is not the recorded one")

    def _read(self, name: str, start: int, end: int | None) -> bytes:
        """Bytes ``start`` to ``end`` of a file; all of it if ``end`` is None."""
        byte_range = {} if end is None else {"start": start, "end": end}
        data = _read_object(self.system, f"{self.root}/{name}", **byte_range)
        if end is not None and len(data) == self._bytes[name] > end - start:
            data = data[start:end]  # a server without range requests sends the whole file
        if end is not None and len(data) != end - start:
            raise ValueError(f"{len(data):,} bytes received instead of {end - start:,}")
        return data

    def _with_retries(self, name: str, action: Any, stop: threading.Event, done: str = "fetched") -> Any:
        """The result of ``action``, tried as often as the cache says; see :func:`_retried`."""
        try:
            return _retried(f"{self.address}/{name}", action, self.cache.attempts, self.cache.first_wait, stop, done)
        except (FileNotFoundError, PermissionError) as error:
            if name == "dataset.json" and isinstance(error, FileNotFoundError):
                problem, must = f"{self.address}: holds no store ({name} does not exist)", "the address of a store"
                hint = "check the address; images become a store by: alexnet prepare IMAGES ADDRESS"
                raise DataError(problem, must, hint) from error
            if done == "written":
                reason = _reason(error) if isinstance(error, PermissionError) else "there is no such bucket or folder"
                must = "a bucket that exists and can be written"
                raise DataError(f"{self.address}: cannot be written ({reason})", must, _HINT) from error
            raise DataError(f"{self.address}/{name}: {_reason(error)}", "a store's file", _HINT) from error


def _retried(
    label: str, action: Callable[[], Any], attempts: int, first_wait: float, stop: threading.Event, done: str
) -> Any:
    """The result of ``action``, which is tried again after each temporary error, with increasing delays.

    Raises:
        DataError: after the last attempt, or for an error that would not go away.
        FileNotFoundError, PermissionError: at once.
    """
    reason = ""
    for attempt in range(attempts):
        delay = first_wait * 2 ** (attempt - 1) * (1 + os.getpid() % 16 / 16)  # differs between processes
        if attempt and stop.wait(delay):
            raise _Stopped
        try:
            return action()
        except (AlexNetError, _Stopped, FileNotFoundError, PermissionError):
            raise
        except NotImplementedError as error:
            raise DataError(f"{label}: cannot be {done}", "s3://, gs:// or another that takes files", "") from error
        except OSError as error:
            if error.errno is not None and _is_local_error(error):
                raise
            reason = _message(error)
        except (Exception, asyncio.CancelledError) as error:  # every client has its own exceptions
            reason = _message(error)
    raise DataError(f"{label}: cannot be {done} ({reason}; tried {attempts} times)", "", _HINT)


def _reason(error: OSError) -> str:
    return "permission denied" if isinstance(error, PermissionError) else "the file does not exist"


def _is_local_error(error: OSError) -> bool:
    import errno

    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def _message(error: BaseException) -> str:
    text = printable(" ".join(str(error).split()))[:200]
    return (
        f"{type(error).__name__}: {text}"
        if text and not isinstance(error, ValueError)
        else text or type(error).__name__
    )


def _file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it. Raises DataError."""
    scheme = address.partition("://")[0]
    try:
        from fsspec.core import url_to_fs

        system, root = url_to_fs(address)
    except ImportError as error:
        client = _CLIENTS.get(scheme, "its fsspec client")
        raise DataError(f"{address}: {scheme} needs {client}", "installed", f"pip install {client}") from error
    except Exception as error:  # every client has its own exceptions
        raise DataError(f"{printable(address)}: {_message(error)}", "an address that fsspec knows", _HINT) from error
    return system, str(root).rstrip("/")


def _read_object(system: Any, path: str, **byte_range: int) -> bytes:
    """The bytes of a file of an fsspec file system, with a limit on the time."""
    if system.async_impl:
        from fsspec.asyn import sync

        data: bytes = sync(system.loop, system._cat_file, path, timeout=_TIMEOUT_S, **byte_range)
        return data
    return bytes(system.cat_file(path, **byte_range))


# Single files at an address


_ATTEMPTS, _FIRST_WAIT_S = 5, 0.5


def list_remote(address: str) -> list[str]:
    """The addresses of all files in a folder and its subfolders, or that match a glob; sorted.

    Raises:
        DataError: the address cannot be listed.
    """
    system, root = _file_system(address)
    label = printable(address)
    action = partial(system.glob if glob.has_magic(root) else system.find, root)
    try:
        names = _retried(label, action, _ATTEMPTS, _FIRST_WAIT_S, threading.Event(), "listed")
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(f"{label}: {_reason(error)}", "a folder that can be listed", _HINT) from error
    return sorted(str(system.unstrip_protocol(name)) for name in names)


def read_remote(address: str) -> bytes:
    """The bytes of an image file at an address.

    Raises:
        ImageError: it does not exist, cannot be read with these permissions, or is larger than 200 MB.
        DataError: the network or the server fails again and again.
    """
    from alexnet.data.decode import MAX_BYTES

    label, is_object_store = printable(address), not address.startswith("http")  # fsspec calls any error of a HEAD 404
    system, path = _file_system(address)

    def check(size: int) -> None:
        if size > MAX_BYTES:
            raise ImageError(f"{label}: {size:,} bytes", f"at most {MAX_BYTES:,} bytes", "scale it down")

    def read() -> bytes:
        if is_object_store:
            check(system.info(path).get("size") or 0)  # no request where the folder was listed
        data = _read_object(system, path)
        check(len(data))
        return data

    try:
        data: bytes = _retried(label, read, _ATTEMPTS, _FIRST_WAIT_S, threading.Event(), "read")
    except (FileNotFoundError, PermissionError) as error:
        raise ImageError(f"{label}: {_reason(error)}", "a readable image", "check address and permissions") from error
    return data
