"""A whole split through a network: one view, nine or ten, every image counted exactly once.

What a network answered to every image of a split: the ground on which honest numbers are counted.

Glossary: N images, K classes.
"""

import itertools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet.data.store import Split
from alexnet.errors import DataError
from alexnet.evaluation.intervals import groups_of
from alexnet.evaluation.metrics import MetricAccumulator, Scores
from alexnet.kernels import native_kernels
from alexnet.loader import augmentation
from alexnet.loader.augmentation import Normalization
from alexnet.loader.loader import in_order, to_device
from alexnet.models.summary import work

_ROOM = 1 << 26  # bytes that a batch's many crops, 8 bits a color, may take


def expect(network: nn.Module, crops: int, device: torch.device) -> None:
    """So many crops are to be answered: what computes them is compiled where that pays."""
    if device.type == "cpu" and not native_kernels.in_use() and native_kernels.worth_compiling(crops * work(network)):
        native_kernels.build()


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The context in which a network computes: bf16 multiplications where ``precision`` says so, else float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@torch.inference_mode()
def log_probabilities(
    network: nn.Module,
    images: Tensor,
    statistics: Normalization,
    *,
    side: int,
    channels: int,
    crops: int = 1,
    precision: str = "fp32",
) -> Tensor:
    """Images uint8 [N, S, S, 3] -> float32 [N, K]: log of the class probabilities, averaged over the crops.

    One view is the center; ten are the corners, the center and their mirrors (paper, 4.1); nine are three offsets
    each way, not mirrored (2012, for CIFAR-10). Probabilities are averaged, not logits. A mean image is treated as in
    training.
    """
    cuts = _views(images, side, crops)  # [crops, N, s, s, 3]
    means = [statistics.mean] * crops
    if crops > 1 and statistics.mean.dim() == 3 and statistics.follows:
        means = list(_views(statistics.mean[None], side, crops)[:, 0])  # [s, s, 3] each
    parts = []
    for cut, mean in zip(cuts, means, strict=True):  # [N, s, s, 3]
        x = augmentation.color(cut, None, None, replace(statistics, mean=mean), channels)
        with autocast(x.device, precision):
            logits = network(x)  # [N, K]
        parts.append(logits.float().log_softmax(1))
    return torch.stack(parts).logsumexp(0) - float(np.log(crops))


def calibrated(log_probabilities: Tensor, temperature: float) -> Tensor:
    """Log probabilities as they leave the system: [N, K] divided by the temperature, and a softmax again.

    After the mean over the crops, so that no class changes its place. Temperature 1 changes no bit.
    """
    return log_probabilities if temperature == 1.0 else (log_probabilities / temperature).log_softmax(1)


def _views(images: Tensor, side: int, crops: int) -> Tensor:
    """[N, S, S, 3] -> [crops, N, s, s, 3]; raises :class:`DataError`."""
    if crops == 1:
        return augmentation.center_crops(images, side)[None]
    if crops not in augmentation.MULTI_CROPS:
        raise DataError(f"crops is {crops}", "1, 9 or 10")
    if images.shape[1] < side:
        raise DataError(f"{crops} crops of {side} pixels do not fit an image of {images.shape[1]}", "", "use 1 view")
    return augmentation.MULTI_CROPS[crops](images, side)


def evaluate(
    network: nn.Module,
    split: Split,
    statistics: Normalization,
    *,
    classes: int,
    side: int,
    channels: int,
    crops: int = 1,
    batch_size: int = 100,
    precision: str = "fp32",
    device: torch.device | None = None,
    part: tuple[int, int] = (0, 1),
    add: Callable[..., None] | None = None,
) -> Scores:
    """Counts over the whole split; the network is left in the mode (training or not) in which it came.

    ``part`` (number, of how many): only every so n-th batch is looked at here, the others by other processes;
    ``add`` then sums tensors over all of them, in place.
    """
    if not len(split):
        raise DataError(f"the {split.name} split is empty", "at least one image", "choose another split")
    device = device or torch.device("cpu")
    counter, started, was_training = MetricAccumulator(classes, len(split)), time.perf_counter(), network.training
    statistics = to_device(statistics, device)
    expect(network, len(split) * crops, device)
    network.eval()
    try:
        at_once = min(batch_size, max(batch_size // crops, _ROOM // (crops * side * side * 3)))
        batches = in_order(split, max(1, at_once))
        for images, indices in itertools.islice(batches, part[0], None, part[1]):
            result = log_probabilities(
                network, images.to(device), statistics, side=side, channels=channels, crops=crops, precision=precision
            )
            counter.add(result.cpu(), torch.from_numpy(split.labels[indices]), torch.from_numpy(indices))
    finally:
        network.train(was_training)
    if add is not None:
        counter.add_up(add)
    return counter.scores(split.name, crops, time.perf_counter() - started, groups_of(split))


@dataclass(frozen=True)
class SplitPredictions:
    """The network's own log probabilities of a split, temperature 1, in the order of the split."""

    split: str
    crops: int
    labels: NDArray[np.int64]  # [N]
    log_probabilities: NDArray[np.float32]  # [N, K]
    groups: tuple[str, ...] = ()  # patient, camera, video of each image; empty: each is a group of its own
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The first prediction of each image: [N]."""
        return np.asarray(self.log_probabilities.argmax(1), np.int64)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Is the first prediction the truth? [N]"""
        return np.asarray(self.predicted == self.labels)

    def scores(self) -> Scores:
        """The same counts that :func:`alexnet.evaluation.evaluate.evaluate` makes."""
        counter = MetricAccumulator(self.log_probabilities.shape[1], len(self))
        counter.add(torch.from_numpy(self.log_probabilities), torch.from_numpy(self.labels), torch.arange(len(self)))
        return counter.scores(self.split, self.crops, self.seconds, self.groups)


def predict_split(
    network: nn.Module,
    split: Split,
    statistics: Normalization,
    *,
    side: int,
    channels: int,
    crops: int = 1,
    batch_size: int = 100,
    device: torch.device | None = None,
) -> SplitPredictions:
    """Every image of a split through the network once, in float32: that is what answers outside of training.

    The network is left in the mode (training or not) in which it came. Raises :class:`DataError` for an empty split.
    """
    import time

    if not len(split):
        raise DataError(f"the {split.name} split is empty", "at least one image", "choose another split")
    device, started, was_training = device or torch.device("cpu"), time.perf_counter(), network.training
    statistics = to_device(statistics, device)
    expect(network, len(split) * crops, device)
    network.eval()
    try:
        rows = [
            log_probabilities(network, images.to(device), statistics, side=side, channels=channels, crops=crops).cpu()
            for images, _ in in_order(split, max(1, batch_size // crops))
        ]
    finally:
        network.train(was_training)
    seconds = time.perf_counter() - started
    return SplitPredictions(split.name, crops, split.labels, torch.cat(rows).numpy(), groups_of(split), seconds)
