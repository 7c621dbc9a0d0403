"""Plots of an evaluation: confusion matrix, reliability, risk-coverage, ROC and precision-recall, corruptions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError
from alexnet.evaluation.calibration import Bin, RiskCoverage, SelectiveMetrics
from alexnet.evaluation.corruptions import CORRUPTIONS, CorruptionErrors
from alexnet.evaluation.one_vs_rest import GRID, Curves
from alexnet.plots import canvas
from alexnet.terminal import interval, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

NUMBERS = 20  # classes up to which cells hold numbers
NAMES = 40  # class names an axis has room for
ROOM, COLUMNS = 1.7, 22  # inches and columns for a class name
LARGEST = 3000  # pixels of the heat map's side at most, and cells: with more classes a cell is of several


def draw_confusion(matrix: NDArray[np.integer[Any]], classes: list[str], path: Path | str) -> Path:
    """Draw counts [K, K], true classes in rows and predicted ones in columns, to a PNG. Raises DataError."""
    return canvas.save(confusion_figure(matrix, classes), path)


def confusion_figure(matrix: NDArray[np.integer[Any]], classes: list[str]) -> "Figure":
    """The figure, before it is saved."""
    _check(matrix, classes)
    side = _inches(len(classes))
    fig = canvas.new_figure(side + 2, side + 2)
    axes = fig.subplots()
    joined = -(-len(classes) // LARGEST)  # classes of a cell, in each direction
    image = _heat(axes, shares(_sums(matrix, joined)), joined)
    if len(classes) <= NUMBERS:
        _numbers(axes, matrix)
    else:
        _scale(fig, axes, image)
    _names(axes, classes, side)
    title = _title(matrix) + (f"\na cell is of {joined} × {joined} classes" if joined > 1 else "")
    axes.set_title(title, size=12, color=canvas.INK, pad=12, linespacing=1.4)
    return fig


def _sums(matrix: NDArray[np.integer[Any]], joined: int) -> NDArray[np.integer[Any]]:
    """The sums over blocks of ``joined`` rows and columns."""
    starts = np.arange(0, len(matrix), joined)
    return np.asarray(np.add.reduceat(np.add.reduceat(matrix, starts, 0), starts, 1))


def shares(matrix: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Counts [K, K] -> each row in percent of its true class; a class without images stays 0."""
    totals = matrix.sum(axis=1, keepdims=True)
    percent: NDArray[np.float64] = 100 * matrix / np.maximum(totals, 1)
    return percent


def tick_step(classes: int) -> int:
    """The step between named classes (1, 2, 5, 10, 20, 50, ...), so that at most 40 are named."""
    power = 1
    while True:
        for step in (power, 2 * power, 5 * power):
            if classes <= NAMES * step:
                return step
        power *= 10


def _inches(classes: int) -> float:
    if classes <= NUMBERS:
        return max(3.0, 0.62 * classes)
    return max(8.0, min(LARGEST, classes) / canvas.DPI)


def _heat(axes: "Axes", percent: NDArray[np.float64], joined: int) -> "AxesImage":
    from matplotlib.colors import PowerNorm

    # The square root: among a hundred classes a mistake of 1 % must still be seen beside 90 % on the diagonal.
    end = joined * len(percent) - 0.5  # one unit for each class
    image = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=100), extent=(-0.5, end, end, -0.5))
    axes.spines[:].set_color(canvas.PALE)
    if len(percent) <= NUMBERS:
        axes.set_xticks(np.arange(1, len(percent)) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, len(percent)) - 0.5, minor=True)
        axes.grid(which="minor", color=canvas.PAPER, linewidth=1.5)
    axes.tick_params(which="both", length=0)
    return image


def _numbers(axes: "Axes", matrix: NDArray[np.integer[Any]]) -> None:
    """Count and row percent in every cell that has images; an empty cell stays empty."""
    percent = shares(matrix)
    for row, column in np.argwhere(matrix):
        share = percent[row, column]
        color = canvas.PAPER if share > 40 else canvas.INK
        for words, size, up in ((f"{matrix[row, column]}", 10, 5), (f"{share:.1f} %", 7, -8)):
            axes.annotate(
                words,
                (float(column), float(row)),
                xytext=(0, up),
                textcoords="offset points",
                ha="center",
                va="center",
                size=size,
                color=color,
            )


def _names(axes: "Axes", classes: list[str], side: float) -> None:
    step = tick_step(len(classes))
    places = range(0, len(classes), step)
    axes.set_yticks(places, canvas.short_names([classes[place] for place in places], COLUMNS), size=9)
    labels = axes.get_yticklabels()
    widest = max(canvas.fit(label, ROOM) for label in labels)
    names = [label.get_text() for label in labels]
    axes.set_yticks(places, names, size=9, color=canvas.INK)
    axes.set_xticks(places, names, size=9, color=canvas.INK, rotation=0 if widest < 0.85 * side / len(names) else 90)
    some = "" if step == 1 else f" (every {step}th is named)"
    axes.set_xlabel(f"predicted class{some}", size=10, color=canvas.GRAY, labelpad=8)
    axes.set_ylabel(f"true class{some}", size=10, color=canvas.GRAY, labelpad=8)


def _title(matrix: NDArray[np.integer[Any]]) -> str:
    correct, total = int(np.trace(matrix)), int(matrix.sum())
    accuracy = 100 * correct / total
    return f"Accuracy {accuracy:.2f} %, error {100 - accuracy:.2f} %\n{correct:,} of {total:,} images"


def _scale(fig: "Figure", axes: "Axes", image: "AxesImage") -> None:
    bar = fig.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.03, ticks=[0, 1, 10, 25, 50, 75, 100])
    bar.set_label("% of the true class", size=9, color=canvas.GRAY)
    bar.ax.tick_params(labelsize=8, length=2, colors=canvas.GRAY)
    bar.outline.set_visible(False)


