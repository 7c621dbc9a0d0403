"""How a network is cut among processes, and put together again.

``towers``: the scheme of 2012. Each of two processes has one tower of the convolutional layers and its half of the
fully connected ones; they talk at conv3, fc6, fc7 and fc8. ``hybrid``: Krizhevsky 2014 ("One weird trick", section 4).
Each process has all convolutions and sees its own images; behind them every process has its slice of the fully
connected layers and sees the images of all, at once, or ``hybrid-turns``: those of one process after the other.

In a fully connected layer that is cut each process has some of its outputs, and needs all inputs; in the last one it
has the weights of its own inputs, and the logits are summed, since they are the fewest numbers to send.
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
from alexnet.training.distributed.tensor_parallel import AllGatherActivations, LastLinear, ShardedNetwork
from alexnet.training.distributed.world import World, share


@dataclass(frozen=True)
class Layout:
    """How processes share a training.

    ``name`` is data, towers, hybrid or hybrid-turns; ``split`` the processes among which a hybrid's fully connected
    layers are cut (0: all); ``accumulate`` the pieces in which a process goes through its share of a batch.
    """

    name: str = "data"
    split: int = 0
    accumulate: int = 1

    @property
    def parts(self) -> int:
        """Pieces of the network: 1, or 2, or for a hybrid ``split``."""
        return {"data": 1, "towers": 2}.get(self.name, self.split)

    @property
    def apart(self) -> bool:
        """Does each process cut images of its own?"""
        return self.name.startswith("hybrid")

    def check(self, files: Files | None, recipe: Recipe) -> None:
        """Raise :class:`RecipeError` for what does not go together."""
        if self.accumulate < 1:
            raise RecipeError(f"--grad-accum-steps is {self.accumulate}", "at least 1")
        if self.split < 0 or (self.split and not self.apart):
            raise RecipeError(f"--split is {self.split} with --parallel {self.name}", "0, or with hybrid at least 1")
        if self.accumulate > 1 and self.apart:
            raise RecipeError(f"--grad-accum-steps does not go with --parallel {self.name}", "", "leave it out")
        if recipe.optimizer == "lars" and self.name != "data":
            what = f"--optimizer lars needs the length of whole layers, which --parallel {self.name} cuts"
            raise RecipeError(what, "--parallel data", "or another --optimizer")
        if files is not None and (self.name != "data" or self.accumulate > 1):
            raise RecipeError("a layer file trains in one process, and its batch in one piece", "--parallel data")


SINGLE_PROCESS = Layout()


class ShardSpec(NamedTuple):
    """What a process has of a parameter: dimension ``dim`` is cut into ``sizes``."""

    dim: int
    sizes: tuple[int, ...]


class ModelSharding:
    """A network as one process of ``world`` has it: ``network``, and ``pieces``, what is cut of which parameter.

    Raises :class:`RecipeError` for networks that can not be cut so.
    """

    def __init__(self, network: Network, layout: Layout, world: World) -> None:
        self.world, self.layout, self.pieces, self.network = world, layout, dict[str, ShardSpec](), network
        if world.parts > 1:
            if layout.name == "towers" and (isinstance(network, GraphNetwork) or network.towers != 2):
                raise RecipeError(f"--parallel towers: {network.name} has no two towers", "alexnet or alexnet_2012")
            self.network = self._cut(network)

    def across(self, name: str) -> str:
        """Among whom a parameter's gradient is summed: those who have the same piece, and all whose images differ."""
        return "world" if self.layout.apart and name not in self._behind else "column"

    def norm(self, network: nn.Module) -> Tensor | None:
        """The length of the whole network's gradient; None where the network is not cut."""
        if not self.pieces:
            return None
        results = [(name in self.pieces, p.grad) for name, p in network.named_parameters() if p.grad is not None]
        cut, whole = ([g for is_cut, g in results if is_cut == which] for which in (True, False))
        squares = [nn.utils.get_total_norm(some).square() for some in (cut, whole)]
        return (self.world.total(squares[0].to(self.world.device)) + squares[1].to(self.world.device)).sqrt()

    def joined(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters by name, put together over the row. All of its processes take part."""
        return {name: self._join(name, value) for name, value in values.items()}

    def cut(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole parameters by name -> this process's pieces."""
        return {name: self._take(name, value) for name, value in values.items()}

    def joined_optimizer(self, optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Any]:
        """The optimizer's state as it would be of the whole network."""
        content = optimizer.state_dict()
        if not self.pieces:
            return content
        return content | {"state": self._each(content["state"], optimizer, network, self._join)}

    def cut_optimizer(
        self, content: dict[str, Any], optimizer: torch.optim.Optimizer, network: nn.Module
    ) -> dict[str, Any]:
        """The inverse of :meth:`joined_optimizer`."""
        if not self.pieces:
            return content
        return content | {"state": self._each(content["state"], optimizer, network, self._take)}

    def _each(self, state: dict[int, Any], optimizer: Any, network: nn.Module, do: Callable[..., Tensor]) -> Any:
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        return {
            number: {k: do(order[number], v) if isinstance(v, Tensor) and v.dim() else v for k, v in result.items()}
            for number, result in state.items()
        }

    def _join(self, name: str, value: Tensor) -> Tensor:
        piece = self.pieces.get(name)
        return value if piece is None else self.world.gather(value.detach(), *piece).contiguous()

    def _take(self, name: str, value: Tensor) -> Tensor:
        piece = self.pieces.get(name)
        return value if piece is None else torch.split(value, list(piece.sizes), piece.dim)[self.world.part]

    # Building

    def _cut(self, network: Network) -> Network:
        layers: Layers = []
        children = list(network.named_children())
        linear = [name for name, layer in children if isinstance(layer, nn.Linear)]
        if len(linear) < 2 or "flatten" not in dict(children):
            raise RecipeError(f"{network.name} has no fully connected layers to cut", "a network like alexnet")
        at = [name for name, _ in children].index("flatten")
        self._behind = {f"{name}.{kind}" for name, _ in children[at:] for kind in ("weight", "bias")}
        sizes: tuple[int, ...] = ()  # of the pieces of what comes next; () where every process has all of it
        for number, (name, layer) in enumerate(children):
            if number < at:
                made, sizes = self._convolutional(name, layer, sizes) if self.layout.name == "towers" else ([layer], ())
            elif isinstance(layer, nn.Linear):
                made, sizes = self._linear(name, layer, sizes, last=name == linear[-1])
            elif isinstance(layer, Flatten):
                sizes = tuple(size * layer.side**2 for size in sizes)
                made = [layer]
            else:
                made = [self._dropout(layer, sizes) if isinstance(layer, Dropout) else layer]
            layers += [(f"meet_{name}", made[0]), (name, made[1])] if len(made) > 1 else [(name, made[0])]
        return ShardedNetwork(network, layers, self.world, self.layout.apart, self.layout.name == "hybrid-turns")

    def _convolutional(self, name: str, layer: nn.Module, sizes: tuple[int, ...]) -> tuple[list[nn.Module], Any]:
        """A layer of one tower, behind where the towers meet, if they do; and the channels of each that come out."""
        if isinstance(layer, LocalResponseNorm) and layer.towers == 2:
            return [LocalResponseNorm(1, layer.size, layer.alpha, layer.beta, layer.k)], sizes
        if isinstance(layer, nn.ReLU | MaxPool | AveragePool | SpatialNorm):
            return [layer], sizes
        if not isinstance(layer, Convolution) or layer.out_channels % 2 or layer.groups not in (1, 2):
            raise RecipeError(f"--parallel towers can not cut layer {name}", "a layer of two towers")
        window, out = layer.window, (layer.out_channels // 2,) * 2
        mine = Convolution(
            layer.in_channels // layer.groups, out[0], window.kernel, window.stride, window.padding, ceil=window.ceil
        )
        self._fill(name, layer, mine, {"weight": ShardSpec(0, out), "bias": ShardSpec(0, out)})
        return ([AllGatherActivations(self.world, sizes, name)] if sizes and layer.groups == 1 else []) + [mine], out

    def _linear(
        self, name: str, layer: nn.Linear, sizes: tuple[int, ...], *, last: bool
    ) -> tuple[list[nn.Module], tuple[int, ...]]:
        parts, part = self.world.parts, self.world.part
        if last:
            end = LastLinear(self.world, sizes[part], layer.out_features, name)
            self._fill(name, layer, end, {"weight": ShardSpec(1, sizes)})
            return [end], ()
        out = tuple(len(share(layer.out_features, i, parts)) for i in range(parts))
        mine = nn.Linear(layer.in_features, out[part])
        self._fill(name, layer, mine, {"weight": ShardSpec(0, out), "bias": ShardSpec(0, out)})
        return ([AllGatherActivations(self.world, sizes, name)] if sizes else []) + [mine], out

    def _dropout(self, layer: Dropout, sizes: tuple[int, ...]) -> Dropout:
        mine = Dropout(layer.p)
        if sizes:
            mine.columns = sum(sizes[: self.world.part]), sum(sizes)
        return mine

    def _fill(self, name: str, whole: nn.Module, mine: nn.Module, pieces: dict[str, ShardSpec]) -> None:
        self.pieces |= {f"{name}.{kind}": piece for kind, piece in pieces.items()}
        with torch.no_grad():
            for kind, parameter in mine.named_parameters():
                parameter.copy_(self._take(f"{name}.{kind}", whole.get_parameter(kind)))
