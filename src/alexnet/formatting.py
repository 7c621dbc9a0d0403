"""Numbers and names as text, in one way everywhere: percentages, intervals, durations, shortened names."""

import unicodedata

from alexnet.errors import printable


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


def duration(seconds: float) -> str:
    """4000 -> ``1 h 6 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def shorten(text: str, limit: int) -> str:
    """``text`` on one line, at most ``limit`` columns wide, with … where it is cut. Wide letters count as two.

    Control characters become visible escapes, as in messages.
    """
    text = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    text = printable(text)
    if columns(text) <= limit:
        return text
    while text and columns(text) > limit - 1:
        text = text[:-1]
    return text.rstrip(" ,;") + "…"


def columns(text: str) -> int:
    """Width of ``text`` in columns of a fixed-width font; East Asian wide letters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
