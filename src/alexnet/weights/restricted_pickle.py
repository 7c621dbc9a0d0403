"""A reader of untrusted pickles: numbers, texts, lists, dictionaries and arrays. No code of the file is run.

Python's unpickler runs the functions that a file names. Here ``pickletools`` parses the operations without running
them, and a small stack machine interprets them. Classes and functions are only names and are never imported. Objects of
the option classes in cuda-convnet's checkpoints become an empty :class:`Inert`. Any other call is refused by name.

Bounds: the number of operations, the size of the file, the objects that it may make, and the bytes that calls may copy
are limited, and an array is exactly as large as its bytes in the file. Dictionary keys are numbers and texts, so that
hashing a key cannot recurse.
"""

import io
import math
import pickletools
import re
import warnings
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import printable

MAX_NAME = 200  # characters
MAX_BITS = 1_024  # of an integer: to hash or print one takes time by its length, and a memoized one is used again
MAX_OPERATIONS = 10_000_000  # layers need thousands; the error list of a long training needs more
_FREE_BYTES = 1 << 20  # calls may copy at most this many bytes + twice the size of the file
_FREE_OBJECTS, _OBJECT_BYTES = 1_000_000, 8  # objects: at most so many + one for so many bytes of the file
_MAX_MEMO_TEXT = 1 << 20  # characters; longer texts are array data, which are used once and not memoized
_INERT = ("options.", "python_util.", "util.")  # modules of the command-line options in cuda-convnet's checkpoints
_NUMPY = {"numpy.core.", "numpy._core."}
_TYPE = re.compile(r"[biuf][1248]")


def readable(name: object) -> str:
    """``name`` as printable text of at most 200 characters; control characters are escaped (``\\x1b``).

    Of a list or another object only the type is named: a list that holds another one twice, and so on, has a text that
    is longer than any memory.
    """
    text = str(name) if isinstance(name, str | bytes | int | float | None) else f"a {type(name).__name__}"
    return printable(text[:MAX_NAME])


class RefusedError(ValueError):
    """The pickle is damaged, or holds an object that is not allowed; the text says which."""


class Inert:
    """An object of an unknown class: only the name of the class is kept. Calling it has no effect."""

    def __init__(self, name: str) -> None:
        self.name = name


class Named:
    """A class or function by its name; never imported, never called."""

    def __init__(self, name: str) -> None:
        self.name = name


class Array:
    """An array of the file. ``values`` is a NumPy array, a list for an array of objects, or None until it is filled."""

    def __init__(self) -> None:
        self.values: NDArray[Any] | list[Any] | None = None

    def fill(self, state: Any) -> None:
        """Set the state that NumPy writes: (version, shape, dtype, is Fortran order, bytes or list)."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise RefusedError("an array without its five parts")
        shape, kind, fortran_order, data = state[-4:]
        self.values = data if isinstance(data, list) else filled(data, kind, shape, "F" if fortran_order else "C")


class Type:
    """A dtype: its code, such as ``f4``, or ``O8`` for objects, and its byte order."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or not (_TYPE.fullmatch(code) or code in ("O", "O8", "O4")):
            raise RefusedError(f"an array of type {readable(code)[:20]!r}")
        self.code, self.order = code, "<"

    def set_order(self, state: Any) -> None:
        """Set the state that NumPy writes: (version, byte order, …)."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise RefusedError("a type of numbers without its byte order")
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype. Raises :class:`RefusedError` for objects."""
        if self.code.startswith("O"):
            raise RefusedError("an array of objects where numbers must be")
        return np.dtype(self.order + self.code)


