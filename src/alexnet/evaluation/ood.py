"""Out-of-distribution scores: how unlike the training images is an image? Softmax probability and feature distance.

A softmax distributes its probability among the known classes for every image. The distance of an image's features to
the nearest class in the space of the training images' features can be large where the probability is high (Lee et al.
2018). Shapes: N training images, M images, D features, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data.store import Split, Store
from alexnet.evaluation.evaluate import features_of_split
from alexnet.evaluation.intervals import Estimate, proportion_ci
from alexnet.evaluation.one_vs_rest import curves
from alexnet.loader.augmentation import Normalization
from alexnet.models.network import Network

DIMENSIONS = 64  # principal components that are kept
REFERENCE_DIMENSIONS = 16  # likewise, in a bundle
QUANTILES = 101
LEAST_IMAGES = 20
SAMPLE_IMAGES = 500
KEPT = 0.95  # fraction of the known images that a threshold keeps


@dataclass(frozen=True)
class FeatureDistance:
    """Relative Mahalanobis distance in the principal components of training features (Ren et al. 2021).

    The squared distance to the nearest class mean, minus that to the mean of all images. All classes share one
    covariance, so that few images of a class suffice. Without the second term the distance of dogs from a network
    trained on ten other kinds of photographs was below that of its own test images (AUROC 45 % in place of 69 %).
    """

    components: NDArray[np.float64]  # [D, d]
    within: NDArray[np.float64]  # [d, d], the inverse root of the covariance within classes
    centers: NDArray[np.float64]  # [K, d], of the classes with images, times ``within``
    overall: NDArray[np.float64]  # [d, d], the inverse root of the covariance of all images
    middle: NDArray[np.float64]  # [d], of all images, times ``overall``

    @classmethod
    def fit(
        cls, features: NDArray[np.floating[Any]], labels: NDArray[np.int64], dimensions: int = DIMENSIONS
    ) -> "FeatureDistance":
        """Fit to the features [N, D] and labels [N] of training images, in at most ``dimensions`` components."""
        rows = features.astype(np.float64)
        components = _principal_components(rows - rows.mean(0), dimensions)
        projected = rows @ components
        means = {int(k): projected[labels == k].mean(0) for k in np.unique(labels)}
        residuals = projected - np.stack([means[k] for k in labels.tolist()])
        within, overall = _inverse_root(residuals), _inverse_root(projected - projected.mean(0))
        centers = np.stack(list(means.values())) @ within
        return cls(components, within, centers, overall, projected.mean(0) @ overall)

    def __call__(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """The distances [M] of features [M, D]."""
        rows = features.astype(np.float64) @ self.components
        nearest = (((rows @ self.within)[:, None] - self.centers) ** 2).sum(2).min(1)
        return np.asarray(nearest - ((rows @ self.overall - self.middle) ** 2).sum(1))


@dataclass(frozen=True)
class FeatureReference:
    """A feature distance with its distribution over images that the network was not trained on.

    Kept in a bundle (``features.safetensors``). The rank of an image is uniform between 0 and 1 as long as images are
    like those of the validation split.
    """

    distance: FeatureDistance
    quantiles: NDArray[np.float64]  # [Q], distances of held-out images, at equal steps of their rank

    @classmethod
    def fit(
        cls,
        features: NDArray[np.floating[Any]],
        labels: NDArray[np.int64],
        held_out: NDArray[np.floating[Any]],
    ) -> "FeatureReference":
        """Fit to the features [N, D] and labels [N] of training images, and the features [M, D] of held-out ones."""
        distance = FeatureDistance.fit(features, labels, REFERENCE_DIMENSIONS)
        return cls(distance, np.quantile(distance(held_out), np.linspace(0, 1, QUANTILES)))

    def rank(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """The fraction of the held-out images that are nearer [M], for features [M, D]."""
        return np.interp(self.distance(features), self.quantiles, np.linspace(0, 1, len(self.quantiles)))

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The arrays of the file."""
        parts = vars(self.distance) | {"quantiles": self.quantiles}
        return {name: np.ascontiguousarray(array, np.float32) for name, array in parts.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float32]]) -> "FeatureReference":
        """The reference whose arrays are these. Raises ValueError."""
        shapes = {name: array.shape for name, array in arrays.items()}
        names = {field.name for field in fields(FeatureDistance)} | {"quantiles"}
        if set(shapes) != names:
            raise ValueError(f"its arrays are {', '.join(sorted(shapes)):.80}")
        d = shapes["middle"][-1:]
        if not (
            len(shapes["components"]) == len(shapes["centers"]) == 2
            and shapes["components"][1:] == shapes["centers"][1:] == shapes["middle"] == d
            and shapes["within"] == shapes["overall"] == (*d, *d)
            and shapes["quantiles"] == (QUANTILES,)
            and len(arrays["centers"])
            and (np.diff(arrays["quantiles"]) >= 0).all()
        ):
            raise ValueError(f"the shapes of its arrays are {shapes}")
        rows = {name: array.astype(np.float64) for name, array in arrays.items()}
        quantiles = rows.pop("quantiles")
        return cls(FeatureDistance(**rows), quantiles)


