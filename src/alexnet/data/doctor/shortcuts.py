"""Can the classes be told apart without looking at what is on the pictures? A network would find that first.

A small forest learns the classes from facts about the files alone, cross-validated: size, format, bytes, color or
gray, and the outermost ring of the thumbnail. What it reaches is compared with chance, each class counting alike.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from alexnet.data.doctor.findings import Example, Finding
from alexnet.data.doctor.looking import Look, Seen, thumbs_of
from alexnet.data.pixels import FORMATS

MOST = 4000  # pictures that the forest learns from, drawn
FOLDS, TREES = 4, 25
GRAY = 4  # gray levels that the channels of a gray picture's thumbnail may differ by (JPEG)
# How far from chance (0) to perfect (1), surely, before a warning. The ring of a photograph also shows scenery.
LIMITS = {"size": 0.3, "format": 0.3, "bytes": 0.35, "color": 0.35, "border": 0.5}


def check_colors(seen: Seen) -> Iterator[Finding]:
    """Findings about gray pictures."""
    good = seen.good()
    gray = is_gray(thumbs_of(good))
    if len(good) and gray.all():
        todo = "one channel will do: --in-channels 1 or a network for gray pictures saves time"
        yield Finding("gray", "note", "all pictures are gray", todo)
    elif gray.any():
        what = f"{int(gray.sum()):,} of {len(good):,} pictures are gray, the others in color"
        examples = tuple(Example((good[i].origin,)) for i in np.flatnonzero(gray))
        yield Finding("some-gray", "note", what, "fine, unless it goes with the class: see shortcut", examples)


def is_gray(thumbs: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the thumbnails [N, S, S, 3] have no color: [N]."""
    spread = thumbs.max(axis=3).astype(np.int16) - thumbs.min(axis=3)
    return np.asarray(spread.max(axis=(1, 2), initial=0) <= GRAY)


def check_shortcuts(seen: Seen) -> Iterator[Finding]:
    """What facts about the files reach; a warning where that is far from chance."""
    chosen = _drawn(seen.good())
    labels = np.array([look.picture.label for look in chosen], np.int64)
    classes = len(set(labels.tolist()))
    if classes < 2:
        return
    groups = np.array([look.picture.group or look.origin for look in chosen])
    reached = {name: _reach(table, labels, groups) for name, table in facts(chosen).items() if np.ptp(table, 0).any()}
    chance = 1 / classes
    numbers = {"chance": chance, "reached": {name: {"accuracy": a, "error": e} for name, (a, e) in reached.items()}}
    told = ", ".join(f"{name} {100 * accuracy:.0f} %" for name, (accuracy, _) in reached.items()) or "nothing"
    strong = [name for name, (a, e) in reached.items() if (a - 2 * e - chance) / (1 - chance) > LIMITS[name]]
    if strong:
        what = f"the classes can be told without their subject, by {' and '.join(strong)}: {told}, by chance "
        todo = "take pictures of all classes in the same way, or a network learns the way: crop, re-encode, mix sources"
        yield Finding("shortcut", "warning", f"{what}{100 * chance:.0f} %", todo, (), (), numbers)
    else:
        what = f"no shortcut: facts about the files alone reach {told}; chance is {100 * chance:.0f} %"
        yield Finding("no-shortcut", "note", what, "", (), (), numbers)


def facts(looks: list[Look]) -> dict[str, NDArray[np.float64]]:
    """What is known of each picture without its subject, by kind: [N, F] each."""
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


def _drawn(looks: list[Look]) -> list[Look]:
    """At most MOST, of classes that have enough for all folds."""
    counts = np.bincount([look.picture.label for look in looks]) if looks else np.zeros(0, np.int64)
    enough = [look for look in looks if counts[look.picture.label] >= 2 * FOLDS]
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(enough))[:MOST]
    return [enough[i] for i in sorted(order)]


def _reach(table: NDArray[np.float64], labels: NDArray[np.int64], groups: NDArray[np.str_]) -> tuple[float, float]:
    """(mean accuracy of the classes, its standard error) of a forest that never saw a picture's group."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.model_selection import GroupKFold

    right = np.zeros(len(labels), bool)
    names, numbers = np.unique(groups, return_inverse=True)
    shuffled = np.random.Generator(np.random.PCG64(1)).permutation(len(names))[numbers]
    for learn, ask in GroupKFold(min(FOLDS, len(names))).split(table, labels, shuffled):
        forest = ExtraTreesClassifier(TREES, max_depth=8, min_samples_leaf=3, class_weight="balanced", random_state=0)
        right[ask] = forest.fit(table[learn], labels[learn]).predict(table[ask]) == labels[ask]
    recall = np.array([right[labels == label].mean() for label in np.unique(labels)])
    count = np.array([(labels == label).sum() for label in np.unique(labels)])
    return float(recall.mean()), float(np.sqrt((recall * (1 - recall) / count).sum()) / len(recall))
