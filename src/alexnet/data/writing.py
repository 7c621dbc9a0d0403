"""Files that are whole or not there, and what is in them: NumPy arrays, JSON, lines of JSON.

A file is written under another name, flushed, fsynced and renamed: neither a kill nor a full disk leaves half of one.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file for writing that gets its name only when all of it is on disk; what fails leaves nothing."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
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
    with whole_file(path) as file:
        file.write(data)


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
