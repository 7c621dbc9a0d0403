"""What a network answered to every picture of a split: the ground on which honest numbers are counted.

Glossary: N pictures, K classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alexnet.batches.loader import in_order, to_device
from alexnet.batches.transforms import Statistics
from alexnet.data.store import Split
from alexnet.errors import DataError
from alexnet.evaluation.evaluate import expect, log_probabilities
from alexnet.evaluation.intervals import groups_of
from alexnet.evaluation.metrics import Counter, Scores


@dataclass(frozen=True)
class Responses:
    """The network's own log probabilities of a split, temperature 1, in the order of the split."""

    split: str
    views: int
    labels: NDArray[np.int64]  # [N]
    log_probabilities: NDArray[np.float32]  # [N, K]
    groups: tuple[str, ...] = ()  # patient, camera, video of each picture; empty: each is a group of its own
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The first guess of each picture: [N]."""
        return np.asarray(self.log_probabilities.argmax(1), np.int64)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Is the first guess the truth? [N]"""
        return np.asarray(self.predicted == self.labels)

    def scores(self) -> Scores:
        """The same counts that :func:`alexnet.evaluation.evaluate.evaluate` makes."""
        counter = Counter(self.log_probabilities.shape[1], len(self))
        counter.add(torch.from_numpy(self.log_probabilities), torch.from_numpy(self.labels), torch.arange(len(self)))
        return counter.scores(self.split, self.views, self.seconds, self.groups)


def collect(
    network: nn.Module,
    split: Split,
    statistics: Statistics,
    *,
    side: int,
    channels: int,
    views: int = 1,
    batch_size: int = 100,
    device: torch.device | None = None,
) -> Responses:
    """Every picture of a split through the network once, in float32: that is what answers outside of training.

    The network is left in the mode (training or not) in which it came. Raises :class:`DataError` for an empty split.
    """
    import time

    if not len(split):
        raise DataError(f"the {split.name} split is empty", "at least one picture", "choose another split")
    device, started, was_training = device or torch.device("cpu"), time.perf_counter(), network.training
    statistics = to_device(statistics, device)
    expect(network, len(split) * views, device)
    network.eval()
    try:
        rows = [
            log_probabilities(network, images.to(device), statistics, side=side, channels=channels, views=views).cpu()
            for images, _ in in_order(split, max(1, batch_size // views))
        ]
    finally:
        network.train(was_training)
    seconds = time.perf_counter() - started
    return Responses(split.name, views, split.labels, torch.cat(rows).numpy(), groups_of(split), seconds)
