"""Many generated images: bounded memory, killed twice, the same bytes. 300 always; 5,000 and 100,000 are slow."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import contents

BIG = str(Path(__file__).with_name("prepare_large.py"))


def prepared(path, count, stop=0, encoding="jpeg"):
    """(fingerprint, bytes of memory at most) of a preparing in another process; None if it was killed at ``stop``."""
    words = [sys.executable, BIG, str(path), str(count), str(stop), encoding]
    done = subprocess.run(words, capture_output=True, text=True)
    if stop:
        assert done.returncode == -signal.SIGKILL, done.stderr
        return None
    assert done.returncode == 0, done.stderr
    fingerprint, memory = done.stdout.split()
    return fingerprint, int(memory)


@pytest.mark.parametrize(
    "count", [300, pytest.param(5_000, marks=pytest.mark.slow), pytest.param(100_000, marks=pytest.mark.slow)]
)
def test_killed_twice_with_bounded_memory(tmp_path, count):
    for stop in (count // 3, count * 3 // 4):
        prepared(tmp_path / "killed", count, stop)
        assert list((tmp_path / "killed.partial" / "records").iterdir())
    again, memory = prepared(tmp_path / "killed", count)
    whole, at_once = prepared(tmp_path / "whole", count)
    assert again == whole and contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert max(memory, at_once) < 1 << 30
    print(f"{count:,} images: {memory / 2**20:.0f} and {at_once / 2**20:.0f} MiB")
