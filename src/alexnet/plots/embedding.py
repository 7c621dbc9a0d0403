"""Images in feature space: in two dimensions, and test images with their nearest training images (Figure 4, right)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError
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


def draw_embedding(
    points: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    path: Path | str,
    title: str = "",
    note: str = "",
) -> Path:
    """Draw ``points`` [N, 2], each in the color and with the mark of its class, which are named beside the map."""
    return canvas.save(embedding_figure(points, labels, classes, title, note), path)


def embedding_figure(
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
    names = canvas.short_names([classes[k] for k in there[::step]], 28)
    for k, name in zip(there[::step], names, strict=True):
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
                label=name,
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


MOST = 12  # rows of one page
NOTE = (
    "Left: a test image, its prediction and its true class. Right: the nearest training images in feature space,\n"
    "with their Euclidean distance and class; a red frame marks another class."
)
SIDE, GAP, WORDS, MARGIN, NEIGHBORS_LEGEND = 1.15, 0.1, 0.3, 0.2, 0.5  # inches
LEFT = 2.2  # inches of the first column, which has room for the names of two classes


class Neighbor(NamedTuple):
    """A training image uint8 [H, W, 3], its class, and its distance in feature space."""

    image: NDArray[np.uint8]
    label: str
    distance: float


class NeighborRow(NamedTuple):
    """An image uint8 [H, W, 3], its true class (None: unknown), the first prediction, and its neighbors, nearest
    first."""

    image: NDArray[np.uint8]
    true_class: str | None
    prediction: str
    neighbors: Sequence[Neighbor]

    @property
    def heading(self) -> str:
        """Two lines: the prediction and the true class."""
        if self.true_class is None:
            return f"predicted: {self.prediction}"
        mark = "✓" if self.prediction == self.true_class else "✗"
        return f"{mark} predicted: {self.prediction}\ntrue: {self.true_class}"


def draw_neighbors(rows: Sequence[NeighborRow], path: Path | str) -> Path:
    """Draw 1 to 12 rows. Raises DataError."""
    return canvas.save(neighbors_figure(rows), path)


def neighbors_figure(rows: Sequence[NeighborRow]) -> "Figure":
    """The figure, before it is saved."""
    if not 1 <= len(rows) <= MOST:
        raise DataError(f"{len(rows)} images on one page", f"1 to {MOST}", "draw several pages")
    across = max(len(row.neighbors) for row in rows)
    width = 2 * MARGIN + LEFT + across * (SIDE + GAP)
    height = len(rows) * (SIDE + WORDS + GAP) + NEIGHBORS_LEGEND + MARGIN
    fig = canvas.new_figure(width, height, constrained=False)
    number = canvas.decimals([one.distance for row in rows for one in row.neighbors])
    for index, row in enumerate(rows):
        y = height - MARGIN - index * (SIDE + WORDS + GAP) - SIDE
        known = row.true_class is not None
        color = canvas.GREEN if row.prediction == row.true_class else canvas.VERMILION if known else canvas.GRAY
        _cell(fig, row.image, MARGIN, y, row.heading, color, LEFT - GAP)
        wanted = row.true_class if known else row.prediction
        for place, one in enumerate(row.neighbors):
            x = MARGIN + LEFT + place * (SIDE + GAP)
            other = one.label != wanted
            _cell(
                fig,
                one.image,
                x,
                y,
                f"{number(one.distance)} · {one.label}",
                canvas.VERMILION if other else canvas.GRAY,
            )
    fig.text(
        0.5, NEIGHBORS_LEGEND / 2 / height, NOTE, ha="center", va="center", size=8, color=canvas.GRAY, linespacing=1.4
    )
    return fig


def _cell(
    fig: "Figure", image: NDArray[np.uint8], x: float, y: float, words: str, color: str, room: float = SIDE
) -> None:
    """An image with its lower left corner at (x, y) inches, and below it words in ``room`` inches."""
    width, height = fig.get_size_inches()
    axes = fig.add_axes((x / width, y / height, SIDE / width, SIDE / height))
    axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) <= 32 else "antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(color)
    axes.spines[:].set_linewidth(1.5 if color != canvas.GRAY else 0.5)
    for line, text in enumerate(words.split("\n")):
        place = x / width, (y - 0.11 - 0.13 * line) / height
        canvas.fit(fig.text(*place, text, ha="left", va="center", size=7.5, color=color), room)
