"""Test images with their nearest training images in feature space: Figure 4 (right) of the paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError
from alexnet.plots import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 12  # rows of one page
NOTE = (
    "Left: a test image, its prediction and its true class. Right: the nearest training images in feature space,\n"
    "with their Euclidean distance and class; a red frame marks another class."
)
SIDE, GAP, WORDS, MARGIN, LEGEND = 1.15, 0.1, 0.3, 0.2, 0.5  # inches
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


def draw(rows: Sequence[NeighborRow], path: Path | str) -> Path:
    """Draw 1 to 12 rows. Raises DataError."""
    return canvas.save(figure(rows), path)


def figure(rows: Sequence[NeighborRow]) -> "Figure":
    """The figure, before it is saved."""
    if not 1 <= len(rows) <= MOST:
        raise DataError(f"{len(rows)} images on one page", f"1 to {MOST}", "draw several pages")
    across = max(len(row.neighbors) for row in rows)
    width = 2 * MARGIN + LEFT + across * (SIDE + GAP)
    height = len(rows) * (SIDE + WORDS + GAP) + LEGEND + MARGIN
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
    fig.text(0.5, LEGEND / 2 / height, NOTE, ha="center", va="center", size=8, color=canvas.GRAY, linespacing=1.4)
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
