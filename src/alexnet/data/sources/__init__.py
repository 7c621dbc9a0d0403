"""Where labeled images come from: what a person named → a folder, parquet files, a table,
tars, a set known by name.

A source only lists images and knows how to get each one's bytes (or array); nothing is decoded. Heavy libraries are
imported by the one function that needs them.
"""

import difflib
from pathlib import Path

from alexnet.data.remote import is_address
from alexnet.data.sources.archives import is_archive, read_archive
from alexnet.data.sources.builtin import SETS, read_digits, read_torchvision
from alexnet.data.sources.folders import read_archives, read_folder, split_archives
from alexnet.data.sources.listing import LayoutOptions, Problems, Sample, Source, is_image_name, path_text
from alexnet.data.sources.parquet import parquet_files, read_parquet
from alexnet.data.sources.tables import is_table, read_table
from alexnet.errors import DataError

__all__ = ["SETS", "Sample", "Source", "is_image_name", "is_store", "open_source"]


def is_store(path: str | Path) -> bool:
    """True if ``path`` is a prepared store: a folder that contains dataset.json, or an address (``s3://…``)."""
    return is_address(path) or (Path(path) / "dataset.json").is_file()


def open_source(
    data: str | Path,
    *,
    data_root: Path | None = None,
    download: bool = False,
    layout: LayoutOptions | None = None,
    problems: Problems | None = None,
) -> Source:
    """The images that ``data`` names: one of SETS, a folder (of class folders, split folders, parquet files or tars),
    a table or list (CSV, TSV, text), or a tar.

    ``data_root`` is where torchvision's sets lie or go (default ~/.cache/alexnet); only ``download`` fetches them. A
    folder that has a set's name is written ``./name``; ``layout`` says what its layout leaves open. Raises DataError
    that says what to do; with ``problems``, what need not stop the reading (a class without images, an image listed
    twice) is added to that list instead.
    """
    if isinstance(data, str) and data in SETS:
        return read_digits() if data == "digits" else read_torchvision(data, data_root, download)
    if is_address(data):
        what = f"{data}: images can not be read from an address"
        raise DataError(what, "on a disk; only a prepared store may lie elsewhere", "copy them here")
    root = Path(data)
    if root.is_file() and is_table(root):
        return read_table(root, layout, problems)
    if root.is_file() and is_archive(root):
        return read_archive(root, layout, problems)
    if not root.is_dir():
        raise _no_such(str(data), root)
    if is_store(root):
        raise DataError(f"{path_text(root)}: is a prepared store", "a source of images", "open it with Store.open")
    if files := parquet_files(root):
        return read_parquet(root, files, problems)
    tars = split_archives(root)
    return read_archives(root, tars, layout, problems) if len(tars) > 1 else read_folder(root, layout, problems)


def _no_such(data: str, root: Path) -> DataError:
    must = f"a folder, or one of {', '.join(SETS)}, or a .csv, .tsv, .txt or .tar file"
    if root.exists():
        return DataError(f"{path_text(data)}: is a file", must, "name its folder")
    near = difflib.get_close_matches(data.lower(), SETS, n=1)
    return DataError(f"{path_text(data)}: no such data", must, f"did you mean {near[0]}?" if near else "check the path")
