"""Compressed weights: lossless coding of arrays, decoded to the same bits, and the file that holds them.

``shared``: most weights are 0 and the others take at most 256 values. Streams: ``gaps`` (numbers of zeros between
weights) and ``codes`` (indices into the book), both Huffman coded, and ``book`` (the values, float32, ascending).
``int8``: integers from −127 to 127, scaled by the largest magnitude of their row ÷ 127. ``int4``: −7 to 7, scaled for
every 128 numbers of a row. Streams: ``codes`` (integer + 127 or + 7, Huffman coded) and ``largest`` (float32).

The Huffman codes are those of DEFLATE (RFC 1951), made by zlib without a search for repetitions. On the weights of a
trained fc6 they are within 1.5 % of the entropy; LZMA needs up to 3 % more and ten times as long (docs/log.md).

Format ``alexnet-compressed``, version 1. A tensor ``fc6.weight`` is stored either as float32 under its own name, or as
the streams ``fc6.weight/gaps``, ``fc6.weight/codes`` … above. The metadata of the
safetensors header has one entry, ``alexnet``, because safetensors writes several entries in any
order. It is a JSON object with ``format``, ``version`` and ``tensors``: name -> kind, shape, counts, and the SHA-256
of the decoded float32 numbers (little-endian, row-major). No array larger than the requested shape is allocated.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.errors import BundleError, reason
from alexnet.schema import parse_json

Floats = NDArray[np.float32]
Streams = dict[str, NDArray[Any]]

JUMP = 255  # gap symbol for 255 zeros that no weight follows
ROUNDS = 300  # maximum k-means iterations; fewer suffice unless thousands of weights lie on a cluster border
BOOK = 256  # maximum number of shared values: a code is one byte
STEPS = {"int8": 127, "int4": 7}
GROUP = {"int8": 0, "int4": 128}  # numbers of a row that share one largest magnitude; 0: the whole row
KINDS = {"shared": {"gaps", "codes", "book"}, "int8": {"codes", "largest"}, "int4": {"codes", "largest"}}  # streams


def squeeze(symbols: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Huffman-code the byte symbols [n]."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return np.frombuffer(coder.compress(symbols.tobytes()) + coder.flush(), np.uint8)


def expand(data: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Decode the ``count`` symbols that :func:`squeeze` coded.

    At most ``count`` + 1 symbols are decoded, so that a forged stream cannot fill the memory.

    Raises:
        ValueError: The data are damaged or hold another number of symbols.
    """
    decoder = zlib.decompressobj(-15)
    try:
        result = decoder.decompress(data.tobytes(), count + 1)
    except zlib.error as error:
        raise ValueError(f"invalid Huffman codes ({error})") from error
    if len(result) != count or not decoder.eof or decoder.unused_data:
        raise ValueError(f"Huffman codes of another number of symbols than {count}")
    return np.frombuffer(result, np.uint8)


def gaps_of(positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Number of zeros before each of the ascending positions [n]: [n + jumps].

    A gap of 255 zeros or more begins with :data:`JUMP` symbols.
    """
    jumps, rest = np.divmod(np.diff(positions, prepend=-1) - 1, JUMP)
    gaps = np.full(len(positions) + int(jumps.sum()), JUMP, np.uint8)
    gaps[np.cumsum(jumps + 1) - 1] = rest
    return gaps


def positions_of(gaps: NDArray[np.uint8], count: int, size: int) -> NDArray[np.int64]:
    """The positions [count] below ``size`` that :func:`gaps_of` coded.

    Raises:
        ValueError: The gaps give another number of positions, or a position of ``size`` or more.
    """
    is_weight = gaps != JUMP
    positions: NDArray[np.int64] = (np.cumsum(gaps.astype(np.int64) + is_weight) - 1)[is_weight]
    if len(positions) != count or (count and int(positions[-1]) >= size) or (len(gaps) and not is_weight[-1]):
        raise ValueError(f"positions of {len(positions)} weights, not of {count} below {size}")
    return positions


def kmeans(values: Floats, k: int) -> Floats:
    """Cluster the ``values`` [n] by k-means in one dimension.

    The first centers are equally spaced from the smallest to the largest value. This keeps the large weights, which
    are few and matter most (Han, Mao and Dally 2016, section 3.2). In one dimension a cluster is an interval, so each
    iteration takes k steps on the cumulative sums of the sorted values, whatever n is.

    Returns:
        At most ``k`` centers, ascending, none of them 0. Empty clusters have no center.
    """
    if not len(values):
        return np.zeros(0, np.float32)
    ordered = np.sort(values).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centers = np.linspace(ordered[0], ordered[-1], k)
    for _ in range(ROUNDS):
        before = centers
        counts, totals = _members(ordered, sums, centers)
        centers = np.where(counts > 0, totals / np.maximum(counts, 1), centers)
        if np.array_equal(before, centers):
            break
    counts, _ = _members(ordered, sums, centers)
    result = np.unique(centers[counts > 0].astype(np.float32))
    result[result == 0] = np.finfo(np.float32).tiny  # 0 means: pruned
    return result


def nearest(values: Floats, centers: Floats) -> NDArray[np.int64]:
    """Index of the nearest of the ascending ``centers`` for each value: [n]. A tie takes the lower center."""
    between = (centers[1:].astype(np.float64) + centers[:-1]) / 2
    return np.searchsorted(between, values.astype(np.float64))


def share(values: Floats, bits: int) -> Floats:
    """Replace each nonzero weight in ``values`` (any shape) by the nearest of at most 2^``bits`` centers."""
    flat = np.array(values, np.float32).reshape(-1)  # a copy
    nonzero = np.flatnonzero(flat)
    centers = kmeans(flat[nonzero], 2**bits)
    flat[nonzero] = centers[nearest(flat[nonzero], centers)] if len(nonzero) else flat[nonzero]
    return flat.reshape(values.shape)


def _members(
    ordered: NDArray[np.float64], sums: NDArray[np.float64], centers: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Number of weights of each center [k], and their sum [k]."""
    inner = np.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2, side="right")
    ends = np.concatenate([[0], inner, [len(ordered)]])
    return np.diff(ends), np.diff(sums[ends])


