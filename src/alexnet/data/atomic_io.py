"""Atomic writing of files and folders, and the formats written with it: NumPy arrays, JSON, lines of JSON.

Data is written under a temporary name, fsynced and renamed, so that a killed process or a full disk leaves no partial
file. The temporary name has a random part, so that no other file is overwritten or deleted.
"""

import ctypes
import errno
import fcntl
import glob
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import AlexNetError, DataError, RunError


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that gets the name ``path`` when it is complete on disk; an error leaves no file.

    The temporary file is locked. Those of killed processes, which are not, are deleted.
    """
    if path.exists() and not path.is_file() and not path.is_dir():  # as root, a device would be replaced
        raise FileExistsError(errno.EEXIST, "is no regular file", str(path))
    temporary, file = _temporary_file(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)  # frees space on a full disk
        raise
    remove_leftovers(path)


def _temporary_file(path: Path) -> tuple[Path, IO[bytes]]:
    """A new file next to ``path``, locked: its name and the open file."""
    while True:
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        file = temporary.open("x+b")
        with suppress(OSError):  # a file system without locks: leftovers stay
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # no other process removed it before it was locked
            return temporary, file
        file.close()


def remove_leftovers(path: Path) -> None:
    """Delete the temporary files of killed processes that were writing ``path``; those of living ones are locked."""
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError), open_regular(leftover) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` to the file ``path`` atomically."""
    with atomic_write(path) as file:
        file.write(data)


@contextmanager
def written(path: Path | str, kind: type[AlexNetError] = RunError, todo: str = "") -> Iterator[None]:
    """Turns an OSError of the code within into an error for the user: ``path`` cannot be written."""
    try:
        yield
    except OSError as error:
        problem = f"{path}: cannot be written ({error.strerror or error})"
        raise kind(problem, "a file in a writable folder", todo) from error


def final_name(name: str) -> str:
    """The final name of a temporary file of :func:`atomic_write`; any other name unchanged."""
    return re.sub(r"(\.[0-9a-f]{8})?\.tmp$", "", name)


@contextmanager
def whole_folder(path: Path, replaced: Callable[[], Collection[str]] = tuple) -> Iterator[Path]:
    """Create a folder for writing that gets the name ``path`` when it is complete on disk.

    If the folder ``path`` exists, the two are exchanged in one step. The other files of the old folder are kept. Of
    several processes one after the other replaces ``path``.

    Args:
        path: the final name.
        replaced: returns the files and folders of an existing folder ``path`` that are deleted, as relative paths. It
            is called when the new folder is complete: another process may have replaced ``path`` until then.

    Yields:
        The temporary folder.

    Raises:
        FileExistsError: if a kept file has the name of a new file; nothing is changed.
    """
    recover(path)
    partial = _temporary_name(path, "partial")
    partial.mkdir(parents=True)
    with _locked(partial):
        try:
            yield partial
            with _exclusive(path):
                if path.exists():
                    _link_kept(path, partial, replaced())
                _sync_tree(partial)
                if path.exists():
                    _exchange(partial, path)
                else:
                    partial.rename(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(path.parent)
    _sweep(path)


def has_other_writer(path: Path, own: Path) -> bool:
    """Whether another living process writes a folder ``path``; ``own`` is what :func:`whole_folder` yielded here."""
    for partial in _leftovers(path, "partial"):
        if partial != own:
            with suppress(FileNotFoundError), _locked(partial) as locked:
                if not locked:
                    return True
    return False


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Create a folder next to ``path`` for temporary files, deleted at the end.

    Such folders of killed processes are deleted, too.
    """
    folder = _temporary_name(path, "partial")
    folder.mkdir()
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _sweep(path)


def current(path: Path) -> Path:
    """``path``, or its previous content under a temporary name if a process was killed while it replaced ``path``.

    This can only happen on a file system that cannot exchange two folders in one step.
    """
    previous = [] if path.exists() else [*_leftovers(path, "previous"), *_leftovers(path, "exchanged")]
    return previous[0] if previous else path


def recover(path: Path) -> None:
    """Rename the folder that :func:`current` finds back to ``path``."""
    if (previous := current(path)) != path:
        previous.rename(path)


def _temporary_name(path: Path, kind: str) -> Path:
    """A unique temporary name next to ``path``."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}")


def _leftovers(path: Path, kind: str) -> list[Path]:
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.{kind}"))


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock ``folder`` until the process ends, unless another process has: then False. One in use is locked."""
    descriptor = os.open(folder, os.O_RDONLY)
    locked = True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            locked = False
        except OSError:  # a file system without locks: leftovers stay
            pass
        yield locked
    finally:
        os.close(descriptor)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Lock the folder ``path``, if it exists, against other processes that replace it; wait until they have."""
    descriptor = -1
    try:
        while path.exists():
            with suppress(FileNotFoundError):  # it is being replaced
                descriptor = os.open(path, os.O_RDONLY)
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    break
            if descriptor >= 0:  # of a folder that was replaced while it was locked
                os.close(descriptor)
                descriptor = -1
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _sweep(path: Path) -> None:
    """Delete the temporary folders next to ``path`` that no process uses."""
    for leftover in [*_leftovers(path, "partial"), *_leftovers(path, "previous")]:
        with suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(descriptor)


