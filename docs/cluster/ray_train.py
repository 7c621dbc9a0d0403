"""Ray Train: one worker on each machine, which starts torchrun. RAY_ADDRESS=auto python ray_train.py 4 8 ARGS...

ARGS are those of ``alexnet train``, such as ``/shared/store --output-dir /shared/my-run``. If a machine is lost, Ray
starts all workers again. Then the run continues from its last checkpoint.
"""

import os
import subprocess
import sys

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer


def train_on_machine(config: dict) -> None:
    """Run the processes of one machine, which meet at the address of Ray's first worker."""
    context = get_context()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(config["processes"])]
    torchrun += ["--nnodes", str(context.get_world_size()), "--node-rank", str(context.get_world_rank())]
    torchrun += ["--master-addr", os.environ["MASTER_ADDR"], "--master-port", "29400"]
    subprocess.run([*torchrun, "-m", "--", "alexnet", "train", *config["args"]], check=True)


if __name__ == "__main__":
    machines, processes, *args = sys.argv[1:]
    ray.init()
    gpus = {"GPU": int(processes)} if ray.cluster_resources().get("GPU") else {}
    trainer = TorchTrainer(
        train_on_machine,
        train_loop_config={"processes": int(processes), "args": args},
        scaling_config=ScalingConfig(
            num_workers=int(machines),
            resources_per_worker={"CPU": 1, **gpus},
            use_gpu=bool(gpus),
            placement_strategy="SPREAD",
        ),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=10)),
    )
    trainer.fit()
