"""Fully connected layers with weights in bfloat16 on a processor, compiled from ``thin.c``: half of the bytes to read.

Inputs, products and sums are float32, so only the weights are rounded. PyTorch's own product in bfloat16, which rounds
the inputs too, is the slow twin: ``kernel.use(False)``. Of a few rows, weights of features that are 0 are not read, so
weights that are no finite numbers do not show there.
"""

import ctypes

import torch
from torch import Tensor

from alexnet.models import kernel

_PANEL = 32  # outputs that lie side by side in memory


def fits(input: Tensor, weight: Tensor) -> bool:
    """Will :func:`product` compute this? Input [N, F] in float32, weight bfloat16, of either form; no gradient."""
    if not (kernel.in_use("thin") and kernel.plain(input) and kernel.plain(weight)) or torch.is_autocast_enabled("cpu"):
        return False
    if input.dtype != torch.float32 or weight.dtype != torch.bfloat16 or input.dim() != 2 or not input.numel():
        return False
    return not (torch.is_grad_enabled() and input.requires_grad) and bool(kernel.library("thin").thin_pays())


def packed(weight: Tensor) -> Tensor:
    """[K, F] -> [⌈K/32⌉, F, 32], in which outputs k and k + 16 of a panel are neighbors; zeros where there are none."""
    outputs, features = weight.shape
    panels = -(-outputs // _PANEL)
    out = weight.new_zeros(panels, features, _PANEL // 2, 2)
    for first in range(0, outputs, _PANEL // 2):  # piece by piece: no second copy of all is made
        part = weight[first : first + _PANEL // 2]
        out[first // _PANEL, :, : len(part), first % _PANEL * 2 // _PANEL] = part.T
    return out.flatten(2)


def unpacked(weight: Tensor, outputs: int) -> Tensor:
    """The [K, F] of which :func:`packed` made this."""
    panels, features, _ = weight.shape
    return weight.view(panels, features, -1, 2).permute(0, 3, 2, 1).reshape(-1, features)[:outputs]


def product(input: Tensor, weight: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """[N, F] times :func:`packed` weights, plus bias [K] in float32 -> [N, K]."""
    input, out = input.contiguous(), input.new_empty(len(input), outputs)
    shape = _Shape(*input.shape, outputs, torch.get_num_threads())
    own, scratch = None if bias is None else bias.float(), input.new_empty(_room(shape))
    kernel.function("thin", "thin_product")(
        ctypes.byref(shape), *(kernel.at(t) for t in (input, weight, own, out, scratch))
    )
    return out


def _room(shape: "_Shape") -> int:
    """Numbers of the memory that it works in."""
    room = kernel.library("thin").thin_room
    room.restype = ctypes.c_int64
    return int(room(ctypes.byref(shape)))


class _Shape(ctypes.Structure):
    """``Shape`` of ``thin.c``."""

    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "features", "outputs", "threads")]
