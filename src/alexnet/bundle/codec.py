"""Symbols of one byte as Huffman codes, and positions as the gaps between them.

The codes are DEFLATE's (RFC 1951) by zlib, which is told to look for no repetitions: there are none. On weights of a
trained fc6 that comes within 1.5 % of the entropy; LZMA needs up to 3 % more and ten times as long (docs/log.md).


Weights that share values: k-means in one dimension, begun at equal steps from the least to the largest weight.

That start keeps the large weights, which are few and matter most (Han, Mao and Dally 2016, section 3.2). In one
dimension a cluster is an interval, so sums over the sorted weights give each round in k steps, whatever their number.


One array of weights as a few arrays that take less room, and back again to the last bit.

``shared``: most weights are 0, the others take at most 256 values. Streams: ``gaps`` and ``codes`` (Huffman codes),
``book`` (the values, float32, ascending).
``int8``: integers from −127 to 127, times the largest magnitude of their row ÷ 127. ``int4``: −7 to 7 in the same
way, for every 128 numbers of a row. Streams: ``codes`` (number + 127 or + 7, Huffman codes), ``largest`` (float32).
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

JUMP = 255  # a gap symbol that stands for so many zeros and no weight


def squeeze(symbols: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Symbols [n] -> their Huffman codes, as bytes."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return np.frombuffer(coder.compress(symbols.tobytes()) + coder.flush(), np.uint8)


def expand(data: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """The ``count`` symbols that :func:`squeeze` took; raises ValueError for bytes that hold more, fewer or none.

    Never makes more than ``count`` + 1 of them, whatever the bytes say.
    """
    decoder = zlib.decompressobj(-15)
    try:
        result = decoder.decompress(data.tobytes(), count + 1)
    except zlib.error as error:
        raise ValueError(f"Huffman codes that are none ({error})") from error
    if len(result) != count or not decoder.eof or decoder.unused_data:
        raise ValueError(f"Huffman codes of another number of symbols than {count}")
    return np.frombuffer(result, np.uint8)


def gaps_of(positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Ascending positions [n] -> how many zeros stand before each: [n + jumps]; a longer gap begins with jumps."""
    jumps, rest = np.divmod(np.diff(positions, prepend=-1) - 1, JUMP)
    gaps = np.full(len(positions) + int(jumps.sum()), JUMP, np.uint8)
    gaps[np.cumsum(jumps + 1) - 1] = rest
    return gaps


def positions_of(gaps: NDArray[np.uint8], count: int, size: int) -> NDArray[np.int64]:
    """The ``count`` positions below ``size`` that :func:`gaps_of` took; raises ValueError where they are others."""
    is_weight = gaps != JUMP
    positions: NDArray[np.int64] = (np.cumsum(gaps.astype(np.int64) + is_weight) - 1)[is_weight]
    if len(positions) != count or (count and int(positions[-1]) >= size) or (len(gaps) and not is_weight[-1]):
        raise ValueError(f"positions of {len(positions)} weights, not of {count} below {size}")
    return positions


FloatArray = NDArray[np.float32]
ROUNDS = 300  # most; converges after fewer unless thousands of weights lie on a border


def kmeans(values: FloatArray, k: int) -> FloatArray:
    """At most ``k`` centers of ``values`` [n], ascending, none of them 0; fewer where clusters stay empty."""
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


def nearest(values: FloatArray, centers: FloatArray) -> NDArray[np.int64]:
    """Which of the ascending ``centers`` each value is nearest to: [n]. In the middle: the lower one."""
    between = (centers[1:].astype(np.float64) + centers[:-1]) / 2
    return np.searchsorted(between, values.astype(np.float64))


def share(values: FloatArray, bits: int) -> FloatArray:
    """``values`` of any shape with each weight that is not 0 replaced by the nearest of at most 2^``bits`` centers."""
    flat = np.array(values, np.float32).reshape(-1)  # a copy
    alive = np.flatnonzero(flat)
    centers = kmeans(flat[alive], 2**bits)
    flat[alive] = centers[nearest(flat[alive], centers)] if len(alive) else flat[alive]
    return flat.reshape(values.shape)


