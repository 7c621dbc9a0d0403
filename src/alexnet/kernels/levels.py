"""Compiles the native kernels ahead of time, for several kinds of processors: the files that a wheel carries.

``setup.py`` runs this file by its path, in an environment without any dependency, so it imports the standard library
only. Libraries are loaded with :mod:`ctypes` and use neither Python's nor PyTorch's ABI, so one wheel serves all
versions of both.
"""

import hashlib
import platform
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
"""Compiler flags of every kernel, besides those of a processor."""
FOLDER = "compiled"
"""Folder of the libraries, inside the folder of the C files."""
_SECONDS = 300.0  # limit for one library; takes one to ten seconds


class Level(NamedTuple):
    """A kind of processor that libraries are compiled for."""

    name: str
    flags: tuple[str, ...]
    features: frozenset[str]
    """what ``/proc/cpuinfo`` must list"""


_V3 = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
_V4 = _V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}
_VNNI = _V4 | {"avx512vbmi", "avx512_vnni"}
LEVELS: dict[str, tuple[Level, ...]] = {
    "x86_64": (
        Level("amx", ("-march=sapphirerapids",), _VNNI | {"amx_bf16", "amx_int8", "amx_tile", "avx512_bf16"}),
        Level("avx512vnni", ("-march=x86-64-v4", "-mavx512vbmi", "-mavx512vnni"), _VNNI),
        Level("avx512", ("-march=x86-64-v4",), _V4),
        Level("avx2", ("-march=x86-64-v3",), _V3),
    ),
    "aarch64": (Level("neon", ("-march=armv8-a",), frozenset({"asimd"})),),
}
"""Levels by machine, the best first. The first level that the processor supports is used."""


def levels() -> tuple[Level, ...]:
    """The levels of this machine's architecture; none for an architecture that is not supported."""
    return LEVELS.get(platform.machine(), ())


def sources(folder: Path) -> dict[str, bytes]:
    """The C files of ``folder`` and their headers."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".c", ".h")}


def library_name(kernel: str, level: Level, sources: Mapping[str, bytes]) -> str:
    """File name of a library. It has a hash of the sources and flags, so a library of other sources is not loaded."""
    digest = hashlib.sha256(repr((sorted(sources.items()), FLAGS, level.flags)).encode()).hexdigest()
    return f"{kernel}-{level.name}-{digest[:32]}.so"


def find_compiler() -> str | None:
    """The C compiler: ``cc``, GCC or Clang; None if there is none."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def precompile(folder: Path, target: Path, compiler: str, processes: int) -> list[str]:
    """Compile every C file of ``folder`` for every level of this machine into ``target``.

    Args:
        folder: Folder of the C files.
        target: Folder of the libraries; created if missing. Other files in it are kept.
        compiler: The C compiler, see :func:`find_compiler`.
        processes: Compilers that run at the same time.

    Returns:
        The libraries that could not be compiled, as ``kernel (level)``.
    """
    files = sources(folder)
    kernels = [Path(name).stem for name in files if name.endswith(".c")]
    target.mkdir(parents=True, exist_ok=True)

    def succeeds(job: tuple[str, Level]) -> bool:
        kernel, level = job
        path = target / library_name(kernel, level, files)
        command = [compiler, str(folder / f"{kernel}.c"), *level.flags, *FLAGS, "-o", str(path), "-lm"]
        try:
            return subprocess.run(command, stdin=subprocess.DEVNULL, timeout=_SECONDS).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False

    jobs = [(kernel, level) for level in levels() for kernel in kernels]
    with ThreadPoolExecutor(processes) as pool:
        done = list(pool.map(succeeds, jobs))
    return [f"{kernel} ({level.name})" for (kernel, level), success in zip(jobs, done, strict=True) if not success]
