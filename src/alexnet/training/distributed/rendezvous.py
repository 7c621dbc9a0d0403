"""How the processes of a run find each other: torchrun's environment, and a store of their own after a restart."""

import datetime
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.rendezvous import rendezvous

from alexnet.errors import RecipeError, TrainingError
from alexnet.training.distributed.world import World, explain_lost_process

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
