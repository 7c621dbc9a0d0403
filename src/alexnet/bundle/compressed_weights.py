"""Compressed weights on disk: a ``.safetensors`` file whose header describes how its arrays are decoded.

Format ``alexnet-compressed``, version 1. A tensor ``fc6.weight`` is stored either as float32 under its own name, or as
the streams ``fc6.weight/gaps``, ``fc6.weight/codes`` … of :mod:`alexnet.bundle.codec`. The metadata of the safetensors
header has one entry, ``alexnet``, because safetensors writes several entries in any order. It is a JSON object with
``format``, ``version`` and ``tensors``: name -> kind, shape, counts, and the SHA-256 of the decoded float32 numbers
(little-endian, row-major). No array larger than the requested shape is allocated.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.bundle import codec
from alexnet.errors import BundleError
from alexnet.schema import parse_json

KEY, FORMAT, VERSION = "alexnet", "alexnet-compressed", 1


def write(path: Path, tensors: Mapping[str, Tensor], coding: Mapping[str, str]) -> None:
    """Write ``tensors`` without rounding.

    Args:
        path: The file to write.
        tensors: Tensors by name.
        coding: Kind of coding by name (see :mod:`alexnet.bundle.codec`); all other tensors are written as float32.

    Raises:
        BundleError: Weights are not of their kind.
    """
    from safetensors.numpy import save

    plain, header = {}, {}
    for name, tensor in tensors.items():
        values = as_array(tensor)
        if name not in coding:
            plain[name] = values
            continue
        try:
            metadata, streams = codec.encode(values, coding[name])
        except ValueError as error:
            message = f"{name} can not be written as {coding[name]}: {error}"
            raise BundleError(message, "compressed weights", "compress it again") from error
        header[name] = metadata | {"sha256": sha256_of(codec.decode(metadata, streams, values.shape))}
        plain |= {f"{name}/{stream}": np.ascontiguousarray(values) for stream, values in streams.items()}
    content = {"format": FORMAT, "version": VERSION, "tensors": header}
    path.write_bytes(save(plain, metadata={KEY: json.dumps(content, sort_keys=True)}))


def read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file that :func:`write` wrote.

    Args:
        path: The file.
        shapes: Shape of each tensor by name; the file must hold exactly these.

    Returns:
        The tensors, float32, by name, and the kind of coding of each compressed one.

    Raises:
        BundleError: The file is damaged, or holds other tensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            header = _header(path, file.metadata())
            names = set(file.keys())
            tensors = {name: _tensor(path, file, names, name, shape, header) for name, shape in shapes.items()}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, " ".join(str(error).split())) from error
    if names or set(header) - set(shapes):
        raise _damaged(path, f"it also has {sorted(names | (set(header) - set(shapes)))[0]!r:.80}")
    return tensors, {name: metadata["kind"] for name, metadata in header.items()}


def as_array(tensor: Tensor) -> NDArray[np.float32]:
    """The tensor as a float32 array, row-major."""
    return np.ascontiguousarray(tensor.detach().float().cpu().contiguous().numpy())


def sha256_of(values: NDArray[np.float32]) -> str:
    """SHA-256 of the numbers in row-major order, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(values, "<f4").data).hexdigest()


def _header(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        content = parse_json((metadata or {}).get(KEY, "{}").encode())
    except ValueError as error:
        raise _damaged(path, f"its header has {error}") from error
    content = content if isinstance(content, dict) else {}
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        version = f"{content.get('format')!r:.40} version {content.get('version')!r:.20}"
        raise BundleError(f"{path} is of format {version}", f"{FORMAT} version {VERSION}", "install a newer alexnet")
    header = content.get("tensors")
    if (
        not isinstance(header, dict)
        or not header
        or not all(isinstance(metadata, dict) for metadata in header.values())
    ):
        raise _damaged(path, "its header names no tensors")
    return header


def _tensor(
    path: Path, file: Any, names: set[str], name: str, shape: tuple[int, ...], header: Mapping[str, Any]
) -> Tensor:
    """One tensor. The names of its arrays are removed from ``names``."""
    keys = {key for key in names if key == name or key.startswith(f"{name}/")}
    names -= keys
    try:
        if name not in header:
            values = file.get_tensor(name)
            if values.dtype != np.float32 or values.shape != tuple(shape):
                raise ValueError(f"{values.dtype} {list(values.shape)}, not float32 {list(shape)}")
            if not np.isfinite(values).all():
                raise ValueError("values that are NaN or Inf")
            return torch.from_numpy(np.array(values))
        streams = {key.rpartition("/")[2]: file.get_tensor(key) for key in keys}
        values = codec.decode(header[name], streams, tuple(shape))
        if sha256_of(values) != header[name]["sha256"]:
            raise ValueError("the decoded numbers do not match their SHA-256")
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{name}: {' '.join(str(error).split())}") from error
    return torch.from_numpy(values)


def _damaged(path: Path, reason: str) -> BundleError:
    return BundleError(f"{path} is damaged: {reason:.300}", "", "use another copy")
