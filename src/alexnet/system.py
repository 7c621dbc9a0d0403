"""Temporary folders, the number of processor cores, the device to compute on, and freed memory."""

import ctypes
import fcntl
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from alexnet.errors import RecipeError

if TYPE_CHECKING:
    import torch

_PREFIX = "alexnet-temporary-"
_NAME = re.compile(re.escape(_PREFIX) + r"[a-z0-9_]{8}")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new empty folder in the system's temporary folder, removed at the end.

    The folder is locked while it is in use, and the system releases the lock however the process ends. Unlocked folders
    of killed processes of the same user are removed first.

    Raises:
        OSError: no folder can be created.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = os.open(path, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():  # no other process removed it before it was locked
            break
        os.close(lock)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    for path in parent.glob(_PREFIX + "*"):
        with suppress(OSError):  # removed by another process, in use, or not a folder
            status = path.lstat()
            if status.st_uid != os.geteuid() or not _NAME.fullmatch(path.name):
                continue
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def cache_folder() -> Path:
    """The folder of all caches of this package: ``~/.cache/alexnet``, or below ``XDG_CACHE_HOME`` if that is set.

    On macOS it is ``~/Library/Caches/alexnet``. Raises RecipeError if the user has no home folder.
    """
    try:
        folder = platformdirs.user_cache_path("alexnet")
        return folder if folder.is_absolute() else Path.home() / ".cache" / "alexnet"
    except RuntimeError as error:  # a container, with a user that it does not know
        hint = "set HOME, XDG_CACHE_HOME or ALEXNET_CACHE"
        raise RecipeError("this user has no home folder, so there is none for caches", "", hint) from error


def cores() -> int:
    """The number of processor cores that this process may use; the machine may have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(name: "str | torch.device") -> "torch.device":
    """The device of that name; ``auto`` is the first GPU, or the CPU without one.

    Raises:
        RecipeError: the name is not a device, or this machine does not have the device.
    """
    import torch  # only here: the command line uses this module without PyTorch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"--device is {name!r}", "auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--device cuda: this machine has no usable GPU", "", "use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(f"--device is {name!r}", f"cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return device


def trim() -> None:
    """Return free memory to the system. glibc otherwise keeps the blocks of large images in its arenas."""
    _malloc_trim()(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int]:
    return getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)  # glibc has it, musl and macOS do not
