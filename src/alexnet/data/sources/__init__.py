"""Sources of labeled images: ``open_source`` finds the format of the data among :data:`FORMATS` and reads it.

To add a dataset format, write a reader module in this folder, add an entry to :data:`FORMATS` before the formats that
would also match, and copy its row of :func:`format_table` to docs/data.md. A reader lists the images and knows how to
load each one; it decodes nothing. It imports heavy libraries inside its functions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from alexnet.data.remote import is_address, local_path
from alexnet.data.sources.archives import is_archive, read_archive
from alexnet.data.sources.folders import read_archives, read_folder, split_archives
from alexnet.data.sources.layout import FOLDER_OPTIONS, TABLE_OPTIONS, LayoutOptions, unread_hint
from alexnet.data.sources.libraries import (
    PREFIX,
    SETS,
    is_saved,
    read_builtin,
    read_dataset,
    read_name,
    read_saved,
    saved_folder,
)
from alexnet.data.sources.parquet import parquet_files, read_parquet
from alexnet.data.sources.source import Problems, Sample, Source, is_image_name, path_text
from alexnet.data.sources.tables import is_table, read_table
from alexnet.errors import DataError, did_you_mean

__all__ = [
    "FORMATS",
    "SETS",
    "Sample",
    "Source",
    "format_table",
    "is_image_name",
    "is_store",
    "open_source",
    "read_dataset",
    "saved_folder",
]


class ReadOptions(NamedTuple):
    """The options of :func:`open_source` that are passed to the readers."""

    data_root: Path | None = None
    download: bool = False
    layout: LayoutOptions | None = None
    problems: Problems | None = None


class DataFormat(NamedTuple):
    """A format of labeled images.

    Attributes:
        data: what DATA is, as Markdown.
        content: where images and labels are, as Markdown.
        splits: the splits that the data brings.
        options: the options of :func:`open_source` and of the layout that can have an effect.
        matches: whether data is of this format.
        read: reads data of this format. Raises DataError.
        named: whether DATA is a name in :data:`SETS`, not a path.
    """

    data: str
    content: str
    splits: str
    options: tuple[str, ...]
    matches: Callable[[Path], bool]
    read: Callable[[Path, ReadOptions], Source]
    named: bool = False


FORMATS = (  # the first that matches is used
    DataFormat(
        "`digits`",
        "the handwritten digits that come with scikit-learn",
        "none",
        (),
        lambda path: str(path) == "digits",
        lambda path, options: read_builtin(str(path)),
        named=True,
    ),
    DataFormat(
        "`cifar10` `fashion_mnist` `imagenette` `mnist`",
        "a data set of torchvision, in `--data-root` (default `~/.cache/alexnet`); only `--download` fetches it",
        "train, test",
        ("data_root", "download"),
        lambda path: str(path) in SETS,
        lambda path, options: read_builtin(str(path), options.data_root, options.download),
        named=True,
    ),
    DataFormat(
        "a table or list `*.csv`, `*.tsv`, `*.txt`",
        "one row an image, with a first line `path,label[,group,split]`; or a path and a label a line",
        "by the column `split`",
        TABLE_OPTIONS,
        lambda path: path.is_file() and is_table(path),
        lambda path, options: read_table(path, options.layout, options.problems),
    ),
    DataFormat(
        "a tar archive `*.tar`",
        "class folders, split folders of class folders, or a tar for each class",
        "as the folders",
        (*FOLDER_OPTIONS, *TABLE_OPTIONS),
        lambda path: path.is_file() and is_archive(path),
        lambda path, options: read_archive(path, options.layout, options.problems),
    ),
    DataFormat(
        "`hf:OWNER/NAME`",
        "a data set of the Hugging Face hub with a column of images and one of labels; with `--download` it is fetched "
        "or taken from the cache of the library datasets; needs `pip install 'alexnet[datasets]'`",
        "as the data set",
        ("download",),
        lambda path: str(path).startswith(PREFIX),
        lambda path, options: read_name(str(path), options.download, options.problems),
    ),
    DataFormat(
        "a folder of `save_to_disk`",
        "the same on a disk, as the library datasets writes it; needs `pip install 'alexnet[datasets]'`",
        "as the data set",
        (),
        is_saved,
        lambda path, options: read_saved(path, options.problems),
    ),
    DataFormat(
        "a folder of parquet files `train-*.parquet`, `test-*.parquet`",
        "the Hugging Face layout, also in `data/`: columns `img` or `image`, `label` or `fine_label`, or those "
        "of `--image-column` and `--label-column`; needs `pip install 'alexnet[data]'`",
        "as the files",
        ("image_column", "label_column"),
        lambda path: path.is_dir() and bool(parquet_files(path)),
        lambda path, options: read_parquet(path, parquet_files(path), options.layout, options.problems),
    ),
    DataFormat(
        "a folder of tar archives `*train*.tar`, `*val*.tar`",
        "one tar for each split, as in ILSVRC; next to a flat validation tar `val.txt`, `LOC_val_solution.csv`, or "
        "`ILSVRC2012_validation_ground_truth.txt` with `meta.mat`",
        "as the archives",
        (*FOLDER_OPTIONS, *TABLE_OPTIONS),
        lambda path: path.is_dir() and len(split_archives(path)) > 1,
        lambda path, options: read_archives(path, split_archives(path), options.layout, options.problems),
    ),
    DataFormat(
        "a folder of images",
        "`class/*`, `train/class/*` or `class/train/*`; or images with a table (`labels.csv`, `metadata.csv`, "
        "`train.txt` and `val.txt`) next to them",
        "as the folders or tables",
        (*FOLDER_OPTIONS, *TABLE_OPTIONS),
        lambda path: path.is_dir(),
        lambda path, options: read_folder(path, options.layout, options.problems),
    ),
)


def format_table() -> str:
    """:data:`FORMATS` as the Markdown table of docs/data.md."""
    rows = [f"| {entry.data} | {entry.content} | {entry.splits} |" for entry in FORMATS]
    return "\n".join(["| DATA | Description | Splits |", "|---|---|---|", *rows])


def is_store(path: str | Path) -> bool:
    """Whether ``path`` is a prepared store: a folder with dataset.json, or an address (``s3://…``).

    Raises DataError if it is no path, as where a function of Python is given a data set in memory.
    """
    if not isinstance(path, str | Path):
        problem = f"data is a {type(path).__name__}"
        raise DataError(problem, "a path or a name", 'write a store with alexnet.prepare(data, "store") and pass that')
    return is_address(path) or (path != "" and (Path(path) / "dataset.json").is_file())


def open_source(
    data: str | Path,
    *,
    data_root: Path | None = None,
    download: bool = False,
    layout: LayoutOptions | None = None,
    problems: Problems | None = None,
) -> Source:
    """List the labeled images of ``data``.

    Args:
        data: the name of a known data set, or a path, in one of :data:`FORMATS`. The path of a folder that has the
            name of a known data set is written ``./name``.
        data_root: folder of torchvision's data sets; default ``~/.cache/alexnet``.
        download: fetch a data set of torchvision that is not in ``data_root``, or one of Hugging Face (``hf:``).
        layout: how to read a folder, tar or table whose layout is ambiguous.
        problems: a list to which problems are added that need not stop the reading, such as a class without images
            or an image listed twice. None: they raise.

    Raises:
        DataError: if ``data`` cannot be read, or an option has no effect on it, with a hint.
    """
    options = ReadOptions(data_root, download, layout, problems)
    if isinstance(data, str) and data in SETS:
        entry = next(entry for entry in FORMATS if entry.named and entry.matches(Path(data)))
        return _read(entry, Path(data), options)
    if is_address(data):
        problem = f"{data}: images cannot be read from an address"
        raise DataError(problem, "on a disk; only a prepared store may be at an address", "copy them here")
    path = local_path(data)
    if path.is_dir() and is_store(path):
        raise DataError(f"{path_text(path)}: is a prepared store", "a source of images", "open it with Store.open")
    for entry in FORMATS:
        if not entry.named and entry.matches(path):
            return _read(entry, path, options)
    expected = f"a folder, or one of {', '.join(SETS)}, or a .csv, .tsv, .txt or .tar file"
    if path.exists():
        hint = "name its folder" if is_image_name(path.name) else "save its images as files, in a folder for each class"
        raise DataError(f"{path_text(data)}: is a file", expected, unread_hint([path.suffix.lower()]) or hint)
    hint = did_you_mean(str(data).lower(), SETS)
    raise DataError(f"{path_text(data)}: no such data", expected, hint if hint.startswith("Did") else "check the path")


def _read(entry: DataFormat, path: Path, options: ReadOptions) -> Source:
    for name in ("data_root", "download"):
        if getattr(options, name) and name not in entry.options:
            downloaded = [name for name in SETS if name != "digits"]
            hint = f"leave it out; it is for {', '.join(downloaded)}" + " and hf:OWNER/NAME" * (name == "download")
            raise DataError(f"--{name.replace('_', '-')} has no effect on {path_text(path)}", "", hint)
    without_effect = [name for name in (*FOLDER_OPTIONS, *TABLE_OPTIONS) if name not in entry.options]
    (options.layout or LayoutOptions()).refuse(without_effect, path_text(path))
    return entry.read(path, options)
