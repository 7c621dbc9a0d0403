"""Which neighboring layers of a network are computed in one pass over memory.

The results are those of the layers one by one. A ReLU is fused with the convolution before it or with the pool next to
it, an LRN with the max pool after it, and all of these with a first convolution that a kernel computes. Layers with
hooks are not fused, and neither are subclasses, which may compute something else.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from alexnet.kernels.tracing import has_hooks
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
        if following and _fuses_relu(first, following[0]) and not relu_goes_with_pool:
            return 2, first(input, relu=True)
    elif type(first) is LocalResponseNorm and following and type(max_pool := following[0]) is MaxPool:
        if max_pool.fuses_norm(input, first) and not (has_hooks(first) or has_hooks(max_pool)):
            return 2, max_pool(input, norm=first)
    elif type(first) is MaxPool and following and _fuses_relu(first, following[0]):
        return 2, first(input, relu=True)
    elif following and type(following[0]) in (MaxPool, AveragePool) and _fuses_relu(following[0], first):
        return 2, following[0](input, relu=True)
    return 1, first(input)


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


def _fuses_relu(layer: nn.Module, relu: nn.Module) -> bool:
    return type(relu) is nn.ReLU and relu.inplace and not (has_hooks(layer) or has_hooks(relu))
