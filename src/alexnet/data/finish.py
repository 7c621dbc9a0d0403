"""The end of preparing: from the records of all shards to labels, origins, statistics and, last, ``dataset.json``."""

import importlib.metadata
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from alexnet.data.job import Job
from alexnet.data.shards import Record, in_order
from alexnet.data.statistics import Sums
from alexnet.data.store import FORMAT, SPLIT_NAMES, VERSION, fingerprint_of
from alexnet.data.writing import json_bytes, jsonl_bytes, npy_bytes, sha256_of, write_file
from alexnet.errors import DataError


def finish(job: Job, records: list[Record], pool: ThreadPoolExecutor) -> None:
    """Write all that a store has beside its shards. Raises DataError for a class with no good training picture left."""
    parts = {split: _finish_split(job, split, records) for split in SPLIT_NAMES}
    skipped = [{"split": record["split"], **row} for record in records for row in record["skipped"]]
    write_file(job.partial / "skipped.jsonl", jsonl_bytes(skipped))
    about = {"splits": parts, "skipped": len(skipped)} | _statistics(job, records, pool)
    write_file(job.partial / "dataset.json", json_bytes(_describe(job, about, records)))


def _finish_split(job: Job, split: str, records: list[Record]) -> dict[str, Any]:
    """Write labels and origins of one split; its description."""
    own = [record for record in records if record["split"] == split]
    labels = np.array([label for record in own for label in record["labels"]], np.int64)  # [n]
    counts = np.bincount(labels, minlength=len(job.source.classes)).tolist()  # [K]
    if split == "train" and job.splits["train"]:  # without one the store is only evaluated
        _check_training(job, counts, own)
    write_file(job.partial / split / "labels.npy", npy_bytes(labels))
    write_file(job.partial / split / "origins.jsonl", jsonl_bytes(row for record in own for row in record["origins"]))
    shards = [record["shard"] for record in own if record["shard"]]
    return {"count": len(labels), "shards": shards, "labels": f"{split}/labels.npy", "per_class": counts}


def _check_training(job: Job, counts: list[int], records: list[Record]) -> None:
    if 0 in counts:
        reasons = [row["reason"] for record in records for row in record["skipped"]]
        reason = f"{len(reasons)} excluded, such as: {reasons[0]}" if reasons else "none excluded"
        title = job.source.classes[counts.index(0)]
        what = f"{job.source.name}: class {title!r} has no training picture left ({reason})"
        raise DataError(what, "at least one", "mend the pictures or remove the class")


def _statistics(job: Job, records: list[Record], pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Over the training split, 64 pictures of 256 × 256 at a time; the sums are exact: threads may end in any order."""
    size = int(job.settings["size"])
    shards = [np.load(job.partial / r["shard"], mmap_mode="r") for r in records if r["split"] == "train" and r["shard"]]
    count = max(1, (1 << 22) // size**2)
    parts = [shard[start : start + count] for shard in shards for start in range(0, len(shard), count)]
    total = Sums(size)
    for own in in_order(pool, lambda part: Sums(size).add(part), parts, 2 * job.workers):
        total.merge(own)
    found = total.statistics()
    write_file(job.partial / "mean.npy", npy_bytes(found.mean_image))
    listed = {name: getattr(found, name).tolist() for name in ("channel_means", "color_std", "color_axes")}
    return listed | {"mean_image": "mean.npy"}


def _describe(job: Job, about: Mapping[str, Any], records: list[Record]) -> dict[str, Any]:
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
