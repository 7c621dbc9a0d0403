"""Where the network looked, laid over the picture; and the training pictures that it finds most alike."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from alexnet.data import pixels
from alexnet.errors import ModelError, RunError

if TYPE_CHECKING:
    from alexnet.deploy.classifier import Classifier
    from alexnet.evaluation.neighbors import Neighbors

Method = Literal["grad_cam", "gradient"]  # occlusion takes a hundred passes a picture: not for a server
METHODS: tuple[Method, ...] = get_args(Method)
DARK = 190  # alpha, of 255, of what the network did not look at
CLIP = 99.0  # percentile of a map that counts as fully looked at: single pixels of a gradient are outliers


@dataclass(frozen=True)
class Overlay:
    """A layer for a picture: black, transparent where the network looked.

    No color carries meaning, so nobody needs to see one. ``view``: left, top, width, height as shares of the upright
    picture; beyond 0 to 1 where the picture was padded.
    """

    method: Method
    png: bytes  # RGBA [s, s]
    view: tuple[float, float, float, float]


@dataclass(frozen=True)
class Neighbor:
    """A training picture: its class, Euclidean distance in the last hidden layer, thumbnail as PNG."""

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
        from alexnet.evaluation.saliency import last_maps

        try:
            last_maps(self.classifier.network)
        except ModelError:  # no maps to weigh
            return ["gradient"]
        return list(METHODS)

    def _open_index(self, run: Path) -> "Neighbors | None":
        from alexnet.bundle import weights_sha256
        from alexnet.evaluation.neighbors import FILE, Neighbors

        if not (run / FILE).is_file():
            return None
        try:
            return Neighbors.open(run / FILE, weights_sha256(run))
        except RunError as error:
            self.refused = str(error)
            return None

    def maps(
        self, method: Method, pictures: Sequence[NDArray[np.uint8]], classes: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """How much each pixel of the views matters for ``classes`` [N]: float32 [N, s, s]."""
        from alexnet.evaluation import saliency

        how = {"grad_cam": saliency.grad_cam, "gradient": saliency.data_gradient}[method]
        found: NDArray[np.float32] = how(
            self.classifier.network, self.classifier.inputs(list(pictures)), classes.tolist()
        ).numpy()
        return found

    def overlay(self, method: Method, map: NDArray[np.float32], height: int, width: int) -> Overlay:
        """``map`` [s, s] as a layer for a picture of this size."""
        bundle = self.classifier.bundle
        share = min(1.0, bundle.image_size / bundle.stored_size)  # of the stored picture's side that is seen
        return Overlay(method, pixels.encode_png(shade(map)), view(height, width, bundle.fit, share))

    def nearest(self, embedding: NDArray[np.float32], count: int) -> tuple[Neighbor, ...]:
        """The ``count`` training pictures nearest to ``embedding`` [D], nearest first."""
        if self.index is None:
            return ()
        index = self.index
        distances, rows = index.nearest(embedding[None], count)  # [1, k] both
        return tuple(
            Neighbor(index.label(row), float(distance), pixels.encode_png(index.thumbnail(row)))
            for distance, row in zip(distances[0], rows[0].tolist(), strict=True)
        )


def shade(map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A map [s, s] as black with alpha, uint8 [s, s, 4]: 0 where it is large, DARK where it is 0."""
    top = float(np.percentile(map, CLIP)) or float(map.max())
    looked = np.clip(map / top, 0, 1) if top > 0 else np.zeros_like(map)
    layer = np.zeros((*map.shape, 4), np.uint8)
    layer[..., 3] = np.rint(DARK * (1 - looked))
    return layer


def view(height: int, width: int, fit: pixels.Fit, share: float) -> tuple[float, float, float, float]:
    """Where the center view lies in a picture: left, top, width, height as shares of its size."""
    if fit == "squash":
        across, down = share, share
    else:
        side = share * (min(height, width) if fit == "crop" else max(height, width))
        across, down = side / width, side / height
    return (1 - across) / 2, (1 - down) / 2, across, down
