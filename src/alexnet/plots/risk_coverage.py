"""The risk-coverage curve: error of the predictions above a threshold, against their fraction."""

from pathlib import Path
from typing import TYPE_CHECKING

from alexnet.evaluation.calibration import RiskCoverage, SelectiveMetrics
from alexnet.plots import canvas

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure


def draw(curve: RiskCoverage, marked: "Sequence[SelectiveMetrics]", path: Path | str) -> Path:
    """Draw the curve to a PNG, with a point for each threshold in ``marked``."""
    return canvas.save(figure(curve, marked), path)


def figure(curve: RiskCoverage, marked: "Sequence[SelectiveMetrics]") -> "Figure":
    """The figure, before it is saved."""
    fig = canvas.new_figure(6.2, 4.6)
    axes = canvas.plain(fig.subplots())
    x, y = [100 * c for c in curve.coverage], [100 * r for r in curve.risk]
    axes.step(x, y, where="post", color=canvas.BLUE, linewidth=1.8)
    for one in marked:
        if one.answered:
            point = (100 * one.coverage, 100 * one.error)
            axes.plot(*point, "o", color=canvas.VERMILION, markersize=6)
            axes.annotate(f"p ≥ {one.threshold:.2f}", point, xytext=(6, -12), textcoords="offset points", size=8)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, max(1.0, 1.1 * max(y[len(y) // 50 :])))
    axes.set_xlabel("coverage, % of the images", color=canvas.INK)
    axes.set_ylabel("error, % of the covered images", color=canvas.INK)
    axes.set_title("Risk-coverage curve: error without the least confident predictions", size=11, color=canvas.INK)
    return fig
