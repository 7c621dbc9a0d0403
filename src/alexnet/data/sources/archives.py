"""Tar files → a source, read in place: nothing is ever extracted to the disk.

Inside are class folders, split folders of class folders, or a tar for each class (as ILSVRC has them). The headers are
read once; an image is then a piece of the file, read when it is needed. What an image archive has no use for is
refused with the whole archive: absolute names and ``..``, links, devices, sparse files, names that come twice.
"""

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from alexnet.data.atomic_io import open_regular
from alexnet.data.sources.annotations import labels_of
from alexnet.data.sources.layout import MAX_DEPTH, File, Layout, LayoutOptions, Node, Unused
from alexnet.data.sources.source import (
    Problems,
    Source,
    is_image_name,
    is_in_output,
    is_label_file,
    is_tool_file,
    is_tool_folder,
    output_folders,
    path_text,
    stamp_of,
)
from alexnet.errors import DataError, ImageError

MAX_MEMBERS = 500_000  # files in one tar; ILSVRC's largest has 50,000
_MAX_HEADER = 1 << 20  # bytes of one header: it contains names, never images


class Member(NamedTuple):
    """One file inside a tar."""

    parts: tuple[str, ...]  # its path; a class's tar inside the tar counts as a folder
    offset: int  # bytes from the start of the outer file
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class _TarFile(File):
    archive: Path
    prefix: str  # of its name in messages
    archive_stamp: str
    offset: int
    size: int

    def __call__(self) -> bytes:
        return _read(self.archive, "/".join(filter(None, (self.prefix, *self.parts))), self.offset, self.size)

    def stamp(self) -> str:
        return f"{self.archive_stamp} {self.offset} {self.size}"


def is_archive(path: Path) -> bool:
    """Whether the name is that of a tar, compressed or not."""
    return path.name.lower().endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"))


def read_archive(archive: Path, options: LayoutOptions | None = None, problems: Problems | None = None) -> Source:
    """The images in ``archive``, in the layouts of ``read_folder``. Raises DataError."""
    options, unused = options or LayoutOptions(), Unused()
    layout = Layout(path_text(archive), options, labels_of, problems, origins="top")
    return layout.source(tree_of(archive, options, unused), path_text(archive.name).split(".")[0], unused)


def tree_of(archive: Path, options: LayoutOptions, unused: Unused, *, prefix: str = "") -> Node:
    """The tree of folders in ``archive``. Origins of images begin with ``prefix``. Raises DataError."""
    tree, stamp = Node(), stamp_of(archive)
    members = list(members_of(archive, unused))
    outputs = output_folders(member.parts for member in members)
    for member in members:
        name = member.parts[-1]
        if output := is_in_output(member.parts, outputs):
            unused.outputs[path_text("/".join(member.parts[:output]))] = 1
            continue
        if options.ignores(member.parts) or any(options.ignores(member.parts[:n]) for n in range(1, len(member.parts))):
            unused.ignored[name] += 1
            continue
        node = tree.folder(member.parts[:-1])
        file = _TarFile(node.parts, name, archive, prefix, stamp, member.offset, member.size)
        if is_image_name(name):
            node.images.append(file)
            continue
        if is_label_file(name):
            node.texts[name] = file
        unused.suffixes[path_text(PurePosixPath(name).suffix.lower())] += 1
    return tree


