"""What answers: a bundle or an exported file, opened, checked byte by byte and asked its golden pictures."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data import pixels, resize
from alexnet.data.writing import sha256_of
from alexnet.deploy import verify
from alexnet.deploy.runtime import Exported
from alexnet.deploy.seal import FORMATS, Replay
from alexnet.deploy.server.explain import METHODS, Explain, Method, Neighbor, Overlay
from alexnet.errors import BundleError

if TYPE_CHECKING:
    from alexnet.deploy.classifier import Classifier


class Want(NamedTuple):
    """What is asked of a picture besides its probabilities."""

    embedding: bool = False
    saliency: Method | None = None  # of the first guess
    neighbors: int = 0  # training pictures


class Prepared(NamedTuple):
    """A picture ready for the network: uint8 [S, S, 3] (or [H, W, 3], for a file that resizes); its own size."""

    pixels: NDArray[np.uint8]
    height: int
    width: int


@dataclass(frozen=True)
class Found:
    """What was found of a picture: probabilities [K], and what was wanted."""

    row: NDArray[np.float32]
    embedding: NDArray[np.float32] | None = None  # [D]
    saliency: Overlay | None = None
    neighbors: tuple[Neighbor, ...] = ()


class Engine:
    """A classifier of which every byte was checked and which answered its golden pictures.

    ``sha256`` names it: of a bundle's config.json, which holds the SHA-256 of all its other files, or of an exported
    file. ``offers`` are the names of what can be wanted besides probabilities.
    """

    def __init__(self, path: Path, answers: "Classifier | Exported", sha256: str, most_pixels: int) -> None:
        self.path, self.sha256, self.answers, self.most_pixels = path, sha256, answers, most_pixels
        self.classes = answers.classes
        self.golden: list[Replay]
        self.explain: Explain | None = None
        self.offers: tuple[str, ...]
        if isinstance(answers, Exported):
            self._open_file(answers)
        else:
            self._open_bundle(answers)
        self.drift = self._prove()

    @classmethod
    def open(
        cls, path: Path, device: str, most_pixels: int = pixels.MAX_PIXELS, precision: Literal["fp32", "bf16"] = "fp32"
    ) -> "Engine":
        """Open a run, a bundle, or FILE.onnx or FILE.xml. Raises :class:`BundleError` that says what is wrong.

        In ``precision`` bf16 golden pictures may be answered otherwise by three hundredths.
        """
        if path.suffix in FORMATS and not path.is_dir():
            if precision != "fp32":
                raise BundleError(f"--precision {precision} of an exported file", "left out", "export it so instead")
            return cls(path, Exported.load(path), sha256_of(path), most_pixels)
        from alexnet.bundle import find
        from alexnet.deploy.classifier import Classifier

        bundle = find(path)
        classifier = Classifier.load(bundle, device, precision)
        return cls(path, classifier, sha256_of(bundle / "config.json"), most_pixels)

    def _open_bundle(self, classifier: "Classifier") -> None:
        bundle = classifier.bundle
        classifier.hasten()
        resize.build()
        self.limit, self._decoded = verify.LIMIT if classifier.precision == "fp32" else verify.HALF_LIMIT, True
        self.explain = Explain(classifier, self.path)
        self.offers = ("embedding", *self.explain.offers)
        self._stored: tuple[int, pixels.Fit] | None = (bundle.stored_size, bundle.fit)
        self.golden = [Replay(g.name, g.png, g.probabilities) for g in bundle.golden]
        self.name = bundle.network.name
        self.about: dict[str, Any] = {
            "parameters": sum(p.numel() for p in bundle.network.parameters()),
            "preprocessing": _preprocessing(bundle.stored_size, bundle.fit, bundle.image_size),
            "metrics": dict(bundle.metrics),
            "data": _plain(bundle.data),
            "recipe": str(bundle.recipe.get("recipe", "")),
            "precision": classifier.precision,
        }

    def _open_file(self, file: Exported) -> None:
        manifest = file.manifest
        fit: Any = manifest.fit
        self._decoded = manifest.input == "decoded"
        self._stored = (manifest.stored_size, fit)
        self.limit, self.offers, self.golden = manifest.tolerance, (), list(manifest.golden)
        self.name = manifest.network
        self.about = {
            "preprocessing": _preprocessing(manifest.stored_size, manifest.fit, None),
            "metrics": {},
            "data": {},
            "recipe": "",
            "precision": manifest.precision,
        }

    def _prove(self) -> float | None:
        """The golden pictures' largest difference; None where there are none. Raises :class:`BundleError`."""
        if not self.golden:
            return None
        return verify.replay(str(self.path), self.answers, self.golden, self._stored, self.limit)

    def prepare(self, data: bytes, name: str) -> Prepared:
        """The bytes of a picture -> what :meth:`answer` takes. Raises :class:`PictureError` with ``name``."""
        decoded = pixels.decode(data, name, most=self.most_pixels)
        fitted = self.answers.prepare(decoded, name) if self._decoded else decoded
        return Prepared(fitted, *decoded.shape[:2])

    def answer(self, pictures: Sequence[Prepared], wants: Sequence[Want]) -> list[Found]:
        """What is to be said of prepared pictures, all in one batch; :meth:`neighbors` come later."""
        rows = self.answers.probabilities([p.pixels for p in pictures], batch_size=len(pictures))  # [N, K]
        if not np.isfinite(rows).all():
            raise BundleError(f"{self.path} answers with what is no number", "probabilities", "use another copy")
        wanted = [i for i, want in enumerate(wants) if want.embedding or want.neighbors]
        embeddings = self._embeddings([pictures[i].pixels for i in wanted])
        seen = dict(zip(wanted, embeddings, strict=True))
        overlays = self._overlays(pictures, wants, rows)
        return [Found(row, seen.get(i), overlays.get(i)) for i, row in enumerate(rows)]

    def _embeddings(self, pictures: list[NDArray[np.uint8]]) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        if not pictures or isinstance(self.answers, Exported):
            return []
        return self.answers.embed(pictures, batch_size=len(pictures))  # [M, D]

    def _overlays(
        self, pictures: Sequence[Prepared], wants: Sequence[Want], rows: NDArray[np.float32]
    ) -> dict[int, Overlay]:
        if self.explain is None:
            return {}
        found: dict[int, Overlay] = {}
        for method in METHODS:
            wanted = [i for i, want in enumerate(wants) if want.saliency == method]
            if wanted:
                maps = self.explain.maps(method, [pictures[i].pixels for i in wanted], rows[wanted].argmax(1))
                for i, one in zip(wanted, maps, strict=True):
                    found[i] = self.explain.overlay(method, one, pictures[i].height, pictures[i].width)
        return found

    def neighbors(self, found: Found, count: int) -> Found:
        """The same with its nearest training pictures."""
        if self.explain is None or found.embedding is None:
            return found
        return replace(found, neighbors=self.explain.nearest(found.embedding, count))

    def filters(self) -> NDArray[np.uint8] | None:
        """The first layer's filters side by side, one pixel a weight: uint8 [H, W, 3]; None for an exported file."""
        if isinstance(self.answers, Exported):
            return None
        from alexnet.deploy.server.filters import first_filters, grid

        weights = first_filters(self.answers.network)
        return None if weights is None else grid(weights, self.answers.network.towers)


def _preprocessing(stored: int, fit: str, side: int | None) -> dict[str, Any]:
    return {"stored_size": stored, "fit": fit} | ({"image_size": side} if side is not None else {})


def _plain(data: Any) -> dict[str, Any]:
    """What a bundle says of its data, as JSON can hold it."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(data), default=str))
    return plain
