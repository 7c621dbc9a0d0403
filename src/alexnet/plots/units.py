"""Units of a layer as images: top patches, deconvnet views and images that maximize them, in a grid of tiles."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.explain import units
from alexnet.explain.embedding import Samples
from alexnet.export.classifier import Classifier
from alexnet.loader.augmentation import center_crops
from alexnet.plots import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATCHES, ACROSS = 9, 3  # patches of a unit, and patches in a row of its tile
SIDE, GAP = 72, 2  # pixels of a patch in a tile, and between patches
INCHES = 2.0  # height and width of a tile


class Tile(NamedTuple):
    """A unit's images, uint8 [h, w, 3] each and side by side, and a label."""

    label: str
    images: Sequence[NDArray[np.uint8]]


def draw(tiles: Sequence[Tile], title: str, note: str, path: Path | str) -> Path:
    """Draw the tiles to a PNG."""
    return canvas.save(figure(tiles, title, note), path)


def figure(tiles: Sequence[Tile], title: str, note: str) -> "Figure":
    """The figure, before it is saved."""
    wide = len(tiles[0].images)
    columns = min(len(tiles), max(1, (8 if wide == 1 else 6) // wide))
    rows = math.ceil(len(tiles) / columns)
    width = max(5.0, columns * wide * INCHES + 0.3)
    lines, titles = canvas.wrap(note, width - 0.4, 8), canvas.wrap(title, width - 0.4, 11)
    fig = canvas.new_figure(width, rows * (INCHES + 0.28) + 0.5 + 0.25 * len(titles) + 0.17 * len(lines))
    grid = fig.add_gridspec(rows, columns)
    for k, tile in enumerate(tiles):
        axes = fig.add_subplot(grid[k // columns, k % columns])
        seam = np.full((tile.images[0].shape[0], 6, 3), 255, np.uint8)
        parts = [part for image in tile.images for part in (seam, image)][1:]
        axes.imshow(np.concatenate(parts, 1), interpolation="antialiased")
        axes.set_axis_off()
        canvas.fit(axes.set_title(tile.label, size=8, color=canvas.INK), wide * INCHES)
    fig.suptitle("\n".join(titles), size=11, color=canvas.INK)
    fig.supxlabel("\n".join(lines), size=8, color=canvas.GRAY, linespacing=1.4)
    return fig


def patch_tiles(
    classifier: Classifier, samples: Samples, layer: str, chosen: Sequence[int], *, views: bool
) -> list[Tile]:
    """For each chosen unit its top patches; with ``views`` beside them what the unit responds to in each patch."""
    network, size = classifier.network, classifier.network.image_size
    field = units.field_of(network, layer)
    parts = [classifier.inputs(list(samples.images[i : i + units.BATCH])) for i in range(0, len(samples), units.BATCH)]
    best = units.strongest(network, parts, layer, PATCHES)
    crops = center_crops(torch.from_numpy(samples.images), size).numpy()
    tiles = []
    for unit in chosen:
        patches, shown = [], []
        for image, position, value in best[unit]:
            if value <= 0:  # fewer images than patches raise a response
                break
            top, left, bottom, right = units.patch_box(field, position, size)
            patches.append(units.resized(crops[image][top:bottom, left:right], SIDE))
            if views:
                part = parts[image // units.BATCH][image % units.BATCH]
                view = units.deconvnet(network, part, layer, unit, position).numpy()[:, top:bottom, left:right]
                shown.append(units.resized(shades(view), SIDE))
        label = f"unit {unit}, response {best[unit][0].value:.3g}"
        tiles.append(Tile(label, [_mosaic(patches), *([_mosaic(shown)] if views else [])]))
    return tiles


def shades(view: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A view [C, h, w] around mid-gray, scaled to its largest magnitude: uint8 [h, w, 3]."""
    values = np.repeat(view, 3, 0) if len(view) == 1 else view
    largest = max(float(np.abs(values).max()), 1e-12)
    return np.asarray(np.rint(128 + 127 * values / largest).transpose(1, 2, 0), np.uint8)


def spread(count: int, total: int) -> list[int]:
    """``count`` of ``total`` units, evenly spaced, so that both towers are among them."""
    return sorted({round(x) for x in np.linspace(0, total - 1, min(count, total)).tolist()})


def _mosaic(patches: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Patches in rows of :data:`ACROSS`, white between them and where one is missing."""
    step = SIDE + GAP
    result = np.full((ACROSS * step - GAP, ACROSS * step - GAP, 3), 255, np.uint8)
    for k, patch in enumerate(patches):
        y, x = k // ACROSS * step, k % ACROSS * step
        result[y : y + SIDE, x : x + SIDE] = patch
    return result
