"""A first convolution with a stride, as one of stride 1 on fewer pixels of more channels: the same sums, reordered.

224×224 pixels of 3 colors are 57×57 blocks of 4×4, each of 48 numbers; filters of 11×11, with zeros to 12×12, are
filters of 3×3 such blocks. A GPU's tensor cores multiply 48 channels at once; 3 leave most of them idle. The plain
convolution is the reference implementation: ``use(False)``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.kernels import native_kernels
from alexnet.kernels.first_conv import Filters

_MOST_CHANNELS = 4
_wanted: bool | None = None


def use(wanted: bool | None) -> None:
    """Rearrange wherever it can be done, or nowhere; None, as at first: on GPUs."""
    global _wanted
    _wanted = wanted


def fits(input: Tensor, weight: Tensor, filters: Filters, groups: int) -> bool:
    """Will :func:`convolve` compute this? Input [N, C, H, W] without a gradient, weight [K, C, r, r]."""
    wanted = input.device.type == "cuda" and native_kernels.wanted() if _wanted is None else _wanted
    if not wanted or native_kernels.traced() or type(input) is not Tensor or input.requires_grad:
        return False
    return groups == 1 and filters.stride > 1 and weight.shape[1] <= _MOST_CHANNELS


def convolve(input: Tensor, weight: Tensor, bias: Tensor | None, filters: Filters) -> Tensor:
    """[N, C, H, W] -> the convolution's maps [N, K, H', W']."""
    if torch.is_autocast_enabled(input.device.type):  # before anything is copied
        input = input.to(torch.get_autocast_dtype(input.device.type))
    kernels, channels, side, _ = weight.shape
    step, padding = filters.stride, filters.padding
    across = -(-side // step)  # blocks that a filter covers
    rows, columns = filters.out_height - 1 + across, filters.out_width - 1 + across
    below = rows * step - input.shape[2] - padding  # less than nothing: pixels that no window reaches
    right = columns * step - input.shape[3] - padding
    pixels = F.pad(input, (padding, right, padding, below)).permute(0, 2, 3, 1)  # [N, H, W, C]
    blocks = pixels.reshape(-1, rows, step, columns, step, channels).transpose(2, 3).flatten(3)  # [N, H, W, s·s·C]
    more = across * step - side
    wide = F.pad(weight, (0, more, 0, more)).view(kernels, channels, across, step, across, step)
    parts = wide.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)  # [K, s·s·C, r, r]
    return F.conv2d(blocks.permute(0, 3, 1, 2), parts.contiguous(memory_format=torch.channels_last), bias)
