"""Check of shortcuts: whether classes can be predicted from facts about the files. A network would learn those first.

A small forest learns the classes from facts about the files alone, cross-validated: size, format, bytes, color or
gray, and the outermost ring of the thumbnail. What it reaches is compared with chance, each class counting alike;
images of one group, and copies, are never on both sides of the cross-validation where that can be.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data.decode import FORMATS
from alexnet.doctor.findings import Example, Finding
from alexnet.doctor.groups import group_names
from alexnet.doctor.images import ImageDataset, ImageInfo, Thumbnails
from alexnet.errors import counted
from alexnet.terminal import Progress

MAX_IMAGES = 4000  # images that the forest is trained on, drawn at random
FOLDS, TREES = 4, 25
GRAY = 4  # gray levels that the channels of a gray image's thumbnail may differ by (JPEG)
P_VALUE = 0.001  # p-value below which an accuracy is above chance
# How far from chance (0) to perfect (1), on a logarithmic scale, before a warning. In photographs of ten kinds the
# bytes reach 0.3 and the ring, which shows scenery, 0.5.
LIMITS = {"size": 0.35, "format": 0.35, "bytes": 0.4, "color": 0.35, "border": 0.6}


class ShortcutAccuracy(NamedTuple):
    """The accuracy of predicting classes from one kind of facts, averaged over the classes."""

    ungrouped: float
    grouped: float | None  # with groups kept together; None: there are no groups, or too few in a class
    error: float  # standard error of ``accuracy``

    @property
    def accuracy(self) -> float:
        """The accuracy with groups kept together if it is known, otherwise without."""
        return self.ungrouped if self.grouped is None else self.grouped

    def p_value(self, chance: float) -> float:
        """The p-value: probability of such an accuracy by chance."""
        return 0.5 * math.erfc((self.accuracy - chance) / (math.sqrt(2) * self.error))

    def effect(self, chance: float) -> float:
        """The lower limit of the accuracy on a logarithmic scale from chance (0) to perfect (1)."""
        return math.log(max(self.accuracy - 2 * self.error, chance) / chance) / -math.log(chance)


def check_colors(dataset: ImageDataset) -> Iterator[Finding]:
    """Findings about gray images."""
    good = dataset.good()
    thumbnails, starts = Thumbnails(good), range(0, len(good), 4096)  # in parts, to limit memory
    gray = np.concatenate([np.zeros(0, bool), *(is_gray(thumbnails[start : start + 4096]) for start in starts)])
    if len(good) and gray.all():
        todo = "pass --in-channels 1, or choose a network for gray images, to save time"
        yield Finding("gray", "note", "all images are gray", todo)
    elif gray.any():
        be = "is" if gray.sum() == 1 else "are"
        what = f"{int(gray.sum()):,} of {counted(len(good), 'image')} {be} gray, the others are in color"
        examples = tuple(Example((good[i].origin,)) for i in np.flatnonzero(gray))
        yield Finding("some-gray", "note", what, "a problem only if one class has most of them: see shortcut", examples)


def is_gray(thumbnails: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the thumbnails [N, S, S, 3] have no color: [N]."""
    spread = thumbnails.max(axis=3).astype(np.int16) - thumbnails.min(axis=3)
    return np.asarray(spread.max(axis=(1, 2), initial=0) <= GRAY)


