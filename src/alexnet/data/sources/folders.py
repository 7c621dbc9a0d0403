"""Folders of images → a source: one folder for each class, in split folders or not.

Files are listed, not opened. Linked folders are followed, each once. Names that are not UTF-8 are shown with their
bytes; folders must have readable names.


A folder of tars, one for each split → a source; ILSVRC as its organizers pack it.

``…train….tar`` and ``…val….tar`` hold class folders or a tar for each class. Where the second is flat, as in ILSVRC,
an annotation file next to it says which image is of which class.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from alexnet.data.atomic_io import read_regular
from alexnet.data.sources.annotations import TRUTHS, labels_of
from alexnet.data.sources.archives import tree_of
from alexnet.data.sources.layout import MAX_DEPTH, File, Layout, LayoutOptions, Node, Unused
from alexnet.data.sources.source import (
    SPLITS,
    Problems,
    Source,
    is_image_name,
    is_label_file,
    is_output_folder,
    is_text_name,
    is_tool_file,
    is_tool_folder,
    path_text,
    read_image,
    stamp_of,
)
from alexnet.data.sources.tables import MAX_TABLE, read_tables, split_tables
from alexnet.errors import DataError, counted


@dataclass(frozen=True, slots=True, eq=False)
class _DiskFile(File):
    directory: str

    @property
    def path(self) -> str:
        return f"{self.directory}{os.sep}{self.name}"  # a Path would keep the name in a table of its own

    def __call__(self) -> bytes:
        return read_image(self.path)

    def stamp(self) -> str:
        return stamp_of(self.path)


def read_folder(root: Path, options: LayoutOptions | None = None, problems: Problems | None = None) -> Source:
    """The images of ``root/class/*`` or ``root/{train,val,test}/class/*``, or of a table in ``root``.

    Classes are sorted by name.

    Args:
        root: the folder.
        options: how to read an ambiguous layout.
        problems: a list to which recoverable errors are added, such as a class without images. None: they raise.

    Raises:
        DataError: for any other layout.
    """
    options = options or LayoutOptions()
    unused = Unused()
    if _is_output(root, list(_entries(root)), ()):
        problem = f"{path_text(root)}: is a run, bundle, study or export that alexnet wrote"
        raise DataError(problem, "a source of images", "name the folder of the images")
    tree = folder_tree(root, options, unused)
    if tables := _tables(root, tree, options):
        options.refuse(["classes"], f"{path_text(root)}, whose classes are listed in a table")
        source = read_tables(tables, options, problems)
        names = ", ".join(path_text(table.name) for table in tables.values())
        return replace(source, notes=(*unused.notes(), f"images and labels are from {names}", *source.notes))
    return Layout(path_text(root), options, labels_of, problems).source(tree, path_text(root.resolve().name), unused)


def _tables(root: Path, tree: Node, options: LayoutOptions) -> dict[str, Path]:
    """Split → the table that lists the images of a folder without class folders."""
    filled = [folder for folder in tree.folders.values() if folder.any_image()]
    nested = any(sub.any_image() for folder in filled for sub in folder.folders.values())
    flat = bool(tree.images or filled) and len(filled) <= 1 and not nested
    return split_tables(root, list(filter(is_text_name, tree.texts)), options) if flat else {}


def image_files(root: Path) -> list[Path]:
    """Every image below ``root``, sorted by path, without files of other programs. Raises DataError."""
    return list(walk_images(root))


def walk_images(root: Path) -> Iterator[Path]:
    """The images below ``root`` in the order of their paths, listed while they are used. Raises DataError.

    Files of other programs, and what this program wrote, are left out. Linked folders are followed, each once.
    """
    followed: set[tuple[int, int]] = set()
    pending = [(_entries(root), frozenset((_identity(root),)))]  # (rest of a folder, identities of it and its parents)
    while pending:
        entries, parents = pending[-1]
        entry = next(entries, None)
        if entry is None:
            pending.pop()
        elif not _is_folder(entry):
            if is_image_name(entry.name) and not is_tool_file(entry.name):
                yield Path(entry.path)
        elif not is_tool_folder(entry.name):
            if len(pending) > MAX_DEPTH:
                raise _too_deep(root)
            identity = _identity(Path(entry.path))
            if identity not in parents and not (entry.is_symlink() and identity in followed):
                followed |= {identity} if entry.is_symlink() else set()
                inner = list(_entries(Path(entry.path)))
                if not _is_output(Path(entry.path), inner, Path(entry.path).relative_to(root).parts):
                    pending.append((iter(inner), parents | {identity}))


def _is_output(path: Path, entries: list[os.DirEntry[str]], parts: tuple[str, ...]) -> bool:
    """Whether the folder ``path`` with these ``entries`` was written by this program."""
    names = {entry.name for entry in entries}
    holds_run = "plan.json" in names and any((path / name / "run.json").is_file() for name in names)
    return is_output_folder(parts, names | {"*/run.json"} if holds_run else names)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_broken_link(entry: os.DirEntry[str]) -> bool:
    """Whether a link leads nowhere, perhaps to a folder that was moved. One with an image's name is a bad image."""
    return entry.is_symlink() and not is_image_name(entry.name) and not Path(entry.path).exists()


def _too_deep(root: Path) -> DataError:
    return DataError(f"{path_text(root)}: over {MAX_DEPTH} folders in each other", "", "name a folder in it")


