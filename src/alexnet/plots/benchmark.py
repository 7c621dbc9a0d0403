"""Throughput of each candidate of a benchmark, as bars."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alexnet.formatting import shorten
from alexnet.plots.canvas import BLUE, GRAY, INK, new_figure, plain, save


class Bars(NamedTuple):
    """One group: its name, and (name, images per second, half of the spread, is this package) of each candidate."""

    name: str
    bars: Sequence[tuple[str, float, float, bool]]


def draw_bench(groups: Sequence[Bars], title: str, path: Path) -> Path:
    """Draw one panel per group, fastest first, as a PNG at ``path``."""
    from matplotlib.ticker import MaxNLocator

    heights = [0.34 * len(group.bars) + 0.75 for group in groups]
    figure = new_figure(9.0, sum(heights) + 0.6)
    grid = figure.add_gridspec(len(groups), 1, height_ratios=heights)
    figure.suptitle(shorten(title, 100), fontsize=11, color=INK)
    for row, group in enumerate(groups):
        axes = plain(figure.add_subplot(grid[row, 0]))
        bars = sorted(group.bars, key=lambda bar: bar[1])
        rates = [rate for _, rate, _, _ in bars]
        drawn = axes.barh(
            [shorten(name, 44) for name, *_ in bars],
            rates,
            xerr=[spread for _, _, spread, _ in bars],
            color=[BLUE if ours else GRAY for *_, ours in bars],
            ecolor=INK,
            height=0.66,
        )
        axes.bar_label(
            drawn, [f" {rate:,.0f}" if rate >= 10 else f" {rate:.2g}" for rate in rates], fontsize=8, color=INK
        )
        axes.set_title(f"{group.name}: images per second", loc="left", fontsize=10, color=INK)
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, max(rate + spread for _, rate, spread, _ in bars) * 1.15)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    return save(figure, path)
