"""The Fisher vector classifier: an image in, a score per class out; saved as two files.

``fisher.npz`` holds the codebooks and weights as arrays, ``fisher.json`` (format version 1) the settings, classes and
SHA-256.

Shapes: N images, R regions of the pyramid, R' used regions, F length of a region's vector, K classes.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.atomic_io import json_bytes, load_arrays, save_arrays, write_file
from alexnet.errors import BundleError, reason
from alexnet.experiments.fisher.features import (
    COLOR_LENGTH,
    SIFT_LENGTH,
    Codebook,
    Grid,
    Mixture,
    center_crop,
    extract_descriptors,
    fisher_vectors,
    normalize,
    pyramid_members,
)
from alexnet.schema import Sha256, check, read_checksummed, with_checksum

FORMAT, VERSION = "alexnet-fisher", 1


@dataclass(frozen=True)
class FisherSettings:
    """Hyperparameters of the classifier."""

    grid: Grid = field(default_factory=Grid)
    image_size: int = 0
    """Center crop that is described, pixels; 0: the whole stored image."""
    axes: int = 64
    """Principal axes of a descriptor (Perronnin et al. 2010)."""
    gaussians: int = 64
    """Gaussians, for SIFT and for colors each."""
    sample: int = 100_000
    """Training descriptors from which the codebooks are fitted."""
    levels: tuple[int, ...] = (1, 2)
    """Spatial pyramid: the whole image, and its quarters where they lower the validation error."""
    penalties: tuple[float, ...] = (1.0, 10.0, 100.0)
    """Candidates for C of the linear classifiers."""

    @property
    def regions(self) -> int:
        """R: number of regions of the pyramid."""
        return sum(level**2 for level in self.levels)


@dataclass(frozen=True)
class _Metadata:
    """Content of ``fisher.json``."""

    classes: tuple[str, ...]
    settings: FisherSettings
    used: tuple[int, ...]
    penalty: float
    sha256: Sha256  # of fisher.npz


@dataclass(frozen=True)
class Encoder:
    """Maps images to Fisher vectors with codebooks fitted to training images."""

    settings: FisherSettings
    sift: Codebook
    color: Codebook

    @property
    def length(self) -> int:
        """F: length of a region's vector."""
        return self.sift.mixture.vector_length + self.color.mixture.vector_length

    def encode(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode a stored image, uint8 [S, S, 3] -> [R, F]: SIFT part, then color part, each normalized."""
        descriptors = extract_descriptors(center_crop(image, self.settings.image_size), self.settings.grid)
        members = pyramid_members(descriptors.centers, self.settings.levels)
        parts = [
            normalize(fisher_vectors(codebook.project(part), codebook.mixture, members))
            for codebook, part in ((self.sift, descriptors.sift), (self.color, descriptors.color))
        ]
        return np.concatenate(parts, 1)


@dataclass(frozen=True)
class FisherClassifier:
    """Linear classifiers on Fisher vectors, one per class."""

    encoder: Encoder
    classes: tuple[str, ...]
    used: tuple[int, ...]  # indices of the used regions
    weights: NDArray[np.float32]  # [K, R', F]
    offsets: NDArray[np.float32]  # [K]
    penalty: float  # C

    def scores(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Signed distances of an image to the decision boundary of each class: [K]. They are no probabilities."""
        return self.score(self.encoder.encode(image))

    def score(self, vectors: NDArray[Any]) -> NDArray[np.float32]:
        """The same from the Fisher vectors of an image, [R, F] -> [K]."""
        used = vectors[list(self.used)].astype(np.float32)
        return np.asarray(np.tensordot(self.weights, used, 2) + self.offsets, np.float32)

    @property
    def parameters(self) -> int:
        """Number of learned values: axes, mixtures and weights."""
        return sum(array.size for array in self._arrays().values())

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds per patch of the projections, posteriors and sums, without SIFT."""
        codebooks = (self.encoder.sift, self.encoder.color)
        return sum(codebook.axes.size + 4 * codebook.mixture.means.size for codebook in codebooks)

    def save(self, folder: Path) -> Path:
        """Write both files and return the path of the arrays."""
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "classes": list(self.classes),
            "settings": asdict(self.encoder.settings),
            "used": list(self.used),
            "penalty": self.penalty,
        }
        metadata["sha256"] = save_arrays(folder / "fisher.npz", self._arrays())
        write_file(folder / "fisher.json", json_bytes(with_checksum(metadata)))
        return folder / "fisher.npz"

    @classmethod
    def load(cls, folder: Path) -> "FisherClassifier":
        """Read what :meth:`save` wrote.

        Raises:
            BundleError: A file is missing, damaged or of another format.
        """
        try:
            values = read_checksummed(folder, "fisher.json")
            if (values["format"], values["version"]) != (FORMAT, VERSION):
                raise BundleError(f"{folder / 'fisher.json'} has another format", f"{FORMAT}, version {VERSION}")
            metadata = check(values, _Metadata)
            arrays = load_arrays(folder / "fisher.npz", metadata.sha256)
            codebooks = (_read_codebook(arrays, kind) for kind in ("sift", "color"))
            return cls(
                Encoder(metadata.settings, *codebooks),
                metadata.classes,
                metadata.used,
                arrays["weights"],
                arrays["offsets"],
                metadata.penalty,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"{folder} holds no complete Fisher classifier: {reason(error)}", "", "train it again"
            ) from error

    def _arrays(self) -> dict[str, NDArray[np.float32]]:
        codebooks = {"sift": self.encoder.sift, "color": self.encoder.color}
        arrays = {f"{kind}_{name}": array for kind, book in codebooks.items() for name, array in _codebook_arrays(book)}
        return arrays | {"weights": self.weights, "offsets": self.offsets}


def _codebook_arrays(codebook: Codebook) -> Iterator[tuple[str, NDArray[np.float32]]]:
    yield from (("mean", codebook.mean), ("axes", codebook.axes))
    yield from codebook.mixture._asdict().items()


def _read_codebook(arrays: dict[str, NDArray[np.float32]], kind: str) -> Codebook:
    mixture = Mixture(*(arrays[f"{kind}_{name}"] for name in Mixture._fields))
    codebook = Codebook(arrays[f"{kind}_mean"], arrays[f"{kind}_axes"], mixture)
    length = {"sift": SIFT_LENGTH, "color": COLOR_LENGTH}[kind]
    if codebook.mean.shape != (length,) or codebook.axes.shape != (length, mixture.means.shape[1]):
        raise ValueError(f"arrays of {kind} have wrong shapes")
    return codebook
