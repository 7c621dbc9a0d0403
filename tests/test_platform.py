"""Which operating systems are supported, and what the others are told."""

import os
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