def _check(matrix: NDArray[np.integer[Any]], classes: list[str]) -> None:
    size = len(classes)
    if matrix.shape != (size, size) or size == 0:
        raise DataError(f"a confusion matrix has the shape {list(matrix.shape)}", f"[{size}, {size}], one row a class")
    if not np.issubdtype(matrix.dtype, np.integer) or matrix.min() < 0:
        raise DataError(f"a confusion matrix of {matrix.dtype}, lowest {matrix.min()}", "counts: integers from 0 on")
    if not matrix.any():
        raise DataError("a confusion matrix without images", todo="evaluate a split that has some")


def draw_reliability(bins: Sequence[Bin], path: Path | str) -> Path:
    """Draw a reliability diagram to a PNG. Raises DataError where no bin has an image."""
    return canvas.save(reliability_figure(bins), path)


def reliability_figure(bins: Sequence[Bin]) -> "Figure":
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


def draw_risk_coverage(curve: RiskCoverage, marked: Sequence[SelectiveMetrics], path: Path | str) -> Path:
    """Draw the curve to a PNG, with a point for each threshold in ``marked``."""
    return canvas.save(risk_coverage_figure(curve, marked), path)


def risk_coverage_figure(curve: RiskCoverage, marked: Sequence[SelectiveMetrics]) -> "Figure":
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


def draw_roc(chosen: Sequence[Curves], path: Path | str, classes: int = 2) -> Path:
    """Draw the ROC and precision-recall curves of some of ``classes`` classes to a PNG. Raises DataError for none."""
    return canvas.save(roc_figure(chosen, classes), path)


def roc_figure(chosen: Sequence[Curves], classes: int = 2) -> "Figure":
    """The figure, before it is saved."""
    if not chosen:
        raise DataError("ROC curves of no class", "a class with images, and images of other classes")
    fig = canvas.new_figure(9.6, 4.9 + 0.18 * len(chosen))
    colors = (canvas.BLUE, canvas.VERMILION, canvas.GREEN, canvas.SKY)
    panels: list[Axes] = [canvas.plain(axes) for axes in fig.subplots(1, 2)]
    names = canvas.short_names([one.name for one in chosen], 24)
    for one, class_name, color in zip(chosen, names, colors, strict=False):
        for axes, curve, name in ((panels[0], one.roc, "AUROC"), (panels[1], one.precision_recall, "AP")):
            area = curve.area
            label = f"{class_name}: {name} {100 * area.value:.1f} % ({interval(area.low, area.high)})"
            low, high = (100 * np.array(side) for side in (curve.low, curve.high))
            axes.fill_between(100 * GRID, low, high, color=color, alpha=0.15, linewidth=0, step="post")
            axes.plot([100 * x for x in curve.x], [100 * y for y in curve.y], color=color, linewidth=1.7, label=label)
        own = color if len(chosen) > 1 else canvas.GRAY
        panels[1].axhline(100 * one.prevalence, color=own, linewidth=1, linestyle="--")
    roc, precision = panels
    roc.plot([0, 100], [0, 100], color=canvas.GRAY, linewidth=1, linestyle="--")
    roc.set_xlabel("false positive rate (1 − specificity), %", color=canvas.INK)
    roc.set_ylabel("sensitivity (recall), %", color=canvas.INK)
    roc.set_title("ROC: class against the rest", size=11, color=canvas.INK)
    precision.set_xlabel("recall (sensitivity), %", color=canvas.INK)
    precision.set_ylabel("precision (PPV), %", color=canvas.INK)
    precision.set_title("Precision and recall", size=11, color=canvas.INK)
    for axes in panels:
        axes.set_xlim(-1, 101)
        axes.set_ylim(-1, 102)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8, frameon=False)
    some = f"the {len(chosen)} of {classes} classes with the lowest AUROC; " if classes > max(2, len(chosen)) else ""
    fig.supxlabel(f"{some}band: pointwise 95 % CI; dashed: chance", size=8, color=canvas.GRAY)
    return fig


def draw_corruptions(results: Mapping[str, CorruptionErrors], path: Path | str) -> Path:
    """Draw the error of each classifier (by name, at most three) by corruption and severity, to a PNG."""
    return canvas.save(corruptions_figure(results), path)


def corruptions_figure(results: Mapping[str, CorruptionErrors]) -> "Figure":
    """The figure, before it is saved: a panel for each corruption; severity 0 is the clean image."""
    fig = canvas.new_figure(10.5, 6.6)
    panels = fig.subplots(3, 5, sharex=True, sharey=True)
    colors = (canvas.BLUE, canvas.GRAY, canvas.VERMILION)
    for k, (name, corruption) in enumerate(CORRUPTIONS.items()):
        axes = canvas.plain(panels[k // 5, k % 5])
        for (label, result), color in zip(results.items(), colors, strict=False):
            errors = [100 * float(result.clean.mean()), *(100 * result.by_corruption()[k])]
            axes.plot(range(6), errors, "o-", color=color, linewidth=1.6, markersize=3.5, label=shorten(label, 40))
        axes.set_title(f"{name.replace('_', ' ')} ({corruption.group})", size=9, color=canvas.INK)
        axes.set_ylim(0, 102)
        axes.set_xticks(range(6), ["clean", *"12345"])
    panels[1, 0].set_ylabel("top-1 error in %", size=9, color=canvas.INK)
    panels[2, 2].set_xlabel("severity", size=9, color=canvas.INK)
    count = len(next(iter(results.values())).clean)
    fig.suptitle(f"Error under 15 corruptions, {count} images", size=12, color=canvas.INK)
    if len(results) > 1:
        fig.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return fig
