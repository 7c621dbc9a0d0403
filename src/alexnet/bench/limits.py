"""What the machine can do at best: products of large matrices, and copies of memory."""

import os
import platform
from pathlib import Path

import torch

from alexnet.bench.arena import Contender, Skipped, Unit, repeated

SIDE = 2048  # of the matrices
COPIED = 1 << 28  # bytes: no cache holds them
KINDS = ("fp32", "bf16", "int8")


def contenders() -> list[Contender]:
    """The limits by name: multiply-adds count as two operations, a copied byte is read and written."""
    found = [Contender(f"matrix product, {kind}", product, {"kind": kind}, precision=kind) for kind in KINDS]
    return [*found, Contender("memory copy", copy, precision="copy")]


def product(kind: str) -> Unit:
    """Products of two 2048×2048 matrices."""
    if kind == "bf16" and not torch.cpu.get_capabilities().get("avx512_bf16"):
        raise Skipped("this processor has no bfloat16 arithmetic")
    numbers = torch.randn(2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    if kind == "int8":
        a, b = (numbers * 40).clamp(-127, 127).to(torch.int8)
        return repeated(lambda: torch._int_mm(a, b), 2 * SIDE**3)
    a, b = numbers.to(torch.bfloat16 if kind == "bf16" else torch.float32)
    return repeated(lambda: a @ b, 2 * SIDE**3)


def copy() -> Unit:
    """A copy from one quarter of a gigabyte to another: bytes read and bytes written."""
    source, target = torch.zeros(2, COPIED, dtype=torch.uint8)
    source.fill_(1)
    return repeated(lambda: target.copy_(source), 2 * COPIED)


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load_before": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
