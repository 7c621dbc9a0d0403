"""Neighboring layers computed in one pass over memory, in training and inference; a copy of a network in bfloat16.

The results are those of the layers one by one. A ReLU is fused with the convolution before it or with the pool next to
it, an LRN with the max pool after it (in bfloat16 with the ReLU before it too), and all of these with a first
convolution that a kernel computes. Layers with hooks are not fused, and neither are subclasses, which may compute
something else.

One image at a time takes as long as the weights of the fully connected layers take to be read, on any processor. So
these are stored in bfloat16 everywhere (:mod:`alexnet.kernels.linear` multiplies them in float32 where it can), the
other layers only where the device multiplies bfloat16 faster. There, oneDNN multiplies more than one row faster than
the kernel, so large layers get a second, packed copy of their weights when a single row comes. A logit changes by about
0.4 % of the largest logit.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.kernels import backend, linear, linear_amx, linear_f32, onednn
from alexnet.kernels.backend import FilterCache, has_hooks
from alexnet.models import layers
from alexnet.models.layers import AveragePool, Convolution, LocalResponseNorm, MaxPool


def forward_fused(layers: Sequence[nn.Module], input: Tensor) -> tuple[int, Tensor]:
    """Compute the first layer, fused with those after it where possible.

    Args:
        layers: The layers of a network that are not computed yet; at least one.
        input: The input of the first of them.

    Returns:
        How many layers were computed, and the output of the last of them.
    """
    first, following = layers[0], layers[1:3]
    if type(first) is Convolution:
        count, relu, norm, pool = _block(layers)
        if pool is not None and first.fuses_pool(input, norm):
            return count, first(input, relu=relu, pool=pool, norm=norm)
        relu_goes_with_pool = len(following) > 1 and type(following[1]) in (MaxPool, AveragePool)
        relu_goes_with_pool |= count == 4 and _is_bf16(input)  # ReLU, LRN and pool in one pass, below
        if following and _fuses_relu(first, following[0]) and not relu_goes_with_pool:
            return 2, first(input, relu=True)
    elif type(first) is nn.Linear and linear_amx.fits(input, first.weight) and not has_hooks(first):
        return 1, linear_amx.linear(input, first.weight, first.bias)
    elif type(first) is nn.Linear and _multiplies_in_float32(input, first) and not has_hooks(first):
        return 1, backend.apply(linear_f32.linear, input, first.weight, first.bias)
    elif type(first) is LocalResponseNorm and following and type(max_pool := following[0]) is MaxPool:
        if max_pool.fuses_norm(input, first) and not (has_hooks(first) or has_hooks(max_pool)):
            return 2, max_pool(input, norm=first)
    elif type(first) is nn.ReLU and [type(layer) for layer in following] == [LocalResponseNorm, MaxPool]:
        lrn, after = following
        assert isinstance(lrn, LocalResponseNorm) and isinstance(after, MaxPool)
        if after.fuses_norm(input, lrn, relu=True) and _fuses_relu(lrn, first) and not has_hooks(after):
            return 3, after(input, relu=True, norm=lrn)
    elif type(first) is MaxPool and following and _fuses_relu(first, following[0]):
        return 2, first(input, relu=True)
    elif following and type(following[0]) in (MaxPool, AveragePool) and _fuses_relu(following[0], first):
        return 2, following[0](input, relu=True)
    return 1, first(input)


def _multiplies_in_float32(input: Tensor, layer: nn.Linear) -> bool:
    return linear.is_slow_under_autocast(input) or linear_f32.fits(input, layer.weight)


def _block(layers: Sequence[nn.Module]) -> tuple[int, bool, LocalResponseNorm | None, MaxPool | None]:
    """The layers from the first one, a convolution, up to the max pool that belongs to it.

    The ReLU is before or after the pool, the LRN between ReLU and pool.

    Returns:
        The number of layers, whether there is a ReLU, the LRN, and the pool; (0, False, None, None) if there is none.
    """
    for types in ((nn.ReLU, LocalResponseNorm, MaxPool), (nn.ReLU, MaxPool), (MaxPool, nn.ReLU), (MaxPool,)):
        following = layers[1 : 1 + len(types)]
        if len(following) == len(types) and [type(layer) for layer in following] == list(types):
            break
    else:
        return 0, False, None, None
    relu = next((layer for layer in following if isinstance(layer, nn.ReLU)), None)
    if any(map(has_hooks, (layers[0], *following))) or (relu is not None and not relu.inplace):
        return 0, False, None, None
    norm = next((layer for layer in following if isinstance(layer, LocalResponseNorm)), None)
    return 1 + len(following), relu is not None, norm, next(layer for layer in following if isinstance(layer, MaxPool))


def _is_bf16(input: Tensor) -> bool:
    """Whether a convolution of ``input`` returns bfloat16."""
    if not input.is_meta and torch.is_autocast_enabled(input.device.type):
        return torch.get_autocast_dtype(input.device.type) == torch.bfloat16
    return input.dtype == torch.bfloat16


def _fuses_relu(layer: nn.Module, relu: nn.Module) -> bool:
    return type(relu) is nn.ReLU and relu.inplace and not (has_hooks(layer) or has_hooks(relu))


class BF16Network(nn.Module):
    """A copy of a network for inference in bfloat16. It cannot be trained.

    Input float32 [N, C, H, W], output float32 [N, K].

    Args:
        network: The network to copy.
        all_layers: Whether all layers compute in bfloat16, or only the fully connected ones.
    """

    def __init__(self, network: nn.Module, all_layers: bool) -> None:
        super().__init__()
        self.all_layers = all_layers
        # Converted parts are handed to the copy as replacements, so that no second float32 copy is ever in memory.
        replacements = _bf16_tensors(network) if all_layers else {}
        modules = linear.large_layers(network) if all_layers else linear.linear_layers(network)
        replacements |= {id(module): _BF16Linear(module, replacements, one_row=all_layers) for module in modules}
        self.network = layers.cache_filters(layers.copy_with(network, replacements).eval().requires_grad_(False))

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.network(input.to(torch.bfloat16) if self.all_layers else input)
        return out.float()


def _bf16_tensors(network: nn.Module) -> dict[int, Any]:
    tensors: dict[int, Any] = {id(p): nn.Parameter(p.detach().to(torch.bfloat16)) for p in network.parameters()}
    return tensors | {id(b): b.to(torch.bfloat16) for b in network.buffers() if b.is_floating_point()}


class _BF16Linear(nn.Module):
    """A fully connected layer with bfloat16 weights, packed (:func:`linear.packed`) when the kernel first uses them.

    Args:
        layer: The layer to copy.
        converted: Tensors that exist in bfloat16 already, by the id of the original.
        one_row: Whether the kernel computes single rows only; the weights are kept as they are for all others.
    """

    def __init__(self, layer: nn.Linear, converted: dict[int, Any], one_row: bool) -> None:
        super().__init__()
        self.outputs, self.one_row = layer.out_features, one_row
        self.weight, self.bias = (_converted(tensor, converted) for tensor in (layer.weight, layer.bias))
        self.packed: nn.Parameter | None = None
        self.filter_cache = FilterCache()

    def forward(self, input: Tensor) -> Tensor:
        stored = self.packed if self.weight is None else self.weight
        assert stored is not None
        if (len(input) == 1 or not self.one_row) and linear.fits(x := input.float(), stored):
            out = linear.linear_bf16(x, self._packed(), self.bias, self.outputs)
        elif self.weight is not None and onednn.fits(input, self.weight):
            out = onednn.linear(input, self.weight, self.bias, self.filter_cache)
        else:
            weight = linear.unpacked(stored, self.outputs) if self.weight is None else stored
            out = F.linear(input.to(torch.bfloat16), weight, self.bias)
        return out.to(input.dtype)

    def _packed(self) -> Tensor:
        if self.packed is None:
            assert self.weight is not None
            with torch.inference_mode(False):
                self.packed = nn.Parameter(linear.packed(self.weight), requires_grad=False)
            if not self.one_row:
                self.weight = None
        return self.packed


def _converted(tensor: Tensor | None, converted: dict[int, Any]) -> nn.Parameter | None:
    if tensor is None or id(tensor) in converted:
        return converted.get(id(tensor))
    return nn.Parameter(tensor.detach().to(torch.bfloat16))
