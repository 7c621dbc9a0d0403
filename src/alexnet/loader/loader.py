"""Training batches of a store: cropped by worker threads ahead of the network, then augmented, normalized and mixed.

On a GPU, all training images are kept in its memory if they fit, and cropped there.

The crops there are bit for bit those of :func:`alexnet.loader.augmentation.crop`; crops that need resizing, and those
of RandAugment, are made on the CPU.

Worker threads gather, crop, resize and augment uint8 images (NumPy and PyTorch release the GIL there). Color
augmentation, normalization and mixup run on the training device. A batch is a function of (seed, epoch, position)
alone: the number of workers does not change it.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet import kernels
from alexnet.data.store import ConcatSplit, Split
from alexnet.errors import no_memory
from alexnet.loader import augmentation, sampler
from alexnet.loader.augmentation import Boxes, Mixup, Normalization, draw_cutmix, draw_mixup, randaugment
from alexnet.recipe import Recipe

MAX_MEMORY_FRACTION = 0.4  # of the device's free memory; the rest is for the network
COPY_IMAGES = 1024  # images copied to the device at a time


def fits_device(count: int, size: int, device: torch.device) -> bool:
    """Whether ``count`` images [size, size, 3] fit the memory of the GPU ``device``; False for a CPU."""
    if not kernels.enabled("gpu_cache") or device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return count * size * size * 3 <= MAX_MEMORY_FRACTION * free


def load_to_device(split: Split, size: int, device: torch.device) -> Tensor | None:
    """All images of ``split`` on ``device``, uint8 [n, size, size, 3]; None if the device runs out of memory."""
    try:
        images = torch.empty(len(split), size, size, 3, dtype=torch.uint8, device=device)
        for start in range(0, len(images), COPY_IMAGES):
            indices = np.arange(start, min(start + COPY_IMAGES, len(images)))
            images[start : start + len(indices)] = torch.from_numpy(split.gather(indices)).to(device)
    except (MemoryError, RuntimeError) as error:
        if not no_memory(error):
            raise
        return None
    return images


def crop_on_device(images: Tensor, indices: NDArray[np.int64], boxes: Boxes, size: int) -> Tensor | None:
    """The ``boxes`` [N] of the images at ``indices`` [N], by one gather on the images' device.

    Args:
        images: uint8 [n, S, S, 3].
        size: height and width of a crop, s pixels.

    Returns:
        uint8 [N, s, s, 3], or None if a box is not s × s and would need resizing.
    """
    if (boxes.height != size).any() or (boxes.width != size).any():
        return None
    offsets = np.arange(size)
    rows = boxes.top[:, None] + offsets  # [N, s]
    columns = boxes.left[:, None] + np.where(boxes.flip[:, None], offsets[::-1], offsets)  # [N, s]
    index_tensors = [torch.from_numpy(np.ascontiguousarray(index)) for index in (indices, rows, columns)]
    if images.is_cuda:
        index_tensors = [index.pin_memory().to(images.device, non_blocking=True) for index in index_tensors]
    image, row, column = index_tensors
    return images[image[:, None, None], row[:, :, None], column[:, None, :]]


class Batch(NamedTuple):
    """A finished training batch, or the shard of it that one process needs.

    Attributes:
        images: float32 [N, C, s, s], augmented, normalized and mixed.
        labels: int64 [N], the class of each image. In hybrid parallelism there are more labels than images.
        indices: int64 [batch size], the images of the whole batch, numbered within the split.
        mixup_labels: int64 [N], the class of the image that each image is mixed with; None without mixup.
        mixup_weight: the weight of ``labels`` in the loss; ``mixup_labels`` have the rest.
    """

    images: Tensor
    labels: Tensor
    indices: NDArray[np.int64]
    mixup_labels: Tensor | None = None
    mixup_weight: float = 1.0

    @property
    def batch_size(self) -> int:
        """Images in the whole batch, those of the other processes included."""
        return len(self.indices)


class Shard(NamedTuple):
    """The rows of a batch that one process needs: it computes ``images`` and learns from ``labels``."""

    images: range
    labels: range


class Loader:
    """Training batches of a split.

    Args:
        split: the training images.
        recipe: batch size, sampling, augmentation, mixup and seed.
        normalization: how images are normalized; its colors are used for PCA noise.
        image_size: height and width of the network's input, pixels.
        channels: of the network's input, 3 or 1 (gray).
        device: where batches are finished and the network trains.
        num_workers: threads that load and crop images; they do not affect the result.
        validation: images that are trained on too, from the recipe's epoch ``train_on_val_from_epoch`` on. Their
            indices follow those of ``split``.
        cache_on_device: keep all images on ``device`` and crop there. None: if they fit the memory of a GPU.
        shard: maps a batch's size to the rows that this process needs; None: all rows.
    """

    def __init__(
        self,
        split: Split,
        recipe: Recipe,
        normalization: Normalization,
        *,
        image_size: int,
        channels: int,
        device: torch.device,
        num_workers: int = 1,
        validation: Split | None = None,
        cache_on_device: bool | None = None,
        shard: Callable[[int], Shard] | None = None,
    ) -> None:
        self.split, self.recipe, self.device, self.shard = split, recipe, device, shard
        self._train_and_val = split if validation is None else ConcatSplit([split, validation])
        self.image_size, self.channels, self.num_workers = image_size, channels, max(1, num_workers)
        self.normalization = to_device(normalization, device)
        if cache_on_device is None:
            cache_on_device = fits_device(len(self._train_and_val), split.size, device)
        # Resized and augmented crops are made on the CPU; with a shuffle window, images do not fit the memory.
        on_cpu = recipe.crop == "resized" or recipe.randaugment_ops or recipe.shuffle_window
        self._fill_cache = cache_on_device and not on_cpu
        self.cached_images: Tensor | None = None  # uint8 [n, S, S, 3] on the device, from the first epoch on

    def __len__(self) -> int:
        """Batches in the first epoch; the last one may be smaller."""
        return self.steps(0)

    def steps(self, epoch: int) -> int:
        """Batches in an epoch (from 0); the last one may be smaller."""
        return -(-len(self.split_of(epoch)) // self.recipe.batch_size)

    def split_of(self, epoch: int) -> Split:
        """The images that an epoch (from 0) trains on."""
        return self._train_and_val if self.recipe.trains_on_val(epoch) else self.split

    def epoch(self, epoch: int, start: int = 0, size: int | None = None) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``, … of an epoch (from 0).

        ``size`` is the height and width of the images in pixels; None: the network's ``image_size``.
        """
        if self._fill_cache:
            self.cached_images = load_to_device(self._train_and_val, self.split.size, self.device)
            self._fill_cache = False
        split, batch_size, order = self.split_of(epoch), self.recipe.batch_size, self._order(epoch)
        first_step = sum(self.steps(earlier) for earlier in range(epoch))
        tasks = deque(list(enumerate(sampler.batches(order, batch_size)))[start:])
        upcoming = order[start * batch_size :] % max(1, len(split))
        with split.expecting(upcoming), self._pool() as pool:
            futures: deque[Future[_CroppedBatch]] = deque()
            try:
                while tasks or futures:
                    while tasks and len(futures) < self.num_workers + 1:
                        number, draws = tasks.popleft()
                        step, pixels = first_step + number, size or self.image_size
                        mixup = draw_cutmix(self.recipe, step, len(draws), pixels)
                        mixup = mixup or draw_mixup(self.recipe, step, len(draws))
                        task = _Task(epoch, number, draws, mixup, pixels)
                        futures.append(pool.submit(self._crop, task))
                    yield self._finish(futures.popleft().result())
            finally:
                for future in futures:
                    future.cancel()

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """The epoch's draws, int64 [n]: an image's index, plus n for each time that it was drawn before."""
        split, seed = self.split_of(epoch), self.recipe.seed
        if self.recipe.sampling == "balanced":
            return sampler.balanced_order(split.labels, seed, epoch)
        if self.recipe.shuffle_window:
            return sampler.windowed_order(split.counts, seed, epoch, self.recipe.shuffle_window)
        return sampler.epoch_order(len(split), seed, epoch)

    def _pool(self) -> ThreadPoolExecutor:
        if self.device.type != "cpu":
            return ThreadPoolExecutor(self.num_workers, "batches")
        return ThreadPoolExecutor(self.num_workers, "batches", _use_one_thread, (torch.get_num_threads(),))

    def _crop(self, task: "_Task") -> "_CroppedBatch":
        """Crop the images of a batch. Runs in a worker thread."""
        rows, recipe = self._rows(task), self.recipe
        draws = task.draws[rows]
        groups = (
            (task.number * recipe.batch_size + rows) // recipe.crop_group_size if recipe.crop_group_size > 1 else None
        )
        box_numbers, color_numbers = augmentation.crop_numbers(recipe.seed, task.epoch, draws, groups)
        split = self.split_of(task.epoch)
        indices = draws % len(split)
        boxes = augmentation.draw_boxes(recipe, box_numbers, self.split.size, self.image_size)
        crops = self._crop_on_device(indices, boxes, task.size)
        if crops is None:
            images = torch.from_numpy(split.gather(indices))  # uint8 [N, S, S, 3]
            crops = augmentation.crop(images, boxes, task.size)
            if recipe.randaugment_ops:
                crops = randaugment(recipe, crops, task.epoch, draws)
            if self.device.type == "cuda":
                crops = crops.pin_memory()  # so that the copy overlaps with computation
        return _CroppedBatch(task, crops, boxes, color_numbers)

    def _rows(self, task: "_Task") -> NDArray[np.int64]:
        """The rows of the batch to crop: those of this process, then, with mixup, those that they are mixed with."""
        shard = self._shard(len(task.draws))
        rows = np.arange(shard.images.start, shard.images.stop, dtype=np.int64)
        if task.mixup is None or len(rows) == len(task.draws):
            return rows
        return np.concatenate([rows, task.mixup.permutation[rows]])

    def _shard(self, batch_size: int) -> Shard:
        return self.shard(batch_size) if self.shard else Shard(range(batch_size), range(batch_size))

    def _crop_on_device(self, indices: NDArray[np.int64], boxes: Boxes, size: int) -> Tensor | None:
        """Crops of the cached images; None if there are none, a box needs resizing, or memory runs out."""
        try:
            return None if self.cached_images is None else crop_on_device(self.cached_images, indices, boxes, size)
        except RuntimeError as error:
            if not no_memory(error):
                raise
            self.cached_images = None  # from now on crops are made on the CPU, and the device has its memory back
            return None

    def _finish(self, cropped: "_CroppedBatch") -> Batch:
        """Augment colors, normalize and mix, on the training device."""
        task, mixup = cropped.task, cropped.task.mixup
        colors = augmentation.draw_colors(self.recipe, cropped.color_numbers, self.normalization, task.epoch)
        images = cropped.crops.to(self.device, non_blocking=True)
        images = augmentation.normalize(
            images, cropped.boxes, colors, self.normalization, self.channels
        )  # [N, C, s, s]
        split, batch_size = self.split_of(task.epoch), len(task.draws)
        indices = task.draws % len(split)
        shard = self._shard(batch_size)
        rows = shard.labels
        labels = torch.from_numpy(split.labels[indices[rows.start : rows.stop]]).to(self.device)
        if mixup is None:
            return Batch(images, labels, indices)
        if len(shard.images) == batch_size:
            others = images[torch.from_numpy(mixup.permutation).to(self.device)]
        else:
            images, others = images.chunk(2)
        images = augmentation.mix(images, others, mixup)
        partners = mixup.permutation[rows.start : rows.stop]
        mixup_labels = torch.from_numpy(split.labels[indices[partners]]).to(self.device)
        return Batch(images, labels, indices, mixup_labels, mixup.weight)


