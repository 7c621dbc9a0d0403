"""Sources → store: all cores, resumable, nothing half-written is ever accepted; and whether they still agree.

Work goes on in ``<path>.partial/``: shards first, each with its record, then the rest. ``dataset.json`` is written
last, and the folder gets its name when all is there.
"""

import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alexnet.data.cores import cores
from alexnet.data.description import VERSIONS
from alexnet.data.finish import finish
from alexnet.data.job import Job, Progress, Say, discard, locked, start, sweep
from alexnet.data.listing import Picture, Source
from alexnet.data.pixels import Fit
from alexnet.data.shards import make_shards, picture_sha256
from alexnet.data.sources import is_store
from alexnet.data.splits import assign
from alexnet.data.store import Store
from alexnet.data.writing import sync_folder
from alexnet.errors import DataError, PictureError
from alexnet.schema import class_fault

log = logging.getLogger(__name__)


def prepare(
    source: Source,
    path: str | Path,
    *,
    size: int = 256,
    fit: Fit = "crop",
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    bad: Literal["exclude", "fail"] = "exclude",
    allow_truncated: bool = False,
    encoding: Literal["raw", "jpeg"] = "raw",
    quality: int = 88,
    mixed: bool = False,
    shard_bytes: int = 1 << 30,
    workers: int | None = None,
    engine: Literal["threads", "ray"] = "threads",
    progress: Progress | None = None,
    say: Say | None = None,
) -> Store:
    """Decode every picture of ``source`` to ``size`` × ``size`` and write the store ``path``; go on where a run ended.

    ``validation``, ``test`` and ``seed`` as in ``splits.assign``; ``encoding`` "jpeg" stores JPEGs of ``quality`` (1 to
    95) in a tenth of the room, which are decoded again in training; ``mixed`` stores the pictures of a split in an
    order drawn by ``seed`` instead of by name, for those who read a few shards at a time; ``bad`` pictures are
    excluded and listed, or end the run; ``workers`` threads (default: the cores of this process), or with ``engine``
    "ray" the machines of a Ray cluster, for which ``path`` and the pictures lie on one disk; ``progress`` is called
    with pictures done and all, ``say`` with each line for the person, such as that it starts over (default: a warning
    in the log). A finished store of the same source and settings is returned as it is. Raises DataError, and
    PictureError for a picture if ``bad`` is "fail".
    """
    path = Path(path).absolute()
    _check_arguments(size, fit, bad, shard_bytes, workers)
    _check_choices(encoding, quality, engine)
    if len(source.classes) > 1 and (fault := class_fault(source.classes)):
        raise DataError(f"{source.name}: {fault}", "", "rename the class")
    options = {"size": size, "fit": fit, "validation": validation, "test": test, "seed": seed, "bad": bad}
    options |= {"allow_truncated": allow_truncated, "shard_bytes": shard_bytes, "version": VERSIONS[encoding]}
    options |= ({"quality": quality} if encoding == "jpeg" else {}) | ({"mixed": True} if mixed else {})
    settings = options | {"source": source.fingerprint, "name": source.name} | source.selection()
    if mixed and source.in_order:
        must = "of files that are read one picture at a time"
        raise DataError(
            f"{source.name}: mixed, of parquet files", must, "leave it out: such sets are mostly mixed already"
        )
    splits = assign(source, validation=validation, test=test, seed=seed)
    splits = _mixed(splits, seed) if mixed else splits
    job = Job(source, path, settings, splits, workers or cores(), progress or _silent, say or log.warning, engine)
    if path.exists():
        return _existing(job)
    try:
        with locked(job.partial):
            return _beaten_to_it(job) if path.exists() else _build(job)
    except OSError as error:
        raise _disk_error(job, error) from error


def _mixed(splits: Mapping[str, tuple[Picture, ...]], seed: int) -> dict[str, tuple[Picture, ...]]:
    """Each split in an order of its own, drawn by the seed."""
    draws = {name: np.random.Generator(np.random.PCG64([seed, 2, n])) for n, name in enumerate(splits)}
    return {
        name: tuple(pictures[i] for i in draws[name].permutation(len(pictures)).tolist())
        for name, pictures in splits.items()
    }


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


