"""A claim of the paper: training error by epoch, and the measured values, one dot per seed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alexnet.errors import DataError
from alexnet.formatting import shorten
from alexnet.plots import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The paper's way is blue and solid, as ReLU is solid in its Figure 1; what leaves something out is dashed.
STYLES = ((canvas.BLUE, "-"), (canvas.VERMILION, "--"), (canvas.GREEN, "-."), (canvas.SKY, ":"))


class Line(NamedTuple):
    """One training: its network's name, training error in percent by epoch, and the number of its style."""

    label: str
    errors: Sequence[float]
    style: int


class Bar(NamedTuple):
    """What was measured of one thing, a value a seed."""

    label: str
    values: Sequence[float]


def draw(
    title: str, subtitle: str, lines: Sequence[Line], level: float, bars: Sequence[Bar], measured: str, path: Path
) -> Path:
    """Draw to a PNG at ``path``; ``level`` (percent) is marked in the curves unless it is 0. Raises DataError."""
    return canvas.save(figure(title, subtitle, lines, level, bars, measured), path)


def figure(
    title: str, subtitle: str, lines: Sequence[Line], level: float, bars: Sequence[Bar], measured: str
) -> "Figure":
    """The figure, before it is saved."""
    if not lines or not bars:
        raise DataError("a claim without trainings can not be drawn", "at least one of each network")
    fig = canvas.new_figure(11, 2.9 + 0.42 * max(len(bars), 3))
    left, right = fig.subplots(1, 2, width_ratios=[1.25, 1])
    _curves(canvas.plain(left), lines, level)
    _bars(canvas.plain(right), bars, measured)
    fig.suptitle(title, x=0.01, ha="left", size=14, color=canvas.INK)
    fig.supxlabel(subtitle, x=0.01, ha="left", size=9, color=canvas.GRAY)
    return fig


def _curves(axes: "Axes", lines: Sequence[Line], level: float) -> None:
    from matplotlib.ticker import MaxNLocator

    seen: set[str] = set()
    for line in lines:
        color, dashes = STYLES[line.style % len(STYLES)]
        label = "" if line.label in seen else line.label
        seen.add(line.label)
        few = {"marker": "o", "markersize": 3.5} if len(line.errors) <= 15 else {}
        epochs = range(1, len(line.errors) + 1)
        axes.plot(epochs, line.errors, dashes, color=color, linewidth=1.6, alpha=0.85, label=label, **few)  # type: ignore[arg-type]
    if level:
        axes.axhline(level, color=canvas.GRAY, linewidth=1)
        axes.annotate(
            f"{level:g} %",
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            ha="right",
            textcoords="offset points",
            size=9,
            color=canvas.GRAY,
        )
    axes.set_title("Training error in %", loc="left", size=11, color=canvas.INK)
    axes.set_xlabel("epoch", size=9, color=canvas.GRAY)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_ylim(0, min(100, 1.05 * max(max(line.errors) for line in lines)) or 1)
    axes.legend(frameon=False, fontsize=9, labelcolor=canvas.INK, loc="best", handlelength=2.6)


def _bars(axes: "Axes", bars: Sequence[Bar], measured: str) -> None:
    """Horizontal bars to the mean, a dot a seed on them, the mean written at the end."""
    longest = max(max(bar.values, default=0.0) for bar in bars) or 1.0
    for row, bar in enumerate(bars):
        values = [value for value in bar.values if math.isfinite(value)]
        if not values:
            continue
        mean = sum(values) / len(values)
        axes.barh(row, mean, height=0.55, color=canvas.PALE, zorder=1)
        axes.plot(values, [row] * len(values), "o", color=canvas.BLUE, markersize=5, alpha=0.8, zorder=3)
        end = max(*values, mean)
        axes.annotate(
            f"{mean:.2f}",
            (end, row),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            size=10,
            color=canvas.INK,
        )
    axes.set_yticks(range(len(bars)), [shorten(bar.label, 28) for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * longest)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(measured, loc="left", size=11, color=canvas.INK)
    axes.set_xlabel("bar: mean; dots: seeds", size=9, color=canvas.GRAY)
