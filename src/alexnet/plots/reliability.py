"""The reliability diagram: accuracy against probability, and the number of images in each bin."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet.errors import DataError
from alexnet.evaluation.calibration import Bin
from alexnet.plots import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(bins: Sequence[Bin], path: Path | str) -> Path:
    """Draw a reliability diagram to a PNG. Raises DataError where no bin has an image."""
    return canvas.save(figure(bins), path)


def figure(bins: Sequence[Bin]) -> "Figure":
    """The figure, before it is saved."""
    full = [one for one in bins if one.count]
    if not full:
        raise DataError("a reliability diagram of no images", "one image at least")
    fig = canvas.new_figure(6.2, 6.0)
    axes, below = fig.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    for plot in (axes, below):
        canvas.plain(plot)
    axes.plot([0, 100], [0, 100], color=canvas.GRAY, linewidth=1, linestyle="--")
    axes.annotate("perfectly calibrated", (28, 31), size=8, color=canvas.GRAY, rotation=42, ha="center")
    x, y = [100 * one.confidence for one in full], [100 * one.accuracy for one in full]
    reach = [
        [100 * max(0.0, one.accuracy - one.accuracy_low) for one in full],
        [100 * max(0.0, one.accuracy_high - one.accuracy) for one in full],
    ]
    axes.errorbar(
        x, y, yerr=reach, fmt="o", color=canvas.BLUE, ecolor=canvas.SKY, elinewidth=2, markersize=6, clip_on=False
    )
    axes.set_ylim(0, 102)
    axes.set_ylabel("accuracy, %", color=canvas.INK)
    axes.set_title("Reliability diagram (bars: 95 % CI)", size=11, color=canvas.INK)
    for one in full:
        below.bar(50 * (one.low + one.high), one.count, width=92 * (one.high - one.low), color=canvas.SKY)
    below.set_ylabel("images", color=canvas.INK)
    below.set_xlim(0, 100)
    below.set_xlabel("probability of the top-1 prediction, %", color=canvas.INK)
    return fig
