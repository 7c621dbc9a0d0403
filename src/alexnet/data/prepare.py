"""Prepare a store from a source: on all cores, resumable, never with partial files; and compare the two later.

Work is done in ``<path>.partial/``: first the shards, each with its record, then labels, origins and statistics.
``dataset.json`` is written last, and then the folder is renamed.
"""

import hashlib
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
from alexnet.data.remote import RemoteBackend, is_address, local_path
from alexnet.data.shards import (
    Job,
    Log,
    Record,
    discard,
    image_sha256,
    locked,
    make_shards,
    map_in_order,
    start,
    sweep,
)
from alexnet.data.sources import is_store, read_dataset
from alexnet.data.sources.options import DataOptions
from alexnet.data.sources.source import Sample, Source
from alexnet.data.splits import Sums, assign_splits
from alexnet.data.store import Split, Store
from alexnet.data.store_backend import FORMAT, SPLIT_NAMES, VERSIONS, fingerprint_of
from alexnet.errors import DataError, ImageError, counted
from alexnet.recipe import Recipe
from alexnet.schema import class_fault, with_checksum
from alexnet.system import cache_folder, cores
from alexnet.terminal import Progress

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
    """Decode every image of ``source`` to ``size`` × ``size`` pixels and write the store ``path``.

    An interrupted preparation continues where it ended. An existing store of the same source and settings is opened.

    Args:
        source: the images and their classes.
        path: the folder of the store.
        size: height and width of the stored images, pixels, 1 to 4096.
        fit: how an image becomes square: crop the center, pad, or squash.
        validation: fraction of the training images that becomes the validation split; see ``assign_splits``.
        test: fraction of the images that becomes the test split, likewise.
        seed: seed of the splits and of ``mixed``.
        bad: ``exclude`` lists images that cannot be decoded in skipped.jsonl; ``fail`` raises ImageError.
        allow_truncated: decode truncated files.
        encoding: ``raw`` stores pixels. ``jpeg`` stores JPEGs in about a tenth of the space, which training decodes.
        quality: JPEG quality, 1 to 95.
        mixed: store the images of a split in an order drawn by ``seed`` instead of by name, for training that reads a
            few shards at a time.
        shard_bytes: size of a shard at most, bytes.
        workers: threads; None: one for each core of this process.
        engine: ``threads``, or ``ray``: the machines of a Ray cluster, which need ``path`` and the images on a shared
            disk.
        progress: called with the number of images done and in total.
        log: called with each message for the user; None: a warning in the log.

    Returns:
        The store, open for reading.

    Raises:
        DataError: an argument is wrong, the data cannot make a store, ``path`` holds another store or the disk is
            full.
        ImageError: an image cannot be used and ``bad`` is ``fail``.
    """
    path = local_path(path).absolute()
    if path.is_symlink() and not path.exists():  # found before the work: it would fail when the store is renamed
        raise DataError(f"{path}: is a link that leads nowhere", "a new name", "remove it, or choose another path")
    _check_arguments(size, fit, bad, shard_bytes, workers)
    _check_encoding(encoding, quality, engine)
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
    splits = _shuffled(splits, seed) if mixed else splits
    job = Job(source, path, settings, splits, workers or cores(), progress or _silent, log or _logger.warning, engine)
    if path.exists():
        return _existing(job)
    try:
        with locked(job.partial):
            return _finished_meanwhile(job) if path.exists() else _build(job)
    except OSError as error:
        raise _disk_error(job, error) from error


def prepare_dataset(
    data: Any,
    path: str | Path,
    recipe: Recipe | None = None,
    options: DataOptions | None = None,
    **kwargs: Any,
) -> Store:
    """Decode and resize images once, and write them as a store that training reads.

    Args:
        data: A data set's name, a folder, an archive, a table, an opened source, or a ``datasets.Dataset`` or
            ``DatasetDict`` of Hugging Face.
        path: The new store: a folder, or an address (``s3://…``). For an address the store is prepared on the local
            disk, which needs the space, and then copied.
        recipe: Its stored size, fit, split sizes and seed are used.
        options: How ``data`` is read.
        **kwargs: ``encoding``, ``quality``, ``mixed``, ``shard_bytes`` and ``engine`` of
            :func:`prepare`.

    Returns:
        The store.

    Raises:
        DataError: If the images cannot be used or the store cannot be written.

    Example:
        >>> store = alexnet.prepare("photos/", "photos-store")
        >>> alexnet.train(store.path, run="my-run")
    """
    recipe, options = recipe or Recipe(), options or DataOptions()
    folder = _staging(str(path), options) if is_address(path) else local_path(path)
    store = prepare(
        _opened(data, options),
        folder,
        size=recipe.stored_size,
        fit=recipe.fit,
        validation=recipe.validation,
        test=recipe.test,
        seed=recipe.seed,
        bad=options.bad,
        allow_truncated=options.allow_truncated,
        progress=options.progress,
        log=options.log,
        **kwargs,
    )
    if store.skipped:
        options.log_line(
            f"left out: {counted(store.skipped, 'unusable image')}, listed in {store.path / 'skipped.jsonl'}"
        )
    if not is_address(path):
        return store
    RemoteBackend(str(path)).send(folder, options.log_line)
    options.log_line(f"the store is in {path}, and still in {folder}, which may be removed")
    return Store.open(path)


