"""Fully connected layers for inference on a CPU, computed by ``linear.c``: limited by the time to read the weights.

bfloat16 weights have half of the bytes. Inputs, multiplications and sums are float32, so only the weights are rounded.
PyTorch's own bfloat16 product, which rounds the inputs too, is the reference implementation.

For few rows, weights of features that are 0 are not read; after ReLUs, most features are 0. float32 weights must be
stored features first for that (:func:`store_features_first`); ``torch.nn.functional.linear`` is the reference
implementation. A non-finite weight has no effect where its feature is 0.
"""

import ctypes
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.kernels import backend, linear_f32, native_kernels
from alexnet.kernels.backend import has_hooks
from alexnet.kernels.native_kernels import LinearShape, pointer

_PANEL = 32  # outputs that are stored side by side
_MAX_FEW_ROWS = 4  # rows for which features that are 0 are skipped; FEW of linear.c
_MIN_OUTPUTS = 512  # outputs that are summed together in float32; WIDE of linear.c
_LARGE = 1 << 20  # weights from which reading them dominates


def fits(input: Tensor, weight: Tensor) -> bool:
    """Whether :func:`linear_bf16` computes this. Input [N, F] float32, weight bfloat16, packed or not; no gradient."""
    return weight.dtype == torch.bfloat16 and _usable() and _is_inference(input, weight)


def _usable() -> bool:
    return native_kernels.in_use("linear") and native_kernels.is_fast("linear")


def _is_inference(input: Tensor, weight: Tensor) -> bool:
    """Whether the input is float32 rows [N, F] of the weight's features in CPU memory, and needs no gradient."""
    if not (native_kernels.is_cpu_tensor(input) and native_kernels.is_cpu_tensor(weight)):
        return False
    if torch.is_autocast_enabled("cpu") or input.dtype != torch.float32:
        return False
    if input.dim() != 2 or not input.numel() or input.shape[1] != weight.shape[1]:
        return False
    return not (torch.is_grad_enabled() and input.requires_grad)


def is_slow_under_autocast(input: Tensor) -> bool:
    """Whether autocast is on and PyTorch multiplies bfloat16 number by number on this processor."""
    if not (native_kernels.is_cpu_tensor(input) and torch.is_autocast_enabled("cpu") and backend.enabled("linear")):
        return False
    if backend.is_traced_or_compiled() or torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    return not multiplies_bfloat16()


def multiplies_bfloat16() -> bool:
    """False where PyTorch multiplies bfloat16 matrices number by number: on an x86 processor without AVX-512."""
    cpu = torch.cpu.get_capabilities()
    return cpu.get("architecture") != "x86_64" or bool(cpu.get("avx512_f"))


def packed(weight: Tensor) -> Tensor:
    """[K, F] -> [⌈K/32⌉, F, 32]: outputs k and k + 16 of a panel are neighbors; missing outputs are zeros."""
    outputs, features = weight.shape
    panels = -(-outputs // _PANEL)
    out = weight.new_zeros(panels, features, _PANEL // 2, 2)
    for first in range(0, outputs, _PANEL // 2):  # in parts, to avoid a second copy of all weights
        part = weight[first : first + _PANEL // 2]
        out[first // _PANEL, :, : len(part), first % _PANEL * 2 // _PANEL] = part.T
    return out.flatten(2)


def unpacked(weight: Tensor, outputs: int) -> Tensor:
    """The inverse of :func:`packed`: [⌈K/32⌉, F, 32] -> [K, F], with K = ``outputs``."""
    panels, features, _ = weight.shape
    return weight.view(panels, features, -1, 2).permute(0, 3, 2, 1).reshape(-1, features)[:outputs]


def linear_bf16(input: Tensor, weight: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """[N, F] times :func:`packed` weights, plus bias [K] -> [N, K] in float32."""
    return _call("linear_bf16", input, weight, bias, outputs)


class FewRowsLinear(nn.Module):
    """Computes ``layer`` with its own weights; faster for few rows after :func:`store_features_first`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._layers = (layer,)  # in a tuple: the layer is a submodule of another network

    def forward(self, input: Tensor) -> Tensor:  # [N, F] -> [N, K]
        (layer,) = self._layers
        weight, bias = layer.weight, layer.bias
        if _fits_few_rows(input, weight) and not (len(input) == 1 and _is_dense(input)):
            return _call("linear_few_rows", input, weight, bias, layer.out_features)
        if _is_stored_features_first(input, weight) and linear_f32.is_product(input, weight):
            out = linear_f32.product(input.contiguous(), weight.t())
            return out if bias is None else out.add_(bias)
        return F.linear(input, weight, bias)


def linear_layers(model: nn.Module) -> Iterator[nn.Linear]:
    """The fully connected layers of ``model`` that are exactly ``nn.Linear`` and have no hooks."""
    yield from (module for module in model.modules() if type(module) is nn.Linear and not has_hooks(module))


def large_layers(model: nn.Module) -> Iterator[nn.Linear]:
    """The fully connected layers of ``model`` whose weights are worth storing features first."""
    for module in linear_layers(model):
        if module.weight.numel() >= _LARGE and module.out_features >= _MIN_OUTPUTS:
            yield module


def store_features_first(model: nn.Module) -> None:
    """Store the weights [K, F] of :func:`large_layers` as [F, K] in memory; their values and shape stay.

    Does nothing where ``linear.c`` is not in use. Layers are converted one by one, so one layer at a time is in
    memory twice.
    """
    if not _usable():
        return
    for layer in large_layers(model):
        weight = layer.weight
        if native_kernels.is_cpu_tensor(weight) and weight.dtype == torch.float32 and not _is_features_first(weight):
            with torch.inference_mode(False):
                weight.data = weight.detach().t().contiguous().t()  # stays the same nn.Parameter object


def _is_dense(input: Tensor) -> bool:
    """Whether less than an eighth of the features are 0: PyTorch is as fast then for a single row."""
    return int(input.count_nonzero()) * 8 > input.numel() * 7


def _is_features_first(weight: Tensor) -> bool:
    return weight.dim() == 2 and weight.stride() == (1, len(weight))


def _fits_few_rows(input: Tensor, weight: Tensor) -> bool:
    if len(weight) < _MIN_OUTPUTS or len(input) > _MAX_FEW_ROWS:
        return False
    return _usable() and _is_stored_features_first(input, weight)


def _is_stored_features_first(input: Tensor, weight: Tensor) -> bool:
    """Whether ``weight`` is in float32 as :func:`store_features_first` leaves it, and no gradient is needed."""
    if not _is_features_first(weight) or weight.dtype != torch.float32 or not _is_inference(input, weight):
        return False
    return not (torch.is_grad_enabled() and weight.requires_grad)


def _call(symbol: str, input: Tensor, weight: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    input, out = input.contiguous(), input.new_empty(len(input), outputs)
    shape = LinearShape(*input.shape, outputs, torch.get_num_threads())
    bias = None if bias is None else bias.float()
    scratch = input.new_empty(native_kernels.scratch_size("linear", "linear_scratch_size", shape))
    native_kernels.function("linear", symbol)(ctypes.byref(shape), *map(pointer, (input, weight, bias, out, scratch)))
    return out