def filled(data: Any, kind: Any, shape: Any, order: str) -> NDArray[Any]:
    """Make an array of bytes.

    Raises:
        RefusedError: The number of bytes does not match the shape and the type.
    """
    if not isinstance(kind, Type) or not isinstance(shape, tuple) or len(shape) > 8:
        raise RefusedError("an array without type or shape")
    if not all(type(side) is int and 0 <= side < 1 << 40 for side in shape):
        raise RefusedError("an array whose shape is no row of integers")
    dtype, raw = kind.numpy(), bytes_of(data)
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise RefusedError(f"an array of {list(shape)} {dtype} with {len(raw):,} bytes")
    flat = np.frombuffer(raw, dtype) if raw else np.zeros(0, dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def bytes_of(value: Any) -> bytes:
    """The bytes of a value. A text of Python 2 has one byte per character."""
    try:
        return value.encode("latin-1") if isinstance(value, str) else bytes(memoryview(value))
    except (TypeError, UnicodeEncodeError) as error:
        raise RefusedError("an array without bytes") from error


def read(file: IO[bytes]) -> Any:
    """Read the pickle at the current position of the file without running code. Raises :class:`RefusedError`."""
    try:
        with warnings.catch_warnings():  # pickletools warns about invalid escapes in texts
            warnings.simplefilter("ignore")
            return _interpret(file)
    except RefusedError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, EOFError) as error:
        raise RefusedError(f"it is damaged ({readable(str(error))[:100]})") from error


def _interpret(file: IO[bytes]) -> Any:
    start = file.tell()
    size = file.seek(0, io.SEEK_END) - start
    machine = _Machine(_FREE_BYTES + 2 * size, _FREE_OBJECTS + size // _OBJECT_BYTES)
    file.seek(start)
    for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if count > MAX_OPERATIONS:
            raise RefusedError(f"more than {MAX_OPERATIONS:,} operations")
        if operation.name == "STOP":
            return machine.pop()
        machine.do(operation.name, argument)
    raise RefusedError("it has no end")


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
}
_MAKERS = {
    "EMPTY_LIST",
    "LIST",
    "EMPTY_DICT",
    "DICT",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
    "GLOBAL",
    "STACK_GLOBAL",
    "REDUCE",
    "NEWOBJ",
    "NEWOBJ_EX",
    "OBJ",
    "INST",
}
_MARK = object()


