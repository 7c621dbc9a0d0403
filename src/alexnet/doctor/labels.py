"""Checks of classes and labels: missing or small classes, class imbalance, likely wrong labels.

Wrong labels are found by confident learning (Northcutt, Jiang, Chuang 2021). A linear classifier is trained with
cross-validation on features of the images, so that the probabilities of each image come from a classifier that has not
seen its label. An image is doubtful if its probability of another class is at least the mean probability of that class
over the images that are labeled so.
"""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data.sources.source import group_similar, summarize
from alexnet.doctor.duplicates import duplicate_ids
from alexnet.doctor.findings import Example, Finding
from alexnet.doctor.images import ImageDataset, ImageInfo
from alexnet.errors import DataError, counted
from alexnet.terminal import shorten

MIN_TRAIN, MIN_TEST = 20, 10  # images of a class
MAX_RATIO = 5.0  # times as many images in the largest class as in the smallest


def counts_of(dataset: ImageDataset) -> dict[str, tuple[int, ...]]:
    """Usable images of each class in each split."""
    results = {split: np.zeros(len(dataset.classes), int) for split in ("train", "validation", "test")}
    for info in dataset.good():
        results[info.split][info.sample.label] += 1
    return {split: tuple(int(count) for count in counts) for split, counts in results.items()}


def check_classes(dataset: ImageDataset, problems: list[DataError]) -> Iterator[Finding]:
    """Findings about classes; ``problems`` are those that were found while the source was read."""
    for lines in group_similar([fault.what + (f"; must be {fault.must}" if fault.must else "") for fault in problems]):
        todo = next(fault.todo for fault in problems if lines[0].startswith(fault.what))
        yield Finding("refused", "error", summarize(lines), todo, tuple(Example((), line) for line in lines[1:]))
    counts = counts_of(dataset)
    train, test = np.array(counts["train"]), np.array(counts["test"])
    refused = " ".join(fault.what for fault in problems)
    missing = [title for title in _titles(dataset, train == 0) if repr(title) not in refused]
    if missing:
        what = f"{counted(len(missing), 'class has', 'classes have')} no usable training image: {_list(missing)}"
        yield Finding("class-missing", "error", what, "add images, or remove the class")
    for split in ("validation", "test"):
        missing = _titles(dataset, (np.array(counts[split]) == 0) & (train > 0)) if sum(counts[split]) else []
        if missing:
            their = "its" if len(missing) == 1 else "their"
            what = f"{split} has no image of {_list(missing)}: {their} accuracy cannot be measured"
            yield Finding("class-missing", "warning", what, f"move some of {their} images to {split}")
    yield from _small_classes(dataset, train, test)
    yield from _imbalance(dataset, train)


def _small_classes(dataset: ImageDataset, train: np.ndarray, test: np.ndarray) -> Iterator[Finding]:
    too_few = (train > 0) & (train < MIN_TRAIN)
    if too_few.any():
        what = f"fewer than {MIN_TRAIN} training images of {_list(_titles(dataset, too_few), train[too_few])}"
        yield Finding("few", "warning", what, "collect more images: 100 a class is little, 1,000 is good")
    uncertain = (test > 0) & (test < MIN_TEST) & ~too_few
    if uncertain.any():
        what = f"fewer than {MIN_TEST} test images of {_list(_titles(dataset, uncertain), test[uncertain])}"
        yield Finding("few-test", "note", what, "the accuracy of these classes will be uncertain: test on more images")


def _imbalance(dataset: ImageDataset, train: np.ndarray) -> Iterator[Finding]:
    counts = train[train > 0]
    if len(counts) < 2 or counts.max() < MAX_RATIO * counts.min():
        return
    most, least = (
        dataset.classes[int(train.argmax())],
        dataset.classes[int(np.where(train > 0, train, train.max()).argmin())],
    )
    share = train.max() / train.sum()
    what = (
        f"{counts.max():,} training images of {most!r} and {counts.min():,} of {least!r}: "
        f"predicting always {most!r} has {100 * share:.0f} % accuracy"
    )
    todo = "collect more images of the rare classes; look at the accuracy of each class, not only at top-1"
    numbers = {"counts": train.tolist(), "ratio": float(counts.max() / counts.min())}
    yield Finding("imbalance", "warning", what, todo, (), (), numbers)


def _titles(dataset: ImageDataset, mask: np.ndarray) -> list[str]:
    return [dataset.classes[i] for i in np.flatnonzero(mask)]


def _list(titles: list[str], counts: np.ndarray | None = None) -> str:
    items = [
        f"{shorten(t, 200)!r}" + (f" ({counts[i]})" if counts is not None else "") for i, t in enumerate(titles[:8])
    ]
    return ", ".join(items) + (
        f" and {counted(len(titles) - 8, 'more class', 'more classes')}" if len(titles) > 8 else ""
    )


