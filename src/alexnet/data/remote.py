"""Stores behind an address (``s3://``, ``gs://``, ``https://``, ``memory://`` …), through fsspec: the only door to it.

Files are read in pieces, faults are met with patience (a longer pause after each), and nothing is used before its
SHA-256 is the recorded one. fsspec's own file caches know neither a bound nor a hash, so the files go to ``cache.py``.
"""

import asyncio
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import IO, Any

from alexnet.data.cache import Cache, chosen
from alexnet.data.description import read_description
from alexnet.data.fetching import Fetched
from alexnet.data.places import Shards
from alexnet.errors import AlexNetError, DataError, printable

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


class Remote:
    """What lies behind an address, as a place of a store."""

    def __init__(self, address: str, cache: Cache | None = None) -> None:
        self.address, self.cache = printable(address.rstrip("/")), cache or chosen()
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
        if room > self.cache.most_bytes:
            what = f"{self.address}: {need} shards of up to {max(sizes):,} bytes are used at once"
            must = f"at most {self.cache.most_bytes:,} bytes, the cache's bound"
            raise DataError(what, must, "give --cache-gb more, --shuffle-window less, or prepare smaller shards")
        return shards.expecting(turns, min(self.cache.ahead, (self.cache.most_bytes - room) // max(sizes)))

    def obtain(self, name: str, stop: threading.Event) -> Path:
        """A file of the store in the cache, fetched and verified if it is not there. Raises DataError."""
        fetch = partial(self._fetch, name, stop)
        return self.cache.obtain(self._sha256[name], self._bytes[name], f"{self.address}/{name}", fetch)

    def send(self, folder: Path, say: Callable[[str], None]) -> None:
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
                say(f"sending {name}")
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
