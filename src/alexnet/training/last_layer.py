"""The new last layer of a fine-tuned network, fitted to the features of the training images before the first step.

A random last layer sends random gradients through the pretrained layers, which destroys some of what they know. With a
fitted one, training begins where a linear classifier on the features ends (Kumar et al. 2022, *Fine-Tuning can Distort
Pretrained Features and Underperform Out-of-Distribution*).

The fit is a ridge regression of the labels (1 for the class of an image, 0 for the others). What it would predict for
each image without that image follows in closed form, and chooses the penalty and the factor that makes logits of the
outputs. So the validation images are not needed.

Shapes: N images, D features, K classes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet.cuda_convnet import GraphNetwork
from alexnet.data.store import Store
from alexnet.evaluation.evaluate import features_of_split, prepare_kernels, refuse_nonfinite
from alexnet.loader.augmentation import Normalization
from alexnet.models.network import Network
from alexnet.recipe import Recipe
from alexnet.terminal import Progress
from alexnet.weights.matching import last_layer

MAX_IMAGES = 10_000  # training images at most, whose features are computed
# Relative to the mean squared distance of the features to their mean.
PENALTIES = tuple(10.0 ** (-n / 2) for n in range(1, 13))


def fit_last_layer(
    network: Network, store: Store, normalization: Normalization, recipe: Recipe, progress: Progress | None = None
) -> dict[str, Tensor]:
    """Fit the last layer of a network to the center crops of at most :data:`MAX_IMAGES` training images.

    Args:
        network: The network with pretrained weights, on the device of ``normalization``. Its last layer is not used.
        store: The data set.
        normalization: How images are normalized.
        recipe: Seed, and whether classes have equal weight (``class_weights``, ``sampling``).
        progress: Receives the number of images done, and of all.

    Returns:
        The new weight [K, D] and bias [K] by their names in the state dict; nothing if the last layer is not linear.

    Raises:
        BundleError: The network computes values that are NaN or Inf.
    """
    name, layer = last_layer(network), None if isinstance(network, GraphNetwork) else network.get_classifier()
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        return {}
    split = store.split("train")
    order = np.random.Generator(np.random.Philox(recipe.seed)).permutation(len(split))
    chosen = np.sort(order[:MAX_IMAGES])
    prepare_kernels(network, len(chosen), normalization.mean.device)
    was_training = network.training
    x = features_of_split(network.eval(), split, chosen, normalization, progress)
    network.train(was_training)
    refuse_nonfinite(x, network.name)
    balanced = "balanced" in (recipe.class_weights, recipe.sampling)
    weight, bias = fit(x, split.labels[chosen], len(store.classes), balanced=balanced)
    return {f"{name}.weight": torch.from_numpy(weight).float(), f"{name}.bias": torch.from_numpy(bias).float()}


def fit(
    x: NDArray[np.float32], labels: NDArray[np.int64], classes: int, *, balanced: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ridge regression of the labels, with the penalty and the factor of least leave-one-out cross-entropy.

    Args:
        x: Features [N, D].
        labels: Classes [N].
        classes: K.
        balanced: Every class counts equally, not every image.

    Returns:
        Weight [K, D] and bias [K]: logits are ``x @ weight.T + bias``.
    """
    counts = np.bincount(labels, minlength=classes)
    share = 1 / (counts[labels] * np.count_nonzero(counts)) if balanced else np.full(len(x), 1 / len(x))  # [N], sum 1
    root = np.sqrt(share)[:, None]
    targets = np.eye(classes)[labels]  # [N, K]
    mean, target_mean = share @ x, share @ targets
    centered = (root * (x - mean)).astype(np.float64)
    spread = float((centered**2).sum()) or 1.0  # mean squared distance to the mean
    basis, squares = _left_singular(centered)  # [N, R], [R]
    basis_squared = basis**2
    projected = basis.T @ (root * (targets - target_mean))  # [R, K]
    best = (np.inf, 1.0, PENALTIES[0])
    for penalty in PENALTIES:
        shrunk = squares / (squares + penalty * spread)  # [R]
        leverage = (basis_squared @ shrunk)[:, None] + root**2  # of an image in its own prediction [N, 1]
        predicted = basis @ (shrunk[:, None] * projected) / root + target_mean
        left_out = targets - (targets - predicted) / np.maximum(1 - leverage, 1e-6)
        best = min(best, (*_best_factor(left_out, labels, share), penalty))
    _, factor, penalty = best
    weight = factor * (centered.T @ (basis @ (projected / (squares + penalty * spread)[:, None]))).T  # [K, D]
    return weight, factor * target_mean - weight @ mean


def _left_singular(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The left singular vectors [N, R] of a matrix [N, D], and the squares of its singular values that are not 0."""
    from scipy.linalg import eigh

    wide = len(matrix) <= matrix.shape[1]
    squares, vectors = eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    kept = squares > 1e-9 * max(float(squares[-1]), 1e-300)
    squares, vectors = squares[kept], vectors[:, kept]
    return (vectors if wide else matrix @ vectors / np.sqrt(squares)), squares


def _best_factor(
    outputs: NDArray[np.float64], labels: NDArray[np.int64], share: NDArray[np.float64]
) -> tuple[float, float]:
    """The least cross-entropy of softmax(factor · outputs), each image weighted by its share; and that factor.

    One image more, of each class in equal parts, keeps the factor finite where all N are predicted correctly.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def loss(log_factor: float) -> float:
        log_probs = log_softmax(np.exp(log_factor) * outputs, axis=1)
        correct, any_class = log_probs[np.arange(len(labels)), labels], log_probs.mean(1)  # [N]
        return float(-(share * (correct * len(labels) + any_class)).sum()) / (len(labels) + 1)

    result = minimize_scalar(loss, bounds=(-3, 7), method="bounded")
    return float(result.fun), float(np.exp(result.x))
