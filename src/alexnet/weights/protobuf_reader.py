"""A reader of protocol buffers without a schema: the fields of a message, in order, with bounds checks.

It supports what Caffe's files need: integers, texts, nested messages and arrays of numbers, packed or one by one. The
caller decides which fields are nested messages, so that no file can cause deep recursion. Packed arrays are NumPy views
of the file's bytes: 240 MB of weights are not copied.

Source: the wire format of protocol buffers, https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.weights.restricted_pickle import readable

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
