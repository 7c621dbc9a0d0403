"""Prepare many generated images and print the peak memory. test_prepare_large.py runs it and may kill it."""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from alexnet.data.prepare import prepare
from alexnet.data.sources.source import Sample, Source
from alexnet.data.store import encode

SIDE = 64


def jpeg(number: int) -> bytes:
    """An image of that number as a file: two gradients and a disk, none like another."""
    y, x = np.mgrid[0:SIDE, 0 : SIDE + 16]
    turn, size = number % 251, 5 + number % 23
    base = np.stack([x * 2 + turn, y * 3, (x + y + number // 251) % 256], 2) % 256
    base[(x - turn % SIDE) ** 2 + (y - number % SIDE) ** 2 < size**2] = 255 - turn
    return encode(base.astype(np.uint8), 80)


class Generated:
    """Makes an image's bytes when they are wanted."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self) -> bytes:
        return jpeg(self.number)


def source(count: int) -> Source:
    listed = tuple(Sample(n % 10, f"{n % 10}/{n:09d}.jpg", Generated(n)) for n in range(count))
    return Source("generated", tuple("0123456789"), {"all": listed}, f"{count:064d}")


def main() -> None:
    path, count, stop = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

    def progress(done: int, total: int) -> None:
        if done == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    how = {"encoding": sys.argv[4], "shard_bytes": count * 3 * 32 * 32 // 12 // (8 if sys.argv[4] == "jpeg" else 1)}
    store = prepare(source(count), path, size=32, **how, progress=progress)
    status = Path("/proc/self/status").read_text()  # not getrusage, whose peak begins with that of who started this
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(store.fingerprint, peak)


if __name__ == "__main__":
    main()
