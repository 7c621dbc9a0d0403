"""Loads the native kernels: precompiled ones of a wheel, or C files compiled on this machine, once, into a cache.

A wheel carries libraries for several kinds of processors (:mod:`alexnet.kernels.levels`). If it has one for this
processor, nothing is compiled. Else a compiler (GCC or Clang with OpenMP) is used if there is one; every kernel has a
reference implementation.

The cache is ``~/.cache/alexnet/native``. A library in it is used if the sources, flags, compiler and processor are the
same, if no other user can write to the folder, and if the SHA-256 of the file is the one in its name. Processes that
start together compile once. Without a usable cache, libraries are compiled in a temporary folder.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

from filelock import FileLock

from alexnet.errors import RecipeError
from alexnet.kernels import levels
from alexnet.kernels.backend import enabled
from alexnet.system import cache_folder, temporary_folder

_NATIVE = ("-march=native",)
_SECONDS = 60.0  # limit for compiling and for waiting for another process; compiling takes 5 s on two idle cores
_hung: set[str] = set()  # compilers that exceeded the limit in this process


class NativeLibraries:
    """The native kernels of one package. They are compiled when :meth:`build` is called.

    Args:
        package: Package that holds the C files.
        functions: Kernel name -> functions of ``name.c``; the kernel's switch in :mod:`alexnet.kernels` has this name.
    """

    def __init__(self, package: str, functions: Mapping[str, Sequence[str]]) -> None:
        self.built: dict[str, ctypes.CDLL] = {}  # by name, once :meth:`build` succeeded
        self.compiled = functools.cache(lambda: compiled(package, functions))
        self.cached = functools.cache(lambda: cached(package, functions))

    def build(self) -> None:
        """Compile the kernels unless that is done. Kernels that cannot be compiled are skipped."""
        if not self.built:
            self.built.update(self.compiled())

    def load(self) -> None:
        """Load the kernels if all of them are in the cache: takes milliseconds, compiles nothing."""
        if not self.built:
            self.built.update(self.cached())

    def has(self, name: str) -> bool:
        """Whether ``name`` is compiled and enabled."""
        return name in self.built and enabled(name)


def compiled(package: str, functions: Mapping[str, Sequence[str]]) -> dict[str, ctypes.CDLL]:
    """The library of each ``name.c``: precompiled, from the cache, or compiled now; failed ones are left out."""
    deadline = time.monotonic() + _SECONDS
    libraries = precompiled(package, functions)
    compiler = _compiler()
    if libraries or compiler is None:
        return libraries
    sources = levels.sources(_folder(package))
    with contextlib.suppress(OSError, MemoryError):  # no usable cache, or no room there
        folder, key = _cache_folder(), _key(sources, compiler, deadline)
        if folder is not None and key is not None:
            libraries = _cached(folder, key, functions)
            if len(libraries) < len(functions):
                with _locked(folder, deadline):
                    libraries = _cached(folder, key, functions)  # another process may have compiled them meanwhile
                    missing = {name: functions[name] for name in functions if name not in libraries}
                    with tempfile.TemporaryDirectory(prefix=_PART, dir=folder) as part:
                        libraries |= _compile(compiler, sources, missing, Path(part), deadline, (folder, key))
    missing = {name: functions[name] for name in functions if name not in libraries}
    if missing and time.monotonic() < deadline:
        with contextlib.suppress(OSError, MemoryError), temporary_folder() as part:
            libraries |= _compile(compiler, sources, missing, part, deadline)
    return libraries


def cached(package: str, functions: Mapping[str, Sequence[str]]) -> dict[str, ctypes.CDLL]:
    """The library of each ``name.c``, precompiled or from the cache; empty if one of them is missing."""
    if libraries := precompiled(package, functions):
        return libraries
    if (compiler := _compiler()) is None:
        return {}
    with contextlib.suppress(OSError, MemoryError):
        folder = _cache_folder()
        key = _key(levels.sources(_folder(package)), compiler, time.monotonic() + _SECONDS)
        libraries = _cached(folder, key, functions) if folder is not None and key is not None else {}
        if len(libraries) == len(functions):
            return libraries
    return {}


def precompiled(package: str, functions: Mapping[str, Sequence[str]]) -> dict[str, ctypes.CDLL]:
    """The libraries in the package's folder for this processor; empty if one of them is missing.

    They are trusted like the Python files beside them.
    """
    folder = _folder(package) / levels.FOLDER
    level = supported_level()
    if level is None or not folder.is_dir():
        return {}
    sources = levels.sources(_folder(package))
    paths = {name: folder / levels.library_name(name, level, sources) for name in functions}
    loaded = {name: _load(path, functions[name]) for name, path in paths.items() if path.is_file()}
    libraries = {name: library for name, library in loaded.items() if library is not None}
    return libraries if len(libraries) == len(functions) else {}


def supported_level() -> levels.Level | None:
    """The best kind of precompiled libraries that this processor can run; None if there is none."""
    features = _processor_features()
    return next((level for level in levels.levels() if level.features <= features), None)


def _folder(package: str) -> Path:
    return Path(str(resources.files(package)))


def _processor_features() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return set()
    fields = [line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))]
    return {feature for line in fields for feature in line.split()}


def _compiler() -> str | None:
    result = levels.find_compiler()
    return None if result in _hung else result


_PART = "compiling-"


def _cache_folder() -> Path | None:
    """The folder of compiled libraries, created if missing; None if another user could write to it."""
    try:
        folder = cache_folder().parent.resolve() / "alexnet" / "native"
    except (RecipeError, RuntimeError):  # no home, or a loop of links
        return None
    folder.mkdir(0o700, parents=True, exist_ok=True)
    if not hasattr(os, "ST_NOEXEC") or os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return None
    for path in (folder, *folder.parents):
        status = path.lstat()
        others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        protected = path != folder and status.st_mode & stat.S_ISVTX  # as /tmp: users can rename their own files only
        if not stat.S_ISDIR(status.st_mode) or (others_write and not protected):
            return None
        if status.st_uid not in ((os.geteuid(),) if path == folder else (os.geteuid(), 0)):
            return None
    return folder


def _key(sources: Mapping[str, bytes], compiler: str, deadline: float) -> str | None:
    """A hash of everything that a compilation depends on; None if the system does not describe its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    names = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU ", "isa", "cpu\t")
    processor = sorted({line for line in lines if line.startswith(names)})
    path = Path(compiler).resolve()
    status = path.stat()
    version = _run([[compiler, "--version"]], deadline, compiler)[0]
    if not processor or version is None:
        return None
    parts = [
        repr(sorted(sources.items())),
        repr((levels.FLAGS, _NATIVE)),
        f"{path} {status.st_size} {status.st_mtime_ns}",
        version,
    ]
    parts += [platform.machine(), *platform.libc_ver(), *processor]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _cached(folder: Path, key: str, functions: Mapping[str, Sequence[str]]) -> dict[str, ctypes.CDLL]:
    """The libraries that are in the cache. A file whose SHA-256 differs from its name is not loaded."""
    libraries = {}
    for name, symbols in functions.items():
        for path in sorted(folder.glob(f"{name}-{key}-*.so")):
            status = path.lstat()
            safe = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
            if safe and path.name == _cache_name(name, key, path) and (library := _load(path, symbols)) is not None:
                libraries[name] = library
                break
    return libraries


