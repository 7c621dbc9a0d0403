"""``run.json`` of a run folder: what was trained on what, protected by a checksum together with the files that began
the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from alexnet.data.atomic_io import json_bytes, sha256_of, write_file
from alexnet.errors import RunError
from alexnet.schema import Sha256, check, checksum_of, read_json, with_checksum

NAME = "run.json"
CHECKSUMMED = ("recipe.toml", "layers.cfg")  # layer-params.cfg may change between two resumes, as in 2012


class _Start(msgspec.Struct):
    """The weights that the run began with."""

    name: str
    sha256: str


class _RunFile(msgspec.Struct):
    """The fields of ``run.json``."""

    data: str
    store: str
    sha256: dict[str, Sha256]  # of the files next to it
    checksum: Sha256  # of all other entries
    directory: str = ""  # where the command ran: relative paths of ``data`` and ``options`` start there
    options: list[str] = []
    layers: str = "layers.cfg"
    from_: _Start | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="from")
    store_fingerprint: str = ""  # of a training of an experiment


def write_run_file(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write ``run.json`` with the SHA-256 of the files next to it, which are there already."""
    sha256 = {name: sha256_of(folder / name) for name in CHECKSUMMED if (folder / name).is_file()}
    write_file(folder / NAME, json_bytes(with_checksum({**metadata, "sha256": sha256})))


def read_run_file(folder: Path) -> dict[str, Any]:
    """What :func:`write_run_file` wrote. Raises :class:`RunError` where it or a file next to it has changed since."""
    try:
        metadata: dict[str, Any] = read_json(folder, NAME)
        checked = check(metadata, _RunFile)
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} is no run folder: {error}", "a folder that `alexnet train` made") from error
    if checked.checksum != checksum_of(metadata):
        raise _changed(folder / NAME)
    for name, sha256 in checked.sha256.items():
        if name not in CHECKSUMMED:
            raise RunError(f"{folder / NAME} has a SHA-256 of {name!r:.60}", f"of {' or '.join(CHECKSUMMED)}")
        try:
            same = sha256_of(folder / name) == sha256
        except OSError as error:
            raise RunError(f"{folder / name} cannot be read: {error.strerror}", "", "restore it from a copy") from error
        if not same:
            raise _changed(folder / name)
    return metadata


def _changed(path: Path) -> RunError:
    return RunError(f"{path} has changed since the run began: its SHA-256 differs", "", "restore it from a copy")
