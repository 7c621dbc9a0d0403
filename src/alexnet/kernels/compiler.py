"""C files of this package, compiled where they run and kept in a cache (``~/.cache/alexnet/native``).

Whoever uses one has the same formula without it: there may be no compiler (GCC or Clang with OpenMP). For systems
without a compiler, :func:`precompile` puts libraries for several kinds of processors into the package's own folder.

A compiled library is loaded again where its source, its headers, the flags, the compiler and the processor are the
same, only from a folder that no other user can write, and only if its SHA-256 is the one in its file name. Processes
that start together compile once. Where there is no such folder, libraries are compiled in a temporary one.
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

from alexnet.kernels.backend import enabled
from alexnet.system import temporary_folder

FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
_NATIVE = ("-march=native",)
_V3 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
_V4 = _V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}
# Levels of precompiled libraries per machine: name, compiler flags, features that /proc/cpuinfo must list. The first
# level that the processor supports is used.
_LEVELS: dict[str, list[tuple[str, tuple[str, ...], set[str]]]] = {
    "x86_64": [
        ("v4vnni", ("-march=x86-64-v4", "-mavx512vbmi", "-mavx512vnni"), _V4 | {"avx512vbmi", "avx512_vnni"}),
        ("v4", ("-march=x86-64-v4",), _V4),
        ("v3", ("-march=x86-64-v3",), _V3),
    ],
    "aarch64": [("v8", ("-march=armv8-a",), {"asimd"})],
}
_SECONDS = 60.0  # for compiling, with waiting for another process; on two idle cores it takes five
_PRECOMPILE_SECONDS = 600.0  # for one level
_hung: set[str] = set()  # compilers that this process waited for in vain


class NativeLibraries:
    """The C files of one package: compiled when :meth:`build` is called, used until they are not wanted.

    ``functions`` are the names of the functions that each ``name.c`` has, ``headers`` the files that they include.
    """

    def __init__(self, package: str, functions: Mapping[str, Sequence[str]], headers: Sequence[str] = ()) -> None:
        self.built: dict[str, ctypes.CDLL] = {}  # by name, once :meth:`build` succeeded
        self.compiled = functools.cache(lambda: compiled(package, functions, headers))
        self.cached = functools.cache(lambda: cached(package, functions, headers))
        self.precompile = functools.partial(precompile, package, functions, headers)

    def build(self) -> None:
        """Compile them if that was not done; nothing happens where that can not be."""
        if not self.built:
            self.built.update(self.compiled())

    def load(self) -> None:
        """Use them if all of them are in the cache: some milliseconds, nothing is compiled."""
        if not self.built:
            self.built.update(self.cached())

    def has(self, name: str) -> bool:
        """Whether ``name`` is compiled and enabled."""
        return name in self.built and enabled(name)


def compiled(
    package: str, functions: Mapping[str, Sequence[str]], headers: Sequence[str] = ()
) -> dict[str, ctypes.CDLL]:
    """Each ``name.c`` of ``package``, loaded from the cache or compiled, side by side; without those for which that
    fails, for whatever reason."""
    deadline = time.monotonic() + _SECONDS
    libraries = precompiled(package, functions, headers)
    compiler = _compiler()
    if libraries or compiler is None:
        return libraries
    sources = _sources(package, functions, headers)
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


def cached(package: str, functions: Mapping[str, Sequence[str]], headers: Sequence[str] = ()) -> dict[str, ctypes.CDLL]:
    """Each ``name.c`` of ``package``, precompiled or from the cache; nothing where one of them is not there."""
    if libraries := precompiled(package, functions, headers):
        return libraries
    if (compiler := _compiler()) is None:
        return {}
    with contextlib.suppress(OSError, MemoryError):
        folder = _cache_folder()
        key = _key(_sources(package, functions, headers), compiler, time.monotonic() + _SECONDS)
        libraries = _cached(folder, key, functions) if folder is not None and key is not None else {}
        if len(libraries) == len(functions):
            return libraries
    return {}


def precompile(package: str, functions: Mapping[str, Sequence[str]], headers: Sequence[str] = ()) -> list[str]:
    """Compile each ``name.c`` into the package's folder, for every level of this machine's architecture.

    Returns:
        The libraries that could not be compiled, as ``name (level)``.

    Raises:
        OSError: The folder of the package is not writable.
    """
    compiler, sources = _compiler(), _sources(package, functions, headers)
    folder = _package_folder(package)
    missing = []
    for level, march, _ in _LEVELS.get(platform.machine(), []):
        libraries: dict[str, ctypes.CDLL] = {}
        if compiler is not None:
            folder.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=_PART, dir=folder) as part:
                deadline = time.monotonic() + _PRECOMPILE_SECONDS
                libraries = _compile(compiler, sources, functions, Path(part), deadline, march=march)
                for name in libraries:
                    (Path(part) / f"{name}.so").replace(folder / _precompiled_name(name, level, march, sources))
        missing += [f"{name} ({level})" for name in functions if name not in libraries]
    return missing


def precompiled(
    package: str, functions: Mapping[str, Sequence[str]], headers: Sequence[str] = ()
) -> dict[str, ctypes.CDLL]:
    """The libraries of :func:`precompile` for this processor; nothing where one of them is not there.

    They are trusted like the Python files beside them.
    """
    folder = _package_folder(package)
    if not folder.is_dir():
        return {}
    sources = _sources(package, functions, headers)
    features = _processor_features()
    for level, march, required in _LEVELS.get(platform.machine(), []):
        if required <= features:
            paths = {name: folder / _precompiled_name(name, level, march, sources) for name in functions}
            loaded = {name: _load(path, functions[name]) for name, path in paths.items() if path.is_file()}
            libraries = {name: library for name, library in loaded.items() if library is not None}
            if len(libraries) == len(functions):
                return libraries
    return {}


def _package_folder(package: str) -> Path:
    return Path(str(resources.files(package))) / "compiled"


def _precompiled_name(name: str, level: str, march: Sequence[str], sources: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256(repr((sorted(sources.items()), FLAGS, march)).encode()).hexdigest()
    return f"{name}-{level}-{digest[:32]}.so"


def _processor_features() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return set()
    fields = [line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))]
    return {feature for line in fields for feature in line.split()}


def _compiler() -> str | None:
    result = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return None if result in _hung else result


def _sources(package: str, functions: Mapping[str, Sequence[str]], headers: Sequence[str]) -> dict[str, bytes]:
    files = (*(f"{name}.c" for name in functions), *headers)
    return {file: resources.files(package).joinpath(file).read_bytes() for file in files}


_PART = "compiling-"


def _cache_folder() -> Path | None:
    """The folder of compiled libraries, made if it is not there; None where another user could write into it."""
    try:
        folder = Path.home().resolve() / ".cache" / "alexnet" / "native"
    except RuntimeError:  # no home
        return None
    folder.mkdir(0o700, parents=True, exist_ok=True)
    if not hasattr(os, "ST_NOEXEC") or os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return None
    for path in (folder, *folder.parents):
        status = path.lstat()
        others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        protected = path != folder and status.st_mode & stat.S_ISVTX  # as /tmp: nobody renames what is not their own
        if not stat.S_ISDIR(status.st_mode) or (others_write and not protected):
            return None
        if status.st_uid not in ((os.geteuid(),) if path == folder else (os.geteuid(), 0)):
            return None
    return folder


def _key(sources: Mapping[str, bytes], compiler: str, deadline: float) -> str | None:
    """A name for what a compilation depends on; None where the system does not describe its processor."""
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
        repr((FLAGS, _NATIVE)),
        f"{path} {status.st_size} {status.st_mtime_ns}",
        version,
    ]
    parts += [platform.machine(), *platform.libc_ver(), *processor]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _cached(folder: Path, key: str, functions: Mapping[str, Sequence[str]]) -> dict[str, ctypes.CDLL]:
    """What the cache has of ``functions``. A file whose content is not what its name promises is not loaded."""
    libraries = {}
    for name, wanted in functions.items():
        for path in sorted(folder.glob(f"{name}-{key}-*.so")):
            status = path.lstat()
            safe = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
            if safe and path.name == _cache_name(name, key, path) and (library := _load(path, wanted)) is not None:
                libraries[name] = library
                break
    return libraries


def _cache_name(name: str, key: str, path: Path) -> str:
    return f"{name}-{key}-{hashlib.sha256(path.read_bytes()).hexdigest()}.so"


@contextlib.contextmanager
def _locked(folder: Path, deadline: float) -> Iterator[None]:
    """One process at a time. What killed ones left is removed. Raises :class:`TimeoutError` at the deadline."""
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
    march: Sequence[str] = _NATIVE,
) -> dict[str, ctypes.CDLL]:
    """Compile in ``folder``, side by side, and load; each library that can be used is moved into ``cache`` first."""
    for file, text in sources.items():
        (folder / file).write_bytes(text)
    built = {name: folder / f"{name}.so" for name in functions}
    flags = (*march, *FLAGS)
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
    """Run commands side by side; what each printed, or None where it failed. All are killed at the deadline, and the
    compiler is not used again."""
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
    """The library, if it can be loaded and has all ``functions``."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    return library if all(hasattr(library, name) for name in functions) else None
