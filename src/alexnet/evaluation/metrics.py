"""Counts over a split. Integers are added up and divided once, at the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.evaluation.intervals import by_group, share_of_groups, wilson

FIVE = 5  # with so many classes, or fewer, the five best are all of them: there is no top-5


@dataclass(frozen=True)
class Scores:
    """What a classifier did on a split.

    ``count`` images, ``correct1`` with the true class first, ``correct5`` with it among the five best, ``loss`` the
    mean of −ln p(true class) in nats, ``confusion`` int64 [K, K] (rows true, columns predicted).
    """

    split: str
    crops: int
    count: int
    correct1: int
    correct5: int
    loss: float
    confusion: Tensor
    seconds: float = 0.0
    groups: tuple[tuple[int, int], ...] = ()  # (right, images) of each group; empty where no groups are known
    training_images_left_out: int = 0  # images of the split that the classifier was trained on; not in ``count``
    training_images_included: int = 0  # the same, in ``count`` on request

    @property
    def top1(self) -> float:
        """Share of the images whose true class is the first prediction."""
        return self.correct1 / self.count

    @property
    def top5(self) -> float:
        """Share of the images whose true class is among the five first predictions."""
        return self.correct5 / self.count

    @property
    def top1_interval(self) -> tuple[float, float]:
        """The 95 % CI of ``top1``: Wilson's (1927), or the bootstrap's over groups of images where groups are known.

        The same as :func:`alexnet.evaluation.intervals.share` gives, so that one number has one interval everywhere.
        """
        if not self.groups:
            return wilson(self.correct1, self.count)
        right, images = np.array(self.groups, np.int64).T
        estimate = share_of_groups(right, images)
        return estimate.low, estimate.high

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


class MetricAccumulator:
    """Adds up batches of probabilities into :class:`Scores`; refuses an image that it has counted already."""

    def __init__(self, classes: int, images: int) -> None:
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self.seen = torch.zeros(images, dtype=torch.bool)
        self.right = torch.zeros(images, dtype=torch.bool)
        self.correct5 = 0
        self.loss = 0.0

    def add(self, log_probabilities: Tensor, labels: Tensor, indices: Tensor) -> None:
        """A batch: log probabilities [N, K], labels int64 [N], the images' places in the split int64 [N]."""
        if self.seen[indices].any() or len(set(indices.tolist())) != len(indices):
            raise ValueError("an image was evaluated twice")
        self.seen[indices] = True
        best = log_probabilities.topk(min(5, log_probabilities.shape[1])).indices  # [N, ≤5]
        self.right[indices] = best[:, 0] == labels
        self.correct5 += int((best == labels[:, None]).sum())
        self.loss += float(F.nll_loss(log_probabilities.double(), labels, reduction="sum"))
        pairs = labels * len(self.confusion) + best[:, 0]
        self.confusion += pairs.bincount(minlength=self.confusion.numel()).view_as(self.confusion)

    def all_reduce(self, all_reduce: Callable[..., None]) -> None:
        """Add the counts of all processes; ``all_reduce`` sums tensors over them, in place."""
        seen, right = self.seen.to(torch.int64), self.right.to(torch.int64)
        sums = torch.tensor([self.correct5, self.loss], dtype=torch.float64)
        all_reduce(seen, right, self.confusion, sums)
        if (seen > 1).any():
            raise ValueError("an image was evaluated twice")
        self.seen, self.right, self.correct5, self.loss = seen > 0, right > 0, int(sums[0]), float(sums[1])

    def scores(self, split: str, crops: int, seconds: float = 0.0, groups: Sequence[str] = ()) -> Scores:
        """The result, once every image of the split has been counted; ``groups`` [N] of the images, if known."""
        count = int(self.seen.sum())
        if count != len(self.seen):
            raise ValueError(f"{len(self.seen) - count} images of {split} were not evaluated")
        correct1 = int(self.confusion.diagonal().sum())
        grouped = np.stack(by_group(self.right.numpy(), groups), 1).tolist() if groups else []
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
