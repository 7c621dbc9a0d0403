"""The command ``info``."""

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from typing import Any

from alexnet import kernels
from alexnet.cli import output, parser
from alexnet.cli.parser import Flag


@dataclass(frozen=True)
class InfoArguments:
    """Print versions, devices, and which kernels are in use and why not. Add the output to a bug report."""

    json: Flag = False
    """print one JSON object"""


def run(argv: list[str]) -> int:
    """Print versions, devices and kernels."""
    args: InfoArguments = parser.parse(InfoArguments, argv, "info")
    info = collect()
    if args.json:
        print(json.dumps(info, indent=1))
        return 0
    for title in ("system", "packages"):
        output.table(title, ("name", "value"), list(info[title].items()), right=2)
    rows = [(kernel["name"], "yes" if kernel["in_use"] else "no", kernel["why"]) for kernel in info["kernels"]]
    output.table("kernels", ("kernel", "in use", "why"), rows, right=3)
    return 0


def collect() -> dict[str, Any]:
    """Describe the system, the packages and the kernels, as plain values."""
    return {"system": _system(), "packages": _packages(), "kernels": list(_kernels())}


def _system() -> dict[str, str]:
    import torch

    from alexnet.benchmark.runner import machine
    from alexnet.kernels import compiler
    from alexnet.training.runtime import choose_precision

    level, facts = compiler.supported_level(), machine()
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    no_gpu = "none found" if torch.version.cuda else "none: this PyTorch has no CUDA"
    device = torch.device("cuda" if gpus else "cpu")
    return {
        "system": f"{facts['system']}, {platform.machine()}, {' '.join(platform.libc_ver())}",
        "processor": str(facts["processor"]),
        "cores": str(facts["cores"]),
        "threads": str(facts["threads"]),
        "memory": f"{facts['memory_gib']} GiB",
        "instructions": level.name if level else "none that a kernel is compiled for",
        "GPU": ", ".join(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus) or no_gpu,
        "--precision auto": choose_precision("auto", device),
    }


def _packages() -> dict[str, str]:
    """Versions of Python, this package and its dependencies; optional ones too."""
    names = sorted({_name(line) for line in requires("alexnet") or ()} - {"alexnet"})
    versions = {"alexnet": version("alexnet"), "python": sys.version.split()[0]}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _name(requirement: str) -> str:
    return requirement.translate(str.maketrans("<>=!~;[ ", " " * 8)).split()[0]


def _kernels() -> Iterator[dict[str, Any]]:
    """Each fast implementation: whether this machine uses it, and under which condition, or why not."""
    import torch

    from alexnet.data import resize
    from alexnet.kernels import backend, native_kernels

    native_kernels.build()
    resize.build()
    gpu = torch.cuda.is_available()
    for kernel in kernels.KERNELS.values():
        if not kernels.enabled(kernel.name):
            why_not = "turned off"
        elif kernel.file.endswith(".c"):
            why_not = _why_not_native(kernel.name)
        elif kernel.name == "simplejpeg":
            why_not = "" if find_spec("simplejpeg") else "simplejpeg is not installed: pip install 'alexnet[fast]'"
        else:
            why_not = "" if gpu or ("AMX" in kernel.used_when and backend.has_amx()) else "no GPU"
        yield {"name": kernel.name, "in_use": not why_not, "why": why_not or kernel.used_when}


def _why_not_native(name: str) -> str:
    """The reason why a C kernel is not used on this machine; empty if it is."""
    from alexnet.data import resize
    from alexnet.kernels import native_kernels

    if name == "resize":
        return "" if resize.in_use() else native_kernels.why_not() or "it could not be compiled"
    if name not in native_kernels.built():
        return native_kernels.why_not() or "it could not be compiled"
    needs_avx512 = hasattr(native_kernels.library(name), f"{name}_is_fast")
    return "this processor has no AVX-512" if needs_avx512 and not native_kernels.is_fast(name) else ""
