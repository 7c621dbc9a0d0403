"""Krizhevsky's layer and parameter files: text -> sections of typed values -> the definition of a network.

The grammar is that of Python 2's ``SafeConfigParser``, by which his programs read them: ``[name]`` in column 0,
``key=value`` or ``key: value`` with keys in any case, ``#`` and ``;`` comments, repeated sections merged, repeated keys
overwritten, ``[DEFAULT]``, ``%(key)s``. Errors are a :class:`ModelError` with file, line, layer and parameter.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from alexnet.errors import ModelError

LEARNED = ("conv", "local", "fc", "treefc")


class Data(NamedTuple):
    """What the data defines: size of the images, number of classes, tree of the classes.

    ``classes`` None: the number of outputs of the file's last layer. ``tree`` is for ``treefc`` only.
    """

    image_size: int = 224
    channels: int = 3
    classes: int | None = None
    tree: "Tree | None" = None


class Tree(NamedTuple):
    """The classes as a tree: ``children[i]`` are the children of node i, leaves are nodes 0 … classes − 1."""

    children: Sequence[Sequence[int]]
    root: int


class Matrix(NamedTuple):
    """The weights of one input of a layer.

    ``rows`` × ``columns`` is their shape in the file's layout. ``source`` is the (layer, input) that owns a shared
    matrix, None for its own matrix.
    """

    rows: int
    columns: int
    std: float  # initW
    source: tuple[str, int] | None


@dataclass(frozen=True)
class Layer:
    """One layer. ``side`` is the size of its square feature maps, pixels; 0 if its output is not an image.

    ``options`` are the checked values of its section under the file's keys; values per input are lists.
    """

    name: str
    type: str
    line: int
    inputs: tuple[str, ...]
    outputs: int
    gpu: int
    side: int = 0
    formula: str = ""  # the output size as a worked formula
    matrices: tuple[Matrix, ...] = ()
    biases: tuple[int, ...] = ()  # shape
    options: Mapping[str, Any] = field(default_factory=dict)
    learns: bool = False  # has weights, or depends on a layer with weights

    @property
    def channels(self) -> int:
        """Feature maps of the output; all outputs if it is not an image."""
        return self.outputs // self.side**2 if self.side else self.outputs

    @property
    def parameters(self) -> int:
        """Number of its own parameters; shared matrices count for their owner."""
        own = sum(m.rows * m.columns for m in self.matrices if m.source is None)
        return own + (math.prod(self.biases) if self.biases else 0)

    @property
    def is_cost(self) -> bool:
        return self.type.startswith("cost.")


@dataclass(frozen=True)
class Definition:
    """All layers of a file in its order; a neuron is a separate layer after the layer that has it.

    ``notes`` list deviations that were accepted, and interpretations without a public source.
    """

    file: str
    layers: Mapping[str, Layer]
    data: Data  # with ``classes`` known
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(layer.parameters for layer in self.layers.values())

    @property
    def costs(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers.values() if layer.is_cost)

    def readers(self, name: str) -> list[Layer]:
        """The layers that read the output of ``name``."""
        return [layer for layer in self.layers.values() if name in layer.inputs]


@dataclass
class Parts:
    """The properties of a layer that depend on its type."""

    outputs: int
    side: int = 0
    formula: str = ""
    matrices: list[Matrix] = field(default_factory=list)
    biases: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


MAX_BYTES = 1 << 20  # of a file; the longest published one has 22,000
_HEADER = re.compile(r"\[([^]]+)\]")
_OPTION = re.compile(r"([^:=\s][^:=]*)[:=](.*)", re.DOTALL)
_COMMENT = re.compile(r"\s;.*", re.DOTALL)
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_SUBSTITUTION = re.compile(r"(%%|%\([^)]*\)s)")
_TRUE, _FALSE = ("1", "yes", "true", "on"), ("0", "no", "false", "off")
_MAX_DEPTH = 10  # of nested %(key)s
_MAX_SUBSTITUTIONS = 1000  # of %(key)s in one value, nested ones included: ten levels of a few each would never end
_MAX_RESOLVED = 1 << 16  # characters of one value after substitution; published values have under 200
_MAX_FILE_RESOLVED = 1 << 22  # characters of all values with %(key)s in a file
_MAX_WORDS = 1000  # items of a list


class Value(NamedTuple):
    """The raw text of a value, and the line of its key (from 1)."""

    text: str
    line: int


class Section:
    """One ``[name]`` with its values; the methods return them with their type, or raise :class:`ModelError`.

    A missing value without a default is an error. Lists have one item per input: ``count`` items.
    """

    def __init__(self, name: str, line: int, file: str, defaults: dict[str, Value], total: list[int]) -> None:
        self.name, self.line, self.file = name, line, file
        self.values: dict[str, Value] = {}
        self._defaults = defaults
        self._resolved: dict[str, str] = {}  # values with %(key)s
        self._total = total  # one number: the characters of such values in all sections

    def wrong(self, what: str, must: str = "", todo: str = "", key: str = "") -> ModelError:
        """An error in this section, with the line of ``key`` or of the section."""
        result = self._find(key) if key else None
        line = result.line if result else self.line
        return ModelError(f"{self.file}, line {line}, layer {quoted(self.name)}: {what}", must, todo)

    def bad(self, key: str, must: str, todo: str = "") -> ModelError:
        """An error in the value of ``key``."""
        result = self._find(key)
        what = f"parameter {key} is {quoted(result.text)}" if result else f"parameter {key} is missing"
        return self.wrong(what, must, todo, key)

    def has(self, key: str) -> bool:
        """Whether the key is in the section or in ``[DEFAULT]``."""
        return self._find(key) is not None

    def text(self, key: str, default: str | None = None) -> str:
        """The value as text, with ``%`` substitutions."""
        result = self._find(key)
        if result is None:
            if default is None:
                raise self.bad(key, "given")
            return default
        if key not in self._resolved:
            resolved = self._resolve(key, result.text)
            if "%" not in result.text:
                return resolved
            self._total[0] += len(resolved)
            if self._total[0] > _MAX_FILE_RESOLVED:
                raise self.bad(key, f"in a file of at most {_MAX_FILE_RESOLVED:,} characters after substitution")
            self._resolved[key] = resolved
        return self._resolved[key]

    def words(self, key: str, default: str | None = None) -> list[str]:
        """A comma-separated list of words, each stripped, possibly empty."""
        words = self.text(key, default).split(",", _MAX_WORDS)
        if len(words) > _MAX_WORDS:
            raise self.bad(key, f"a list of at most {_MAX_WORDS:,} items")
        return [word.strip() for word in words]

    def integer(self, key: str, default: int | None = None, least: int | None = None) -> int:
        """An integer, at least ``least``."""
        if default is not None and not self.has(key):
            return default
        return self._integer(key, self.text(key), least)

    def integers(self, key: str, count: int, default: int | None = None, least: int | None = None) -> list[int]:
        """An integer for each of ``count`` inputs."""
        if default is not None and not self.has(key):
            return [default] * count
        return [self._integer(key, word, least) for word in self._list(key, count)]

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        if default is not None and not self.has(key):
            return default
        return self._number(key, self.text(key))

    def numbers(self, key: str, count: int, default: float | None = None) -> list[float]:
        """A finite number for each of ``count`` inputs."""
        if default is not None and not self.has(key):
            return [default] * count
        return [self._number(key, word) for word in self._list(key, count)]

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """1, yes, true, on or 0, no, false, off, in any case."""
        if default is not None and not self.has(key):
            return default
        word = self.text(key).lower()
        if word not in _TRUE + _FALSE:
            raise self.bad(key, "one of " + ", ".join(_TRUE + _FALSE))
        return word in _TRUE

    def booleans(self, key: str, count: int, default: bool = False) -> list[bool]:
        """For each input: ``true`` or ``1`` is true, anything else is false (so did the 2012 code)."""
        if not self.has(key):
            return [default] * count
        return [word.lower() in ("true", "1") for word in self._list(key, count)]

    def choice(self, key: str, choices: Sequence[str]) -> str:
        """One of ``choices``, in this spelling."""
        word = self.text(key)
        if word not in choices:
            raise self.bad(key, "one of " + ", ".join(choices))
        return word

    def _find(self, key: str) -> Value | None:
        return self.values.get(key.lower(), self._defaults.get(key.lower()))

    def _list(self, key: str, count: int) -> list[str]:
        words = self.words(key)
        if len(words) != count:
            raise self.bad(key, f"a list with one item for each input: {count}, not {len(words)}")
        return words

    def _integer(self, key: str, word: str, least: int | None) -> int:
        if not _INTEGER.fullmatch(word):
            raise self.bad(key, "an integer")
        if least is not None and int(word) < least:
            raise self.bad(key, f"at least {least}")
        return int(word)

    def _number(self, key: str, word: str) -> float:
        if not _NUMBER.fullmatch(word) or not math.isfinite(float(word)):
            raise self.bad(key, "a finite number")
        return float(word)

    def _resolve(self, key: str, text: str) -> str:
        """``%%`` -> ``%``; ``%(other)s`` -> the value of ``other``. Every other % is an error.

        The number of substitutions and the length of the result are bounded, whatever the nesting multiplies.
        """
        pending = [(part, 0) for part in reversed(_SUBSTITUTION.split(text))]  # a stack: the next part is the last item
        resolved: list[str] = []
        length = substitutions = 0
        while pending:
            part, depth = pending.pop()
            if part == "%%":
                part = "%"
            elif _SUBSTITUTION.fullmatch(part):
                value = self._find(part[2:-2])
                if value is None or depth == _MAX_DEPTH:
                    raise self.bad(key, f"resolvable: {part} stands for nothing")
                substitutions += 1
                if substitutions > _MAX_SUBSTITUTIONS:
                    raise self.bad(key, f"resolvable with at most {_MAX_SUBSTITUTIONS:,} substitutions of %(key)s")
                pending += [(inner, depth + 1) for inner in reversed(_SUBSTITUTION.split(value.text))]
                continue
            elif "%" in part:
                raise self.bad(key, "written with %% for %")
            length += len(part)
            if length > _MAX_RESOLVED:
                raise self.bad(key, f"at most {_MAX_RESOLVED:,} characters after substitution of %(key)s")
            resolved.append(part)
        return "".join(resolved)


def decode(content: bytes, file: str) -> str:
    """The text of a file: UTF-8, else Latin-1. Raises :class:`ModelError` for binary data and for files too large."""
    if len(content) > MAX_BYTES:
        raise ModelError(f"{file} has {len(content)} bytes", f"a layer or parameter file of at most {MAX_BYTES}")
    if b"\0" in content:
        raise ModelError(f"{file} is no text: it has zero bytes", "a layer or parameter file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def parse(text: str, file: str) -> dict[str, Section]:
    """Sections by name, in the order in which they first appear. Raises :class:`ModelError` with file and line."""
    sections: dict[str, Section] = {}
    defaults: dict[str, Value] = {}
    section: dict[str, Value] | None = None
    key, total = "", [0]
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        if _is_blank(line):
            continue
        if line[0].isspace() and section is not None and key:
            if len(section[key].text) > _MAX_RESOLVED:
                raise ModelError(
                    f"{file}, line {number}: parameter {key} goes on", f"at most {_MAX_RESOLVED:,} characters"
                )
            section[key] = Value(f"{section[key].text}\n{line.strip()}", section[key].line)
            continue
        header, option = _HEADER.match(line), _OPTION.match(line)
        if header:
            name, key = header[1], ""
            if name != "DEFAULT" and name not in sections:
                sections[name] = Section(name, number, file, defaults, total)
            section = defaults if name == "DEFAULT" else sections[name].values
        elif section is None:
            raise ModelError(f"{file}, line {number}: {quoted(line)} stands before the first layer", "[name]")
        elif option:
            key = option[1].rstrip().lower()
            value = _COMMENT.sub("", option[2]).strip()
            section[key] = Value("" if value == '""' else value, number)
        else:
            raise ModelError(f"{file}, line {number}: {quoted(line)}", "[name], key=value or a comment")
    return sections


def _is_blank(line: str) -> bool:
    if not line.strip() or line[0] in "#;":
        return True
    return line[0] in "rR" and line.split(None, 1)[0].lower() == "rem"


def quoted(text: str) -> str:
    """``text`` in quotes, on one line, shortened to 60 characters."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