class _Machine:
    """Stack and memo of one pickle. Each ``do_`` method is an operation of the pickle format."""

    def __init__(self, budget: int, objects: int = _FREE_OBJECTS) -> None:
        self.budget = budget  # bytes that calls may still copy; a memoized text can be used any number of times
        self.objects = objects  # lists, tuples, dictionaries and results of calls that may still be made
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        self.objects -= name in _MAKERS
        if self.objects < 0:
            raise RefusedError("too many objects for the size of the file")
        if name in _VALUES:
            if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
                raise RefusedError(f"an integer of {argument.bit_length():,} bits")
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        else:
            method = getattr(self, f"do_{name.lower()}", None)
            if method is None:
                raise RefusedError(f"the operation {name}, which is not allowed")
            method(argument)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise RefusedError("it is damaged (its stack is empty)")
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                value = self.stack[at + 1 :]
                del self.stack[at:]
                return value
        raise RefusedError("it is damaged (a mark is missing)")

    def top(self, kind: type) -> Any:
        value = self.stack[-1]
        if type(value) is not kind:
            raise RefusedError(f"it is damaged (no {kind.__name__} where one must be)")
        return value

    def do_proto(self, _: Any) -> None:
        pass

    do_frame = do_proto

    def do_mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def do_pop(self, _: Any) -> None:
        self.stack.pop()

    def do_pop_mark(self, _: Any) -> None:
        self.since_mark()

    def do_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def do_put(self, index: int) -> None:
        value = self.stack[-1]
        if not (isinstance(value, str) and len(value) > _MAX_MEMO_TEXT):
            self.memo[int(index)] = value

    do_binput = do_long_binput = do_put

    def do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_get(self, index: int) -> None:
        self.stack.append(self.memo[int(index)])

    do_binget = do_long_binget = do_get

    def do_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def do_list(self, _: Any) -> None:
        self.stack.append(self.since_mark())

    def do_append(self, _: Any) -> None:
        value = self.pop()
        self.top(list).append(value)

    def do_appends(self, _: Any) -> None:
        values = self.since_mark()
        self.top(list).extend(values)

    def do_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def do_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.since_mark()))

    def do_tuple1(self, _: Any) -> None:
        self.last(1)

    def do_tuple2(self, _: Any) -> None:
        self.last(2)

    def do_tuple3(self, _: Any) -> None:
        self.last(3)

    def last(self, count: int) -> None:
        self.stack.append(tuple([self.pop() for _ in range(count)][::-1]))

    def do_empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def do_dict(self, _: Any) -> None:
        values = self.since_mark()
        self.stack.append({})
        self.store(values)

    def do_setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.store([key, value])

    def do_setitems(self, _: Any) -> None:
        self.store(self.since_mark())

    def store(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is Inert:  # a dictionary subclass of the file: ignored
            return
        target = self.top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | bytes | int | float | None):
                raise RefusedError(f"a dictionary with a {type(key).__name__} as a key")
            target[key] = value

    def do_global(self, name: str) -> None:
        self.stack.append(Named(readable(name.replace(" ", "."))))

    def do_stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise RefusedError("a name that is no text")
        self.spend((name, module))
        self.stack.append(Named(readable(f"{module}.{name}")))

    def do_reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        self.call(function, arguments)

    do_newobj = do_reduce

    def do_newobj_ex(self, _: Any) -> None:
        _, arguments, kind = self.pop(), self.pop(), self.pop()
        self.call(kind, arguments)

    def do_obj(self, _: Any) -> None:
        kind, *arguments = self.since_mark()
        self.call(kind, tuple(arguments))

    def do_inst(self, name: str) -> None:
        arguments = tuple(self.since_mark())
        self.call(Named(readable(name.replace(" ", "."))), arguments)

    def call(self, function: Any, arguments: Any) -> None:
        """Push the result of a call."""
        self.spend(arguments)
        self.stack.append(_call_result(function, arguments))

    def spend(self, values: Any) -> None:
        """Subtract the bytes that ``values`` copy from the budget. Raises :class:`RefusedError` when it is used up."""
        self.budget -= _copied_bytes(values)
        if self.budget < 0:
            raise RefusedError("texts that are copied too often for the size of the file")

    def do_build(self, _: Any) -> None:
        state, result = self.pop(), self.stack[-1]
        self.spend(state)
        if isinstance(result, Array):
            result.fill(state)
        elif isinstance(result, Type):
            result.set_order(state)
        elif not isinstance(result, Inert):
            raise RefusedError(f"a state for a {type(result).__name__}, which has none")


def _copied_bytes(values: Any) -> int:
    """Number of bytes that a call or a state can copy: those of the texts and bytes directly in it."""
    kinds = str | bytes | bytearray
    return sum(len(value) for value in values if isinstance(value, kinds)) if isinstance(values, tuple) else 0


def _call_result(function: Any, arguments: Any) -> Any:
    """The result of a call that NumPy or cuda-convnet wrote. Other calls are refused; no function is called."""
    name = function.name if isinstance(function, Named) else f"a {type(function).__name__}"
    if not isinstance(function, Named) or not isinstance(arguments, tuple):
        raise RefusedError(f"a call of {name}")
    if name.startswith(_INERT):
        return Inert(name)
    if name == "numpy.dtype":
        return Type(arguments[0])
    if name in ("copy_reg._reconstructor", "copyreg._reconstructor") and isinstance(arguments[0], Named):
        return _call_result(arguments[0], ())
    if name == "_codecs.encode" and len(arguments) == 2 and arguments[1] == "latin1":  # bytes, from Python 3
        return bytes_of(arguments[0])
    if name in ("__builtin__.bytes", "builtins.bytes") and arguments == ():
        return b""
    for core in _NUMPY:
        if name == f"{core}multiarray._reconstruct":
            return Array()
        if name == f"{core}multiarray.scalar":
            return filled(arguments[1], arguments[0], (), "C").item()
        if name == f"{core}numeric._frombuffer":
            result = Array()
            result.values = filled(arguments[0], arguments[1], arguments[2], arguments[3])
            return result
    raise RefusedError(f"a call of {name}, which would run code; it was not run")
