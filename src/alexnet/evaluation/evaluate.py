"""Inference over a whole split, with 1, 9 or 10 crops per image: scores, predictions, or features.

Shapes: N images, K classes.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet.data.store import Split
from alexnet.errors import BundleError, DataError, no_memory
from alexnet.evaluation.metrics import MetricAccumulator, Scores
from alexnet.kernels import native_kernels
from alexnet.loader import augmentation
from alexnet.loader.augmentation import Normalization, center_crops, normalize
from alexnet.loader.loader import sequential_batches, to_device
from alexnet.models.network import Network
from alexnet.models.summary import work
from alexnet.terminal import Progress


def refuse_nonfinite(values: Tensor | NDArray[np.floating[Any]] | float, name: str) -> None:
    """Raise BundleError if the network ``name`` computed NaN or Inf: finite weights can be too large for float32."""
    if not torch.isfinite(torch.as_tensor(values)).all():
        raise BundleError(f"{name} computes values that are NaN or Inf", "", "use another copy")


def inputs_of(network: Network, images: NDArray[np.uint8], normalization: Normalization) -> Tensor:
    """Network inputs float32 [N, C, s, s] of stored images uint8 [N, S, S, 3], on the device of ``normalization``.

    The center crop, gray where the network is, minus the mean, divided as the classifier divides.
    """
    crops = center_crops(torch.from_numpy(images).to(normalization.mean.device), network.image_size)
    return normalize(crops, None, None, normalization, network.in_channels)


@torch.inference_mode()
def features_of(network: Network, images: NDArray[np.uint8], normalization: Normalization) -> NDArray[np.float32]:
    """Features of images, the output of ``network.features``: float32 [N, D] (AlexNet: fc7 after ReLU, 4096)."""
    inputs = inputs_of(network, images, normalization)
    result: NDArray[np.float32] = network.forward_to(inputs, network.features).flatten(1).float().cpu().numpy()
    return result


def features_of_split(
    network: Network,
    split: Split,
    indices: NDArray[np.int64],
    normalization: Normalization,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """:func:`features_of` the images of a split with these indices [N], of which there is at least one: [N, D]."""
    rows = []
    for start in range(0, len(indices), _FEATURE_BATCH):
        part = indices[start : start + _FEATURE_BATCH]
        rows.append(features_of(network, split.gather(part), normalization))
        if progress is not None:
            progress(start + len(part), len(indices))
    return np.concatenate(rows)


_FEATURE_BATCH = 100  # images at a time
_MAX_CROP_BYTES = 1 << 26  # of the uint8 crops of a batch, where an image has several


def evaluate(
    network: nn.Module,
    split: Split,
    normalization: Normalization,
    *,
    num_classes: int,
    image_size: int,
    channels: int,
    crops: int = 1,
    batch_size: int = 100,
    device: torch.device | None = None,
    shard: tuple[int, int] = (0, 1),
    all_reduce: Callable[..., None] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Scores of a network on a split. See :func:`predict_batches` for the other arguments.

    Args:
        shard: (index, count): this process takes every ``count``-th batch, from batch ``index`` on.
        all_reduce: Sums tensors over all processes, in place.
        progress: Receives the number of images done, and of all.
    """
    started, metrics = time.perf_counter(), MetricAccumulator(num_classes, len(split))
    for log_probs, indices in predict_batches(
        network,
        split,
        normalization,
        image_size=image_size,
        channels=channels,
        crops=crops,
        batch_size=images_per_batch(batch_size, crops, image_size),
        device=device,
        shard=shard,
    ):
        metrics.add(log_probs, torch.from_numpy(split.labels[indices]), torch.from_numpy(indices))
        if progress is not None:
            progress(int(indices[-1]) + 1, len(split))
    if all_reduce is not None:
        metrics.all_reduce(all_reduce)
    return metrics.scores(split.name, crops, time.perf_counter() - started, split.groups)


@dataclass(frozen=True)
class SplitPredictions:
    """A network's log probabilities of every image of a split, at temperature 1, in the order of the split."""

    split: str
    crops: int
    labels: NDArray[np.int64]  # [N]
    log_probabilities: NDArray[np.float32]  # [N, K]
    groups: tuple[str, ...] = ()  # patient, camera or video of each image; empty: every image is a group of its own
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The predicted class of each image, [N]."""
        return np.asarray(self.log_probabilities.argmax(1), np.int64)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Is the predicted class the true one? [N]"""
        return np.asarray(self.predicted == self.labels)

    def scores(self) -> Scores:
        """The scores that :func:`evaluate` computes."""
        metrics = MetricAccumulator(self.log_probabilities.shape[1], len(self))
        metrics.add(torch.from_numpy(self.log_probabilities), torch.from_numpy(self.labels), torch.arange(len(self)))
        return metrics.scores(self.split, self.crops, self.seconds, self.groups)


def predict_split(
    network: nn.Module,
    split: Split,
    normalization: Normalization,
    *,
    image_size: int,
    channels: int,
    crops: int = 1,
    batch_size: int = 100,
    device: torch.device | None = None,
    num_classes: int = 0,
    shard: tuple[int, int] = (0, 1),
    all_reduce: Callable[..., None] | None = None,
    progress: Progress | None = None,
) -> SplitPredictions:
    """The predictions of a network for every image of a split. See :func:`predict_batches` for the other arguments.

    Args:
        num_classes: K; needed with ``shard``, since a process may have no batch.
        shard: (index, count): this process takes every ``count``-th batch, from batch ``index`` on.
        all_reduce: Sums tensors over all processes, in place; all of them then have all predictions.
        progress: Receives the number of images done, and of all.
    """
    started = time.perf_counter()
    result = torch.zeros(len(split), num_classes)
    for log_probs, indices in predict_batches(
        network,
        split,
        normalization,
        image_size=image_size,
        channels=channels,
        crops=crops,
        batch_size=images_per_batch(batch_size, crops, image_size),
        device=device,
        shard=shard,
    ):
        if not result.numel():
            result = torch.zeros(len(split), log_probs.shape[1])
        result[torch.from_numpy(indices)] = log_probs
        if progress is not None:
            progress(int(indices[-1]) + 1, len(split))
    if all_reduce is not None:
        all_reduce(result)
    seconds = time.perf_counter() - started
    return SplitPredictions(split.name, crops, split.labels, result.numpy(), split.groups, seconds)


