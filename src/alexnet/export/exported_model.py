"""An exported file with its runtime: ONNX with onnxruntime, OpenVINO with openvino, .pt2 with PyTorch.

Each runtime is imported only for its own files, so that onnxruntime, NumPy and Pillow are all that a FILE.onnx needs.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alexnet.data import decode
from alexnet.data.remote import local_path
from alexnet.errors import BundleError
from alexnet.export import manifest as checksum
from alexnet.export.manifest import Manifest
from alexnet.export.prediction import ImageInput, Prediction, as_pixels, best, named

Run: TypeAlias = Callable[[NDArray[np.uint8]], Any]


class ExportedModel:
    """An exported file whose checksum was verified. It predicts like :class:`alexnet.Classifier`, on the center crop.

    ``classes`` are the class names in the order of the probabilities, ``manifest`` is the file's own description.
    """

    def __init__(self, path: Path, manifest: Manifest, run: Run) -> None:
        self.path, self.manifest, self._run = path, manifest, run
        self.classes = manifest.classes

    @classmethod
    def load(cls, path: Path | str, trust: bool = False) -> "ExportedModel":
        """Open FILE.onnx, FILE.xml or FILE.pt2. Raises :class:`BundleError` if a byte of it has changed.

        A .pt2 is opened only with ``trust``: PyTorch unpickles parts of it, which may run code of whoever made it.
        """
        path = local_path(path)
        if not path.is_file():
            raise BundleError(f"there is no file {path}", "a file that alexnet export wrote")
        if path.suffix == ".pt2" and not trust:
            raise BundleError(
                f"{path} is of PyTorch's own format, which can hold code that runs when it is opened",
                "from someone you trust",
                "allow it (--trust), or use a FILE.onnx",
            )
        checksum.check(path)
        return cls(path, *_OPENERS[path.suffix](path))

    def predict(
        self, images: ImageInput | Sequence[ImageInput], top: int = 5, confidence_threshold: float | None = None
    ) -> list[Prediction]:
        """The ``top`` predictions for each image, which abstain where the first score is below
        ``confidence_threshold``.

        Raises :class:`ImageError` for an image that can not be read.
        """
        items = named(images)
        rows = self.probabilities([image for _, image in items])
        return [
            best(name, row, self.classes, top, confidence_threshold) for (name, _), row in zip(items, rows, strict=True)
        ]

    def probabilities(self, images: ImageInput | Sequence[ImageInput], batch_size: int = 32) -> NDArray[np.float32]:
        """Class probabilities of each image: float32 [N, K]."""
        items = named(images)
        if self.manifest.input == "images":
            rows = [self._infer(as_pixels(image, name), 1) for name, image in items]
        else:
            rows = [
                self._infer(np.stack([self.prepare(p, name) for name, p in batch]), len(batch))
                for batch in (items[start : start + batch_size] for start in range(0, len(items), batch_size))
            ]
        return np.concatenate(rows) if rows else np.zeros((0, len(self.classes)), np.float32)

    def prepare(self, image: ImageInput, name: str = "image") -> NDArray[np.uint8]:
        """An image in its stored size: RGB uint8 [S, S, 3]."""
        fit: Any = self.manifest.fit
        return decode.fit(as_pixels(image, name), self.manifest.stored_size, fit)

    def _infer(self, batch: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
        if 0 in batch.shape:
            decode.fit(batch, 1)  # raises the error for an empty image
        try:
            result = np.asarray(self._run(np.ascontiguousarray(batch)), np.float32)
        except Exception as error:  # each runtime has its own
            raise checksum.damaged(self.path, f"it can not be run ({error})") from error
        if not np.isfinite(result).all():
            raise checksum.damaged(self.path, "its probabilities are NaN or Inf")
        if result.shape != (count, len(self.classes)):
            raise checksum.damaged(
                self.path, f"it returns probabilities of shape {list(result.shape)} for {count} images"
            )
        return result


def missing(library: str, path: Path | str, error: ImportError) -> BundleError:
    """The error where a library of the extra is not installed."""
    return BundleError(f"{path} needs {library}", "installed", "pip install 'alexnet[export]'").with_traceback(
        error.__traceback__
    )


def _open_onnx(path: Path) -> tuple[Manifest, Run]:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing("onnxruntime", path, error) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        # From bytes: a file that names others for its weights, which no checksum covers, is refused then.
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        name = session.get_inputs()[0].name
    except Exception as error:  # onnxruntime's own, a dozen classes
        raise checksum.damaged(path, f"onnxruntime can not open it ({error})") from error
    manifest = Manifest.from_json(metadata.get("alexnet", ""), path)
    if metadata.get("classes") != checksum.classes_json(manifest.classes):  # which other programs read
        raise checksum.damaged(path, "its entry of classes is not that of its manifest")
    return manifest, lambda batch: session.run(["probabilities"], {name: batch})[0]


def _open_openvino(path: Path) -> tuple[Manifest, Run]:
    manifest = checksum.manifest_of(path)
    try:
        import openvino
    except ImportError as error:
        raise missing("openvino", path, error) from error
    try:
        core = openvino.Core()
        # Without this a processor that knows bfloat16 computes in it, and the third digit is noise.
        compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except Exception as error:
        raise checksum.damaged(path, f"openvino can not open it ({error})") from error
    return manifest, lambda batch: compiled([batch])[0]


def _open_torch(path: Path) -> tuple[Manifest, Run]:
    manifest = checksum.manifest_of(path)
    import torch

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11 about its own buffers
            module = torch.export.load(path).module()
    except Exception as error:
        raise checksum.damaged(path, f"PyTorch can not open it ({error})") from error

    def run(batch: NDArray[np.uint8]) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(batch)).numpy()

    return manifest, run


_OPENERS: dict[str, Callable[[Path], tuple[Manifest, Run]]] = {
    ".onnx": _open_onnx,
    ".xml": _open_openvino,
    ".pt2": _open_torch,
}
