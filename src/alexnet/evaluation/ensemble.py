"""Several classifiers as one: the weighted mean of their probabilities, each with its own preprocessing.

The paper's contest entries averaged five and seven networks (16.4 and 15.3 % top-5 error against 18.2 % for one).
Weights are found by minimizing the loss on images that are not the ones reported.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet.data.store import Split
from alexnet.errors import DataError
from alexnet.evaluation.evaluate import images_per_batch, predict_batches, refuse_nonfinite
from alexnet.evaluation.metrics import MetricAccumulator, Scores
from alexnet.loader.augmentation import Normalization


@dataclass(frozen=True)
class Member:
    """One classifier of an ensemble: what it is called, how it sees images, and the images as it stores them."""

    name: str
    network: nn.Module
    split: Split
    normalization: Normalization
    image_size: int  # of its input, pixels
    channels: int


class MemberScores(NamedTuple):
    """What one member did alone, and its weight in the ensemble."""

    name: str
    weight: float
    scores: Scores


@dataclass(frozen=True)
class EnsembleScores(Scores):
    """Scores of the ensemble, with those of its members; ``fitted_on`` names the split that chose the weights."""

    members: tuple[MemberScores, ...] = ()
    fitted_on: str = ""  # empty: equal weights, nothing was chosen
    fitted_count: int = 0  # images of that split

    def to_dict(self) -> dict[str, Any]:
        """As plain values: the ensemble's, and a list of the members'."""
        members = [{"run": m.name, "weight": m.weight, **m.scores.to_dict()} for m in self.members]
        fitted = {"split": self.fitted_on, "count": self.fitted_count} if self.fitted_on else None
        return super().to_dict() | {"weights_fitted_on": fitted, "members": members}


def same_images(members: Sequence[Member], todo: str, must: str = "the same for all members of an ensemble") -> None:
    """Raise :class:`DataError` unless all members' splits hold the same images in the same order, by SHA-256."""
    first, expected = members[0], _images(members[0].split)
    for other in members[1:]:
        if (other.split.backend.address, other.split.name) == (first.split.backend.address, first.split.name):
            continue
        result = _images(other.split)
        if result != expected:
            both = len(set(result) & set(expected))
            raise DataError(
                f"the {first.split.name} images of {first.name} and {other.name} are not the same: "
                f"{len(expected)} and {len(result)}, {both} in both",
                must,
                todo,
            )


def _images(split: Split) -> list[tuple[str, int]]:
    return [(row["sha256"], int(label)) for row, label in zip(split.origins(), split.labels, strict=True)]


def evaluate(
    members: Sequence[Member],
    weights: Sequence[float] | NDArray[np.float64] | None = None,
    *,
    num_classes: int,
    crops: int = 1,
    batch_size: int = 100,
    device: torch.device | None = None,
) -> EnsembleScores:
    """Scores of an ensemble and of each member, in one pass over a split.

    Args:
        members: M classifiers on the same images.
        weights: [M], not negative, with sum 1; None: equal weights.
        num_classes: Number of classes.
        crops: Crops of each image: 1, 9 or 10.
        batch_size: Images at a time, at most.
        device: Where the networks are; None: the CPU.
    """
    started, split = time.perf_counter(), members[0].split
    shares = torch.full((len(members),), 1 / len(members)) if weights is None else torch.as_tensor(weights)
    metrics = [MetricAccumulator(num_classes, len(split)) for _ in range(len(members) + 1)]
    for log_probs, labels, indices in _predict_batches(members, crops, batch_size, device):
        for metric, values in zip(metrics, [*log_probs, combine(log_probs, shares)], strict=True):
            metric.add(values, labels, indices)
    seconds = time.perf_counter() - started
    *members_scores, scores = [metric.scores(split.name, crops, seconds, split.groups) for metric in metrics]
    member_scores = tuple(
        MemberScores(member.name, float(share), own)
        for member, share, own in zip(members, shares, members_scores, strict=True)
    )
    return EnsembleScores(**vars(scores), members=member_scores)


def combine(log_probabilities: Tensor, weights: Tensor) -> Tensor:
    """Log of the weighted mean of probabilities: logs [M, N, K] and weights [M] -> float64 [N, K]."""
    return (log_probabilities.double() + weights.double().log()[:, None, None]).logsumexp(0)


def true_class_log_probabilities(
    members: Sequence[Member], *, crops: int = 1, batch_size: int = 100, device: torch.device | None = None
) -> NDArray[np.float64]:
    """Each member's log probability of each image's true class, [M, N]: the input of :func:`fit_weights`."""
    out = np.full((len(members), len(members[0].split)), np.nan)
    for log_probs, labels, indices in _predict_batches(members, crops, batch_size, device):
        true = log_probs.gather(2, labels.expand(len(members), -1)[:, :, None])[:, :, 0]  # [M, n]
        out[:, indices.numpy()] = true.double().numpy()
    assert not np.isnan(out).any()
    return out


def _predict_batches(
    members: Sequence[Member], crops: int, batch_size: int, device: torch.device | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """All members on the same images: log probabilities [M, n, K], labels [n], indices in the split [n]."""
    passes = [
        predict_batches(
            member.network,
            member.split,
            member.normalization,
            image_size=member.image_size,
            channels=member.channels,
            crops=crops,
            batch_size=images_per_batch(batch_size, crops, max(m.image_size for m in members)),
            device=device,
        )
        for member in members
    ]
    for batches in zip(*passes, strict=True):
        log_probs, indices = torch.stack([log_probs for log_probs, _ in batches]), batches[0][1]
        for member, values in zip(members, log_probs, strict=True):
            refuse_nonfinite(values, member.name)
        yield log_probs, torch.from_numpy(members[0].split.labels[indices]), torch.from_numpy(indices)


def fit_weights(log_probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Non-negative weights [M] with sum one that minimize −mean ln Σ w·p, from logs of true classes [M, N].

    The loss is convex. Its optimum is where no member's mean of p / Σ w·p exceeds one, and the excess of the greatest
    bounds what is left to gain, in nats (Cover 1984, *An algorithm for maximizing expected log investment return*).
    Cover's multiplication improves a start by SLSQP until that bound is below 1e-7.
    """
    from scipy.optimize import minimize

    scaled = np.exp(log_probabilities - log_probabilities.max(0))  # [M, N]; a factor an image changes no optimum
    members = len(scaled)

    def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        mixed = np.maximum(w @ scaled, 1e-300)  # [N]
        return -float(np.log(mixed).mean()), -(scaled / mixed).mean(1)

    start = np.full(members, 1 / members)
    solution = minimize(
        loss,
        start,
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * members,
        options={"ftol": 1e-14, "maxiter": 500},
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
    )
    weights = np.clip(solution.x, 0, None) / np.clip(solution.x, 0, None).sum()
    if not loss(weights)[0] <= loss(start)[0]:  # it went astray: begin again
        weights = start
    for _ in range(10_000):
        slopes = (scaled / np.maximum(weights @ scaled, 1e-300)).mean(1)
        if slopes.max() <= 1 + 1e-7:
            break
        weights = np.maximum(weights, 1e-12) * slopes  # one that was set to 0 too early can come back
        weights /= weights.sum()
    return np.asarray(np.where(weights < 1e-9, 0.0, weights) / weights[weights >= 1e-9].sum())
