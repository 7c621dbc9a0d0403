"""Nearest training images: an index of the features in the last hidden layer, searched exactly.

Figure 4 (right) of the paper: images whose features in fc7 lie at the smallest Euclidean distance. An index is one
safetensors file, format version 1, in the run's folder::

    features     float32 [N, D]          the output of the network's ``features`` layer for each training image
    labels       int64 [N]
    thumbnails   uint8 [N, 64, 64, 3]
    origins      uint8 [B]               the origins of the images, UTF-8, concatenated
    ends         int64 [N]               the end of each origin in ``origins``

Its metadata has the classes, the SHA-256 of the weights, the fingerprint of the store, and the SHA-256 of the whole
file, in which its own digits count as zeros. It is checked when the index is opened. The index is written and read in
blocks of rows, so memory does not grow with the number of images.
"""

import abc
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.bundle import Bundle
from alexnet.data import decode
from alexnet.data.atomic_io import atomic_write, written
from alexnet.data.remote import local_path
from alexnet.data.store import Split, Store
from alexnet.errors import DataError, ModelError, RunError, reason
from alexnet.evaluation.evaluate import features_of
from alexnet.evaluation.ood import FeatureSample
from alexnet.loader.loader import sequential_batches, to_device
from alexnet.schema import check, parse_json
from alexnet.terminal import Progress

FILE = "neighbors.safetensors"  # in a run's folder
FORMAT, VERSION = "alexnet-neighbors", "1"
NO_DIGEST = "0" * 64  # placeholder of the file's own SHA-256
THUMBNAIL_SIZE = 64  # pixels
BATCH = 64  # images per forward pass
BLOCK = 32 << 20  # bytes of float64 features that a search holds at a time

_KINDS = {"F32": np.float32, "I64": np.int64, "U8": np.uint8}
Layout = dict[str, tuple[str, tuple[int, ...]]]  # name -> kind and shape, in the file's order


