"""Which operating systems are supported, and what the others are told."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import alexnet
from alexnet import __main__

ROOT = Path(__file__).parents[1]


def test_another_system_is_refused_in_one_line():
    """In a process in which no POSIX module can be imported."""
    script = "import os, sys; os.name = 'nt'; sys.modules['fcntl'] = None; from alexnet.__main__ import main; main()"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 1 and run.stdout == ""
    assert run.stderr == "alexnet: operating system 'nt' is not supported; use Linux, on Windows by WSL 2\n"


@pytest.fixture
def nothing_chosen():
    """The environment of a person who has chosen nothing about OpenMP's threads."""
    return {k: v for k, v in os.environ.items() if k not in {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}}


@pytest.mark.parametrize(
    ("command", "chosen", "spins"),
    [
        ("models", {}, "1000"),
        ("models", {"OMP_WAIT_POLICY": "PASSIVE"}, "None"),
        ("models", {"GOMP_SPINCOUNT": "77"}, "77"),
        ("bench", {}, "None"),
    ],
)
def test_threads_sleep_soon_unless_a_person_chose(command, chosen, spins, nothing_chosen):
    script = "import os\nfrom alexnet.__main__ import main\ntry: main()\nfinally: print(os.getenv('GOMP_SPINCOUNT'))"
    words = [sys.executable, "-c", script, command, "--help"]
    assert subprocess.check_output(words, text=True, env=nothing_chosen | chosen).splitlines()[-1] == spins


def test_it_is_set_before_openmp_reads_it(nothing_chosen):
    """As OpenMP itself prints it when PyTorch is imported."""
    words = [sys.executable, "-m", "alexnet", "models", "lenet5"]
    run = subprocess.run(words, capture_output=True, text=True, env=nothing_chosen | {"OMP_DISPLAY_ENV": "VERBOSE"})
    assert run.returncode == 0, run.stderr
    found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", run.stderr)
    if found is None:
        pytest.skip("PyTorch is not built with GCC's OpenMP")
    assert found[1] == "1000"


def test_python_is_refused_too(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        with pytest.raises(ImportError, match="operating system 'nt' is not supported; use Linux"):
            alexnet.__getattr__("train")


def test_the_package_declares_its_system():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    systems = [name for name in project["classifiers"] if name.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux"]
    module, _, name = project["scripts"]["alexnet"].partition(":")
    assert module == __main__.__name__ and callable(getattr(__main__, name))
