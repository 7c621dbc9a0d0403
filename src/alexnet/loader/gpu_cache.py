"""All training images in the memory of the training device, where batches are cropped without a copy from the CPU.

The crops are bit for bit those of :func:`alexnet.loader.augmentation.crop`. Crops that need resizing are not made here.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet import kernels
from alexnet.data.store import Split
from alexnet.errors import no_memory
from alexnet.loader.augmentation import Boxes

MAX_MEMORY_FRACTION = 0.4  # of the device's free memory; the rest is for the network
COPY_IMAGES = 1024  # images copied to the device at a time


def fits(count: int, size: int, device: torch.device) -> bool:
    """Whether ``count`` images [size, size, 3] fit the memory of the GPU ``device``; False for a CPU."""
    if not kernels.enabled("gpu_cache") or device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return count * size * size * 3 <= MAX_MEMORY_FRACTION * free


def load(split: Split, size: int, device: torch.device) -> Tensor | None:
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


def crop(images: Tensor, indices: NDArray[np.int64], boxes: Boxes, size: int) -> Tensor | None:
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
