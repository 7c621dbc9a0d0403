"""How the processes of a run find each other: what torchrun has told them, and a store of their own after a restart."""

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
from alexnet.training.distributed.world import World, explained

_HANGS = datetime.timedelta(minutes=10)  # a process that says nothing for so long is given up
_KNOCKS = 2.0  # seconds to find nobody where a process that is gone has been
_PREPARES = datetime.timedelta(days=2)  # how long the others wait for the first to prepare the images
_WAY = "alexnet/store"  # where its way is in the store that torchrun lends
_Store: Any = dist.TCPStore  # type: ignore[attr-defined]


def launched() -> bool:
    """Was this process started by torchrun, as one of several or of one?"""
    return dist.is_torchelastic_launched()


@contextmanager
def world(device: torch.device, parts: int = 1, *, apart: bool = False) -> Iterator[World]:
    """The processes that torchrun started, in a grid of ``parts`` columns (0: all of them); alone elsewhere.

    On ``cuda`` each process of a machine takes the GPU of its own number. Raises :class:`RecipeError` where the
    processes do not fill the grid, :class:`TrainingError` where another process is gone.
    """
    if not launched():
        _check_grid(1, parts or 1)
        yield World(device, apart=apart)
        return
    if device.type == "cuda":
        device = torch.device("cuda", dist.get_node_local_rank())
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    with explained():
        stores = _begin(backend)
    try:
        size = dist.get_world_size()
        parts = parts or size
        _check_grid(size, parts)
        with explained():
            grid = init_device_mesh(device.type, (size // parts, parts), mesh_dim_names=("column", "row"))
            patient: Any = dist.new_group(backend="gloo", timeout=_PREPARES)
            groups = {
                "patient": patient,
                "world": dist.group.WORLD,
                "row": grid.get_group("row"),
                "column": grid.get_group("column"),
            }
            yield World(device, dist.get_rank(), size, parts, apart, _groups=groups)
            dist.barrier(group=patient)  # the first may still write and draw: nobody leaves before
    finally:
        dist.destroy_process_group()
        del stores


def _begin(backend: str) -> tuple[Any, Any]:
    """Make the group of all processes. Returns the stores that must live as long as it: where the processes, and none
    before them, tell each other their addresses, and what torchrun gave them to begin with.

    torchrun's agent lends its workers one store for all their lives. After a restart it still has the addresses of
    the dead, and whoever reads too early waits for them (PyTorch 2.15; pytorch/pytorch issue 135712). So the first
    process opens a store of its own and leaves only the way to it there; an old way leads nowhere, or not to the
    token that was written next to it.
    """
    values, rank, size = next(rendezvous("env://", timeout=_HANGS))
    own, token = None, uuid4().hex
    if rank == 0:
        own = _Store(values.host, 0, is_master=True, wait_for_workers=False, timeout=_HANGS)
        own.set("token", token)
        values.set(_WAY, f"{own.port} {token}")
    until = time.monotonic() + _HANGS.total_seconds()
    while own is None and time.monotonic() < until:
        own = _followed(values.host, *values.get(_WAY).decode().split())
    if own is None:
        what = f"the first process of this run can not be reached at {values.host}"
        raise TrainingError(what, "", "see what it said, and start all again")
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=_HANGS)
    return own, values


def _followed(host: str, port: str, token: str) -> Any:
    """The store at ``port`` if it is that of ``token``; else None, after a moment."""
    try:
        socket.create_connection((host, int(port)), _KNOCKS).close()
        result = _Store(host, int(port), is_master=False, timeout=datetime.timedelta(seconds=_KNOCKS))
        if result.check(["token"]) and result.get("token").decode() == token:
            result.set_timeout(_HANGS)
            return result
    except (OSError, dist.DistError, RuntimeError):
        pass
    time.sleep(0.1)
    return None


def _check_grid(size: int, parts: int) -> None:
    if size % parts:
        some = f"{size} process{'es' if size > 1 else ''}"
        raise RecipeError(
            f"a network cut in {parts} does not fit {some}",
            f"a multiple of {parts}",
            f"start them with: torchrun --nproc-per-node {parts} -m -- alexnet train …",
        )
