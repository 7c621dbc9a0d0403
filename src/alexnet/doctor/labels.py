"""Checks of classes and labels: missing or small classes, class imbalance, likely wrong labels."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from alexnet.data.sources.source import group_similar, summarize
from alexnet.doctor.duplicates import duplicate_ids
from alexnet.doctor.findings import Example, Finding
from alexnet.doctor.images import ImageDataset, ImageInfo
from alexnet.errors import DataError, counted
from alexnet.terminal import Progress

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
            what = f"{split} has no image of {_list(missing)}: their accuracy can not be measured"
            yield Finding("class-missing", "warning", what, f"move some of their images to {split}")
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
    items = [f"{t!r}" + (f" ({counts[i]})" if counts is not None else "") for i, t in enumerate(titles[:8])]
    return ", ".join(items) + (f" and {len(titles) - 8} more classes" if len(titles) > 8 else "")


NEIGHBORS = 10
AGREE = 0.8  # minimum fraction of the neighbors that are of one other class
MIN_AGREEMENT = 0.95  # if neighbors agree with more than this fraction of all labels, a suspect label is likely wrong
MAX_OWN = 0.1  # maximum fraction of the neighbors that are of the image's own class
MAX_DIMENSIONS = 128  # dimensions of the feature space that are kept: a hundred thousand images in minutes


def check_labels(
    dataset: ImageDataset,
    infos: list[ImageInfo],
    duplicate_sets: list[list[ImageInfo]],
    features: NDArray[np.float32],
    progress: Progress | None = None,
) -> Iterator[Finding]:
    """Images whose nearest neighbors in ``features`` [N, D] agree on another class, the most suspect first."""
    labels = np.array([info.sample.label for info in infos], np.int64)
    shares, nearest = neighbor_shares(
        features, labels, len(dataset.classes), duplicate_ids(infos, duplicate_sets), progress
    )
    own_share = shares[np.arange(len(labels)), labels]
    best = shares.argmax(axis=1)
    doubt = np.flatnonzero((best != labels) & (shares.max(axis=1) >= AGREE) & (own_share <= MAX_OWN))
    doubt = doubt[np.argsort(own_share[doubt] - shares.max(axis=1)[doubt], kind="stable")]
    if not len(doubt):
        return
    examples = tuple(
        Example(
            (infos[i].origin, infos[nearest[i]].origin),
            f"labeled {dataset.classes[labels[i]]}; {100 * shares[i].max():.0f} % of its nearest neighbors are "
            f"{dataset.classes[best[i]]}, the nearest is the second image",
        )
        for i in doubt
    )
    agree = float((best == labels).mean())
    amount = "many" if agree < MIN_AGREEMENT else "some"
    what = (
        f"{len(doubt):,} image{'s' * (len(doubt) != 1)} may have a wrong label; the neighbors agree with "
        f"{100 * agree:.0f} % of all labels, so {amount} of these are errors of the network"
    )
    todo = "look at the image and correct its label if it is wrong"
    if len(doubt) > 1:
        todo = "look at each image, most suspect first, and correct wrong labels"
    yield Finding("label-doubt", "warning", what, todo, examples, (), {"agree": agree})


def neighbor_shares(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    duplicate_sets: NDArray[np.int64],
    progress: Progress | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Which classes the nearest neighbors of each image have, by cosine similarity.

    Duplicates are not neighbors of each other. A neighbor's weight is the inverse of its class's size, so that large
    classes do not dominate.

    Args:
        features: [N, D].
        labels: int64 [N].
        classes: the number of classes, K.
        duplicate_sets: int64 [N], equal numbers for duplicates.

    Returns:
        The weighted fractions of the classes among the neighbors [N, K], and the index of the nearest neighbor of the
        class with the largest fraction [N].
    """
    points = _reduced(features)
    weight = 1 / np.maximum(np.bincount(labels, minlength=classes), 1)  # [K]
    shares = np.zeros((len(points), classes))
    nearest = np.zeros(len(points), np.int64)
    for start in range(0, len(points), 512):
        rows = np.arange(start, min(start + 512, len(points)))
        similarity = points[rows] @ points.T  # [n, N]
        similarity[duplicate_sets[rows][:, None] == duplicate_sets[None, :]] = -np.inf
        count = min(NEIGHBORS, len(points) - 1)
        near = np.argpartition(-similarity, count - 1, axis=1)[:, :count]  # [n, k]
        near = np.take_along_axis(near, np.argsort(-np.take_along_axis(similarity, near, 1), axis=1, kind="stable"), 1)
        for row, neighbors in zip(rows, near, strict=True):
            np.add.at(shares[row], labels[neighbors], weight[labels[neighbors]])
            shares[row] /= shares[row].sum()
            nearest[row] = neighbors[int((labels[neighbors] == shares[row].argmax()).argmax())]
        if progress is not None:
            progress(int(rows[-1]) + 1, len(points))
    return shares, nearest


def _reduced(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit vectors of at most MAX_DIMENSIONS dimensions."""
    points = features.astype(np.float32)
    if min(points.shape) > MAX_DIMENSIONS:
        from sklearn.decomposition import PCA

        points = PCA(MAX_DIMENSIONS, svd_solver="randomized", random_state=0).fit_transform(points).astype(np.float32)
    else:
        points = points - points.mean(axis=0)
    return np.asarray(points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12), np.float32)
