"""What descriptors are like: their principal axes, and a mixture of Gaussians along these.

Through scikit-learn. Glossary: T descriptors, d their length, D that along the axes, M Gaussians.
"""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.history.fisher.vectors import Mixture

STEPS = 25  # of expectation and maximization at most: later ones change the last digits
SMALLEST = 1e-6  # axes with a smaller share of the first axis's variance are left out: flat or gray pictures have such


class Codebook(NamedTuple):
    """Descriptors [T, d] -> their numbers along the axes [T, D], and the mixture there; float32.

    All axes are divided by one number, so that the mean variance along them is 1 and none gains over another.
    """

    mean: NDArray[np.float32]  # [d]
    axes: NDArray[np.float32]  # [d, D]
    mixture: Mixture

    def project(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        """[T, d] -> [T, D]"""
        return np.asarray((descriptors - self.mean) @ self.axes, np.float32)


def learn(descriptors: NDArray[np.float32], length: int, words: int, seed: int) -> Codebook:
    """From descriptors [T, d] of training pictures: at most ``length`` axes, ``words`` Gaussians (fewer than T / 4)."""
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        max(1, min(words, len(descriptors) // 4)), covariance_type="diag", reg_covar=1e-4, max_iter=STEPS, tol=1e-3,
        init_params="k-means++", random_state=seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that STEPS were not enough, or that descriptors are alike: both are fine
        mean, axes = _axes(descriptors, length)
        mixture.fit(((descriptors - mean) @ axes).astype(np.float32))
    parts = (np.maximum(mixture.weights_, 1e-8), mixture.means_, mixture.covariances_)
    return Codebook(mean, axes, Mixture(*(np.asarray(part, np.float32) for part in parts)))


def _axes(descriptors: NDArray[np.float32], length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean [d], and the axes of the largest variance [d, D], longest first."""
    from sklearn.decomposition import PCA

    most = min(length, *descriptors.shape)
    found = PCA(most, svd_solver="full" if len(descriptors) < descriptors.shape[1] else "covariance_eigh")
    found.fit(descriptors)
    variances = found.explained_variance_
    kept = max(1, int((variances > SMALLEST * max(float(variances[0]), 1e-12)).sum()))
    scale = 1 / np.sqrt(max(float(variances[:kept].mean()), 1e-12))
    return found.mean_.astype(np.float32), np.ascontiguousarray(found.components_[:kept].T * scale, np.float32)