FOLDS = 5
MAX_DIMENSIONS = 512  # principal components of the features that are used
PENALTY = 0.003  # C of the logistic regression, 1 / N for few images: wrong labels are not fitted (docs/doctor.md)
MIN_AGREEMENT = 0.95  # if the classifier agrees with more than this fraction of all labels, most doubts are errors


class LabelIssues(NamedTuple):
    """Images whose label is likely wrong, the most doubtful first."""

    indices: NDArray[np.int64]  # [n]
    suggested: NDArray[np.int64]  # [n] the class that each image seems to be of


def check_labels(
    dataset: ImageDataset,
    infos: list[ImageInfo],
    duplicate_sets: list[list[ImageInfo]],
    features: NDArray[np.floating],
) -> Iterator[Finding]:
    """Images whose label is likely wrong by their ``features`` [N, D], the most doubtful first.

    Classes with fewer than FOLDS different images are not checked.
    """
    labels, groups = np.array([info.sample.label for info in infos], np.int64), duplicate_ids(infos, duplicate_sets)
    distinct = [len(set(groups[labels == label].tolist())) for label in range(len(dataset.classes))]
    checked = np.flatnonzero(np.array(distinct, np.int64)[labels] >= FOLDS) if len(labels) else labels
    if len(set(labels[checked].tolist())) < 2:
        return
    labels, infos = labels[checked], [infos[index] for index in checked]
    probabilities = out_of_fold_probabilities(features[checked], labels, len(dataset.classes), groups[checked])
    issues = label_issues(probabilities, labels)
    if not len(issues.indices):
        return
    agree = float((probabilities.argmax(axis=1) == labels).mean())
    suggested = {
        infos[i].origin: dataset.classes[label] for i, label in zip(issues.indices, issues.suggested, strict=True)
    }
    examples = tuple(
        Example(
            (infos[i].origin,),
            f"labeled {dataset.classes[labels[i]]} ({100 * probabilities[i, labels[i]]:.0f} % likely); "
            f"{dataset.classes[label]} is {100 * probabilities[i, label]:.0f} % likely",
        )
        for i, label in zip(issues.indices, issues.suggested, strict=True)
    )
    count = len(examples)
    amount = "many" if agree < MIN_AGREEMENT else "some"
    what = (
        f"{count:,} image{'s' * (count != 1)} may have a wrong label; a classifier that was trained on other images "
        f"agrees with {100 * agree:.0f} % of all labels, so {amount} of these are its errors"
    )
    todo = "look at the image and correct its label if it is wrong"
    if count > 1:
        todo = "look at each image, most doubtful first, and correct wrong labels"
    yield Finding("label-doubt", "warning", what, todo, examples, (), {"agree": agree, "suggested": suggested})


def out_of_fold_probabilities(
    features: NDArray[np.floating], labels: NDArray[np.int64], classes: int, groups: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Class probabilities of each image from a linear classifier that was trained on other images.

    Args:
        features: [N, D].
        labels: int64 [N]; each class that occurs has images of at least FOLDS groups.
        classes: the number of classes, K.
        groups: int64 [N]; images of one group, such as copies, are in one fold.

    Returns:
        [N, K]; zeros for a class without images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    points = components(features)
    probabilities = np.zeros((len(labels), classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no convergence within the steps: the last digits differ
        for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(points, labels, groups):
            penalty = max(PENALTY, 1 / len(train))
            model = LogisticRegression(C=penalty, max_iter=200).fit(points[train], labels[train])
            probabilities[np.ix_(test, model.classes_)] = model.predict_proba(points[test])
    return probabilities


def label_issues(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> LabelIssues:
    """The off-diagonal entries of the confident joint, by the probability of the label, lowest first.

    Args:
        probabilities: out-of-fold probabilities [N, K].
        labels: int64 [N].
    """
    own = probabilities[np.arange(len(labels)), labels]  # [N]
    counts = np.bincount(labels, minlength=probabilities.shape[1])  # [K]
    sums = np.bincount(labels, own, minlength=probabilities.shape[1])
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)  # [K]
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)  # [N, K]
    best = confident.argmax(axis=1)
    doubtful = np.flatnonzero((confident.max(axis=1) >= 0) & (best != labels))
    order = doubtful[np.argsort(own[doubtful], kind="stable")]
    return LabelIssues(order, best[order])


def components(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """At most MAX_DIMENSIONS principal components, scaled so that the mean squared length is MAX_DIMENSIONS."""
    points = features.astype(np.float32)
    if min(points.shape) > MAX_DIMENSIONS:
        from sklearn.decomposition import PCA

        points = PCA(MAX_DIMENSIONS, svd_solver="randomized", random_state=0).fit_transform(points).astype(np.float32)
    points = points - points.mean(axis=0)
    length = float(np.sqrt((points**2).sum(axis=1).mean() / MAX_DIMENSIONS))
    return np.asarray(points / max(length, 1e-12), np.float32)