def encode(values: Floats, kind: str) -> tuple[dict[str, Any], Streams]:
    """Encode an array without rounding.

    Returns:
        The metadata (``kind``, ``shape`` and counts) and the streams.

    Raises:
        ValueError: ``values`` are not of that kind, so that decoding would not give the same bits.
    """
    metadata, streams = _encode_shared(values) if kind == "shared" else _encode_integers(values, kind)
    metadata |= {"kind": kind, "shape": list(values.shape)}
    if not np.array_equal(decode(metadata, streams, values.shape), values):
        raise ValueError(f"weights that are not of kind {kind}")
    return metadata, streams


def decode(metadata: Mapping[str, Any], streams: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> Floats:
    """Decode the array of ``shape``. The counts are checked before memory is allocated.

    Raises:
        ValueError, KeyError, TypeError: The metadata or streams do not encode an array of that shape.
    """
    kind = metadata["kind"]
    if list(metadata["shape"]) != list(shape) or kind not in KINDS or set(streams) != KINDS[kind]:
        raise ValueError(f"{kind!r:.20} of shape {metadata['shape']!r:.60}, not {list(shape)}")
    return _decode_shared(metadata, streams, shape) if kind == "shared" else _decode_integers(metadata, streams, shape)


def sizes(streams: Mapping[str, NDArray[Any]]) -> int:
    """Size of the streams in bytes."""
    return sum(stream.nbytes for stream in streams.values())


def _encode_shared(values: Floats) -> tuple[dict[str, Any], Streams]:
    flat = values.reshape(-1)
    if not np.isfinite(flat).all():
        raise ValueError("weights that are not finite")
    positions = np.flatnonzero(flat).astype(np.int64)
    book, codes = np.unique(flat[positions], return_inverse=True)
    if len(book) > BOOK:
        raise ValueError(f"{len(book)} different weights, not {BOOK} at most")
    gaps = gaps_of(positions)
    metadata = {"weights": len(positions), "gaps": len(gaps)}
    return metadata, {"gaps": squeeze(gaps), "codes": squeeze(codes.astype(np.uint8)), "book": book}


def _decode_shared(metadata: Mapping[str, Any], streams: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> Floats:
    size, book = int(np.prod(shape, dtype=np.int64)), _stream(streams, "book", np.float32)
    count = _count(metadata, "weights", size)
    gaps = expand(_stream(streams, "gaps", np.uint8), _count(metadata, "gaps", size + size // 255))
    positions = positions_of(gaps, count, size)
    codes = expand(_stream(streams, "codes", np.uint8), count)
    if len(book) > BOOK or not np.isfinite(book).all() or (count and int(codes.max()) >= len(book)):
        raise ValueError(f"codes that are not in a book of {len(book)}")
    values = np.zeros(size, np.float32)
    values[positions] = book[codes]
    return values.reshape(shape)


def largest_of(values: Floats, kind: str) -> Floats:
    """Largest magnitude of each row, or of each group of a row: [rows, groups]. Magnitudes below 1e-30 become 0."""
    rows = np.abs(values.reshape(values.shape[0], -1))
    largest = np.maximum.reduceat(rows, _starts(rows.shape[1], kind), axis=1).astype(np.float32)
    return np.where(largest < 1e-30, np.float32(0), largest)


def integers(values: Floats, largest: Floats, kind: str) -> NDArray[np.int8]:
    """Quantize to the nearest integers [rows, columns]; ``largest`` comes from :func:`largest_of`."""
    rows = values.reshape(values.shape[0], -1)
    wide = largest.astype(np.float64)
    scale = np.divide(STEPS[kind], wide, out=np.zeros_like(wide), where=wide > 0)
    scales = _spread(scale, rows.shape[1], kind)
    return np.asarray(np.rint(np.clip(rows * scales, -STEPS[kind], STEPS[kind])), np.int8)


def from_whole(numbers: NDArray[np.int8], largest: Floats, kind: str, shape: tuple[int, ...]) -> Floats:
    """Weights from integers [rows, columns]: integer ÷ steps × largest magnitude, each rounded to float32.

    The largest integer gives exactly the largest magnitude, so encoding decoded weights changes nothing.
    """
    fraction = numbers.astype(np.float32) / np.float32(STEPS[kind])
    return np.asarray(fraction * _spread(largest, numbers.shape[1], kind), np.float32).reshape(shape)


def _encode_integers(values: Floats, kind: str) -> tuple[dict[str, Any], Streams]:
    if kind not in STEPS or values.ndim < 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"{kind!r:.20} of an array {list(values.shape)} of finite numbers")
    largest = largest_of(values, kind)
    numbers = integers(values, largest, kind)
    symbols = (numbers.astype(np.int16) + STEPS[kind]).astype(np.uint8)
    return {}, {"codes": squeeze(symbols.reshape(-1)), "largest": largest}


def _decode_integers(
    metadata: Mapping[str, Any], streams: Mapping[str, NDArray[Any]], shape: tuple[int, ...]
) -> Floats:
    kind, size = metadata["kind"], int(np.prod(shape, dtype=np.int64))
    if len(shape) < 2 or not size:
        raise ValueError(f"{kind} of shape {list(shape)}")
    columns, largest = size // shape[0], _stream(streams, "largest", np.float32, 2)
    if largest.shape != (shape[0], len(_starts(columns, kind))) or not np.isfinite(largest).all():
        raise ValueError(f"largest magnitudes {list(largest.shape)}")
    symbols = expand(_stream(streams, "codes", np.uint8), size)
    if int(symbols.max()) > 2 * STEPS[kind]:
        raise ValueError(f"an integer {int(symbols.max()) - STEPS[kind]} in {kind}")
    numbers = (symbols.astype(np.int16) - STEPS[kind]).astype(np.int8).reshape(shape[0], columns)
    return from_whole(numbers, largest, kind, shape)


def _starts(columns: int, kind: str) -> NDArray[np.int64]:
    return np.arange(0, columns, GROUP[kind] or columns, dtype=np.int64)


def _spread(values: NDArray[Any], columns: int, kind: str) -> NDArray[Any]:
    """Repeat values per group, [rows, groups], for each column: [rows, columns], or [rows, 1] without groups."""
    return values if not GROUP[kind] else np.repeat(values, GROUP[kind], axis=1)[:, :columns]


def _stream(streams: Mapping[str, NDArray[Any]], name: str, kind: Any, dimensions: int = 1) -> NDArray[Any]:
    value = streams[name]
    if value.dtype != kind or value.ndim != dimensions:
        raise ValueError(f"{name} {value.dtype} of {value.ndim} dimensions")
    return value


def _count(metadata: Mapping[str, Any], name: str, maximum: int) -> int:
    value = metadata[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
        raise ValueError(f"{name} {value!r:.30}, not a number up to {maximum}")
    return value


KEY, FORMAT, VERSION = "alexnet", "alexnet-compressed", 1


def write(path: Path, tensors: Mapping[str, Tensor], coding: Mapping[str, str]) -> None:
    """Write ``tensors`` without rounding.

    Args:
        path: The file to write.
        tensors: Tensors by name.
        coding: Kind of coding by name; all other tensors are written as float32.

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
            metadata, streams = encode(values, coding[name])
        except ValueError as error:
            message = f"{name} cannot be written as {coding[name]}: {error}"
            raise BundleError(message, "compressed weights", "compress it again") from error
        header[name] = metadata | {"sha256": sha256_of(decode(metadata, streams, values.shape))}
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
        raise _damaged(path, reason(error)) from error
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
        values = decode(header[name], streams, tuple(shape))
        if sha256_of(values) != header[name]["sha256"]:
            raise ValueError("the decoded numbers do not match their SHA-256")
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{name}: {' '.join(str(error).split())}") from error
    return torch.from_numpy(values)


def _damaged(path: Path, reason: str) -> BundleError:
    return BundleError(f"{path} is damaged: {reason:.300}", "", "use another copy")
