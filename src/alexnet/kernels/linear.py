"""Fully connected layers for answers on a processor, compiled from ``thin.c``: they take as long as their weights take
to be read.

Weights in bfloat16 have half of the bytes. Inputs, multiplications and sums are float32, so only the weights are
rounded.
PyTorch's own product in bfloat16, which rounds the inputs too, is the reference implementation: ``kernel.use(False)``.

Of a few rows, weights of features that are 0 are not read: behind ReLUs those are most. For weights in float32 that
needs them to lie features first (:func:`lay`); PyTorch's product is the reference implementation. Weights that are
no finite numbers
do not show where a feature is 0.
"""

import ctypes
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.kernels import native_kernels

_PANEL = 32  # outputs that lie side by side in memory
_FEW = 4  # rows; thin.c has the same number
_WIDE = 512  # outputs that are summed together in float32; thin.c has the same number
_LARGE = 1 << 20  # weights of a layer that takes long to be read


def fits(input: Tensor, weight: Tensor) -> bool:
    """Will :func:`product` compute this? Input [N, F] in float32, weight bfloat16, of either form; no gradient."""
    return weight.dtype == torch.bfloat16 and _usable() and _predictions(input, weight)


def _usable() -> bool:
    return native_kernels.in_use("thin") and bool(native_kernels.library("thin").thin_pays())


def _predictions(input: Tensor, weight: Tensor) -> bool:
    """Rows [N, F] in float32 of the weight's features, in a processor's memory, and no gradient asked for?"""
    if not (native_kernels.plain(input) and native_kernels.plain(weight)) or torch.is_autocast_enabled("cpu"):
        return False
    if input.dtype != torch.float32 or input.dim() != 2 or not input.numel() or input.shape[1] != weight.shape[1]:
        return False
    return not (torch.is_grad_enabled() and input.requires_grad)


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
    return _call("thin_product", input, weight, bias, outputs)


class FewRows(nn.Module):
    """Answers as ``layer``, of its own weights, and faster for a few rows where :func:`lay` laid those."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._layers = (layer,)  # a part of its own network, not of the one that this is in

    def forward(self, input: Tensor) -> Tensor:  # [N, F] -> [N, K]
        (layer,) = self._layers
        weight, bias = layer.weight, layer.bias
        if _fits_long(input, weight) and not (len(input) == 1 and _full(input)):
            return _call("thin_long", input, weight, bias, layer.out_features)
        return F.linear(input, weight, bias)


def large(model: nn.Module) -> Iterator[nn.Linear]:
    """The fully connected layers of ``model`` whose weights are worth to be laid features first."""
    for module in model.modules():
        if (
            type(module) is nn.Linear
            and not native_kernels.hooked(module)
            and module.weight.numel() >= _LARGE
            and module.out_features >= _WIDE
        ):
            yield module


def lay(model: nn.Module) -> None:
    """Give the :func:`large` layers of ``model`` weights [K, F] of the same values that lie in memory as [F, K].

    Where ``thin.c`` will multiply by them. One after the other: each is there twice for a moment.
    """
    if not _usable():
        return
    for layer in large(model):
        weight = layer.weight
        if native_kernels.plain(weight) and weight.dtype == torch.float32 and not _features_first(weight):
            with torch.inference_mode(False):
                weight.data = weight.detach().t().contiguous().t()  # the same parameter for whoever holds it


def _full(input: Tensor) -> bool:
    """Are less than an eighth of the features 0? All weights of a single row are read as soon by PyTorch."""
    return int(input.count_nonzero()) * 8 > input.numel() * 7


def _features_first(weight: Tensor) -> bool:
    return weight.dim() == 2 and weight.stride() == (1, len(weight))


def _fits_long(input: Tensor, weight: Tensor) -> bool:
    if not _features_first(weight) or weight.dtype != torch.float32 or len(weight) < _WIDE or len(input) > _FEW:
        return False
    return _usable() and _predictions(input, weight) and not (torch.is_grad_enabled() and weight.requires_grad)


def _call(name: str, input: Tensor, weight: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    input, out = input.contiguous(), input.new_empty(len(input), outputs)
    shape = _Shape(*input.shape, outputs, torch.get_num_threads())
    own, scratch = None if bias is None else bias.float(), input.new_empty(_room(shape))
    native_kernels.function("thin", name)(
        ctypes.byref(shape), *(native_kernels.at(t) for t in (input, weight, own, out, scratch))
    )
    return out


def _room(shape: "_Shape") -> int:
    """Numbers of the memory that it works in."""
    room = native_kernels.library("thin").thin_room
    room.restype = ctypes.c_int64
    return int(room(ctypes.byref(shape)))


class _Shape(ctypes.Structure):
    """``Shape`` of ``thin.c``."""

    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "features", "outputs", "threads")]