class SearchedImages(abc.ABC):
    """N training images with D features each, among which the nearest to others are searched.

    Attributes:
        classes: The class names.
        labels: Class indices, int64 [N].
    """

    def __init__(self, classes: Sequence[str], labels: NDArray[np.int64], features: NDArray[np.float32]) -> None:
        self.classes, self.labels, self._features = tuple(classes), labels, features
        self._squares: NDArray[np.float64] | None = None  # |row|² [N], from the first search on

    def __len__(self) -> int:
        return len(self.labels)

    def nearest(self, features: NDArray[np.floating[Any]], k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The ``k`` images (or all, if there are fewer) nearest to each of ``features`` [M, D], in order of distance.

        The search is exact: float32 products with the mapped features exclude the rows that are farther than rounding
        could explain, and the distances of the others are computed from differences in float64. Equal distances are
        in the order of the rows.

        Args:
            features: Features of M images, [M, D].
            k: Number of neighbors.

        Returns:
            Euclidean distances float64 [M, k], and rows int64 [M, k].

        Raises:
            ModelError: If the features have another shape or are not finite.
        """
        rows, width = self._features.shape
        if features.ndim != 2 or features.shape[1] != width or not np.isfinite(features).all() or k < 1:
            raise ModelError(f"features {list(features.shape)} and k = {k}", f"[M, {width}], finite, and k at least 1")
        k = min(k, rows)
        nearest = [self._nearest_to(one, k) for one in features.astype(np.float64)]
        distances = np.array([distances for distances, _ in nearest]).reshape(-1, k)
        return distances, np.array([indices for _, indices in nearest], np.int64).reshape(-1, k)

    def _nearest_to(self, wanted: NDArray[np.float64], k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Distances [k] and rows [k] of the images nearest to the features [D] of one image."""
        if self._squares is None:
            self._squares = np.concatenate([np.square(block.astype(np.float64)).sum(1) for block in self._blocks()])
        with np.errstate(over="ignore", invalid="ignore"):
            products = self._features @ wanted.astype(np.float32)  # [N]
            estimates = self._squares - 2 * products.astype(np.float64)  # squared distances less |wanted|²
        candidates = np.arange(len(estimates))
        if np.isfinite(estimates).all():  # products of huge features overflow: then all distances are computed
            rounding = np.finfo(np.float32).eps * (len(wanted) + 2) * np.linalg.norm(wanted) * np.sqrt(self._squares)
            surely = np.partition(estimates + 2 * rounding, k - 1)[k - 1]
            candidates = np.flatnonzero(estimates - 2 * rounding <= surely)
        step = self._rows_at_once()
        parts = [candidates[start : start + step] for start in range(0, len(candidates), step)]
        distances = np.concatenate([np.linalg.norm(wanted - self._features[part], axis=1) for part in parts])
        order = np.lexsort((candidates, distances))[:k]
        return distances[order], candidates[order]

    def label(self, row: int) -> str:
        """The class name of a training image."""
        return str(self.classes[self.labels[row]])

    @abc.abstractmethod
    def thumbnail(self, row: int) -> NDArray[np.uint8]:
        """The thumbnail of a training image: uint8 [64, 64, 3]."""

    def _rows_at_once(self) -> int:
        return max(1, BLOCK // (8 * int(self._features.shape[1])))

    def _blocks(self) -> Iterator[NDArray[np.float32]]:
        step = self._rows_at_once()
        for first in range(0, len(self._features), step):
            yield self._features[first : first + step]


class SampledImages(SearchedImages):
    """A sample of the training images, in memory. Arguments: their features, and the store that they are from."""

    def __init__(self, sample: FeatureSample, store: Store) -> None:
        super().__init__(store.classes, sample.labels, sample.features)
        self._split, self._indices = store.split("train"), sample.indices

    def thumbnail(self, row: int) -> NDArray[np.uint8]:
        """The thumbnail of a training image: uint8 [64, 64, 3]."""
        return decode.fit(self._split.gather(self._indices[row : row + 1])[0], THUMBNAIL_SIZE, "squash")


class Neighbors(SearchedImages):
    """An open index of N training images with D features each. Use :meth:`build` or :meth:`open`.

    Attributes:
        weights: SHA-256 of the weights that computed the features.
        fingerprint: Fingerprint of the store that the images are from.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str], file: Any) -> None:
        self.path, self._file = path, file
        self.weights, self.fingerprint = metadata["weights"], metadata["store"]
        classes = tuple(check(parse_json(metadata["classes"].encode()), list[str]))
        self._parts = {name: file.get_slice(name) for name in ("features", "thumbnails", "origins")}
        self._ends: NDArray[np.int64] = file.get_tensor("ends")
        super().__init__(classes, file.get_tensor("labels"), _mapped(path))
        _check(self, self._parts)

    @classmethod
    def build(
        cls,
        path: Path | str,
        bundle: Bundle,
        store: Store,
        weights: str,
        *,
        device: torch.device | None = None,
        progress: Progress | None = None,
    ) -> "Neighbors":
        """Compute the features of every training image and write the index, atomically.

        Args:
            path: The file.
            bundle: The trained network.
            store: The images.
            weights: SHA-256 of the file of the weights.
            device: The device of the network.
            progress: Receives the number of indexed images, and of all.

        Raises:
            DataError: If the store has no training images.
            RunError: If the file cannot be written.
        """
        path, split = local_path(path), store.split("train")
        if not len(split):
            raise DataError(f"store {store.address} has no training images", "one at least", "there are no neighbors")
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "weights": weights,
            "store": store.fingerprint,
            "classes": json.dumps(store.classes, ensure_ascii=False),
            "sha256": NO_DIGEST,
        }
        with written(path), atomic_write(path) as file:
            _write(file, bundle, split, metadata, device or torch.device("cpu"), progress)
            _checksum(file)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str, weights: str | None = None) -> "Neighbors":
        """Open an index. Raises :class:`RunError` for a damaged one, or one that is not of ``weights``."""
        from safetensors import SafetensorError, safe_open

        path = local_path(path)
        if not path.is_file():
            raise RunError(f"no index of neighbors at {path}", "", "build it with: alexnet plot neighbors RUN")
        try:
            file: Any = safe_open(path, "np")
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
                raise RunError(
                    f"{path} is no index of neighbors", f"of format {FORMAT}, version {VERSION}", "delete it"
                )
            with path.open("rb") as opened:
                if _digest(opened)[0] != metadata["sha256"]:
                    raise ValueError("its SHA-256 differs")
            result = cls(path, metadata, file)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise RunError(f"index {path} is damaged: {reason(error)}", "", "delete it") from error
        if weights is not None and result.weights != weights:
            raise RunError(
                f"index {path} was made with other weights, SHA-256 {result.weights[:12]}…",
                f"{weights[:12]}…",
                "build it again: alexnet plot neighbors RUN",
            )
        return result

    def origin(self, row: int) -> str:
        """The origin of a training image: its name in the data."""
        start, end = int(self._ends[row - 1]) if row else 0, int(self._ends[row])
        return bytes(self._parts["origins"][start:end]).decode()

    def thumbnail(self, row: int) -> NDArray[np.uint8]:
        """The thumbnail of a training image: uint8 [64, 64, 3]."""
        value: NDArray[np.uint8] = self._parts["thumbnails"][row : row + 1][0]
        return value


def _mapped(path: Path) -> NDArray[np.float32]:
    """The features [N, D], memory-mapped: a search reads the system's file cache, without a copy."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = parse_json(file.read(length))["features"]
    if entry["dtype"] != "F32":
        raise ValueError(f"its features are {entry['dtype']}, not F32")
    shape = tuple(entry["shape"])
    if not shape[1]:
        raise ValueError("its features have no columns")
    return np.memmap(path, np.float32, "r", 8 + length + entry["data_offsets"][0], shape)


def _write(
    file: IO[bytes],
    bundle: Bundle,
    split: Split,
    metadata: dict[str, str],
    device: torch.device,
    progress: Progress | None,
) -> None:
    """Write the file in one pass over the images, each row at its position."""
    network, normalization = bundle.network.to(device).eval(), to_device(bundle.normalization, device)
    origins = [str(row["origin"]).encode("utf-8", "replace") for row in split.origins()]
    positions: dict[str, int] = {}
    for images, indices in sequential_batches(split, BATCH):
        features = features_of(network, images.numpy(), normalization)
        if not np.isfinite(features).all():
            raise ModelError("features that are not finite", "", "the training went wrong; use an earlier checkpoint")
        if not positions:
            positions = _write_header(file, _layout(len(split), features.shape[1], sum(map(len, origins))), metadata)
        small = np.stack([decode.fit(image, THUMBNAIL_SIZE, "squash") for image in images.numpy()])
        for name, rows in (("features", features), ("thumbnails", small)):
            file.seek(positions[name] + int(indices[0]) * rows[0].nbytes)
            file.write(np.ascontiguousarray(rows).tobytes())
        if progress is not None:
            progress(int(indices[-1]) + 1, len(split))
    ends = np.cumsum([len(origin) for origin in origins], dtype=np.int64)
    for name, data in (("labels", split.labels.tobytes()), ("ends", ends.tobytes()), ("origins", b"".join(origins))):
        file.seek(positions[name])
        file.write(data)


def _checksum(file: IO[bytes]) -> None:
    """Write the SHA-256 of the whole file into its header."""
    digest, place = _digest(file)
    file.seek(place)
    file.write(digest.encode())


def _digest(file: IO[bytes]) -> tuple[str, int]:
    """The SHA-256 of the file without its own digits, and their position. Raises ValueError if there is none."""
    file.seek(0)
    length = file.read(8)
    text = file.read(int.from_bytes(length, "little"))
    if (key := re.search(rb'"sha256": ?"', text)) is None:
        raise ValueError("it has no SHA-256")
    place = key.end()
    digest = hashlib.sha256(length + text[:place] + NO_DIGEST.encode() + text[place + len(NO_DIGEST) :])
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest(), 8 + place


def _layout(count: int, width: int, text: int) -> Layout:
    return {
        "features": ("F32", (count, width)),
        "labels": ("I64", (count,)),
        "ends": ("I64", (count,)),
        "thumbnails": ("U8", (count, THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3)),
        "origins": ("U8", (text,)),
    }


def _write_header(file: IO[bytes], layout: Layout, metadata: dict[str, str]) -> dict[str, int]:
    """Write a safetensors header (8 bytes of its length, then JSON), and return the position of each tensor.

    The library's own writer needs all tensors in memory.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (kind, shape) in layout.items():
        size = int(np.prod(shape)) * np.dtype(_KINDS[kind]).itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return {name: 8 + len(text) + header[name]["data_offsets"][0] for name in layout}


def _check(index: Neighbors, parts: Mapping[str, Any]) -> None:
    """Raise ValueError unless the tensors are consistent."""
    count = len(index.labels)
    features, thumbnails, text = (parts[name].get_shape() for name in ("features", "thumbnails", "origins"))
    if (
        not count
        or features[0] != count
        or len(features) != 2
        or thumbnails != [count, THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3]
    ):
        raise ValueError("its tensors have inconsistent shapes")
    if len(index._ends) != count or index._ends[-1] != text[0] or (np.diff(index._ends, prepend=0) < 0).any():
        raise ValueError("its origins are inconsistent")
    if index.labels.min() < 0 or index.labels.max() >= len(index.classes):
        raise ValueError("a label has no class")
