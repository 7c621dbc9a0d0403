"""The Fisher vector: how a picture's descriptors would have a mixture of Gaussians changed (Perronnin, Dance 2007).

Written with the improvements of Perronnin, Sánchez, Mensink 2010: power and L2 normalization.

Glossary: T descriptors of a picture, D their length, M Gaussians, R regions of a picture.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Mixture(NamedTuple):
    """A mixture of Gaussians with diagonal covariances: ``weights`` [M] (their sum is 1), ``means`` [M, D],
    ``variances`` [M, D]; float32."""

    weights: NDArray[np.float32]
    means: NDArray[np.float32]
    variances: NDArray[np.float32]

    @property
    def length(self) -> int:
        """Of a Fisher vector: 2·M·D."""
        return 2 * self.means.size


def posteriors(x: NDArray[np.float32], mixture: Mixture) -> NDArray[np.float32]:
    """How likely each descriptor [T, D] is each Gaussian's: [T, M], rows sum to 1."""
    weights, means, variances = mixture
    inverse = 1 / variances
    constant = np.log(weights) - 0.5 * (np.log(variances).sum(1) + (means**2 * inverse).sum(1))  # [M]
    logs = constant + x @ (means * inverse).T - 0.5 * (x**2) @ inverse.T  # [T, M], without what all have in common
    logs -= logs.max(1, keepdims=True)
    shares = np.exp(logs)
    return np.asarray(shares / shares.sum(1, keepdims=True), np.float32)


def fisher_vectors(x: NDArray[np.float32], mixture: Mixture, members: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A Fisher vector for each region: descriptors [T, D], which of them lie in which region [R, T] -> [R, 2·M·D].

    By means, then by standard deviations, Gaussian by Gaussian::

        1 / (T·√w)    · Σ q · (x − μ) / σ
        1 / (T·√(2w)) · Σ q · ((x − μ)² / σ² − 1)

    with q the posteriors: from Σ q, Σ q·x and Σ q·x² alone. A region without descriptors has zeros.
    """
    weights, means, variances = mixture
    q = posteriors(x, mixture)
    out = np.zeros((len(members), 2, *means.shape), np.float32)
    for region, inside in enumerate(members):
        if not inside.any():
            continue
        mine, own = q[inside], x[inside]
        zeroth = mine.sum(0)[:, None]  # [M, 1]
        first, second = mine.T @ own, mine.T @ own**2  # [M, D]
        by_mean = (first - zeroth * means) / np.sqrt(variances)
        by_deviation = (second - 2 * means * first + zeroth * means**2) / variances - zeroth
        scale = len(own) * np.sqrt(weights)[:, None]
        out[region] = by_mean / scale, by_deviation / (scale * np.sqrt(2))
    return out.reshape(len(members), -1)


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Signed square roots, then length 1, along the last axis; zeros stay zeros."""
    roots = np.sign(vectors) * np.sqrt(np.abs(vectors))
    lengths = np.sqrt((roots**2).sum(-1, keepdims=True))
    return np.asarray(roots / np.where(lengths > 0, lengths, 1), np.float32)


def regions(places: NDArray[np.float32], levels: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which patches lie in which cell of a spatial pyramid: places [T, 2] from 0 to 1 -> [R, T].

    ``levels`` (1, 2): the whole picture and its quarters (Lazebnik et al. 2006).
    """
    rows = []
    for cells in levels:
        cell = np.minimum((places * cells).astype(np.int64), cells - 1)  # [T, 2]
        rows += [(cell[:, 0] == row) & (cell[:, 1] == column) for row in range(cells) for column in range(cells)]
    return np.stack(rows)
