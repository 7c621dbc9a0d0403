"""Likely wrong labels: images whose nearest neighbors in a network's features are of another class."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from alexnet.doctor.duplicates import duplicate_ids
from alexnet.doctor.findings import Example, Finding
from alexnet.doctor.images import ImageDataset, ImageInfo, Progress

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
