"""The filters of a first layer, side by side, tower *a* above tower *b*: Figure 3 of the paper."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import ModelError
from alexnet.plots import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 1280  # pixels that the grid of filters aims at
LARGEST = 120  # pixels of a filter's side at most: six filters of LeNet need no poster
NARROWEST = 800  # pixels of the figure: room for the caption
MARGIN, LABEL, TITLE, CAPTION = 36, 44, 76, 76  # pixels around the grid; LABEL is the column of tower names
GAP = 5  # pixels between filters
SEAM = 26  # pixels between towers
LINE = 26  # pixels of a line of the caption; CAPTION has room for two


def draw(weights: NDArray[np.floating[Any]], towers: int, path: Path | str, note: str = "") -> Path:
    """Draw ``weights`` [K, C, H, W] of a layer with ``towers`` towers (1 or more) to a PNG. Raises ModelError.

    ``note`` is a line below.
    """
    return canvas.save(figure(weights, towers, note), path)


def figure(weights: NDArray[np.floating[Any]], towers: int, note: str = "") -> "Figure":
    """The figure, before it is saved."""
    _check(weights, towers)
    columns = grid_columns(len(weights), towers)
    grids = [_grid(part, columns) for part in np.split(shades(weights), towers)]
    height, width = grids[0].shape[:2]
    across = max(NARROWEST, MARGIN + LABEL + width + MARGIN)
    lines = canvas.wrap(_caption(weights.shape[1]) + (f"\n{note}" if note else ""), (across - MARGIN) / canvas.DPI, 8)
    foot = CAPTION + LINE * max(0, len(lines) - 2)
    down = TITLE + towers * height + (towers - 1) * SEAM + foot
    fig = canvas.new_figure(across / canvas.DPI, down / canvas.DPI, constrained=False)
    left = (across - width) // 2
    for tower, grid in enumerate(grids):
        bottom = foot + (towers - 1 - tower) * (height + SEAM)
        fig.figimage(grid, xo=left, yo=bottom)  # pixel on pixel: nothing is resampled
        if towers > 1:
            _text(fig, left - 24, bottom + height / 2, f"tower {chr(ord('a') + tower)}", 10, rotation=90)
    _text(fig, across / 2, down - TITLE / 2, _title(weights.shape), 12)
    _text(fig, across / 2, foot / 2, "\n".join(lines), 8, color=canvas.GRAY)
    return fig


def shades(weights: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Each filter scaled to its own range around mid-gray: [K, C, H, W] -> uint8 [K, H, W, 3].

    Weight 0 is 128, the filter's largest magnitude is 255 or 1. One or many channels come out gray, as their mean.
    """
    values = weights.astype(np.float64)
    if weights.shape[1] != 3:
        values = np.repeat(values.mean(axis=1, keepdims=True), 3, axis=1)  # [K, 3, H, W]
    largest = np.abs(values).max(axis=(1, 2, 3), keepdims=True)  # [K, 1, 1, 1]
    scaled = values / np.where(largest > 0, largest, 1)
    return np.rint(128 + 127 * scaled).astype(np.uint8).transpose(0, 2, 3, 1)  # [K, H, W, 3]


def grid_columns(count: int, towers: int) -> int:
    """Columns for a grid about as wide as Figure 3 (16 for 96 filters), with full rows where possible."""
    aim, each = math.sqrt(count * 16 / 6), count // towers
    whole = [n for n in range(1, each + 1) if each % n == 0 and 0.7 * aim <= n <= 1.4 * aim]
    return min(whole, key=lambda n: abs(n - aim)) if whole else min(each, math.ceil(aim))


def _grid(part: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Filters [K, H, W, 3] -> one image, every weight a square of whole pixels, white between the filters."""
    count, height, width, _ = part.shape
    room = min(LARGEST, WIDTH // columns - GAP)
    zoom = max(1, room // max(height, width))
    rows = math.ceil(count / columns)
    step_y, step_x = height * zoom + GAP, width * zoom + GAP
    grid = np.full((rows * step_y - GAP, columns * step_x - GAP, 3), 255, np.uint8)
    for index, cell in enumerate(part.repeat(zoom, axis=1).repeat(zoom, axis=2)):
        y, x = index // columns * step_y, index % columns * step_x
        grid[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
    return grid


def _title(shape: tuple[int, ...]) -> str:
    count, channels, height, width = shape
    return f"{count} filter{'s' * (count != 1)} of the first layer, {height}×{width}×{channels}"


def _caption(channels: int) -> str:
    mean = "" if channels in (1, 3) else f"The mean over {channels} channels is shown.\n"
    return f"{mean}Each filter is scaled to its own range; mid-gray is weight 0."


def _text(fig: "Figure", x: float, y: float, text: str, size: int, rotation: int = 0, color: str = "") -> None:
    """``text`` centered at pixel (x, y), counted from the lower left."""
    width, height = fig.get_size_inches() * canvas.DPI
    fig.text(
        x / width,
        y / height,
        text,
        size=size,
        rotation=rotation,
        color=color or canvas.INK,
        ha="center",
        va="center",
        linespacing=1.5,
    )


def _check(weights: NDArray[np.floating[Any]], towers: int) -> None:
    if weights.ndim != 4 or 0 in weights.shape:
        raise ModelError(f"filters have the shape {list(weights.shape)}", "[K, C, H, W], none of them 0")
    if towers < 1 or len(weights) % towers:
        raise ModelError(f"{len(weights)} filters in {towers} towers", "the same number in each tower")
    if not np.isfinite(weights).all():
        raise ModelError("filters hold values that are not finite", todo="the training went wrong; draw an earlier one")
