"""A first convolution with a stride, as a convolution of stride 1 on blocks of pixels: the same sums, reordered.

Example: 224×224 pixels of 3 colors become 57×57 blocks of 4×4 pixels with 48 channels; filters of 11×11, padded with
zeros to 12×12, become filters of 3×3 blocks. A GPU's tensor cores multiply 48 channels at once; 3 channels leave most
of them idle. ``torch.nn.functional.conv2d`` is the reference implementation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.kernels import backend
from alexnet.kernels.first_conv import ConvGeometry
from alexnet.kernels.tracing import is_traced

_MAX_CHANNELS = 4


def fits(input: Tensor, weight: Tensor, geometry: ConvGeometry, groups: int) -> bool:
    """Whether :func:`convolve` computes this. Input [N, C, H, W] without a gradient, weight [K, C, r, r].

    Mode "auto" rearranges on GPUs, mode "always" on every device.
    """
    mode = backend.mode_of("space_to_depth")
    if mode == "off" or (mode == "auto" and input.device.type != "cuda"):
        return False
    if is_traced() or type(input) is not Tensor or input.requires_grad:
        return False
    return groups == 1 and geometry.stride > 1 and weight.shape[1] <= _MAX_CHANNELS


def convolve(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """[N, C, H, W] -> the convolution's feature maps [N, K, H', W']."""
    if torch.is_autocast_enabled(input.device.type):  # before anything is copied
        input = input.to(torch.get_autocast_dtype(input.device.type))
    kernels, channels, size, _ = weight.shape
    stride, padding = geometry.stride, geometry.padding
    blocks_per_filter = -(-size // stride)
    rows, columns = geometry.out_height - 1 + blocks_per_filter, geometry.out_width - 1 + blocks_per_filter
    pad_bottom = rows * stride - input.shape[2] - padding  # negative: pixels that no window reads
    pad_right = columns * stride - input.shape[3] - padding
    pixels = F.pad(input, (padding, pad_right, padding, pad_bottom)).permute(0, 2, 3, 1)  # [N, H, W, C]
    blocks = pixels.reshape(-1, rows, stride, columns, stride, channels).transpose(2, 3).flatten(3)  # [N, H, W, s·s·C]
    pad_filter = blocks_per_filter * stride - size
    padded = F.pad(weight, (0, pad_filter, 0, pad_filter))
    filters = padded.view(kernels, channels, blocks_per_filter, stride, blocks_per_filter, stride)
    filters = filters.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)  # [K, s·s·C, r, r]
    return F.conv2d(blocks.permute(0, 3, 1, 2), filters.contiguous(memory_format=torch.channels_last), bias)