def _check_choices(encoding: str, quality: int, engine: str) -> None:
    if engine not in ("threads", "ray"):
        raise DataError(f"engine {engine!r}", "threads or ray", "change it")
    if encoding not in ("raw", "jpeg"):
        raise DataError(f"encoding {encoding!r}", "raw or jpeg", "change it")
    if not 1 <= quality <= 95:
        raise DataError(f"quality {quality}", "1 to 95, as JPEG counts it", "change it")


def _existing(job: Job) -> Store:
    """The store that is already there, if it is the one asked for."""
    if not is_store(job.path):
        raise DataError(f"{job.path}: exists and is no store", "a new name", "choose another path")
    store = Store.open(job.path)
    theirs = store.about["settings"]
    if theirs != job.settings and not _same_content(job, store):
        differ = [name for name in {**job.settings, **theirs} if theirs.get(name) != job.settings.get(name)]
        what = f"{job.path}: is a store of other {', '.join(differ)}"
        raise DataError(what, "the same source and settings, or a new name", "choose another path or delete it")
    sweep(job.path)
    return store


def _same_content(job: Job, store: Store) -> bool:
    """Do only the files' stamps differ (a copy, new rights), while splits, labels and the bytes of all files agree?"""
    if {**store.about["settings"], "source": job.settings["source"]} != job.settings:
        return False
    if store.left_out():  # an image that was unusable may be a good one now
        return False
    for name, pictures in job.splits.items():
        rows = [(row["origin"], row.get("group", "")) for row in store.split(name).origins()]
        if rows != [(picture.origin, picture.group) for picture in pictures]:
            return False
    job.say(f"{job.path}: files have other times or inodes than when it was prepared; comparing their SHA-256")
    return not check(job.source, store)


def _beaten_to_it(job: Job) -> Store:
    """Another process finished the store while this one waited to start."""
    discard(job.partial)
    return _existing(job)


def _build(job: Job) -> Store:
    start(job)
    with ThreadPoolExecutor(job.workers, "alexnet-prepare") as pool:
        try:
            finish(job, make_shards(job, pool), pool)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    job.partial.rename(job.path)
    sync_folder(job.path.parent)
    sweep(job.path)
    return Store.open(job.path)


def _disk_error(job: Job, error: OSError) -> DataError:
    """What the disk lacks: path, bytes needed, bytes free. Finished shards stay for the next run."""
    place = next(folder for folder in (job.partial, *job.partial.parents) if folder.exists())
    needed, free = job.total() * job.picture_bytes, shutil.disk_usage(place).free
    what = f"{job.partial}: {error.strerror or error}, {needed:,} bytes needed in all, {free:,} free"
    return DataError(what, "", "make room or rights and run it again: finished shards are kept")


def check(source: Source, store: Store) -> list[str]:
    """What differs between the source's files, as they are now, and the store; and damage in the store. Empty: none."""
    differences = [f"{store.address}/{name}: SHA-256 is not the recorded one" for name in store.damaged()]
    now = {picture.origin: picture for pictures in source.splits.values() for picture in pictures}
    if source.classes != store.classes:
        differences.append(f"classes: now {', '.join(source.classes)}; in the store {', '.join(store.classes)}")
    for split in store.splits.values():
        for row, label in zip(split.origins(), split.labels, strict=True):
            differences += _difference(now.pop(row["origin"], None), row, int(label))
    known = {row["origin"] for row in store.left_out()} | source.excluded
    return differences + [f"{origin}: not in the store" for origin in now if origin not in known]


def _difference(picture: Picture | None, row: Mapping[str, Any], label: int) -> list[str]:
    origin = row["origin"]
    if picture is None:
        return [f"{origin}: gone"]
    if picture.label != label:
        return [f"{origin}: class number {label} before, {picture.label} now"]
    try:
        same = picture_sha256(picture.load()) == row["sha256"]
    except (PictureError, OSError) as error:
        return [f"{origin}: {error}"]
    return [] if same else [f"{origin}: changed"]
