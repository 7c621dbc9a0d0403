"""Work in a thread of its own that nothing has to wait for: opening files on a disk that may hang, joining threads.

Has the bundle on the disk changed? Looked at every few seconds, by size and time of its files.

What answers: a bundle or an exported file, opened, checked byte by byte and asked its reference images.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from alexnet.data import decode, resize
from alexnet.data.atomic_io import sha256_of
from alexnet.errors import BundleError
from alexnet.export import verify
from alexnet.export.exported_model import ExportedModel
from alexnet.export.manifest import FORMATS
from alexnet.schema import ReferenceSample
from alexnet.serve.explain import METHODS, Explain, Method, Neighbor, Overlay

T = TypeVar("T")


async def in_thread(name: str, function: Callable[..., T], *args: object) -> T:
    """The result of ``function(*args)``, called in a new daemon thread.

    An executor's threads are joined when the loop closes and when Python ends, so a hung disk would keep the process
    alive. A thread that has ended also releases its team of OpenMP threads: with more threads than cores, GCC's would
    slow down every later operation.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        if future.done():  # cancelled
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, failure = None, None
        try:
            result = function(*args)
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, result, failure)

    threading.Thread(target=work, name=name, daemon=True).start()
    return await future


Signature: TypeAlias = tuple[tuple[str, int, int, int], ...]


def signature(path: Path) -> Signature:
    """Name, size, time and inode of each file of a bundle, run or exported file; empty while it is not there."""
    folder = path / "bundle" if (path / "bundle" / "config.json").is_file() else path
    try:
        files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else [path]
        stats = [(str(file), file.stat()) for file in files]
    except OSError:  # it is being replaced
        return ()
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in stats)


async def watch(path: Path, seconds: float, known: Signature, reload: Callable[[], Awaitable[object]]) -> None:
    """Call ``reload`` whenever the files are others than ``known``, and the same at two looks: copying takes time."""
    before = known
    while True:
        await asyncio.sleep(seconds)
        now = await in_thread("watch", signature, path)
        if now and now != known and now == before:
            known = now
            await reload()
        before = now


if TYPE_CHECKING:
    from alexnet.export.classifier import Classifier


class Want(NamedTuple):
    """What is asked of an image besides its probabilities."""

    embedding: bool = False
    saliency: Method | None = None  # of the first prediction
    neighbors: int = 0  # training images


class Prepared(NamedTuple):
    """An image ready for the network: uint8 [S, S, 3] (or [H, W, 3], for a file that resizes); its own size."""

    pixels: NDArray[np.uint8]
    height: int
    width: int


@dataclass(frozen=True)
class Found:
    """What was found of an image: probabilities [K], and what was wanted."""

    row: NDArray[np.float32]
    embedding: NDArray[np.float32] | None = None  # [D]
    saliency: Overlay | None = None
    neighbors: tuple[Neighbor, ...] = ()