def _cache_name(name: str, key: str, path: Path) -> str:
    return f"{name}-{key}-{hashlib.sha256(path.read_bytes()).hexdigest()}.so"


@contextlib.contextmanager
def _locked(folder: Path, deadline: float) -> Iterator[None]:
    """One process at a time; removes what killed processes left. Raises :class:`TimeoutError` at the deadline."""
    with FileLock(folder / "lock", timeout=max(0, deadline - time.monotonic()), mode=0o600):
        for path in folder.glob(f"{_PART}*"):
            shutil.rmtree(path, ignore_errors=True)
        yield


def _compile(
    compiler: str,
    sources: Mapping[str, bytes],
    functions: Mapping[str, Sequence[str]],
    folder: Path,
    deadline: float,
    cache: tuple[Path, str] | None = None,
) -> dict[str, ctypes.CDLL]:
    """Compile in ``folder`` in parallel, and load; each usable library is moved to ``cache`` (folder, key) first."""
    for file, text in sources.items():
        (folder / file).write_bytes(text)
    built = {name: folder / f"{name}.so" for name in functions}
    flags = (*_NATIVE, *levels.FLAGS)
    commands = [[compiler, str(folder / f"{name}.c"), *flags, "-o", str(built[name]), "-lm"] for name in functions]
    outputs = _run(commands, deadline, compiler)
    libraries = {}
    for (name, path), output in zip(built.items(), outputs, strict=True):
        if output is None or not path.is_file():
            continue
        if cache is not None:
            path.chmod(0o600)
            path = path.replace(cache[0] / _cache_name(name, cache[1], path))
        library = _load(path, functions[name])
        if library is not None:
            libraries[name] = library
        elif cache is not None:
            path.unlink(missing_ok=True)
    return libraries


def _run(commands: Sequence[Sequence[str]], deadline: float, compiler: str) -> list[str | None]:
    """Run commands in parallel; returns the output of each, or None if it failed.

    At the deadline all are killed, and the compiler is not used again in this process.
    """
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(_started(command)) for command in commands]
        return [_output(process, deadline, compiler) for process in started]


@contextlib.contextmanager
def _started(command: Sequence[str]) -> Iterator["subprocess.Popen[bytes] | None"]:
    """A process in a group of its own, which is killed at the end."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
    except OSError:
        yield None
        return
    with process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _output(process: "subprocess.Popen[bytes] | None", deadline: float, compiler: str) -> str | None:
    if process is None:
        return None
    try:
        output, _ = process.communicate(timeout=max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        _hung.add(compiler)
        return None
    return output.decode("utf-8", "replace") if process.returncode == 0 else None


def _load(path: Path, functions: Sequence[str]) -> ctypes.CDLL | None:
    """The library; None if it cannot be loaded or lacks one of ``functions``."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    return library if all(hasattr(library, name) for name in functions) else None
