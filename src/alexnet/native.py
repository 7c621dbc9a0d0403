"""C files of this package, compiled where they run: nothing is shipped compiled, nothing is kept on disk.

Whoever uses one has the same formula without it: there may be no compiler (GCC or Clang with OpenMP).
"""

import contextlib
import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")


class Native:
    """The C files of one package: compiled when :meth:`build` is called, used until they are not wanted."""

    def __init__(self, package: str, names: Sequence[str], shared: Sequence[str] = ()) -> None:
        self.wanted = True
        self.built: dict[str, ctypes.CDLL] = {}  # by name, once :meth:`build` succeeded
        self.compiled = functools.cache(lambda: compiled(package, names, shared))

    def build(self) -> None:
        """Compile them if that was not done; nothing happens where that can not be."""
        if not self.built:
            with contextlib.suppress(OSError):  # no folder for temporary files, or no room there
                self.built.update(self.compiled())

    def has(self, name: str) -> bool:
        """Is ``name`` compiled, and wanted?"""
        return self.wanted and name in self.built


def compiled(package: str, names: Sequence[str], shared: Sequence[str] = ()) -> dict[str, ctypes.CDLL]:
    """Each ``name.c`` of ``package`` compiled, side by side, and loaded; without those for which that fails, for
    whatever reason. ``shared`` are the headers that they include."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return {}
    with tempfile.TemporaryDirectory(prefix="alexnet-") as folder:
        for file in (*(f"{name}.c" for name in names), *shared):
            Path(folder, file).write_bytes(resources.files(package).joinpath(file).read_bytes())
        started = {name: _start(compiler, Path(folder), name) for name in names}
        loaded = {name: _load(process, Path(folder, f"{name}.so")) for name, process in started.items()}
    return {name: library for name, library in loaded.items() if library is not None}


def _start(compiler: str, folder: Path, name: str) -> "subprocess.Popen[bytes] | None":
    command = [compiler, str(folder / f"{name}.c"), *FLAGS, "-o", str(folder / f"{name}.so"), "-lm"]
    try:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        return None


def _load(process: "subprocess.Popen[bytes] | None", path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path)) if process is not None and process.wait(120) == 0 else None
    except subprocess.TimeoutExpired:
        assert process is not None
        process.kill()
        process.wait()
        return None
    except OSError:
        return None
