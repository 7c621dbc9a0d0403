"""Text on a terminal: what a terminal would obey is escaped, and what its encoding lacks is replaced.

Class names, file names and error messages hold whatever other people wrote. ``safe_output`` is the one place through
which
all of it is printed.
"""

import codecs
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

from alexnet.errors import printable

_ASCII = {
    "…": "...",
    "×": "x",
    "−": "-",
    "–": "-",
    "—": "-",
    "·": "*",
    "→": "->",
    "←": "<-",
    "≥": ">=",
    "≤": "<=",
    "±": "+-",
    "÷": "/",
    "²": "^2",
    "µ": "u",
    "μ": "u",
    "√": "sqrt",
    "∞": "inf",
    "✓": "yes",
    "✗": "no",
    "─": "-",
    "━": "-",
    "│": "|",
    "├": "|",
    "└": "`",
    "α": "alpha",
    "β": "beta",
    "ε": "epsilon",
    "λ": "lambda",
    "σ": "sigma",
    "Σ": "sum",
    "∂": "d",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
}
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def csv_cell(text: str) -> str:
    """``text`` as a cell of a CSV file: on one line, and no formula in a spreadsheet.

    Text that begins with ``= + - @``, a tab or a carriage return gets an apostrophe in front: a spreadsheet would
    compute it, and a class or file name could run commands there.
    """
    return ("'" if text.startswith(_FORMULAS) else "") + printable(text)


def unescaped(stream: TextIO) -> TextIO:
    """The stream behind ``safe_output``, for what styles its own text; names in that text must be ``printable``."""
    return stream.behind if isinstance(stream, _Escaped) else stream


@contextmanager
def safe_output() -> Iterator[None]:
    """Inside, no text that is printed fails to be encoded, and none of it moves a cursor, colors or reverses."""
    codecs.register_error("alexnet.readable", _readable)
    streams = [unescaped(sys.stdout), unescaped(sys.stderr)]
    before = [getattr(stream, "errors", None) for stream in streams]
    for stream in streams:
        _set_errors(stream, "alexnet.readable")
    out, err = (cast(TextIO, _Escaped(stream)) for stream in streams)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            _set_errors(stream, errors)


@contextmanager
def styled_output() -> Iterator[None]:
    """Inside ``safe_output``, for a library that prints styled text which no stranger wrote."""
    with redirect_stdout(unescaped(sys.stdout)), redirect_stderr(unescaped(sys.stderr)):
        yield


class _Escaped:
    """A text stream that writes ``printable`` lines."""

    def __init__(self, behind: TextIO) -> None:
        self.behind = behind

    def write(self, text: str) -> int:
        start = "\r" if text.startswith("\r") else ""  # the progress bars of libraries write a line again
        lines = text.removeprefix(start).split("\n")
        self.behind.write(start + "\n".join("\t".join(map(printable, line.split("\t"))) for line in lines))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)


def _set_errors(stream: TextIO, errors: str | None) -> None:
    if errors is not None and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=errors)


def _readable(error: UnicodeError) -> tuple[str, int]:
    """Characters that the encoding lacks: as ASCII writes them, or ``\\u2026``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    escaped = (_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in characters)
    return "".join(escaped), error.end
