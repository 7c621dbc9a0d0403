"""Options that several commands share: which images, how they are read, and where they are cached."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import UseAppendAction

from alexnet.cli.parser import Flag, option
from alexnet.errors import RecipeError

if TYPE_CHECKING:
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


def data_options(args: SourceArguments, *, quiet: bool = False) -> "DataOptions":
    """The data options of a command. Unless ``quiet``, progress and messages go to standard error.

    Also sets the cache directory of remote stores.
    """
    from alexnet.cli.output import Progress, log
    from alexnet.data.sources.layout import LayoutOptions
    from alexnet.data.sources.options import DataOptions

    options = DataOptions(
        data_root=args.data_root,
        download=args.download,
        progress=None if quiet else Progress("preparing"),
        log=None if quiet else log,
        group_column=args.group_column,
        group_pattern=args.group_pattern,
        exclude=args.exclude,
        layout=LayoutOptions(args.classes, args.ignore, args.image_column, args.label_column, args.delimiter),
    )
    if not isinstance(args, DataArguments):
        choose_cache()
        return options
    cache = choose_cache(args.cache, args.cache_gb)
    return replace(options, cache=cache, bad=args.bad, allow_truncated=args.allow_truncated)


def choose_cache(cache: Path | None = None, gigabytes: float = DataArguments.cache_gb) -> Path:
    """Set the cache directory of remote stores to a folder in ``cache``, and return ``cache``.

    The default is ALEXNET_CACHE, else XDG_CACHE_HOME/alexnet, else ~/.cache/alexnet.
    """
    from alexnet.data.cache import Cache, set_default_cache
    from alexnet.system import cache_folder

    if not gigabytes > 0:
        raise RecipeError(f"--cache-gb is {gigabytes}", "above 0")
    if cache is None and (directory := os.environ.get("ALEXNET_CACHE")):
        cache = Path(directory)
    cache = cache or cache_folder()
    set_default_cache(Cache(cache / "remote", int(gigabytes * 1e9)))
    return cache
