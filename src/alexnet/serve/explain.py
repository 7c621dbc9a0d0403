"""The filters of the first layer as a small image for the page.

Where the network looked, laid over the image; and the training images that it finds most alike.
"""

import base64
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
    from torch import Tensor

    from alexnet.models.network import Network

GAP = 1  # pixels between filters, mid-gray


def first_filters(network: "Network") -> NDArray[np.float32] | None:
    """Weights [K, C, H, W] of the first layer that has filters; None where none has."""
    from alexnet.cuda_convnet import GraphNetwork

    if isinstance(network, GraphNetwork):
        result: Tensor | None = network.first_filters()
    else:
        result = next((p for p in network.parameters() if p.dim() == 4), None)
    return None if result is None else result.detach().float().cpu().contiguous().numpy()


def grid(weights: NDArray[np.floating[Any]], towers: int) -> NDArray[np.uint8]:
    """[K, C, H, W] -> uint8 [rows·(H+1)-1, columns·(W+1)-1, 3], tower *a* above tower *b*.

    Each filter is scaled to its own range around mid-gray: weight 0 is 128. Other than three channels: their mean.
    """
    if weights.shape[1] != 3:
        weights = np.repeat(weights.mean(1, keepdims=True), 3, 1)
    largest = np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    cells = np.rint(128 + 127 * weights / np.where(largest > 0, largest, 1)).astype(np.uint8).transpose(0, 2, 3, 1)
    count, height, width, _ = cells.shape
    towers = towers if count % towers == 0 else 1
    columns = _columns(count, towers)
    rows = towers * math.ceil(count // towers / columns)
    drawn = np.full((rows * (height + GAP), columns * (width + GAP), 3), 128, np.uint8)
    for k, cell in enumerate(cells):
        tower, index = divmod(k, count // towers)
        row, column = tower * rows // towers + index // columns, index % columns
        drawn[row * (height + GAP) :, column * (width + GAP) :][:height, :width] = cell
    return drawn[:-GAP, :-GAP]


def _columns(count: int, towers: int) -> int:
    """About as wide as Figure 3 of the paper (16 for 96 filters), with full rows where possible."""
    aim, each = math.sqrt(count * 16 / 6), max(1, count // towers)
    whole = [n for n in range(1, each + 1) if each % n == 0 and 0.7 * aim <= n <= 1.4 * aim]
    return min(whole, key=lambda n: abs(n - aim)) if whole else min(each, math.ceil(aim))


if TYPE_CHECKING:
    from alexnet.explain.neighbors import Neighbors
    from alexnet.export.classifier import Classifier

Method = Literal["grad_cam", "gradient"]  # occlusion takes a hundred passes an image: not for a server
METHODS: tuple[Method, ...] = get_args(Method)
DARK = 190  # alpha, of 255, of what the network did not look at
CLIP = 99.0  # percentile of a map that counts as fully looked at: single pixels of a gradient are outliers


@dataclass(frozen=True)
class Overlay:
    """A layer for an image: black, transparent where the network looked.

    No color carries meaning, so nobody needs to see one. ``view``: left, top, width, height as shares of the upright
    image; beyond 0 to 1 where the image was padded.
    """

    method: Method
    png: bytes  # RGBA [s, s]
    view: tuple[float, float, float, float]


@dataclass(frozen=True)
class Neighbor:
    """A training image: its class, Euclidean distance in the last hidden layer, thumbnail as PNG."""

    label: str
    distance: float
    png: bytes


def data_url(png: bytes) -> str:
    """A PNG as an address that a page can show."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


class Explain:
    """What one classifier can say of its answers. ``refused``: why there is an index of neighbors, but none is used."""

    def __init__(self, classifier: "Classifier", run: Path) -> None:
        self.classifier, self.refused = classifier, ""
        self.index = self._open_index(run)
        self.offers = (*(f"saliency={m}" for m in self._methods()), *(["neighbors"] if self.index is not None else []))

    def _methods(self) -> list[Method]:
        from alexnet.explain.saliency import last_maps

        try:
            last_maps(self.classifier.network)
        except ModelError:  # no maps to weigh
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
            self.refused = str(error)
            return None

    def maps(
        self, method: Method, images: Sequence[NDArray[np.uint8]], classes: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """How much each pixel of the crops matters for ``classes`` [N]: float32 [N, s, s]."""
        from alexnet.explain import saliency

        how = {"grad_cam": saliency.grad_cam, "gradient": saliency.data_gradient}[method]
        result: NDArray[np.float32] = how(
            self.classifier.network, self.classifier.inputs(list(images)), classes.tolist()
        ).numpy()
        return result

    def overlay(self, method: Method, map: NDArray[np.float32], height: int, width: int) -> Overlay:
        """``map`` [s, s] as a layer for an image of this size."""
        bundle = self.classifier.bundle
        share = min(1.0, bundle.image_size / bundle.stored_size)  # of the stored image's side that is seen
        return Overlay(method, decode.encode_png(shade(map)), view(height, width, bundle.fit, share))

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


def shade(map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A map [s, s] as black with alpha, uint8 [s, s, 4]: 0 where it is large, DARK where it is 0."""
    top = float(np.percentile(map, CLIP)) or float(map.max())
    looked = np.clip(map / top, 0, 1) if top > 0 else np.zeros_like(map)
    layer = np.zeros((*map.shape, 4), np.uint8)
    layer[..., 3] = np.rint(DARK * (1 - looked))
    return layer


def view(height: int, width: int, fit: decode.Fit, share: float) -> tuple[float, float, float, float]:
    """Where the center view lies in an image: left, top, width, height as shares of its size."""
    if fit == "squash":
        across, down = share, share
    else:
        side = share * (min(height, width) if fit == "crop" else max(height, width))
        across, down = side / width, side / height
    return (1 - across) / 2, (1 - down) / 2, across, down
