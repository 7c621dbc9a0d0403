"""Text for people: numbers, intervals and durations in one way everywhere, and safe output on a terminal.

Class names, file names and error messages contain text of other people. All of it is printed inside ``safe_output``.
"""

import codecs
import html
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

from alexnet.errors import RecipeError, printable

Progress = Callable[[int, int], None]  # called with the number of items done and their total

LOG_INTERVAL = 30.0  # seconds of silence after which a log that is no terminal gets a line of progress
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION = r"(\d+(?:\.\d+)?)\s*(h|min|m|s)"
_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def percent(fraction: float, decimals: int = 1) -> str:
    """0.765 -> ``76.5 %``; empty for NaN."""
    return "" if fraction != fraction else f"{100 * fraction:.{decimals}f} %"


def short_percent(fraction: float) -> str:
    """0.765 -> ``76.5 %`` and 0.5 -> ``50 %``, for running text."""
    return percent(fraction).replace(".0 %", " %")


def probability(value: float) -> str:
    """0.9712 -> ``97.1 %``; never 100.0 % or 0.0 % unless ``value`` is exactly 1 or 0."""
    if 99.95 <= 100 * value < 100:
        return ">99.9 %"
    return "<0.1 %" if 0 < 100 * value < 0.05 else percent(value)


def interval(low: float, high: float, decimals: int = 1) -> str:
    """(0.738, 0.79) -> ``73.8 to 79.0 %``."""
    return f"{100 * low:.{decimals}f} to {percent(high, decimals)}"


def format_duration(seconds: float) -> str:
    """Format seconds as ``1 h 30 min``, ``2 min 5 s`` or ``8.3 s``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" + (f" {rest} s" if rest else "")


def parse_duration(text: str, option: str = "--budget") -> float:
    """Return the seconds of ``40min``, ``40m``, ``90s``, ``1.5h`` or ``1h30min``.

    Raises:
        RecipeError: Any other text. The message names ``option``.
    """
    parts = re.findall(_DURATION, text)
    if not parts or re.sub(_DURATION, "", text).strip():
        raise RecipeError(f"{option} is {text!r}", "a time such as 90s, 40min or 1.5h")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def parse_size(text: str, option: str) -> int:
    """Return the bytes of ``7MB`` (7,000,000), ``800KB`` or ``6.5MiB``.

    Raises:
        RecipeError: Any other text. The message names ``option``.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgG]?[iI]?[bB]?)", text.strip())
    unit = match[2].upper() if match else ""
    unit = unit if unit in _BYTES else unit + "B"
    if match is None or unit not in _BYTES:
        raise RecipeError(f"{option} is {text!r}", "a size such as 7MB, 800KB or 6.5MiB")
    return round(float(match[1]) * _BYTES[unit])


def shorten(text: str, limit: int) -> str:
    """``text`` on one line, at most ``limit`` columns wide, with … where it is cut. Wide letters count as two.

    Control characters become visible escapes, as in messages.
    """
    text = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    text = printable(text)
    if columns(text) <= limit:
        return text
    text = text[: max(0, limit)]  # a class name may have 10,000 characters
    while text and columns(text) > limit - 1:
        text = text[:-1]
    return text.rstrip(" ,;") + "…"


def columns(text: str) -> int:
    """Width of ``text`` in columns of a fixed-width font; East Asian wide letters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


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
_FORMULAS = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r", "\n")


def csv_cell(text: str) -> str:
    """``text`` as a cell of a CSV file, on one line.

    Text that starts with ``= + - @``, also full-width, a tab or the end of a line, behind apostrophes too, gets an
    apostrophe in front, so that a reader can take it off again. A spreadsheet would otherwise compute it as a formula,
    and a class or file name could run commands.
    """
    return ("'" if text.lstrip("'").startswith(_FORMULAS) else "") + printable(text)


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


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table for a notebook, as HTML; without ``columns`` it has no head. All text is escaped.

    Notebooks align cells to the right, which is for numbers: text is aligned to the left.
    """

    def line(cells: Sequence[object], tag: str, numbers: Sequence[bool]) -> str:
        return "".join(
            f"<{tag}>{html.escape(str(cell))}</{tag}>"
            if number
            else f'<{tag} style="text-align: left">{html.escape(str(cell))}</{tag}>'
            for cell, number in zip(cells, numbers, strict=True)
        )

    rows = list(rows)
    numbers = [all(str(cell)[:1].isdigit() for cell in column) for column in zip(*rows, strict=True)]
    head = f"<thead><tr>{line(columns, 'th', numbers)}</tr></thead>" if columns else ""
    body = "".join(f"<tr>{line(row, 'td', numbers)}</tr>" for row in rows)
    return f"<p><b>{html.escape(title)}</b></p><table>{head}<tbody>{body}</tbody></table>"
