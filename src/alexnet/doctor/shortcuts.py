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
from alexnet.doctor.images import ImageInfo, Progress, Seen, thumbs_of
from alexnet.errors import counted

MOST = 4000  # images that the forest learns from, drawn
FOLDS, TREES = 4, 25
GRAY = 4  # gray levels that the channels of a gray image's thumbnail may differ by (JPEG)
SURE = 0.001  # p-value below which an accuracy is above chance
# How far from chance (0) to perfect (1), on a logarithmic scale, before a warning. In photographs of ten kinds the
# bytes reach 0.3 and the ring, which shows scenery, 0.5.
LIMITS = {"size": 0.35, "format": 0.35, "bytes": 0.4, "color": 0.35, "border": 0.6}


class Reached(NamedTuple):
    """The accuracy from one kind of facts: mean over the classes, without and with groups kept together."""

    alone: float
    together: float | None  # None: there are no groups, or too few in a class
    error: float  # standard error of the one that counts

    @property
    def accuracy(self) -> float:
        """The accuracy with groups kept together if that is known."""
        return self.alone if self.together is None else self.together

    def by_chance(self, chance: float) -> float:
        """The p-value: probability of such an accuracy by chance."""
        return 0.5 * math.erfc((self.accuracy - chance) / (math.sqrt(2) * self.error))

    def share(self, chance: float) -> float:
        """How far from chance (0) to perfect (1) it surely is, on a logarithmic scale."""
        return math.log(max(self.accuracy - 2 * self.error, chance) / chance) / -math.log(chance)


def check_colors(seen: Seen) -> Iterator[Finding]:
    """Findings about gray images."""
    good = seen.good()
    gray = is_gray(thumbs_of(good))
    if len(good) and gray.all():
        todo = "pass --in-channels 1, or choose a network for gray images, to save time"
        yield Finding("gray", "note", "all images are gray", todo)
    elif gray.any():
        be = "is" if gray.sum() == 1 else "are"
        what = f"{int(gray.sum()):,} of {counted(len(good), 'image')} {be} gray, the others are in color"
        examples = tuple(Example((good[i].origin,)) for i in np.flatnonzero(gray))
        yield Finding("some-gray", "note", what, "a problem only if one class has most of them: see shortcut", examples)


