"""The new last layer of a fine-tuned network, fitted to the features of the training images before the first step.

A random last layer sends random gradients through the pretrained layers, which destroys some of what they know. With a
fitted one, training begins where a linear classifier on the features ends (Kumar et al. 2022, *Fine-Tuning can Distort
Pretrained Features and Underperform Out-of-Distribution*).

Shapes: N images, D features, K classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet.cuda_convnet import GraphNetwork
from alexnet.data.store import Split, Store
from alexnet.evaluation.evaluate import inputs_of, prepare_kernels
from alexnet.loader.augmentation import Normalization
from alexnet.models.network import Network
from alexnet.recipe import Recipe
from alexnet.terminal import Progress
from alexnet.weights.matching import last_layer

MAX_IMAGES = 10_000  # training images at most, whose features are computed
PENALTIES = tuple(10.0 ** (-n / 2) for n in range(4, 13))  # of the squared weights, for features of mean square norm 1
UNVALIDATED_PENALTY = 1e-4  # where no validation image chooses one
_BATCH, _STEPS = 64, 50  # images at a time; steps of L-BFGS for a penalty


class LinearClassifier(NamedTuple):
    """Logits are ``features @ weight.T + bias``."""

    weight: NDArray[np.float64]  # [K, D]
    bias: NDArray[np.float64]  # [K]

    def loss(self, x: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        """Mean cross-entropy on features [N, D], nats."""
        return float(-_log_softmax(self.logits(x))[np.arange(len(x)), labels].mean())

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits of features: [N, D] -> [N, K]."""
        return np.asarray(x @ self.weight.T.astype(np.float32), np.float64) + self.bias


def fit_last_layer(
    network: Network, store: Store, normalization: Normalization, recipe: Recipe, progress: Progress | None = None
) -> dict[str, Tensor]:
    """Fit the last layer of a network to center crops of the training images; validation images choose the penalty.

    Args:
        network: The network with pretrained weights, on the device of ``normalization``. Its last layer is not used.
        store: The data set.
        normalization: How images are normalized.
        recipe: Seed, and whether classes have equal weight (``class_weights``, ``sampling``).
        progress: Receives the number of images done, and of all.

    Returns:
        The new weight [K, D] and bias [K] by their names in the state dict; nothing if the last layer is not linear.
    """
    name, layer = last_layer(network), None if isinstance(network, GraphNetwork) else network.get_classifier()
    if not isinstance(layer, nn.Linear):
        return {}
    train, validation = store.split("train"), store.split("validation")
    order = np.random.Generator(np.random.Philox(recipe.seed)).permutation(len(train))
    chosen = np.sort(order[:MAX_IMAGES])
    held_out = np.arange(min(len(validation), MAX_IMAGES))
    total = len(chosen) + len(held_out)
    prepare_kernels(network, total, normalization.mean.device)

    def count(done: int) -> None:
        if progress is not None:
            progress(done, total)

    x = _inputs_of_layer(network, layer, train, chosen, normalization, count)
    v = _inputs_of_layer(network, layer, validation, held_out, normalization, lambda n: count(len(chosen) + n))
    scale = max(float(np.sqrt(np.square(x, dtype=np.float64).sum(1).mean())), 1e-12)
    x /= scale
    v /= scale
    labels, classes = train.labels[chosen], len(store.classes)
    balanced = "balanced" in (recipe.class_weights, recipe.sampling)
    fitted = choose(x, labels, v, validation.labels[held_out], classes, balanced=balanced)
    return {f"{name}.weight": torch.from_numpy(fitted.weight / scale).float()} | (
        {f"{name}.bias": torch.from_numpy(fitted.bias).float()} if layer.bias is not None else {}
    )


@torch.inference_mode()
def _inputs_of_layer(
    network: Network,
    layer: nn.Module,
    split: Split,
    indices: NDArray[np.int64],
    normalization: Normalization,
    progress: Callable[[int], None],
) -> NDArray[np.float32]:
    """What ``layer`` gets as its input for the center crops of images of a split: [N, D]."""
    rows: list[NDArray[np.float32]] = []
    hook = layer.register_forward_pre_hook(lambda module, args: rows.append(args[0].float().cpu().numpy().copy()))
    was_training = network.training
    network.eval()
    try:
        for start in range(0, len(indices), _BATCH):
            batch = indices[start : start + _BATCH]
            network(inputs_of(network, split.gather(batch), normalization))
            progress(start + len(batch))
    finally:
        hook.remove()
        network.train(was_training)
    features: int = layer.in_features  # type: ignore[assignment]
    return np.concatenate(rows) if rows else np.zeros((0, features), np.float32)


def choose(
    x: NDArray[np.float32],
    labels: NDArray[np.int64],
    validation_x: NDArray[np.float32],
    validation_labels: NDArray[np.int64],
    classes: int,
    *,
    balanced: bool = False,
) -> LinearClassifier:
    """Logistic regression [N, D] -> K with the penalty that has the lowest loss on the validation images.

    Penalties are tried from the greatest on, each from the weights of the last one, until two in a row are no better.
    """
    fitted = LinearClassifier(np.zeros((classes, x.shape[1])), np.zeros(classes))
    if not len(validation_x):
        return fit(x, labels, fitted, UNVALIDATED_PENALTY, balanced=balanced)
    best, lowest, worse = fitted, np.inf, 0
    for penalty in PENALTIES:
        fitted = fit(x, labels, fitted, penalty, balanced=balanced)
        loss = fitted.loss(validation_x, validation_labels)
        best, lowest, worse = (fitted, loss, 0) if loss < lowest else (best, lowest, worse + 1)
        if worse == 2:
            break
    return best


def fit(
    x: NDArray[np.float32],
    labels: NDArray[np.int64],
    start: LinearClassifier,
    penalty: float,
    *,
    balanced: bool = False,
) -> LinearClassifier:
    """Minimize mean cross-entropy + penalty/2 · Σ weight², from ``start``; ``balanced``: every class counts equally."""
    from scipy.optimize import minimize

    shape, rows = start.weight.shape, np.arange(len(x))
    counts = np.bincount(labels, minlength=shape[0])
    share = 1 / (counts[labels] * np.count_nonzero(counts)) if balanced else np.full(len(x), 1 / len(x))  # [N], sum 1

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight, bias = values[: shape[0] * shape[1]].reshape(shape), values[shape[0] * shape[1] :]
        log_probs = _log_softmax(LinearClassifier(weight, bias).logits(x))
        slope = np.exp(log_probs)
        slope[rows, labels] -= 1
        slope *= share[:, None]  # [N, K]
        gradient = slope.T.astype(np.float32) @ x + penalty * weight
        value = float(-(share * log_probs[rows, labels]).sum()) + penalty / 2 * float((weight**2).sum())
        return value, np.concatenate([gradient.ravel(), slope.sum(0)])

    at = np.concatenate([start.weight.ravel(), start.bias])
    result = minimize(loss, at, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}).x
    return LinearClassifier(result[: shape[0] * shape[1]].reshape(shape), result[shape[0] * shape[1] :])


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
