"""Files and folders that are whole or not there, and what is in them: NumPy arrays, JSON, lines of JSON.

They are written under a temporary name, fsynced and renamed: neither a kill nor a full disk leaves half of one. That
name has a random part, so that no file of anybody else is overwritten or deleted.
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
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file for writing that gets its name only when all of it is on disk; what fails leaves nothing."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)  # its room may be what the disk lacks
        raise


def write_file(path: Path, data: bytes) -> None:
    """``data`` under the name ``path``, whole or not at all."""
    with atomic_write(path) as file:
        file.write(data)


def final_name(name: str) -> str:
    """The name that a temporary file of :func:`whole_file` would have got; any other name as it is."""
    return re.sub(r"(\.[0-9a-f]{8})?\.tmp$", "", name)


@contextmanager
def whole_folder(path: Path, replaced: Collection[str] = ()) -> Iterator[Path]:
    """A folder for writing that gets the name ``path`` only when all of it is on disk.

    Where the folder ``path`` exists already, the two are exchanged in one step. Of the old one only the files that
    ``replaced`` names are deleted; all others are kept beside the new ones. Raises FileExistsError, and changes
    nothing, where a file that is to be kept has the name of a new one.
    """
    recover(path)
    partial = _beside(path, "partial")
    partial.mkdir(parents=True)
    with _held(partial):
        try:
            yield partial
            if path.exists():
                _keep(path, partial, replaced)
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


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` for what arises while it is written. It goes at the end, and so do those of killed
    processes."""
    folder = _beside(path, "partial")
    folder.mkdir()
    try:
        with _held(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _sweep(path)


def current(path: Path) -> Path:
    """``path``, or the folder that lies under a temporary name because a kill came while ``path`` was replaced.

    Only where the file system can not exchange two folders in one step is there such a moment.
    """
    previous = [] if path.exists() else _leftovers(path, "previous")
    return previous[0] if previous else path


def recover(path: Path) -> None:
    """Give the folder that :func:`current` finds its name back."""
    if (previous := current(path)) != path:
        previous.rename(path)


def _beside(path: Path, kind: str) -> Path:
    """A temporary name beside ``path`` that nobody else uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}")


def _leftovers(path: Path, kind: str) -> list[Path]:
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.{kind}"))


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """A lock on ``folder`` that ends with the process: who gets it knows that nobody works there any more."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: leftovers stay
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _sweep(path: Path) -> None:
    """Delete what this or a killed process left beside ``path``."""
    for leftover in [*_leftovers(path, "partial"), *_leftovers(path, "previous")]:
        with suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(descriptor)


def _keep(old: Path, new: Path, replaced: Collection[str]) -> None:
    """Link every file of ``old`` into ``new`` but those that are to be replaced."""
    for folder, folders, files in os.walk(old):
        here = new / Path(folder).relative_to(old)
        for name in folders:
            if not Path(folder, name).is_symlink() and str((here / name).relative_to(new)) not in replaced:
                (here / name).mkdir(exist_ok=True)
        for name in [*files, *(name for name in folders if Path(folder, name).is_symlink())]:
            if str((here / name).relative_to(new)) not in replaced:
                _link(Path(folder, name), here / name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(new: Path, path: Path) -> None:
    """Each of the two folders gets the other's name, in one step where the system can."""
    if _exchanged(new, path):
        return
    previous = _beside(path, "previous")
    path.rename(previous)
    try:
        new.rename(path)
    except OSError:
        previous.rename(path)
        raise


def _exchanged(one: Path, other: Path) -> bool:
    library = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "darwin":
            failed = library.renamex_np(first, second, 2)  # RENAME_SWAP
        else:
            at_cwd = -100
            failed = library.renameat2(at_cwd, first, at_cwd, second, 2)  # RENAME_EXCHANGE
    except AttributeError:  # an older C library
        return False
    if failed and (number := ctypes.get_errno()) not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        raise OSError(number, os.strerror(number), str(other))
    return not failed


def _sync_tree(folder: Path) -> None:
    """Wait until ``folder`` and all files and folders in it lie on the disk."""
    for here, _, files in os.walk(folder):
        for path in [*(Path(here, name) for name in files), Path(here)]:
            if stat.S_ISREG(mode := path.lstat().st_mode) or stat.S_ISDIR(mode):
                sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Names in ``folder`` survive a loss of power."""
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


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """``value`` as a JSON file that people can read."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def jsonl_bytes(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """One line of JSON a row."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of ``jsonl_bytes``. Raises DataError."""
    try:
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}", "lines of JSON", "prepare the data set again") from error


NPY_HEADER = 128  # bytes


def npy_header(count: int, shape: tuple[int, ...]) -> bytes:
    """The first NPY_HEADER bytes of a ``.npy`` file of uint8 [count, *shape]: as long for every count, so that it can
    come last."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {(count, *shape)}, }}"
    return b"\x93NUMPY\x01\x00\x76\x00" + text.ljust(117).encode() + b"\n"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
