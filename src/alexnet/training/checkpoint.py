"""Checkpoints, from which a run is resumed: written atomically, verified by their SHA-256, the last two are kept.

A checkpoint is ``step-00001234.pt`` with ``step-00001234.pt.sha256`` next to it; ``best-epoch-0007.pt`` are the weights
with the lowest validation error so far. They hold tensors and plain values, and only those are read
(``weights_only``): a file that would run code is refused.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from alexnet.data.atomic_io import final_name, read_regular, sha256_of, sync_folder, write_file
from alexnet.errors import CheckpointError, printable, reason

VERSION = 1
_EARLIER = "resume from an earlier checkpoint of the run: --resume RUN/checkpoints/FILE"


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` to ``path``: temporary name, fsync, SHA-256, rename. Raises :class:`CheckpointError`.

    Until the last rename the previous file is intact; a temporary file left by a crash is swept by :func:`prune`.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            _serialize({"version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        write_file(path.with_name(f"{path.name}.sha256"), f"{sha256_of(partial)}  {path.name}\n".encode())
        partial.replace(path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # PyTorch's zip writer turns a full disk into RuntimeError
        with suppress(OSError):
            partial.unlink()
        system_error = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(system_error, "strerror", None) or error
        raise CheckpointError(
            f"checkpoint {path} could not be written ({reason}); it needs about {_size(content) >> 20} MiB, "
            f"{_free(path.parent) >> 20} MiB are free",
            "",
            "make room and resume",
        ) from error


def _serialize(content: Mapping[str, Any], file: IO[bytes]) -> None:
    """``torch.save`` without its CRC-32s, which take ten times as long as writing: the SHA-256 is checked instead."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, file)
    finally:
        torch.serialization.set_crc32_options(before)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, every byte checked first; raises :class:`CheckpointError`."""
    try:
        expected = read_regular(path.with_name(f"{path.name}.sha256")).decode().split()[0]
        digest = sha256_of(path)
    except (OSError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} or its .sha256 cannot be read: {reason(error)}", "", _EARLIER
        ) from error
    if digest != expected:
        raise CheckpointError(
            f"checkpoint {path} is damaged: SHA-256 {digest[:12]}…", f"{printable(expected[:12])}…", _EARLIER
        )
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the restricted reader raises, it means the same
        raise CheckpointError(
            f"checkpoint {path} holds more than tensors and plain values, or is damaged", "", _EARLIER
        ) from error
    version = content.get("version") if isinstance(content, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version != VERSION:
        raise CheckpointError(f"checkpoint {path} is not of version {VERSION}", "", "use the alexnet that wrote it")
    return content


def name_of(step: int) -> str:
    """File name of the checkpoint after so many steps."""
    return f"step-{step:08d}.pt"


def list_all(folder: Path) -> list[Path]:
    """All complete checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def latest(folder: Path) -> Path:
    """The newest checkpoint of a run's ``checkpoints`` folder; raises :class:`CheckpointError` if there is none."""
    result = list_all(folder)
    if not result:
        raise CheckpointError(f"{folder} holds no checkpoint", "a folder of a run that saved one", "start the run anew")
    return result[-1]


def load_latest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint and its content; where it is damaged the error offers the one before it."""
    path = latest(folder)
    try:
        return path, load(path)
    except CheckpointError as error:
        for previous in reversed(list_all(folder)[:-1]):
            try:
                load(previous)
            except CheckpointError:
                continue
            raise CheckpointError(error.what, error.must, f"a good one is left: --resume {previous}") from error
        raise CheckpointError(error.what, error.must, "no good one is left: start the run anew") from error


def prune(folder: Path, keep: int = 2) -> None:
    """Delete all but the newest ``keep`` checkpoints, best weights that none of them names, and partial files."""
    kept = list_all(folder)[-keep:]
    best = [folder / _best_of(path) for path in kept]
    for path in sorted(folder.iterdir()):  # a checkpoint before its .sha256: a kill between leaves none unprovable
        owner = final_name(path.name).removesuffix(".partial").removesuffix(".sha256")
        stale = folder / owner not in [*kept, *best]
        if path.name.endswith((".partial", ".tmp")) or (stale and owner.startswith(("step-", "best-epoch-"))):
            path.unlink(missing_ok=True)


def _best_of(path: Path) -> str:
    """The file of best weights that a checkpoint names. Mapped into memory, so that no tensor is read."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return str(content["best"]["file"])
    except Exception:  # of whatever kind
        return ""  # damaged: nothing can be resumed from it


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:  # the folder itself is gone
        return 0


def _size(content: Any) -> int:
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return sum(_size(value) for value in content.values())
    return sum(_size(value) for value in content) if isinstance(content, list | tuple) else 0
