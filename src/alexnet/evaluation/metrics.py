"""Top-1, top-5, loss and confusion matrix of a split: integers are added up and divided once, at the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from alexnet.evaluation.intervals import count_by_group, grouped_proportion_ci, wilson

FIVE = 5  # with five classes or fewer there is no top-5


@dataclass(frozen=True)
class Scores:
    """The scores of a classifier on a split.

    Attributes:
        split: Name of the split.
        crops: Crops of each image.
        count: Number of images.
        correct1: Images whose top-1 prediction is correct.
        correct5: Images whose true class is among the top-5 predictions.
        loss: Mean of −ln p(true class), in nats.
        confusion: int64 [K, K], rows are true classes, columns predicted ones.
        seconds: Duration of the evaluation.
    """

    split: str
    crops: int
    count: int
    correct1: int
    correct5: int
    loss: float
    confusion: Tensor
    seconds: float = 0.0
    groups: tuple[tuple[int, int], ...] = ()  # (correct, images) of each group; empty where groups are unknown
    training_images_left_out: int = 0  # images of the split that the classifier was trained on; not in ``count``
    training_images_included: int = 0  # the same, in ``count`` on request

    @property
    def top1(self) -> float:
        """Fraction of the images whose top-1 prediction is correct."""
        return self.correct1 / self.count

    @property
    def top5(self) -> float:
        """Fraction of the images whose true class is among the top-5 predictions."""
        return self.correct5 / self.count

    @property
    def top1_interval(self) -> tuple[float, float]:
        """The 95 % CI of ``top1``: Wilson's (1927), or the bootstrap's over groups of images where groups are known.

        The same interval as :func:`alexnet.evaluation.intervals.proportion_ci` computes.
        """
        if not self.groups:
            return wilson(self.correct1, self.count)
        right, images = np.array(self.groups, np.int64).T
        estimate = grouped_proportion_ci(right, images)
        return estimate.low, estimate.high

    @property
    def majority(self) -> float:
        """The accuracy of always predicting the most frequent class."""
        return int(self.confusion.sum(1).max()) / self.count

    @property
    def top1_text(self) -> str:
        """``6.9 % (95 % CI 2.7 to 16.4 %)``."""
        low, high = self.top1_interval
        return f"{100 * self.top1:.1f} % (95 % CI {100 * low:.1f} to {100 * high:.1f} %)"

    @property
    def chance_warning(self) -> str:
        """A sentence if always predicting the most frequent class may be as accurate; otherwise empty."""
        if self.top1_interval[0] > self.majority:
            return ""
        return (
            f"{self.split} top-1 is {self.top1_text}; always predicting the most frequent class has "
            f"{100 * self.majority:.1f} %: this does not show that the network learned anything"
        )

    @property
    def has_top5(self) -> bool:
        """Are there more than five classes?"""
        return len(self.confusion) > FIVE

    def to_dict(self) -> dict[str, Any]:
        """As plain values: fractions, mean loss, counts; no top-5 (None) of five classes or fewer."""
        return {
            "top1": self.top1,
            "top1_interval": list(self.top1_interval),
            "top5": self.top5 if self.has_top5 else None,
            "loss": self.loss,
            "count": self.count,
            "split": self.split,
            "crops": self.crops,
            "precision": "fp32",
            "training_images_left_out": self.training_images_left_out,
            "training_images_included": self.training_images_included,
            "top1_error": 1 - self.top1,
            "top5_error": 1 - self.top5 if self.has_top5 else None,
            "images_per_second": self.count / self.seconds if self.seconds else None,
        }


def label_ranks(scores: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many classes come before the true one: scores [N, K] -> [N]; all of them for a score that is NaN.

    Of classes with equal scores, the one with the smaller index comes first.
    """
    own = np.take_along_axis(scores, labels[:, None], 1)
    tied = (scores == own) & (np.arange(scores.shape[1]) < labels[:, None])
    return np.asarray(((scores > own) | tied | np.isnan(own)).sum(1))


class MetricAccumulator:
    """Adds up batches of probabilities into :class:`Scores`; refuses an image that it has counted already."""

    def __init__(self, classes: int, images: int) -> None:
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self.seen = torch.zeros(images, dtype=torch.bool)
        self.correct = torch.zeros(images, dtype=torch.bool)
        self.correct5 = 0
        self.loss = 0.0

    def add(self, log_probabilities: Tensor, labels: Tensor, indices: Tensor) -> None:
        """A batch: log probabilities [N, K], labels int64 [N], the indices of the images in the split int64 [N]."""
        if self.seen[indices].any() or len(set(indices.tolist())) != len(indices):
            raise ValueError("an image was evaluated twice")
        self.seen[indices] = True
        best = log_probabilities.topk(min(5, log_probabilities.shape[1])).indices  # [N, ≤5]
        self.correct[indices] = best[:, 0] == labels
        self.correct5 += int((best == labels[:, None]).sum())
        self.loss += float(F.nll_loss(log_probabilities.double(), labels, reduction="sum"))
        self.confusion.index_put_((labels, best[:, 0]), torch.ones_like(labels), accumulate=True)

    def all_reduce(self, all_reduce: Callable[..., None]) -> None:
        """Add the counts of all processes; ``all_reduce`` sums tensors over them, in place."""
        seen, right = self.seen.to(torch.int64), self.correct.to(torch.int64)
        sums = torch.tensor([self.correct5, self.loss], dtype=torch.float64)
        all_reduce(seen, right, self.confusion, sums)
        if (seen > 1).any():
            raise ValueError("an image was evaluated twice")
        self.seen, self.correct, self.correct5, self.loss = seen > 0, right > 0, int(sums[0]), float(sums[1])

    def scores(self, split: str, crops: int, seconds: float = 0.0, groups: Sequence[str] = ()) -> Scores:
        """The result, once every image of the split has been counted; ``groups`` [N] of the images, if known."""
        count = int(self.seen.sum())
        if count != len(self.seen):
            raise ValueError(f"{len(self.seen) - count} images of {split} were not evaluated")
        correct1 = int(self.confusion.diagonal().sum())
        grouped = np.stack(count_by_group(self.correct.numpy(), groups), 1).tolist() if groups else []
        return Scores(
            split,
            crops,
            count,
            correct1,
            self.correct5,
            self.loss / count,
            self.confusion,
            seconds,
            tuple((right, images) for right, images in grouped),
        )
