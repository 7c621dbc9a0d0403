"""Untrusted files read with bounds: sizes, decompressed sizes, and protocol buffers without a schema.

Every failure is a :class:`BundleError`.

It supports what Caffe's files need: integers, texts, nested messages and arrays of numbers, packed or one by one. The
caller decides which fields are nested messages, so that no file can cause deep recursion. Packed arrays are NumPy views
of the file's bytes: 240 MB of weights are not copied.

Source: the wire format of protocol buffers, https://protobuf.dev/programming-guides/encoding/.
"""

import gzip
import io
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import BundleError
from alexnet.weights import restricted_pickle
from alexnet.weights.restricted_pickle import readable

_FREE_BYTES, _MAX_RATIO = 64 << 20, 100  # decompressed size: at most 64 MiB + 100 × the compressed size
MOST_BYTES = 2 << 30  # net 145 and its momenta have 488 MB, the largest published net (140.5 M numbers) 1.1 GB


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises :class:`BundleError` if it cannot be read, is empty or larger than 2 GiB."""
    try:
        size = path.stat().st_size
        if not path.is_file() or not size:
            raise BundleError(f"{path} is {'empty' if path.is_file() else 'no file'}", "a file of weights")
        if size > MOST_BYTES:
            raise BundleError(f"{path} has {size:,} bytes", f"at most {MOST_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", "a file of weights") from error


def read_pickle(path: Path) -> Any:
    """Read numbers, texts, lists, dictionaries and arrays from a pickle without running code.

    The pickle may be gzipped, or the only member of a zip file.

    Raises:
        BundleError: The file is damaged, too large, or holds other objects.
    """
    return _pickled(_decompressed(path, read_bytes(path)), path)


def _pickled(file: IO[bytes], path: Path) -> Any:
    try:
        return restricted_pickle.read(file)
    except restricted_pickle.RefusedError as error:
        raise BundleError(f"{path} is refused: it holds {error}", "numbers, texts and arrays alone") from error


def _decompressed(path: Path, data: bytes) -> IO[bytes]:
    if not data.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        return io.BytesIO(data)
    try:
        if data.startswith(b"\x1f\x8b"):
            return _bounded(cast("IO[bytes]", gzip.GzipFile(fileobj=io.BytesIO(data))), path, len(data))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if len(names) != 1:
                raise BundleError(f"{path} is a zip file of {len(names)} members", "one: the pickle")
            with archive.open(names[0]) as member:
                return _bounded(member, path, len(data))
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"{path} is damaged: {error}", "", "use another copy") from error


def _bounded(compressed: IO[bytes], path: Path, compressed_bytes: int) -> IO[bytes]:
    maximum = min(MOST_BYTES, _FREE_BYTES + _MAX_RATIO * compressed_bytes)
    data = compressed.read(maximum + 1)
    if len(data) > maximum:
        raise BundleError(f"{path} holds more than {maximum:,} bytes unpacked", f"at most {maximum:,}")
    return io.BytesIO(data)


def read_npy(path: Path) -> NDArray[Any]:
    """The array of numbers in a ``.npy`` file.

    Raises:
        BundleError: The file is damaged, or holds an array of Python objects, which NumPy would unpickle.
    """
    file = io.BytesIO(read_bytes(path))
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():  # NumPy warns about headers that Python 2 wrote
            warnings.simplefilter("ignore")
            shape, fortran_order, dtype = read_header(file)
    except Exception as error:  # NumPy raises many kinds for a damaged header
        raise BundleError(
            f"{path} is no .npy file: {' '.join(str(error).split())[:100]}", "a whole .npy file"
        ) from error
    if dtype.hasobject:
        raise BundleError(f"{path} holds an array of Python objects {list(shape)}", "an array of numbers")
    data = file.read()
    if dtype.kind not in "biuf" or int(np.prod(shape, dtype=object)) * dtype.itemsize != len(data):
        raise BundleError(f"{path}: {list(shape)} {dtype} with {len(data):,} bytes", "an array of numbers, whole")
    try:
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")
    except ValueError as error:  # an empty array with dimensions that NumPy refuses
        raise BundleError(f"{path} has the shape {str(shape)[:60]}", "an array of numbers, whole") from error


VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5  # wire types; 3 and 4 (groups) are obsolete since 2008
_TYPES: dict[int, np.dtype[Any]] = {FOUR: np.dtype("<f4"), EIGHT: np.dtype("<f8")}


class DamagedError(ValueError):
    """The bytes are not a valid message; the text says why."""


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: Field number of the schema.
        kind: Wire type.
        value: An int for a varint, otherwise a view of bytes. Consecutive numbers under the same tag are one field of
            type :data:`FOUR` or :data:`EIGHT` with the bytes of all of them.
    """

    number: int
    kind: int
    value: int | memoryview


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of ``message`` in order. Raises :class:`DamagedError`."""
    at = 0
    while at < len(message):
        tag, start = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if number < 1:
            raise DamagedError(f"field number {number} at byte {at}")
        if kind == VARINT:
            value, at = _varint(message, start)
            yield Field(number, kind, value)
        elif kind == BYTES:
            length, start = _varint(message, start)
            if length > len(message) - start:
                raise DamagedError(
                    f"field {number} has a length of {length:,} bytes, but {len(message) - start:,} follow"
                )
            yield Field(number, kind, message[start : start + length])
            at = start + length
        elif kind in _TYPES:
            values, at = _repeated(message, at, start, _TYPES[kind])
            yield Field(number, kind, values)
        else:
            raise DamagedError(f"field {number} has wire type {kind} at byte {at}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read a varint (seven bits per byte, lowest first). Returns the number and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise DamagedError("it ends inside a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise DamagedError(f"a number of more than ten bytes at byte {at - 10}")


def _repeated(message: memoryview, at: int, start: int, dtype: np.dtype[Any]) -> tuple[memoryview, int]:
    """Read the number after the tag at ``at`` and all numbers that follow under the same tag.

    Returns their bytes and the position after them.
    """
    size, tag = dtype.itemsize, bytes(message[at:start])
    if start + size > len(message):
        raise DamagedError("it ends inside a number")
    step, count = len(tag) + size, 1
    rows = np.frombuffer(message, np.uint8)[at : at + (len(message) - at) // step * step].reshape(-1, step)
    tag_bytes = np.frombuffer(tag, np.uint8)
    while count < len(
        rows
    ):  # doubles the window: a loop per number, or a scan of the whole file for one number, is slow
        same = (rows[count : 2 * count, : len(tag)] == tag_bytes).all(1)
        count += len(same) if same.all() else int(same.argmin())
        if not same.all():
            break
    return memoryview(rows[:count, len(tag) :].tobytes()), at + count * step


def integer(field: Field) -> int:
    """The value of an integer field. Raises :class:`DamagedError` for another wire type."""
    if not isinstance(field.value, int):
        raise DamagedError(f"field {field.number} has wire type {field.kind} where an integer must be")
    return field.value - (1 << 64) if field.value >> 63 else field.value


def message(field: Field) -> memoryview:
    """The bytes of a nested message or text. Raises :class:`DamagedError` for another wire type."""
    if field.kind != BYTES or isinstance(field.value, int):
        raise DamagedError(f"field {field.number} has wire type {field.kind} where a message must be")
    return field.value


def text(field: Field) -> str:
    """The printable text of a text field. Raises :class:`DamagedError` for another wire type."""
    return readable(bytes(message(field)).decode("utf-8", "backslashreplace"))


def numbers(field: Field, kind: int) -> NDArray[Any]:
    """An array of type :data:`FOUR` (float32) or :data:`EIGHT` (float64). Raises :class:`DamagedError`."""
    if field.kind not in (BYTES, kind) or isinstance(field.value, int):
        raise DamagedError(f"field {field.number} has wire type {field.kind} where a row of numbers must be")
    size = _TYPES[kind].itemsize
    if len(field.value) % size:
        raise DamagedError(f"field {field.number} has {len(field.value):,} bytes, no multiple of {size}")
    result: NDArray[Any] = np.frombuffer(field.value, _TYPES[kind])
    return result


def integers(field: Field) -> list[int]:
    """The integers of a field, packed or a single one. Raises :class:`DamagedError`."""
    if isinstance(field.value, int):
        return [integer(field)]
    result, at, packed = [], 0, message(field)
    while at < len(packed):
        value, at = _varint(packed, at)
        result.append(integer(Field(field.number, VARINT, value)))
        if len(result) > 32:  # dimensions of a blob: Caffe allows no more
            raise DamagedError(f"field {field.number} has more than 32 numbers")
    return result
