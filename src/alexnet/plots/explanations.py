"""Explanations of a classifier as images: data gradient, Grad-CAM and occlusion side by side, first filters, and the
units of a layer (top patches, deconvnet views, images that maximize them)."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.bundle import weights_sha256
from alexnet.cuda_convnet import GraphNetwork
from alexnet.errors import DataError, ModelError, RunError, did_you_mean
from alexnet.explain import neighbors as nearest
from alexnet.explain import saliency, units
from alexnet.explain.embedding import Samples
from alexnet.explain.neighbors import Neighbors, SearchedImages
from alexnet.explain.opened_run import OpenedRun
from alexnet.explain.units import Specialization, specialization
from alexnet.export.classifier import Classifier
from alexnet.loader.augmentation import center_crops
from alexnet.models.network import Network
from alexnet.plots import canvas
from alexnet.plots.embedding import Neighbor, NeighborRow
from alexnet.terminal import Progress, probability, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOST = 12  # images on one page
TITLE = 118  # columns of a row's title
SIDE, HEADING, GAP, LEGEND, MARGIN = 2.0, 0.34, 0.12, 0.72, 0.2  # inches
COLUMNS = ("input crop", "data gradient", "Grad-CAM", "occlusion")
NOTE = (
    "Each map is scaled to its own maximum. Data gradient: the score is most sensitive to white pixels.\n"
    "Grad-CAM: yellow is evidence for the class. Occlusion: hiding orange lowers its probability, blue raises it."
)
WARM, COOL = np.array([0xE6, 0x9F, 0x00]), np.array([0x00, 0x72, 0xB2])  # Okabe and Ito's orange and blue


class SaliencyRow(NamedTuple):
    """An image uint8 [S, S, 3] as the network sees it, its three maps [S, S], and a line about the prediction."""

    image: NDArray[np.uint8]
    gradient: NDArray[np.floating[Any]]
    grad_cam: NDArray[np.floating[Any]]
    occlusion: NDArray[np.floating[Any]]
    title: str


def draw_saliency(rows: Sequence[SaliencyRow], path: Path | str) -> Path:
    """Draw 1 to 12 images, a row each. Raises DataError."""
    return canvas.save(saliency_figure(rows), path)


def saliency_figure(rows: Sequence[SaliencyRow]) -> "Figure":
    """The figure, before it is saved."""
    if not 1 <= len(rows) <= MOST:
        raise DataError(f"{len(rows)} images on one page", f"1 to {MOST}", "draw several pages")
    row = HEADING + SIDE + GAP
    width, height = 4 * SIDE + 3 * GAP + 2 * MARGIN, len(rows) * row + LEGEND + 0.3
    fig = canvas.new_figure(width, height, constrained=False)
    for index, one in enumerate(rows):
        y = height - 0.3 - (index + 1) * row + GAP
        for column, (name, image) in enumerate(zip(COLUMNS, panels(one), strict=True)):
            x = MARGIN + column * (SIDE + GAP)
            axes = fig.add_axes((x / width, y / height, SIDE / width, SIDE / height))
            axes.imshow(image, interpolation="nearest" if len(image) <= 64 else "antialiased")
            axes.set_axis_off()
            if remark := remarks(one)[column]:
                axes.text(
                    0.5,
                    0.04,
                    remark,
                    transform=axes.transAxes,
                    ha="center",
                    va="bottom",
                    size=7.5,
                    color="white",
                    linespacing=1.3,
                )
            if not index:
                fig.text(
                    (x + SIDE / 2) / width,
                    (height - 0.2) / height,
                    name,
                    ha="center",
                    va="center",
                    size=9,
                    color=canvas.GRAY,
                )
        fig.text(MARGIN / width, (y + SIDE + 0.1) / height, shorten(one.title, TITLE), size=9, color=canvas.INK)
    fig.text(0.5, LEGEND / 2 / height, NOTE, ha="center", va="center", size=8, color=canvas.GRAY, linespacing=1.5)
    return fig


def panels(one: SaliencyRow) -> list[NDArray[np.uint8]]:
    """The image and its three maps as images: uint8 [S, S, 3] each."""
    return [one.image, spread(one.gradient), heat(one.image, one.grad_cam), sided(one.image, one.occlusion)]


def remarks(one: SaliencyRow) -> list[str]:
    """A remark on each panel; empty where its map has something to show."""
    return [
        "",
        "" if one.gradient.any() else "all 0: no pixel\nchanges the score",
        "" if one.grad_cam.any() else "all 0: no evidence for the class\nin the last feature maps",
        "" if one.occlusion.any() else "all 0: hiding a region\nchanges nothing",
    ]


def spread(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Values from 0 on -> gray, 0 black, the 99.5th percentile white."""
    part = np.clip(values / (np.percentile(values, 99.5) or 1), 0, 1)
    return np.repeat(np.rint(255 * part).astype(np.uint8)[..., None], 3, axis=2)


