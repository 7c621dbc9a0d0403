"""The command ``prepare``."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.parser import DataArguments, Flag, data_options, option
from alexnet.recipe import Recipe


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


def run(argv: list[str]) -> int:
    """images on disk -> a store that training reads fast"""
    args: PrepareArguments = parser.parse(PrepareArguments, argv, "prepare")
    from alexnet import api
    from alexnet.data.remote import is_address, local_path
    from alexnet.errors import DataError

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
