"""Explanations that the server gives: saliency overlays, nearest training images, the filters of the first layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from alexnet.data import decode
from alexnet.errors import ModelError, RunError

if TYPE_CHECKING:
    from alexnet.explain.neighbors import Neighbors
    from alexnet.export.classifier import Classifier

Method = Literal["grad_cam", "gradient"]  # occlusion takes a hundred forward passes an image: too slow for a server
METHODS: tuple[Method, ...] = get_args(Method)
MAX_ALPHA = 190  # of 255: opacity of the overlay where the saliency is 0
SALIENCY_PERCENTILE = 99.0  # counts as full saliency: single pixels of a gradient are outliers
GAP = 1  # pixels between filters, mid-gray


@dataclass(frozen=True)
class Overlay:
    """A layer to draw over an image: black, transparent where the saliency is high; no color carries meaning.

    ``box_xywh_normalized`` is left, top, width and height of the crop as fractions of the upright image; it exceeds
    0 to 1 where the image was padded.
    """

    method: Method
    png: bytes  # RGBA [s, s]
    box_xywh_normalized: tuple[float, float, float, float]


@dataclass(frozen=True)
class Neighbor:
    """A training image: its class, its Euclidean distance in the last hidden layer, a thumbnail as PNG."""

    label: str
    distance: float
    png: bytes


class Explainer:
    """Explanations of one classifier's predictions.

    Attributes:
        capabilities: Names of the explanations that are available for this network and run.
        index_error: Why the neighbor index of the run is not used; empty otherwise.
    """

    def __init__(self, classifier: "Classifier", run: Path) -> None:
        self.classifier, self.index_error = classifier, ""
        self.index = self._open_index(run)
        saliency = [f"saliency={method}" for method in self._methods()]
        self.capabilities = (*saliency, *(["neighbors"] if self.index is not None else []))

    def _methods(self) -> list[Method]:
        from alexnet.explain.saliency import last_maps

        try:
            last_maps(self.classifier.network)
        except ModelError:  # Grad-CAM needs feature maps
            return ["gradient"]
        return list(METHODS)

    def _open_index(self, run: Path) -> "Neighbors | None":
        from alexnet.bundle import weights_sha256
        from alexnet.explain.neighbors import FILE, Neighbors

        if not (run / FILE).is_file():
            return None
        try:
            return Neighbors.open(run / FILE, weights_sha256(run))
        except RunError as error:
            self.index_error = str(error)
            return None

    def saliency_maps(
        self, method: Method, images: Sequence[NDArray[np.uint8]], classes: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """The saliency of each pixel of the center crops for ``classes`` [N]: float32 [N, s, s]."""
        from alexnet.explain import saliency

        function = {"grad_cam": saliency.grad_cam, "gradient": saliency.data_gradient}[method]
        inputs = self.classifier.inputs(list(images))
        maps: NDArray[np.float32] = function(self.classifier.network, inputs, classes.tolist()).numpy()
        return maps

    def overlay(self, method: Method, saliency_map: NDArray[np.float32], height: int, width: int) -> Overlay:
        """``saliency_map`` [s, s] as a layer for an image of this size."""
        bundle = self.classifier.bundle
        fraction = min(1.0, bundle.image_size / bundle.stored_size)
        return Overlay(method, decode.encode_png(shade(saliency_map)), crop_box(height, width, bundle.fit, fraction))

    def nearest(self, embedding: NDArray[np.float32], count: int) -> tuple[Neighbor, ...]:
        """The ``count`` training images nearest to ``embedding`` [D], nearest first."""
        if self.index is None:
            return ()
        index = self.index
        distances, rows = index.nearest(embedding[None], count)  # [1, k] both
        return tuple(
            Neighbor(index.label(row), float(distance), decode.encode_png(index.thumbnail(row)))
            for distance, row in zip(distances[0], rows[0].tolist(), strict=True)
        )

    def filters(self) -> NDArray[np.uint8] | None:
        """The filters of the first layer as an image: uint8 [H, W, 3]; None for a network without filters."""
        from alexnet.plots.explanations import first_filters

        filters = first_filters(self.classifier.network)
        return None if filters is None else filter_image(*filters)


def shade(saliency_map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A map [s, s] as black with alpha, uint8 [s, s, 4]: alpha 0 at high saliency, MAX_ALPHA at 0."""
    top = float(np.percentile(saliency_map, SALIENCY_PERCENTILE)) or float(saliency_map.max())
    saliency = np.clip(saliency_map / top, 0, 1) if top > 0 else np.zeros_like(saliency_map)
    layer = np.zeros((*saliency_map.shape, 4), np.uint8)
    layer[..., 3] = np.rint(MAX_ALPHA * (1 - saliency))
    return layer


def crop_box(height: int, width: int, fit: decode.Fit, fraction: float) -> tuple[float, float, float, float]:
    """The center crop's box in an image: left, top, width, height, each as a fraction of the image's size.

    ``fraction`` is the size of the crop divided by that of the stored image.
    """
    if fit == "squash":
        box_width, box_height = fraction, fraction
    else:
        size = fraction * (min(height, width) if fit == "crop" else max(height, width))
        box_width, box_height = size / width, size / height
    return (1 - box_width) / 2, (1 - box_height) / 2, box_width, box_height


def filter_image(weights: NDArray[np.floating[Any]], towers: int) -> NDArray[np.uint8]:
    """Filters [K, C, H, W] side by side: uint8 [rows·(H+1)-1, columns·(W+1)-1, 3], one tower above the other."""
    from alexnet.plots.filters import grid_columns, shades

    cells = shades(weights)
    count, height, width, _ = cells.shape
    columns = grid_columns(count, towers)
    rows = towers * math.ceil(count // towers / columns)
    canvas = np.full((rows * (height + GAP), columns * (width + GAP), 3), 128, np.uint8)
    for k, cell in enumerate(cells):
        tower, index = divmod(k, count // towers)
        row, column = tower * rows // towers + index // columns, index % columns
        canvas[row * (height + GAP) :, column * (width + GAP) :][:height, :width] = cell
    return canvas[:-GAP, :-GAP]
