"""What so many pictures can teach and show: sentences beside the scores of a run."""

import numpy as np

from alexnet.data.store import Store
from alexnet.evaluation.metrics import Scores

FEW = 100  # training pictures a class under which a network that starts from nothing is told to expect little


def notes(store: Store, scores: dict[str, Scores]) -> tuple[str, ...]:
    """What so many pictures can teach and show, honestly."""
    train, found = store.split("train"), list[str]()
    each = np.bincount(train.labels, minlength=len(store.classes))
    if each.min() < FEW:
        rare = store.classes[int(each.argmin())]
        found.append(
            f"{len(train)} pictures taught {len(store.classes)} classes, {each.min()} of {rare!r}: few for a network "
            f"that starts from nothing. More pictures, at least {FEW} a class, will help more than any option."
        )
    if "test" in scores:
        low, high = scores["test"].top1_interval
        often = np.bincount(store.split("test").labels).max() / scores["test"].count
        found.append(
            f"{scores['test'].count} test pictures put the true top-1 between {100 * low:.1f} and {100 * high:.1f} % "
            f"(95 % sure); always guessing the most frequent class would reach {100 * often:.1f} %."
        )
    return tuple(found)
