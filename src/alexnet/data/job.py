"""The job of preparing a store: settings, shards, and the folder from which an interrupted job continues.

A job works in ``<path>.partial/``, which only one process may use at a time. Its ``settings.json`` holds the
settings: a job with the same settings continues, a job with other settings starts over.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from alexnet.data.atomic_io import final_name, json_bytes, write_file
from alexnet.data.sources.source import Sample, Source
from alexnet.data.store import JPEG_RATIO
from alexnet.data.store_backend import SPLIT_NAMES
from alexnet.errors import DataError

Progress = Callable[[int, int], None]  # processed images, all images
Log = Callable[[str], None]  # receives one line of text for the user

_JOB_FILES = {*SPLIT_NAMES, "records", "settings.json", "lock", "mean.npy", "skipped.jsonl", "dataset.json"}


class Job(NamedTuple):
    """The store to prepare, and how."""

    source: Source
    path: Path  # path of the finished store
    settings: Mapping[str, Any]  # all settings that affect the bytes of the store
    splits: Mapping[str, tuple[Sample, ...]]
    workers: int  # threads
    progress: Progress
    log: Log
    engine: str = "threads"  # "threads" of this process, or "ray": the machines of a cluster with a shared disk

    @property
    def partial(self) -> Path:
        """Folder of the unfinished store."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def quality(self) -> int:
        """Quality of the stored JPEGs; 0 if images are stored raw."""
        return int(self.settings.get("quality", 0))

    @property
    def image_bytes(self) -> int:
        """Bytes of one image in a shard; an estimate for JPEGs."""
        raw = 3 * int(self.settings["size"]) ** 2
        return max(1, raw // JPEG_RATIO) if self.quality else raw

    def total(self) -> int:
        """Number of images, good or bad."""
        return sum(map(len, self.splits.values()))

    def shards(self) -> Iterator[tuple[str, int, tuple[Sample, ...]]]:
        """(split, index of the shard, images) of each shard. Bad images are included and excluded later."""
        count = max(1, int(self.settings["shard_bytes"]) // self.image_bytes)
        for split, images in self.splits.items():
            for number, start in enumerate(range(0, len(images), count)):
                yield split, number, images[start : start + count]


@contextmanager
def locked(partial: Path) -> Iterator[None]:
    """Lock ``partial`` for this process. The lock ends with the process. Raises DataError if another one holds it."""
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "lock").touch()  # filelock would create it with mode 0644; this follows the umask
    lock = FileLock(partial / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        problem = f"{partial}: another process is preparing this store"
        raise DataError(problem, "one process at a time", "wait for it or choose another path") from error
    try:
        yield
    finally:
        lock.release()


def start(job: Job) -> None:
    """Keep the finished shards of an earlier run with the same settings. If the settings differ, log it and start over.

    Raises DataError if the folder contains files of other programs.
    """
    names = {entry.name for entry in job.partial.iterdir()}
    unknown = sorted(name for name in names if final_name(name) not in _JOB_FILES)
    if unknown:
        raise DataError(f"{job.partial}: holds {unknown[0]!r}, which prepare did not make", "", "move it away")
    if load_json(job.partial / "settings.json") != job.settings:
        if {final_name(name) for name in names} - {"lock", "settings.json"} or "settings.json" in names:
            job.log(f"{job.partial}: settings differ from the interrupted run; starting over")
        _empty(job.partial, names - {"lock"})
        write_file(job.partial / "settings.json", json_bytes(job.settings))
    _create_folders(job.partial)


def _empty(partial: Path, names: set[str]) -> None:
    for name in sorted(names):
        entry = partial / name
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def discard(partial: Path) -> None:
    """Delete the files of preparing in ``partial``. Other files stay."""
    _empty(partial, {entry.name for entry in partial.iterdir() if final_name(entry.name) in _JOB_FILES})
    with suppress(OSError):  # not empty
        partial.rmdir()


def _create_folders(partial: Path) -> None:
    """Create the folders of shards and records, and delete the temporary files of a killed process."""
    for name in (*SPLIT_NAMES, "records"):
        (partial / name).mkdir(exist_ok=True)
        for stale in (partial / name).glob("*.tmp"):
            stale.unlink()


def load_json(path: Path) -> Any:
    """The content of a JSON file; None if it is missing or incomplete."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def sweep(path: Path) -> None:
    """Remove the files from a finished store that only preparing needs."""
    shutil.rmtree(path / "records", ignore_errors=True)
    for name in ("settings.json", "lock"):
        (path / name).unlink(missing_ok=True)
