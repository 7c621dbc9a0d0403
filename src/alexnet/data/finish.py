"""The end of preparing: from the records of all shards to labels, origins, statistics and, last, ``dataset.json``."""

import importlib.metadata
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.data.description import FORMAT, SPLIT_NAMES, VERSIONS, fingerprint_of
from alexnet.data.job import Job
from alexnet.data.shards import Record, in_order
from alexnet.data.split import Split
from alexnet.data.statistics import Sums
from alexnet.data.writing import json_bytes, jsonl_bytes, npy_bytes, sha256_of, whole_file, write_file
from alexnet.errors import DataError
from alexnet.schema import seal_of


def finish(job: Job, records: list[Record], pool: ThreadPoolExecutor) -> None:
    """Write all that a store has beside its shards. Raises DataError for a class with no good training picture left."""
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
    found = []
    with whole_file(path) as file:
        for record in records:
            rows = _rows(job, record, kind)
            named = ({"split": record["split"], **row} for row in rows) if kind == "skipped" else rows
            file.write(jsonl_bytes(named))
            found.append(len(rows))
    return found


def _rows(job: Job, record: Record, kind: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((job.partial / record["file"]).read_text(encoding="utf-8"))[kind]
    return rows


def _check_training(job: Job, counts: list[int], records: list[Record]) -> None:
    if 0 in counts:
        reasons = [row["reason"] for record in records for row in _rows(job, record, "skipped")]
        reason = f"{len(reasons)} excluded, such as: {reasons[0]}" if reasons else "none excluded"
        title = job.source.classes[counts.index(0)]
        what = f"{job.source.name}: class {title!r} has no training picture left ({reason})"
        raise DataError(what, "at least one", "mend the pictures or remove the class")


def _statistics(job: Job, parts: Mapping[str, Any], pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Over the training split, 64 pictures of 256 × 256 at a time; the sums are exact: threads may end in any order.
    JPEGs count as they are decoded, since that is what training sees."""
    size = int(job.settings["size"])
    split = Split(job.partial, "train", parts["train"], size)
    count = max(1, (1 << 22) // size**2)
    places = np.arange(len(split))
    total = Sums(size)
    pieces = [places[start : start + count] for start in range(0, len(split), count)]
    for own in in_order(pool, lambda piece: Sums(size).add(split.gather(piece)), pieces, 2 * job.workers):
        total.merge(own)
    found = total.statistics()
    write_file(job.partial / "mean.npy", npy_bytes(found.mean_image))
    listed = {name: getattr(found, name).tolist() for name in ("channel_means", "color_std", "color_axes")}
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
    tail = {"fingerprint": fingerprint, "mirror": job.source.mirror}
    tail |= {"source_fingerprint": job.source.fingerprint, "settings": dict(job.settings)}
    made = {**head, **about, **tail, "sha256": sha256, "bytes": sizes, "created_by": f"alexnet {_version()}"}
    return made | {"seal": seal_of(made)}


def _sha256(job: Job, name: str) -> str:
    return sha256_of(job.partial / name)


def _version() -> str:
    try:
        return importlib.metadata.version("alexnet")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
