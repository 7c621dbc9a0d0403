"""Plots of studies and benchmarks: throughput, claims, compression, contest, networks of increasing depth."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alexnet.errors import DataError
from alexnet.evaluation.intervals import Estimate
from alexnet.plots import canvas
from alexnet.plots.canvas import BLUE, GRAY, INK, new_figure, plain, save
from alexnet.terminal import shorten


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


class ClaimBar(NamedTuple):
    """What was measured of one thing, a value a seed."""

    label: str
    values: Sequence[float]


def draw_claims(
    title: str, subtitle: str, lines: Sequence[Line], level: float, bars: Sequence[ClaimBar], measured: str, path: Path
) -> Path:
    """Draw to a PNG at ``path``; ``level`` (percent) is marked in the curves unless it is 0. Raises DataError."""
    return canvas.save(claims_figure(title, subtitle, lines, level, bars, measured), path)


def claims_figure(
    title: str, subtitle: str, lines: Sequence[Line], level: float, bars: Sequence[ClaimBar], measured: str
) -> "Figure":
    """The figure, before it is saved."""
    if not lines or not bars:
        raise DataError("a claim without trainings cannot be drawn", "at least one of each network")
    fig = canvas.new_figure(11, 2.9 + 0.42 * max(len(bars), 3))
    left, right = fig.subplots(1, 2, width_ratios=[1.25, 1])
    _curves(canvas.plain(left), lines, level)
    _bars(canvas.plain(right), bars, measured)
    canvas.headings(fig, title, subtitle)
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


def _bars(axes: "Axes", bars: Sequence[ClaimBar], measured: str) -> None:
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


Row = tuple[str, int, float | None, tuple[float, float] | None]  # stage, bytes, validation top-1, its interval


def draw_compression(rows: Sequence[Row], path: Path | str) -> Path:
    """Draw the stages to a PNG. Raises DataError where there are none."""
    return canvas.save(compression_figure(rows), path)


def compression_figure(rows: Sequence[Row]) -> "Figure":
    """The figure, before it is saved: bytes of the weights as bars, logarithmic; accuracy below, where known."""
    if not rows:
        raise DataError("a compression without stages cannot be drawn", "at least one stage")
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


class ContestBar(NamedTuple):
    """A contestant: top-1 error and its interval in percent, milliseconds an image (0: not measured), seconds of
    learning, and whether it is no network."""

    label: str
    error: float
    low: float
    high: float
    milliseconds: float
    seconds: float
    classical: bool


def draw_contest(title: str, subtitle: str, bars: Sequence[ContestBar], path: Path) -> Path:
    """Draw to a PNG at ``path``. Raises DataError."""
    return canvas.save(contest_figure(title, subtitle, bars), path)


def contest_figure(title: str, subtitle: str, bars: Sequence[ContestBar]) -> "Figure":
    """The figure, before it is saved."""
    if not bars:
        raise DataError("a contest without contestants cannot be drawn", "at least one")
    fig = canvas.new_figure(11.5, 1.9 + 0.45 * max(len(bars), 5))
    left, right = fig.subplots(1, 2, width_ratios=[1.35, 1])
    _errors(canvas.plain(left), bars)
    _times(canvas.plain(right), bars)
    canvas.headings(fig, title, subtitle)
    return fig


def _color(bar: ContestBar) -> str:
    return canvas.VERMILION if bar.classical else canvas.BLUE


def _errors(axes: "Axes", bars: Sequence[ContestBar]) -> None:
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


def _times(axes: "Axes", bars: Sequence[ContestBar]) -> None:
    """Error against milliseconds an image where they were measured, else against the time of learning."""
    measured = all(bar.milliseconds > 0 for bar in bars)
    for number, bar in enumerate(bars, 1):
        at = bar.milliseconds if measured else max(bar.seconds, 1e-3)
        axes.plot([at], [bar.error], "s" if bar.classical else "o", color=_color(bar), markersize=7, zorder=3)
        axes.annotate(str(number), (at, bar.error), xytext=(6, 4), textcoords="offset points", size=9, color=canvas.INK)
    axes.margins(0.12)
    _log_axis(axes)
    axes.set_ylim(bottom=0, top=max(1.1 * max(bar.error for bar in bars), 0.1))
    what = "milliseconds per image, batch size 1" if measured else "seconds of training"
    axes.set_xlabel(f"{what}\nnumbers: rows on the left; squares: classical methods", size=9, color=canvas.GRAY)
    axes.set_title("Error in % against time", loc="left", size=11, color=canvas.INK)


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


def draw_depth(title: str, subtitle: str, points: Sequence[Point], curves: Sequence[Curve], path: Path) -> Path:
    """Draw to a PNG at ``path``. Raises DataError."""
    return canvas.save(depth_figure(title, subtitle, points, curves), path)


def depth_figure(title: str, subtitle: str, points: Sequence[Point], curves: Sequence[Curve]) -> "Figure":
    """The figure, before it is saved."""
    if not points:
        raise DataError("a depth study without networks cannot be drawn", "at least one")
    fig = canvas.new_figure(11.5, 4.6)
    left, middle, right = fig.subplots(1, 3, width_ratios=[1.2, 1, 1])
    _depth_curves(canvas.plain(left), curves)
    top = 1.12 * max(*(e for p in points for e in (*p.training, *p.test)), 0.1)
    for axes, what in ((middle, "Training"), (right, "Test")):
        _by_depth(canvas.plain(axes), points, what, top)
    canvas.headings(fig, title, subtitle)
    return fig


def _style(residual: bool) -> tuple[str, str, str]:
    """Color, dashes, mark: told apart without color too."""
    return (canvas.BLUE, "-", "o") if residual else (canvas.VERMILION, "--", "s")


def _depth_curves(axes: "Axes", curves: Sequence[Curve]) -> None:
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


def draw_data_size(
    title: str,
    curves: Mapping[str, Sequence[tuple[int, float, float, float]]],
    crossings: Mapping[str, float],
    path: Path,
) -> Path:
    """Draw test accuracy by the number of training images to a PNG.

    Args:
        title: Title.
        curves: Method -> (images, accuracy, low, high), fractions.
        crossings: Method -> number of images from which it is better than Fisher vectors.
        path: The PNG file.
    """
    fig = canvas.new_figure(7.6, 4.8)
    axes = canvas.plain(fig.subplots())
    for (label, rows), (color, dashes) in zip(curves.items(), STYLES, strict=False):
        if not rows:
            continue
        x, y = [row[0] for row in rows], [100 * row[1] for row in rows]
        axes.plot(x, y, dashes, marker="o", markersize=4, color=color, linewidth=1.8, label=label)
        axes.fill_between(
            x, [100 * row[2] for row in rows], [100 * row[3] for row in rows], color=color, alpha=0.13, linewidth=0
        )
        if label in crossings:
            axes.axvline(crossings[label], color=color, linewidth=1, linestyle=":")
    sizes = sorted({row[0] for rows in curves.values() for row in rows})
    axes.set_xscale("log")
    near = any(after < 1.6 * before for before, after in itertools.pairwise(sizes))  # their numbers would touch
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=90 if near or len(sizes) > 8 else 0)
    axes.minorticks_off()
    axes.set_xlabel("training images", size=10, color=canvas.INK)
    axes.set_ylabel("test accuracy in % (95 % CI)", size=10, color=canvas.INK)
    axes.set_title(shorten(title, 80), size=11, color=canvas.INK)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return canvas.save(fig, path)


def draw_probes(title: str, rows: Sequence[tuple[str, Estimate, Estimate]], path: Path) -> Path:
    """Draw the test accuracy of linear probes by layer to a PNG: rows of (layer, trained, random weights)."""
    fig = canvas.new_figure(7.6, 4.4)
    axes = canvas.plain(fig.subplots())
    for k, (label, (color, dashes)) in enumerate(zip(("trained weights", "random weights"), STYLES, strict=False), 1):
        values: list[Estimate] = [row[k] for row in rows]  # type: ignore[misc]
        y = [100 * one.value for one in values]
        axes.plot(range(len(rows)), y, dashes, marker="o", markersize=4, color=color, linewidth=1.8, label=label)
        low, high = [100 * one.low for one in values], [100 * one.high for one in values]
        axes.fill_between(range(len(rows)), low, high, color=color, alpha=0.13, linewidth=0)
    names = [shorten(row[0], 24) for row in rows]
    axes.set_xticks(range(len(rows)), names, rotation=90 if sum(map(len, names)) > 70 else 0)
    axes.set_ylim(0, 100)
    axes.set_xlabel("layer", size=10, color=canvas.INK)
    axes.set_ylabel("test accuracy in % (95 % CI)", size=10, color=canvas.INK)
    axes.set_title("\n".join(canvas.wrap(title, 7, 10)), size=10, color=canvas.INK)
    axes.legend(frameon=False, fontsize=9)
    return canvas.save(fig, path)


def draw_gradients(
    title: str, curves: Sequence[tuple[str, Sequence[tuple[str, float, float | None]]]], path: Path
) -> Path:
    """Draw gradients and slopes by layer to a PNG: (network and time, [(layer, relative gradient, slope)])."""
    fig = canvas.new_figure(12.5, 4.4)
    panels = (("norm of the gradient / norm of the weights", 1), ("mean slope of the units", 2))
    for axes, (label, column) in zip(fig.subplots(1, 2), panels, strict=True):
        canvas.plain(axes)
        for k, (name, rows) in enumerate(curves):
            color = STYLES[k // 2 % len(STYLES)][0]
            own = [(row[0], float(row[column])) for row in rows if row[column] is not None]  # type: ignore[arg-type]
            axes.plot(
                range(len(own)),
                [value for _, value in own],
                "-" if k % 2 else ":",
                marker="o",
                markersize=4,
                color=color,
                linewidth=1.8,
                label=name,
            )
            axes.set_xticks(range(len(own)), [shorten(layer, 12) for layer, _ in own])
        axes.set_title(label, loc="left", size=10, color=canvas.INK)
        if column == 1:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(0, 1)
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, labelcolor=canvas.INK)
    canvas.headings(fig, title, "mean loss of training images, no dropout; dotted before training, solid after it")
    return canvas.save(fig, path)


class SweepTrial(NamedTuple):
    """A trial of a sweep: its number, validation error, whether it was pruned, and its values."""

    number: int
    error: float
    pruned: bool
    values: Mapping[str, object]


MAX_SLICES = 4  # hyperparameters that are drawn


def draw_sweep(
    title: str,
    trials: Sequence[SweepTrial],
    finals: Sequence[tuple[str, Sequence[float]]],
    log: Collection[str],
    path: Path,
) -> Path:
    """Draw the errors of the trials, by number and by hyperparameter, and those of the finals to a PNG.

    Args:
        title: Title.
        trials: All trials.
        finals: (name, validation error for each seed), the winner first.
        log: Hyperparameters with a logarithmic axis.
        path: The PNG file.
    """
    from matplotlib.ticker import MaxNLocator

    names = list(trials[0].values)[:MAX_SLICES]
    fig = canvas.new_figure(11, 7)
    upper, lower = fig.subfigures(2, 1, squeeze=False)[:, 0]
    history, last = map(canvas.plain, upper.subplots(1, 2, width_ratios=[1.4, 1]))
    whole = [trial for trial in trials if not trial.pruned]
    _sweep_marks(history, [(trial.number, trial) for trial in trials])
    best = [min(t.error for t in whole if t.number <= trial.number) for trial in whole]
    history.step(
        [t.number for t in whole], [100 * error for error in best], where="post", color=INK, label="lowest so far"
    )
    history.set_title("Validation error in % by trial", loc="left", size=11, color=INK)
    history.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    history.legend(frameon=False, fontsize=9)
    for row, (name, errors) in enumerate(finals):
        values = [100 * error for error in errors]
        last.barh(row, sum(values) / len(values), height=0.55, color=canvas.PALE)
        last.plot(values, [row] * len(values), "o", color=BLUE, markersize=5, alpha=0.8, label=name)
    last.set_yticks(range(len(finals)), [name for name, _ in finals])
    last.invert_yaxis()
    last.grid(visible=False)
    last.set_xlabel("bar: mean; dots: seeds; the winner is on top", size=9, color=GRAY)
    last.set_title("Validation error in % of the best, other seeds", loc="left", size=11, color=INK)
    slices = lower.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for column, (name, axes) in enumerate(zip(names, map(canvas.plain, slices), strict=True)):
        points = [(trial.values[name], trial) for trial in trials]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value, _ in points):
            _sweep_marks(axes, points)
            numbers = sorted({float(value) for value, _ in points})  # type: ignore[arg-type]
            if name in log:
                _log_axis(axes)
            elif len(numbers) <= 5:
                axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
        else:
            labels = sorted({str(value) for value, _ in points})
            _sweep_marks(axes, [(labels.index(str(value)), trial) for value, trial in points])
            axes.set_xticks(range(len(labels)), [shorten(label, 16) for label in labels])
        axes.set_xlabel(name, size=10, color=INK)
        if not column:
            axes.set_ylabel("validation error in %", size=9, color=GRAY)
    fig.suptitle(shorten(title, 80), x=0.01, ha="left", size=14, color=INK)
    return canvas.save(fig, path)


def _sweep_marks(axes: "Axes", points: Sequence[tuple[object, SweepTrial]]) -> None:
    """A dot for each finished trial, a cross for each pruned one."""
    for pruned, mark, color, label in ((False, "o", BLUE, "finished"), (True, "x", GRAY, "pruned")):
        chosen = [(x, 100 * trial.error) for x, trial in points if trial.pruned is pruned]
        if chosen:
            axes.plot([x for x, _ in chosen], [y for _, y in chosen], mark, color=color, markersize=5, label=label)  # type: ignore[arg-type]
    axes.set_ylim(bottom=0)


def _log_axis(axes: "Axes") -> None:
    """A logarithmic axis with plain numbers: text is never parsed as a formula.

    It stays linear for values within a factor of 4, where a logarithmic one has no round number.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.dataLim.intervalx
    if not 0 < 4 * low < high:
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def draw_lr_find(
    title: str,
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float,
    path: Path,
) -> Path:
    """Draw the loss of each step, and its moving average, over the learning rate to a PNG; mark the suggestion."""
    return canvas.save(lr_find_figure(title, rates, losses, smoothed, suggestion), path)


def lr_find_figure(
    title: str, rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggestion: float
) -> "Figure":
    """The figure, before it is saved."""
    fig = canvas.new_figure(7.6, 4.6)
    axes = canvas.plain(fig.subplots())
    axes.plot(rates, losses, color=canvas.SKY, linewidth=0.9, alpha=0.8, label="loss of a step")
    axes.plot(rates, smoothed, color=BLUE, linewidth=2, label="moving average")
    axes.axvline(
        suggestion, color=canvas.VERMILION, linewidth=1.2, linestyle="--", label=f"suggested: {suggestion:.2g}"
    )
    _log_axis(axes)
    axes.set_ylim(0.9 * min(losses), min(max(losses), 1.25 * max(smoothed[: max(1, len(smoothed) // 2)])))
    axes.set_xlabel("learning rate", size=10, color=INK)
    axes.set_ylabel("training loss", size=10, color=INK)
    axes.set_title("\n".join(canvas.wrap(title, 7, 10)), size=11, color=INK)
    axes.legend(frameon=False, fontsize=9)
    return fig
