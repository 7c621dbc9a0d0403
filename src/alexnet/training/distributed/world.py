"""The processes that train one network: which images are whose, the collectives between them, how they meet.

Processes form a grid (a DeviceMesh) of data parallel × tensor parallel. The processes of a tensor-parallel (TP) group
share one network and see the same rows of each batch. The processes of a data-parallel (DP) group have the same shard
of the network and different rows. A single process has a :class:`World` too, whose methods do nothing.

Each gradient is summed by an all_reduce as soon as the backward pass has it, as in ``DistributedDataParallel``, but
without buckets: the network has only sixteen tensors. DistributedDataParallel itself is not used, because here the rows
are uneven and weighted exactly, layers freeze, and the group that shares a gradient differs from layer to layer.

Only this module imports ``torch.distributed``.
"""

import datetime
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.rendezvous import rendezvous

from alexnet.errors import RecipeError, TrainingError

Group = Literal["world", "tp", "dp"]


def partition(total: int, index: int, count: int) -> range:
    """Part ``index`` of ``count`` parts of ``total`` rows: contiguous, in order, their sizes at most one apart."""
    return range(total * index // count, total * (index + 1) // count)


@dataclass
class World:
    """The processes of a run, as one of them sees them.

    Attributes:
        device: The device of this process.
        rank: The number of this process, from 0.
        size: Number of processes.
        tp_size: Processes of a tensor-parallel group: shards of the network.
        hybrid: Each process of a tensor-parallel group computes the convolutions of its own images.
        bytes_sent: Bytes that this process sent for training so far, by layer or ``gradients``, as ring algorithms
            send them: all_reduce 2·(n−1)/n of the tensor, all_gather (n−1) of the own part, reduce_scatter (n−1)/n.
        steps: Steps since the process started.
        images: Images in these steps, of all processes.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    tp_size: int = 1
    hybrid: bool = False
    bytes_sent: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    images: int = 0
    _groups: dict[str, Any] = field(default_factory=dict)  # world, tp, dp, and patient: with a long timeout
    _pending: list[tuple[Any, Tensor]] = field(default_factory=list)
    _sync: bool = True

    def __deepcopy__(self, _: dict[int, Any]) -> "World":
        return self  # a copied network communicates with the same processes

    @property
    def dp_size(self) -> int:
        """Processes of a data-parallel group: parts into which the rows of a batch are divided."""
        return self.size // self.tp_size

    @property
    def dp_rank(self) -> int:
        """Which part of the rows is this process's."""
        return self.rank // self.tp_size

    @property
    def tp_rank(self) -> int:
        """Which shard of the network is this process's."""
        return self.rank % self.tp_size

    @property
    def is_main(self) -> bool:
        """Is this the process that writes files and logs?"""
        return self.rank == 0

    # Rows of a batch

    def label_rows(self, total: int) -> range:
        """The rows of a batch of ``total`` images that this process computes the loss of.

        Where there are too few rows for all processes, row 0 with a :meth:`loss_weight` of 0: every process must take
        part in every step.
        """
        return partition(total, self.dp_rank, self.dp_size) or range(1)

    def loss_weight(self, total: int) -> float:
        """The weight of the mean loss over :meth:`label_rows` in the mean over the batch."""
        return len(partition(total, self.dp_rank, self.dp_size)) / total

    def image_rows(self, total: int) -> range:
        """The rows whose images this process loads: :meth:`label_rows`, or its part of them in hybrid parallelism."""
        rows = self.label_rows(total)
        if not self.hybrid:
            return rows
        part = partition(len(rows), self.tp_rank, self.tp_size)
        return range(rows.start + part.start, rows.start + part.stop)

    # Collectives of all processes

    def all_gather_scalars(self, values: Sequence[float]) -> Tensor:
        """The values of every process, float64 [size, values], the same on all."""
        own = torch.tensor([values], dtype=torch.float64)
        if self.size == 1:
            return own
        own = own.to(self.device)
        result = own.new_empty(self.size, len(values))
        dist.all_gather_into_tensor(result, own, group=self._groups["world"])
        return result.cpu()

    def all_reduce_(self, *tensors: Tensor) -> None:
        """Sum tensors over all processes, in place."""
        for tensor in tensors if self.size > 1 else ():
            on_device = tensor.to(self.device)
            dist.all_reduce(on_device, group=self._groups["world"])
            tensor.copy_(on_device)

    def broadcast_text(self, text: str) -> str:
        """``text`` of the main process, on all. The others wait for it as long as preparing images may take."""
        if self.size == 1:
            return text
        data = text.encode() if self.is_main else b""
        length = torch.tensor([len(data)])
        dist.broadcast(length, 0, group=self._groups["patient"])
        values = torch.tensor(list(data) if self.is_main else [0] * int(length), dtype=torch.uint8)
        dist.broadcast(values, 0, group=self._groups["patient"])
        return bytes(values.tolist()).decode()

    # Data parallelism

    def broadcast_parameters(self, parameters: Sequence[Tensor]) -> None:
        """Copy parameters from the first process of each data-parallel group to the others, in place."""
        if self.dp_size > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, group=self._groups["dp"], group_src=0)

    def register_grad_hooks(self, network: nn.Module, group_of: Callable[[str], Group]) -> None:
        """Sum every gradient as soon as it is complete, over the group that ``group_of`` names for its parameter."""
        for name, parameter in network.named_parameters():
            if self._group_size(group_of(name)) > 1:
                hook = self._grad_hook(group_of(name))
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def _grad_hook(self, group: Group) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            if self._sync and parameter.grad is not None:
                size = self._group_size(group)
                self._count_bytes("gradients", parameter.grad, 2 * (size - 1) / size)
                work = dist.all_reduce(parameter.grad, group=self._groups[group], async_op=True)
                self._pending.append((work, parameter.grad))

        return hook

    def all_gather_gradients(self, own: Tensor) -> list[Tensor]:
        """The tensor ``own`` of every process, in the order of the processes and in its order in memory."""
        flat = own.as_strided((own.numel(),), (1,))
        result = flat.new_empty(self.size * own.numel())
        self._count_bytes("gradients", flat, self.size - 1)
        dist.all_gather_into_tensor(result, flat, group=self._groups["world"])
        return [result.as_strided(own.shape, own.stride(), rank * own.numel()) for rank in range(self.size)]

    @contextmanager
    def sync_gradients(self, enabled: bool) -> Iterator[None]:
        """A backward pass whose gradients are summed over processes, or, not ``enabled``, only accumulated here."""
        self._sync = enabled
        try:
            yield
        finally:
            self._sync = True
        for work, _ in self._pending:
            work.wait()
        self._pending.clear()

    # Tensor parallelism. ``purpose``: the key in ``bytes_sent``; not counted if empty

    def all_gather_tp(self, shard: Tensor, dim: int, sizes: Sequence[int], purpose: str = "") -> Tensor:
        """The shards of a TP group joined along ``dim``; ``sizes`` are those of all shards there."""
        if self.tp_size == 1:
            return shard
        largest = max(sizes)
        padded = _pad(shard.movedim(dim, 0), largest)  # [largest, …]
        result = padded.new_empty(self.tp_size * largest, *padded.shape[1:])
        self._count_bytes(purpose, padded, self.tp_size - 1)
        dist.all_gather_into_tensor(result, padded, group=self._groups["tp"])
        if len(set(sizes)) > 1:
            result = torch.cat([result[i * largest : i * largest + size] for i, size in enumerate(sizes)])
        return result.movedim(0, dim)

    def reduce_scatter_tp(self, tensor: Tensor, dim: int, sizes: Sequence[int], purpose: str = "") -> Tensor:
        """This process's shard, along ``dim``, of the sum over a TP group: the reverse of :meth:`all_gather_tp`."""
        if self.tp_size == 1:
            return tensor
        largest = max(sizes)
        shards = [_pad(shard, largest) for shard in torch.split(tensor.movedim(dim, 0), list(sizes))]
        padded = torch.cat(shards)
        result = padded.new_empty(largest, *padded.shape[1:])
        self._count_bytes(purpose, padded, (self.tp_size - 1) / self.tp_size)
        dist.reduce_scatter_tensor(result, padded, group=self._groups["tp"])
        return result[: sizes[self.tp_rank]].movedim(0, dim)

    def all_reduce_tp(self, tensor: Tensor, purpose: str = "") -> Tensor:
        """The sum over a TP group, on all of its processes."""
        if self.tp_size == 1:
            return tensor
        result = tensor.contiguous().clone()
        self._count_bytes(purpose, result, 2 * (self.tp_size - 1) / self.tp_size)
        dist.all_reduce(result, group=self._groups["tp"])
        return result

    def _group_size(self, group: Group) -> int:
        return {"world": self.size, "tp": self.tp_size, "dp": self.dp_size}[group]

    def _count_bytes(self, purpose: str, tensor: Tensor, factor: float) -> None:
        if purpose:
            self.bytes_sent[purpose] = self.bytes_sent.get(purpose, 0.0) + factor * tensor.nbytes


