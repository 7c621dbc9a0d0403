"""Runs jobs in processes that know each other, as torchrun starts them, but forked: importing costs only once.

A line of JSON in: {"processes", "job", …}. Each process is a fork with torchrun's environment; a line of JSON out: how
each ended, and what each said on standard error.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.nn.functional as F

from alexnet import api, recipe
from alexnet.errors import AlexNetError, Interrupted
from alexnet.models.layers import set_generator, set_rows
from alexnet.system import temporary_folder
from alexnet.training import loop
from alexnet.training.distributed import sharding
from alexnet.training.distributed import world as rendezvous
from alexnet.training.distributed.sharding import Layout, ModelSharding
from alexnet.training.task import build_network

torch.set_num_threads(1)  # OpenMP's threads do not survive a fork


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def train(job: dict) -> None:
    """A whole run, or the rest of one; every step's loss is noted beside the folder."""
    api.TRAINING_PLOTS = ()
    layout, folder = Layout(*job.get("layout", ["data"])), Path(job["folder"])
    rank, inner, losses = int(os.environ.get("RANK", "0")), loop.train_step, []

    def noted(state, batch):
        if ["nan", rank, state.position.step + 1] in job.get("acts", []):
            batch.images[0, 0, 0, 0] = float("nan")
        loss = inner(state, batch)
        losses.append(loss)
        for kind, which, step in job.get("acts", []):
            if kind != "nan" and which == rank and state.position.step + 1 == step:
                if kind == "raise":
                    raise RuntimeError("a fault on purpose")
                os.kill(os.getpid(), getattr(signal, kind))
        return loss

    loop.train_step = noted
    sent: dict[str, float] = {}
    try:
        if (folder / "run.json").exists():
            result = api.resume(folder, device="cpu", layout=layout)
        else:
            fields, start = recipe.from_dict(job["recipe"]), job.get("init_from", "")
            result = api.train(job["store"], fields, folder, init_from=start, device="cpu", layout=layout)
        sent = result.sent
    finally:
        if rank == 0:
            Path(f"{folder}.json").write_text(json.dumps({"losses": losses, "sent": sent}))


def gradients(job: dict) -> None:
    """One forward and backward pass of a network as it is cut: logits and gradients, put together, into a file."""
    layout, size = Layout(*job["layout"]), job["images"]
    with rendezvous.init_world(torch.device("cpu"), layout.tp_size, hybrid=layout.hybrid) as world:
        fields = recipe.from_dict(job["recipe"])
        cut = ModelSharding(build_network(fields, job["classes"]), layout, world)
        if job.get("naive"):  # what torch.distributed.nn.functional.all_reduce does: gradients are summed once more
            sharding._AllReduce.backward = staticmethod(lambda ctx, grad: (world.all_reduce_tp(grad), None, None))
        network, masks = cut.network.train(), torch.Generator().manual_seed(1)
        set_generator(network, masks)
        world.register_grad_hooks(network, cut.gradient_group)
        images, labels = torch.load(job["data"], weights_only=True)
        places, own = world.label_rows(size), world.image_rows(size)
        network.batch_rows = len(places)
        set_rows(network, (places.start, size))
        logits = network(images[own.start : own.stop])
        with world.sync_gradients(True):
            (F.cross_entropy(logits, labels[places.start : places.stop]) * world.loss_weight(size)).backward()
        found = cut.gather_state({name: p.grad for name, p in network.named_parameters()})
        norm, mine = cut.gradient_norm(network), sum(p.numel() for p in network.parameters())
        torch.save(
            {
                "gradients": found,
                "logits": logits.detach(),
                "places": list(places),
                "norm": norm,
                "own": mine,
                "sent": world.bytes_sent,
            },
            f"{job['out']}-{world.rank}.pt",
        )


def meet(job: dict) -> None:
    """The processes find each other and say a word; ``late`` [rank, seconds] comes later, ``kill`` ends them rudely."""
    rank = int(os.environ["RANK"])
    if rank == job["late"][0]:
        time.sleep(job["late"][1])
    with rendezvous.init_world(torch.device("cpu")) as world:
        assert world.all_gather_scalars([rank])[:, 0].tolist() == list(range(world.size))
        if job["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)


def run(job: dict, rank: int, log: Path) -> int:
    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
        try:
            globals()[job["job"]](job)
        except Interrupted as error:
            print(error, file=sys.stderr)
            return 128 + error.signal
        except AlexNetError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
        except BaseException:
            traceback.print_exc()
            return 3
        finally:
            sys.stderr.flush()
    return 0


def launch(job: dict) -> dict:
    with temporary_folder() as logs:
        return launch_with_logs(job, logs)


def launch_with_logs(job: dict, logs: Path) -> dict:
    port, size, children = free_port(), job["processes"], []
    for rank in range(size):
        child = os.fork()
        if not child:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "test",
                "GLOO_SOCKET_IFNAME": "lo",
            } | job.get("environment", {})
            os._exit(run(job, rank, logs / str(rank)))
        children.append(child)
    deadline, ended = time.monotonic() + job.get("limit", 500), {}
    while len(ended) < size and time.monotonic() < deadline:
        for rank, child in enumerate(children):
            if rank not in ended and (found := os.waitpid(child, os.WNOHANG))[0]:
                ended[rank] = os.waitstatus_to_exitcode(found[1])
        time.sleep(0.01)
    for rank, child in enumerate(children):
        if rank not in ended:  # it hangs
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            ended[rank] = "hangs"
    said = [(logs / str(rank)).read_text() for rank in range(size)]
    return {"ended": [ended[rank] for rank in range(size)], "said": said}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(launch(json.loads(line))), flush=True)
