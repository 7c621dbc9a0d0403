"""A tree of folders (on disk or in a tar) → a source: which folders are splits, which are classes, which are neither.

``class/*``, ``split/class/*`` and ``class/split/*`` are read, below any number of folders that hold everything else.
A flat split takes its labels from an annotation file. What is not used is a note of the source.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from alexnet.data.sources.source import (
    PREVIEWS,
    Problems,
    Row,
    Sample,
    Source,
    class_name,
    make_source,
    path_text,
    refuse,
    split_words,
)
from alexnet.errors import DataError, counted

FOLDER_OPTIONS, TABLE_OPTIONS = ("classes", "ignore"), ("image_column", "label_column", "delimiter")
MAX_DEPTH = 100  # levels of nested folders; a name in a tar may have 250,000
_UNLABELED = frozenset(
    ("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "unsup", "unsupervised", "query")
)


@dataclass(frozen=True)
class LayoutOptions:
    """How to read DATA if its layout is ambiguous."""

    classes: Literal["auto", "top", "leaves"] = "auto"  # top folders, or every folder that contains images
    ignore: tuple[str, ...] = ()  # patterns of folder and file names to skip
    image_column: str | None = None  # of a table: the image paths
    label_column: str | None = None  # of a table: the classes
    delimiter: str | None = None  # of a table
    recorded: bool = False  # some are those of a run, for data that may be of another format

    def refuse(self, names: Iterable[str], data: str) -> None:
        """Raise DataError if one of the options ``names``, which have no effect on ``data``, was passed."""
        for name in names:
            if getattr(self, name) not in (None, "auto", ()) and not self.recorded:
                raise DataError(f"--{name.replace('_', '-')} has no effect on {data}", "", "leave it out")

    def ignores(self, parts: Sequence[str]) -> bool:
        """Whether an ignore pattern matches the name, or the path relative to DATA."""
        path = "/".join(parts)
        return any(fnmatchcase(name, pattern.rstrip("/")) for pattern in self.ignore for name in (parts[-1], path))


_PACKED = frozenset((".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tar"))


def unread_hint(suffixes: Collection[str]) -> str:
    """What to do about files whose images are not read where they are; empty for other files."""
    if packed := sorted(_PACKED.intersection(suffixes)):
        return f"unpack {packed[0]} files, and name the folder of their images"
    if ".parquet" in suffixes:
        return "name the folder of parquet files that are called train-*.parquet and test-*.parquet"
    return ""


@dataclass(frozen=True, slots=True, eq=False)  # small: there may be a million
class File:
    """One image file of a tree. A call reads it."""

    folder: tuple[str, ...]  # the path of its folder relative to the root of the tree
    name: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Its path relative to the root of the tree."""
        return (*self.folder, self.name)

    def __call__(self) -> bytes:
        """The bytes of the file. Raises ImageError."""
        raise NotImplementedError

    def stamp(self) -> str:
        """A text that changes when the file changes."""
        raise NotImplementedError


@dataclass
class Node:
    """One folder: its subfolders, its images, and the text files that may be annotations."""

    parts: tuple[str, ...] = ()
    folders: dict[str, "Node"] = field(default_factory=dict)
    images: list[File] = field(default_factory=list)
    texts: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    repeats: list[str] = field(default_factory=list)  # names of links to folders that were read already

    def folder(self, parts: Iterable[str]) -> "Node":
        """The folder with the relative path ``parts``, created if it does not exist."""
        node = self
        for part in parts:
            node = node.folders.setdefault(part, Node((*node.parts, part)))
        return node

    def walk(self) -> Iterator["Node"]:
        """This folder and all folders below it, parents first."""
        yield self
        for name in sorted(self.folders):
            yield from self.folders[name].walk()

    def all_images(self) -> list[File]:
        """The images of this folder and of all folders below it."""
        return [file for node in self.walk() for file in node.images]

    def prune(self, parts: Sequence[str]) -> None:
        """Remove the folders along ``parts`` that hold nothing, from the innermost one."""
        for length in range(len(parts), 0, -1):
            parent, name = self.folder(parts[: length - 1]), parts[length - 1]
            node = parent.folders.get(name)
            if node and (node.folders or node.images or node.texts or node.repeats):
                return
            parent.folders.pop(name, None)

    def any_image(self) -> bool:
        """Whether there is an image in this folder or below it."""
        return any(node.images for node in self.walk())


