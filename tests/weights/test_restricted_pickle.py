"""Pickles of Python 2 and 3 read without unpickling: arrays come back, nothing in them runs."""

import io
import os
import pickle
import pickletools
import struct
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from alexnet.weights import restricted_pickle
from alexnet.weights.restricted_pickle import MAX_NAME, Array, Inert, RefusedError, readable

from .conftest import Py2, Raw, py2


def read(data: bytes):
    return restricted_pickle.read(io.BytesIO(data))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@given(PLAIN, st.integers(0, 5))
def test_plain_values_of_any_protocol_come_back(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


KINDS = st.sampled_from(["<f4", ">f4", "<f8", "<i4", ">i8", "u1", "?", "<f2"])


@given(arrays.arrays(KINDS, arrays.array_shapes(max_dims=3, max_side=4, min_side=0)), st.integers(2, 5), st.booleans())
def test_arrays_come_back_in_shape_type_and_order(value, protocol, columns):
    value = np.asfortranarray(value) if columns else value
    for found in (read(pickle.dumps(value, protocol)), read(py2(value))):
        assert isinstance(found, Array)
        assert (found.values.shape, found.values.dtype) == (value.shape, value.dtype)
        assert np.array_equal(found.values, value, equal_nan=value.dtype.kind == "f")


def test_python_2_strings_and_scalars():
    assert read(py2({"name": "conv1", "filters": [48], "on": True})) == {"name": "conv1", "filters": [48], "on": True}
    scalar = b"cnumpy.core.multiarray\nscalar\n" + Py2().type("f8", "<") + Py2().of(struct.pack("<d", 1.25)) + b"\x86R"
    assert read(py2([Raw(scalar)])) == [1.25]
    shared = np.ones((2, 2), np.float32)
    code = Py2().array(shared) + b"q\x63"
    first, second = read(py2([Raw(code), Raw(b"h\x63")]))
    assert first is second  # a shared matrix is one object


def test_objects_of_option_classes_are_empty_and_harmless():
    old_style = b"(coptions\nOptionsParser\no}(U\x01aK\x01ub"  # OBJ, then BUILD with a state
    new_style = b"ccopy_reg\n_reconstructor\ncoptions\nOption\nc__builtin__\nobject\nN\x87R}b"
    found = read(py2({"op": Raw(old_style), "other": Raw(new_style)}))
    assert (found["op"].name, found["other"].name) == ("options.OptionsParser", "options.Option")
    assert isinstance(found["op"], Inert)
    assert vars(found["op"]) == {"name": "options.OptionsParser"}  # no state was set


class Marker:
    """Tells on itself if it is ever made."""

    made = 0

    def __init__(self, *_):
        type(self).made += 1


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(path) -> dict[str, bytes]:
    command = f"touch {path}"
    inner = pickle.dumps(Attack(os.system, command), 2)[2:-1]
    opened = f"open({str(path)!r}, 'w').close()"
    encoded = command.encode()
    return {
        "os.system, protocol 0": pickle.dumps(Attack(os.system, command), 0),
        "os.system, protocol 2": pickle.dumps(Attack(os.system, command), 2),
        "os.system, protocol 5": pickle.dumps(Attack(os.system, command), 5),
        "builtins.eval": pickle.dumps(Attack(eval, opened), 2),
        "builtins.exec": pickle.dumps(Attack(exec, opened), 4),
        "INST": b"(S'" + encoded + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nU" + bytes([len(encoded)]) + encoded + b"o.",
        "NEWOBJ": b"\x80\x02cos\nsystem\nU" + bytes([len(encoded)]) + encoded + b"\x85\x81.",
        "in a list of a dictionary": py2({"model_state": {"layers": [Raw(inner)]}}),
        "as the state of an option": b"coptions\nOption\n)R(" + b"U\x01a" + inner + b"d" + b"b.",
        "as the arguments of an option": b"coptions\nOption\n(" + inner + b"tR.",
        "nested: getattr gives the function": b"c__builtin__\ngetattr\ncos\nU\x06system\x86RU"
        + bytes([len(encoded)])
        + encoded
        + b"\x85R.",
        "as the class of an array": b"cnumpy.core.multiarray\n_reconstruct\n" + inner + b"K\x00\x85U\x01b\x87R.",
        "as the type of an array": b"cnumpy\ndtype\n" + inner + b"K\x00K\x01\x87R.",
        "in an array of objects": pickle.dumps(np.array([Attack(os.system, command)], object), 2),
        "a name with a dot": b"\x80\x04\x8c\x02os\x8c\x06system\x93U" + bytes([len(encoded)]) + encoded + b"\x85R.",
        "numpy's own door": b"cnumpy.testing\nrundocs\nU\x01x\x85R.",
        "after the options' prefix": b"coptions_evil\nsystem\n)R.",
        "persistent": b"P1\n.",
        "persistent, binary": b"K\x01Q.",
        "extension": b"\x82\x01.",
        "set_state of a module": b"c__builtin__\ndict\n}b.",
    }


def test_no_attack_runs_and_each_is_refused_or_inert(tmp_path):
    target = tmp_path / "pwned"
    for name, data in attacks(target).items():
        with pytest.raises(RefusedError):
            read(data)
        assert not target.exists(), name
    before = set(sys.modules)
    with pytest.raises(RefusedError, match=r"a call of this\.that, which would run code; it was not run"):
        read(b"cthis\nthat\n)R.")
    assert set(sys.modules) == before  # not even imported


def test_the_attacks_are_real(tmp_path):
    """Python's own unpickler would have run them: what is tested above is no straw man."""
    for name in (
        "os.system, protocol 0",
        "os.system, protocol 2",
        "builtins.eval",
        "INST",
        "in a list of a dictionary",
    ):
        target = tmp_path / name.replace(" ", "-")
        pickle.loads(attacks(target)[name], encoding="latin1")
        assert target.exists(), name


def test_the_extension_registry_and_its_cache_are_never_asked(monkeypatch):
    import copyreg

    monkeypatch.setitem(copyreg._extension_registry, (__name__, "Marker"), 77)
    monkeypatch.setitem(copyreg._inverted_registry, 77, (__name__, "Marker"))
    monkeypatch.setitem(copyreg._extension_cache, 77, Marker)
    with pytest.raises(RefusedError, match="the operation EXT1"):
        read(b"\x82\x4d)R.")
    assert Marker.made == 0


def test_named_but_never_called_is_only_a_name():
    found = read(py2({"parser": Raw(b"cos\nsystem\n")}))
    assert found["parser"].name == "os.system"
    assert not callable(found["parser"])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "damaged"),
        (b"\x80\x02", "damaged"),
        (b"]", "damaged"),
        (b".", "its stack is empty"),
        (b"(.", "its stack is empty"),
        (b"e.", "a mark is missing"),
        (b"K\x01K\x02a.", "no list where one must be"),
        (b"h\x05.", "damaged"),
        (b"\xff.", "damaged"),
        (b"}(]K\x01u.", "a dictionary with a list as a key"),
        (b"}(K\x01u.", "damaged"),
        (b"T\xff\xff\xff\x7fabc.", "damaged"),
        (b"\x8e" + b"\xff" * 8 + b".", "damaged"),
        (b"\x8b\xff\xff\xff\x7f.", "damaged"),
        (b"L" + b"9" * 10_000 + b"L\n.", "damaged"),
        (b"cnumpy\ndtype\n(U\x02V9tR.", "an array of type 'V9'"),
        (b"cnumpy\ndtype\n(U\x02O8tR}b.", "without its byte order"),
        (b"c__builtin__\nint\nK\x01b.", "a state for a Named"),
        (b"cnumpy.core.multiarray\n_reconstruct\n)RN.", None),
    ],
)
def test_damaged_pickles_are_one_error(data, text):
    if text is None:
        assert read(data) is None
        return
    with pytest.raises(RefusedError, match=text):
        read(data)


