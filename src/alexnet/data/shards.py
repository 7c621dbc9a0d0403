"""Decode images and write them to the shards of a store, on the cores of this machine or of a Ray cluster.

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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from alexnet.data import decode, resize, store
from alexnet.data.atomic_io import NPY_HEADER, atomic_write, npy_header, sha256_of, write_file
from alexnet.data.job import Job, load_json
from alexnet.data.sources.source import Sample
from alexnet.errors import DataError, ImageError

T = TypeVar("T")
R = TypeVar("R")


def on_ray(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``work`` of every item, in the order in which they end, one core each; twice as many wait as there are cores.

    Uses the cluster that ``RAY_ADDRESS`` names or that this process is part of, else the cores of this machine. A task
    whose machine is lost is done again elsewhere. Raises what ``work`` raises, and DataError.
    """
    try:
        import ray
    except ImportError as error:
        raise DataError("engine ray: ray is not there", "installed", "pip install 'alexnet[cluster]'") from error
    own = not ray.is_initialized()
    try:
        if own:
            ray.init(log_to_driver=False)
        yield from _mapped(ray, work, items)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.RayError, ConnectionError) as error:
        reason = " ".join(str(error).split())[:200]
        todo = "check the cluster (ray status) and run it again: finished shards are kept"
        raise DataError(f"engine ray: {reason}", "", todo) from error
    finally:
        if own:
            ray.shutdown()


def _mapped(ray: Any, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    task = ray.remote(num_cpus=1, max_retries=3)(work)
    rest = iter(items)
    pending = [task.remote(item) for item in islice(rest, 2 * int(ray.cluster_resources().get("CPU", 1)))]
    while pending:
        (ended, *_), pending = ray.wait(pending, num_returns=1)
        yield ray.get(ended)
        pending += [task.remote(item) for item in islice(rest, 1)]


# split, shard (a file, or "" if all was excluded), sha256, bytes, labels, index (of JPEGs: end and CRC-32 of each);
# in its file also origins and skipped, which of millions of images are too much to keep
Record = dict[str, Any]


class _Made(NamedTuple):
    data: NDArray[np.uint8] | None  # pixels [S, S, 3], or the bytes of their JPEG; None if excluded, and once written
    label: int
    row: dict[str, Any]  # of origins.jsonl, or of skipped.jsonl


def make_shards(job: Job, pool: ThreadPoolExecutor) -> list[Record]:
    """The records of all shards, finished ones reused. Raises OSError if what is missing does not fit on the disk."""
    done, records = 0, []
    plan = [(split, number, images, _finished(job, split, number)) for split, number, images in job.shards()]
    missing = sum(len(images) for _, _, images, record in plan if record is None) * job.image_bytes
    if missing > shutil.disk_usage(job.partial).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if job.engine == "ray":
        return _made_by_others(job, plan)
    resize.expect(job.total())
    for split, number, images, record in plan:
        records.append(record or _make_shard(job, pool, split, number, images, done))
        done += len(images)
        if record:
            job.progress(done, job.total())
    return records


def _made_by_others(job: Job, plan: list[tuple[str, int, tuple[Sample, ...], Record | None]]) -> list[Record]:
    """The records of ``plan`` in its order; what is missing is made by the machines of a Ray cluster."""
    own = job._replace(source=replace(job.source, splits={}), splits={}, workers=1, progress=_quiet, log=_silent)
    results = {(split, number): record for split, number, _, record in plan if record}
    counts = {(split, number): len(images) for split, number, images, _ in plan}
    done = sum(counts[key] for key in results)
    missing = (Item(own, split, number, images) for split, number, images, record in plan if record is None)
    for split, number, record in on_ray(make_one, missing):
        results[split, number] = record
        done += counts[split, number]
        job.progress(done, job.total())
    return [results[split, number] for split, number, _, _ in plan]


class Item(NamedTuple):
    """One shard to be made, with all that another process needs for it."""

    job: Job
    split: str
    number: int
    images: tuple[Sample, ...]


def make_one(item: Item) -> tuple[str, int, Record]:
    """Make a shard in a process of its own; a finished one stays."""
    job, split, number, images = item
    resize.expect(job.total())
    with ThreadPoolExecutor(1) as pool:
        record = _finished(job, split, number) or _make_shard(job, pool, split, number, images, 0)
    return split, number, record


def _quiet(done: int, total: int) -> None:
    pass


def _silent(line: str) -> None:
    pass


def map_in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """``map`` on the pool, results in order, at most ``ahead`` of them waiting in memory."""
    waiting: deque[Future[R]] = deque()
    rest = iter(items)
    waiting.extend(pool.submit(work, item) for item in itertools.islice(rest, ahead))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(work, item) for item in itertools.islice(rest, 1))


