"""Store + sampler + transforms -> batches, made ahead of the network by worker threads.

Workers gather, cut and resize uint8 (NumPy and PyTorch release the interpreter's lock there); colors change on the
device that trains. A batch depends on (seed, epoch, position) only, never on who made it or when.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.data.store import Split
from alexnet.errors import RecipeError, no_memory
from alexnet.loader import augmentation, gpu_cache, sampler
from alexnet.loader.augmentation import Boxes, Normalization
from alexnet.recipe import Recipe


class Batch(NamedTuple):
    """What the network is given: ``images`` float32 [N, C, s, s], ``labels`` int64 [N], ``indices`` int64 [N].

    Where only some ``places`` [M] of the batch were asked for, images are those [M, C, s, s]; labels and indices are
    always the whole batch's.
    """

    images: Tensor
    labels: Tensor
    indices: NDArray[np.int64]
    places: NDArray[np.int64] | None = None


class ConcatSplit:
    """Several splits as one: images are numbered through, those of the first split first."""

    def __init__(self, splits: Sequence[Split]) -> None:
        self.splits = splits
        self.labels = np.concatenate([split.labels for split in splits])  # int64 [n]
        self._ends = np.cumsum([len(split) for split in splits])
        self.counts = [count for split in splits for count in split.counts]  # of each shard

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images [N, S, S, 3] at ``indices`` [N]."""
        size = self.splits[0].size
        out = np.empty((len(indices), size, size, 3), np.uint8)
        which = np.searchsorted(self._ends, indices, side="right")
        for number, split in enumerate(self.splits):
            mine = which == number
            out[mine] = split.gather(indices[mine] - (self._ends[number] - len(split)))
        return out

    @contextmanager
    def expecting(self, indices: NDArray[np.int64]) -> Iterator[None]:
        """While it is open, images are gathered about in the order of ``indices`` [N]: see ``Split.expecting``."""
        which = np.searchsorted(self._ends, indices, side="right")
        with ExitStack() as held:
            for number, split in enumerate(self.splits):
                held.enter_context(split.expecting(indices[which == number] - (self._ends[number] - len(split))))
            yield


