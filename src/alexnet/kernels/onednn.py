"""Convolutions and fully connected layers in bfloat16 for inference: oneDNN with weights in its own order.

PyTorch hands weights to oneDNN in PyTorch's order, and oneDNN reorders them in each call, which takes half of the time
of a convolution of one image. Here they are reordered once, and a ReLU is computed with the convolution. The operations
are those that ``torch.compile`` uses for frozen weights. ``torch.nn.functional.conv2d`` and ``linear`` are the
reference implementations, with the same bits.
"""

import functools

import torch
from torch import Tensor

from alexnet.kernels import backend, native_kernels
from alexnet.kernels.backend import FilterCache


def fits(input: Tensor, weight: Tensor) -> bool:
    """Whether :func:`convolve` or :func:`linear` computes this.

    Args:
        input: [N, C, H, W] or [N, F], bfloat16, in CPU memory.
        weight: [K, C/groups, r, r] or [K, F], bfloat16; neither needs a gradient.
    """
    if not backend.enabled("onednn") or backend.is_traced_or_compiled():
        return False
    if not (backend.has_amx() and torch.backends.mkldnn.enabled):
        return False
    if not (native_kernels.is_cpu_tensor(input) and native_kernels.is_cpu_tensor(weight) and input.numel()):
        return False
    if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
        return False
    return input.dtype == weight.dtype == torch.bfloat16


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: tuple[int, int, int],
    relu: bool,
    cache: FilterCache,
) -> Tensor:
    """[N, C, H, W] -> [N, K, H', W'], channels-last in memory; geometry: stride, padding, groups."""
    stride, padding, groups = geometry
    shape, steps, pads, dilation = list(input.shape), [stride, stride], [padding, padding], [1, 1]
    # The order that oneDNN wants depends on the input size; weights in another order are reordered in every call.
    reorder = functools.partial(
        torch.ops.mkldnn._reorder_convolution_weight,
        padding=pads,
        stride=steps,
        dilation=dilation,
        groups=groups,
        input_size=shape,
    )
    filters = cache.get(weight, ("onednn", *shape), reorder)
    input = input.contiguous(memory_format=torch.channels_last)
    attribute = "relu" if relu else "none"
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(
        input, filters, bias, pads, steps, dilation, groups, attribute, [], ""
    )
    return out


def linear(input: Tensor, weight: Tensor, bias: Tensor | None, cache: FilterCache) -> Tensor:
    """[N, F] -> [N, K]."""
    filters = cache.get(weight, "onednn", torch.ops.mkldnn._reorder_linear_weight)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(input, filters, bias, "none", [], "")
    return out