def is_gray(thumbs: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the thumbnails [N, S, S, 3] have no color: [N]."""
    spread = thumbs.max(axis=3).astype(np.int16) - thumbs.min(axis=3)
    return np.asarray(spread.max(axis=(1, 2), initial=0) <= GRAY)


def check_shortcuts(
    seen: Seen, crowds: list[list[ImageInfo]] | None = None, progress: Progress | None = None
) -> Iterator[Finding]:
    """The accuracy from facts about the files: a warning if far above chance, a note if above chance."""
    good = seen.good()
    groups = dict(zip(map(id, good), _groups(good, crowds or []), strict=True))
    chosen = _drawn(good)
    labels = np.array([look.image.label for look in chosen], np.int64)
    classes = len(set(labels.tolist()))
    if classes < 2:
        return
    together = np.array([groups[id(look)] for look in chosen])
    tables = {name: table for name, table in facts(chosen).items() if np.ptp(table, 0).any()}
    reached: dict[str, Reached] = {}
    for name, table in tables.items():
        reached[name] = _reach(table, labels, together)
        if progress is not None:
            progress(len(reached) * len(chosen) // len(tables), len(chosen))
    chance = 1 / classes
    numbers = {"chance": chance, "reached": {name: _plain(one, chance) for name, one in reached.items()}}
    values = ", ".join(f"{name} {_percents(one)}" for name, one in reached.items()) or "nothing"
    values += f"; chance is {100 * chance:.2g} %"
    above = [name for name, one in reached.items() if one.by_chance(chance) < SURE]
    strong = [name for name in above if reached[name].share(chance) > LIMITS[name]]
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


def _plain(one: Reached, chance: float) -> dict[str, float]:
    values = {"accuracy": one.accuracy, "accuracy_without_groups": one.alone, "error": one.error}
    return values | {"p_value": one.by_chance(chance)}


def _percents(one: Reached) -> str:
    together = "" if one.together is None else f" ({100 * one.together:.0f} % with groups kept together)"
    return f"{100 * one.alone:.0f} %{together}"


def _groups(looks: list[ImageInfo], crowds: list[list[ImageInfo]]) -> list[str]:
    """For each image a name that it shares with its copies and with its group, which may be one that names suggest."""
    names = [name or f"image {index}" for index, name in enumerate(group_names(looks))]
    place = {id(look): index for index, look in enumerate(looks)}
    joined: dict[str, str] = {}  # name → a name that stands for it

    def top(name: str) -> str:
        while (next_one := joined.get(name, name)) != name:
            name = next_one
        return name

    for crowd in crowds:
        own = sorted({top(names[place[id(look)]]) for look in crowd})
        joined.update(dict.fromkeys(own[1:], own[0]))
    return [top(name) for name in names]


def facts(looks: list[ImageInfo]) -> dict[str, NDArray[np.float64]]:
    """What is known of each image without its subject, by kind: [N, F] each."""
    wide, high, size = (
        np.array([max(1, getattr(look, n)) for look in looks], np.float64) for n in ("width", "height", "size")
    )
    kinds = np.array([[look.format == kind for kind in FORMATS] for look in looks], np.float64)
    thumbs = thumbs_of(looks)
    ring = np.ones(thumbs.shape[1:3], bool)
    ring[1:-1, 1:-1] = False
    border = thumbs[:, ring].astype(np.float64)  # [N, R, 3]
    return {
        "size": np.log(np.stack([wide, high, wide / high], axis=1)),
        "format": kinds,
        "bytes": np.log(np.stack([size, size / (wide * high)], axis=1)),
        "color": is_gray(thumbs)[:, None].astype(np.float64),
        "border": np.concatenate([border.mean(axis=1), border.std(axis=1)], axis=1),
    }


def _drawn(looks: list[ImageInfo]) -> list[ImageInfo]:
    """At most MOST, of classes that have enough for all folds."""
    counts = np.bincount([look.image.label for look in looks]) if looks else np.zeros(0, np.int64)
    enough = [look for look in looks if counts[look.image.label] >= 2 * FOLDS]
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(enough))[:MOST]
    return [enough[i] for i in sorted(order)]


def _reach(table: NDArray[np.float64], labels: NDArray[np.int64], groups: NDArray[np.str_]) -> Reached:
    """What a forest reaches, alone and with ``groups`` [N] kept together."""
    numbers = np.unique(groups, return_inverse=True)[1]
    single = np.arange(len(labels))
    alone = _right(table, labels, single)
    if len(set(numbers.tolist())) == len(labels):
        return Reached(_recall(alone, labels), None, _error(alone, labels, single))
    if min(len(set(numbers[labels == label].tolist())) for label in set(labels.tolist())) < FOLDS:
        return Reached(_recall(alone, labels), None, _error(alone, labels, numbers))
    together = _right(table, labels, numbers)
    return Reached(_recall(alone, labels), _recall(together, labels), _error(together, labels, numbers))


def _right(table: NDArray[np.float64], labels: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which images a forest takes for their class that never saw one of their group: [N]."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.model_selection import GroupKFold

    right = np.zeros(len(labels), bool)
    shuffled = np.random.Generator(np.random.PCG64(1)).permutation(groups.max() + 1)[groups]
    for learn, ask in GroupKFold(min(FOLDS, len(set(groups.tolist())))).split(table, labels, shuffled):
        forest = ExtraTreesClassifier(TREES, max_depth=8, min_samples_leaf=3, class_weight="balanced", random_state=0)
        right[ask] = forest.fit(table[learn], labels[learn]).predict(table[ask]) == labels[ask]
    return right


def _recall(right: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    """Mean accuracy of the classes."""
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def _error(right: NDArray[np.bool_], labels: NDArray[np.int64], groups: NDArray[np.int64]) -> float:
    """The standard error of ``_recall``, groups drawn whole; at least that of guessing images one by one."""
    classes = np.unique(labels)
    variance, least = 0.0, 0.0
    for label in classes:
        own = labels == label
        off = right[own] - right[own].mean()
        sums = np.bincount(groups[own], off)
        variance += float((sums**2).sum()) / own.sum() ** 2
        least += (len(classes) - 1) / len(classes) ** 2 / own.sum()
    return float(np.sqrt(max(variance, least)) / len(classes))
