"""Sums that do not depend on the number of processes: with ``--deterministic`` 1, 2, 4 and 8 train the same weights.

A batch is divided into :data:`PARTS` parts, whatever the number of processes. Each part has its own forward and
backward pass, and the gradients of the parts are added in the order of a binary tree:

    ((g0 + g1) + (g2 + g3)) + ((g4 + g5) + (g6 + g7))

A process computes neighboring parts, that is a whole subtree; the sums of the subtrees are gathered, and every process
adds them in the same order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alexnet.errors import RecipeError
from alexnet.models.network import Network
from alexnet.training.distributed.world import World, partition

PARTS = 8  # of a batch: the largest number of processes


def check_fixed_order(network: Network, world: World) -> None:
    """Raise :class:`RecipeError` if the parts cannot be computed apart from each other, or not on these processes."""
    if PARTS % world.size:
        raise RecipeError(f"--deterministic with {world.size} processes", "1, 2, 4 or 8")
    if world.device.type != "cpu":
        raise RecipeError(f"--deterministic on {world.device.type}", "cpu: on a GPU it has not been tested")
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        raise RecipeError("--deterministic: batch normalization needs the whole batch", "", "leave it out")


def own_parts(world: World, total: int) -> list[range]:
    """The parts of a batch of ``total`` images that this process computes; empty ones if there are few images."""
    share = PARTS // world.size
    return [partition(total, index, PARTS) for index in range(world.rank * share, (world.rank + 1) * share)]


class GradientTree:
    """Adds the gradients of the parts of one batch.

    Args:
        network: Holds the gradients of the last part.
        world: The processes.
        total: Images of the batch.
    """

    def __init__(self, network: nn.Module, world: World, total: int) -> None:
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.world, self.total = world, total
        self._sums: list[tuple[int, list[Tensor] | None]] = []  # (parts, gradients), each with fewer parts than before

    def add_part(self, *, empty: bool) -> None:
        """Take the gradients of the part just computed off the parameters; those of an ``empty`` part are none."""
        gradients = None if empty else [_taken(parameter) for parameter in self.parameters]
        count = 1
        while self._sums and self._sums[-1][0] == count:
            gradients = _added(self._sums.pop()[1], gradients)
            count *= 2
        self._sums.append((count, gradients))

    def finish(self) -> None:
        """Set the gradients of the whole batch, the same bits on every process."""
        ((_, own),) = self._sums
        for index, parameter in enumerate(self.parameters):
            gradient = None if own is None else own[index]
            parameter.grad = gradient if self.world.size == 1 else self._gathered(parameter, gradient)

    def _gathered(self, parameter: nn.Parameter, own: Tensor | None) -> Tensor:
        # Gradients of convolutions have the memory order of their weights, channels last: not contiguous.
        buffer = torch.empty_like(parameter, memory_format=torch.preserve_format)
        buffer.copy_(own) if own is not None else buffer.zero_()
        rows = self.world.all_gather_gradients(buffer)
        share = PARTS // self.world.size
        sums: list[list[Tensor] | None] = [
            None if self._is_empty(range(rank * share, (rank + 1) * share)) else [row] for rank, row in enumerate(rows)
        ]
        while len(sums) > 1:
            sums = [_added(sums[i], sums[i + 1]) for i in range(0, len(sums), 2)]
        assert sums[0] is not None
        return sums[0][0]

    def _is_empty(self, parts: range) -> bool:
        return not any(len(partition(self.total, index, PARTS)) for index in parts)


def _taken(parameter: nn.Parameter) -> Tensor:
    gradient, parameter.grad = parameter.grad, None
    return torch.zeros_like(parameter) if gradient is None else gradient


def _added(a: Sequence[Tensor] | None, b: Sequence[Tensor] | None) -> list[Tensor] | None:
    """The sum, in place of ``a``; a part without images adds nothing."""
    if a is None or b is None:
        kept = b if a is None else a
        return None if kept is None else list(kept)
    return [one.add_(other) for one, other in zip(a, b, strict=True)]
