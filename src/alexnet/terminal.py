"""Safe text on a terminal: control characters are escaped, and characters that its encoding lacks are replaced.

Class names, file names and error messages contain text of other people. All of it is printed inside ``safe_output``.
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
    """``text`` as a cell of a CSV file, on one line.

    Text that starts with ``= + - @``, a tab or a carriage return gets an apostrophe in front. A spreadsheet would
    otherwise compute it as a formula, and a class or file name could run commands.
    """
    return ("'" if text.startswith(_FORMULAS) else "") + printable(text)


def unescaped(stream: TextIO) -> TextIO:
    """The stream behind ``safe_output``, for a library that styles its text. Pass names through ``printable`` first."""
    return stream.behind if isinstance(stream, _Escaped) else stream


@contextmanager
def safe_output() -> Iterator[None]:
    """Escape everything that is printed inside this context, and replace characters that cannot be encoded."""
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
    """Print unescaped inside ``safe_output``, for a library whose styled text contains no text of other people."""
    with redirect_stdout(unescaped(sys.stdout)), redirect_stderr(unescaped(sys.stderr)):
        yield


class _Escaped:
    """A text stream that writes ``printable`` lines."""

    def __init__(self, behind: TextIO) -> None:
        self.behind = behind

    def write(self, text: str) -> int:
        start = "\r" if text.startswith("\r") else ""  # progress bars of libraries rewrite a line
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
    """The error handler of encodings: an ASCII spelling of the character, or its escape ``\\u2026``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    escaped = (_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in characters)
    return "".join(escaped), error.end
