"""Images in two dimensions: their features in the last hidden layer, by UMAP or PCA."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError
from alexnet.formatting import shorten
from alexnet.plots import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's eight (the yellow darker), two more, and marks, so that no class is told by its color alone: each of
# 200 classes has a color, a mark and a filling of its own.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#222222", "#B3A000", "#8B5A2B", "#8A8A8A")
MARKS = "osD^vPX*<>"
NAMED = 40  # classes whose names have room beside the map
WIDTH, LEGEND = 8.5, 2.6  # inches, of the map and of the names next to it


def draw(
    points: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    path: Path | str,
    title: str = "",
    note: str = "",
) -> Path:
    """Draw ``points`` [N, 2], each in the color and with the mark of its class, which are named beside the map."""
    return canvas.save(figure(points, labels, classes, title, note), path)


def figure(
    points: NDArray[np.floating[Any]], labels: NDArray[np.int64], classes: Sequence[str], title: str, note: str
) -> "Figure":
    """The figure, before it is saved. Raises :class:`DataError`."""
    if points.ndim != 2 or points.shape[1] != 2 or len(points) != len(labels) or not np.isfinite(points).all():
        raise DataError(f"points {list(points.shape)} with {len(labels)} labels", "[N, 2], finite, and N")
    fig = canvas.new_figure(WIDTH + LEGEND, 7.6)
    axes = fig.subplots()
    for k in np.unique(labels).tolist():
        own = points[labels == k]
        color, mark, hollow = style(k)
        if hollow:
            axes.scatter(
                own[:, 0], own[:, 1], s=16, marker=mark, facecolors="none", edgecolors=color, alpha=0.8, linewidths=0.9
            )
        else:
            axes.scatter(own[:, 0], own[:, 1], s=16, marker=mark, color=color, alpha=0.6, linewidths=0)
    _legend(axes, np.unique(labels[labels >= 0]).tolist(), classes)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(canvas.PALE)
    axes.set_title("\n".join(canvas.wrap(title, WIDTH - 1, 11)), size=11, color=canvas.INK, linespacing=1.5)
    lines = canvas.wrap(note, WIDTH - 1, 8)
    axes.set_xlabel("\n".join(lines), size=8, color=canvas.GRAY, linespacing=1.5)
    return fig


def _legend(axes: "Axes", there: list[int], classes: Sequence[str]) -> None:
    """Name the classes beside the map, where no name hides a point; every few of many."""
    from matplotlib.lines import Line2D

    step = max(1, -(-len(there) // NAMED))
    handles = []
    for k in there[::step]:
        color, mark, hollow = style(k)
        face = "none" if hollow else color
        handles.append(
            Line2D(
                [],
                [],
                linestyle="",
                marker=mark,
                markersize=6,
                markerfacecolor=face,
                markeredgecolor=color,
                label=shorten(classes[k], 28),
            )
        )
    title = f"every {step}th class is named" if step > 1 else None
    axes.legend(
        handles=handles,
        title=title,
        title_fontsize=8,
        fontsize=8,
        labelcolor=canvas.INK,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        handletextpad=0.3,
    )


def style(k: int) -> tuple[str, str, bool]:
    """Color, mark, and whether the mark is hollow, of class ``k``."""
    return COLORS[k % len(COLORS)], MARKS[(k + k // len(COLORS)) % len(MARKS)], k // 100 % 2 == 1
