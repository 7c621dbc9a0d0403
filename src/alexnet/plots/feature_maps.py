"""The feature maps of a layer for one image: one tile per map, all on one color scale."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import ModelError
from alexnet.plots import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 512  # maps of one fig
WIDTH = 1280  # pixels that the grid aims at
TILE = (10, 160)  # pixels of a map's side, at least and at most
GAP, MARGIN, TOP, BOTTOM = 4, 36, 290, 90  # pixels; TOP holds the image and the title
SIDE = 190  # pixels of the image


def draw(image: NDArray[np.uint8], maps: NDArray[np.floating[Any]], layer: str, path: Path | str) -> Path:
    """Draw ``maps`` [K, h, w], or [D] of a layer without maps, beside the ``image`` [S, S, 3] that they answer.

    Raises ModelError for values that are not finite.
    """
    return canvas.save(figure(image, maps, layer), path)


def figure(image: NDArray[np.uint8], maps: NDArray[np.floating[Any]], layer: str) -> "Figure":
    """The figure, before it is saved."""
    if maps.ndim not in (1, 3) or not maps.size or not np.isfinite(maps).all():
        raise ModelError(f"outputs {list(maps.shape)} of layer {layer}", "[K, h, w] or [D], all of them finite")
    text = maps.astype(np.float64) if maps.ndim == 3 else maps.astype(np.float64)[:, None, None]
    chosen = text if len(text) <= MOST or maps.ndim == 1 else text[strongest(text, MOST)]
    tiles = shades(chosen)
    grid = _grid(tiles) if maps.ndim == 3 else _carpet(tiles)
    across, down = max(900, grid.shape[1] + 2 * MARGIN), grid.shape[0] + TOP + BOTTOM
    fig = canvas.new_figure(across / canvas.DPI, down / canvas.DPI, constrained=False)
    fig.figimage(grid, xo=(across - grid.shape[1]) // 2, yo=BOTTOM)
    axes = fig.add_axes((MARGIN / across, (down - SIDE - 70) / down, SIDE / across, SIDE / down))
    axes.imshow(image, interpolation="nearest" if len(image) <= 64 else "antialiased")
    axes.set_axis_off()
    fig.text(
        (MARGIN + SIDE + 30) / across,
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


def shades(maps: NDArray[np.float64]) -> NDArray[np.uint8]:
    """[K, h, w] -> uint8 [K, h, w, 3]: 0 is gray (235), orange above it, blue below, on one scale."""
    limit = float(np.percentile(np.abs(maps), 99.9)) or float(np.abs(maps).max()) or 1.0
    part = np.clip(maps / limit, -1, 1)[..., None]
    ends = [np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) for color in (canvas.VERMILION, canvas.BLUE)]
    mixed = 235 + np.abs(part) * (np.where(part > 0, ends[0], ends[1]) - 235)
    return np.asarray(np.rint(mixed), np.uint8)


def _grid(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tiles [K, h, w, 3] -> one image, every value a square of whole pixels where the maps are small."""
    count, height, width, _ = tiles.shape
    columns = min(count, math.ceil(math.sqrt(count * 1.6)))
    room = min(max((WIDTH // columns) - GAP, TILE[0]), TILE[1])
    zoom, skip = max(1, room // max(height, width)), max(1, -(-max(height, width) // room))
    tiles = tiles[:, ::skip, ::skip].repeat(zoom, axis=1).repeat(zoom, axis=2)
    rows, (h, w) = math.ceil(count / columns), tiles.shape[1:3]
    grid = np.full((rows * (h + GAP) - GAP, columns * (w + GAP) - GAP, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        y, x = index // columns * (h + GAP), index % columns * (w + GAP)
        grid[y : y + h, x : x + w] = tile
    return grid


def _carpet(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Units [D, 1, 1, 3] -> rows of squares, the first unit at the upper left."""
    columns = math.ceil(math.sqrt(len(tiles) * 2))
    carpet = np.full((math.ceil(len(tiles) / columns) * columns, 3), 255, np.uint8)
    carpet[: len(tiles)] = tiles[:, 0, 0]
    zoom = max(1, min(40, WIDTH // columns))
    return carpet.reshape(-1, columns, 3).repeat(zoom, axis=0).repeat(zoom, axis=1)


def _words(maps: NDArray[np.floating[Any]], layer: str, items: int) -> str:
    zero = int((np.abs(maps.reshape(len(maps), -1)).max(1) == 0).sum())
    kind = "feature maps" if maps.ndim == 3 else "units"
    size = f" of {maps.shape[1]}×{maps.shape[2]}" if maps.ndim == 3 else ""
    some = f", the {items} strongest are shown" if items < len(maps) else ""
    return f"Output of {layer} for this image\n{len(maps)} {kind}{size}{some}\n{zero} of them are 0 everywhere"