def test_an_array_is_as_large_as_its_bytes():
    for shape in ((1 << 39,), (3,), (-1,), (True,), (1 << 20, 1 << 20, 0, 1 << 30), ([],), "ab"):
        state = (1, shape, Raw(Py2().type("f4", "<")), False, b"12345678")
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        with pytest.raises(RefusedError):
            read(made + Py2().of(state) + b"b.")


def test_deep_nesting_shared_bombs_and_endless_files_are_bounded(monkeypatch):
    depth = 100_000
    deep = read(b"]" * depth + b"a" * (depth - 1) + b".")
    for _ in range(depth - 1):
        (deep,) = deep
    assert deep == []
    tuples = read(b")" + b"\x85" * depth + b".")
    assert len(tuples) == 1
    with pytest.raises(RefusedError, match="a dictionary with a tuple as a key"):  # its hash would go as deep
        read(b"})" + b"\x85" * depth + b"K\x01s.")
    bomb = b"]q\x00" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(99))
    assert len(read(bomb + b".")) == 2  # 2^99 leaves that nobody walks through
    monkeypatch.setattr(restricted_pickle, "MAX_OPERATIONS", 1000)
    with pytest.raises(RefusedError, match="more than 1,000 operations"):
        read(b"N0" * 600 + b"N.")


