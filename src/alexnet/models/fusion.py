"""Which neighboring layers of a network are computed in one pass over memory, and when not.

The numbers are those of the layers one by one: a ReLU goes with the convolution before it or with the pool next to
it, a
norm with the max pool behind it, and all of these with a first convolution that a kernel computes. Layers with hooks
stay alone, and so do layers of subclasses, which may compute something else.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from alexnet.kernels import native_kernels
from alexnet.models.layers import AveragePool, Convolution, LocalResponseNorm, MaxPool


def take(layers: Sequence[nn.Module], input: Tensor) -> tuple[int, Tensor]:
    """How many of the layers were computed from ``input``, one at least, and what came out of the last of them."""
    first, following = layers[0], layers[1:3]
    if type(first) is Convolution:
        count, relu, norm, pool = _pooled(layers)
        if pool is not None and first.pools(input, norm):
            return count, first(input, relu=relu, pool=pool, norm=norm)
        pool_takes_it = len(following) > 1 and type(following[1]) in (MaxPool, AveragePool)
        if following and _joins(first, following[0]) and not pool_takes_it:
            return 2, first(input, relu=True)
    elif type(first) is LocalResponseNorm and following and type(behind := following[0]) is MaxPool:
        if behind.follows(input, first) and not (native_kernels.hooked(first) or native_kernels.hooked(behind)):
            return 2, behind(input, norm=first)
    elif type(first) is MaxPool and following and _joins(first, following[0]):
        return 2, first(input, relu=True)
    elif following and type(following[0]) in (MaxPool, AveragePool) and _joins(following[0], first):
        return 2, following[0](input, relu=True)
    return 1, first(input)


def _pooled(layers: Sequence[nn.Module]) -> tuple[int, bool, LocalResponseNorm | None, MaxPool | None]:
    """Layers up to a max pool behind the first one: how many, is there a ReLU, a norm, the pool.

    A ReLU comes before or behind the pool; a norm between ReLU and pool.
    """
    for kinds in ((nn.ReLU, LocalResponseNorm, MaxPool), (nn.ReLU, MaxPool), (MaxPool, nn.ReLU), (MaxPool,)):
        behind = layers[1 : 1 + len(kinds)]
        if len(behind) == len(kinds) and [type(layer) for layer in behind] == list(kinds):
            break
    else:
        return 0, False, None, None
    relu = next((layer for layer in behind if isinstance(layer, nn.ReLU)), None)
    if any(map(native_kernels.hooked, (layers[0], *behind))) or (relu is not None and not relu.inplace):
        return 0, False, None, None
    norm = next((layer for layer in behind if isinstance(layer, LocalResponseNorm)), None)
    return 1 + len(behind), relu is not None, norm, next(layer for layer in behind if isinstance(layer, MaxPool))


def _joins(layer: nn.Module, relu: nn.Module) -> bool:
    return type(relu) is nn.ReLU and relu.inplace and not (native_kernels.hooked(layer) or native_kernels.hooked(relu))
