"""A map of pictures: what the network's last hidden layer says of them, brought to two dimensions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError
from alexnet.visualize import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's eight (the yellow darker), two more, and marks, so that no class is told by its color alone.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#222222", "#B3A000", "#8B5A2B", "#8A8A8A")
MARKS = "osD^vPX*<>"
NAMED = 40  # classes whose names the map has room for


def draw(
    points: NDArray[np.floating[Any]], labels: NDArray[np.int64], classes: Sequence[str], path: Path | str,
    title: str = "", note: str = "",
) -> Path:  # fmt: skip
    """Draw ``points`` [N, 2], each in the color and with the mark of its class, whose name stands at its middle."""
    return canvas.save(figure(points, labels, classes, title, note), path)


def figure(
    points: NDArray[np.floating[Any]], labels: NDArray[np.int64], classes: Sequence[str], title: str, note: str
) -> "Figure":
    """The drawing before it is written. Raises DataError."""
    if points.ndim != 2 or points.shape[1] != 2 or len(points) != len(labels) or not np.isfinite(points).all():
        raise DataError(f"points {list(points.shape)} with {len(labels)} labels", "[N, 2], finite, and N")
    drawing = canvas.new_figure(8.5, 7.6)
    axes = drawing.subplots()
    for k in np.unique(labels).tolist():
        own = points[labels == k]
        color = COLORS[k % len(COLORS)]
        axes.scatter(own[:, 0], own[:, 1], s=16, marker=MARKS[k % len(MARKS)], color=color, alpha=0.6, linewidths=0)
    if len(classes) <= NAMED:
        for k in np.unique(labels).tolist():
            x, y = np.median(points[labels == k], axis=0)
            axes.annotate(
                canvas.shorten(classes[k], 24), (x, y), ha="center", va="center", size=9, fontweight="bold",
                color=COLORS[k % len(COLORS)],
                bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(canvas.PALE)
    axes.set_title(title, size=11, color=canvas.INK, linespacing=1.5)
    axes.set_xlabel(note, size=8, color=canvas.GRAY, linespacing=1.5)
    return drawing
