"""Options that several commands share: which images, how they are read, and where they are cached."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import UseAppendAction

from alexnet.errors import RecipeError

if TYPE_CHECKING:
    from alexnet.data.sources.listing import LayoutOptions
    from alexnet.data.sources.options import DataOptions

KernelMode = Literal["auto", "off"]


@dataclass(frozen=True)
class SourceArguments:
    """Where images come from and which of them count."""

    data_root: Path | None = None
    """where torchvision's sets (cifar10, mnist, …) lie already"""
    download: bool = False
    """may torchvision fetch a set that is not there?"""
    group_column: str | None = None
    """column of a table (patient, camera …) whose images share one split"""
    group_pattern: str | None = None
    """the same from file names: a regular expression, its parenthesis is the group"""
    exclude: Path | None = None
    """images to leave out: a list, as alexnet doctor --exclude-list writes it"""
    classes: Literal["auto", "top", "leaves"] = "auto"
    """of nested folders: the top ones, or each that contains images"""
    ignore: Annotated[tuple[str, ...], UseAppendAction] = ()
    """a folder or file not to read, or a pattern; repeatable"""
    image_column: str | None = None
    """column of a table with the image paths; by default path, file_name, …"""
    label_column: str | None = None
    """column of a table with the classes; by default label, class, …"""
    delimiter: str | None = None
    """between the columns of a table: a character, or tab; by default what fits"""


@dataclass(frozen=True)
class DataArguments(SourceArguments):
    """Where images come from and how they are read."""

    cache: Path | None = None  # where folders are prepared into and shards fetched; by default ~/.cache/alexnet
    cache_gb: float = 32.0  # most that the shards of stores behind an address (s3://…) may take there, gigabytes
    bad: Literal["exclude", "fail"] = "exclude"  # unusable images: left out and listed | the first one ends it
    allow_truncated: bool = False  # use images that were cut off, and list them


def data_options(args: DataArguments) -> "DataOptions":
    """For the functions behind the command line: the typed options, a progress bar, lines on standard error."""
    from alexnet.cli.output import Progress, say
    from alexnet.data.sources.options import DataOptions

    cache = choose_cache(args.cache, args.cache_gb)
    return DataOptions(
        args.data_root,
        args.download,
        cache,
        args.bad,
        args.allow_truncated,
        Progress("preparing"),
        say,
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
    from alexnet.data.cache import Cache, choose

    if not gigabytes > 0:
        raise RecipeError(f"--cache-gb is {gigabytes}", "above 0")
    own, system = os.environ.get("ALEXNET_CACHE"), os.environ.get("XDG_CACHE_HOME")
    default = Path(own) if own else (Path(system) if system else Path.home() / ".cache") / "alexnet"
    cache = cache or default
    choose(Cache(cache / "remote", int(gigabytes * 1e9)))
    return cache