def predict_batches(
    network: nn.Module,
    split: Split,
    normalization: Normalization,
    *,
    image_size: int,
    channels: int,
    crops: int = 1,
    batch_size: int,
    device: torch.device | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """One pass over a split, in float32. At its end the network is in the mode (training or not) in which it was.

    Args:
        network: Images float32 [N, C, s, s] -> logits [N, K].
        split: The images.
        normalization: How images are normalized.
        image_size: Height and width of the network's input, in pixels.
        channels: Channels of the network's input: 3, or 1 for gray images.
        crops: Crops of each image: 1, 9 or 10.
        batch_size: Images at a time.
        device: Where the network is; None: the CPU.
        shard: (index, count): only every ``count``-th batch, from batch ``index`` on.

    Yields:
        Log probabilities float32 [n, K], on the CPU, and the indices of the images in the split, int64 [n].

    Raises:
        DataError: For an empty split, or crops that do not fit the images.
    """
    if not len(split):
        raise DataError(f"the {split.name} split is empty", "at least one image", "choose another split")
    device, was_training = device or torch.device("cpu"), network.training
    normalization = to_device(normalization, device)
    prepare_kernels(network, len(split) * crops, device)
    network.eval()
    try:
        for images, indices in itertools.islice(sequential_batches(split, batch_size), shard[0], None, shard[1]):
            log_probs = partial(log_probabilities, network, image_size=image_size, channels=channels, crops=crops)
            yield _in_memory(log_probs, images, normalization, device), indices
    finally:
        network.train(was_training)


def _in_memory(
    log_probs: Callable[[Tensor, Normalization], Tensor],
    images: Tensor,
    normalization: Normalization,
    device: torch.device,
) -> Tensor:
    """``log_probs`` of images uint8 [N, S, S, 3] on the CPU; in halves if a device has not enough memory for all."""
    try:
        return log_probs(images.to(device), normalization).cpu()
    except (MemoryError, RuntimeError) as error:
        if len(images) < 2 or not no_memory(error):
            raise
    half = len(images) // 2
    return torch.cat([_in_memory(log_probs, part, normalization, device) for part in (images[:half], images[half:])])


def images_per_batch(batch_size: int, crops: int, image_size: int) -> int:
    """``batch_size``, or fewer images where their crops would take more than 64 MiB."""
    fitting = _MAX_CROP_BYTES // (crops * image_size * image_size * 3)
    return max(1, min(batch_size, max(batch_size // crops, fitting)))


def prepare_kernels(network: nn.Module, crops: int, device: torch.device) -> None:
    """Compile the native kernels if inference on so many crops is long enough to pay for it."""
    if device.type == "cpu" and not native_kernels.in_use() and native_kernels.worth_compiling(crops * work(network)):
        native_kernels.build()


@torch.inference_mode()
def log_probabilities(
    network: nn.Module,
    images: Tensor,
    normalization: Normalization,
    *,
    image_size: int,
    channels: int,
    crops: int = 1,
) -> Tensor:
    """Log of the class probabilities, averaged over the crops of an image (probabilities are averaged, not logits).

    1 crop is the center. 10 crops are the corners and the center, and their mirror images (paper, section 4.1). 9
    crops are three offsets each way, not mirrored (2012, for CIFAR-10). A mean image is cropped as in training.

    Args:
        images: uint8 [N, S, S, 3].

    Returns:
        float32 [N, K].
    """
    cuts = _crops(images, image_size, crops)  # [crops, N, s, s, 3]
    means = [normalization.mean] * crops
    if crops > 1 and normalization.mean.dim() == 3 and normalization.mean_follows_crop:
        means = list(_crops(normalization.mean[None], image_size, crops)[:, 0])  # [s, s, 3] each
    parts = []
    for cut, mean in zip(cuts, means, strict=True):  # [N, s, s, 3]
        inputs = augmentation.normalize(cut, None, None, replace(normalization, mean=mean), channels)
        logits = network(inputs)  # [N, K]
        parts.append(logits.float().log_softmax(1))
    return torch.stack(parts).logsumexp(0) - float(np.log(crops))


def _crops(images: Tensor, size: int, crops: int) -> Tensor:
    """[N, S, S, 3] -> [crops, N, s, s, 3]; raises :class:`DataError`."""
    if crops == 1:
        return augmentation.center_crops(images, size)[None]
    if crops not in augmentation.MULTI_CROPS:
        raise DataError(f"crops is {crops}", "1, 9 or 10")
    if images.shape[1] < size:
        raise DataError(
            f"{crops} crops of {size} pixels do not fit an image of {images.shape[1]} pixels", "", "use --crops 1"
        )
    return augmentation.MULTI_CROPS[crops](images, size)


def calibrated(log_probabilities: Tensor, temperature: float) -> Tensor:
    """Log probabilities [N, K] divided by the temperature and normalized again.

    This follows the mean over the crops, so that the order of the classes stays. Temperature 1 changes no bit.
    """
    return log_probabilities if temperature == 1.0 else (log_probabilities / temperature).log_softmax(1)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The context in which a network trains: bfloat16 multiplications if ``precision`` is bf16, else float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