class Engine:
    """A classifier of which every byte was checked and which answered its reference images.

    ``sha256`` names it: of a bundle's config.json, which holds the SHA-256 of all its other files, or of an exported
    file. ``offers`` are the names of what can be wanted besides probabilities.
    """

    def __init__(self, path: Path, responses: "Classifier | ExportedModel", sha256: str, most_pixels: int) -> None:
        self.path, self.sha256, self.responses, self.most_pixels = path, sha256, responses, most_pixels
        self.classes = responses.classes
        self.reference_samples: list[ReferenceSample]
        self.explain: Explain | None = None
        self.offers: tuple[str, ...]
        if isinstance(responses, ExportedModel):
            self._open_file(responses)
        else:
            self._open_bundle(responses)
        self.max_abs_diff = self._prove()

    @classmethod
    def open(
        cls, path: Path, device: str, most_pixels: int = decode.MAX_PIXELS, precision: Literal["fp32", "bf16"] = "fp32"
    ) -> "Engine":
        """Open a run, a bundle, or FILE.onnx or FILE.xml. Raises :class:`BundleError` that says what is wrong.

        In ``precision`` bf16 reference images may be answered otherwise by three hundredths.
        """
        if path.suffix in FORMATS and not path.is_dir():
            if precision != "fp32":
                raise BundleError(f"--precision {precision} of an exported file", "left out", "export it so instead")
            return cls(path, ExportedModel.load(path), sha256_of(path), most_pixels)
        from alexnet.bundle import find_bundle
        from alexnet.export.classifier import Classifier

        bundle = find_bundle(path)
        classifier = Classifier.load(bundle, device, precision)
        return cls(path, classifier, sha256_of(bundle / "config.json"), most_pixels)

    def _open_bundle(self, classifier: "Classifier") -> None:
        bundle = classifier.bundle
        classifier.optimize()
        resize.build()
        self.limit, self._decoded = verify.LIMIT if classifier.precision == "fp32" else verify.HALF_LIMIT, True
        self.explain = Explain(classifier, self.path)
        self.offers = ("embedding", *self.explain.offers)
        self._stored: tuple[int, decode.Fit] | None = (bundle.stored_size, bundle.fit)
        self.reference_samples = list(bundle.reference_samples)
        self.name = bundle.network.name
        self.about: dict[str, Any] = {
            "parameters": sum(p.numel() for p in bundle.network.parameters()),
            "preprocessing": _preprocessing(bundle.stored_size, bundle.fit, bundle.image_size),
            "metrics": dict(bundle.metrics),
            "data": _plain(bundle.data),
            "recipe": str(bundle.recipe.get("recipe", "")),
            "precision": classifier.precision,
        }

    def _open_file(self, file: ExportedModel) -> None:
        manifest = file.manifest
        fit: Any = manifest.fit
        self._decoded = manifest.input == "decoded"
        self._stored = (manifest.stored_size, fit)
        self.limit, self.offers, self.reference_samples = manifest.tolerance, (), list(manifest.reference_samples)
        self.name = manifest.network
        self.about = {
            "preprocessing": _preprocessing(manifest.stored_size, manifest.fit, None),
            "metrics": {},
            "data": {},
            "recipe": "",
            "precision": manifest.precision,
        }

    def _prove(self) -> float | None:
        """The reference images' largest difference; None where there are none. Raises :class:`BundleError`."""
        if not self.reference_samples:
            return None
        return verify.replay(str(self.path), self.responses, self.reference_samples, self._stored, self.limit)

    def prepare(self, data: bytes, name: str) -> Prepared:
        """The bytes of an image -> what :meth:`answer` takes. Raises :class:`ImageError` with ``name``."""
        decoded = decode.decode(data, name, most=self.most_pixels)
        fitted = self.responses.prepare(decoded, name) if self._decoded else decoded
        return Prepared(fitted, *decoded.shape[:2])

    def response(self, images: Sequence[Prepared], wants: Sequence[Want]) -> list[Found]:
        """What is to be said of prepared images, all in one batch; :meth:`neighbors` come later."""
        rows = self.responses.probabilities([p.pixels for p in images], batch_size=len(images))  # [N, K]
        if not np.isfinite(rows).all():
            raise BundleError(f"{self.path} answers with what is no number", "probabilities", "use another copy")
        wanted = [i for i, want in enumerate(wants) if want.embedding or want.neighbors]
        embeddings = self._embeddings([images[i].pixels for i in wanted])
        seen = dict(zip(wanted, embeddings, strict=True))
        overlays = self._overlays(images, wants, rows)
        return [Found(row, seen.get(i), overlays.get(i)) for i, row in enumerate(rows)]

    def _embeddings(self, images: list[NDArray[np.uint8]]) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        if not images or isinstance(self.responses, ExportedModel):
            return []
        return self.responses.embed(images, batch_size=len(images))  # [M, D]

    def _overlays(
        self, images: Sequence[Prepared], wants: Sequence[Want], rows: NDArray[np.float32]
    ) -> dict[int, Overlay]:
        if self.explain is None:
            return {}
        results: dict[int, Overlay] = {}
        for method in METHODS:
            wanted = [i for i, want in enumerate(wants) if want.saliency == method]
            if wanted:
                maps = self.explain.maps(method, [images[i].pixels for i in wanted], rows[wanted].argmax(1))
                for i, one in zip(wanted, maps, strict=True):
                    results[i] = self.explain.overlay(method, one, images[i].height, images[i].width)
        return results

    def neighbors(self, results: Found, count: int) -> Found:
        """The same with its nearest training images."""
        if self.explain is None or results.embedding is None:
            return results
        return replace(results, neighbors=self.explain.nearest(results.embedding, count))

    def filters(self) -> NDArray[np.uint8] | None:
        """The first layer's filters side by side, one pixel a weight: uint8 [H, W, 3]; None for an exported file."""
        if isinstance(self.responses, ExportedModel):
            return None
        from alexnet.serve.explain import first_filters, grid

        weights = first_filters(self.responses.network)
        return None if weights is None else grid(weights, self.responses.network.towers)


def _preprocessing(stored: int, fit: str, side: int | None) -> dict[str, Any]:
    return {"stored_size": stored, "fit": fit} | ({"image_size": side} if side is not None else {})


def _plain(data: Any) -> dict[str, Any]:
    """What a bundle says of its data, as JSON can hold it."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(data), default=str))
    return plain
