"""Likely wrong labels: images whose nearest neighbors in a network's features are of another class."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from alexnet.doctor.duplicates import crowd_numbers
from alexnet.doctor.findings import Example, Finding
from alexnet.doctor.images import ImageInfo, Progress, Seen

NEIGHBORS = 10
AGREE = 0.8  # minimum fraction of the neighbors that are of one other class
SURE = 0.95  # if neighbors agree with more than this fraction of all labels, a suspect label is likely wrong
OWN = 0.1  # maximum fraction of the neighbors that are of the image's own class
KEPT = 128  # dimensions of the feature space that are kept: a hundred thousand images in minutes


def check_labels(
    seen: Seen,
    looks: list[ImageInfo],
    crowds: list[list[ImageInfo]],
    features: NDArray[np.float32],
    progress: Progress | None = None,
) -> Iterator[Finding]:
    """Images whose nearest neighbors in ``features`` [N, D], of ``looks``, agree on another class; surest first."""
    labels = np.array([look.image.label for look in looks], np.int64)
    shares, nearest = neighbor_shares(features, labels, len(seen.classes), crowd_numbers(looks, crowds), progress)
    own = shares[np.arange(len(labels)), labels]
    best = shares.argmax(axis=1)
    doubt = np.flatnonzero((best != labels) & (shares.max(axis=1) >= AGREE) & (own <= OWN))
    doubt = doubt[np.argsort(own[doubt] - shares.max(axis=1)[doubt], kind="stable")]
    if not len(doubt):
        return
    examples = tuple(
        Example(
            (looks[i].origin, looks[nearest[i]].origin),
            f"labeled {seen.classes[labels[i]]}; {100 * shares[i].max():.0f} % of its nearest neighbors are "
            f"{seen.classes[best[i]]}, the nearest is the second image",
        )
        for i in doubt
    )
    agree = float((best == labels).mean())
    what = (
        f"{len(doubt):,} image{'s' * (len(doubt) != 1)} may have a wrong label; the neighbors agree with "
        f"{100 * agree:.0f} % of all labels, so {'many' if agree < SURE else 'some'} of these are errors of the network"
    )
    todo = "look at each image, most suspect first, and correct wrong labels"
    yield Finding("label-doubt", "warning", what, todo, examples, (), {"agree": agree})


def neighbor_shares(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    crowds: NDArray[np.int64],
    progress: Progress | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """([N, K] shares of the classes among each image's nearest neighbors by cosine, [N] the nearest that agrees).

    Copies (the same number in ``crowds``) do not count as neighbors. Each class weighs by how rare it is, so that a
    large class does not surround the others by its number alone.
    """
    points = _reduced(features)
    weight = 1 / np.maximum(np.bincount(labels, minlength=classes), 1)  # [K]
    shares = np.zeros((len(points), classes))
    nearest = np.zeros(len(points), np.int64)
    for start in range(0, len(points), 512):
        rows = np.arange(start, min(start + 512, len(points)))
        alike = points[rows] @ points.T  # [n, N]
        alike[crowds[rows][:, None] == crowds[None, :]] = -np.inf
        count = min(NEIGHBORS, len(points) - 1)
        near = np.argpartition(-alike, count - 1, axis=1)[:, :count]  # [n, k]
        near = np.take_along_axis(near, np.argsort(-np.take_along_axis(alike, near, 1), axis=1, kind="stable"), 1)
        for row, own in zip(rows, near, strict=True):
            np.add.at(shares[row], labels[own], weight[labels[own]])
            shares[row] /= shares[row].sum()
            nearest[row] = own[int((labels[own] == shares[row].argmax()).argmax())]
        if progress is not None:
            progress(int(rows[-1]) + 1, len(points))
    return shares, nearest


def _reduced(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit vectors of at most KEPT dimensions."""
    points = features.astype(np.float32)
    if min(points.shape) > KEPT:
        from sklearn.decomposition import PCA

        points = PCA(KEPT, svd_solver="randomized", random_state=0).fit_transform(points).astype(np.float32)
    else:
        points = points - points.mean(axis=0)
    return np.asarray(points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12), np.float32)
