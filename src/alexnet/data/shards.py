"""Decode images and write them to the shards of a store, by a job that continues after an interruption.

A job works in ``<path>.partial/``, which only one process may use at a time. Its ``settings.json`` holds the
settings: a job with the same settings continues, a job with other settings starts over.

A shard is written atomically, then its record with its SHA-256. Only a shard with a record counts; after an
interruption it is reused only if its hash is that of the record.
"""

import errno
import hashlib
import itertools
import json
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from alexnet.data import decode, resize, store
from alexnet.data.atomic_io import (
    NPY_HEADER,
    atomic_write,
    final_name,
    json_bytes,
    npy_header,
    read_regular,
    sha256_of,
    write_file,
)
from alexnet.data.sources.source import Sample, Source
from alexnet.data.store import JPEG_RATIO
from alexnet.data.store_backend import SPLIT_NAMES
from alexnet.errors import DataError, ImageError
from alexnet.schema import checksum_of, with_checksum
from alexnet.terminal import Progress

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
    """The content of a JSON file; None if it is missing, incomplete or no regular file."""
    try:
        return json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return None


def sweep(path: Path) -> None:
    """Remove the files from a finished store that only preparing needs."""
    shutil.rmtree(path / "records", ignore_errors=True)
    for name in ("settings.json", "lock"):
        (path / name).unlink(missing_ok=True)


T = TypeVar("T")
R = TypeVar("R")


# What is kept of a shard in memory: split, shard (a file name, or "" if all its images are excluded), sha256, bytes,
# labels and, for JPEGs, index (end and CRC-32 of each). The file of a record also has the rows origins and skipped.
Record = dict[str, Any]


class _Decoded(NamedTuple):
    """An image as it is stored, or the reason why it is not."""

    data: NDArray[np.uint8] | None  # pixels [S, S, 3] or JPEG bytes [B]; None if excluded or already written
    label: int
    row: dict[str, Any]  # of origins.jsonl, or of skipped.jsonl


def make_shards(job: Job, pool: ThreadPoolExecutor) -> list[Record]:
    """Make all shards that are not finished.

    Returns:
        The records of all shards, in the order of the job.

    Raises:
        OSError: the missing shards do not fit on the disk.
    """
    done, records = 0, []
    plan = [(split, number, images, _finished(job, split, number)) for split, number, images in job.shards()]
    missing = sum(len(images) for _, _, images, record in plan if record is None) * job.image_bytes
    if missing > shutil.disk_usage(job.partial).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if job.engine == "ray":
        return _make_on_ray(job, plan)
    resize.expect(job.total())
    for split, number, images, record in plan:
        records.append(record or _make_shard(job, pool, split, number, images, done))
        done += len(images)
        if record:
            job.progress(done, job.total())
    return records


def _names(job: Job, split: str, number: int) -> tuple[str, str]:
    kind = "jpegs" if job.quality else "images"
    return f"{split}/{kind}-{number:05d}.npy", f"records/{split}-{number:05d}.json"


def _finished(job: Job, split: str, number: int) -> Record | None:
    """The record of a shard if both are complete and unchanged; None for a shard that must be made."""
    shard, record_name = _names(job, split, number)
    record = load_json(job.partial / record_name)
    if not isinstance(record, dict) or record.get("checksum") != checksum_of(record):
        return None
    if not record["labels"]:  # all its images are excluded: the record has no shard file
        return _without_rows(record, record_name)
    intact = (job.partial / shard).is_file() and sha256_of(job.partial / shard) == record["sha256"]
    return _without_rows(record, record_name) if intact else None


def _make_shard(
    job: Job, pool: ThreadPoolExecutor, split: str, number: int, images: tuple[Sample, ...], done: int
) -> Record:
    """Decode, write, hash and record one shard. ``done`` is the number of images in earlier shards."""
    shard, record_name = _names(job, split, number)
    for path in (job.partial / shard, job.partial / record_name):
        if not path.is_file():  # a pipe, or a link to a device
            path.unlink(missing_ok=True)
    stored, index, skipped = _write_shard(job, pool, job.partial / shard, images, done)
    if not stored:
        (job.partial / shard).unlink()
    record = {
        "split": split,
        "shard": shard if stored else "",
        "sha256": sha256_of(job.partial / shard) if stored else "",
        "bytes": (job.partial / shard).stat().st_size if stored else 0,
        "labels": [sample.label for sample in stored],
        "origins": [sample.row for sample in stored],
        "skipped": skipped,
    } | ({"index": index} if job.quality else {})
    write_file(job.partial / record_name, json.dumps(with_checksum(record)).encode())
    return _without_rows(record, record_name)


def _without_rows(record: Record, name: str) -> Record:
    """``record`` without its rows, which are too large for memory, and with the name of the file that has them."""
    left_out = ("origins", "skipped", "checksum")
    return {key: value for key, value in record.items() if key not in left_out} | {"file": name}


def _write_shard(
    job: Job, pool: ThreadPoolExecutor, path: Path, images: tuple[Sample, ...], done: int
) -> tuple[list[_Decoded], list[tuple[int, int]], list[dict[str, Any]]]:
    """Write one shard as a stream: with a memory map, a full disk would end the process instead of raising OSError.

    Returns:
        The stored images without their pixels, the index of their JPEGs, and the rows of the excluded images.
    """
    stored: list[_Decoded] = []
    index: list[tuple[int, int]] = []
    skipped: list[dict[str, Any]] = []
    shape = () if job.quality else (job.settings["size"], job.settings["size"], 3)
    with atomic_write(path) as file:
        file.write(npy_header(len(images), shape))
        decoded = map_in_order(pool, partial(_decode_sample, job), images, 4 * job.workers)
        for count, sample in enumerate(decoded, start=done + 1):
            if sample.data is None:
                skipped.append(sample.row)
            else:
                file.write(sample.data.data)
                if job.quality:
                    index.append((file.tell() - NPY_HEADER, zlib.crc32(sample.data.data)))
                stored.append(sample._replace(data=None))
            job.progress(count, job.total())
        file.seek(0)
        file.write(npy_header(index[-1][0] if index else len(stored), shape))  # has the length of the first header
    return stored, index, skipped


