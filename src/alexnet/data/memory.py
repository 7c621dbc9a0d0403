"""Memory that is free inside the process, returned to the system."""

import ctypes
import functools
from collections.abc import Callable


def trim() -> None:
    """Return what the C library holds free. Without this, glibc keeps the blocks of a large image in its arenas."""
    _malloc_trim()(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int]:
    return getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)  # glibc has it, musl and macOS do not