@dataclass
class Unused:
    """Counts of the files that a reader leaves out, for the notes of the source."""

    suffixes: Counter[str] = field(default_factory=Counter)
    tools: Counter[str] = field(default_factory=Counter)  # hidden files, and files of other programs
    outputs: Counter[str] = field(default_factory=Counter)  # runs, stores and other folders that alexnet wrote
    ignored: Counter[str] = field(default_factory=Counter)  # skipped by --ignore
    lines: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """One note for each kind of skipped file."""
        notes = [
            f"not read as images: {counted(n, 'file')} "
            + (f"with the suffix {suffix!r}" if suffix else "without a suffix")
            for suffix, n in sorted(self.suffixes.items())
        ]
        kinds = (
            (self.tools, "left out as hidden or of other programs"),
            (self.outputs, "left out as written by alexnet"),
            (self.ignored, "left out by --ignore"),
        )
        for counts, kind in kinds:
            names = ", ".join(f"{name} ({n:,})" if n > 1 else name for name, n in counts.most_common(5))
            notes += [f"{counts.total():,} {kind}: {names}{', …' if len(counts) > 5 else ''}"] * bool(counts)
        return notes + self.lines


# split, folders that may hold annotations, images, known classes, options → (image → class, the file's name), or None
Labeler = Callable[[str, list[Node], list[File], list[str], LayoutOptions], tuple[dict[File, str], str] | None]


