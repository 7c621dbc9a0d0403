"""Training steps on one device, by batch size: this project's network and torchvision's, eager and compiled.

``benchmarks/gpu.sh`` runs it on a GPU. Batches of noise are on the device. One line of JSON per measurement is written
as soon as it is there, so that a run that is stopped keeps what it has.

    python benchmarks/steps.py --device cuda --batches 128,1024 --out steps.jsonl
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.benchmark import peers
from alexnet.benchmark.steps import noise
from alexnet.evaluation.evaluate import autocast
from alexnet.training import optim, runtime

TORCHVISION = "torchvision's alexnet"


def candidates(device: torch.device, model: str) -> Iterator[tuple[str, Callable[[int], Callable[[], None]]]]:
    """Names, and functions that return the step for a batch size."""
    for compiled in (False, True):
        suffix = ", torch.compile" if compiled else ""
        yield f"alexnet, bf16{suffix}", lambda batch, c=compiled: _step(peers.build(model), device, batch, c, ours=True)
        yield (
            f"{TORCHVISION}, bf16 autocast, channels-last{suffix}",
            lambda batch, c=compiled: _step(peers.torchvision_alexnet(), device, batch, c, ours=False),
        )


def _step(network: nn.Module, device: torch.device, batch: int, compiled: bool, *, ours: bool) -> Callable[[], None]:
    network = network.to(device, memory_format=torch.channels_last).train()
    shapes = network if ours else peers.build_on_meta(peers.TORCHVISION)
    images = noise(shapes, batch, torch.channels_last).to(device)  # type: ignore[arg-type]
    labels = torch.arange(batch, device=device) % 1000 % shapes.num_classes  # type: ignore[operator]
    call = runtime.compiled(network, device) if compiled else network
    rule: Any = (
        optim.PaperSGD(network.parameters())
        if ours
        else torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005, fused=True)
    )

    def step() -> None:
        with autocast(device, "bf16"):
            loss: Tensor = F.cross_entropy(call(images).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        rule.step()
        rule.zero_grad()

    return step


def measure(step: Callable[[], None], device: torch.device, batch: int, seconds: float) -> dict[str, float]:
    """Images per second and peak memory, after three steps of warm-up."""
    started = time.perf_counter()
    for _ in range(3):
        step()
    _wait(device)
    first = time.perf_counter() - started
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps, started = 0, time.perf_counter()
    while steps == 0 or time.perf_counter() - started < seconds:
        for _ in range(10 if device.type == "cuda" else 1):  # kernels are launched ahead; wait for ten at once
            step()
            steps += 1
        _wait(device)
    elapsed = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0.0
    return {"images_per_s": steps * batch / elapsed, "ms": elapsed / steps * 1e3, "first_s": first, "peak_mib": peak}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def profile(step: Callable[[], None], device: torch.device, path: Path) -> None:
    """Write the operations of three steps, the slowest first."""
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(3):
            step()
        _wait(device)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    path.write_text(found.key_averages().table(sort_by=order, row_limit=40), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--model", default="alexnet", help="network of this project")
    parser.add_argument("--batches", default="128,256,512,1024,2048,4096", help="batch sizes, comma-separated")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--out", type=Path, required=True, help="file that lines of JSON are added to")
    parser.add_argument("--profile", type=Path, help="write a profile of this project's step to this file, only")
    args = parser.parse_args()
    device, batches = torch.device(args.device), [int(number) for number in args.batches.split(",")]
    if args.profile:
        step = dict(candidates(device, args.model))["alexnet, bf16"](batches[0])
        for _ in range(3):
            step()
        profile(step, device, args.profile)
        return
    for name, make in candidates(device, args.model):
        for batch in batches:
            try:
                result: dict[str, Any] = measure(make(batch), device, batch, args.seconds)
            except RuntimeError as error:  # out of memory, or no compiler: the others go on
                result = {"error": str(error).splitlines()[0][:200]}
            line = json.dumps({"candidate": name, "batch": batch, **result})
            print(line, flush=True)
            with args.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            torch.compiler.reset()


if __name__ == "__main__":
    main()
