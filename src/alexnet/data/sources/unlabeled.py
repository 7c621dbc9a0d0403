"""Images without labels, for prediction: files, folders, globs, tar archives, parquet files and addresses.

Images are listed, not opened. A folder, an archive or a parquet file is listed anew in each pass, so that the memory
does not grow with the number of its images. Several inputs need the set of their names, so that each is listed once.
"""

import glob
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from alexnet.data.remote import is_address, list_remote, local_path, read_remote
from alexnet.data.sources.archives import image_members, is_archive
from alexnet.data.sources.folders import walk_images
from alexnet.data.sources.parquet import parquet_images
from alexnet.data.sources.source import (
    is_image_name,
    is_in_output,
    is_tool_file,
    is_tool_folder,
    output_folders,
    path_text,
    read_image,
)
from alexnet.errors import ImageError


class UnlabeledImage(NamedTuple):
    """One image that is not loaded yet.

    Attributes:
        name: its path or address. In an archive: ``images.tar/cats/1.jpg``. In a parquet file: ``a.parquet#0000012``.
        load: returns the bytes of the file. Raises ImageError. It can be pickled.
    """

    name: str
    load: Callable[[], bytes]


class UnlabeledImages:
    """The images of several inputs, in order, each once.

    Args:
        inputs: files, folders (with their subfolders), ``.tar`` archives, ``.parquet`` files, globs, and addresses
            (``s3://bucket/folder/``). A ``Path`` is never a glob or an address.
    """

    def __init__(self, inputs: Sequence[str | Path]) -> None:
        self.inputs = tuple(inputs)

    def __iter__(self) -> Iterator[UnlabeledImage]:
        """List the images. Raises ImageError or DataError for an input without images or one that cannot be read."""
        if len(self.inputs) == 1:
            yield from _images_of(self.inputs[0])
            return
        seen: set[str] = set()
        for entry in self.inputs:
            for image in _images_of(entry):
                if image.name not in seen:
                    seen.add(image.name)
                    yield image

    def count(self) -> int:
        """The number of images. This lists all of them, so it raises what listing raises."""
        return sum(1 for _ in self)


def _images_of(entry: str | Path) -> Iterator[UnlabeledImage]:
    """The images of one input; at least one."""
    empty = True
    for name, load in _listed(entry):
        empty = False
        yield UnlabeledImage(name, load)
    if empty:
        must = "a file, a folder with images, a .tar or .parquet file with images, or a glob that matches"
        raise ImageError(f"{path_text(str(entry))!r} holds no images", must)


def _listed(entry: str | Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if isinstance(entry, str) and is_address(entry):
        yield from _at_address(entry)
        return
    path = local_path(entry)
    if path.is_dir():
        for file in walk_images(path):
            yield str(file), partial(read_image, file)
    elif isinstance(entry, str) and glob.has_magic(entry) and not path.exists():
        for match in sorted(glob.iglob(entry, recursive=True)):  # noqa: PTH207
            if Path(match).is_file():
                yield from _file(Path(match))
    else:
        yield from _file(path)


def _at_address(address: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """An image, or the images in a folder or of a glob. A web server has no folders: its addresses are images."""
    if address.startswith(("http://", "https://")) or (is_image_name(address) and not glob.has_magic(address)):
        yield address, partial(read_remote, address)
        return
    root = address.partition("://")[2].strip("/")
    listed = [(name, _parts_below(root, name)) for name in list_remote(address)]
    outputs = set() if glob.has_magic(address) else output_folders(parts for _, parts in listed)
    for name, parts in listed:
        if not is_image_name(name) or is_tool_file(parts[-1]) or any(map(is_tool_folder, parts[:-1])):
            continue
        if not is_in_output(parts, outputs):
            yield name, partial(read_remote, name)


def _parts_below(root: str, address: str) -> tuple[str, ...]:
    path = address.partition("://")[2].lstrip("/")  # some file systems write memory:///a for memory://a
    return tuple(path.removeprefix(root).lstrip("/").split("/"))


def _file(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if is_archive(path) and path.is_file():
        yield from image_members(path)
    elif path.suffix.lower() == ".parquet" and path.is_file():
        yield from parquet_images(path)
    else:
        yield str(path), partial(read_image, path)
