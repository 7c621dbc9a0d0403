"""Sources → store: all cores, resumable, nothing half-written is ever accepted.

Work goes on in ``<path>.partial/``. A shard is written under a temporary name, flushed, fsynced and renamed; then its
record, with its SHA-256, the same way. Only a shard with a record counts, and only after its hash is checked again.
``dataset.json`` is written last, and the folder gets its name when all is there.
"""

import errno
import fcntl
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from alexnet.data import pixels
from alexnet.data.sources import Picture, Source, is_store
from alexnet.data.splits import assign
from alexnet.data.store import (
    FORMAT,
    SPLIT_NAMES,
    VERSION,
    Store,
    Sums,
    fingerprint_of,
    json_bytes,
    jsonl_bytes,
    npy_bytes,
    npy_header,
    read_jsonl,
    sha256_of,
    sync_folder,
    whole_file,
    write_file,
)
from alexnet.errors import DataError, PictureError

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]

log = logging.getLogger(__name__)

_OURS = {*SPLIT_NAMES, "records", "settings.json", "lock", "mean.npy", "skipped.jsonl", "dataset.json"}


def prepare(
    source: Source,
    path: str | Path,
    *,
    size: int = 256,
    fit: pixels.Fit = "crop",
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    bad: Literal["exclude", "fail"] = "exclude",
    allow_truncated: bool = False,
    shard_bytes: int = 1 << 30,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Store:
    """Decode every picture of ``source`` to ``size`` × ``size`` and write the store ``path``; go on where a run ended.

    ``validation``, ``test`` and ``seed`` as in ``splits.assign``; ``bad`` pictures are excluded and listed, or end the
    run; ``workers`` threads (default: the cores of this process); ``progress`` is called with pictures done and all.
    A finished store of the same source and settings is returned as it is. Raises DataError, and PictureError for a
    picture if ``bad`` is "fail".
    """
    path = Path(path).absolute()
    _check_arguments(size, fit, bad, shard_bytes, workers)
    options = {"size": size, "fit": fit, "validation": validation, "test": test, "seed": seed, "bad": bad}
    options |= {"allow_truncated": allow_truncated, "shard_bytes": shard_bytes, "version": VERSION}
    settings = options | {"source": source.fingerprint, "name": source.name}
    splits = assign(source, validation=validation, test=test, seed=seed)
    job = _Job(source, path, settings, splits, workers or _cores(), progress or _silent)
    if path.exists():
        return _existing(job)
    try:
        with _locked(job.partial):
            return _beaten_to_it(job) if path.exists() else _build(job)
    except OSError as error:
        raise _disk_error(job, error) from error


class _Job(NamedTuple):
    source: Source
    path: Path
    settings: Mapping[str, Any]
    splits: Mapping[str, tuple[Picture, ...]]
    workers: int
    progress: Progress

    @property
    def partial(self) -> Path:
        return self.path.with_name(self.path.name + ".partial")

    @property
    def picture_bytes(self) -> int:
        return 3 * int(self.settings["size"]) ** 2

    def total(self) -> int:
        return sum(map(len, self.splits.values()))

    def shards(self) -> Iterator[tuple[str, int, tuple[Picture, ...]]]:
        """(split, number, pictures): cut before any picture is excluded, so that it depends on nothing else."""
        count = max(1, int(self.settings["shard_bytes"]) // self.picture_bytes)
        for split, pictures in self.splits.items():
            for number, start in enumerate(range(0, len(pictures), count)):
                yield split, number, pictures[start : start + count]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _silent(done: int, total: int) -> None:
    pass


def _check_arguments(size: int, fit: str, bad: str, shard_bytes: int, workers: int | None) -> None:
    checks = [
        (1 <= size <= 4096, f"size {size}", "1 to 4096 pixels"),
        (fit in ("crop", "pad", "squash"), f"fit {fit!r}", "crop, pad or squash"),
        (bad in ("exclude", "fail"), f"bad {bad!r}", "exclude or fail"),
        (shard_bytes >= 1, f"shard_bytes {shard_bytes}", "at least 1"),
        (workers is None or workers >= 1, f"workers {workers}", "at least 1"),
    ]
    for right, what, must in checks:
        if not right:
            raise DataError(what, must, "change it")


def _existing(job: _Job) -> Store:
    """The store that is already there, if it is the one asked for."""
    if not is_store(job.path):
        raise DataError(f"{job.path}: exists and is no store", "a new name", "choose another path")
    store = Store.open(job.path)
    if store.about["settings"] != job.settings:
        theirs = store.about["settings"]
        differ = [name for name, value in job.settings.items() if theirs.get(name) != value]
        what = f"{job.path}: is a store of other {', '.join(differ)}"
        raise DataError(what, "the same source and settings, or a new name", "choose another path or delete it")
    _sweep(job.path)
    return store


def _beaten_to_it(job: _Job) -> Store:
    """Another process finished the store while this one waited to start."""
    shutil.rmtree(job.partial, ignore_errors=True)
    return _existing(job)


# -- the folder of an unfinished store


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Only one process works in ``partial``. The lock ends with the process, however that ends."""
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / "lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            what = f"{partial}: another process is preparing this store"
            raise DataError(what, "one process at a time", "wait for it or choose another path") from error
        yield


def _start(job: _Job) -> None:
    """Keep what an earlier run of the same settings finished; start over if they differ."""
    found = {entry.name for entry in job.partial.iterdir()}
    strange = sorted(found - _OURS - {name + ".tmp" for name in _OURS})
    if strange:
        raise DataError(f"{job.partial}: holds {strange[0]!r}, not made here", "ours alone", "move it away")
    if _load_json(job.partial / "settings.json") == job.settings:
        return
    if found - {"lock", "settings.json.tmp"}:
        log.warning("%s: settings differ from the interrupted run; starting over", job.partial)
    for name in sorted(found - {"lock"}):
        entry = job.partial / name
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    write_file(job.partial / "settings.json", json_bytes(job.settings))


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _sweep(path: Path) -> None:
    """Remove what only preparing needs."""
    shutil.rmtree(path / "records", ignore_errors=True)
    for name in ("settings.json", "lock"):
        (path / name).unlink(missing_ok=True)


# -- the work


def _build(job: _Job) -> Store:
    _start(job)
    for name in (*SPLIT_NAMES, "records"):
        (job.partial / name).mkdir(exist_ok=True)
        for stale in (job.partial / name).glob("*.tmp"):
            stale.unlink()
    with ThreadPoolExecutor(job.workers, "alexnet-prepare") as pool:
        try:
            records = _all_shards(job, pool)
            about = _finish_splits(job, records) | _statistics(job, records, pool)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    write_file(job.partial / "dataset.json", json_bytes(_describe(job, about, records)))
    job.partial.rename(job.path)
    sync_folder(job.path.parent)
    _sweep(job.path)
    return Store.open(job.path)


def _all_shards(job: _Job, pool: ThreadPoolExecutor) -> list[dict[str, Any]]:
    """The records of all shards, finished ones reused. What is missing must fit on the disk."""
    done, records = 0, []
    plan = [(split, number, pictures, _finished(job, split, number)) for split, number, pictures in job.shards()]
    missing = sum(len(pictures) for _, _, pictures, record in plan if record is None) * job.picture_bytes
    if missing > shutil.disk_usage(job.partial).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for split, number, pictures, record in plan:
        records.append(record or _make_shard(job, pool, split, number, pictures, done))
        done += len(pictures)
        if record:
            job.progress(done, job.total())
    return records


def _names(split: str, number: int) -> tuple[str, str]:
    return f"{split}/images-{number:05d}.npy", f"records/{split}-{number:05d}.json"


def _finished(job: _Job, split: str, number: int) -> dict[str, Any] | None:
    """The record of a shard that is there, whole and unchanged."""
    shard, record_name = _names(split, number)
    record = _load_json(job.partial / record_name)
    if not isinstance(record, dict):
        return None
    if not record.get("labels"):  # every picture of it was excluded: a record without a file
        return record if record.get("sha256") == "" else None
    whole = (job.partial / shard).is_file() and sha256_of(job.partial / shard) == record["sha256"]
    return record if whole else None


class _Made(NamedTuple):
    pixels: NDArray[np.uint8] | None  # [S, S, 3]; None if excluded
    label: int
    row: dict[str, Any]  # of origins.jsonl, or of skipped.jsonl


def _make_shard(
    job: _Job, pool: ThreadPoolExecutor, split: str, number: int, pictures: tuple[Picture, ...], before: int
) -> dict[str, Any]:
    """Decode, write, hash and record one shard. Written as a stream: a full disk is an error here, not a crash, as it
    would be through a memory map."""
    shard, record_name = _names(split, number)
    good: list[_Made] = []
    skipped: list[dict[str, Any]] = []
    shape = (job.settings["size"], job.settings["size"], 3)
    with whole_file(job.partial / shard) as file:
        file.write(npy_header(len(pictures), shape))
        made = _in_order(pool, lambda picture: _make(job, picture), pictures, 4 * job.workers)
        for done, one in enumerate(made, start=before + 1):
            if one.pixels is None:
                skipped.append(one.row)
            else:
                file.write(one.pixels.data)
                good.append(one._replace(pixels=None))
            job.progress(done, job.total())
        file.seek(0)
        file.write(npy_header(len(good), shape))
    if not good:
        (job.partial / shard).unlink()
    record = {
        "split": split,
        "shard": shard if good else "",
        "sha256": sha256_of(job.partial / shard) if good else "",
        "labels": [one.label for one in good],
        "origins": [one.row for one in good],
        "skipped": skipped,
    }
    write_file(job.partial / record_name, json.dumps(record).encode())
    return record


def _in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """``map`` on the pool, results in order, at most ``ahead`` of them waiting in memory."""
    waiting: deque[Future[R]] = deque()
    rest = iter(items)
    waiting.extend(pool.submit(work, item) for item in itertools.islice(rest, ahead))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(work, item) for item in itertools.islice(rest, 1))


def _make(job: _Job, picture: Picture) -> _Made:
    """One picture, decoded and fitted, or the reason why not."""
    try:
        data = picture.load()
        allow = bool(job.settings["allow_truncated"])
        notes: tuple[str, ...] = ()
        if isinstance(data, bytes):
            image, _, notes = pixels.decode_noted(data, picture.origin, allow_truncated=allow)
        else:
            image = data
        fitted = pixels.fit(image, job.settings["size"], job.settings["fit"])
    except (PictureError, OSError) as error:
        if job.settings["bad"] == "fail":
            if isinstance(error, PictureError):
                raise
            raise PictureError(f"{picture.origin}: can not be read ({error})", "readable", "replace it") from error
        return _Made(None, picture.label, {"origin": picture.origin, "reason": str(error)})
    row = {"origin": picture.origin, "sha256": _sha256(data), "notes": list(notes)}
    return _Made(np.ascontiguousarray(fitted), picture.label, row)


def _sha256(data: bytes | NDArray[np.uint8]) -> str:
    return hashlib.sha256(data if isinstance(data, bytes) else np.ascontiguousarray(data).data).hexdigest()


# -- the end


def _finish_splits(job: _Job, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Write labels, origins and the list of excluded pictures; the description of the splits."""
    parts = {}
    for split in SPLIT_NAMES:
        own = [record for record in records if record["split"] == split]
        labels = np.array([label for record in own for label in record["labels"]], np.int64)
        counts = np.bincount(labels, minlength=len(job.source.classes)).tolist()
        if split == "train" and 0 in counts:
            title = job.source.classes[counts.index(0)]
            what = f"{job.source.name}: class {title!r} has no training picture left ({_reason(own)})"
            raise DataError(what, "at least one", "mend the pictures or remove the class")
        write_file(job.partial / split / "labels.npy", npy_bytes(labels))
        write_file(
            job.partial / split / "origins.jsonl", jsonl_bytes(row for record in own for row in record["origins"])
        )
        shards = [record["shard"] for record in own if record["shard"]]
        parts[split] = {"count": len(labels), "shards": shards, "labels": f"{split}/labels.npy", "per_class": counts}
    skipped = [{"split": record["split"], **row} for record in records for row in record["skipped"]]
    write_file(job.partial / "skipped.jsonl", jsonl_bytes(skipped))
    return {"splits": parts, "skipped": len(skipped)}


def _reason(records: list[dict[str, Any]]) -> str:
    reasons = [row["reason"] for record in records for row in record["skipped"]]
    return f"{len(reasons)} excluded, such as: {reasons[0]}" if reasons else "none excluded"


def _statistics(job: _Job, records: list[dict[str, Any]], pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Over the training split, 64 pictures at a time; the sums are exact, so threads may finish in any order."""
    size = int(job.settings["size"])
    shards = [np.load(job.partial / r["shard"], mmap_mode="r") for r in records if r["split"] == "train" and r["shard"]]
    count = max(1, (1 << 22) // size**2)
    parts = [shard[start : start + count] for shard in shards for start in range(0, len(shard), count)]
    total = Sums(size)
    for own in _in_order(pool, lambda part: Sums(size).add(part), parts, 2 * job.workers):
        total.merge(own)
    found = total.statistics()
    write_file(job.partial / "mean.npy", npy_bytes(found.mean_image))
    rounded = {name: getattr(found, name).tolist() for name in ("channel_means", "color_std", "color_axes")}
    return rounded | {"mean_image": "mean.npy"}


def _describe(job: _Job, about: Mapping[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """All of dataset.json."""
    sha256 = {record["shard"]: record["sha256"] for record in records if record["shard"]}
    rest = [f"{split}/{name}" for split in SPLIT_NAMES for name in ("labels.npy", "origins.jsonl")]
    sha256 |= {name: sha256_of(job.partial / name) for name in (*rest, "mean.npy", "skipped.jsonl")}
    classes = list(job.source.classes)
    head = {"format": FORMAT, "version": VERSION, "name": job.source.name, "classes": classes}
    head |= {name: job.settings[name] for name in ("size", "fit")}
    tail = {"fingerprint": fingerprint_of(classes, about["splits"], sha256), "mirror": job.source.mirror}
    tail |= {"source_fingerprint": job.source.fingerprint, "settings": dict(job.settings)}
    return {**head, **about, **tail, "sha256": sha256, "created_by": f"alexnet {_version()}"}


def _version() -> str:
    try:
        return importlib.metadata.version("alexnet")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _disk_error(job: _Job, error: OSError) -> DataError:
    """What the disk lacks: path, bytes needed, bytes free. Finished shards stay for the next run."""
    place = next(folder for folder in (job.partial, *job.partial.parents) if folder.exists())
    needed, free = job.total() * job.picture_bytes, shutil.disk_usage(place).free
    what = f"{job.partial}: {error.strerror or error}, {needed:,} bytes needed in all, {free:,} free"
    return DataError(what, "", "make room or rights and run it again: finished shards are kept")


def check(source: Source, store: Store) -> list[str]:
    """What differs between the source's files, as they are now, and the store; and damage in the store. Empty: none."""
    differences = [f"{store.path / name}: SHA-256 is not the recorded one" for name in store.damaged()]
    now = {picture.origin: picture for pictures in source.splits.values() for picture in pictures}
    if source.classes != store.classes:
        differences.append(f"classes: now {', '.join(source.classes)}; in the store {', '.join(store.classes)}")
    for split in store.splits.values():
        for row, label in zip(split.origins(), split.labels, strict=True):
            differences += _difference(now.pop(row["origin"], None), row, int(label))
    known = {row["origin"] for row in read_jsonl(store.path / "skipped.jsonl")}
    return differences + [f"{origin}: not in the store" for origin in now if origin not in known]


def _difference(picture: Picture | None, row: Mapping[str, Any], label: int) -> list[str]:
    origin = row["origin"]
    if picture is None:
        return [f"{origin}: gone"]
    if picture.label != label:
        return [f"{origin}: class number {label} before, {picture.label} now"]
    try:
        same = _sha256(picture.load()) == row["sha256"]
    except (PictureError, OSError) as error:
        return [f"{origin}: {error}"]
    return [] if same else [f"{origin}: changed"]