def heat(image: NDArray[np.uint8], values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """The image in dark gray, and over it in yellow what is large in ``values`` [S, S]: from 0 on."""
    part = np.clip(values / (values.max() or 1), 0, 1)[..., None]
    return _over(image, part, np.array([0xF0, 0xE4, 0x42]))


def sided(image: NDArray[np.uint8], values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """The same with both signs: orange above 0, blue below."""
    part = np.clip(values / (np.abs(values).max() or 1), -1, 1)[..., None]
    return _over(image, np.abs(part), np.where(part > 0, WARM, COOL))


def _over(image: NDArray[np.uint8], part: NDArray[Any], color: NDArray[Any]) -> NDArray[np.uint8]:
    dark = 0.55 * image.mean(2, keepdims=True) + 20
    return np.asarray(np.rint(dark + 0.75 * part * (color - dark)).clip(0, 255), np.uint8)


NAME_COLUMNS = 28  # maximal width of a class or file name in a title
NEIGHBORS = 6  # training images shown for each image, as in the paper


def saliency_rows(classifier: Classifier, samples: Samples, target_class: str | None = None) -> list[SaliencyRow]:
    """Three saliency maps of each image, for ``target_class`` or else for the top-1 prediction.

    Raises:
        ModelError: If there is no such class.
    """
    classes, network = classifier.classes, classifier.network
    probabilities = classifier.probabilities(list(samples.images))
    targets = (
        probabilities.argmax(1)
        if target_class is None
        else np.full(len(samples), class_index(classifier, target_class))
    )
    inputs = classifier.inputs(list(samples.images))
    crops = center_crops(torch.from_numpy(samples.images), network.image_size).numpy()
    maps = [
        method(network, inputs, targets.tolist()).numpy()
        for method in (saliency.data_gradient, saliency.grad_cam, saliency.occlusion)
    ]
    rows = []
    for i, (crop, label, target) in enumerate(zip(crops, samples.labels, targets.tolist(), strict=True)):
        kind = "predicted" if target_class is None else "class"
        title = f"{kind}: {shorten(classes[target], NAME_COLUMNS)} ({probability(float(probabilities[i, target]))})"
        title += "" if label is None else f", true: {shorten(classes[label], NAME_COLUMNS)}"
        title += f" · {shorten(Path(samples.names[i]).name, NAME_COLUMNS)}"
        rows.append(SaliencyRow(crop, maps[0][i], maps[1][i], maps[2][i], title))
    return rows


def class_index(classifier: Classifier, name: str) -> int:
    """The index of a class. Raises :class:`ModelError` for an unknown name."""
    if name not in classifier.classes:
        raise ModelError(f"unknown class {name!r}. {did_you_mean(name, classifier.classes)}")
    return classifier.classes.index(name)


def open_index(run: OpenedRun, log: Callable[[str], None], progress: Progress | None = None) -> Neighbors:
    """The run's index of training images: opened, or built where it is missing, damaged or of other weights."""
    path, weights = run.folder / nearest.FILE, weights_sha256(run.folder)
    if path.is_file():
        try:
            return Neighbors.open(path, weights)
        except RunError as error:
            log(f"{error.what}: it is built again")
    classifier, store = run.classifier, run.store
    log(f"indexing the {len(store.split('train')):,} training images into {path}")
    return Neighbors.build(path, classifier.bundle, store, weights, device=classifier.device, progress=progress)


def neighbor_rows(
    classifier: Classifier, samples: Samples, index: SearchedImages, count: int = NEIGHBORS
) -> list[NeighborRow]:
    """Each image with its ``count`` nearest training images."""
    probabilities = classifier.probabilities(list(samples.images))
    distances, indices = index.nearest(classifier.embed(list(samples.images)), count)
    rows = []
    for i, image in enumerate(samples.images):
        neighbors = [
            Neighbor(index.thumbnail(k), index.label(k), distance)
            for distance, k in zip(distances[i].tolist(), indices[i].tolist(), strict=True)
        ]
        label = samples.labels[i]
        true_class = None if label is None else classifier.classes[label]
        rows.append(NeighborRow(image, true_class, classifier.classes[int(probabilities[i].argmax())], neighbors))
    return rows


def first_filters(network: Network) -> tuple[NDArray[np.float32], int] | None:
    """The first convolution's weights [K, C, H, W] and its number of towers; None for a network without one."""
    if isinstance(network, GraphNetwork):
        weights: torch.Tensor | None = network.first_filters()
    else:
        weights = next((p.detach() for p in network.parameters() if p.dim() == 4), None)
    if weights is None:
        return None
    filters = weights.float().cpu().contiguous().numpy()
    return filters, network.towers if len(filters) % network.towers == 0 else 1


def color_specialization(network: Network) -> Specialization | None:
    """The color specialization of the first layer; None for gray images or a network without a convolution."""
    filters = first_filters(network)
    return None if filters is None else specialization(*filters)


def color_note(result: Specialization | None) -> str:
    """The color specialization as a line of text; empty for gray images."""
    if result is None:
        return ""
    if len(result.towers) == 1:
        return f"Color in the filters: {100 * result.towers[0]:.0f} % of their energy (untrained: 67 %)"
    towers = ", ".join(f"tower {chr(ord('a') + i)} {100 * share:.0f} %" for i, share in enumerate(result.towers))
    return f"Color in the filters' energy: {towers} (untrained: 67 %); difference by chance: p = {result.by_chance:.2g}"


def layer_name(classifier: Classifier, name: str | None) -> str:
    """``name``, if the network has such a layer; by default its first layer. Raises :class:`ModelError`."""
    network = classifier.network
    names = list(network.keys) if isinstance(network, GraphNetwork) else [n for n, _ in network.named_children()]
    if name is None:
        return names[0]
    if name not in names:
        raise ModelError(f"unknown layer {name!r} of {network.name}. {did_you_mean(name, names)}")
    return name


PATCHES, ACROSS = 9, 3  # patches of a unit, and patches in a row of its tile
PATCH_SIZE, PATCH_GAP = 72, 2  # pixels of a patch in a tile, and between patches
INCHES = 2.0  # height and width of a tile


class Tile(NamedTuple):
    """A unit's images, uint8 [h, w, 3] each and side by side, and a label."""

    label: str
    images: Sequence[NDArray[np.uint8]]


def draw_units(tiles: Sequence[Tile], title: str, note: str, path: Path | str) -> Path:
    """Draw the tiles to a PNG."""
    return canvas.save(units_figure(tiles, title, note), path)


def units_figure(tiles: Sequence[Tile], title: str, note: str) -> "Figure":
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
        patches, backprojected = [], []
        for image, position, value in best[unit]:
            if value <= 0:  # fewer images than patches raise a response
                break
            top, left, bottom, right = units.patch_box(field, position, size)
            patches.append(units.resized(crops[image][top:bottom, left:right], PATCH_SIZE))
            if views:
                part = parts[image // units.BATCH][image % units.BATCH]
                view = units.deconvnet(network, part, layer, unit, position).numpy()[:, top:bottom, left:right]
                backprojected.append(units.resized(view_shades(view), PATCH_SIZE))
        label = f"unit {unit}, response {best[unit][0].value:.3g}"
        tiles.append(Tile(label, [_mosaic(patches), *([_mosaic(backprojected)] if views else [])]))
    return tiles


def view_shades(view: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A view [C, h, w] around mid-gray, scaled to its largest magnitude: uint8 [h, w, 3]."""
    values = np.repeat(view, 3, 0) if len(view) == 1 else view
    largest = max(float(np.abs(values).max()), 1e-12)
    return np.asarray(np.rint(128 + 127 * values / largest).transpose(1, 2, 0), np.uint8)


def spread_units(count: int, total: int) -> list[int]:
    """``count`` of ``total`` units, evenly spaced, so that both towers are among them."""
    return sorted({round(x) for x in np.linspace(0, total - 1, min(count, total)).tolist()})


def _mosaic(patches: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Patches in rows of :data:`ACROSS`, white between them and where one is missing."""
    step = PATCH_SIZE + PATCH_GAP
    result = np.full((ACROSS * step - PATCH_GAP, ACROSS * step - PATCH_GAP, 3), 255, np.uint8)
    for k, patch in enumerate(patches):
        y, x = k // ACROSS * step, k % ACROSS * step
        result[y : y + PATCH_SIZE, x : x + PATCH_SIZE] = patch
    return result
