"""The commands ``prepare`` and ``doctor``: images become a store, and are checked for faults."""

import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.parser import DataArguments, Flag, SourceArguments, data_options, option
from alexnet.errors import DataError, counted, printable
from alexnet.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from alexnet.data.sources.source import Sample
    from alexnet.doctor.examine import Embed
    from alexnet.doctor.findings import Finding, Report


@dataclass(frozen=True)
class PrepareArguments:
    """Prepare images as a store: decoded, resized, split, with their mean and color statistics.

    Uses all cores. The same command resumes an interrupted preparation.
    """

    data: Positional[Annotated[str, option("DATA")]]
    """a folder of class folders, a table, tar or parquet files, digits, cifar10, mnist, imagenette, ..."""
    store: Positional[Annotated[str, option("STORE")]]
    """new directory for the store, or an address (s3://...) to copy it to"""
    size: Annotated[int, option("PIXELS")] = 256
    """height and width of the stored images"""
    fit: Literal["crop", "pad", "squash"] = "crop"
    """crop: resize the short side and center-crop (the paper, section 2); pad: letterbox; squash: resize both sides"""
    validation: Annotated[float, option("FRACTION")] = 0.1
    """fraction of the training images for validation"""
    test: Annotated[float, option("FRACTION")] = 0.2
    """fraction of the images for the test split, if the data has none"""
    seed: Annotated[int, option("N")] = 0
    """random seed of the splits"""
    encoding: Literal["raw", "jpeg"] = "raw"
    """raw pixels, or JPEG: a tenth of the disk space, decoded while training"""
    quality: Annotated[int, option("N")] = 88
    """JPEG quality, 1 to 95"""
    mixed: Flag = False
    """store the images in random order, to read a few shards at a time"""
    engine: Literal["threads", "ray"] = "threads"
    """threads of this machine, or a Ray cluster with a shared disk"""
    shard_mb: Annotated[float, option("MIB")] = 1024.0
    """approximate size of a shard; 64 for object storage"""
    croissant: Flag = False
    """also write croissant.json: metadata for data catalogs, with images.csv, a row for each image"""
    check: Flag = False
    """change nothing: compare an existing store and its sources with their recorded SHA-256"""
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def prepare_command(argv: list[str]) -> int:
    """Prepare a store, and print the number of images of each split."""
    args: PrepareArguments = parser.parse(PrepareArguments, argv, "prepare")
    from alexnet.data.prepare import prepare_dataset
    from alexnet.data.remote import is_address, local_path

    if args.croissant and (args.check or is_address(args.store)):
        other = "--check" if args.check else f"STORE {args.store}"
        raise DataError(f"--croissant with {other}", "a store on the local disk that is written", "leave one out")
    if args.check:
        return _check_store(args)
    recipe = Recipe(
        stored_size=args.size,
        fit=args.fit,
        validation=args.validation,
        test=args.test,
        seed=args.seed,
        select_weights="best" if args.validation else "last",
    )
    store = prepare_dataset(
        args.data,
        args.store,
        recipe,
        data_options(args.source),
        encoding=args.encoding,
        quality=args.quality,
        mixed=args.mixed,
        shard_bytes=int(args.shard_mb * 2**20),
        engine=args.engine,
    )
    if args.croissant:
        from alexnet.data.croissant import write_croissant

        print(f"metadata {write_croissant(store, local_path(args.store))}")
    rows = [(name, str(len(store.split(name)))) for name in ("train", "validation", "test")]
    output.table(f"{store.address}: {len(store.classes)} classes, {store.size} pixels", ("split", "images"), rows)
    return 0


def _check_store(args: PrepareArguments) -> int:
    from alexnet.data.prepare import check
    from alexnet.data.store import Store

    store = Store.open(args.store)
    result = check(data_options(args.source).open(args.data), store)
    for line in result:
        print(line)
    return output.fail(f"{len(result)} differences between {args.data} and {args.store}", 1) if result else 0


_SHOWN = 3  # examples of a finding on the terminal


