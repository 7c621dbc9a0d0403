"""The filters of the first layer, tower *a* above tower *b* (Figure 3 of the paper), and feature maps of an image."""

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


def draw_filters(weights: NDArray[np.floating[Any]], towers: int, path: Path | str, note: str = "") -> Path:
    """Draw ``weights`` [K, C, H, W] of a layer with ``towers`` towers (1 or more) to a PNG. Raises ModelError.

    ``note`` is a line below.
    """
    return canvas.save(filters_figure(weights, towers, note), path)


def filters_figure(weights: NDArray[np.floating[Any]], towers: int, note: str = "") -> "Figure":
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


MOST = 512  # maps of one fig
MAPS_WIDTH = 1280  # pixels that the grid aims at
TILE = (10, 160)  # pixels of a map's side, at least and at most
MAPS_GAP, MAPS_MARGIN, TOP, BOTTOM = 4, 36, 290, 90  # pixels; TOP holds the image and the title
SIDE = 190  # pixels of the image


def draw_feature_maps(image: NDArray[np.uint8], maps: NDArray[np.floating[Any]], layer: str, path: Path | str) -> Path:
    """Draw ``maps`` [K, h, w], or [D] of a layer without maps, beside the ``image`` [S, S, 3] that they answer.

    Raises ModelError for values that are not finite.
    """
    return canvas.save(feature_maps_figure(image, maps, layer), path)


def feature_maps_figure(image: NDArray[np.uint8], maps: NDArray[np.floating[Any]], layer: str) -> "Figure":
    """The figure, before it is saved."""
    if maps.ndim not in (1, 3) or not maps.size or not np.isfinite(maps).all():
        raise ModelError(f"outputs {list(maps.shape)} of layer {layer}", "[K, h, w] or [D], all of them finite")
    text = maps.astype(np.float64) if maps.ndim == 3 else maps.astype(np.float64)[:, None, None]
    chosen = text if len(text) <= MOST or maps.ndim == 1 else text[strongest(text, MOST)]
    tiles = map_shades(chosen)
    grid = _feature_maps_grid(tiles) if maps.ndim == 3 else _carpet(tiles)
    across, down = max(900, grid.shape[1] + 2 * MAPS_MARGIN), grid.shape[0] + TOP + BOTTOM
    fig = canvas.new_figure(across / canvas.DPI, down / canvas.DPI, constrained=False)
    fig.figimage(grid, xo=(across - grid.shape[1]) // 2, yo=BOTTOM)
    axes = fig.add_axes((MAPS_MARGIN / across, (down - SIDE - 70) / down, SIDE / across, SIDE / down))
    axes.imshow(image, interpolation="nearest" if len(image) <= 64 else "antialiased")
    axes.set_axis_off()
    fig.text(
        (MAPS_MARGIN + SIDE + 30) / across,
        (down - 165) / down,
        _words(maps, layer, len(chosen)),
        size=10,
        va="center",
        linespacing=1.6,
        color=canvas.INK,
    )
    note = "One color scale for all: gray is 0, orange positive, blue negative; full color is the 99.9th percentile."
    fig.text(0.5, BOTTOM / 2 / down, note, ha="center", va="center", size=8, color=canvas.GRAY)
    return fig


def strongest(maps: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The ``count`` maps of [K, h, w] with the largest single value, in their own order."""
    order = np.argsort(-np.abs(maps).max((1, 2)), kind="stable")[:count]
    return np.sort(order).astype(np.int64)


def map_shades(maps: NDArray[np.float64]) -> NDArray[np.uint8]:
    """[K, h, w] -> uint8 [K, h, w, 3]: 0 is gray (235), orange above it, blue below, on one scale."""
    limit = float(np.percentile(np.abs(maps), 99.9)) or float(np.abs(maps).max()) or 1.0
    part = np.clip(maps / limit, -1, 1)[..., None]
    ends = [np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) for color in (canvas.VERMILION, canvas.BLUE)]
    mixed = 235 + np.abs(part) * (np.where(part > 0, ends[0], ends[1]) - 235)
    return np.asarray(np.rint(mixed), np.uint8)


def _feature_maps_grid(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tiles [K, h, w, 3] -> one image, every value a square of whole pixels where the maps are small."""
    count, height, width, _ = tiles.shape
    columns = min(count, math.ceil(math.sqrt(count * 1.6)))
    room = min(max((MAPS_WIDTH // columns) - MAPS_GAP, TILE[0]), TILE[1])
    zoom, skip = max(1, room // max(height, width)), max(1, -(-max(height, width) // room))
    tiles = tiles[:, ::skip, ::skip].repeat(zoom, axis=1).repeat(zoom, axis=2)
    rows, (h, w) = math.ceil(count / columns), tiles.shape[1:3]
    grid = np.full((rows * (h + MAPS_GAP) - MAPS_GAP, columns * (w + MAPS_GAP) - MAPS_GAP, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        y, x = index // columns * (h + MAPS_GAP), index % columns * (w + MAPS_GAP)
        grid[y : y + h, x : x + w] = tile
    return grid


def _carpet(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Units [D, 1, 1, 3] -> rows of squares, the first unit at the upper left."""
    columns = math.ceil(math.sqrt(len(tiles) * 2))
    carpet = np.full((math.ceil(len(tiles) / columns) * columns, 3), 255, np.uint8)
    carpet[: len(tiles)] = tiles[:, 0, 0]
    zoom = max(1, min(40, MAPS_WIDTH // columns))
    return carpet.reshape(-1, columns, 3).repeat(zoom, axis=0).repeat(zoom, axis=1)


def _words(maps: NDArray[np.floating[Any]], layer: str, items: int) -> str:
    zero = int((np.abs(maps.reshape(len(maps), -1)).max(1) == 0).sum())
    kind = "feature maps" if maps.ndim == 3 else "units"
    size = f" of {maps.shape[1]}×{maps.shape[2]}" if maps.ndim == 3 else ""
    some = f", the {items} strongest are shown" if items < len(maps) else ""
    return f"Output of {layer} for this image\n{len(maps)} {kind}{size}{some}\n{zero} of them are 0 everywhere"