def test_every_operation_of_a_protocol_is_known_or_refused_by_name():
    for operation in pickletools.opcodes:
        if operation.name == "STOP":
            continue
        machine = restricted_pickle._Machine(0)
        try:
            machine.do(operation.name, 0)
        except RefusedError as error:
            assert str(error)
        except (LookupError, ValueError, TypeError, AttributeError):
            pass  # an empty stack: read() makes one error of it


CHECKPOINT = py2({"model_state": {"layers": {"c": {"weights": [np.ones((3, 2), np.float32)], "type": "conv"}}}})


@given(data=st.data())
def test_damaged_bytes_are_values_or_one_error(data):
    damaged = bytearray(CHECKPOINT)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    try:
        read(bytes(damaged))
    except RefusedError as error:
        assert "\n" not in str(error)


def test_a_remembered_text_is_not_copied_without_end():
    """A text of 4 KB and 20,000 calls that encode it are 140 KB, and would be 80 MB of bytes."""
    text = b"c_codecs\nencode\nq\x01" + b"X" + struct.pack("<I", 4096) + b"a" * 4096 + b"q\x02U\x06latin1q\x03"
    call = b"h\x01h\x02h\x03\x86R"
    data = b"\x80\x02]" + text + b"000" + (call + b"a") * 20_000 + b"."
    with pytest.raises(RefusedError, match="copied too often"):
        read(data)
    few = b"\x80\x02]" + text + b"000" + (call + b"a") * 3 + b"."
    assert read(few) == [b"a" * 4096] * 3


@pytest.mark.parametrize(
    ("head", "repeated", "message"),
    [
        # a memoized bytearray becomes the bytes of an array again and again
        (
            b"\x80\x05\x96" + (1 << 20).to_bytes(8, "little") + bytes(1 << 20) + b"\x94c__builtin__\nbytes\n\x94",
            b"cnumpy._core.numeric\n_frombuffer\n(h\x00cnumpy\ndtype\n\x8c\x02u1\x85RJ\x00\x00\x10\x00\x85\x8c\x01CtR0",
            "copied too often",
        ),
        # the name of a class of two memoized texts
        (
            b"\x80\x04\x8d" + (1 << 19).to_bytes(8, "little") + b"x" * (1 << 19) + b"\x94",
            b"h\x00h\x00\x930",
            "copied too",
        ),
        (b"\x80\x02", b"}", "too many objects"),
        (b"\x80\x02", b"]", "too many objects"),
        (b"\x80\x02K\x01q\x00", b"h\x00\x85", "too many objects"),
        (b"\x80\x02coptions\nOption\nq\x00", b"h\x00)R", "too many objects"),
    ],
)
def test_what_a_small_file_makes_is_bounded(head, repeated, message, monkeypatch):
    """Gzip makes a few kilobytes of each."""
    monkeypatch.setattr(restricted_pickle, "_FREE_OBJECTS", 1000)
    with pytest.raises(RefusedError, match=message):
        read(head + repeated * (5000 if "objects" in message else 20))


def test_plain_names_stay_and_others_are_spelled_out():
    assert readable("conv1") == "conv1"
    assert readable("größe 2") == "größe 2"
    assert readable("a\nb\x1b[2Jc\u202e\ud800") == "a\\x0ab\\x1b[2Jc\\u202e\\ud800"
    assert readable(7) == "7"
    assert len(readable("x" * 10_000)) == MAX_NAME


@given(st.text())
def test_any_text_is_one_printable_line(text):
    assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in readable(text))  # Zs: spaces of other widths


def doubled(levels: int = 20) -> list:
    """A list of a list twice, and so on: 20 objects, whose text has megabytes (of 50 levels: petabytes)."""
    value: list = []
    for _ in range(levels):
        value = [value, value]
    return value


def test_the_text_of_a_list_is_never_made():
    body = pickle.dumps(doubled(), 4)[:-1]
    name = b"\x8c\x01x"
    for code in (body + name + b"\x93.", name + body[2:] + b"\x93."):  # STACK_GLOBAL with it as module, as name
        with pytest.raises(RefusedError, match=r"^a name that is no text$"):
            read(code)
    with pytest.raises(RefusedError, match=r"^an array of type 'a list'$"):
        read(b"cnumpy\ndtype\n" + body + b"\x85R.")
    assert readable(doubled()) == "a list" and readable({}) == "a dict"


def test_an_integer_of_a_megabyte_is_refused():
    """As a key of a dictionary it is hashed each time: 0.3 ms for each operation of two bytes."""
    for code in (b"\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20) + b".", b"L" + b"9" * 4000 + b"L\n."):
        with pytest.raises(RefusedError, match=r"^an integer of [\d,]+ bits$"):
            read(code)
