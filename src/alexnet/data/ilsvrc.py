"""A folder of tars, one for each split → a source; ILSVRC as its organizers pack it.

``…train….tar`` and ``…val….tar`` hold class folders or a tar for each class. Where the second is flat, as in ILSVRC,
an annotation file beside it says which picture is of which class.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from alexnet.data.annotations import TRUTHS, labels_of
from alexnet.data.archives import tree_of
from alexnet.data.layout import File, Layout, Node, Unused
from alexnet.data.listing import SPLITS, Faults, LayoutOptions, Source, shown
from alexnet.data.names import is_label_file
from alexnet.errors import DataError


def split_archives(root: Path) -> dict[str, list[Path]]:
    """The tars in ``root`` that have a split's name as one of their words."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*.tar")):
        splits = {SPLITS[word] for word in re.split(r"[-_.]", path.name.lower()) if word in SPLITS}
        for split in splits:
            found.setdefault(split, []).append(path)
    return found


def read_archives(
    root: Path, found: Mapping[str, list[Path]], options: LayoutOptions | None = None, faults: Faults | None = None
) -> Source:
    """The pictures of the tars that ``split_archives`` found. Raises DataError."""
    options, unused = options or LayoutOptions(), Unused()
    for split, paths in found.items():
        if len(paths) > 1:
            names = " and ".join(shown(path.name) for path in paths[:2])
            raise DataError(f"{shown(root)}: {names} are both of {split}", "one tar a split", "move one away")
    if "train" not in found or len(found) < 2:
        raise DataError(f"{shown(root)}: tars of {', '.join(found)}", "of train and validation or test", "add the rest")
    texts = {path.name: path.read_bytes for path in sorted(root.iterdir()) if is_label_file(path.name)}
    beside = Node(texts=texts)
    trees = {split: tree_of(paths[0], options, unused, above=split) for split, paths in found.items()}

    def labels(
        split: str, places: list[Node], images: list[File], classes: list[str], options: LayoutOptions
    ) -> tuple[dict[File, str], str] | None:
        labeled = labels_of(split, places, images, classes, options)
        if labeled is None and split != "test":
            what = f"{shown(found[split][0])}: no class folders and no ground truth beside it"
            raise DataError(what, " or ".join(TRUTHS), "put one of them into its folder")
        return labeled

    layout = Layout(shown(root), options, labels, faults, origins="split")
    splits = {split: (tree, [beside]) for split, tree in trees.items()}
    return layout.source_in(splits, shown(root.resolve().name), unused, beside)
