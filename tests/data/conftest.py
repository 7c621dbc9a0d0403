"""Small folders of real files, small stores of arrays, and a preparing that is killed."""

import hashlib
import io
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet.data.sources.source import Sample, Source

SIZE = 8
FEW = {"size": SIZE, "shard_bytes": 4 * SIZE * SIZE * 3, "validation": 0.2, "test": 0.2}  # four images a shard
SIDE = 6  # pixels of the images of array_source


def png_bytes(seed: int, side: int = 12) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """``folder({"cat": 5, "train/dog": 3})`` writes so many PNGs into each folder and gives the root."""

    def make(counts: dict[str, int], name: str = "images") -> Path:
        root = tmp_path / name
        for number, (place, count) in enumerate(counts.items()):
            (root / place).mkdir(parents=True)
            for index in range(count):
                (root / place / f"{index:03d}.png").write_bytes(png_bytes(1000 * number + index))
        return root

    return make


def array_source(count: int = 30, classes: int = 3) -> Source:
    images = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    listed = tuple(Sample(i % classes, f"all#{i:04d}", lambda i=i: images[i]) for i in range(count))
    return Source("arrays", tuple(f"k{i}" for i in range(classes)), {"all": listed}, "f" * 64)


def counts(source: Source) -> dict[str, int]:
    """Images in each split."""
    return {name: len(images) for name, images in source.splits.items()}


def contents(root: Path) -> dict[str, str]:
    """SHA-256 of every file below ``root``."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


CHILD = """
    import os, signal, sys
    from alexnet.data.prepare import prepare
    from alexnet.data.sources import open_source
    root, path, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
    def progress(done, total):
        if done == stop:
            os.kill(os.getpid(), signal.SIGKILL)
    prepare(open_source(root), path, size=8, shard_bytes=4 * 8 * 8 * 3, validation=0.2, test=0.2, progress=progress)
"""


def killed_at(root: Path, path: Path, stop: int) -> None:
    """Prepare ``root`` with FEW in another process, killed when ``stop`` images are done."""
    code = textwrap.dedent(CHILD)
    done = subprocess.run([sys.executable, "-c", code, str(root), str(path), str(stop)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