def image_members(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The name of each image in ``archive``, and the function that returns its bytes. Raises DataError.

    Files of other programs, and what this program wrote, are left out.
    """
    outputs = output_folders(member.parts for member in members_of(archive, Unused()))
    for member in members_of(archive, Unused()):
        if is_image_name(member.parts[-1]) and not is_in_output(member.parts, outputs):
            origin = "/".join((str(archive), *member.parts))
            yield origin, partial(_read, archive, origin, member.offset, member.size)


def members_of(archive: Path, unused: Unused) -> Iterator[Member]:
    """The files in ``archive``, in the order of the tar. Files of other programs are counted in ``unused``.

    Raises DataError for an archive that is damaged, compressed or unsafe.
    """
    if not archive.name.lower().endswith(".tar"):
        hint = "unpack it to a plain .tar: gunzip and its like"
        raise DataError(f"{path_text(archive)}: is compressed, so no image can be read alone", "a plain .tar", hint)
    try:
        with open_regular(archive) as file:
            yield from _members(archive, file, 0, os.fstat(file.fileno()).st_size, (), unused)
    except (OSError, tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise DataError(f"{path_text(archive)}: cannot be read ({reason})", "a whole tar", "get it again") from error


class _Window:
    """Part of a file, with the file methods that ``tarfile`` needs. A header that is too long is refused unread."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self.file, self.start, self.size, self.at = file, start, size, 0

    def tell(self) -> int:
        return self.at

    def seek(self, at: int, whence: int = 0) -> int:
        self.at = at if whence == 0 else at + (self.at if whence == 1 else self.size)
        return self.at

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {count:,} bytes")
        self.file.seek(self.start + self.at)
        data = self.file.read(max(0, min(count, self.size - self.at)))
        self.at += len(data)
        return data


def _members(
    archive: Path, file: BinaryIO, start: int, size: int, above: tuple[str, ...], unused: Unused
) -> Iterator[Member]:
    """The members of the tar at offset ``start``; a tar in it is read as a folder, one level deep."""
    seen_parts: set[tuple[str, ...]] = set()
    window = _Window(file, start, size)
    if size == 0 or size % 512:
        raise tarfile.ReadError("empty" if size == 0 else f"{size:,} bytes, not whole blocks of 512: cut short?")
    with tarfile.open(fileobj=window, mode="r:", encoding="utf-8") as tar:  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            tar.members.clear()  # tarfile keeps all headers in memory otherwise
            parts = _safe_parts(archive, member)
            if not member.isreg() or not parts:
                continue
            tool = next(filter(is_tool_folder, parts[:-1]), parts[-1] if is_tool_file(parts[-1]) else "")
            if tool:
                unused.tools["._*" if tool.startswith("._") else tool] += 1
                continue
            if parts in seen_parts or len(seen_parts) >= MAX_MEMBERS:
                problem = f"{'/'.join(parts)} twice" if parts in seen_parts else f"more than {MAX_MEMBERS:,} files"
                raise DataError(
                    f"{path_text(archive)}: {problem}", "one tar of a data set, each file once", "repack it"
                )
            seen_parts.add(parts)
            if not 0 <= member.size <= size - member.offset_data:
                raise tarfile.ReadError(f"{'/'.join(parts)} is cut short")
            inner = parts[-1].lower().endswith(".tar")
            if inner and above:
                raise DataError(f"{path_text(archive)}: a tar in a tar in a tar", "one level", "repack it")
            if inner:
                folder = (*parts[:-1], parts[-1][:-4])
                yield from _members(archive, file, start + member.offset_data, member.size, folder, unused)
            else:
                yield Member((*above, *parts), start + member.offset_data, member.size)
        window.seek(tar.offset)
    if window.read(512) != bytes(512):  # tarfile reads a damaged header or a missing end as the end
        raise tarfile.ReadError(f"damaged or cut short at byte {start + tar.offset:,}")


def _safe_parts(archive: Path, member: tarfile.TarInfo) -> tuple[str, ...]:
    """The parts of a member's path. Raises DataError for an unsafe name, or a member that is not a file or folder."""
    name = path_text(member.name)
    kind = "a link" if member.issym() or member.islnk() else "" if member.isreg() or member.isdir() else "a device"
    kind = "a sparse file" if member.issparse() else kind
    if member.name.startswith("/") or ".." in member.name.split("/"):
        kind = "a name that leads out of the archive"
    if name != member.name:
        kind = kind or "not named in printable UTF-8"
    parts = tuple(part for part in member.name.split("/") if part not in ("", "."))
    if len(parts) > MAX_DEPTH:
        kind = kind or f"a name of {len(parts):,} folders"
    if kind:
        hint = "do not trust this archive, or repack it"
        raise DataError(f"{path_text(archive)}: {name[:80]} is {kind}", "plain files and folders", hint)
    return parts


def _read(archive: Path, origin: str, offset: int, size: int) -> bytes:
    from alexnet.data.decode import MAX_BYTES

    if size > MAX_BYTES:
        raise ImageError(f"{origin}: {size:,} bytes", f"at most {MAX_BYTES:,} bytes", "scale it down")
    try:
        with open_regular(archive) as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise ImageError(f"{origin}: cannot be read ({error.strerror})", "readable", "check the archive") from error
    if len(data) < size:
        raise ImageError(f"{origin}: the archive ends in it", f"{size:,} bytes", "get the archive again")
    return data
