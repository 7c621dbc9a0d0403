"""How a network is sharded over processes and gathered again, and its tensor-parallel layers.

All processes of a tensor-parallel (TP) group compute the same loss, so each has the complete gradient of the logits.
Summing that gradient over the group again, as ``torch.distributed.nn.functional.all_reduce`` does in its backward pass,
would make all gradients ``tp_size`` times too large.

``towers``: the scheme of 2012. Each of two processes has one tower of the convolutional layers and its half of the
fully connected layers; they exchange activations at conv3, fc6, fc7 and fc8. ``hybrid``: Krizhevsky 2014 ("One weird
trick for parallelizing convolutional neural networks", section 4). Each process has all convolutions and computes them
for its own images; from there on each process has its shard of the fully connected layers and computes all images.

A process has some of the outputs of a sharded fully connected layer, and needs all of its inputs. Of the last layer it
has the weights of its own inputs, and the logits are summed, since they are the fewest values to send.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alexnet.cuda_convnet import Files, GraphNetwork
from alexnet.errors import RecipeError
from alexnet.models.layers import AveragePool, Convolution, Dropout, Flatten, LocalResponseNorm, MaxPool, SpatialNorm
from alexnet.models.network import Layers, Network
from alexnet.recipe import Recipe
from alexnet.training.distributed.world import Group, World, partition


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


@dataclass(frozen=True)
class Layout:
    """How processes share a training.

    Attributes:
        name: ``data``, ``towers`` or ``hybrid``.
        split: Hybrid: number of processes that share the fully connected layers; 0: all.
        grad_accum_steps: Parts in which a process computes its rows of a batch.
        deterministic: Are sums formed in an order that does not depend on the number of processes?
    """

    name: str = "data"
    split: int = 0
    grad_accum_steps: int = 1
    deterministic: bool = False

    @property
    def tp_size(self) -> int:
        """Shards of the network; 0: as many as there are processes."""
        return {"data": 1, "towers": 2}.get(self.name, self.split)

    @property
    def hybrid(self) -> bool:
        """Does each process compute the convolutions of its own images?"""
        return self.name == "hybrid"

    def check(self, files: Files | None, recipe: Recipe) -> None:
        """Raise :class:`RecipeError` for a combination that is not supported."""
        if self.grad_accum_steps < 1:
            raise RecipeError(f"--grad-accum-steps is {self.grad_accum_steps}", "at least 1")
        if self.split < 0 or (self.split and not self.hybrid):
            raise RecipeError(f"--split is {self.split} with --parallel {self.name}", "0, or with hybrid at least 1")
        if self.grad_accum_steps > 1 and self.hybrid:
            raise RecipeError(f"--grad-accum-steps is not supported with --parallel {self.name}", "", "leave it out")
        if self.deterministic and (self.name != "data" or self.grad_accum_steps > 1 or files is not None):
            other = "--layers" if files is not None else f"--parallel {self.name}"
            other = "--grad-accum-steps" if self.grad_accum_steps > 1 else other
            raise RecipeError(f"--deterministic is not supported with {other}", "", "leave one out")
        if self.deterministic and recipe.compile:
            raise RecipeError("--deterministic is not supported with --compile", "", "leave one out")
        if recipe.optimizer == "lars" and self.name != "data":
            problem = f"--optimizer lars needs the norm of whole layers, which --parallel {self.name} shards"
            raise RecipeError(problem, "--parallel data", "or another --optimizer")
        if files is not None and (self.name != "data" or self.grad_accum_steps > 1):
            raise RecipeError(
                "a network of layer files supports neither --parallel nor --grad-accum-steps", "", "leave them out"
            )


SINGLE_PROCESS = Layout()


class ShardSpec(NamedTuple):
    """How a parameter is sharded: along dimension ``dim``, into parts of ``sizes``."""

    dim: int
    sizes: tuple[int, ...]


class ModelSharding:
    """The shard of a network that one process of ``world`` has.

    Attributes:
        network: The network of this process.
        specs: How each sharded parameter is sharded, by name; empty if the network is not sharded.

    Raises:
        RecipeError: For networks that cannot be sharded in this layout.
    """

    def __init__(self, network: Network, layout: Layout, world: World) -> None:
        self.world, self.layout, self.network = world, layout, network
        self.specs: dict[str, ShardSpec] = {}
        self._fully_connected: set[str] = set()  # parameters after the convolutional layers
        if world.tp_size > 1:
            if layout.name == "towers" and (isinstance(network, GraphNetwork) or network.towers != 2):
                raise RecipeError(f"--parallel towers: {network.name} has no two towers", "alexnet or alexnet_2012")
            self.network = self._shard_network(network)

    def gradient_group(self, name: str) -> Group:
        """The group over which a parameter's gradient is summed: the processes with the same shard and other images."""
        return "world" if self.layout.hybrid and name not in self._fully_connected else "dp"

    def gradient_norm(self, network: nn.Module) -> Tensor | None:
        """The norm of the whole network's gradient, a scalar; None where the network is not sharded."""
        if not self.specs:
            return None
        grads = [(name in self.specs, p.grad) for name, p in network.named_parameters() if p.grad is not None]
        sharded, replicated = (
            nn.utils.get_total_norm([g for is_sharded, g in grads if is_sharded == kind]).square().to(self.world.device)
            for kind in (True, False)
        )
        return (self.world.all_reduce_tp(sharded) + replicated).sqrt()

    def gather_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of shards -> that of the whole network. All processes of the TP group must take part."""
        return {name: self._gather(name, value) for name, value in state.items()}

    def shard_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the whole network -> that of this process's shard."""
        return {name: self._shard(name, value) for name, value in state.items()}

    def gather_optimizer(self, optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Any]:
        """The state dict that the optimizer of the whole network would have."""
        content = optimizer.state_dict()
        if not self.specs:
            return content
        return content | {"state": self._map_state(content["state"], optimizer, network, self._gather)}

    def shard_optimizer(
        self, content: dict[str, Any], optimizer: torch.optim.Optimizer, network: nn.Module
    ) -> dict[str, Any]:
        """The inverse of :meth:`gather_optimizer`."""
        if not self.specs:
            return content
        return content | {"state": self._map_state(content["state"], optimizer, network, self._shard)}

    def _map_state(
        self, state: dict[int, Any], optimizer: Any, network: nn.Module, function: Callable[[str, Tensor], Tensor]
    ) -> Any:
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        return {
            number: {
                key: function(order[number], value) if isinstance(value, Tensor) and value.dim() else value
                for key, value in values.items()
            }
            for number, values in state.items()
        }

    def _gather(self, name: str, value: Tensor) -> Tensor:
        spec = self.specs.get(name)
        return value if spec is None else self.world.all_gather_tp(value.detach(), *spec).contiguous()

    def _shard(self, name: str, value: Tensor) -> Tensor:
        spec = self.specs.get(name)
        return value if spec is None else torch.split(value, list(spec.sizes), spec.dim)[self.world.tp_rank]

    # Building

    def _shard_network(self, network: Network) -> Network:
        children = list(network.named_children())
        linear = [name for name, layer in children if isinstance(layer, nn.Linear)]
        if len(linear) < 2 or "flatten" not in dict(children):
            raise RecipeError(f"{network.name} has no fully connected layers to shard", "a network like alexnet")
        flatten = [name for name, _ in children].index("flatten")
        self._fully_connected = {f"{name}.{kind}" for name, _ in children[flatten:] for kind in ("weight", "bias")}
        layers: Layers = []
        sizes: tuple[int, ...] = ()  # of the shards of the activations; () where every process has all of them
        for index, (name, layer) in enumerate(children):
            if index < flatten and self.layout.name == "towers":
                shard, sizes = self._convolutional(name, layer, sizes)
            elif index < flatten:
                shard, sizes = [layer], ()
            elif isinstance(layer, nn.Linear):
                shard, sizes = self._linear(name, layer, sizes, last=name == linear[-1])
            elif isinstance(layer, Flatten):
                shard, sizes = [layer], tuple(size * layer.side**2 for size in sizes)
            else:
                shard = [self._dropout(layer, sizes) if isinstance(layer, Dropout) else layer]
            layers += [(f"gather_{name}", shard[0]), (name, shard[1])] if len(shard) > 1 else [(name, shard[0])]
        return ShardedNetwork(network, layers, self.world, hybrid=self.layout.hybrid)

    def _convolutional(
        self, name: str, layer: nn.Module, sizes: tuple[int, ...]
    ) -> tuple[list[nn.Module], tuple[int, ...]]:
        """A layer of one tower, after an all_gather if it sees both towers; and the channels of each shard's output."""
        if isinstance(layer, LocalResponseNorm) and layer.towers == 2:
            return [LocalResponseNorm(1, layer.size, layer.alpha, layer.beta, layer.k)], sizes
        if isinstance(layer, nn.ReLU | MaxPool | AveragePool | SpatialNorm):
            return [layer], sizes
        if not isinstance(layer, Convolution) or layer.out_channels % 2 or layer.groups not in (1, 2):
            raise RecipeError(f"--parallel towers cannot shard layer {name}", "a layer of two towers")
        window, out = layer.window, (layer.out_channels // 2,) * 2
        shard = Convolution(
            layer.in_channels // layer.groups, out[0], window.kernel, window.stride, window.padding, ceil=window.ceil
        )
        self._copy_shard(name, layer, shard, {"weight": ShardSpec(0, out), "bias": ShardSpec(0, out)})
        gather = [AllGatherActivations(self.world, sizes, name)] if sizes and layer.groups == 1 else []
        return [*gather, shard], out

    def _linear(
        self, name: str, layer: nn.Linear, sizes: tuple[int, ...], *, last: bool
    ) -> tuple[list[nn.Module], tuple[int, ...]]:
        rank, count = self.world.tp_rank, self.world.tp_size
        if last:
            row_parallel = RowParallelLinear(self.world, sizes[rank], layer.out_features, name)
            self._copy_shard(name, layer, row_parallel, {"weight": ShardSpec(1, sizes)})
            return [row_parallel], ()
        out = tuple(len(partition(layer.out_features, i, count)) for i in range(count))
        shard = nn.Linear(layer.in_features, out[rank])
        self._copy_shard(name, layer, shard, {"weight": ShardSpec(0, out), "bias": ShardSpec(0, out)})
        return ([AllGatherActivations(self.world, sizes, name)] if sizes else []) + [shard], out

    def _dropout(self, layer: Dropout, sizes: tuple[int, ...]) -> Dropout:
        """Dropout that draws the mask of the whole layer and uses the columns of this process."""
        shard = Dropout(layer.p)
        if sizes:
            shard.columns = sum(sizes[: self.world.tp_rank]), sum(sizes)
        return shard

    def _copy_shard(self, name: str, layer: nn.Module, shard: nn.Module, specs: dict[str, ShardSpec]) -> None:
        self.specs |= {f"{name}.{kind}": spec for kind, spec in specs.items()}
        with torch.no_grad():
            for kind, parameter in shard.named_parameters():
                parameter.copy_(self._shard(f"{name}.{kind}", layer.get_parameter(kind)))
