"""One preparing: what is asked for, how it is cut into shards, and the folder in which an interrupted one goes on.

Work goes on in ``<path>.partial/``, which only one process holds at a time. ``settings.json`` in it says of what it is
the beginning: the same settings go on, others start over.
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

Progress = Callable[[int, int], None]  # images done, and all
Log = Callable[[str], None]  # one line for a person

_OURS = {*SPLIT_NAMES, "records", "settings.json", "lock", "mean.npy", "skipped.jsonl", "dataset.json"}


class Job(NamedTuple):
    """What is to be made, and where."""

    source: Source
    path: Path  # of the finished store
    settings: Mapping[str, Any]  # all that decides its bytes
    splits: Mapping[str, tuple[Sample, ...]]
    workers: int  # threads
    progress: Progress
    log: Log
    engine: str = "threads"  # of this process; or ray: the machines of a cluster, whose disk is shared

    @property
    def partial(self) -> Path:
        """The folder of the unfinished store."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def quality(self) -> int:
        """Of the JPEGs that are stored; 0: images are stored raw."""
        return int(self.settings.get("quality", 0))

    @property
    def image_bytes(self) -> int:
        """Of one image in a shard; of a JPEG about so many."""
        raw = 3 * int(self.settings["size"]) ** 2
        return max(1, raw // JPEG_RATIO) if self.quality else raw

    def total(self) -> int:
        """How many images there are, good or bad."""
        return sum(map(len, self.splits.values()))

    def shards(self) -> Iterator[tuple[str, int, tuple[Sample, ...]]]:
        """(split, number, images): cut before any image is excluded, so that it depends on nothing else."""
        count = max(1, int(self.settings["shard_bytes"]) // self.image_bytes)
        for split, images in self.splits.items():
            for number, start in enumerate(range(0, len(images), count)):
                yield split, number, images[start : start + count]


@contextmanager
def locked(partial: Path) -> Iterator[None]:
    """Only one process works in ``partial``. The lock ends with the process, however that ends. Raises DataError."""
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "lock").touch()  # with the rights that the umask leaves: filelock would take 0644
    lock = FileLock(partial / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        what = f"{partial}: another process is preparing this store"
        raise DataError(what, "one process at a time", "wait for it or choose another path") from error
    try:
        yield
    finally:
        lock.release()


def start(job: Job) -> None:
    """Keep what an earlier run of the same settings finished; start over, and say so, if they differ.

    Raises DataError if the folder holds anything that was not made here.
    """
    results = {entry.name for entry in job.partial.iterdir()}
    strange = sorted(name for name in results if final_name(name) not in _OURS)
    if strange:
        raise DataError(f"{job.partial}: holds {strange[0]!r}, not made here", "ours alone", "move it away")
    if load_json(job.partial / "settings.json") != job.settings:
        if {final_name(name) for name in results} - {"lock", "settings.json"} or "settings.json" in results:
            job.log(f"{job.partial}: settings differ from the interrupted run; starting over")
        _empty(job.partial, results - {"lock"})
        write_file(job.partial / "settings.json", json_bytes(job.settings))
    _make_room(job.partial)


def _empty(partial: Path, names: set[str]) -> None:
    for name in sorted(names):
        entry = partial / name
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def discard(partial: Path) -> None:
    """Delete what preparing made in ``partial``; what anybody else put there stays."""
    _empty(partial, {entry.name for entry in partial.iterdir() if final_name(entry.name) in _OURS})
    with suppress(OSError):  # not empty
        partial.rmdir()


def _make_room(partial: Path) -> None:
    """The folders that are written to, without what a kill left half-written."""
    for name in (*SPLIT_NAMES, "records"):
        (partial / name).mkdir(exist_ok=True)
        for stale in (partial / name).glob("*.tmp"):
            stale.unlink()


def load_json(path: Path) -> Any:
    """What is in the file; None where there is none, or half of one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def sweep(path: Path) -> None:
    """Remove from a finished store what only preparing needs."""
    shutil.rmtree(path / "records", ignore_errors=True)
    for name in ("settings.json", "lock"):
        (path / name).unlink(missing_ok=True)