class FeatureSample(NamedTuple):
    """Features of ``n`` images of a split, drawn at random: all of them, if there are no more."""

    indices: NDArray[np.int64]  # [n], of the images in the split, ascending
    labels: NDArray[np.int64]  # [n]
    features: NDArray[np.float32]  # [n, D]


def sample_training_images(network: Network, store: Store, normalization: Normalization) -> FeatureSample:
    """The features of at most 500 training images, or of 5 per class if that is more.

    Args:
        network: The network, in evaluation mode, on the device of ``normalization``.
        store: Its data.
        normalization: How images are normalized.
    """
    return _sample(network, store.split("train"), normalization, max(SAMPLE_IMAGES, 5 * len(store.classes)))


def fit_reference(
    network: Network,
    store: Store,
    normalization: Normalization,
    held_out: str = "validation",
    sample: FeatureSample | None = None,
) -> FeatureReference | None:
    """The feature reference of a trained network, from a sample of the training images.

    Args:
        network: The network, in evaluation mode, on the device of ``normalization``.
        store: Its data.
        normalization: How images are normalized.
        held_out: A split that the network was not trained on. With fewer than 20 images in it, the training images
            take its place.
        sample: The result of :func:`sample_training_images`, if it was called already.

    Returns:
        The reference; None without 20 training images.
    """
    other = store.split(held_out)
    if len(store.split("train")) < LEAST_IMAGES:
        return None
    train = sample or sample_training_images(network, store, normalization)
    held = train if len(other) < LEAST_IMAGES else _sample(network, other, normalization, 2000)
    return FeatureReference.fit(train.features, train.labels, held.features)


def _sample(network: Network, split: Split, normalization: Normalization, count: int) -> FeatureSample:
    chosen = np.sort(np.random.default_rng(0).permutation(len(split))[:count])
    return FeatureSample(chosen, split.labels[chosen], features_of_split(network, split, chosen, normalization))


def _principal_components(rows: NDArray[np.float64], dimensions: int) -> NDArray[np.float64]:
    """The first principal components [D, d] of centered rows [N, D], at most ``dimensions``, without empty ones.

    By the products of all pairs of rows or columns, whichever are fewer: four times as fast as all singular vectors.
    """
    from scipy.linalg import eigh

    wide = rows.shape[0] <= rows.shape[1]
    products = rows @ rows.T if wide else rows.T @ rows
    size = len(products)
    squares, vectors = eigh(products, subset_by_index=(max(0, size - dimensions), size - 1))  # ascending
    values = np.sqrt(np.maximum(squares[::-1], 0))
    kept = max(1, int((values > 1e-6 * values[0]).sum()))
    vectors = vectors[:, ::-1][:, :kept]
    return np.asarray(rows.T @ vectors / np.maximum(values[:kept], 1e-300) if wide else vectors)


def _inverse_root(residuals: NDArray[np.float64]) -> NDArray[np.float64]:
    """The root R [d, d] of the inverse covariance of residuals [N, d]: x' inv(C) x = |x R|²."""
    from scipy.linalg import cholesky

    covariance, width = residuals.T @ residuals / len(residuals), residuals.shape[1]
    covariance += (1e-6 * np.trace(covariance) / width + 1e-12) * np.eye(
        width
    )  # a component may be constant in classes
    return np.asarray(cholesky(np.linalg.inv(covariance), lower=True))


@dataclass(frozen=True)
class OodScore:
    """How well a score separates images of no known class from those of a split.

    Attributes:
        name: The score.
        auroc: Probability that such an image has a higher score than an image of the split.
        caught: Fraction of such images above the threshold that keeps 95 % of the split.
    """

    name: str
    auroc: Estimate
    caught: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"score": self.name, "auroc": self.auroc.to_dict(), "caught": self.caught.to_dict()}


def ood_score(name: str, known: NDArray[np.floating[Any]], unknown: NDArray[np.floating[Any]]) -> OodScore:
    """Judge a score that is higher for less likely images: of a split [N], and of images of no known class [M]."""
    curve = curves(name, np.concatenate([known, unknown]), np.arange(len(known) + len(unknown)) >= len(known))
    assert curve is not None, "both kinds have images"
    return OodScore(name, curve.roc.area, proportion_ci(unknown > np.quantile(known, KEPT)))
