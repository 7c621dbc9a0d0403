"""The folder of a run: its lock, the files that define the run, and the provenance of its numbers.

recipe.toml  run.json  journal.jsonl  results.csv  checkpoints/  bundle/  plots/  tensorboard/  .lock
and, where a layer file of 2012 is trained, layers.cfg  layer-params.cfg

A run's journal gets a line for each evaluation of its own test split. Repeated evaluations, with changes in between,
select by the test split.
"""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alexnet.bundle import Bundle, find_bundle
from alexnet.bundle.integrity import read_config
from alexnet.cuda_convnet import Files
from alexnet.data.atomic_io import final_name, read_regular, write_file
from alexnet.data.run_file import read_run_file, write_run_file
from alexnet.data.store import Store, recorded_store
from alexnet.errors import DataError, RunError, reason
from alexnet.evaluation.calibration import NO_TEMPERATURE
from alexnet.recipe import Recipe, from_toml, to_toml
from alexnet.training import checkpoint
from alexnet.training.logger import TESTED, append_event, damage, read_events

# The files of a run that has not made a step.
_START_FILES = {".lock", "checkpoints", "recipe.toml", "layers.cfg", "layer-params.cfg", "run.json", "trackers.json"}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create and lock a run folder. If the body fails and has written nothing, a lock and folders that were new go.

    Raises:
        RunError: If another process holds the lock, or the folder cannot be written.
    """
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    before = _names(folder)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        _acquire(lock, folder)
        try:
            yield
        except BaseException:
            with suppress(OSError):  # another process removed it
                if ".lock" not in before and _names(folder) == {*before, ".lock"}:
                    (folder / ".lock").unlink()
            raise
        finally:
            lock.release()
    except BaseException:
        for path in absent:
            with suppress(OSError):  # it is not empty
                path.rmdir()
        raise


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError:  # there is none, or it cannot be read
        return set()


def _acquire(lock: FileLock, folder: Path) -> None:
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


@contextmanager
def new_run_folder(folder: Path) -> Iterator[None]:
    """Create and lock a run folder. If the body fails before the training starts, the folder is removed."""
    with locked(folder):
        refuse_used(folder)
        try:
            yield
        except BaseException:
            if not (folder / "journal.jsonl").exists():
                _remove_start_files(folder)
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
        text = read_regular(folder / "recipe.toml").decode()
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} is no run folder: {reason(error)}", "a folder that `alexnet train` made") from error
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
        texts = [read_regular(folder / name).decode() for name in ("layers.cfg", "layer-params.cfg")]
    except (OSError, ValueError) as error:
        raise RunError(
            f"a layer file of {folder} cannot be read: {reason(error)}", "a folder that `alexnet train` made"
        ) from error
    return Files(metadata["layers"], *texts)


def is_unsaved(folder: Path) -> bool:
    """Was a run stopped before its first checkpoint? It restarts from its first step: its recipe defines it, unless it
    started from pretrained weights."""
    return not has_checkpoint(folder) and "from" not in read_start(folder)[1]


def refuse_lost_checkpoints(folder: Path) -> None:
    """Raise :class:`RunError` where the checkpoints of a run were deleted: to begin again would discard its record."""
    if has_checkpoint(folder):
        return
    try:
        saved = any(event.get("event") == "checkpoint" for event in read_events(folder)[0])
    except OSError:
        saved = False
    if saved or (folder / "bundle").exists():
        hint = "its classifier is in its bundle; " * (folder / "bundle").exists()
        hint += "to train again, choose a new --output-dir"
        raise RunError(f"the checkpoints of {folder} are gone, so it cannot go on", "", hint)


def has_checkpoint(folder: Path) -> bool:
    """Does a run folder have a complete checkpoint?"""
    return bool(checkpoint.list_all(folder / "checkpoints"))


def discard_record(folder: Path) -> None:
    """Remove the record of a run that has no checkpoint: it restarts."""
    for name in ("journal.jsonl", "results.csv"):
        (folder / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Provenance:
    """Which split chose the epoch, the temperature and the thresholds of a bundle.

    Attributes:
        epoch: Which epoch's weights were kept, and by what.
        temperature: The temperature; 1 where none is applied.
        temperature_by: The split on which it was fitted; empty where nothing was fitted.
        count: Images of that split.
        thresholds: Target errors for which the bundle has thresholds.
        tested: Evaluations of the run's own test split since training; None for a bundle without a run.
    """

    epoch: str
    temperature: float
    temperature_by: str
    count: int
    thresholds: tuple[str, ...]
    tested: int | None

    def to_dict(self) -> dict[str, Any]:
        """The provenance as JSON values."""
        by = {"split": self.temperature_by, "count": self.count} if self.temperature_by else None
        chosen = {"epoch": self.epoch, "temperature": self.temperature, "temperature_fitted_on": by}
        return {"chosen_by": chosen | {"thresholds_for": list(self.thresholds)}, "test_evaluations": self.tested}

    def lines(self) -> list[str]:
        """The provenance as lines of text."""
        fitted = "temperature 1: nothing was fitted, and there are no thresholds"
        if self.temperature_by:
            targets = f"thresholds for {', '.join(f'{100 * float(t):g} %' for t in self.thresholds)}"
            fitted = f"temperature {self.temperature:.3f} and {targets if self.thresholds else 'no thresholds'} by "
            fitted += f"{self.count} {self.temperature_by} images"
            fitted += f" ({NO_TEMPERATURE[0].lower()}{NO_TEMPERATURE[1:-1]})" if self.temperature == 1.0 else ""
        lines = [f"chosen     {self.epoch}; {fitted}; nothing by the test split"]
        if self.tested is not None:
            times = "once" if self.tested == 1 else f"{self.tested} times"
            warning = "; changes made because of it are selected by it" if self.tested > 1 else ""
            lines.append(f"test       its test split was evaluated {times} since training{warning}")
        return lines


def provenance(run: str | Path) -> Provenance:
    """The provenance of a run folder or a bundle."""
    return of_bundle(Bundle.load(find_bundle(run)), run)


def of_bundle(bundle: Bundle, run: str | Path | None = None) -> Provenance:
    """The provenance of an open bundle; ``run`` is the run folder that it is in."""
    calibration = bundle.calibration
    return Provenance(
        epoch=str(bundle.data.get("kept", "epoch unknown")),
        temperature=bundle.temperature,
        temperature_by=str(calibration.get("fitted_on", "")),
        count=int(calibration.get("count", 0)),
        thresholds=tuple(sorted(bundle.thresholds, key=float)),
        tested=None if run is None else times_tested(Path(run)),
    )


def note_test(run: str | Path | None, store: Store, split: str, by: str, log: Callable[[str], None]) -> None:
    """Record in a run's journal that its own test split was evaluated; other images are not recorded.

    Args:
        run: The run folder or bundle; None for a classifier in memory.
        store: The store that was evaluated.
        split: The split that was evaluated.
        by: The command that evaluated it.
        log: Receives a line for each damaged file of the run.
    """
    if run is None:
        return
    run = Path(run)
    for problem in damage(run):
        log(problem)
    journal = run / "journal.jsonl"
    if split != "test" or not journal.is_file():
        return
    if _data(run).get("fingerprint") != store.fingerprint:
        return
    try:
        append_event(journal, TESTED, split=split, by=by)
    except OSError as error:
        log(f"{journal} cannot be written ({error.strerror}): this evaluation of the test split is not counted")


def own_store(run: Path, moved: Store | str | Path | None = None) -> Store:
    """The prepared images that the bundle of a run was trained on.

    Args:
        run: The run folder.
        moved: These images, or where they are now, if they were moved; by default where run.json says.

    Raises:
        DataError: They are missing or damaged, or other images are in their place.
    """
    store = moved if isinstance(moved, Store) else Store.open(moved or recorded_store(run, read_start(run)[1]))
    if _data(run).get("fingerprint", store.fingerprint) != store.fingerprint:
        problem = f"store {store.address} does not hold the images that {run} was trained on"
        hint = f"other images are evaluated by: alexnet evaluate {shlex.quote(str(run))} --data DATA"
        raise DataError(problem, f"the store with the fingerprint {_data(run)['fingerprint'][:12]}", hint)
    return store


def _data(run: Path) -> dict[str, Any]:
    """The metadata of the images that a run's bundle was trained on."""
    data: dict[str, Any] = read_config(find_bundle(run))[0]["data"]
    return data


def times_tested(run: Path) -> int | None:
    """How often a run's own test split was evaluated since training; None without a journal."""
    try:
        events, _ = read_events(run)
    except OSError:
        return None
    return sum(bool(event.get("event") == TESTED) for event in events)
