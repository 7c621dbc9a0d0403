"""Several processes that train one network: who has which images, what they say to each other, and how many bytes.

With ``launching.py`` the only door to ``torch.distributed``. Processes stand in a grid (a DeviceMesh) of ``data ×
split``: those of one row share a network that is cut among them, and see the same share of each batch; a column has
the same piece of the network and different images. Data parallel is a grid of one column. One process alone has a
:class:`World` too, in which nothing is said and nothing changes.

Gradients are summed by all_reduce while the backward pass goes on, each tensor as soon as it is there: what
``DistributedDataParallel`` does, without its buckets (sixteen tensors need none), because here shares are uneven and
weighted exactly, layers freeze, and the processes that share a tensor differ from layer to layer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alexnet.errors import TrainingError


def share(total: int, part: int, parts: int) -> range:
    """The places that fall to ``part`` of ``parts``: contiguous, in order, their sizes at most one apart."""
    return range(total * part // parts, total * (part + 1) // parts)


@dataclass
class World:
    """The processes of a run, seen from one of them.

    ``rank`` of ``size``; ``row`` of ``rows`` shares of a batch; ``part`` of ``parts`` pieces of the network. ``sent``
    are the bytes that this process sent for training so far, by what for, counted at the collectives as a ring sends
    them: all_reduce 2·(n−1)/n of the tensor, all_gather (n−1) of the own piece, reduce_scatter (n−1)/n of the whole.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    parts: int = 1
    apart: bool = False  # do the processes of a row cut different images of its share? (convolutions data-parallel)
    sent: dict[str, float] = field(default_factory=dict)
    steps: int = 0  # made since the start of the processes
    images: int = 0  # seen in them, by all
    _groups: dict[str, Any] = field(default_factory=dict)  # world, row (one network), column (one piece)
    _pending: list[tuple[Any, Tensor]] = field(default_factory=list)
    _sum: bool = True

    def __deepcopy__(self, _: dict[int, Any]) -> "World":
        return self  # a copied network talks to the same processes

    @property
    def rows(self) -> int:
        """How many shares a batch is cut into."""
        return self.size // self.parts

    @property
    def row(self) -> int:
        """Which share of a batch is this process's."""
        return self.rank // self.parts

    @property
    def part(self) -> int:
        """Which piece of the network is this process's."""
        return self.rank % self.parts

    @property
    def first(self) -> bool:
        """Is this the process that writes and speaks?"""
        return self.rank == 0

    def places(self, total: int) -> range:
        """The places of a batch of ``total`` images that this process's row of the grid learns from.

        Where there are too few for all, the first place, which then counts nothing: every process makes every step.
        """
        return share(total, self.row, self.rows) or range(1)

    def weight(self, total: int) -> float:
        """What a mean over :meth:`places` weighs in the mean over the batch."""
        return len(share(total, self.row, self.rows)) / total

    def own(self, total: int) -> range:
        """The places whose images this process cuts: those of its row, or, ``apart``, its part of them."""
        places = self.places(total)
        if not self.apart:
            return places
        own = share(len(places), self.part, self.parts)
        return range(places.start + own.start, places.start + own.stop)

    def exchange(self, values: Sequence[float]) -> Tensor:
        """What every process says: float64 [size, values]. The same on all."""
        mine = torch.tensor([values], dtype=torch.float64)
        if self.size == 1:
            return mine
        mine = mine.to(self.device)
        result = mine.new_empty(self.size, len(values))
        dist.all_gather_into_tensor(result, mine, group=self._groups["world"])
        return result.cpu()

    def add(self, *tensors: Tensor) -> None:
        """Sum tensors over all processes, in place."""
        for tensor in tensors if self.size > 1 else ():
            there = tensor.to(self.device)
            dist.all_reduce(there, group=self._groups["world"])
            tensor.copy_(there)

    def tell(self, text: str) -> str:
        """The first process's ``text``, on all; the others wait for it as long as preparing images may take."""
        if self.size == 1:
            return text
        data = text.encode() if self.first else b""
        length = torch.tensor([len(data)])
        dist.broadcast(length, 0, group=self._groups["patient"])
        letters = torch.tensor(list(data) if self.first else [0] * int(length), dtype=torch.uint8)
        dist.broadcast(letters, 0, group=self._groups["patient"])
        return bytes(letters.tolist()).decode()

    def alike(self, tensors: Sequence[Tensor]) -> None:
        """Make tensors what they are on the first process of each column."""
        if self.rows > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, group=self._groups["column"], group_src=0)

    # Gradients

    def watch(self, network: nn.Module, across: Callable[[str], str]) -> None:
        """Sum every gradient as soon as it is complete; ``across`` tells among whom: ``world`` or ``column``."""
        for name, parameter in network.named_parameters():
            if self._count(across(name)) > 1:
                hook = self._summing(across(name))
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def _summing(self, group: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            if self._sum and parameter.grad is not None:
                self._note("gradients", parameter.grad, 2 * (self._count(group) - 1) / self._count(group))
                work = dist.all_reduce(parameter.grad, group=self._groups[group], async_op=True)
                self._pending.append((work, parameter.grad))

        return hook

    @contextmanager
    def summing(self, now: bool) -> Iterator[None]:
        """A backward pass whose gradients are summed over the processes, or kept for a later one of the same step."""
        self._sum = now
        try:
            yield
        finally:
            self._sum = True
        for work, _ in self._pending:
            work.wait()
        self._pending.clear()

    # A network cut among the processes of a row

    def gather(self, piece: Tensor, dim: int, sizes: Sequence[int], purpose: str = "") -> Tensor:
        """Pieces of the row's processes, joined along ``dim``; ``sizes`` are those of all pieces there."""
        if self.parts == 1:
            return piece
        widest = max(sizes)
        flat = _padded(piece.movedim(dim, 0), widest)  # [widest, …]
        result = flat.new_empty(self.parts * widest, *flat.shape[1:])
        self._note(purpose, flat, self.parts - 1)
        dist.all_gather_into_tensor(result, flat, group=self._groups["row"])
        if len(set(sizes)) > 1:
            result = torch.cat([result[i * widest : i * widest + size] for i, size in enumerate(sizes)])
        return result.movedim(0, dim)

    def scatter_sum(self, whole: Tensor, dim: int, sizes: Sequence[int], purpose: str = "") -> Tensor:
        """The sum over the row's processes, of which this one keeps its piece: what undoes :meth:`gather`."""
        if self.parts == 1:
            return whole
        widest = max(sizes)
        pieces = [_padded(piece, widest) for piece in torch.split(whole.movedim(dim, 0), list(sizes))]
        flat = torch.cat(pieces)
        result = flat.new_empty(widest, *flat.shape[1:])
        self._note(purpose, flat, (self.parts - 1) / self.parts)
        dist.reduce_scatter_tensor(result, flat, group=self._groups["row"])
        return result[: sizes[self.part]].movedim(0, dim)

    def total(self, value: Tensor, purpose: str = "") -> Tensor:
        """The sum over the row's processes, whole on each."""
        if self.parts == 1:
            return value
        result = value.contiguous().clone()
        self._note(purpose, result, 2 * (self.parts - 1) / self.parts)
        dist.all_reduce(result, group=self._groups["row"])
        return result

    def broadcast(self, value: Tensor, source: int, purpose: str = "") -> Tensor:
        """``value`` of part ``source`` of the row, on all of its processes; the others give a tensor of its shape."""
        if self.parts == 1:
            return value
        result = value.contiguous().clone()
        self._note(purpose, result, (self.parts - 1) / self.parts)  # each sends on a part of it: a pipelined ring
        dist.broadcast(result, group=self._groups["row"], group_src=source)
        return result

    def reduce(self, value: Tensor, target: int, purpose: str = "") -> Tensor:
        """The sum over the row's processes, on part ``target``; elsewhere of no meaning."""
        if self.parts == 1:
            return value
        result = value.contiguous().clone()
        self._note(purpose, result, (self.parts - 1) / self.parts)
        dist.reduce(result, group=self._groups["row"], group_dst=target)
        return result

    def _count(self, group: str) -> int:
        return {"world": self.size, "row": self.parts, "column": self.rows}[group]

    def _note(self, purpose: str, tensor: Tensor, times: float) -> None:
        if purpose:
            self.sent[purpose] = self.sent.get(purpose, 0.0) + times * tensor.nbytes


def _padded(piece: Tensor, length: int) -> Tensor:
    """``piece`` with zeros behind, ``length`` long in its first dimension, contiguous."""
    if len(piece) == length:
        return piece.contiguous()
    return torch.cat([piece, piece.new_zeros(length - len(piece), *piece.shape[1:])])


_GONE = (
    "closed by peer",
    "reset by peer",
    "Timed out",
    "timed out",
    "Broken pipe",
    "NCCL",
    "gloo",
    "Connection",
    "recv",
)


@contextmanager
def explained() -> Iterator[None]:
    """Raise :class:`TrainingError` in place of what the libraries say when another process is gone or silent."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        text = str(error).splitlines()[0] if str(error) else ""
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in _GONE):
            raise
        raise TrainingError(
            f"another process of this run is gone or can not be reached ({text[:160]})",
            "",
            "its own message says why; go on from the last checkpoint with --resume, "
            "or start with torchrun --max-restarts to have that done",
        ) from error
