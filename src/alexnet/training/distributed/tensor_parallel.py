"""What the processes of a row compute and say to each other inside a network that is cut among them.

What the loss is computed from is the same on all processes of a row, so each of them has the whole gradient of the
logits. To sum it once more would make it as many times too large as there are processes: the naive mistake, which
``torch.distributed.nn.functional.all_reduce`` makes for who uses it here. ``tests`` name it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from alexnet.models.layers import Dropout
from alexnet.models.network import Layers, Network
from alexnet.training.distributed.world import World, share


class _Gather(torch.autograd.Function):
    """Pieces joined along ``dim``. Every process uses the whole for its own outputs, so gradients are summed back."""

    @staticmethod
    def forward(ctx: Any, piece: Tensor, world: World, dim: int, sizes: tuple[int, ...], name: str) -> Tensor:
        ctx.world, ctx.dim, ctx.sizes, ctx.name = world, dim, sizes, name
        return world.gather(piece, dim, sizes, name)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.world.scatter_sum(grads[0], ctx.dim, ctx.sizes, ctx.name), None, None, None, None


class _Sum(torch.autograd.Function):
    """The sum over the row. Its gradient is that of each addend, and every process has it already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, world: World, name: str) -> Tensor:
        return world.total(value, name)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None, None


class _Turn(torch.autograd.Function):
    """Rows of process ``source``, on all; their gradients summed and brought back to it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World, source: int, count: int, name: str) -> Tensor:
        ctx.world, ctx.source, ctx.shape, ctx.name = world, source, rows.shape, name
        there = rows if source == world.part else rows.new_empty(count, *rows.shape[1:])
        return world.broadcast(there, source, name)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        result = ctx.world.reduce(grads[0], ctx.source, ctx.name)
        mine = result if ctx.source == ctx.world.part else result.new_zeros(ctx.shape)
        return mine, None, None, None, None


class AllGatherActivations(nn.Module):
    """Where the processes of a row talk: pieces [N, C/P, …] -> [N, C, …]; counted under the layer that follows."""

    def __init__(self, world: World, sizes: tuple[int, ...], name: str) -> None:
        super().__init__()
        self.world, self.sizes, self.name = world, sizes, name

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = _Gather.apply(input, self.world, 1, self.sizes, self.name)
        return result.contiguous(memory_format=torch.channels_last) if result.dim() == 4 else result


class LastLinear(nn.Linear):
    """The last layer: [N, D/P] -> [N, K], each process with the columns of its inputs; the sums are added up."""

    def __init__(self, world: World, inputs: int, outputs: int, name: str) -> None:
        super().__init__(inputs, outputs)
        self.world, self.name = world, name

    def forward(self, input: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(nn.functional.linear(input, self.weight), self.world, self.name)
        return total + self.bias


class ShardedNetwork(Network):
    """What one process has of a network; names are those of the whole.

    ``apart``: images of this process in [n, …], logits of the whole row's out [N, K]; the loop sets N = ``count``.
    ``turns``: the features of one process after the other, not of all at once.
    """

    def __init__(self, whole: Network, layers: Layers, world: World, apart: bool, turns: bool) -> None:
        super().__init__(
            whole.name,
            layers,
            num_classes=whole.num_classes,
            in_channels=whole.in_channels,
            image_size=whole.image_size,
            features=whole.features,
            initial=whole.initial,
            towers=whole.towers,
        )
        self.world, self.apart, self.turns, self.count = world, apart, turns, 0

    def forward(self, input: Tensor) -> Tensor:
        if not self.apart:
            return self._all(input)
        layers = dict(self.named_children())
        at = list(layers).index("flatten") + 1
        for layer in list(layers.values())[:at]:
            input = layer(input)
        return self._behind(input, nn.Sequential(*list(layers.values())[at:]))

    def _all(self, input: Tensor) -> Tensor:
        for layer in self.children():
            input = layer(input)
        return input

    def _behind(self, own: Tensor, rest: nn.Sequential) -> Tensor:
        """Features [n, D] of this process's images -> logits [N, K] of the row's."""
        world = self.world
        dropouts = [layer for layer in rest if isinstance(layer, Dropout)]
        total = self.count
        sizes = tuple(len(share(total, part, world.parts)) for part in range(world.parts))
        if not self.turns:
            joined: Tensor = rest(_Gather.apply(own, world, 0, sizes, "fc6"))
            return joined
        first, result, before = 0, [], [layer.rows for layer in dropouts]
        generator = next((layer.generator for layer in dropouts if layer.generator), None)
        drawn = generator.get_state() if generator else None
        for source, size in enumerate(sizes):
            if generator is not None and drawn is not None:  # each turn takes its rows from the same masks
                generator.set_state(drawn)
            for layer, rows in zip(dropouts, before, strict=True):
                layer.rows = ((rows[0] if rows else 0) + first, rows[1] if rows else total)
            if size:
                result.append(rest(_Turn.apply(own, world, source, size, "fc6")))
            first += size
        return torch.cat(result)
