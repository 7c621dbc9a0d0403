"""Lines to read beside a run's numbers: what so many images can teach and show, and what is wrong with the numbers."""

import numpy as np

from alexnet.data.store import Store
from alexnet.evaluation.metrics import Scores

FEW = 100  # training pictures a class under which a network that starts from nothing is told to expect little


def notes(store: Store, scores: dict[str, Scores]) -> tuple[str, ...]:
    """What so many pictures can teach and show, honestly."""
    train, found = store.split("train"), []
    each = np.bincount(train.labels, minlength=len(store.classes))
    if each.min() < FEW:
        rare = store.classes[int(each.argmin())]
        found.append(
            f"{len(train)} pictures taught {len(store.classes)} classes, {each.min()} of {rare!r}: few for a network "
            f"that starts from nothing. More pictures, at least {FEW} a class, will help more than any option."
        )
    if "test" in scores:
        often = np.bincount(store.split("test").labels).max() / scores["test"].count
        over = f"; {len(scores['test'].groups)} groups of images" if scores["test"].groups else ""
        found.append(
            f"top-1 of {scores['test'].count} test images{over}: {_with_interval(scores['test'])}; "
            f"always predicting the most frequent class would reach {100 * often:.1f} %."
        )
    return tuple(found)


def warnings(store: Store, scores: dict[str, Scores]) -> tuple[str, ...]:
    """What makes the numbers of a run worthless, or shows that they are: to be read before them."""
    found, validation, test = [], scores.get("validation"), scores.get("test")
    if validation and test and test.top1_interval[1] < validation.top1_interval[0]:
        found.append(
            f"test top-1 is {_with_interval(test)}, validation top-1 is {_with_interval(validation)}: the validation "
            "images are more like the training images than the test images are. Copies or groups in both splits do "
            "this, and test images of another kind: alexnet doctor DATA, then --exclude or --group-pattern"
        )
    if last := test or validation:
        often = float(np.bincount(store.split(last.split).labels).max()) / last.count
        if last.top1_interval[0] <= often:
            found.append(
                f"{last.split} top-1 is {_with_interval(last)}; always predicting the most frequent class has "
                f"{100 * often:.1f} %: this does not show that the network learned anything"
            )
    return tuple(found)


def _with_interval(scores: Scores) -> str:
    low, high = scores.top1_interval
    return f"{100 * scores.top1:.1f} % (95 % CI {100 * low:.1f} to {100 * high:.1f} %)"