def _opened(data: Any, options: DataOptions) -> Source:
    if isinstance(data, str | Path):
        return options.open(data)
    return data if isinstance(data, Source) else read_dataset(data)


def _staging(address: str, options: DataOptions) -> Path:
    """The local folder in which a store is prepared before it is copied to ``address``."""
    digest = hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16]
    return (options.cache or cache_folder()) / "sending" / digest


def _shuffled(splits: Mapping[str, tuple[Sample, ...]], seed: int) -> dict[str, tuple[Sample, ...]]:
    """The splits, each shuffled by its own generator."""
    generators = {name: np.random.Generator(np.random.PCG64([seed, 2, n])) for n, name in enumerate(splits)}
    return {
        name: tuple(images[i] for i in generators[name].permutation(len(images)).tolist())
        for name, images in splits.items()
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
    for valid, problem, must in checks:
        if not valid:
            raise DataError(problem, must, "change it")


def _check_encoding(encoding: str, quality: int, engine: str) -> None:
    if engine not in ("threads", "ray"):
        raise DataError(f"engine {engine!r}", "threads or ray", "change it")
    if encoding not in ("raw", "jpeg"):
        raise DataError(f"encoding {encoding!r}", "raw or jpeg", "change it")
    if not 1 <= quality <= 95:
        raise DataError(f"quality {quality}", "1 to 95, as JPEG counts it", "change it")


def _existing(job: Job) -> Store:
    """The existing store at the path.

    Raises:
        DataError: it is not a store, or a store of another source or other settings.
    """
    if not is_store(job.path):
        raise DataError(f"{job.path}: exists and is not a store", "a new name", "choose another path")
    store = Store.open(job.path)
    settings = store.metadata["settings"]
    if settings != job.settings and not _same_content(job, store):
        names = [name for name in {**job.settings, **settings} if settings.get(name) != job.settings.get(name)]
        problem = f"{job.path}: is a store of other {', '.join(names)}"
        raise DataError(problem, "the same source and settings, or a new name", "choose another path or delete it")
    sweep(job.path)
    return store


def _same_content(job: Job, store: Store) -> bool:
    """Whether splits, labels and bytes of all files agree, and only times or inodes of the files differ (a copy)."""
    if {**store.metadata["settings"], "source": job.settings["source"]} != job.settings:
        return False
    if store.left_out():  # an image that was unusable may be usable now
        return False
    for name, images in job.splits.items():
        rows = [(row["origin"], row.get("group", "")) for row in store.split(name).origins()]
        if rows != [(image.origin, image.group) for image in images]:
            return False
    job.log(f"{job.path}: files have other times or inodes than when it was prepared; comparing their SHA-256")
    return not check(job.source, store)


def _finished_meanwhile(job: Job) -> Store:
    """The store that another process finished while this one waited for the lock."""
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
    """The error for a disk that is full or not writable, with the path, the bytes needed and the bytes free."""
    folder = next(parent for parent in (job.partial, *job.partial.parents) if parent.exists())
    needed, free = job.total() * job.image_bytes, shutil.disk_usage(folder).free
    problem = f"{job.partial}: {error.strerror or error}, {needed:,} bytes needed in total, {free:,} free"
    return DataError(
        problem, "", "free disk space or change the permissions, then run it again: finished shards are kept"
    )


def finish(job: Job, records: list[Record], pool: ThreadPoolExecutor) -> None:
    """Write the files of a store other than its shards.

    Raises:
        DataError: a class has no usable training image.
    """
    splits = {split: _finish_split(job, split, records) for split in SPLIT_NAMES}
    skipped = sum(_write_rows(job, job.partial / "skipped.jsonl", records, "skipped"))
    description = {"splits": splits, "skipped": skipped} | _statistics(job, splits, pool)
    write_file(job.partial / "dataset.json", json_bytes(_describe(job, description, records)))


def _finish_split(job: Job, split: str, records: list[Record]) -> dict[str, Any]:
    """Write the labels, origins and index of one split; returns its entry in dataset.json."""
    split_records = [record for record in records if record["split"] == split]
    labels = np.array([label for record in split_records for label in record["labels"]], np.int64)  # [n]
    counts = np.bincount(labels, minlength=len(job.source.classes)).tolist()  # [K]
    if split == "train" and job.splits["train"]:  # a store that is only for evaluation has no training images
        _check_training(job, counts, split_records)
    write_file(job.partial / split / "labels.npy", npy_bytes(labels))
    _write_rows(job, job.partial / split / "origins.jsonl", split_records, "origins")
    written = [record for record in split_records if record["shard"]]
    description = {
        "count": len(labels),
        "shards": [record["shard"] for record in written],
        "labels": f"{split}/labels.npy",
    }
    description |= {"per_class": counts, "counts": [len(record["labels"]) for record in written]}
    if job.quality:
        index = np.array([entry for record in written for entry in record["index"]], np.int64).reshape(-1, 2)  # [n, 2]
        write_file(job.partial / split / "index.npy", npy_bytes(index))
        description["index"] = f"{split}/index.npy"
    return description


def _write_rows(job: Job, path: Path, records: list[Record], kind: str) -> list[int]:
    """Write the rows ``kind`` (origins or skipped) of all records, with one record in memory at a time.

    Returns:
        The number of rows of each record.
    """
    counts = []
    with atomic_write(path) as file:
        for record in records:
            rows = _rows(job, record, kind)
            lines = ({"split": record["split"], **row} for row in rows) if kind == "skipped" else rows
            file.write(jsonl_bytes(lines))
            counts.append(len(rows))
    return counts


def _rows(job: Job, record: Record, kind: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((job.partial / record["file"]).read_text(encoding="utf-8"))[kind]
    return rows


def _check_training(job: Job, counts: list[int], records: list[Record]) -> None:
    if 0 in counts:
        reasons = [row["reason"] for record in records for row in _rows(job, record, "skipped")]
        reason = f"{len(reasons)} excluded, such as: {reasons[0]}" if reasons else "none excluded"
        class_name = job.source.classes[counts.index(0)]
        problem = f"{job.source.name}: class {class_name!r} has no training image left ({reason})"
        raise DataError(problem, "at least one", "repair the images or remove the class")


def _statistics(job: Job, splits: Mapping[str, Any], pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Write the mean image of the training split; returns the entries of dataset.json about its pixels.

    JPEGs are decoded, because training uses the decoded pixels. A batch has at most 16 images of 256 × 256. The sums
    are exact integers, so the order in which threads end does not matter.
    """
    size = int(job.settings["size"])
    split = Split(job.partial, "train", splits["train"], size)
    batch_size = max(1, (1 << 20) // size**2)
    indices = np.arange(len(split))
    totals = Sums(size)
    batches = [indices[start : start + batch_size] for start in range(0, len(split), batch_size)]
    results = map_in_order(pool, lambda batch: Sums(size).add(split.gather(batch)), batches, 2 * job.workers)
    for number, sums in enumerate(results, 1):
        totals.merge(sums)
        if number % 8 == 0:  # 25 MB
            split.release_memory()
    result = totals.statistics()
    write_file(job.partial / "mean.npy", npy_bytes(result.mean_image))
    colors = {name: getattr(result, name).tolist() for name in ("channel_means", "color_std", "color_axes")}
    return colors | {"mean_image": "mean.npy"}


def _describe(job: Job, description: Mapping[str, Any], records: list[Record]) -> dict[str, Any]:
    """The content of dataset.json."""
    written = [record for record in records if record["shard"]]
    split_files = ("labels.npy", "origins.jsonl", *(["index.npy"] if job.quality else []))
    other_files = [*(f"{split}/{name}" for split in SPLIT_NAMES for name in split_files), "mean.npy", "skipped.jsonl"]
    sha256 = {record["shard"]: record["sha256"] for record in written} | {
        name: _sha256(job, name) for name in other_files
    }
    sizes = {record["shard"]: record["bytes"] for record in written}
    sizes |= {name: (job.partial / name).stat().st_size for name in other_files}
    classes, encoding = list(job.source.classes), "jpeg" if job.quality else "raw"
    header = {"format": FORMAT, "version": VERSIONS[encoding], "name": job.source.name, "classes": classes}
    header |= {"encoding": encoding} if job.quality else {}
    header |= {name: job.settings[name] for name in ("size", "fit")}
    fingerprint = fingerprint_of(classes, description["splits"], sha256, encoding)
    origin = {"fingerprint": fingerprint, "allow_hflip": job.source.allow_hflip}
    origin |= {"source_fingerprint": job.source.fingerprint, "settings": dict(job.settings)}
    from alexnet import __version__

    return with_checksum(
        {
            **header,
            **description,
            **origin,
            "sha256": sha256,
            "bytes": sizes,
            "created_by": f"alexnet {__version__}",
        }
    )


def _sha256(job: Job, name: str) -> str:
    return sha256_of(job.partial / name)


def check(source: Source, store: Store) -> list[str]:
    """Compare the source's current files with the store, and the store's files with their checksums.

    Returns:
        One message for each difference or damaged file; empty if there are none.
    """
    differences = [f"{store.address}/{name}: SHA-256 is not the recorded one" for name in store.damaged()]
    listed = [image for images in source.splits.values() for image in images]
    samples = {image.origin: image for image in (*listed, *source.corrected(listed), *source.added)}
    if source.classes != store.classes:
        differences.append(f"classes: now {', '.join(source.classes)}; in the store {', '.join(store.classes)}")
    for split in store.splits.values():
        for row, label in zip(split.origins(), split.labels, strict=True):
            differences += _difference(samples.pop(row["origin"], None), row, int(label))
    skipped = {row["origin"] for row in store.left_out()} | source.excluded
    return differences + [f"{origin}: not in the store" for origin in samples if origin not in skipped]


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