class _Task(NamedTuple):
    """A batch to be made: number ``number`` of ``epoch``, its draws [batch size] and mixup, ``size`` in pixels."""

    epoch: int
    number: int
    draws: NDArray[np.int64]
    mixup: Mixup | None
    size: int


class _CroppedBatch(NamedTuple):
    """Crops uint8 [N, s, s, 3] of a task's rows, their boxes, and the random numbers of their colors [N, 14]."""

    task: _Task
    crops: Tensor
    boxes: Boxes
    color_numbers: NDArray[np.float64]


def _use_one_thread(main_threads: int) -> None:
    """Make PyTorch use one thread for the operations of this thread, and ``main_threads`` for those of new threads.

    Otherwise OpenMP starts a team of threads for each worker. With more threads than cores, GCC's OpenMP puts the
    teams to sleep between two operations, and each operation waits until its team wakes up: ``cifar_18pct`` trained
    3,700 images/s with such teams and 5,300 images/s without.
    """
    torch.get_num_threads()  # otherwise this thread's first operation resets the number
    torch.set_num_threads(1)
    # The call also sets the default of threads that start later, so another thread restores that default. The value
    # comes from the main thread: reading it here could read the 1 that another worker has just set.
    restore = threading.Thread(target=torch.set_num_threads, args=(main_threads,))
    restore.start()
    restore.join()


def sequential_batches(split: Split, batch_size: int) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Batches of all images of a split in stored order: uint8 [N, S, S, 3], and their indices [N]."""
    indices = np.arange(len(split))
    with split.expecting(indices):
        for batch in sampler.batches(indices, batch_size):
            yield torch.from_numpy(split.gather(batch)), batch


def to_device(normalization: Normalization, device: torch.device) -> Normalization:
    """``normalization`` with its tensors on ``device``. ``divide`` stays on the CPU."""
    return replace(
        normalization,
        mean=normalization.mean.to(device),
        color_std=normalization.color_std.to(device),
        color_axes=normalization.color_axes.to(device),
        divide=normalization.divide.cpu(),
    )
