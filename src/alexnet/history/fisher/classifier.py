"""The runner-up as a classifier: a picture in, a score for each class out; and as two files on disk.

Format version 1: ``fisher.npz`` (axes, mixtures, weights as plain arrays) and ``fisher.json`` (settings, classes).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from alexnet.data.writing import json_bytes, whole_file, write_file
from alexnet.errors import BundleError
from alexnet.history.fisher.descriptors import COLOR_LENGTH, SIFT_LENGTH, Grid, describe, middle
from alexnet.history.fisher.mixture import Codebook
from alexnet.history.fisher.vectors import Mixture, fisher_vectors, normalized, regions
from alexnet.schema import check, read_json

FORMAT, VERSION = "alexnet-fisher", 1


@dataclass(frozen=True)
class Settings:
    """Numbers of the runner-up."""

    grid: Grid = field(default_factory=Grid)
    side: int = 0  # of the center view that is described, pixels; 0: the whole stored picture
    length: int = 64  # of a descriptor along its principal axes (Perronnin et al. 2010)
    words: int = 64  # Gaussians, for SIFT and for colors each
    sample: int = 100_000  # training descriptors from which axes and mixtures are learned
    levels: tuple[int, ...] = (1, 2)  # of the spatial pyramid: the whole, and quarters where validation wants them
    penalties: tuple[float, ...] = (1.0, 10.0, 100.0)  # C, of which validation chooses

    @property
    def cells(self) -> int:
        """R: regions of the pyramid."""
        return sum(level**2 for level in self.levels)


@dataclass(frozen=True)
class Encoder:
    """Pictures -> Fisher vectors, by what training pictures were like."""

    settings: Settings
    sift: Codebook
    color: Codebook

    @property
    def length(self) -> int:
        """F, of a region's vector."""
        return self.sift.mixture.length + self.color.mixture.length

    def encode(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """A stored picture uint8 [S, S, 3] -> [R, F]: a region's vector by SIFT, then by colors, each normalized."""
        local = describe(middle(picture, self.settings.side), self.settings.grid)
        members = regions(local.places, self.settings.levels)
        parts = [
            normalized(fisher_vectors(book.project(descriptors), book.mixture, members))
            for book, descriptors in ((self.sift, local.sift), (self.color, local.color))
        ]
        return np.concatenate(parts, 1)


@dataclass(frozen=True)
class FisherClassifier:
    """``weights`` [K, R', F] for the regions ``used`` (numbers of the pyramid's cells), ``offsets`` [K]."""

    encoder: Encoder
    classes: tuple[str, ...]
    used: tuple[int, ...]
    weights: NDArray[np.float32]
    offsets: NDArray[np.float32]
    penalty: float

    def scores(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """How far on the side of each class a picture lies: [K]. No probabilities."""
        return self.score(self.encoder.encode(picture))

    def score(self, vectors: NDArray[Any]) -> NDArray[np.float32]:
        """The same from a picture's Fisher vectors [R, F]."""
        mine = vectors[list(self.used)].astype(np.float32)
        return np.asarray(np.tensordot(self.weights, mine, 2) + self.offsets, np.float32)

    @property
    def parameters(self) -> int:
        """Numbers that were learned: axes, mixtures, weights."""
        return sum(array.size for array in self._arrays().values())

    @property
    def multiply_adds(self) -> int:
        """Of the matrix products for one patch (axes, posteriors, sums), SIFT itself not counted."""
        encoder = self.encoder
        each = [book.axes.size + 4 * book.mixture.means.size for book in (encoder.sift, encoder.color)]
        return sum(each)

    def save(self, folder: Path) -> Path:
        """Write both files; returns that of the numbers."""
        settings = asdict(self.encoder.settings)
        about = {"format": FORMAT, "version": VERSION, "classes": list(self.classes), "settings": settings}
        about |= {"used": list(self.used), "penalty": self.penalty}
        with whole_file(folder / "fisher.npz") as file:
            np.savez(file, allow_pickle=False, **self._arrays())
        write_file(folder / "fisher.json", json_bytes(about))
        return folder / "fisher.npz"

    @classmethod
    def load(cls, folder: Path) -> "FisherClassifier":
        """What :meth:`save` wrote. Raises :class:`BundleError`."""
        try:
            about = check(read_json(folder, "fisher.json"), dict[str, Any])
            if (about["format"], about["version"]) != (FORMAT, VERSION):
                raise BundleError(f"{folder / 'fisher.json'} is of another format", f"{FORMAT}, version {VERSION}")
            with (folder / "fisher.npz").open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            given = dict(about["settings"])
            given |= {"grid": Grid(**given["grid"]), "levels": tuple(given["levels"])}
            given |= {"penalties": tuple(given["penalties"])}
            encoder = Encoder(Settings(**given), *(_codebook(arrays, kind) for kind in ("sift", "color")))
            return cls(
                encoder, tuple(about["classes"]), tuple(about["used"]), arrays["weights"], arrays["offsets"],
                about["penalty"],
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise BundleError(f"{folder} holds no whole Fisher classifier: {error}", "", "train it again") from error

    def _arrays(self) -> dict[str, NDArray[np.float32]]:
        books = {"sift": self.encoder.sift, "color": self.encoder.color}
        found = {f"{kind}_{name}": array for kind, book in books.items() for name, array in _parts(book)}
        return found | {"weights": self.weights, "offsets": self.offsets}


def _parts(book: Codebook) -> Iterator[tuple[str, NDArray[np.float32]]]:
    yield from (("mean", book.mean), ("axes", book.axes))
    yield from book.mixture._asdict().items()


def _codebook(arrays: dict[str, NDArray[np.float32]], kind: str) -> Codebook:
    mixture = Mixture(*(arrays[f"{kind}_{name}"] for name in Mixture._fields))
    book = Codebook(arrays[f"{kind}_mean"], arrays[f"{kind}_axes"], mixture)
    length = {"sift": SIFT_LENGTH, "color": COLOR_LENGTH}[kind]
    if book.mean.shape != (length,) or book.axes.shape != (length, mixture.means.shape[1]):
        raise ValueError(f"{kind} of another size")
    return book
