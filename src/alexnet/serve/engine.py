"""The model behind the server: a bundle or an exported file, opened, checked and verified on its reference images."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data import decode, resize
from alexnet.data.atomic_io import sha256_of
from alexnet.errors import BundleError
from alexnet.export import verify
from alexnet.export.exported_model import FORMATS, ExportedModel
from alexnet.schema import ReferenceSample
from alexnet.serve.explain import METHODS, Explainer, Method, Neighbor, Overlay

if TYPE_CHECKING:
    from alexnet.export.classifier import Classifier


class RequestOptions(NamedTuple):
    """The results that a request wants besides probabilities."""

    embedding: bool = False
    saliency: Method | None = None  # for the first prediction
    neighbors: int = 0  # training images


class PreparedImage(NamedTuple):
    """A decoded image: uint8 [S, S, 3] (or [H, W, 3] for an exported file that resizes), and its original size."""

    pixels: NDArray[np.uint8]
    height: int
    width: int
    brightness: float = 0.0  # mean gray level, 0 to 255


@dataclass(frozen=True)
class ImageResult:
    """The result for one image: probabilities [K], and what its request asked for."""

    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32] | None = None  # [D]
    saliency: Overlay | None = None
    neighbors: tuple[Neighbor, ...] = ()
    brightness: float = 0.0  # of the image: mean gray level, 0 to 255
    pixels: int = 0  # height × width of the image as it was sent
    distance: float | None = None  # fraction of the validation images whose features are nearer; None: no reference


class Engine:
    """A verified classifier.

    Attributes:
        sha256: Identifies the model: the SHA-256 of a bundle's ``config.json``, which holds those of its other files,
            or of an exported file.
        capabilities: What requests may ask for besides probabilities.
        metadata: Parameters, preprocessing, metrics, data, recipe and precision for ``GET /v1/model``.
        max_abs_diff: The largest difference of a probability over the reference images; None without such images.
    """

    def __init__(self, path: Path, model: "Classifier | ExportedModel", sha256: str, max_pixels: int) -> None:
        self.path, self.sha256, self.model, self.max_pixels = path, sha256, model, max_pixels
        self.classes = model.classes
        self.explainer: Explainer | None = None
        self.name: str
        self.capabilities: tuple[str, ...]
        self.metadata: dict[str, Any]
        self.reference_samples: list[ReferenceSample]
        if isinstance(model, ExportedModel):
            self._open_exported(model)
        else:
            self._open_bundle(model)
        self.max_abs_diff = self._verify()

    @classmethod
    def open(
        cls, path: Path, device: str, max_pixels: int = decode.MAX_PIXELS, precision: Literal["fp32", "bf16"] = "fp32"
    ) -> "Engine":
        """Open a run, a bundle, FILE.onnx or FILE.xml.

        In precision bf16 the probabilities of reference images may differ by 0.03. Raises :class:`BundleError`.
        """
        if path.suffix in FORMATS and not path.is_dir():
            if precision != "fp32":
                raise BundleError(f"--precision {precision} of an exported file", "that of the file", "leave it out")
            return cls(path, ExportedModel.load(path), sha256_of(path), max_pixels)
        from alexnet.bundle import find_bundle
        from alexnet.export.classifier import Classifier

        bundle = find_bundle(path)
        return cls(path, Classifier.load(bundle, device, precision), sha256_of(bundle / "config.json"), max_pixels)

    def _open_bundle(self, classifier: "Classifier") -> None:
        bundle = classifier.bundle
        classifier.optimize()
        resize.build()
        self._tolerance = verify.LIMIT if classifier.precision == "fp32" else verify.HALF_LIMIT
        self._resizes = False  # the model: images are brought to their stored size here
        self._stored: tuple[int, decode.Fit] | None = (bundle.stored_size, bundle.fit)
        self.explainer = Explainer(classifier, self.path)
        self.capabilities = ("embedding", *self.explainer.capabilities)
        self.reference_samples = list(bundle.reference_samples)
        self.name = bundle.network.name
        self.metadata = {
            "parameters": sum(p.numel() for p in bundle.network.parameters()),
            "preprocessing": {
                "stored_size": bundle.stored_size,
                "fit": bundle.fit,
                "image_size": bundle.image_size,
            },
            "metrics": dict(bundle.metrics),
            "data": _as_json(bundle.data),
            "recipe": str(bundle.recipe.get("recipe", "")),
            "precision": classifier.precision,
        }

    def _open_exported(self, model: ExportedModel) -> None:
        manifest = model.manifest
        fit: Any = manifest.fit
        self._tolerance = manifest.tolerance
        self._resizes = manifest.input == "images"
        self._stored = (manifest.stored_size, fit)
        self.capabilities, self.reference_samples = (), list(manifest.reference_samples)
        self.name = manifest.network
        self.metadata = {
            "preprocessing": {"stored_size": manifest.stored_size, "fit": manifest.fit},
            "metrics": {},
            "data": {},
            "recipe": "",
            "precision": manifest.precision,
        }

    def _verify(self) -> float | None:
        if not self.reference_samples:
            return None
        return verify.replay(str(self.path), self.model, self.reference_samples, self._stored, self._tolerance)

    def prepare(self, data: bytes, name: str) -> PreparedImage:
        """Decode an encoded image and bring it to its stored size. Raises :class:`ImageError` with ``name``."""
        decoded = decode.decode(data, name, max_pixels=self.max_pixels)
        pixels = decoded if self._resizes else self.model.prepare(decoded, name)
        return PreparedImage(pixels, decoded.shape[0], decoded.shape[1], float(pixels.mean()))

    def predict(self, images: Sequence[PreparedImage], options: Sequence[RequestOptions]) -> list[ImageResult]:
        """The results of one batch, one per image; neighbors are added by :meth:`add_neighbors`."""
        rows, distances = self._probabilities([image.pixels for image in images])
        if not np.isfinite(rows).all():
            raise BundleError(f"{self.path} computes probabilities that are NaN or Inf", "", "use another copy")
        selected = [i for i, option in enumerate(options) if option.embedding or option.neighbors]
        embeddings = dict(zip(selected, self._embeddings([images[i].pixels for i in selected]), strict=True))
        overlays = self._overlays(images, options, rows)
        return [
            ImageResult(
                row,
                embeddings.get(i),
                overlays.get(i),
                brightness=images[i].brightness,
                pixels=images[i].height * images[i].width,
                distance=None if distances is None else float(distances[i]),
            )
            for i, row in enumerate(rows)
        ]

    def _probabilities(self, images: list[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
        """Probabilities [N, K] and, of a bundle with a reference, feature distances [N]."""
        if isinstance(self.model, ExportedModel):
            return self.model.probabilities(images, batch_size=len(images)), None
        return self.model.probabilities_and_distances(images, batch_size=len(images))

    def _embeddings(self, images: list[NDArray[np.uint8]]) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        if not images or isinstance(self.model, ExportedModel):
            return []
        return self.model.embed(images, batch_size=len(images))  # [M, D]

    def _overlays(
        self, images: Sequence[PreparedImage], options: Sequence[RequestOptions], rows: NDArray[np.float32]
    ) -> dict[int, Overlay]:
        """Saliency overlays by index of the image."""
        if self.explainer is None:
            return {}
        overlays: dict[int, Overlay] = {}
        for method in METHODS:
            selected = [i for i, option in enumerate(options) if option.saliency == method]
            if selected:
                maps = self.explainer.saliency_maps(
                    method, [images[i].pixels for i in selected], rows[selected].argmax(1)
                )
                for i, saliency_map in zip(selected, maps, strict=True):
                    overlays[i] = self.explainer.overlay(method, saliency_map, images[i].height, images[i].width)
        return overlays

    def add_neighbors(self, result: ImageResult, count: int) -> ImageResult:
        """``result`` with its ``count`` nearest training images."""
        if self.explainer is None or result.embedding is None:
            return result
        return replace(result, neighbors=self.explainer.nearest(result.embedding, count))

    def filters(self) -> NDArray[np.uint8] | None:
        """The filters of the first layer as an image, one pixel per weight: uint8 [H, W, 3]; None without any."""
        return None if self.explainer is None else self.explainer.filters()


def _as_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data section of a bundle with values that JSON can hold."""
    values: dict[str, Any] = json.loads(json.dumps(dict(data), default=str))
    return values
