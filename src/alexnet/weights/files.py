"""Untrusted files read with bounds on their size and decompressed size. Every failure is a :class:`BundleError`."""

import gzip
import io
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import BundleError
from alexnet.weights import restricted_pickle

_FREE_BYTES, _MAX_RATIO = 64 << 20, 100  # decompressed size: at most 64 MiB + 100 × the compressed size
MOST_BYTES = 2 << 30  # net 145 and its momenta have 488 MB, the largest published net (140.5 M numbers) 1.1 GB


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises :class:`BundleError` if it cannot be read, is empty or larger than 2 GiB."""
    try:
        size = path.stat().st_size
        if not path.is_file() or not size:
            raise BundleError(f"{path} is {'empty' if path.is_file() else 'no file'}", "a file of weights")
        if size > MOST_BYTES:
            raise BundleError(f"{path} has {size:,} bytes", f"at most {MOST_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} can not be read: {error.strerror}", "a file of weights") from error


def read_pickle(path: Path) -> Any:
    """Read numbers, texts, lists, dictionaries and arrays from a pickle without running code.

    The pickle may be gzipped, or the only member of a zip file.

    Raises:
        BundleError: The file is damaged, too large, or holds other objects.
    """
    return _pickled(_decompressed(path, read_bytes(path)), path)


def _pickled(file: IO[bytes], path: Path) -> Any:
    try:
        return restricted_pickle.read(file)
    except restricted_pickle.RefusedError as error:
        raise BundleError(f"{path} is refused: it holds {error}", "numbers, texts and arrays alone") from error


def _decompressed(path: Path, data: bytes) -> IO[bytes]:
    if not data.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        return io.BytesIO(data)
    try:
        if data.startswith(b"\x1f\x8b"):
            return _bounded(cast("IO[bytes]", gzip.GzipFile(fileobj=io.BytesIO(data))), path, len(data))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if len(names) != 1:
                raise BundleError(f"{path} is a zip file of {len(names)} members", "one: the pickle")
            with archive.open(names[0]) as member:
                return _bounded(member, path, len(data))
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"{path} is damaged: {error}", "", "use another copy") from error


def _bounded(compressed: IO[bytes], path: Path, compressed_bytes: int) -> IO[bytes]:
    maximum = min(MOST_BYTES, _FREE_BYTES + _MAX_RATIO * compressed_bytes)
    data = compressed.read(maximum + 1)
    if len(data) > maximum:
        raise BundleError(f"{path} holds more than {maximum:,} bytes unpacked", "less")
    return io.BytesIO(data)


def read_npy(path: Path) -> NDArray[Any]:
    """The array of numbers in a ``.npy`` file.

    Raises:
        BundleError: The file is damaged, or holds an array of Python objects, which NumPy would unpickle.
    """
    file = io.BytesIO(read_bytes(path))
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():  # NumPy warns about headers that Python 2 wrote
            warnings.simplefilter("ignore")
            shape, fortran_order, dtype = read_header(file)
    except Exception as error:  # NumPy raises many kinds for a damaged header
        raise BundleError(
            f"{path} is no .npy file: {' '.join(str(error).split())[:100]}", "a whole .npy file"
        ) from error
    if dtype.hasobject:
        raise BundleError(f"{path} holds an array of Python objects {list(shape)}", "an array of numbers")
    data = file.read()
    if dtype.kind not in "biuf" or int(np.prod(shape, dtype=object)) * dtype.itemsize != len(data):
        raise BundleError(f"{path}: {list(shape)} {dtype} with {len(data):,} bytes", "an array of numbers, whole")
    try:
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")
    except ValueError as error:  # an empty array with dimensions that NumPy refuses
        raise BundleError(f"{path} has the shape {str(shape)[:60]}", "an array of numbers, whole") from error
