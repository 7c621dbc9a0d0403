"""A split that lives on the device that trains: where it fits, crops are cut there and nothing has to be copied.

The same crops, bit for bit, as those cut on the processor: only boxes of one size that need no resizing are taken.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet import kernels
from alexnet.loader.augmentation import Boxes

SHARE = 0.4  # of the device's free memory that images may take; the rest is the network's
PIECE = 1024  # images that are copied at a time


def fits(count: int, side: int, device: torch.device) -> bool:
    """Is there room for ``count`` images [side, side, 3] on the GPU ``device``? A processor has them already."""
    if not kernels.enabled("gpu_cache") or device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return count * side * side * 3 <= SHARE * free


def cut(images: Tensor, which: NDArray[np.int64], boxes: Boxes, side: int) -> Tensor | None:
    """Views uint8 [N, s, s, 3] of the images ``which`` [N] of ``images`` [n, S, S, 3], on their device; None where
    a box is of another size than the view. One gather, whatever the boxes."""
    if (boxes.height != side).any() or (boxes.width != side).any():
        return None
    steps = np.arange(side)
    rows = boxes.top[:, None] + steps  # [N, s]
    columns = boxes.left[:, None] + np.where(boxes.mirror[:, None], steps[::-1], steps)
    places = [torch.from_numpy(np.ascontiguousarray(part)) for part in (which, rows, columns)]
    if images.is_cuda:
        places = [part.pin_memory().to(images.device, non_blocking=True) for part in places]
    image, row, column = places
    return images[image[:, None, None], row[:, :, None], column[:, None, :]]
