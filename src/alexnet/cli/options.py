"""Options that several commands share: which images, how they are read, and where they are cached."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import UseAppendAction

from alexnet.cli.parser import Flag, option
from alexnet.errors import RecipeError

if TYPE_CHECKING:
    from alexnet.data.sources.listing import LayoutOptions
    from alexnet.data.sources.options import DataOptions

KernelMode = Literal["auto", "off"]


@dataclass(frozen=True)
class SourceArguments:
    """Which images are read, and how their classes and groups are found."""

    data_root: Annotated[Path | None, option("DIR")] = None
    """directory with torchvision's data sets (cifar10, mnist, ...)"""
    download: Flag = False
    """let torchvision download a data set that is missing"""
    group_column: Annotated[str | None, option("COLUMN")] = None
    """table column (patient, camera, ...) whose images stay in one split"""
    group_pattern: Annotated[str | None, option("REGEX")] = None
    """the same by file name: a regular expression whose parentheses capture the group"""
    exclude: Annotated[Path | None, option("FILE")] = None
    """list of images to leave out, as written by doctor --exclude-list"""
    classes: Literal["auto", "top", "leaves"] = "auto"
    """classes of nested folders: the top folders, or every folder that contains images"""
    ignore: Annotated[UseAppendAction[tuple[str, ...]], option("PATTERN")] = ()
    """file or folder to skip, by name or pattern"""
    image_column: Annotated[str | None, option("COLUMN")] = None
    """table column with the image paths (default: path, file_name, ...)"""
    label_column: Annotated[str | None, option("COLUMN")] = None
    """table column with the classes (default: label, class, ...)"""
    delimiter: Annotated[str | None, option("CHAR")] = None
    """column separator of a table: a character, or tab (default: detected)"""


@dataclass(frozen=True)
class DataArguments(SourceArguments):
    """Which images are read, how, and where they are cached."""

    cache: Annotated[Path | None, option("DIR")] = None
    """directory for prepared images and fetched shards (default: ~/.cache/alexnet)"""
    cache_gb: Annotated[float, option("GB")] = 32.0
    """maximum size of the fetched shards of remote stores (s3://...) in the cache"""
    bad: Literal["exclude", "fail"] = "exclude"
    """unusable images: leave them out and list them, or stop at the first"""
    allow_truncated: Flag = False
    """use truncated images, and list them"""


def data_options(args: DataArguments) -> "DataOptions":
    """For the functions behind the command line: the typed options, a progress bar, lines on standard error."""
    from alexnet.cli.output import Progress, log
    from alexnet.data.sources.options import DataOptions

    cache = choose_cache(args.cache, args.cache_gb)
    return DataOptions(
        args.data_root,
        args.download,
        cache,
        args.bad,
        args.allow_truncated,
        Progress("preparing"),
        log,
        args.group_column,
        args.group_pattern,
        args.exclude,
        layout=layout_options(args),
    )


def layout_options(args: SourceArguments) -> "LayoutOptions":
    """How DATA is read where its layout leaves it open."""
    from alexnet.data.sources.listing import LayoutOptions

    return LayoutOptions(args.classes, args.ignore, args.image_column, args.label_column, args.delimiter)


def choose_cache(cache: Path | None = None, gigabytes: float = DataArguments.cache_gb) -> Path:
    """Choose the folder ``cache`` (default: by the environment) for the shards of stores at an address; return it."""
    from alexnet.data.cache import Cache, set_default_cache

    if not gigabytes > 0:
        raise RecipeError(f"--cache-gb is {gigabytes}", "above 0")
    own, system = os.environ.get("ALEXNET_CACHE"), os.environ.get("XDG_CACHE_HOME")
    default = Path(own) if own else (Path(system) if system else Path.home() / ".cache") / "alexnet"
    cache = cache or default
    set_default_cache(Cache(cache / "remote", int(gigabytes * 1e9)))
    return cache
