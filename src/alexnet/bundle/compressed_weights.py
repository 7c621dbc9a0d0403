"""Compressed weights on disk: a ``.safetensors`` file whose header says how its arrays become the network's.

Format ``alexnet-compressed``, version 1. A tensor ``fc6.weight`` is either there by its name, float32 as ever, or as
streams ``fc6.weight/gaps``, ``fc6.weight/codes`` … of :mod:`alexnet.bundle.codec`. The header's metadata has one
entry, ``alexnet``, since safetensors writes several in any order: a JSON object with ``format``, ``version``, and
``tensors``: name -> kind, shape, counts, and the SHA-256 of the decoded float32 numbers (little-endian, rows first).
Nothing is made larger than the network that asks for it.
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
    """Write ``tensors`` as float32, those named in ``coding`` as that kind.

    Raises :class:`BundleError` for weights that are not of their kind: writing never rounds.
    """
    from safetensors.numpy import save

    plain, header = {}, {}
    for name, tensor in tensors.items():
        values = as_array(tensor)
        if name not in coding:
            plain[name] = values
            continue
        try:
            about, streams = codec.encode(values, coding[name])
        except ValueError as error:
            what = f"{name} can not be written as {coding[name]}: {error}"
            raise BundleError(what, "compressed weights", "compress it again") from error
        header[name] = about | {"sha256": sha256_of(codec.decode(about, streams, values.shape))}
        plain |= {f"{name}/{stream}": np.ascontiguousarray(result) for stream, result in streams.items()}
    messages = {"format": FORMAT, "version": VERSION, "tensors": header}
    path.write_bytes(save(plain, metadata={KEY: json.dumps(messages, sort_keys=True)}))


def read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of ``shapes``, float32, and how they are coded (name -> kind).

    Raises :class:`BundleError` for anything else than a whole file with exactly these.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            header = _header(path, file.metadata())
            names = set(file.keys())
            results = {name: _tensor(path, file, names, name, shape, header) for name, shape in shapes.items()}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, " ".join(str(error).split())) from error
    if names or set(header) - set(shapes):
        raise _damaged(path, f"it has {sorted(names | (set(header) - set(shapes)))[0]!r:.80} besides")
    return results, {name: about["kind"] for name, about in header.items()}


def as_array(tensor: Tensor) -> NDArray[np.float32]:
    """A tensor's numbers as float32, rows first."""
    return np.ascontiguousarray(tensor.detach().float().cpu().contiguous().numpy())


def sha256_of(values: NDArray[np.float32]) -> str:
    """SHA-256 of the numbers as they lie in memory, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(values, "<f4").data).hexdigest()


def _header(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        messages = parse_json((metadata or {}).get(KEY, "{}").encode())
    except ValueError as error:
        raise _damaged(path, f"its header has {error}") from error
    result = messages if isinstance(messages, dict) else {}
    if result.get("format") != FORMAT or result.get("version") != VERSION:
        what = f"{result.get('format')!r:.40} version {result.get('version')!r:.20}"
        raise BundleError(f"{path} is of format {what}", f"{FORMAT} version {VERSION}", "install a newer alexnet")
    header = result.get("tensors")
    if not isinstance(header, dict) or not header or not all(isinstance(about, dict) for about in header.values()):
        raise _damaged(path, "its header names no tensors")
    return header


def _tensor(
    path: Path, file: Any, names: set[str], name: str, shape: tuple[int, ...], header: Mapping[str, Any]
) -> Tensor:
    """One tensor; its names are taken out of ``names``."""
    own = {key for key in names if key == name or key.startswith(f"{name}/")}
    names -= own
    try:
        if name not in header:
            values = file.get_tensor(name)
            if values.dtype != np.float32 or values.shape != tuple(shape):
                raise ValueError(f"{values.dtype} {list(values.shape)}, not float32 {list(shape)}")
            if not np.isfinite(values).all():
                raise ValueError("values that are NaN or Inf")
            return torch.from_numpy(np.array(values))
        streams = {key.rpartition("/")[2]: file.get_tensor(key) for key in own}
        values = codec.decode(header[name], streams, tuple(shape))
        if sha256_of(values) != header[name]["sha256"]:
            raise ValueError("decoded to other numbers than its SHA-256 says")
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{name}: {' '.join(str(error).split())}") from error
    return torch.from_numpy(values)


def _damaged(path: Path, why: str) -> BundleError:
    return BundleError(f"{path} is damaged: {why:.300}", "", "use another copy")