def check_shortcuts(
    dataset: ImageDataset,
    duplicate_sets: list[list[ImageInfo]] | None = None,
    progress: Progress | None = None,
    pattern: str | None = None,
) -> Iterator[Finding]:
    """The accuracy from facts about the files: a warning if far above chance, a note if above chance.

    ``pattern``: as for :func:`alexnet.doctor.groups.check_groups`.
    """
    good = dataset.good()
    groups = dict(zip(map(id, good), _groups(good, duplicate_sets or [], pattern), strict=True))
    chosen = _draw(good)
    labels = np.array([info.sample.label for info in chosen], np.int64)
    classes = len(set(labels.tolist()))
    if classes < 2:
        return
    groups_of_chosen = np.array([groups[id(info)] for info in chosen])
    tables = {name: table for name, table in facts(chosen).items() if np.ptp(table, 0).any()}
    results: dict[str, ShortcutAccuracy] = {}
    for name, table in tables.items():
        results[name] = _accuracy(table, labels, groups_of_chosen)
        if progress is not None:
            progress(len(results) * len(chosen) // len(tables), len(chosen))
    chance = 1 / classes
    numbers = {"chance": chance, "reached": {name: _to_dict(result, chance) for name, result in results.items()}}
    values = ", ".join(f"{name} {_percent(result)}" for name, result in results.items()) or "nothing"
    values += f"; chance is {100 * chance:.2g} %"
    above = [name for name, result in results.items() if result.p_value(chance) < P_VALUE]
    strong = [name for name in above if results[name].effect(chance) > LIMITS[name]]
    if strong:
        what = f"the classes can be predicted from {' and '.join(strong)} alone: {values}"
        todo = "treat all classes alike (crop, re-encode, mix sources): a network learns such differences"
        yield Finding("shortcut", "warning", what, todo, (), (), numbers)
    elif above:
        what = f"{' and '.join(above)} alone predict{'s' * (len(above) == 1)} the classes better than chance: {values}"
        todo = "normal for photographs, whose scenery and texture depend on the class; otherwise treat it as a shortcut"
        yield Finding("weak-shortcut", "note", what, todo, (), (), numbers)
    else:
        what = f"no shortcut: accuracy from facts about the files is {values}"
        yield Finding("no-shortcut", "note", what, "", (), (), numbers)


def _to_dict(result: ShortcutAccuracy, chance: float) -> dict[str, float]:
    values = {"accuracy": result.accuracy, "accuracy_without_groups": result.ungrouped, "error": result.error}
    return values | {"p_value": result.p_value(chance)}


def _percent(result: ShortcutAccuracy) -> str:
    grouped = "" if result.grouped is None else f" ({100 * result.grouped:.0f} % with groups kept together)"
    return f"{100 * result.ungrouped:.0f} %{grouped}"


def _groups(infos: list[ImageInfo], duplicate_sets: list[list[ImageInfo]], pattern: str | None) -> list[str]:
    """A name for each image, shared with its copies and its group. File names may suggest the group."""
    names = [name or f"image {index}" for index, name in enumerate(group_names(infos, pattern))]
    positions = {id(info): index for index, info in enumerate(infos)}
    representatives: dict[str, str] = {}  # name → a name that stands for it

    def root(name: str) -> str:
        while (next_one := representatives.get(name, name)) != name:
            name = next_one
        return name

    for copies in duplicate_sets:
        names_of_set = sorted({root(names[positions[id(info)]]) for info in copies})
        representatives.update(dict.fromkeys(names_of_set[1:], names_of_set[0]))
    return [root(name) for name in names]


def facts(infos: list[ImageInfo]) -> dict[str, NDArray[np.float64]]:
    """Features of each image's file, by kind: float64 [N, F] each."""
    width, height, size = (
        np.array([max(1, getattr(info, n)) for info in infos], np.float64) for n in ("width", "height", "size")
    )
    formats = np.array([[info.format == name for name in FORMATS] for info in infos], np.float64)
    thumbnails = Thumbnails(infos)[:]
    ring = np.ones(thumbnails.shape[1:3], bool)
    ring[1:-1, 1:-1] = False
    border = thumbnails[:, ring].astype(np.float64)  # [N, R, 3]
    return {
        "size": np.log(np.stack([width, height, width / height], axis=1)),
        "format": formats,
        "bytes": np.log(np.stack([size, size / (width * height)], axis=1)),
        "color": is_gray(thumbnails)[:, None].astype(np.float64),
        "border": np.concatenate([border.mean(axis=1), border.std(axis=1)], axis=1),
    }


def _draw(infos: list[ImageInfo]) -> list[ImageInfo]:
    """At most MAX_IMAGES random images, of classes that have enough for all folds."""
    counts = np.bincount([info.sample.label for info in infos]) if infos else np.zeros(0, np.int64)
    enough = [info for info in infos if counts[info.sample.label] >= 2 * FOLDS]
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(enough))[:MAX_IMAGES]
    return [enough[i] for i in sorted(order)]


def _accuracy(table: NDArray[np.float64], labels: NDArray[np.int64], groups: NDArray[np.str_]) -> ShortcutAccuracy:
    """The cross-validated accuracy of a forest, without and with ``groups`` [N] kept together."""
    numbers = np.unique(groups, return_inverse=True)[1]
    single = np.arange(len(labels))
    ungrouped = _correct(table, labels, single)
    if len(set(numbers.tolist())) == len(labels):
        return ShortcutAccuracy(_recall(ungrouped, labels), None, _error(ungrouped, labels, single))
    if min(len(set(numbers[labels == label].tolist())) for label in set(labels.tolist())) < FOLDS:
        return ShortcutAccuracy(_recall(ungrouped, labels), None, _error(ungrouped, labels, numbers))
    grouped = _correct(table, labels, numbers)
    return ShortcutAccuracy(_recall(ungrouped, labels), _recall(grouped, labels), _error(grouped, labels, numbers))


def _correct(table: NDArray[np.float64], labels: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which images [N] a forest classifies correctly that was trained on no image of their group."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.model_selection import GroupKFold

    correct = np.zeros(len(labels), bool)
    shuffled = np.random.Generator(np.random.PCG64(1)).permutation(groups.max() + 1)[groups]
    for train, test in GroupKFold(min(FOLDS, len(set(groups.tolist())))).split(table, labels, shuffled):
        forest = ExtraTreesClassifier(TREES, max_depth=8, min_samples_leaf=3, class_weight="balanced", random_state=0)
        correct[test] = forest.fit(table[train], labels[train]).predict(table[test]) == labels[test]
    return correct


def _recall(correct: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    """Mean accuracy of the classes."""
    return float(np.mean([correct[labels == label].mean() for label in np.unique(labels)]))


def _error(correct: NDArray[np.bool_], labels: NDArray[np.int64], groups: NDArray[np.int64]) -> float:
    """The standard error of ``_recall`` with groups as units, at least that of random predictions."""
    classes = np.unique(labels)
    variance, minimum = 0.0, 0.0
    for label in classes:
        mask = labels == label
        deviations = correct[mask] - correct[mask].mean()
        sums = np.bincount(groups[mask], deviations)
        variance += float((sums**2).sum()) / mask.sum() ** 2
        minimum += (len(classes) - 1) / len(classes) ** 2 / mask.sum()
    return float(np.sqrt(max(variance, minimum)) / len(classes))