def folder_tree(root: Path, options: LayoutOptions, unused: Unused) -> Node:
    """The tree of folders below ``root``. Raises DataError for a folder that cannot be read.

    Links are followed last, and only to folders that were not read: no image comes twice.
    """
    tree = Node()
    seen = {_identity(root)}  # of the folders that were read
    folders, links = [(tree, root)], list[tuple[Node, os.DirEntry[str]]]()
    followed, not_followed, broken, outputs = 0, list[str](), list[str](), list[tuple[str, ...]]()
    while folders or links:
        if not folders:
            node, entry = links.pop(0)
            if (identity := _identity(Path(entry.path))) in seen:
                node.repeats.append(path_text(entry.name))
                not_followed.append("/".join(map(path_text, (*node.parts, entry.name))))
                continue
            seen.add(identity)
            followed += 1
            folders.append((node.folder([entry.name]), Path(entry.path)))
        node, folder = folders.pop()
        entries = list(_entries(folder))
        if node is not tree and _is_output(folder, entries, node.parts):
            unused.outputs[path_text("/".join(node.parts))] += 1
            outputs.append(node.parts)
            continue
        for entry in entries:
            parts = (*node.parts, entry.name)
            is_folder = _is_folder(entry)
            if (is_tool_folder if is_folder else is_tool_file)(entry.name):
                unused.tools[path_text(entry.name) if not entry.name.startswith("._") else "._*"] += 1
            elif options.ignores(parts):
                unused.ignored[path_text(entry.name)] += 1
            elif not is_folder and _is_broken_link(entry):
                broken.append("/".join(map(path_text, parts)))
            elif not is_folder:
                _add_file(node, entry, folder, unused)
            elif len(parts) > MAX_DEPTH:
                raise _too_deep(root)
            elif entry.is_symlink():
                links.append((node, entry))
            elif (identity := _identity(Path(entry.path))) not in seen:
                seen.add(identity)
                folders.append((node.folder([entry.name]), Path(entry.path)))
    for parts in outputs:
        tree.prune(parts)
    if followed:
        unused.lines.append(f"followed: {counted(followed, 'linked folder')}")
    for paths, reason in ((not_followed, "is read already"), (broken, "is not there")):
        if paths:
            kind = "linked folder" if paths is not_followed else "link"
            names = ", ".join(sorted(paths)[:3])
            unused.lines.append(f"not followed, since what it leads to {reason}: {counted(len(paths), kind)}: {names}")
    return tree


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return status.st_dev, status.st_ino


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path_text(path)}: {error.strerror}", "a readable folder", "check the rights")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as iterator:
            entries = sorted(iterator, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from error
    yield from entries


def _add_file(node: Node, entry: os.DirEntry[str], folder: Path, unused: Unused) -> None:
    if is_image_name(entry.name):
        node.images.append(_DiskFile(node.parts, entry.name, str(folder)))
        return
    path = Path(entry.path)
    if is_label_file(entry.name) and entry.is_file():
        node.texts[entry.name] = partial(read_regular, path, MAX_TABLE)
    unused.suffixes[path_text(path.suffix.lower())] += 1


def split_archives(root: Path) -> dict[str, list[Path]]:
    """Split → the tars in ``root`` with a word for that split in their name."""
    archives: dict[str, list[Path]] = {}
    for path in filter(Path.is_file, sorted(root.glob("*.tar"))):
        splits = {SPLITS[word] for word in re.split(r"[-_.]", path.name.lower()) if word in SPLITS}
        for split in splits:
            archives.setdefault(split, []).append(path)
    return archives


def read_archives(
    root: Path,
    archives: Mapping[str, list[Path]],
    options: LayoutOptions | None = None,
    problems: Problems | None = None,
) -> Source:
    """The images of the tars ``archives`` in ``root``, the result of :func:`split_archives`. Raises DataError."""
    options, unused = options or LayoutOptions(), Unused()
    for split, paths in archives.items():
        if len(paths) > 1:
            names = " and ".join(path_text(path.name) for path in paths[:2])
            raise DataError(f"{path_text(root)}: {names} are both of {split}", "one tar a split", "move one away")
    if "train" not in archives or len(archives) < 2:
        raise DataError(
            f"{path_text(root)}: tars of {', '.join(archives)}", "of train and validation or test", "add the rest"
        )
    texts: dict[str, Callable[[], bytes]] = {
        path.name: partial(read_regular, path, MAX_TABLE) for path in sorted(root.iterdir()) if is_label_file(path.name)
    }
    annotations = Node(texts=texts)
    trees = {split: tree_of(paths[0], options, unused, prefix=split) for split, paths in archives.items()}

    def labels(
        split: str, folders: list[Node], images: list[File], classes: list[str], options: LayoutOptions
    ) -> tuple[dict[File, str], str] | None:
        labeled = labels_of(split, folders, images, classes, options)
        if labeled is None and split != "test":
            problem = f"{path_text(archives[split][0])}: no class folders and no ground truth next to it"
            raise DataError(problem, " or ".join(TRUTHS), "put one of them into its folder")
        return labeled

    layout = Layout(path_text(root), options, labels, problems, origins="split")
    splits = {split: (tree, [annotations]) for split, tree in trees.items()}
    return layout.source_in(splits, path_text(root.resolve().name), unused, annotations)