class Loader:
    """Training batches of a split. ``side`` is the network's view in pixels, ``channels`` what it sees (3 or 1).

    From the recipe's epoch ``train_on_val_from_epoch`` on ``validation`` is trained on too, its images numbered
    after the split's.
    ``keep`` says whether all images are kept on ``device`` and cut there; None: where they fit a GPU.
    """

    def __init__(
        self,
        split: Split,
        recipe: Recipe,
        statistics: Normalization,
        *,
        side: int,
        channels: int,
        device: torch.device,
        workers: int = 1,
        validation: Split | None = None,
        keep: bool | None = None,
    ) -> None:
        self.split, self.recipe, self.device = split, recipe, device
        self._joined = split if validation is None else ConcatSplit([split, validation])
        self.side, self.channels, self.workers = side, channels, max(1, workers)
        self.statistics = to_device(statistics, device)
        whole = len(self._joined)
        self._keep = gpu_cache.fits(whole, split.size, device) if keep is None else keep
        self._kept: Tensor | None = None  # all images, uint8 [n, S, S, 3], once an epoch needed them

    def __len__(self) -> int:
        """Batches in an epoch before any join; the last may be smaller."""
        return self.steps(0)

    def steps(self, epoch: int) -> int:
        """Batches in an epoch (from 0); the last may be smaller."""
        return -(-len(self.images(epoch)) // self.recipe.batch_size)

    def images(self, epoch: int) -> Split | ConcatSplit:
        """What is trained on in an epoch (from 0)."""
        return self._joined if self.recipe.trains_on_val(epoch) else self.split

    def epoch(
        self,
        epoch: int,
        start: int = 0,
        side: int | None = None,
        wanted: Callable[[int, int], NDArray[np.int64]] | None = None,
    ) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``, … of an epoch, crops resized to ``side`` pixels (default: full).

        ``wanted`` tells from a batch's number and size which places of it to cut (default: all).
        """
        if self._keep and self._kept is None and self._from_device():
            self._kept = self._all_on_device()
            self._keep = self._kept is not None
        order = self._order(epoch)
        todo = deque(list(enumerate(sampler.batches(order, self.recipe.batch_size)))[start:])
        images = self.images(epoch)
        coming = order[start * self.recipe.batch_size :] % max(1, len(images))
        with (
            images.expecting(coming),
            self._pool() as pool,
        ):
            made: deque[Future[_Cut]] = deque()
            try:
                while todo or made:
                    while todo and len(made) < self.workers + 1:
                        batch, indices = todo.popleft()
                        places = wanted(batch, len(indices)) if wanted else None
                        made.append(pool.submit(self._cut, batch, indices, places, epoch, side or self.side))
                    yield self._finish(epoch, made.popleft().result())
            finally:
                for future in made:
                    future.cancel()

    def _pool(self) -> ThreadPoolExecutor:
        if self.device.type != "cpu":
            return ThreadPoolExecutor(self.workers, "batches")
        return ThreadPoolExecutor(self.workers, "batches", _alone, (torch.get_num_threads(),))

    def _from_device(self) -> bool:
        """Can crops be cut from images that are all there? Not resized parts, not of shards that come one by one."""
        return self.recipe.crop != "resized" and not self.recipe.shuffle_window

    def _all_on_device(self) -> Tensor | None:
        """All images on the device; None where it has no memory for them: another process may have taken it."""
        size = self.split.size
        try:
            kept = torch.empty(len(self._joined), size, size, 3, dtype=torch.uint8, device=self.device)
            for begin in range(0, len(kept), gpu_cache.PIECE):
                piece = np.arange(begin, min(begin + gpu_cache.PIECE, len(kept)))
                kept[begin : begin + len(piece)] = torch.from_numpy(self._joined.gather(piece)).to(self.device)
        except (MemoryError, RuntimeError) as error:
            if not no_memory(error):
                raise
            return None
        return kept

    def _cut_on_device(self, which: NDArray[np.int64], boxes: Boxes, side: int) -> Tensor | None:
        """Crops of the images that are kept; None where they are not kept, of another size, or memory is missing."""
        kept = self._kept
        try:
            return None if kept is None else gpu_cache.cut(kept, which, boxes, side)
        except RuntimeError as error:
            if not no_memory(error):
                raise
            self._kept, self._keep = None, False  # from now on the processor cuts, and the device has their memory
            return None

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Places of an epoch: an image's number, plus the count of all for each time that it came before."""
        images, seed = self.images(epoch), self.recipe.seed
        if self.recipe.sampling == "balanced":
            return sampler.balanced_order(images.labels, seed, epoch)
        if self.recipe.shuffle_window:
            return sampler.windowed_order(images.counts, seed, epoch, self.recipe.shuffle_window)
        return sampler.epoch_order(len(images), seed, epoch)

    def _cut(
        self, batch: int, whole: NDArray[np.int64], places: NDArray[np.int64] | None, epoch: int, side: int
    ) -> "_Cut":
        shared, groups = self.recipe.crop_group_size, None
        indices = whole if places is None else whole[places]
        if shared > 1:
            within = np.arange(len(whole), dtype=np.int64) if places is None else places
            groups = (batch * self.recipe.batch_size + within) // shared
        box_numbers, color_numbers = augmentation.crop_numbers(self.recipe.seed, epoch, indices, groups)
        count = len(self.images(epoch))
        indices, whole = indices % count, whole % count  # turns of sampling -> images
        boxes = augmentation.draw_boxes(self.recipe, box_numbers, self.split.size, self.side)
        crops = self._cut_on_device(indices, boxes, side)
        if crops is None:
            images = torch.from_numpy(self.images(epoch).gather(indices))  # uint8 [N, S, S, 3]
            crops = augmentation.cut(images, boxes, side)
            if self.device.type == "cuda":
                crops = crops.pin_memory()  # so that the copy runs beside what is computed
        return _Cut(crops, boxes, color_numbers, whole, places)

    def _finish(self, epoch: int, cut: "_Cut") -> Batch:
        colors = augmentation.draw_colors(self.recipe, cut.color_numbers, self.statistics, epoch)
        images = cut.images.to(self.device, non_blocking=True)
        images = augmentation.color(images, cut.boxes, colors, self.statistics, self.channels)
        labels = torch.from_numpy(self.images(epoch).labels[cut.indices]).to(self.device)
        return Batch(images, labels, cut.indices, cut.places)


def _alone(everyone: int) -> None:
    """Let operations of this thread not be shared out among others, while a network needs those ``everyone``.

    OpenMP would make a team for this thread too, and where there are more threads than cores GCC's lets all of them
    fall asleep between two operations: each that follows waits until they are awake. ``cifar_18pct`` trained 3,700
    images a second with such a team next to it, and 5,300 without.
    """
    torch.get_num_threads()  # else the first operation would make it everyone's number again
    torch.set_num_threads(1)
    # That is also what threads yet to come will have; said by another thread it is theirs and not this one's. Each that
    # says 1 has the old number said after it, and has not asked for it: it could have been another one's 1.
    other = threading.Thread(target=torch.set_num_threads, args=(everyone,))
    other.start()
    other.join()


class _Cut(NamedTuple):
    """A batch on its way: uint8 crops [M, s, s, 3] of ``places``, their boxes and numbers, all its indices."""

    images: Tensor
    boxes: Boxes
    color_numbers: NDArray[np.float64]
    indices: NDArray[np.int64]
    places: NDArray[np.int64] | None


def in_order(split: Split, batch_size: int) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Every image of a split once: uint8 [N, S, S, 3] and its indices [N]."""
    everything = np.arange(len(split))
    with split.expecting(everything):
        for indices in sampler.batches(everything, batch_size):
            yield torch.from_numpy(split.gather(indices)), indices


def choose_device(name: str | torch.device) -> torch.device:
    """``auto``: the first GPU where there is one, else the processor. Raises :class:`RecipeError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"--device is {name!r}", "auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--device cuda: this machine has no usable GPU", "", "use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(f"--device is {name!r}", f"cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return device


def to_device(statistics: Normalization, device: torch.device) -> Normalization:
    """The statistics with their tensors on ``device``; the divisor stays on the CPU."""
    return replace(
        statistics,
        mean=statistics.mean.to(device),
        color_std=statistics.color_std.to(device),
        color_axes=statistics.color_axes.to(device),
        divide=statistics.divide.cpu(),
    )
