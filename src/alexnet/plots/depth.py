"""Plain and residual networks of increasing depth: training error by epoch, training and test error by depth."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alexnet.errors import DataError
from alexnet.plots import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """A network: its layers, whether it has shortcuts, its errors in percent, a value a seed."""

    depth: int
    residual: bool
    training: Sequence[float]
    test: Sequence[float]


class Curve(NamedTuple):
    """One training: training error in percent by epoch."""

    depth: int
    residual: bool
    errors: Sequence[float]


def draw(title: str, subtitle: str, points: Sequence[Point], curves: Sequence[Curve], path: Path) -> Path:
    """Draw to a PNG at ``path``. Raises DataError."""
    return canvas.save(figure(title, subtitle, points, curves), path)


def figure(title: str, subtitle: str, points: Sequence[Point], curves: Sequence[Curve]) -> "Figure":
    """The figure, before it is saved."""
    if not points:
        raise DataError("a depth study without networks can not be drawn", "at least one")
    fig = canvas.new_figure(11.5, 4.6)
    left, middle, right = fig.subplots(1, 3, width_ratios=[1.2, 1, 1])
    _curves(canvas.plain(left), curves)
    top = 1.12 * max(*(e for p in points for e in (*p.training, *p.test)), 0.1)
    for axes, what in ((middle, "Training"), (right, "Test")):
        _by_depth(canvas.plain(axes), points, what, top)
    fig.suptitle(title, x=0.01, ha="left", size=14, color=canvas.INK)
    fig.supxlabel(subtitle, x=0.01, ha="left", size=9, color=canvas.GRAY)
    return fig


def _style(residual: bool) -> tuple[str, str, str]:
    """Color, dashes, mark: told apart without color too."""
    return (canvas.BLUE, "-", "o") if residual else (canvas.VERMILION, "--", "s")


def _curves(axes: "Axes", curves: Sequence[Curve]) -> None:
    """As in figure 6 of the paper: thin lines for the shallow, thick for the deep."""
    from matplotlib.ticker import MaxNLocator

    depths = sorted({curve.depth for curve in curves})
    for curve in curves:
        color, dashes, _ = _style(curve.residual)
        width = 0.8 + 2.0 * depths.index(curve.depth) / max(len(depths) - 1, 1)
        epochs = range(1, len(curve.errors) + 1)
        axes.plot(epochs, curve.errors, dashes, color=color, linewidth=width, alpha=0.85)
        axes.annotate(
            str(curve.depth),
            (len(curve.errors), curve.errors[-1]),
            xytext=(3, 0),
            va="center",
            textcoords="offset points",
            size=8,
            color=color,
        )
    axes.set_title("Training error in %, seed 0", loc="left", size=11, color=canvas.INK)
    axes.set_xlabel("epoch; numbers: layers; thick lines: deep networks", size=9, color=canvas.GRAY)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_ylim(bottom=0)


def _by_depth(axes: "Axes", points: Sequence[Point], what: str, top: float) -> None:
    for residual in (False, True):
        color, dashes, mark = _style(residual)
        mine = sorted((p for p in points if p.residual is residual), key=lambda p: p.depth)
        errors = [p.training if what == "Training" else p.test for p in mine]
        means = [sum(values) / len(values) for values in errors]
        depths = [p.depth for p in mine]
        axes.plot(depths, means, dashes, color=color, linewidth=1.8, label="residual" if residual else "plain")
        for depth, values in zip(depths, errors, strict=True):
            axes.plot([depth] * len(values), values, mark, color=color, markersize=5, alpha=0.7)
    axes.set_title(f"{what} error in %", loc="left", size=11, color=canvas.INK)
    axes.set_xlabel("layers; line: mean; marks: seeds", size=9, color=canvas.GRAY)
    axes.set_xticks(sorted({p.depth for p in points}))
    axes.set_ylim(0, top)
    axes.legend(frameon=False, fontsize=9, labelcolor=canvas.INK, loc="best", handlelength=2.6)
