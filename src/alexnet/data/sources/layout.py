"""A tree of folders (on disk or in a tar) → a source: which folders are splits, which are classes, which are neither.

``class/*``, ``split/class/*`` and ``class/split/*`` are read, below any number of folders that hold everything else.
A flat split takes its labels from an annotation file. What is not used is a note of the source.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from alexnet.data.sources.names import split_words
from alexnet.data.sources.source import Problems, Row, Sample, Source, class_name, make_source, path_text, refuse
from alexnet.errors import DataError, counted

MAX_DEPTH = 100  # folders in folders; a name in a tar may claim 250,000
_UNLABELED = frozenset(
    ("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "unsup", "unsupervised", "query")
)


@dataclass(frozen=True)
class LayoutOptions:
    """How DATA is read where its layout leaves it open."""

    classes: Literal["auto", "top", "leaves"] = "auto"  # top folders, or every folder that contains images
    ignore: tuple[str, ...] = ()  # patterns of folder and file names that are not read
    image_column: str | None = None  # of a table: the image paths
    label_column: str | None = None  # of a table: the classes
    delimiter: str | None = None  # of a table

    def ignores(self, parts: Sequence[str]) -> bool:
        """Does a pattern match the name, or the path from DATA on?"""
        path = "/".join(parts)
        return any(fnmatchcase(name, pattern.rstrip("/")) for pattern in self.ignore for name in (parts[-1], path))


class File(NamedTuple):
    """One image file of a tree."""

    parts: tuple[str, ...]  # of its name, from the root of the tree
    load: Callable[[], bytes]
    stamp: str  # what changes when the file does


@dataclass
class Node:
    """One folder: its folders and images by name, and the text files that may be annotations."""

    parts: tuple[str, ...] = ()
    folders: dict[str, "Node"] = field(default_factory=dict)
    images: list[File] = field(default_factory=list)
    texts: dict[str, Callable[[], bytes]] = field(default_factory=dict)

    def folder(self, parts: Iterable[str]) -> "Node":
        """The folder of that path below this one, made where there is none."""
        node = self
        for part in parts:
            node = node.folders.setdefault(part, Node((*node.parts, part)))
        return node

    def walk(self) -> Iterator["Node"]:
        """This folder and all below it, each before its own folders."""
        yield self
        for name in sorted(self.folders):
            yield from self.folders[name].walk()

    def all_images(self) -> list[File]:
        """The images of this folder and of all below it."""
        return [file for node in self.walk() for file in node.images]

    def any_image(self) -> bool:
        """Is there an image in it or below it?"""
        return any(node.images for node in self.walk())


@dataclass
class Unused:
    """What a reader leaves out, counted for the notes."""

    suffixes: Counter[str] = field(default_factory=Counter)
    tools: Counter[str] = field(default_factory=Counter)  # hidden files and what tools leave behind
    ignored: Counter[str] = field(default_factory=Counter)  # by --ignore
    lines: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """One line for each kind."""
        notes = [
            f"not read as images: {counted(n, 'file')} "
            + (f"with the suffix {suffix!r}" if suffix else "without a suffix")
            for suffix, n in sorted(self.suffixes.items())
        ]
        kinds = (
            (self.tools, "files and folders of tools or hidden are not read"),
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
    """One reading of a tree; ``where`` is its root for people, ``labels_of`` finds the labels of flat splits."""

    where: str
    options: LayoutOptions
    labels_of: Labeler
    problems: Problems | None = None
    origins: Literal["root", "top", "split"] = "root"  # from where on an image's path is its origin
    notes: list[str] = field(default_factory=list)

    def source(self, root: Node, name: str, unused: Unused) -> Source:
        """The source of the tree. Raises DataError for a layout that is none."""
        top, chain = self._unwrapped(root, [root])
        splits = {split: (node, [*chain, node]) for split, node in self._splits(top).items()}
        return self.source_in(splits, name, unused, top)

    def source_in(self, splits: Mapping[str, tuple[Node, list[Node]]], name: str, unused: Unused, top: Node) -> Source:
        """The source of these splits: split → (its folder, the folders that may hold its annotations)."""
        chosen: dict[str, list[tuple[str, list[File]]]] = {}
        known: list[str] = []
        starts: dict[str, int] = {}
        for split in sorted(splits, key=["all", "train", "validation", "test"].index):
            node, chain = self._unwrapped(*splits[split], classes=known if split in ("validation", "test") else None)
            if node.images and not node.folders:
                groups = self._labeled(split, node, chain, known)
                if groups is None:
                    continue
            elif not node.folders:
                raise self._no_folders(node)
            else:
                if node.images:
                    self.notes.append(f"not used: {counted(len(node.images), 'image')} outside of class folders")
                groups = self._classes(node, split)
            chosen[split], starts[split] = groups, len(node.parts)
            if split in ("all", "train"):
                known = sorted({title for title, _ in groups})
        if set(chosen) == {"train"}:
            self.notes.append("only train has labels: test and validation are cut from it")
            chosen["all"], starts["all"] = chosen.pop("train"), starts["train"]
        classes = sorted({title for groups in chosen.values() for title, _ in groups})
        self._check_split_names(classes, chosen)
        number = {title: label for label, title in enumerate(classes)}
        rows = []
        for split, groups in chosen.items():
            cut = {"root": 0, "top": len(top.parts), "split": starts[split]}[self.origins]
            above = (split,) if self.origins == "split" else ()
            for title, files in groups:
                for file in files:
                    origin = path_text("/".join((*above, *file.parts[cut:])))
                    rows.append(Row(split, Sample(number[title], origin, file.load), file.stamp))
        return make_source(name, classes, rows, notes=[*unused.notes(), *self.notes], problems=self.problems)

    def _path(self, node: Node) -> str:
        return "/".join((self.where.rstrip("/"), *map(path_text, node.parts)))

    def _unwrapped(self, node: Node, chain: list[Node], classes: list[str] | None = None) -> tuple[Node, list[Node]]:
        """Without the folders that hold everything: an archive's own, ``seg_train/seg_train``, ``val/images``.

        A folder of images alone is one only where ``classes`` are known, or an annotation file is at hand.
        """
        first = node
        while len(node.folders) == 1 and not node.images:
            (child,) = node.folders.values()
            if class_name(child.parts[-1]) in (classes or ()):
                break
            only_images = child.images and not child.folders
            annotated = any(place.texts for place in (*chain, node, child))
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
        """Split → its folder; {"all": top} where the folders are classes."""
        words = {name: split_words(name) for name in sorted(top.folders)}
        by_rest: dict[str, dict[str, str]] = {}
        for name, pair in words.items():
            if pair:
                by_rest.setdefault(pair[1], {})[name] = pair[0]
        whole = {rest: named for rest, named in by_rest.items() if {"train"} < set(named.values())}
        named = whole.get("") or next(iter(whole.values()), {})
        exact = by_rest.get("", {})
        if not named and any(top.folders[name].folders for name in exact):
            named = exact
        if named and len(named) < len(top.folders) and not any(top.folders[name].folders for name in named):
            named = {}  # folders of images alone, beside others: classes that are called so (a train, a test)
        if not named:
            return self._by_class(top) or {"all": top}
        self._check_others(top, named)
        counts = Counter(named.values())
        twice = [path_text(name) for name, split in named.items() if counts[split] > 1]
        if twice:
            what = f"{self.where}: {' and '.join(twice)} name the same split"
            raise DataError(what, "one folder each", f"leave one out (--ignore {twice[-1]}), or rename it")
        if "train" not in counts or len(counts) < 2:
            what = f"{self.where}: split folders {', '.join(map(path_text, named))}"
            must = "train and test, or train, validation and test, or class folders only"
            raise DataError(what, must, "name the folder of class folders itself")
        return {split: top.folders[name] for name, split in named.items()}

    def _check_others(self, top: Node, named: Mapping[str, str]) -> None:
        """What stands beside split folders: nothing with images in it, or images that have no labels."""
        for name in sorted(set(top.folders) - set(named)):
            other, title = top.folders[name], path_text(name)
            if not other.any_image():
                self.notes.append(f"folder {title!r} holds no images and is not used")
            elif set(re.findall(r"[a-z]+", name.lower())) & _UNLABELED:
                self._tell_unlabeled(other, len(other.all_images()))
            else:
                what, must = f"{self.where}: split folders beside {title!r}", "only splits or only classes"
                raise DataError(what, must, f"leave it out with --ignore {title!r}, or rename split-like classes")

    def _by_class(self, top: Node) -> dict[str, Node] | None:
        """``class/split/*`` turned into ``split/class/*``; None where the folders of classes are no splits."""
        if self.options.classes != "auto" or len(top.folders) < 2:
            return None
        turned: dict[str, Node] = {}
        for name, folder in top.folders.items():
            splits = [split_words(sub) for sub in folder.folders]
            if folder.images or len(splits) < 2 or not all(pair and not pair[1] for pair in splits):
                return None
            for sub, pair in zip(folder.folders.values(), splits, strict=True):
                assert pair is not None
                if name in turned.setdefault(pair[0], Node(top.parts)).folders:
                    return None
                turned[pair[0]].folders[name] = sub
        if "train" not in turned or len(turned) < 2:
            return None
        self.notes.append(
            f"every class folder holds {', '.join(turned)}: read as splits of the {len(top.folders)} classes"
        )
        return turned

    def _classes(self, node: Node, split: str) -> list[tuple[str, list[File]]]:
        """(class, its images) of one split."""
        for folder in node.folders.values():
            if path_text(folder.parts[-1]) != folder.parts[-1]:
                what = f"{self._path(folder)}: folder name is no printable UTF-8"
                raise DataError(what, "UTF-8", "rename the folder")
        if self.options.classes == "leaves":
            filled = [(inner.parts, inner.images) for inner in node.walk() if inner.images and inner is not node]
            ends = {parts[-1] for parts, _ in filled}
            below = len(node.parts)
            common = len(ends) == 1 and all(len(parts) > below + 1 for parts, _ in filled)
            leaves = [
                ("/".join(map(path_text, parts[below : -1 if common else None])), files) for parts, files in filled
            ]
            if split in ("all", "train"):
                self.notes.append(f"{len(leaves)} classes: every folder that holds images (--classes leaves)")
            return self._one_form(leaves)
        if split in ("all", "train"):
            self._check_nested(node)
        groups: list[tuple[str, list[File]]] = []
        for name in sorted(node.folders):
            files = node.folders[name].all_images()
            if not files and split in ("all", "train") and self.problems is None:  # else the source's own check adds it
                todo = f"fill or remove this class folder, or leave it out with --ignore {path_text(name)!r}"
                raise DataError(f"{self._path(node.folders[name])}: no image", "at least one", todo)
            groups.append((name, files))
        return self._one_form(groups)

    def _one_form(self, groups: list[tuple[str, list[File]]]) -> list[tuple[str, list[File]]]:
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
        """Class folders that all hold the same folders may be the wrong level: the person has to choose."""
        inner = {
            name: {sub for sub, folder in top.folders.items() if folder.any_image()}
            for name, top in node.folders.items()
        }
        filled = {name: subs for name, subs in inner.items() if subs or node.folders[name].images}
        total = sum(map(len, filled.values()))
        if not total or self.options.classes == "top":
            return
        shared = set.intersection(*filled.values())
        alone = not any(node.folders[name].images for name in filled)
        if alone and len(filled) > 1 and len(shared) > 1 and 2 * len(shared) >= max(map(len, filled.values())):
            tops, subs = (", ".join(map(path_text, sorted(names)[:3])) for names in (filled, shared))
            what = f"{self._path(node)}: its folders ({tops}, …) all hold the same folders ({subs}, …)"
            todo = f"name one of them ({self._path(node.folders[min(filled)])}), or choose with --classes top or leaves"
            refuse(DataError(what, "class folders", todo), self.problems)
        elif max(map(len, filled.values())) > 1 or len(set().union(*filled.values())) > 1:
            self.notes.append(
                f"classes are the {len(filled)} top folders, with the {total} folders in them"
                " (each folder as a class: --classes leaves)"
            )

    def _labeled(
        self, split: str, node: Node, chain: list[Node], classes: list[str]
    ) -> list[tuple[str, list[File]]] | None:
        """The images of a flat split by their annotation file; None for a test without one, which can be predicted."""
        places = list({id(place): place for place in (node, *reversed(chain))}.values())
        labeled = self.labels_of(split, places, node.images, classes, self.options)
        if labeled is None:
            if split != "test":
                raise self._no_folders(node)
            self._tell_unlabeled(node, len(node.images))
            return None
        labels, source = labeled
        self.notes.append(f"the labels of {split if split != 'all' else 'the images'} are from {source}")
        if len(labels) < len(node.images):
            self.notes.append(f"not used: {counted(len(node.images) - len(labels), 'image')} not listed in {source}")
        groups: dict[str, list[File]] = {}
        for file in node.images:
            if file in labels:
                groups.setdefault(class_name(labels[file]), []).append(file)
        return sorted(groups.items())

    def _tell_unlabeled(self, node: Node, count: int) -> None:
        path = self._path(node)
        self.notes.append(
            f"{path}: not used: {counted(count, 'image')} without labels, for prediction (alexnet predict RUN {path})"
            " and not for a test"
        )

    def _no_folders(self, node: Node) -> DataError:
        what = "images but no class folders" if node.images else "no class folders"
        todo = "sort them into folders, or name a table of paths and labels (.csv, .tsv, .txt)"
        return DataError(f"{self._path(node)}: {what}", "one folder of images for each class", todo)

    def _check_split_names(self, classes: list[str], chosen: Mapping[str, object]) -> None:
        like = [title for title in classes if split_words(title)]
        if like and len(like) == len(classes) and len(classes) > 1:
            what = f"{self.where}: all classes are called like splits ({', '.join(like[:4])})"
            refuse(DataError(what, "class folders", "name the folder whose folders are the classes"), self.problems)
        elif like:
            self.notes.append(f"class {like[0]!r} is called like a split: if it is none, leave it out with --ignore")