def _pad(tensor: Tensor, length: int) -> Tensor:
    """``tensor`` with zeros at the end of its first dimension, so that it has ``length``; contiguous."""
    if len(tensor) == length:
        return tensor.contiguous()
    return torch.cat([tensor, tensor.new_zeros(length - len(tensor), *tensor.shape[1:])])


_LOST_PROCESS = (  # parts of the messages of libraries when another process is lost
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
def explain_lost_process() -> Iterator[None]:
    """Raise :class:`TrainingError` in place of the libraries' errors when another process is lost or hangs."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        text = str(error).splitlines()[0] if str(error) else ""
        if not isinstance(error, dist.DistError) and not any(words in str(error) for words in _LOST_PROCESS):
            raise
        raise TrainingError(
            f"another process of this run ended or cannot be reached ({text[:160]})",
            "",
            "see its own message; continue from the last checkpoint with --resume, "
            "or start with torchrun --max-restarts to have that done",
        ) from error


_TIMEOUT = datetime.timedelta(minutes=10)  # a process that does not respond for so long is given up
_CONNECT_TIMEOUT = 2.0  # seconds
_PREPARE_TIMEOUT = datetime.timedelta(days=2)  # how long the other processes wait while the first prepares images
_ADDRESS_KEY = "alexnet/store"  # in torchrun's store: port and token of our own store
_Store: Any = dist.TCPStore  # type: ignore[attr-defined]


def launched() -> bool:
    """Was this process started by torchrun?"""
    return dist.is_torchelastic_launched()


@contextmanager
def init_world(device: torch.device, tp_size: int = 1, *, hybrid: bool = False) -> Iterator[World]:
    """The processes that torchrun started; without torchrun, this one alone.

    On ``cuda`` each process of a machine uses the GPU of its local rank.

    Args:
        device: The kind of device.
        tp_size: Processes of a tensor-parallel group; 0: all.
        hybrid: See :class:`World`.

    Raises:
        RecipeError: Where the number of processes is no multiple of ``tp_size``.
        TrainingError: Where another process is lost.
    """
    if not launched():
        _check_size(1, tp_size or 1)
        yield World(device, hybrid=hybrid)
        return
    if device.type == "cuda":
        device = torch.device("cuda", dist.get_node_local_rank())
        torch.cuda.set_device(device)
    with explain_lost_process():
        stores = _init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        size = dist.get_world_size()
        tp_size = tp_size or size
        _check_size(size, tp_size)
        with explain_lost_process():
            mesh = init_device_mesh(device.type, (size // tp_size, tp_size), mesh_dim_names=("dp", "tp"))
            patient: Any = dist.new_group(backend="gloo", timeout=_PREPARE_TIMEOUT)
            groups = {
                "patient": patient,
                "world": dist.group.WORLD,
                "tp": mesh.get_group("tp"),
                "dp": mesh.get_group("dp"),
            }
            yield World(device, dist.get_rank(), size, tp_size, hybrid, _groups=groups)
            dist.barrier(group=patient)  # the first process may still write files: no process ends before
    finally:
        dist.destroy_process_group()
        del stores


def _init_process_group(backend: str) -> tuple[Any, Any]:
    """Create the group of all processes. Returns two stores that must live as long as the group.

    torchrun's agent gives its workers one store for all their restarts. After a restart it still has the addresses of
    the dead processes, and a process that reads them waits forever (PyTorch 2.15; pytorch/pytorch issue 135712). So the
    first process opens a store of its own, and writes only its port and a token into torchrun's. An old port leads
    nowhere, or to a store with another token.
    """
    torchrun_store, rank, size = next(rendezvous("env://", timeout=_TIMEOUT))
    store, token = None, uuid4().hex
    if rank == 0:
        store = _Store(torchrun_store.host, 0, is_master=True, wait_for_workers=False, timeout=_TIMEOUT)
        store.set("token", token)
        torchrun_store.set(_ADDRESS_KEY, f"{store.port} {token}")
    deadline = time.monotonic() + _TIMEOUT.total_seconds()
    while store is None and time.monotonic() < deadline:
        store = _connect(torchrun_store.host, *torchrun_store.get(_ADDRESS_KEY).decode().split())
    if store is None:
        problem = f"the first process of this run cannot be reached at {torchrun_store.host}"
        raise TrainingError(problem, "", "see its log, and start all processes again")
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    return store, torchrun_store


def _connect(host: str, port: str, token: str) -> Any:
    """The store at ``port`` if it has ``token``; else None, after a moment."""
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT).close()
        timeout = datetime.timedelta(seconds=_CONNECT_TIMEOUT)
        store = _Store(host, int(port), is_master=False, timeout=timeout)
        if store.check(["token"]) and store.get("token").decode() == token:
            store.set_timeout(_TIMEOUT)
            return store
    except (OSError, dist.DistError, RuntimeError):
        pass
    time.sleep(0.1)
    return None


def _check_size(size: int, tp_size: int) -> None:
    if size % tp_size:
        processes = f"{size} process{'es' if size > 1 else ''}"
        raise RecipeError(
            f"a network sharded over {tp_size} processes does not fit {processes}",
            f"a multiple of {tp_size}",
            f"start them with: torchrun --nproc-per-node {tp_size} -m -- alexnet train …",
        )
