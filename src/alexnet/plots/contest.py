"""The result of a contest: the error of each method with its interval, and error against time."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alexnet.errors import DataError
from alexnet.formatting import shorten
from alexnet.plots import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Bar(NamedTuple):
    """A contestant: top-1 error and its interval in percent, milliseconds an image (0: not measured), seconds of
    learning, and whether it is no network."""

    label: str
    error: float
    low: float
    high: float
    milliseconds: float
    seconds: float
    classical: bool


def draw(title: str, subtitle: str, bars: Sequence[Bar], path: Path) -> Path:
    """Draw to a PNG at ``path``. Raises DataError."""
    return canvas.save(figure(title, subtitle, bars), path)


def figure(title: str, subtitle: str, bars: Sequence[Bar]) -> "Figure":
    """The figure, before it is saved."""
    if not bars:
        raise DataError("a contest without contestants can not be drawn", "at least one")
    fig = canvas.new_figure(11.5, 1.9 + 0.45 * max(len(bars), 5))
    left, right = fig.subplots(1, 2, width_ratios=[1.35, 1])
    _errors(canvas.plain(left), bars)
    _times(canvas.plain(right), bars)
    fig.suptitle(title, x=0.01, ha="left", size=14, color=canvas.INK)
    fig.supxlabel(subtitle, x=0.01, ha="left", size=9, color=canvas.GRAY)
    return fig


def _color(bar: Bar) -> str:
    return canvas.VERMILION if bar.classical else canvas.BLUE


def _errors(axes: "Axes", bars: Sequence[Bar]) -> None:
    """Horizontal bars, the interval as a line through the end of each, the error written behind it."""
    for row, bar in enumerate(bars):
        axes.barh(row, bar.error, height=0.55, color=_color(bar), alpha=0.3, zorder=1)
        axes.plot([bar.low, bar.high], [row, row], color=_color(bar), linewidth=2, solid_capstyle="butt", zorder=3)
        axes.plot([bar.error], [row], "s" if bar.classical else "o", color=_color(bar), markersize=6, zorder=4)
        axes.annotate(
            f"{bar.error:.1f} %",
            (bar.high, row),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            size=10,
            color=canvas.INK,
        )
    axes.set_yticks(range(len(bars)), [shorten(bar.label, 28) for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * max(max(bar.high for bar in bars), 0.1))
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Top-1 test error in %, with 95 % CI", loc="left", size=11, color=canvas.INK)


def _times(axes: "Axes", bars: Sequence[Bar]) -> None:
    """Error against milliseconds an image where they were measured, else against the time of learning."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    measured = all(bar.milliseconds > 0 for bar in bars)
    for number, bar in enumerate(bars, 1):
        at = bar.milliseconds if measured else max(bar.seconds, 1e-3)
        axes.plot([at], [bar.error], "s" if bar.classical else "o", color=_color(bar), markersize=7, zorder=3)
        axes.annotate(str(number), (at, bar.error), xytext=(6, 4), textcoords="offset points", size=9, color=canvas.INK)
    axes.set_xscale("log")
    axes.margins(0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.set_ylim(bottom=0, top=max(1.1 * max(bar.error for bar in bars), 0.1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    what = "milliseconds per image, batch size 1" if measured else "seconds of training"
    axes.set_xlabel(f"{what}\nnumbers: rows on the left; squares: classical methods", size=9, color=canvas.GRAY)
    axes.set_title("Error in % against time", loc="left", size=11, color=canvas.INK)