def image_sha256(data: bytes | NDArray[np.uint8]) -> str:
    """SHA-256 of what an image's ``load`` gives, hexadecimal."""
    return hashlib.sha256(data if isinstance(data, bytes) else np.ascontiguousarray(data).data).hexdigest()


def _names(job: Job, split: str, number: int) -> tuple[str, str]:
    kind = "jpegs" if job.quality else "images"
    return f"{split}/{kind}-{number:05d}.npy", f"records/{split}-{number:05d}.json"


def _finished(job: Job, split: str, number: int) -> Record | None:
    """The record of a shard that is there, whole and unchanged."""
    shard, record_name = _names(job, split, number)
    record = load_json(job.partial / record_name)
    if not isinstance(record, dict):
        return None
    if not record.get("labels"):  # every image of it was excluded: a record without a file
        return _kept(record, record_name) if record.get("sha256") == "" else None
    whole = (job.partial / shard).is_file() and sha256_of(job.partial / shard) == record["sha256"]
    return _kept(record, record_name) if whole and "bytes" in record else None


def _make_shard(
    job: Job, pool: ThreadPoolExecutor, split: str, number: int, images: tuple[Sample, ...], before: int
) -> Record:
    """Decode, write, hash and record one shard; ``before`` images are done already."""
    shard, record_name = _names(job, split, number)
    good, index, skipped = _write_shard(job, pool, job.partial / shard, images, before)
    if not good:
        (job.partial / shard).unlink()
    record = {
        "split": split,
        "shard": shard if good else "",
        "sha256": sha256_of(job.partial / shard) if good else "",
        "bytes": (job.partial / shard).stat().st_size if good else 0,
        "labels": [one.label for one in good],
        "origins": [one.row for one in good],
        "skipped": skipped,
    } | ({"index": index} if job.quality else {})
    write_file(job.partial / record_name, json.dumps(record).encode())
    return _kept(record, record_name)


def _kept(record: Record, name: str) -> Record:
    """What of a record stays in memory, and the file that has the rest."""
    return {key: value for key, value in record.items() if key not in ("origins", "skipped")} | {"file": name}


def _write_shard(
    job: Job, pool: ThreadPoolExecutor, path: Path, images: tuple[Sample, ...], before: int
) -> tuple[list[_Made], list[tuple[int, int]], list[dict[str, Any]]]:
    """(what is in it, without the pixels; the index of its JPEGs; the rows of what is not in it). Written as a stream:
    a full disk is an error here, not a crash, as it would be through a memory map."""
    good: list[_Made] = []
    index: list[tuple[int, int]] = []
    skipped: list[dict[str, Any]] = []
    shape = () if job.quality else (job.settings["size"], job.settings["size"], 3)
    with atomic_write(path) as file:
        file.write(npy_header(len(images), shape))
        made = map_in_order(pool, partial(_make, job), images, 4 * job.workers)
        for done, one in enumerate(made, start=before + 1):
            if one.data is None:
                skipped.append(one.row)
            else:
                file.write(one.data.data)
                if job.quality:
                    index.append((file.tell() - NPY_HEADER, zlib.crc32(one.data.data)))
                good.append(one._replace(data=None))
            job.progress(done, job.total())
        file.seek(0)
        file.write(npy_header(index[-1][0] if index else len(good), shape))  # as long as the first one
    return good, index, skipped


def _make(job: Job, sample: Sample) -> _Made:
    """One image, decoded and fitted, or the reason why not."""
    try:
        data = sample.load()
        image, notes = _decoded(job, sample, data)
        fitted = decode.fit(image, job.settings["size"], job.settings["fit"])
    except (ImageError, OSError) as error:
        if job.settings["bad"] == "fail":
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"{sample.origin}: can not be read ({error})", "readable", "replace it") from error
        return _Made(None, sample.label, {"origin": sample.origin, "reason": str(error)})
    row: dict[str, Any] = {"origin": sample.origin, "sha256": image_sha256(data), "notes": list(notes)}
    row |= {"group": sample.group} if sample.group else {}
    row |= {"columns": dict(sample.columns)} if sample.columns else {}
    stored = np.frombuffer(store.encode(fitted, job.quality), np.uint8) if job.quality else fitted
    return _Made(np.ascontiguousarray(stored), sample.label, row)


def _decoded(job: Job, sample: Sample, data: bytes | NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """(uint8 [H, W, 3], what was noticed)."""
    if not isinstance(data, bytes):
        return data, ()
    allow = bool(job.settings["allow_truncated"])
    image, _, notes = decode.decode_noted(data, sample.origin, allow_truncated=allow)
    return image, notes
