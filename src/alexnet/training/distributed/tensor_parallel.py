"""Tensor-parallel layers, and the network made of them that one process has.

All processes of a tensor-parallel (TP) group compute the same loss, so each has the complete gradient of the logits.
Summing that gradient over the group again, as ``torch.distributed.nn.functional.all_reduce`` does in its backward pass,
would make all gradients ``tp_size`` times too large.
"""

from typing import Any

import torch
from torch import Tensor, nn

from alexnet.models.network import Layers, Network
from alexnet.training.distributed.world import World, partition


class _AllGather(torch.autograd.Function):
    """Shards joined along ``dim``. Every process uses the result for its own outputs, so gradients are summed."""

    @staticmethod
    def forward(ctx: Any, shard: Tensor, world: World, dim: int, sizes: tuple[int, ...], name: str) -> Tensor:
        ctx.world, ctx.dim, ctx.sizes, ctx.name = world, dim, sizes, name
        return world.all_gather_tp(shard, dim, sizes, name)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.world.reduce_scatter_tp(grads[0], ctx.dim, ctx.sizes, ctx.name), None, None, None, None


class _AllReduce(torch.autograd.Function):
    """The sum over the TP group. Its gradient is that of each addend, and every process has it already."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World, name: str) -> Tensor:
        return world.all_reduce_tp(tensor, name)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None, None


class AllGatherActivations(nn.Module):
    """Activations of all shards: [N, C/P, …] -> [N, C, …]. Bytes are counted under ``name``, the layer that follows."""

    def __init__(self, world: World, sizes: tuple[int, ...], name: str) -> None:
        super().__init__()
        self.world, self.sizes, self.name = world, sizes, name

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = _AllGather.apply(input, self.world, 1, self.sizes, self.name)
        return result.contiguous(memory_format=torch.channels_last) if result.dim() == 4 else result


class RowParallelLinear(nn.Linear):
    """The last layer, [N, D/P] -> [N, K]: each process has the weights of its own inputs, and the logits are summed."""

    def __init__(self, world: World, inputs: int, outputs: int, name: str) -> None:
        super().__init__(inputs, outputs)
        self.world, self.name = world, name

    def forward(self, input: Tensor) -> Tensor:
        logits: Tensor = _AllReduce.apply(nn.functional.linear(input, self.weight), self.world, self.name)
        return logits + self.bias


class ShardedNetwork(Network):
    """One process's shard of a network; the names of its layers are those of the whole network.

    In hybrid parallelism its inputs are the images of this process, [n, …], and its outputs the logits of the whole TP
    group, [N, K]. The training loop sets N: ``batch_rows``.
    """

    def __init__(self, whole: Network, layers: Layers, world: World, *, hybrid: bool) -> None:
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
        self.world, self.hybrid, self.batch_rows = world, hybrid, 0

    def forward(self, input: Tensor) -> Tensor:
        for name, layer in self.named_children():
            input = layer(input)
            if self.hybrid and name == "flatten":  # [n, D] -> [N, D]
                sizes = tuple(
                    len(partition(self.batch_rows, rank, self.world.tp_size)) for rank in range(self.world.tp_size)
                )
                input = _AllGather.apply(input, self.world, 0, sizes, "fc6")
        return input
