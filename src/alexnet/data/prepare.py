"""Prepare a store from a source: on all cores, resumable, never with partial files; and compare the two later.

Work is done in ``<path>.partial/``: first the shards, each with its record, then labels, origins and statistics.
``dataset.json`` is written last, and then the folder is renamed.
"""

import importlib.metadata
import json
import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alexnet.data.atomic_io import atomic_write, json_bytes, jsonl_bytes, npy_bytes, sha256_of, sync_folder, write_file
from alexnet.data.decode import Fit
from alexnet.data.job import Job, Log, Progress, discard, locked, start, sweep
from alexnet.data.shards import Record, image_sha256, make_shards, map_in_order
from alexnet.data.sources import is_store
from alexnet.data.sources.source import Sample, Source
from alexnet.data.splits import assign_splits
from alexnet.data.statistics import Sums
from alexnet.data.store import Split, Store
from alexnet.data.store_backend import FORMAT, SPLIT_NAMES, VERSIONS, fingerprint_of
from alexnet.errors import DataError, ImageError
from alexnet.schema import checksum_of, class_fault
from alexnet.system import cores


def finish(job: Job, records: list[Record], pool: ThreadPoolExecutor) -> None:
    """Write all that a store has beside its shards. Raises DataError for a class with no good training image left."""
    parts = {split: _finish_split(job, split, records) for split in SPLIT_NAMES}
    skipped = sum(_write_rows(job, job.partial / "skipped.jsonl", records, "skipped"))
    about = {"splits": parts, "skipped": skipped} | _statistics(job, parts, pool)
    write_file(job.partial / "dataset.json", json_bytes(_describe(job, about, records)))


def _finish_split(job: Job, split: str, records: list[Record]) -> dict[str, Any]:
    """Write labels and origins of one split; its description."""
    own = [record for record in records if record["split"] == split]
    labels = np.array([label for record in own for label in record["labels"]], np.int64)  # [n]
    counts = np.bincount(labels, minlength=len(job.source.classes)).tolist()  # [K]
    if split == "train" and job.splits["train"]:  # without one the store is only evaluated
        _check_training(job, counts, own)
    write_file(job.partial / split / "labels.npy", npy_bytes(labels))
    _write_rows(job, job.partial / split / "origins.jsonl", own, "origins")
    full = [record for record in own if record["shard"]]
    about = {"count": len(labels), "shards": [record["shard"] for record in full], "labels": f"{split}/labels.npy"}
    about |= {"per_class": counts, "counts": [len(record["labels"]) for record in full]}
    if job.quality:
        index = np.array([entry for record in full for entry in record["index"]], np.int64).reshape(-1, 2)  # [n, 2]
        write_file(job.partial / split / "index.npy", npy_bytes(index))
        about["index"] = f"{split}/index.npy"
    return about


def _write_rows(job: Job, path: Path, records: list[Record], kind: str) -> list[int]:
    """Write the rows of that kind of all records, one record in memory at a time; how many each has."""
    results = []
    with atomic_write(path) as file:
        for record in records:
            rows = _rows(job, record, kind)
            named = ({"split": record["split"], **row} for row in rows) if kind == "skipped" else rows
            file.write(jsonl_bytes(named))
            results.append(len(rows))
    return results


