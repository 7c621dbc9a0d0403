"""What says that a bundle is whole: its config, and the SHA-256 of every file in it."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexnet.data.writing import sha256_of
from alexnet.errors import BundleError

FORMAT, VERSION, COMPRESSED = "alexnet-bundle", 1, 2


def read_config(path: Path) -> dict[str, Any]:
    """The config of the bundle ``path``, of a version that can be read; raises :class:`BundleError`."""
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path} is no bundle: {error.strerror}", "a folder with config.json") from error
    except ValueError as error:
        raise BundleError(f"{path / 'config.json'} is damaged: {error}", "", "use another copy") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise BundleError(f"{path / 'config.json'} is not of format {FORMAT}", "a bundle that training wrote")
    if config.get("version") not in (VERSION, COMPRESSED):
        raise BundleError(f"bundle {path} has version {config.get('version')}", "1 or 2", "install a newer alexnet")
    return config


def check_hashes(path: Path, config: Mapping[str, Any]) -> None:
    """Raise :class:`BundleError` naming the first file that is not the one that was saved."""
    sealed = config.get("sha256")
    if not isinstance(sealed, dict) or not {"model.safetensors", "mean.safetensors"} <= set(sealed):
        raise BundleError(f"{path / 'config.json'} is damaged: it lacks SHA-256 of the files", "", "use another copy")
    for name, expected in sealed.items():
        try:
            found = config_sha256(config) if name == "config.json" else sha256_of(path / name)
        except OSError as error:
            raise BundleError(f"bundle {path} lacks {name}: {error.strerror}", "", "use another copy") from error
        if found != expected:
            raise BundleError(
                f"{path / name} has changed: SHA-256 {found[:12]}…", f"{str(expected)[:12]}…", "use another copy"
            )


def config_sha256(config: Mapping[str, Any]) -> str:
    """The SHA-256 of a config's other entries, as JSON with sorted keys."""
    rest = {name: value for name, value in config.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in ``folder``, by its path there."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): sha256_of(p) for p in files}


def sync(folder: Path) -> None:
    """Wait until ``folder`` and all in it lie on the disk."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