def _decode_sample(job: Job, sample: Sample) -> _Decoded:
    """Decode and fit one image, or give the reason why it is excluded."""
    try:
        data = sample.load()
        image, notes = _pixels(job, sample, data)
        fitted = decode.fit(image, job.settings["size"], job.settings["fit"])
    except (ImageError, OSError) as error:
        if job.settings["bad"] == "fail":
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"{sample.origin}: cannot be read ({error})", "readable", "replace it") from error
        return _Decoded(None, sample.label, {"origin": sample.origin, "reason": str(error)})
    row: dict[str, Any] = {"origin": sample.origin, "sha256": image_sha256(data), "notes": list(notes)}
    row |= {"group": sample.group} if sample.group else {}
    row |= {"columns": dict(sample.columns)} if sample.columns else {}
    pixels = np.frombuffer(store.encode(fitted, job.quality), np.uint8) if job.quality else fitted
    return _Decoded(np.ascontiguousarray(pixels), sample.label, row)


def _pixels(job: Job, sample: Sample, data: bytes | NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """The pixels uint8 [H, W, 3], and the notes of the decoder."""
    if not isinstance(data, bytes):
        return data, ()
    allow = bool(job.settings["allow_truncated"])
    image, _, notes = decode.decode_with_notes(data, sample.origin, allow_truncated=allow)
    return image, notes


def map_in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Like ``pool.map``: results in order, but with at most ``ahead`` items submitted at a time."""
    pending: deque[Future[R]] = deque()
    remaining = iter(items)
    pending.extend(pool.submit(work, item) for item in itertools.islice(remaining, ahead))
    while pending:
        yield pending.popleft().result()
        pending.extend(pool.submit(work, item) for item in itertools.islice(remaining, 1))


def image_sha256(data: bytes | NDArray[np.uint8]) -> str:
    """The SHA-256, hexadecimal, of the bytes or pixels that ``Sample.load`` returns."""
    return hashlib.sha256(data if isinstance(data, bytes) else np.ascontiguousarray(data).data).hexdigest()


def _make_on_ray(job: Job, plan: list[tuple[str, int, tuple[Sample, ...], Record | None]]) -> list[Record]:
    """Make the missing shards of ``plan`` on a Ray cluster; returns all records in the order of ``plan``."""
    worker_job = job._replace(source=replace(job.source, splits={}), splits={}, workers=1, progress=_quiet, log=_silent)
    results = {(split, number): record for split, number, _, record in plan if record}
    counts = {(split, number): len(images) for split, number, images, _ in plan}
    done = sum(counts[key] for key in results)
    missing = (ShardTask(worker_job, split, number, images) for split, number, images, record in plan if record is None)
    for split, number, record in on_ray(make_shard_alone, missing):
        results[split, number] = record
        done += counts[split, number]
        job.progress(done, job.total())
    return [results[split, number] for split, number, _, _ in plan]


class ShardTask(NamedTuple):
    """One shard to make, with everything that another process needs to make it."""

    job: Job
    split: str
    number: int
    images: tuple[Sample, ...]


def make_shard_alone(task: ShardTask) -> tuple[str, int, Record]:
    """Make one shard in a worker process of Ray, unless it is finished. Returns (split, number, record)."""
    job, split, number, images = task
    resize.expect(job.total())
    with ThreadPoolExecutor(1) as pool:
        record = _finished(job, split, number) or _make_shard(job, pool, split, number, images, 0)
    return split, number, record


def _quiet(done: int, total: int) -> None:
    pass


def _silent(line: str) -> None:
    pass


def on_ray(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Apply ``work`` to every item on a Ray cluster, one core each; yields results in the order in which they end.

    At most twice as many tasks as cores are submitted. A task whose machine is lost is run again elsewhere.

    Raises:
        DataError: Ray is not installed or the cluster fails. Errors of ``work`` are raised as they are.
    """
    with ray_cluster("finished shards are kept") as ray:
        yield from _run_tasks(ray, work, items)


@contextmanager
def ray_cluster(kept: str) -> Iterator[Any]:
    """Ray, connected to the cluster that ``RAY_ADDRESS`` names or that this process is part of.

    Without such a cluster it has the cores of this machine, and ends behind the block.

    Args:
        kept: for the message if the cluster fails: what a repetition does not do again.

    Raises:
        DataError: Ray is not installed or the cluster fails. Errors of tasks are raised as they are.
    """
    try:
        import ray
    except ImportError as error:
        raise DataError("engine ray needs ray", "installed", "pip install 'alexnet[cluster]'") from error
    started = not ray.is_initialized()
    try:
        if started:
            ray.init(log_to_driver=False)
        yield ray
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.RayError, ConnectionError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = f"check the cluster (ray status) and run it again: {kept}"
        raise DataError(f"engine ray: {reason}", "", hint) from error
    finally:
        if started:
            ray.shutdown()


def _run_tasks(ray: Any, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    task = ray.remote(num_cpus=1, max_retries=3)(work)
    remaining = iter(items)
    pending = [task.remote(item) for item in islice(remaining, 2 * int(ray.cluster_resources().get("CPU", 1)))]
    while pending:
        (finished, *_), pending = ray.wait(pending, num_returns=1)
        yield ray.get(finished)
        pending += [task.remote(item) for item in islice(remaining, 1)]
