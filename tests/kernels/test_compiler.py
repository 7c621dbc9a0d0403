"""Compiled C files: where they are kept, what is loaded, and what happens with a compiler that does not work."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from alexnet.data import resize
from alexnet.kernels import compiler as native
from alexnet.kernels import native_kernels
from alexnet.system import temporary_folder

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or not Path("/proc/cpuinfo").exists(), reason="no C compiler"
)
RESIZE = ("alexnet.kernels", {"resize": ["across", "down"]})
SCRIPT = (
    "from alexnet.kernels.compiler import compiled;"
    " print(list(compiled('alexnet.kernels', {'resize': ['across', 'down']})))"
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own, a temporary folder of its own."""
    tmp_path.chmod(0o700)
    folder = tmp_path / "home"
    folder.mkdir(0o700)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(native, "_hung", set())
    return folder


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Puts a shell script in the place of the compiler; returns what writes it. Its calls stand in the file returned,
    a line each, those for the version left out. Scripts that compile add -O0, which takes a fifth of the time."""
    folder, calls, real = tmp_path / "bin", tmp_path / "calls", shutil.which("cc")
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(script: str) -> Path:
        path = folder / "cc"
        path.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && {{ echo one; exit; }}\necho "$@" >> {calls}\nreal={real}\n{script}\n'
        )
        path.chmod(0o755)
        return calls

    return write


def cached(home):
    return sorted((home / ".cache/alexnet/native").glob("*.so"))


def temporary(home):
    return list((home.parent / "temporary").iterdir())


def test_a_second_process_does_not_compile(home, compiler):
    calls = compiler('exec $real "$@" -O0')
    assert list(native.compiled(*RESIZE)) == list(native.compiled(*RESIZE)) == ["resize"]
    assert len(calls.read_text().splitlines()) == 1
    (path,) = cached(home)
    assert path.stat().st_mode & 0o022 == 0
    assert (home / ".cache/alexnet/native").stat().st_mode & 0o777 == 0o700
    assert temporary(home) == []


def test_what_is_in_the_cache_is_loaded_without_compiling(home, compiler):
    calls = compiler('exec $real "$@" -O0')
    libraries = native.NativeLibraries(*RESIZE)
    libraries.load()
    assert not libraries.built and not calls.exists()
    native.compiled(*RESIZE)
    libraries = native.NativeLibraries(*RESIZE)
    libraries.load()
    assert libraries.has("resize")
    assert len(calls.read_text().splitlines()) == 1
    cached(home)[0].unlink()
    libraries = native.NativeLibraries(*RESIZE)
    libraries.load()
    assert not libraries.has("resize")
    assert len(calls.read_text().splitlines()) == 1


def test_processes_that_start_together_compile_once(home, compiler):
    calls = compiler('exec $real "$@" -O0')
    started = [subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in started] == ["['resize']\n"] * 3
    assert len(calls.read_text().splitlines()) == 1


def test_another_compiler_compiles_anew(home, compiler):
    compiler('exec $real "$@" -O0')
    native.compiled(*RESIZE)
    calls = compiler('exec $real "$@" -O0 # another')
    native.compiled(*RESIZE)
    assert len(calls.read_text().splitlines()) == 2


@pytest.mark.parametrize("change", [b"", b"no library", None])
def test_a_changed_file_is_not_loaded(home, compiler, change):
    calls = compiler('exec $real "$@" -O0')
    native.compiled(*RESIZE)
    (path,) = cached(home)
    changed = path.read_bytes() + b"\0" if change is None else change
    path.unlink()  # this process has the old file in its memory
    path.write_bytes(changed)
    path.chmod(0o600)
    assert list(native.compiled(*RESIZE)) == ["resize"]
    assert len(calls.read_text().splitlines()) == 2


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
@pytest.mark.parametrize("place", [".cache/alexnet/native", ".cache", "."])
def test_a_folder_that_others_can_write_is_no_cache(home, compiler, mode, place):
    compiler('exec $real "$@" -O0')
    (home / ".cache/alexnet/native").mkdir(parents=True, mode=0o700)
    (home / place).chmod(mode)
    assert list(native.compiled(*RESIZE)) == ["resize"]
    assert cached(home) == temporary(home) == []


def test_a_linked_cache_is_none(home):
    (home.parent / "elsewhere").mkdir(0o700)
    (home / ".cache/alexnet").mkdir(parents=True)
    (home / ".cache/alexnet/native").symlink_to(home.parent / "elsewhere")
    assert list(native.compiled(*RESIZE)) == ["resize"]
    assert not list((home.parent / "elsewhere").iterdir())


def test_without_a_home_a_temporary_folder_serves(home, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nothing")
    assert list(native.compiled(*RESIZE)) == ["resize"]
    assert temporary(home) == []


@pytest.mark.parametrize(
    "script",
    [
        'while [ "$1" != -o ]; do shift; done; echo "int other;" > $2.c; exec $real -shared $2.c -o $2',  # no function
        'while [ "$1" != -o ]; do shift; done; echo text > $2',
        "exit 0",
        "exit 1",
    ],
)
def test_a_compiler_whose_library_is_none_is_no_compiler(home, compiler, script):
    compiler(script)
    assert native.compiled(*RESIZE) == {}
    assert cached(home) == temporary(home) == []


@pytest.mark.parametrize("version", ["echo one; exit", "sleep 1000"])
def test_a_compiler_that_hangs_is_awaited_once(home, compiler, monkeypatch, version):
    monkeypatch.setattr(native, "_SECONDS", 0.5)
    calls = compiler(f"echo $$ >> {home}/ids; sleep 1000")
    path = Path(shutil.which("cc"))
    path.write_text(path.read_text().replace("echo one; exit", version))
    assert native.compiled("alexnet.kernels", {"resize": ["across"]}) == {}
    before = calls.read_text() if calls.exists() else ""
    assert native.compiled("alexnet.models", {"lrn": ["lrn_f32_forward"], "linear": ["linear_few_rows"]}) == {}
    assert (calls.read_text() if calls.exists() else "") == before
    for number in (home / "ids").read_text().split() if (home / "ids").exists() else ():
        assert not Path(f"/proc/{number}").exists()
    assert temporary(home) == []


def test_every_function_of_a_c_file_is_looked_for():
    """The lists of functions, against the libraries' own tables."""
    assert native_kernels.build() and resize.build()
    for built, functions in (
        (native_kernels._libraries.built, native_kernels._FUNCTIONS),
        (resize._libraries.built, RESIZE[1]),
    ):
        assert set(built) == set(functions)
        for name, library in built.items():
            assert all(hasattr(library, function) for function in functions[name])
    sources = Path(native_kernels.__file__).parent
    calls = "".join(path.read_text() for path in sources.glob("*.py"))
    for name in re.findall(r'function\("\w+", "(\w+)"\)', calls):
        assert any(name in functions for functions in native_kernels._FUNCTIONS.values())


KILLED = """
import os, signal
from alexnet.system import temporary_folder
with temporary_folder() as folder:
    (folder / "file").write_text("left behind")
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_and_nothing_else(home):
    mine = home.parent / "temporary" / "alexnet-images"
    mine.mkdir()
    (home.parent / "temporary" / "alexnet-temporary-abcdefgh").symlink_to(mine)
    left = Path(subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True).stdout.strip())
    assert (left / "file").exists()
    with temporary_folder() as used, temporary_folder() as other:
        assert used.exists() and other.exists() and not left.exists()
    assert not used.exists() and not other.exists()
    assert sorted(path.name for path in temporary(home)) == ["alexnet-images", "alexnet-temporary-abcdefgh"]
