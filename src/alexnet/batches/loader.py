"""Store + sampler + transforms -> batches, made ahead of the network by worker threads.

Workers gather, cut and resize uint8 (NumPy and PyTorch release the interpreter's lock there); colors change on the
device that trains. A batch depends on (seed, epoch, position) only, never on who made it or when.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.batches import sampler, transforms
from alexnet.batches.transforms import Boxes, Statistics
from alexnet.data.store import Split
from alexnet.recipe import Recipe


class Batch(NamedTuple):
    """What the network is given: ``images`` float32 [N, C, s, s], ``labels`` int64 [N], ``indices`` int64 [N]."""

    images: Tensor
    labels: Tensor
    indices: NDArray[np.int64]


class Loader:
    """Training batches of a split. ``side`` is the network's view in pixels, ``channels`` what it sees (3 or 1)."""

    def __init__(
        self,
        split: Split,
        recipe: Recipe,
        statistics: Statistics,
        *,
        side: int,
        channels: int,
        device: torch.device,
        workers: int = 1,
    ) -> None:
        self.split, self.recipe, self.device = split, recipe, device
        self.side, self.channels, self.workers = side, channels, max(1, workers)
        self.statistics = to_device(statistics, device)

    def __len__(self) -> int:
        """Batches in an epoch; the last may be smaller."""
        return -(-len(self.split) // self.recipe.batch_size)

    def epoch(self, epoch: int, start: int = 0, side: int | None = None) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``, … of an epoch, views resized to ``side`` pixels (default: full)."""
        order = sampler.epoch_order(len(self.split), self.recipe.seed, epoch)
        todo = deque(sampler.batches(order, self.recipe.batch_size)[start:])
        with ThreadPoolExecutor(self.workers, thread_name_prefix="batches") as pool:
            made: deque[Future[tuple[Tensor, Boxes, NDArray[np.float64], NDArray[np.int64]]]] = deque()
            try:
                while todo or made:
                    while todo and len(made) < self.workers + 1:
                        made.append(pool.submit(self._cut, todo.popleft(), epoch, side or self.side))
                    yield self._finish(*made.popleft().result())
            finally:
                for future in made:
                    future.cancel()

    def _cut(
        self, indices: NDArray[np.int64], epoch: int, side: int
    ) -> tuple[Tensor, Boxes, NDArray[np.float64], NDArray[np.int64]]:
        box_numbers, color_numbers = transforms.view_numbers(self.recipe.seed, epoch, indices)
        images = torch.from_numpy(self.split.gather(indices))  # uint8 [N, S, S, 3]
        boxes = transforms.draw_boxes(self.recipe, box_numbers, images.shape[1], self.side)
        return transforms.cut(images, boxes, side), boxes, color_numbers, indices

    def _finish(
        self, cuts: Tensor, boxes: Boxes, color_numbers: NDArray[np.float64], indices: NDArray[np.int64]
    ) -> Batch:
        colors = transforms.draw_colors(self.recipe, color_numbers, self.statistics)
        cuts = cuts.to(self.device, non_blocking=True)
        images = transforms.color(cuts, boxes, colors, self.statistics, self.channels)
        labels = torch.from_numpy(self.split.labels[indices]).to(self.device)
        return Batch(images, labels, indices)


def in_order(split: Split, batch_size: int) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Every picture of a split once: uint8 [N, S, S, 3] and its indices [N]."""
    for indices in sampler.batches(np.arange(len(split)), batch_size):
        yield torch.from_numpy(split.gather(indices)), indices


def to_device(statistics: Statistics, device: torch.device) -> Statistics:
    """The statistics' tensors on ``device``."""
    return Statistics(*(tensor.to(device) for tensor in vars(statistics).values()))
