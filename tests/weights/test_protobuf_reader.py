"""Messages taken apart field by field; what is damaged is one kind of error, whatever the bytes."""

import struct
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.weights import files
from alexnet.weights.files import DamagedError, Field, fields

from .conftest import part, single, varint, whole


def parsed(data: bytes) -> list[Field]:
    return list(fields(memoryview(data)))


def test_every_wire_type():
    data = whole(1, 300) + part(2, "conv1") + single(3, 1.5) + varint(4 << 3 | 1) + struct.pack("<d", -2.25)
    one, two, three, four = parsed(data)
    assert (one.number, files.integer(one)) == (1, 300)
    assert (two.number, files.text(two)) == (2, "conv1")
    assert files.numbers(three, files.FOUR).tolist() == [1.5]
    assert files.numbers(four, files.EIGHT).tolist() == [-2.25]


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 2**29 - 1))
def test_integers_come_back(value, number):
    (field,) = parsed(whole(number, value))
    assert (field.number, files.integer(field)) == (number, value)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_subnormal=False), max_size=70), st.booleans())
def test_a_row_is_one_field_packed_or_one_by_one(values, packed):
    row = np.array(values, np.float32)
    data = part(5, row.tobytes()) if packed else b"".join(single(5, v) for v in values)
    found = parsed(whole(1, 7) + data + whole(2, 8))
    assert [f.number for f in found] == ([1, 5, 2] if values or packed else [1, 2])
    if values:
        assert np.array_equal(files.numbers(found[1], files.FOUR), row)


def test_rows_under_a_tag_of_two_bytes_and_between_others():
    data = single(100, 1) + single(100, 2) + single(101, 3) + single(100, 4)
    assert [(f.number, files.numbers(f, files.FOUR).tolist()) for f in parsed(data)] == [
        (100, [1, 2]),
        (101, [3]),
        (100, [4]),
    ]


class Calls:
    """Counts the Python functions that are called inside."""

    count = 0

    def __enter__(self):
        sys.setprofile(self.called)
        return self

    def called(self, _frame, event, _argument):
        self.count += event in ("call", "c_call")

    def __exit__(self, *_):
        sys.setprofile(None)


def test_a_packed_row_is_a_view_and_long_rows_take_few_steps(monkeypatch):
    row = np.arange(2_000_000, dtype="<f4")
    data = part(5, row.tobytes())
    (field,) = parsed(data)
    assert np.shares_memory(files.numbers(field, files.FOUR), np.frombuffer(data, np.uint8))
    loose = np.zeros(1_000_000, np.dtype([("tag", "u1"), ("value", "<f4")]))
    loose["tag"], loose["value"] = 5 << 3 | 5, row[:1_000_000]
    calls = Calls()
    with calls:
        (field,) = parsed(loose.tobytes())
    assert calls.count < 10_000  # not one by one
    assert np.array_equal(files.numbers(field, files.FOUR), row[:1_000_000])
    compared = 0
    array = np.frombuffer

    def counting(*arguments):
        return array(*arguments).view(Compared)

    class Compared(np.ndarray):
        def __eq__(self, other):
            nonlocal compared
            compared += self.size
            return np.asarray(self) == np.asarray(other)

    monkeypatch.setattr(np, "frombuffer", counting)
    alternating = (single(5, 1) + single(6, 2)) * 2_000
    assert len(parsed(alternating)) == 4_000
    assert 0 < compared < 10 * len(alternating)  # not all of the rest for each


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x08", "it ends inside a number"),
        (b"\x08" + b"\xff" * 11, "a number of more than ten bytes"),
        (b"\x2a\x05abc", "field 5 has a length of 5 bytes, but 3 follow"),
        (b"\x2a" + varint(2**62), "field 5 has a length of 4,611,686,018,427,387,904 bytes, but 0 follow"),
        (b"\x2d\x00\x00", "it ends inside a number"),
        (b"\x0b", "field 1 has wire type 3 at byte 0"),
        (b"\x00\x00", "field number 0 at byte 0"),
    ],
)
def test_what_is_damaged_says_where(data, text):
    with pytest.raises(DamagedError) as caught:
        parsed(data)
    assert text in str(caught.value)


def test_a_field_of_another_wire_type_is_named():
    text, number = parsed(part(1, "abc") + whole(2, 3))
    with pytest.raises(DamagedError, match="field 1 has wire type 2 where an integer must be"):
        files.integer(text)
    with pytest.raises(DamagedError, match="field 2 has wire type 0 where a message must be"):
        files.message(number)
    with pytest.raises(DamagedError, match="field 2 has wire type 0 where a row of numbers must be"):
        files.numbers(number, files.FOUR)
    with pytest.raises(DamagedError, match="field 1 has 3 bytes, no multiple of 4"):
        files.numbers(text, files.FOUR)
    with pytest.raises(DamagedError, match="more than 32 numbers"):
        files.integers(parsed(part(1, b"\x01" * 33))[0])


@given(st.binary(max_size=200))
def test_any_bytes_are_fields_or_one_error(data):
    try:
        for field in fields(memoryview(data)):
            assert field.number >= 1
    except DamagedError as error:
        assert str(error)
