"""The folder of a run: its lock, and the files that define the run.

recipe.toml  run.json  journal.jsonl  results.csv  checkpoints/  bundle/  plots/  tensorboard/  .lock
and, where a layer file of 2012 is trained, layers.cfg  layer-params.cfg
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alexnet.cuda_convnet import Files
from alexnet.data.atomic_io import final_name, write_file
from alexnet.data.run_file import read_run_file, write_run_file
from alexnet.errors import RunError
from alexnet.recipe import Recipe, from_toml, to_toml
from alexnet.training import checkpoint

# The files of a run that has not made a step.
_START_FILES = {".lock", "checkpoints", "recipe.toml", "layers.cfg", "layer-params.cfg", "run.json"}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the run folder.

    Raises:
        RunError: If another process holds the lock, or the folder cannot be written.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()  # with the permissions of the umask; filelock would set 0644
        lock.acquire()
    except Timeout:
        raise RunError(
            f"run folder {folder} is in use by another process", "", "wait for it or choose another --output-dir"
        ) from None
    except OSError as error:
        raise RunError(
            f"run folder {folder} cannot be written: {error.strerror}", "", "choose another --output-dir"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def new_run_folder(folder: Path) -> Iterator[None]:
    """Create and lock a run folder. If the body fails before the training starts, the folder is removed."""
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with locked(folder):
            refuse_used(folder)
            try:
                yield
            except BaseException:
                if not (folder / "journal.jsonl").exists():
                    _remove_start_files(folder)
                raise
    except BaseException:
        for path in absent:
            with suppress(OSError):  # it is not empty
                path.rmdir()
        raise


def _remove_start_files(folder: Path) -> None:
    """Remove the files of :func:`locked` and :func:`write_start`."""
    with suppress(OSError):
        (folder / "checkpoints").rmdir()
        for name in sorted(_START_FILES - {"checkpoints"}, reverse=True):  # run.json first, .lock last
            (folder / name).unlink(missing_ok=True)


def refuse_used(folder: Path, hint: str = "") -> None:
    """Raise :class:`RunError` with ``hint`` if ``folder`` has files: two runs never share a folder.

    The files of a start that was killed before it wrote run.json are ignored.
    """
    if folder.exists() and (not folder.is_dir() or (folder / "run.json").exists() or _has_other_files(folder)):
        hint = hint or f"or resume it: --resume {folder}"
        raise RunError(f"run folder {folder} exists already", "a new folder", hint)


def _has_other_files(folder: Path) -> bool:
    results = {final_name(path.name) for path in folder.iterdir()}
    return not results <= _START_FILES or has_checkpoint(folder)


def write_start(folder: Path, recipe: Recipe, metadata: dict[str, Any], files: Files | None = None) -> None:
    """Write the files that define a run, before its first step: recipe.toml, run.json, and its layer files."""
    (folder / "checkpoints").mkdir(exist_ok=True)
    if files is not None:
        metadata = metadata | {"layers": files.name}
        write_file(folder / "layers.cfg", files.layers.encode())
        write_file(folder / "layer-params.cfg", files.parameters.encode())
    write_file(folder / "recipe.toml", to_toml(recipe).encode())
    write_run_file(folder, metadata)  # last: a folder with this file can be resumed


def read_start(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """Read the recipe and the metadata that :func:`write_start` wrote.

    Raises:
        RunError: Where a file has changed since.
    """
    metadata = read_run_file(folder)
    try:
        text = (folder / "recipe.toml").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} is no run folder: {error}", "a folder that `alexnet train` made") from error
    return from_toml(text, str(folder / "recipe.toml")), metadata


def layer_files(folder: Path) -> Files | None:
    """The layer files of a run, or None. The parameter file may have been edited since: to resume with other rates.

    Raises:
        RunError: Where a file is missing or has changed.
    """
    metadata = read_start(folder)[1]
    if "layers" not in metadata:
        return None
    try:
        texts = [(folder / name).read_text(encoding="utf-8") for name in ("layers.cfg", "layer-params.cfg")]
    except (OSError, ValueError) as error:
        raise RunError(
            f"a layer file of {folder} cannot be read: {error}", "a folder that `alexnet train` made"
        ) from error
    return Files(metadata["layers"], *texts)


def is_unsaved(folder: Path) -> bool:
    """Was a run stopped before its first checkpoint? It restarts from its first step: its recipe defines it, unless it
    started from pretrained weights."""
    return not has_checkpoint(folder) and "from" not in read_start(folder)[1]


def has_checkpoint(folder: Path) -> bool:
    """Does a run folder have a complete checkpoint?"""
    return bool(checkpoint.list_all(folder / "checkpoints"))


def discard_record(folder: Path) -> None:
    """Remove the record of a run that has no checkpoint: it restarts."""
    for name in ("journal.jsonl", "results.csv"):
        (folder / name).unlink(missing_ok=True)
