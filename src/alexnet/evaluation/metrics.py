"""Counts over a split. Integers are added up and divided once, at the end."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """What a classifier did on a split.

    ``count`` pictures, ``correct1`` with the true class first, ``correct5`` with it among the five best, ``loss`` the
    mean of −ln p(true class) in nats, ``confusion`` int64 [K, K] (rows true, columns predicted).
    """

    split: str
    views: int
    count: int
    correct1: int
    correct5: int
    loss: float
    confusion: Tensor
    seconds: float = 0.0
    training_images_left_out: int = 0  # images of the split that the classifier was trained on; not in ``count``
    training_images_included: int = 0  # the same, in ``count`` on request

    @property
    def top1(self) -> float:
        """Share of the pictures whose true class is the first guess."""
        return self.correct1 / self.count

    @property
    def top5(self) -> float:
        """Share of the pictures whose true class is among the five first guesses."""
        return self.correct5 / self.count

    @property
    def top1_interval(self) -> tuple[float, float]:
        """Where the share that ``top1`` estimates lies with 95 % confidence: Wilson's interval (1927)."""
        return wilson(self.correct1, self.count)

    def to_dict(self) -> dict[str, Any]:
        """As plain values: fractions, mean loss, counts."""
        return {
            "top1": self.top1,
            "top1_interval": list(self.top1_interval),
            "top5": self.top5,
            "loss": self.loss,
            "count": self.count,
            "split": self.split,
            "views": self.views,
            "training_images_left_out": self.training_images_left_out,
            "training_images_included": self.training_images_included,
            "top1_error": 1 - self.top1,
            "top5_error": 1 - self.top5,
            "images_per_second": self.count / self.seconds if self.seconds else None,
        }


def wilson(correct: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Confidence interval of a share of which ``correct`` out of ``count`` were seen (Wilson 1927); z = 1.96: 95 %."""
    share, weight = correct / count, z * z / count
    middle = (share + weight / 2) / (1 + weight)
    reach = z * math.sqrt(share * (1 - share) / count + weight / (4 * count)) / (1 + weight)
    return max(0.0, middle - reach), min(1.0, middle + reach)


class Counter:
    """Adds up batches of probabilities into :class:`Scores`; refuses a picture that it has counted already."""

    def __init__(self, classes: int, pictures: int) -> None:
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self.seen = torch.zeros(pictures, dtype=torch.bool)
        self.correct5 = 0
        self.loss = 0.0

    def add(self, log_probabilities: Tensor, labels: Tensor, indices: Tensor) -> None:
        """A batch: log probabilities [N, K], labels int64 [N], the pictures' places in the split int64 [N]."""
        if self.seen[indices].any() or len(set(indices.tolist())) != len(indices):
            raise ValueError("a picture was evaluated twice")
        self.seen[indices] = True
        best = log_probabilities.topk(min(5, log_probabilities.shape[1])).indices  # [N, ≤5]
        self.correct5 += int((best == labels[:, None]).sum())
        self.loss += float(F.nll_loss(log_probabilities.double(), labels, reduction="sum"))
        pairs = labels * len(self.confusion) + best[:, 0]
        self.confusion += pairs.bincount(minlength=self.confusion.numel()).view_as(self.confusion)

    def add_up(self, add: Callable[..., None]) -> None:
        """Counts of several processes as one: ``add`` sums tensors over them, in place."""
        seen = self.seen.to(torch.int64)
        sums = torch.tensor([self.correct5, self.loss], dtype=torch.float64)
        add(seen, self.confusion, sums)
        if (seen > 1).any():
            raise ValueError("a picture was evaluated twice")
        self.seen, self.correct5, self.loss = seen > 0, int(sums[0]), float(sums[1])

    def scores(self, split: str, views: int, seconds: float = 0.0) -> Scores:
        """The result, once every picture of the split has been counted."""
        count = int(self.seen.sum())
        if count != len(self.seen):
            raise ValueError(f"{len(self.seen) - count} pictures of {split} were not evaluated")
        correct1 = int(self.confusion.diagonal().sum())
        return Scores(split, views, count, correct1, self.correct5, self.loss / count, self.confusion, seconds)