@dataclass(frozen=True)
class DoctorArguments:
    """Check a data set for problems: duplicates, wrong labels, leaks between splits, unusable images. Changes nothing.

    Exit status: 0 ready for training, with or without warnings; 1 a result would be wrong or useless.
    """

    data: Positional[Annotated[str, option("DATA")]]
    """a folder, a CSV or TSV table, tar or parquet files, digits, cifar10, mnist, imagenette, ..."""
    bundle: Annotated[Path | None, option("RUN")] = None
    """run or bundle whose features find likely wrong labels (default: the starter)"""
    check_labels: Flag = False
    """find likely wrong labels"""
    html: Annotated[Path | None, option("FILE"), parser.HTML] = None
    """write the report with thumbnails to this HTML file"""
    exclude_list: Annotated[Path | None, option("FILE"), parser.EXCLUDE_LIST] = None
    """write the images to leave out to this file, for --exclude of train and prepare"""
    json: Flag = False
    """print one JSON object"""
    validation: Annotated[float, option("FRACTION")] = 0.1
    """fraction of the training images for validation, as in train"""
    test: Annotated[float, option("FRACTION")] = 0.2
    """fraction of the images for the test split, as in train"""
    seed: Annotated[int, option("N")] = 0
    """random seed of the splits, as in train"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    source: Annotated[SourceArguments, option(name="data")] = field(default_factory=SourceArguments)


def doctor_command(argv: list[str]) -> int:
    """Examine the data, print the findings, and write the files that were asked for."""
    args: DoctorArguments = parser.parse(DoctorArguments, argv, "doctor")
    from alexnet.doctor.examine import examine

    options = data_options(args.source, quiet=True)
    problems: list[DataError] = []
    source = options.open(args.data, problems)
    report = examine(
        source,
        problems,
        validation=args.validation,
        test=args.test,
        seed=args.seed,
        embed=embedding(args.bundle, args.device) if args.bundle or args.check_labels else None,
        progress=output.Progress,
    )
    if args.html is not None:
        from alexnet.doctor.findings import write_page

        write_page(report, source, args.html)
    if args.exclude_list is not None:
        _write_list(report, args.exclude_list)
    print(json.dumps(report.to_dict(), indent=1)) if args.json else _print_report(report, args)
    return 0 if report.honest else 1


def embedding(bundle: Path | None, device: str) -> "Embed":
    """The features of images in the network of ``bundle``, of the starter by default, computed in batches of 64."""
    import numpy as np

    from alexnet import api
    from alexnet.bundle import STARTER

    classifier = api.load(bundle or STARTER, device)

    def embed(images: "list[Sample]") -> "NDArray[np.floating]":
        progress = output.Progress("computing features")
        rows = []
        for start in range(0, len(images), 64):
            rows.append(classifier.embed([image.load() for image in images[start : start + 64]]))
            progress(min(start + 64, len(images)), len(images))
        return np.concatenate(rows) if rows else classifier.embed([])

    return embed


def _write_list(report: "Report", path: Path) -> None:
    from alexnet.data.atomic_io import write_file, written

    with written(path, DataError):
        write_file(path, report.exclusion_list().encode())


def _print_report(report: "Report", args: DoctorArguments) -> None:
    rows = [
        (title, *(f"{counts[label]:,}" for counts in report.counts.values()))
        for label, title in enumerate(report.classes)
    ]
    if len(rows) > 20:  # many classes: only the totals
        rows = []
    rows.append(("all", *(f"{sum(counts):,}" for counts in report.counts.values())))
    drawn = ", random splits as in training" if report.drawn else ""
    output.table(f"{report.name}: {len(report.classes)} classes{drawn}", ("class", *report.counts), rows)
    for finding in report.findings:
        _print_finding(finding)
    excluded = len(report.exclusions())
    if excluded and args.exclude_list is not None:
        use = f"alexnet train {shlex.quote(args.data)} --exclude {shlex.quote(str(args.exclude_list))}"
        print(f"{counted(excluded, 'image')} to leave out: {printable(use)}\n")
    elif excluded:
        print(f"alexnet doctor DATA --exclude-list FILE lists {counted(excluded, 'image')} to leave out\n")
    print(report.verdict)


def _print_finding(finding: "Finding") -> None:
    paint = sys.stdout.isatty()
    color: dict[Any, str] = {"error": "\033[31m", "warning": "\033[33m", "note": "\033[32m"}
    kind = f"{color[finding.severity]}{finding.severity:<8}\033[0m" if paint else f"{finding.severity:<8}"
    print(f"{kind} {finding.check}: {finding.what}")
    if finding.todo:
        print(f"         → {finding.todo}")
    for example in finding.examples[:_SHOWN]:
        names = ", ".join(example.origins[:4])
        names += f", +{len(example.origins) - 4:,} more" if len(example.origins) > 4 else ""
        print(f"           {names}" + (f"   ({example.why})" if names and example.why else example.why))
    if len(finding.examples) > _SHOWN:
        print(f"           and {len(finding.examples) - _SHOWN:,} more")