def _link_kept(old: Path, new: Path, replaced: Collection[str]) -> None:
    """Link every file of ``old`` into ``new``, except those in ``replaced``."""
    for folder, folders, files in os.walk(old):
        target = new / Path(folder).relative_to(old)
        for name in folders:
            if not Path(folder, name).is_symlink() and str((target / name).relative_to(new)) not in replaced:
                (target / name).mkdir(exist_ok=True)
        for name in [*files, *(name for name in folders if Path(folder, name).is_symlink())]:
            if str((target / name).relative_to(new)) not in replaced:
                _link(Path(folder, name), target / name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(new: Path, path: Path) -> None:
    """Exchange the names of two folders, in one step if the file system supports it."""
    if _exchange_in_one_step(new, path):
        return
    previous = _temporary_name(path, "previous")
    path.rename(previous)
    try:
        new.rename(path)
    except OSError:
        previous.rename(path)
        raise


def exchange(first: Path, second: Path) -> None:
    """Exchange the names of two folders, in one step if the file system supports it."""
    if not _exchange_in_one_step(first, second):
        previous = _temporary_name(second, "exchanged")  # where :func:`current` finds it
        second.rename(previous)
        first.rename(second)
        previous.rename(first)
    sync_folder(second.parent)


def finish_exchange(first: Path, second: Path) -> None:
    """Do the renames that :func:`exchange`, or replacing one of both, lacks because its process was killed."""
    recover(second)
    recover(first)
    for exchanged in _leftovers(second, "exchanged"):
        if not first.exists():
            exchanged.rename(first)


def _exchange_in_one_step(first_path: Path, second_path: Path) -> bool:
    """Exchange the names of two folders. Returns False if the system does not support it."""
    library = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(first_path), os.fsencode(second_path)
    try:
        if sys.platform == "darwin":
            status = library.renamex_np(first, second, 2)  # RENAME_SWAP
        else:
            at_cwd = -100
            status = library.renameat2(at_cwd, first, at_cwd, second, 2)  # RENAME_EXCHANGE
    except AttributeError:  # an older C library
        return False
    if status and (code := ctypes.get_errno()) not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        raise OSError(code, os.strerror(code), str(second_path))
    return not status


def _sync_tree(folder: Path) -> None:
    """Flush ``folder`` and all files and folders in it to disk."""
    for subfolder, _, files in os.walk(folder):
        for path in [*(Path(subfolder, name) for name in files), Path(subfolder)]:
            if stat.S_ISREG(mode := path.lstat().st_mode) or stat.S_ISDIR(mode):
                sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Flush ``folder`` to disk, so that the names in it survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def npy_bytes(array: NDArray[Any]) -> bytes:
    """``array`` as the bytes of a ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Write a ``.npz`` file and return its SHA-256."""
    with atomic_write(path) as file:
        np.savez(file, allow_pickle=False, **arrays)
    return sha256_of(path)


def load_arrays(path: Path, sha256: str) -> dict[str, NDArray[Any]]:
    """What :func:`save_arrays` wrote. Raises OSError if it cannot be read, ValueError if it has changed."""
    if sha256 != sha256_of(path):
        raise ValueError(f"{path.name} has changed since it was written: its SHA-256 differs")
    try:
        with open_regular(path) as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except BadZipFile as error:
        raise ValueError(f"{path.name}: {error}") from error


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """``value`` as an indented JSON file."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def jsonl_bytes(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """``rows`` as lines of JSON."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


CRC_END = re.compile(rb', "crc32": "([0-9a-f]{8})"}')  # the end of a line of line_with_crc


def line_with_crc(row: Mapping[str, Any]) -> bytes:
    """``row`` as a line of JSON whose last entry is the CRC-32 of the bytes before it."""
    body = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace")[:-1]
    return body + f', "crc32": "{zlib.crc32(body):08x}"}}\n'.encode()


def crc_matches(line: bytes) -> bool:
    """Is ``line``, with or without its line feed, one of :func:`line_with_crc` that has not changed since?"""
    line = line.removesuffix(b"\n")
    end = CRC_END.fullmatch(line, max(0, len(line) - 22))
    return end is not None and int(end[1], 16) == zlib.crc32(line[: end.start()])


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines. Raises DataError."""
    try:
        with open_regular(path) as file:
            return [json.loads(line) for line in file]
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: {error}", "lines of JSON", "prepare the data set again") from error


NPY_HEADER = 128  # bytes


def npy_header(count: int, shape: tuple[int, ...]) -> bytes:
    """The first NPY_HEADER bytes of a ``.npy`` file of uint8 [count, *shape].

    The length does not depend on ``count``, so that the header can be written last.
    """
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {(count, *shape)}, }}"
    return b"\x93NUMPY\x01\x00\x76\x00" + text.ljust(117).encode() + b"\n"


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading. A pipe or device, which may never end, is an OSError."""

    def opener(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | os.O_NONBLOCK)  # which a pipe without a writer would not return from
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file", name)
        return descriptor

    return open(path, "rb", opener=opener)


def read_regular(path: Path, most: int = 1 << 62) -> bytes:
    """The content of a regular file; see :func:`open_regular`. One of more than ``most`` bytes is an OSError."""
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise OSError(errno.EFBIG, f"{size:,} bytes, more than {most:,}", str(path))
        return file.read()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a regular file, hexadecimal; see :func:`open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
