"""Warnings on the result of a training: too few images, splits that differ, no better than the most frequent class."""

import numpy as np

from alexnet.data.store import Store
from alexnet.evaluation.metrics import Scores

MIN_IMAGES = 100  # training images per class below which training from scratch gets a warning


def data_size_warnings(store: Store, scores: dict[str, Scores]) -> tuple[str, ...]:
    """What to expect from so few images, and how certain the test accuracy is: a sentence each."""
    train, result = store.split("train"), []
    each = np.bincount(train.labels, minlength=len(store.classes))
    if each.min() < MIN_IMAGES:
        rare = store.classes[int(each.argmin())]
        result.append(
            f"{len(train)} training images for {len(store.classes)} classes, {each.min()} of {rare!r}, are few for "
            f"training from scratch. More images, at least {MIN_IMAGES} per class, help more than any option."
        )
    if "test" in scores:
        often = np.bincount(store.split("test").labels).max() / scores["test"].count
        over = f"; {len(scores['test'].groups)} groups of images" if scores["test"].groups else ""
        result.append(
            f"top-1 of {scores['test'].count} test images{over}: {_with_interval(scores['test'])}; "
            f"always predicting the most frequent class would reach {100 * often:.1f} %."
        )
    return tuple(result)


def score_warnings(store: Store, scores: dict[str, Scores]) -> tuple[str, ...]:
    """What makes the scores of a run unreliable: a sentence each. Print them before the scores."""
    result, validation, test = [], scores.get("validation"), scores.get("test")
    if validation and test and test.top1_interval[1] < validation.top1_interval[0]:
        result.append(
            f"test top-1 is {_with_interval(test)}, validation top-1 is {_with_interval(validation)}: the validation "
            "images are more like the training images than the test images are. Copies or groups in both splits do "
            "this, and test images of another kind: alexnet doctor DATA, then --exclude or --group-pattern"
        )
    if last := test or validation:
        often = float(np.bincount(store.split(last.split).labels).max()) / last.count
        if last.top1_interval[0] <= often:
            result.append(
                f"{last.split} top-1 is {_with_interval(last)}; always predicting the most frequent class has "
                f"{100 * often:.1f} %: this does not show that the network learned anything"
            )
    return tuple(result)


def _with_interval(scores: Scores) -> str:
    low, high = scores.top1_interval
    return f"{100 * scores.top1:.1f} % (95 % CI {100 * low:.1f} to {100 * high:.1f} %)"