@dataclass
class Layout:
    """Reads the splits and classes of a tree of folders.

    Attributes:
        root_path: the root of the tree, for messages.
        options: how to read an ambiguous layout.
        labels_of: finds the labels of a split without class folders.
        problems: a list to which recoverable errors are added. None: they raise.
        origins: the level from which an image's path is its origin.
        notes: messages to the user.
        reads_tables: whether labels were found in annotation files.
    """

    root_path: str
    options: LayoutOptions
    labels_of: Labeler
    problems: Problems | None = None
    origins: Literal["root", "top", "split"] = "root"
    notes: list[str] = field(default_factory=list)
    reads_tables: bool = False

    def source(self, root: Node, name: str, unused: Unused) -> Source:
        """The source of the tree ``root``. Raises DataError for an unknown layout."""
        top, chain = self._unwrap(root, [root])
        splits = {split: (node, [*chain, node]) for split, node in self._splits(top).items()}
        if set(splits) == {"all"}:
            self._note_lists(root)
        return self.source_in(splits, name, unused, top)

    def source_in(self, splits: Mapping[str, tuple[Node, list[Node]]], name: str, unused: Unused, top: Node) -> Source:
        """The source of ``splits``: split → (its folder, the folders that may contain its annotations)."""
        chosen: dict[str, list[tuple[str, list[File]]]] = {}
        train_classes: list[str] = []
        starts: dict[str, int] = {}
        for split in sorted(splits, key=["all", "train", "validation", "test"].index):
            node, chain = self._unwrap(
                *splits[split], classes=train_classes if split in ("validation", "test") else None
            )
            if node.images and not node.folders:
                groups = self._from_annotations(split, node, chain, train_classes)
                if groups is None:
                    continue
            elif not node.folders:
                raise self._no_classes_error(node, unused.suffixes)
            else:
                if node.images:
                    self.notes.append(f"not used: {counted(len(node.images), 'image')} outside of class folders")
                groups = self._classes(node, split)
            chosen[split], starts[split] = groups, len(node.parts)
            if split in ("all", "train"):
                train_classes = sorted({title for title, _ in groups})
        if not self.reads_tables:
            self.options.refuse(TABLE_OPTIONS, f"{self.root_path}, which has no table of its images")
        if set(chosen) == {"train"}:
            self.notes.append("only train has labels: test and validation are cut from it")
            chosen["all"], starts["all"] = chosen.pop("train"), starts["train"]
        classes = sorted({title for groups in chosen.values() for title, _ in groups})
        self._check_split_names(classes, chosen)
        label_of = {title: label for label, title in enumerate(classes)}

        def rows() -> Iterator[Row]:
            for split, groups in chosen.items():
                depth = {"root": 0, "top": len(top.parts), "split": starts[split]}[self.origins]
                prefix = (split,) if self.origins == "split" else ()
                for title, files in groups:
                    for file in files:
                        origin = path_text("/".join((*prefix, *file.parts[depth:])))
                        yield Row(split, Sample(label_of[title], origin, file), file.stamp())

        return make_source(name, classes, rows(), notes=[*unused.notes(), *self.notes], problems=self.problems)

    def _path(self, node: Node) -> str:
        return "/".join((self.root_path.rstrip("/"), *map(path_text, node.parts)))

    def _unwrap(self, node: Node, chain: list[Node], classes: list[str] | None = None) -> tuple[Node, list[Node]]:
        """Skip folders that only contain one other folder: an archive's own, ``seg_train/seg_train``, ``val/images``.

        A child that contains only images is used if ``classes`` are known or there is an annotation file.
        Returns the folder that was reached, and ``chain`` with the folders that were passed.
        """
        first = node
        while len(node.folders) == 1 and not node.images:
            (child,) = node.folders.values()
            if class_name(child.parts[-1]) in (classes or ()):
                break
            only_images = child.images and not child.folders
            annotated = any(folder.texts for folder in (*chain, node, child))
            if not any(folder.any_image() for folder in child.folders.values()) and not (
                only_images and (classes or annotated)
            ):
                break
            node = child
            chain = [*chain, node]
        if node is not first:
            self.notes.append(f"{self._path(node)} is read: {self._path(first)} holds nothing else")
        return node, chain

    def _splits(self, top: Node) -> dict[str, Node]:
        """Split → its folder; {"all": top} if the folders are classes."""
        words = {name: split_words(name) for name in sorted(top.folders)}
        by_rest: dict[str, dict[str, str]] = {}
        for name, pair in words.items():
            if pair:
                by_rest.setdefault(pair[1], {})[name] = pair[0]
        complete = {rest: split_of for rest, split_of in by_rest.items() if {"train"} < set(split_of.values())}
        split_of = complete.get("") or next(iter(complete.values()), {})
        exact = by_rest.get("", {})
        if not split_of and any(top.folders[name].folders for name in exact):
            split_of = exact
        if split_of and len(split_of) < len(top.folders) and not any(top.folders[name].folders for name in split_of):
            split_of = {}  # folders of images next to other folders are classes with the names of splits
        if not split_of:
            return self._class_then_split(top) or {"all": top}
        self._check_others(top, split_of)
        counts = Counter(split_of.values())
        duplicates = [path_text(name) for name, split in split_of.items() if counts[split] > 1]
        if duplicates:
            problem = f"{self.root_path}: {' and '.join(duplicates)} name the same split"
            raise DataError(problem, "one folder each", f"leave one out (--ignore {duplicates[-1]}), or rename it")
        if "train" not in counts or len(counts) < 2:
            problem = f"{self.root_path}: split folders {', '.join(map(path_text, split_of))}"
            expected = "train and test, or train, validation and test, or class folders only"
            raise DataError(problem, expected, "name the folder of class folders itself")
        return {split: top.folders[name] for name, split in split_of.items()}

    def _check_others(self, top: Node, split_of: Mapping[str, str]) -> None:
        """Check the folders next to the split folders: they must have no images, or unlabeled images."""
        for name in sorted(set(top.folders) - set(split_of)):
            other, title = top.folders[name], path_text(name)
            if not other.any_image():
                self.notes.append(f"folder {title!r} holds no images and is not used")
            elif set(re.findall(r"[a-z]+", name.lower())) & _UNLABELED:
                self._note_unlabeled(other, len(other.all_images()))
            else:
                problem, expected = f"{self.root_path}: split folders beside {title!r}", "only splits or only classes"
                raise DataError(
                    problem, expected, f"leave it out with --ignore {title!r}, or rename split-like classes"
                )

    def _class_then_split(self, top: Node) -> dict[str, Node] | None:
        """``class/split/*`` rearranged as ``split/class/*``; None if the folders in the classes are not splits."""
        if self.options.classes != "auto" or len(top.folders) < 2:
            return None
        rearranged: dict[str, Node] = {}
        for name, folder in top.folders.items():
            splits = [split_words(sub) for sub in folder.folders]
            if folder.images or len(splits) < 2 or not all(pair and not pair[1] for pair in splits):
                return None
            for sub, pair in zip(folder.folders.values(), splits, strict=True):
                assert pair is not None
                if name in rearranged.setdefault(pair[0], Node(top.parts)).folders:
                    return None
                rearranged[pair[0]].folders[name] = sub
        if "train" not in rearranged or len(rearranged) < 2:
            return None
        self.notes.append(
            f"every class folder holds {', '.join(rearranged)}: read as splits of the {len(top.folders)} classes"
        )
        return rearranged

    def _classes(self, node: Node, split: str) -> list[tuple[str, list[File]]]:
        """(class, its images) of one split."""
        for folder in node.folders.values():
            if path_text(folder.parts[-1]) != folder.parts[-1]:
                encoding = sys.getfilesystemencoding()
                if encoding != "utf-8":
                    problem = f"{self._path(folder)}: folder name in a locale whose encoding is {encoding}"
                    raise DataError(problem, "UTF-8", "set the environment variable PYTHONUTF8=1")
                problem = f"{self._path(folder)}: folder name is no printable UTF-8"
                raise DataError(problem, "UTF-8", "rename the folder")
        if self.options.classes == "leaves":
            filled = [(inner.parts, inner.images) for inner in node.walk() if inner.images and inner is not node]
            last_names = {parts[-1] for parts, _ in filled}
            below = len(node.parts)
            has_common_name = len(last_names) == 1 and all(len(parts) > below + 1 for parts, _ in filled)
            leaves = [
                ("/".join(map(path_text, parts[below : -1 if has_common_name else None])), files)
                for parts, files in filled
            ]
            if split in ("all", "train"):
                self.notes.append(f"{len(leaves)} classes: every folder that holds images (--classes leaves)")
            return self._merge_unicode_forms(leaves)
        if split in ("all", "train"):
            self._check_nested(node)
        groups: list[tuple[str, list[File]]] = []
        for name in sorted(node.folders):
            files = node.folders[name].all_images()
            # With a list of problems, make_source adds this error to it.
            if not files and split in ("all", "train") and self.problems is None:
                hint = f"fill or remove this class folder, or leave it out with --ignore {path_text(name)!r}"
                raise DataError(f"{self._path(node.folders[name])}: no image", "at least one", hint)
            groups.append((name, files))
        return self._merge_unicode_forms(groups)

    def _merge_unicode_forms(self, groups: list[tuple[str, list[File]]]) -> list[tuple[str, list[File]]]:
        merged: dict[str, list[File]] = {}
        for name, files in groups:
            title = class_name(name)
            if title in merged:
                self.notes.append(
                    f"two folders {title!r} differ only in their Unicode form (NFC, NFD): read as one class"
                )
            merged[title] = [*merged.get(title, []), *files]
        return list(merged.items())

    def _check_nested(self, node: Node) -> None:
        """Refuse class folders that all contain the same folders: the user must choose the level of the classes."""
        inner = {
            name: {sub for sub, folder in top.folders.items() if folder.any_image()}
            for name, top in node.folders.items()
        }
        filled = {name: subs for name, subs in inner.items() if subs or node.folders[name].images}
        total = sum(map(len, filled.values()))
        if not total or self.options.classes == "top":
            return
        inner_paths = [(sub, f"{name}/{sub}") for name, subs in sorted(inner.items()) for sub in sorted(subs)]
        split_like = [path for sub, path in inner_paths if split_words(sub) or sub.strip("_. ").lower() in PREVIEWS]
        if split_like:
            names = ", ".join(map(path_text, split_like[:3])) + ", …" * (len(split_like) > 3)
            self.notes.append(
                f"read as images of their class, though called like splits or previews: {names} (--ignore leaves out)"
            )
        shared = set.intersection(*filled.values())
        folders_only = not any(node.folders[name].images for name in filled)
        if folders_only and len(filled) > 1 and len(shared) > 1 and 2 * len(shared) >= max(map(len, filled.values())):
            tops, subs = (", ".join(map(path_text, sorted(names)[:3])) for names in (filled, shared))
            problem = f"{self._path(node)}: its folders ({tops}, …) all hold the same folders ({subs}, …)"
            hint = f"name one of them ({self._path(node.folders[min(filled)])}), or choose with --classes top or leaves"
            refuse(DataError(problem, "class folders", hint), self.problems)
        elif max(map(len, filled.values())) > 1 or len(set().union(*filled.values())) > 1:
            self.notes.append(
                f"classes are the {len(filled)} top folders, with the {total} folders in them"
                " (each folder as a class: --classes leaves)"
            )

    def _from_annotations(
        self, split: str, node: Node, chain: list[Node], classes: list[str]
    ) -> list[tuple[str, list[File]]] | None:
        """(class, its images) of a flat split, by its annotation file. None for a test split without one."""
        folders_to_search = list({id(folder): folder for folder in (node, *reversed(chain))}.values())
        labeled = self.labels_of(split, folders_to_search, node.images, classes, self.options)
        if labeled is None:
            if split != "test":
                raise self._no_classes_error(node)
            self._note_unlabeled(node, len(node.images))
            return None
        labels, source = labeled
        self.reads_tables = True
        self.notes.append(f"the labels of {split if split != 'all' else 'the images'} are from {source}")
        if len(labels) < len(node.images):
            self.notes.append(f"not used: {counted(len(node.images) - len(labels), 'image')} not listed in {source}")
        groups: dict[str, list[File]] = {}
        for file in node.images:
            if file in labels:
                groups.setdefault(class_name(labels[file]), []).append(file)
        return sorted(groups.items())

    def _note_unlabeled(self, node: Node, count: int) -> None:
        path = self._path(node)
        self.notes.append(
            f"{path}: not used: {counted(count, 'image')} without labels, for prediction (alexnet predict RUN {path})"
            " and not for a test"
        )

    def _note_lists(self, root: Node) -> None:
        """A note about lists that seem to name the images of splits, where the splits are drawn."""
        for node in root.walk():
            split_of = {name: split_words(name.rpartition(".")[0]) for name in node.texts}
            lists = {name: pair[0] for name, pair in split_of.items() if pair and not pair[1]}
            if {"train"} < set(lists.values()):
                names = ", ".join(map(path_text, sorted(lists)))
                self.notes.append(
                    f"not used: {names}: all splits are drawn anew. To use such lists, name a table with the columns"
                    " path, label and split"
                )
                return

    def _no_classes_error(self, node: Node, suffixes: Collection[str] = ()) -> DataError:
        if node.repeats and not node.images:
            problem = f"{self._path(node)}: holds only links to folders that were read already"
            problem += f" ({', '.join(node.repeats[:3])}{', …' if len(node.repeats) > 3 else ''})"
            hint = "put its own images there, or remove the folder"
            return DataError(problem, "images that are in no other split", hint)
        problem = "images but no class folders" if node.images else "no class folders"
        hint = unread_hint(suffixes) or "sort them into folders, or name a table of paths and labels (.csv, .tsv, .txt)"
        return DataError(f"{self._path(node)}: {problem}", "one folder of images for each class", hint)

    def _check_split_names(self, classes: list[str], chosen: Mapping[str, object]) -> None:
        split_like, hint = [title for title in classes if split_words(title)], "leave it out with --ignore"
        if split_like and len(split_like) == len(classes) and len(classes) > 1:
            problem = f"{self.root_path}: all classes are called like splits ({', '.join(split_like[:4])})"
            refuse(DataError(problem, "class folders", "name the folder whose folders are the classes"), self.problems)
        elif split_like:
            self.notes.append(f"class {split_like[0]!r} is called like a split: if it is none, {hint}")
        for title in classes:
            if title.strip("_. ").lower() in PREVIEWS:
                self.notes.append(
                    f"class {title!r} is called like a folder of previews or copies: if it is one, {hint}"
                )
