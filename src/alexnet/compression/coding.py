"""Symbols of one byte as Huffman codes, and positions as the gaps between them.

The codes are DEFLATE's (RFC 1951) by zlib, which is told to look for no repetitions: there are none. On weights of a
trained fc6 that comes within 1.5 % of the entropy; LZMA needs up to 3 % more and ten times as long (docs/log.md).
"""

import zlib

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
        found = decoder.decompress(data.tobytes(), count + 1)
    except zlib.error as error:
        raise ValueError(f"Huffman codes that are none ({error})") from error
    if len(found) != count or not decoder.eof or decoder.unused_data:
        raise ValueError(f"Huffman codes of another number of symbols than {count}")
    return np.frombuffer(found, np.uint8)


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
