"""Shared parts of all plots: colors, figures, safe text, and saving to a file."""

import functools
import io
import math
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet.data.atomic_io import write_file, written
from alexnet.data.remote import local_path
from alexnet.terminal import columns, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

DPI = 150
LONGEST = 60  # columns of any one label

# Okabe and Ito's colors (2008): distinguishable with every common color blindness.
BLUE, SKY, GREEN, VERMILION = "#0072B2", "#56B4E9", "#009E73", "#D55E00"
INK, GRAY, PALE, PAPER = "#222222", "#6B6B6B", "#E3E3E3", "#FFFFFF"

# matplotlib's own font has no Chinese, Japanese or Korean: the installed ones of these are fallbacks.
FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans",
    "Yu Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
)


def new_figure(width: float, height: float, *, constrained: bool = True) -> "Figure":
    """An empty white figure of ``width`` times ``height`` inches, on Agg, outside of pyplot's global list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12) if constrained else None
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def plain(axes: "Axes") -> "Axes":
    """Reduce the frame to a left and a bottom line, and add light horizontal grid lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRAY)
    axes.tick_params(colors=GRAY, labelcolor=INK, labelsize=9)
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def fit(label: "Text", width: float) -> float:
    """Shorten ``label`` until it is at most ``width`` inches wide, and return how wide it is then."""
    words = shorten(label.get_text(), LONGEST)
    label.set_text(words)
    _safe(label)
    limit = columns(words)
    with _quiet():
        while limit > 1 and label.get_window_extent().width > width * DPI:
            limit -= 1
            label.set_text(shorten(words, limit))
        return float(label.get_window_extent().width) / DPI


def short_names(names: Sequence[str], limit: int) -> list[str]:
    """``names`` of at most ``limit`` columns. Those that would look alike lose their middle: often the ends differ."""
    short = [shorten(name, limit) for name in names]
    counts, half = Counter(short), (limit - 1) // 2
    result = []
    for name, cut in zip(names, short, strict=True):
        whole = shorten(name, len(name) * 8 + 2)  # on one line, all of it
        result.append(cut if counts[cut] == 1 else shorten(f"{whole[: limit - 1 - half]}…{whole[-half:]}", limit))
    return result


def wrap(text: str, width: float, size: float) -> list[str]:
    """``text`` in lines of at most ``width`` inches in letters of ``size`` points; its own line breaks stay."""
    limit = max(10, int(width * 72 / (0.56 * size)))
    return [line for part in text.split("\n") for line in textwrap.wrap(part, limit) or [""]]


def headings(figure: "Figure", title: str, below: str) -> None:
    """A title and a line below the figure, from its left edge on, wrapped to its width: both may hold a long path."""
    width = figure.get_figwidth() - 0.3
    figure.suptitle("\n".join(wrap(title, width, 14)), x=0.01, ha="left", size=14, color=INK)
    figure.supxlabel("\n".join(wrap(below, width, 9)), x=0.01, ha="left", size=9, color=GRAY)


def numbers(values: Sequence[float], digits: int = 1) -> Callable[[float], str]:
    """One format for all numbers of an axis on which ``values`` stand: never 0.0001 beside 1e-05."""
    small = any(0 < abs(value) < 1e-4 for value in values)
    return (lambda value: f"{value:.{digits}e}" if value else "0") if small else "{:g}".format


def decimals(values: Sequence[float]) -> Callable[[float], str]:
    """As many decimals for each of ``values`` as give the largest three digits: 1.90 beside 1.81."""
    largest = max(map(abs, values), default=0.0)
    places = 2 if not largest else max(0, 2 - math.floor(math.log10(largest)))
    return lambda value: f"{value:.{places}f}"


def save(figure: "Figure", path: Path | str) -> Path:
    """Write ``figure`` as a PNG at ``path``, atomically; missing folders are created. Raises :class:`RunError`."""
    path = local_path(path)
    rendered = _render(figure)
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, rendered)
    return path


def _render(figure: "Figure") -> bytes:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text):
            _safe(text)
    buffer = io.BytesIO()
    with _quiet():
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": "alexnet"})
    return buffer.getvalue()


def _safe(text: "Text") -> None:
    text.set_parse_math(False)  # a class may be called "$5 or $10": that is no formula
    text.set_fontfamily(_families())


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # drawn as a box; nothing else is lost
        yield


@functools.cache
def _families() -> list[str]:
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in FALLBACKS if name in installed)]