def _members(
    ordered: NDArray[np.float64], sums: NDArray[np.float64], centers: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How many weights each center has, and their sum: [k] and [k]."""
    inner = np.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2, side="right")
    ends = np.concatenate([[0], inner, [len(ordered)]])
    return np.diff(ends), np.diff(sums[ends])


Floats = NDArray[np.float32]
Streams = dict[str, NDArray[Any]]

BOOK = 256  # values at most: a code is a byte
STEPS = {"int8": 127, "int4": 7}
GROUP = {"int8": 0, "int4": 128}  # numbers of a row under one largest magnitude; 0: the whole row
KINDS = {"shared": {"gaps", "codes", "book"}, "int8": {"codes", "largest"}, "int4": {"codes", "largest"}}


def encode(values: Floats, kind: str) -> tuple[dict[str, Any], Streams]:
    """What there is to know (``kind``, ``shape`` and counts), and the streams.

    Raises ValueError where ``values`` are not of that kind: nothing is ever rounded here.
    """
    about, streams = _encode_shared(values) if kind == "shared" else _encode_whole(values, kind)
    about |= {"kind": kind, "shape": list(values.shape)}
    if not np.array_equal(decode(about, streams, values.shape), values):
        raise ValueError(f"weights that are not of kind {kind}")
    return about, streams


def decode(about: Mapping[str, Any], streams: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> Floats:
    """The array of ``shape``; raises ValueError (or KeyError, TypeError) for streams that are not one of that shape.

    Nothing larger than the array itself is made before the counts are found to be possible.
    """
    kind = about["kind"]
    if list(about["shape"]) != list(shape) or kind not in KINDS or set(streams) != KINDS[kind]:
        raise ValueError(f"{kind!r:.20} of shape {about['shape']!r:.60}, not {list(shape)}")
    return _decode_shared(about, streams, shape) if kind == "shared" else _decode_whole(about, streams, shape)


def sizes(streams: Mapping[str, NDArray[Any]]) -> int:
    """Bytes that the streams take."""
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
    about = {"weights": len(positions), "gaps": len(gaps)}
    return about, {"gaps": squeeze(gaps), "codes": squeeze(codes.astype(np.uint8)), "book": book}


def _decode_shared(about: Mapping[str, Any], streams: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> Floats:
    size, book = int(np.prod(shape, dtype=np.int64)), _stream(streams, "book", np.float32)
    count = _count(about, "weights", size)
    gaps = expand(_stream(streams, "gaps", np.uint8), _count(about, "gaps", size + size // 255))
    positions = positions_of(gaps, count, size)
    codes = expand(_stream(streams, "codes", np.uint8), count)
    if len(book) > BOOK or not np.isfinite(book).all() or (count and int(codes.max()) >= len(book)):
        raise ValueError(f"codes that are not in a book of {len(book)}")
    values = np.zeros(size, np.float32)
    values[positions] = book[codes]
    return values.reshape(shape)


def largest_of(values: Floats, kind: str) -> Floats:
    """The largest magnitude of each row, or of each group of it: [rows, groups]. One too small to divide by is 0."""
    rows = np.abs(values.reshape(values.shape[0], -1))
    largest = np.maximum.reduceat(rows, _starts(rows.shape[1], kind), axis=1).astype(np.float32)
    return np.where(largest < 1e-30, np.float32(0), largest)


def integers(values: Floats, largest: Floats, kind: str) -> NDArray[np.int8]:
    """The nearest integers, [rows, columns]; ``largest`` as :func:`largest_of` gives it."""
    rows = values.reshape(values.shape[0], -1)
    wide = largest.astype(np.float64)
    scale = np.divide(STEPS[kind], wide, out=np.zeros_like(wide), where=wide > 0)
    spread = _spread(scale, rows.shape[1], kind)
    return np.asarray(np.rint(np.clip(rows * spread, -STEPS[kind], STEPS[kind])), np.int8)


def from_whole(numbers: NDArray[np.int8], largest: Floats, kind: str, shape: tuple[int, ...]) -> Floats:
    """Integers [rows, columns] -> weights: number ÷ steps, times the largest magnitude, each rounded to float32.

    So a number of full steps gives back the largest magnitude itself, and encoding decoded weights changes nothing.
    """
    share = numbers.astype(np.float32) / np.float32(STEPS[kind])
    return np.asarray(share * _spread(largest, numbers.shape[1], kind), np.float32).reshape(shape)


def _encode_whole(values: Floats, kind: str) -> tuple[dict[str, Any], Streams]:
    if kind not in STEPS or values.ndim < 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"{kind!r:.20} of an array {list(values.shape)} of finite numbers")
    largest = largest_of(values, kind)
    numbers = integers(values, largest, kind)
    symbols = (numbers.astype(np.int16) + STEPS[kind]).astype(np.uint8)
    return {}, {"codes": squeeze(symbols.reshape(-1)), "largest": largest}


def _decode_whole(about: Mapping[str, Any], streams: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> Floats:
    kind, size = about["kind"], int(np.prod(shape, dtype=np.int64))
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


def _spread(each: NDArray[Any], columns: int, kind: str) -> NDArray[Any]:
    """[rows, groups] -> [rows, columns], or something that broadcasts so."""
    return each if not GROUP[kind] else np.repeat(each, GROUP[kind], axis=1)[:, :columns]


def _stream(streams: Mapping[str, NDArray[Any]], name: str, kind: Any, dimensions: int = 1) -> NDArray[Any]:
    value = streams[name]
    if value.dtype != kind or value.ndim != dimensions:
        raise ValueError(f"{name} {value.dtype} of {value.ndim} dimensions")
    return value


def _count(about: Mapping[str, Any], name: str, most: int) -> int:
    value = about[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{name} {value!r:.30}, not a number up to {most}")
    return value
