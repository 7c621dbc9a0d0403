"""Pictures kept as JPEGs inside a shard: encoded when a store is prepared, decoded when they are gathered.

A shard is one array of bytes, its JPEGs one behind the other. The split's index has two numbers a picture: the byte of
its shard at which it ends, and the CRC-32 of its bytes. A flipped bit decodes without a word; the CRC tells.
"""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data.cores import cores
from alexnet.errors import DataError, PictureError

SMALLER = 8  # raw bytes for a byte of JPEG, when shards are planned; photographs in quality 88 have about 10
_FEW = 8  # pictures below which a second thread does not pay


class Piece(NamedTuple):
    """A JPEG in a shard, as the index has it."""

    data: NDArray[np.uint8]  # its bytes [B]
    crc: int
    where: str  # shard and picture, for people


def encode(picture: NDArray[np.uint8], quality: int) -> bytes:
    """``picture`` uint8 [S, S, 3] as a JPEG with halved color (4:2:0)."""
    from alexnet.data.pixels import encode_jpeg

    return encode_jpeg(picture, quality)


def decode_into(out: NDArray[np.uint8], pieces: Sequence[Piece]) -> None:
    """Decode ``pieces`` [N] into ``out`` [N, S, S, 3], on all cores. Raises DataError for one that is not whole."""
    threads = min(cores(), len(pieces) // _FEW)
    if threads < 2:
        for row, piece in enumerate(pieces):
            _decode(out[row], piece)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="jpegs") as pool:
        for _ in pool.map(_decode, out, pieces):
            pass


def _decode(out: NDArray[np.uint8], piece: Piece) -> None:
    from alexnet.data.pixels import decode

    data = piece.data.tobytes()
    if zlib.crc32(data) != piece.crc:
        raise _broken(piece, "its bytes are not those that were stored")
    try:
        picture = decode(data, piece.where)
    except PictureError as error:
        raise _broken(piece, error.what.removeprefix(piece.where + ": ")) from error
    if picture.shape != out.shape:
        raise _broken(piece, f"{picture.shape[1]} × {picture.shape[0]} pixels")
    out[:] = picture


def _broken(piece: Piece, reason: str) -> DataError:
    todo = "`alexnet prepare --check` names every damaged file; copy it or prepare the data set again"
    return DataError(f"{piece.where}: {reason}", "the JPEG that was stored", todo)
