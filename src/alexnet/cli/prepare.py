"""The command ``prepare``."""

from dataclasses import dataclass, field
from typing import Literal

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.options import DataArguments, data_options
from alexnet.recipe import Recipe


@dataclass(frozen=True)
class PrepareArguments:
    """Prepare images into a store: decoded, brought to one size, split, with their statistics.

    Uses all cores, and goes on where an interrupted run of the same command stopped.
    """

    data: Positional[str]  # a folder of class folders | parquet files | digits, cifar10, mnist, imagenette, …
    store: Positional[str]  # new folder for the prepared images, or an address (s3://…) that they are copied to
    size: int = 256  # side of the stored images, pixels
    fit: Literal["crop", "pad", "squash"] = "crop"  # short side and center cut (paper, 2) | letter box | both sides
    validation: float = 0.1
    """fraction of the training images cut out to choose with"""
    test: float = 0.2
    """fraction kept for the test, where the data has no test split of its own"""
    seed: int = 0
    """of the splits"""
    encoding: Literal["raw", "jpeg"] = "raw"
    """pixels as they are | JPEGs: a tenth of the room, decoded in training"""
    quality: int = 88
    """of these JPEGs, 1 to 95"""
    mixed: bool = False
    """store images in a drawn order, not by name: for reading a few shards at a time"""
    engine: Literal["threads", "ray"] = "threads"
    """the cores of this machine | of a Ray cluster with one disk"""
    shard_mb: float = 1024.0
    """about how large a shard gets, megabytes of 2^20 bytes; 64 for object storage"""
    check: bool = False
    """change nothing: compare an existing store and its sources with their recorded SHA-256"""
    source: DataArguments = field(default_factory=DataArguments)


def run(argv: list[str]) -> int:
    """images on disk -> a store that training reads fast"""
    args: PrepareArguments = parser.parse(PrepareArguments, argv, "prepare")
    from alexnet import api

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
    store = api.prepare(
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
