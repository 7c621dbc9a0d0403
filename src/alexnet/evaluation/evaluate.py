"""A whole split through a network: one view, nine or ten, every picture counted exactly once."""

import itertools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from alexnet.batches import transforms
from alexnet.batches.loader import in_order, to_device
from alexnet.batches.transforms import Statistics
from alexnet.data.store import Split
from alexnet.errors import DataError
from alexnet.evaluation.intervals import groups_of
from alexnet.evaluation.metrics import Counter, Scores
from alexnet.models import kernel
from alexnet.models.summary import work

_ROOM = 1 << 26  # bytes that a batch's many views, 8 bits a color, may take


def expect(network: nn.Module, views: int, device: torch.device) -> None:
    """So many views are to be answered: what computes them is compiled where that pays."""
    if device.type == "cpu" and not kernel.in_use() and kernel.pays(views * work(network)):
        kernel.build()


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The context in which a network computes: bf16 products where ``precision`` says so, else float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@torch.inference_mode()
def log_probabilities(
    network: nn.Module,
    images: Tensor,
    statistics: Statistics,
    *,
    side: int,
    channels: int,
    views: int = 1,
    precision: str = "fp32",
) -> Tensor:
    """Pictures uint8 [N, S, S, 3] -> float32 [N, K]: log of the class probabilities, averaged over the views.

    One view is the center; ten are the corners, the center and their mirrors (paper, 4.1); nine are three offsets
    each way, not mirrored (2012, for CIFAR-10). Probabilities are averaged, not logits. A mean image is treated as in
    training.
    """
    cuts = _views(images, side, views)  # [views, N, s, s, 3]
    means = [statistics.mean] * views
    if views > 1 and statistics.mean.dim() == 3 and statistics.follows:
        means = list(_views(statistics.mean[None], side, views)[:, 0])  # [s, s, 3] each
    parts = []
    for cut, mean in zip(cuts, means, strict=True):  # [N, s, s, 3]
        x = transforms.color(cut, None, None, replace(statistics, mean=mean), channels)
        with autocast(x.device, precision):
            logits = network(x)  # [N, K]
        parts.append(logits.float().log_softmax(1))
    return torch.stack(parts).logsumexp(0) - float(np.log(views))


def calibrated(log_probabilities: Tensor, temperature: float) -> Tensor:
    """Log probabilities as they leave the system: [N, K] divided by the temperature, and a softmax again.

    After the mean over the views, so that no class changes its place. Temperature 1 changes no bit.
    """
    return log_probabilities if temperature == 1.0 else (log_probabilities / temperature).log_softmax(1)


def _views(images: Tensor, side: int, views: int) -> Tensor:
    """[N, S, S, 3] -> [views, N, s, s, 3]; raises :class:`DataError`."""
    if views == 1:
        return transforms.center_views(images, side)[None]
    if views not in transforms.MANY_VIEWS:
        raise DataError(f"views is {views}", "1, 9 or 10")
    if images.shape[1] < side:
        raise DataError(f"{views} views of {side} pixels do not fit a picture of {images.shape[1]}", "", "use 1 view")
    return transforms.MANY_VIEWS[views](images, side)


def evaluate(
    network: nn.Module,
    split: Split,
    statistics: Statistics,
    *,
    classes: int,
    side: int,
    channels: int,
    views: int = 1,
    batch_size: int = 100,
    precision: str = "fp32",
    device: torch.device | None = None,
    part: tuple[int, int] = (0, 1),
    add: Callable[..., None] | None = None,
) -> Scores:
    """Counts over the whole split; the network is left in the mode (training or not) in which it came.

    ``part`` (number, of how many): only every so manieth batch is looked at here, the others by other processes;
    ``add`` then sums tensors over all of them, in place.
    """
    if not len(split):
        raise DataError(f"the {split.name} split is empty", "at least one picture", "choose another split")
    device = device or torch.device("cpu")
    counter, started, was_training = Counter(classes, len(split)), time.perf_counter(), network.training
    statistics = to_device(statistics, device)
    expect(network, len(split) * views, device)
    network.eval()
    try:
        at_once = min(batch_size, max(batch_size // views, _ROOM // (views * side * side * 3)))
        batches = in_order(split, max(1, at_once))
        for images, indices in itertools.islice(batches, part[0], None, part[1]):
            result = log_probabilities(
                network, images.to(device), statistics, side=side, channels=channels, views=views, precision=precision
            )
            counter.add(result.cpu(), torch.from_numpy(split.labels[indices]), torch.from_numpy(indices))
    finally:
        network.train(was_training)
    if add is not None:
        counter.add_up(add)
    return counter.scores(split.name, views, time.perf_counter() - started, groups_of(split))
