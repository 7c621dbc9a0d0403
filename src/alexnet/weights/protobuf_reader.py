"""Protocol buffers without a schema: the fields of a message, in order, each checked against the bytes there are.

Only what Caffe's files need: integers, texts, messages in messages (read by whoever knows which field is one, so
depth is the reader's and no file can nest deeper) and numbers in rows, packed or one by one. Rows are NumPy views into
the file's own bytes: 240 MB of weights cost no second copy.

Source: the wire format of protocol buffers, https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.weights.restricted_pickle import readable

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5  # wire types; 3 and 4, groups, are of before 2008
_TYPES: dict[int, np.dtype[Any]] = {FOUR: np.dtype("<f4"), EIGHT: np.dtype("<f8")}


class DamagedError(ValueError):
    """Bytes that are no message. The text says what is wrong, for a person."""


class Field(NamedTuple):
    """One field of a message: its number, its wire type, its value.

    ``value`` is an int for a varint, a view of bytes otherwise. A row of numbers that were written one by one is one
    field of the type :data:`FOUR` or :data:`EIGHT` with all of their bytes.
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
                raise DamagedError(f"field {number} claims {length:,} bytes, {len(message) - start:,} are there")
            yield Field(number, kind, message[start : start + length])
            at = start + length
        elif kind in _TYPES:
            values, at = _repeated(message, at, start, _TYPES[kind])
            yield Field(number, kind, values)
        else:
            raise DamagedError(f"field {number} has wire type {kind} at byte {at}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at ``at``, seven bits a byte, lowest first, and where it ends."""
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
    """The number behind the tag at ``at``, and all that follow it under the same tag, in one piece."""
    size, tag = dtype.itemsize, bytes(message[at:start])
    if start + size > len(message):
        raise DamagedError("it ends inside a number")
    step, count = len(tag) + size, 1
    rows = np.frombuffer(message, np.uint8)[at : at + (len(message) - at) // step * step].reshape(-1, step)
    wanted = np.frombuffer(tag, np.uint8)
    while count < len(rows):  # twice as far each time: neither one by one, nor all of the file for a single number
        same = (rows[count : 2 * count, : len(tag)] == wanted).all(1)
        count += len(same) if same.all() else int(same.argmin())
        if not same.all():
            break
    return memoryview(rows[:count, len(tag) :].tobytes()), at + count * step


def integer(field: Field) -> int:
    """A field that must be an integer. Raises :class:`DamagedError`."""
    if not isinstance(field.value, int):
        raise DamagedError(f"field {field.number} has wire type {field.kind} where an integer must be")
    return field.value - (1 << 64) if field.value >> 63 else field.value


def message(field: Field) -> memoryview:
    """A field that must be a message or a text. Raises :class:`DamagedError`."""
    if field.kind != BYTES or isinstance(field.value, int):
        raise DamagedError(f"field {field.number} has wire type {field.kind} where a message must be")
    return field.value


def text(field: Field) -> str:
    """A field that must be a text. Raises :class:`DamagedError`."""
    return readable(bytes(message(field)).decode("utf-8", "backslashreplace"))


def numbers(field: Field, kind: int) -> NDArray[Any]:
    """A row of numbers of the type :data:`FOUR` (float32) or :data:`EIGHT` (float64), packed or one by one."""
    if field.kind not in (BYTES, kind) or isinstance(field.value, int):
        raise DamagedError(f"field {field.number} has wire type {field.kind} where a row of numbers must be")
    size = _TYPES[kind].itemsize
    if len(field.value) % size:
        raise DamagedError(f"field {field.number} has {len(field.value):,} bytes, no multiple of {size}")
    result: NDArray[Any] = np.frombuffer(field.value, _TYPES[kind])
    return result


def integers(field: Field) -> list[int]:
    """A row of integers, packed or a single one. Raises :class:`DamagedError`."""
    if isinstance(field.value, int):
        return [integer(field)]
    result, at, packed = [], 0, message(field)
    while at < len(packed):
        value, at = _varint(packed, at)
        result.append(integer(Field(field.number, VARINT, value)))
        if len(result) > 32:  # sides of a blob: Caffe itself allows no more
            raise DamagedError(f"field {field.number} has more than 32 numbers")
    return result
