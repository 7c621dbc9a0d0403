"""Size and validation accuracy of a network after each stage of its compression."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet.errors import DataError
from alexnet.plots import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = tuple[str, int, float | None, tuple[float, float] | None]  # stage, bytes, validation top-1, its interval


def draw(rows: Sequence[Row], path: Path | str) -> Path:
    """Draw the stages to a PNG. Raises DataError where there are none."""
    return canvas.save(figure(rows), path)


def figure(rows: Sequence[Row]) -> "Figure":
    """The figure, before it is saved: bytes of the weights as bars, logarithmic; accuracy below, where known."""
    if not rows:
        raise DataError("a fig of no stages", "one stage at least")
    known = [(place, top1, reach) for place, (_, _, top1, reach) in enumerate(rows) if top1 is not None and reach]
    fig = canvas.new_figure(1.6 + 1.15 * len(rows), 5.6 if known else 3.6)
    plots = fig.subplots(2 if known else 1, 1, sharex=True, squeeze=False)[:, 0]
    sizes = canvas.plain(plots[0])
    for place, (_, size, _, _) in enumerate(rows):
        sizes.bar(place, size / 1e6, width=0.62, color=canvas.BLUE)
        text = f"{size / 1e6:.3g} MB\n{rows[0][1] / size:.3g} ×"
        sizes.annotate(text, (place, size / 1e6), xytext=(0, 3), textcoords="offset points", size=8, ha="center")
    sizes.set_yscale("log")
    sizes.minorticks_off()
    sizes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # 10 to a power would be a formula
    sizes.set_ylim(0.4 * min(row[1] for row in rows) / 1e6, 4 * max(row[1] for row in rows) / 1e6)
    sizes.set_ylabel("weights, MB", color=canvas.INK)
    sizes.set_title("Size and accuracy after each stage", size=11, color=canvas.INK)
    if known:
        below = canvas.plain(plots[1])
        for place, top1, (low, high) in known:
            reach = [[100 * (top1 - low)], [100 * (high - top1)]]
            below.errorbar([place], [100 * top1], yerr=reach, fmt="o", color=canvas.VERMILION, elinewidth=1.5)
            text = f"{100 * top1:.1f}"
            below.annotate(text, (place, 100 * top1), xytext=(7, -3), textcoords="offset points", size=8)
        below.set_ylabel("validation top-1, %\n(bars: 95 % CI)", color=canvas.INK)
    plots[-1].set_xticks(range(len(rows)), [row[0] for row in rows])
    plots[-1].set_xlim(-0.6, len(rows) - 0.4)
    return fig