def _rows(job: Job, record: Record, kind: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((job.partial / record["file"]).read_text(encoding="utf-8"))[kind]
    return rows


def _check_training(job: Job, counts: list[int], records: list[Record]) -> None:
    if 0 in counts:
        reasons = [row["reason"] for record in records for row in _rows(job, record, "skipped")]
        reason = f"{len(reasons)} excluded, such as: {reasons[0]}" if reasons else "none excluded"
        title = job.source.classes[counts.index(0)]
        what = f"{job.source.name}: class {title!r} has no training image left ({reason})"
        raise DataError(what, "at least one", "mend the images or remove the class")


def _statistics(job: Job, parts: Mapping[str, Any], pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Over the training split, 64 images of 256 × 256 at a time; the sums are exact: threads may end in any order.
    JPEGs count as they are decoded, since that is what training sees."""
    size = int(job.settings["size"])
    split = Split(job.partial, "train", parts["train"], size)
    count = max(1, (1 << 22) // size**2)
    places = np.arange(len(split))
    total = Sums(size)
    pieces = [places[start : start + count] for start in range(0, len(split), count)]
    for own in map_in_order(pool, lambda piece: Sums(size).add(split.gather(piece)), pieces, 2 * job.workers):
        total.merge(own)
    result = total.statistics()
    write_file(job.partial / "mean.npy", npy_bytes(result.mean_image))
    listed = {name: getattr(result, name).tolist() for name in ("channel_means", "color_std", "color_axes")}
    return listed | {"mean_image": "mean.npy"}


def _describe(job: Job, about: Mapping[str, Any], records: list[Record]) -> dict[str, Any]:
    """All of dataset.json."""
    full = [record for record in records if record["shard"]]
    kinds = ("labels.npy", "origins.jsonl", *(["index.npy"] if job.quality else []))
    rest = [*(f"{split}/{name}" for split in SPLIT_NAMES for name in kinds), "mean.npy", "skipped.jsonl"]
    sha256 = {record["shard"]: record["sha256"] for record in full} | {name: _sha256(job, name) for name in rest}
    sizes = {record["shard"]: record["bytes"] for record in full}
    sizes |= {name: (job.partial / name).stat().st_size for name in rest}
    classes, encoding = list(job.source.classes), "jpeg" if job.quality else "raw"
    head = {"format": FORMAT, "version": VERSIONS[encoding], "name": job.source.name, "classes": classes}
    head |= {"encoding": encoding} if job.quality else {}
    head |= {name: job.settings[name] for name in ("size", "fit")}
    fingerprint = fingerprint_of(classes, about["splits"], sha256, encoding)
    tail = {"fingerprint": fingerprint, "allow_hflip": job.source.allow_hflip}
    tail |= {"source_fingerprint": job.source.fingerprint, "settings": dict(job.settings)}
    made = {**head, **about, **tail, "sha256": sha256, "bytes": sizes, "created_by": f"alexnet {_version()}"}
    return made | {"checksum": checksum_of(made)}


def _sha256(job: Job, name: str) -> str:
    return sha256_of(job.partial / name)


def _version() -> str:
    try:
        return importlib.metadata.version("alexnet")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


_logger = logging.getLogger(__name__)


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
    log: Log | None = None,
) -> Store:
    """Decode every image of ``source`` to ``size`` × ``size`` and write the store ``path``; go on where a run ended.

    ``validation``, ``test`` and ``seed`` as in ``splits.assign``; ``encoding`` "jpeg" stores JPEGs of ``quality`` (1 to
    95) in a tenth of the room, which are decoded again in training; ``mixed`` stores the images of a split in an
    order drawn by ``seed`` instead of by name, for those who read a few shards at a time; ``bad`` images are
    excluded and listed, or end the run; ``workers`` threads (default: the cores of this process), or with ``engine``
    "ray" the machines of a Ray cluster, for which ``path`` and the images lie on one disk; ``progress`` is called
    with images done and all, ``say`` with each line for the person, such as that it starts over (default: a warning
    in the log). A finished store of the same source and settings is returned as it is. Raises DataError, and
    ImageError for an image if ``bad`` is "fail".
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
    if mixed and source.sequential:
        must = "of files that are read one image at a time"
        raise DataError(
            f"{source.name}: mixed, of parquet files", must, "leave it out: such sets are mostly mixed already"
        )
    splits = assign_splits(source, validation=validation, test=test, seed=seed)
    splits = _mixed(splits, seed) if mixed else splits
    job = Job(source, path, settings, splits, workers or cores(), progress or _silent, log or _logger.warning, engine)
    if path.exists():
        return _existing(job)
    try:
        with locked(job.partial):
            return _beaten_to_it(job) if path.exists() else _build(job)
    except OSError as error:
        raise _disk_error(job, error) from error


def _mixed(splits: Mapping[str, tuple[Sample, ...]], seed: int) -> dict[str, tuple[Sample, ...]]:
    """Each split in an order of its own, drawn by the seed."""
    draws = {name: np.random.Generator(np.random.PCG64([seed, 2, n])) for n, name in enumerate(splits)}
    return {
        name: tuple(images[i] for i in draws[name].permutation(len(images)).tolist()) for name, images in splits.items()
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
    theirs = store.metadata["settings"]
    if theirs != job.settings and not _same_content(job, store):
        differ = [name for name in {**job.settings, **theirs} if theirs.get(name) != job.settings.get(name)]
        what = f"{job.path}: is a store of other {', '.join(differ)}"
        raise DataError(what, "the same source and settings, or a new name", "choose another path or delete it")
    sweep(job.path)
    return store


def _same_content(job: Job, store: Store) -> bool:
    """Do only the files' stamps differ (a copy, new rights), while splits, labels and the bytes of all files agree?"""
    if {**store.metadata["settings"], "source": job.settings["source"]} != job.settings:
        return False
    if store.left_out():  # an image that was unusable may be a good one now
        return False
    for name, images in job.splits.items():
        rows = [(row["origin"], row.get("group", "")) for row in store.split(name).origins()]
        if rows != [(image.origin, image.group) for image in images]:
            return False
    job.log(f"{job.path}: files have other times or inodes than when it was prepared; comparing their SHA-256")
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
    needed, free = job.total() * job.image_bytes, shutil.disk_usage(place).free
    what = f"{job.partial}: {error.strerror or error}, {needed:,} bytes needed in all, {free:,} free"
    return DataError(what, "", "make room or rights and run it again: finished shards are kept")


def check(source: Source, store: Store) -> list[str]:
    """What differs between the source's files, as they are now, and the store; and damage in the store. Empty: none."""
    differences = [f"{store.address}/{name}: SHA-256 is not the recorded one" for name in store.damaged()]
    now = {image.origin: image for images in source.splits.values() for image in images}
    if source.classes != store.classes:
        differences.append(f"classes: now {', '.join(source.classes)}; in the store {', '.join(store.classes)}")
    for split in store.splits.values():
        for row, label in zip(split.origins(), split.labels, strict=True):
            differences += _difference(now.pop(row["origin"], None), row, int(label))
    known = {row["origin"] for row in store.left_out()} | source.excluded
    return differences + [f"{origin}: not in the store" for origin in now if origin not in known]


def _difference(image: Sample | None, row: Mapping[str, Any], label: int) -> list[str]:
    origin = row["origin"]
    if image is None:
        return [f"{origin}: gone"]
    if image.label != label:
        return [f"{origin}: class number {label} before, {image.label} now"]
    try:
        same = image_sha256(image.load()) == row["sha256"]
    except (ImageError, OSError) as error:
        return [f"{origin}: {error}"]
    return [] if same else [f"{origin}: changed"]
