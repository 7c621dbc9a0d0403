"""Contenders in processes of their own, timed in turn: what disturbs one round of one disturbs a round of all.

A process each, because some change what others would feel (the allocator, compiled kernels), and because a process
has a peak of memory. While one is timed the others wait and compute nothing.


What the machine can do at best: multiplications of large matrices, and copies of memory.
"""

import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from alexnet import kernels

READY_SECONDS = 900.0  # a contender that is not ready by then (a compilation that hangs) is left out
_TO_SPEED = 0.5  # seconds that a contender computes before its clock runs


class Measured(NamedTuple):
    """One round of one contender."""

    done: float  # images; of a limit, operations or bytes
    seconds: float
    waited: float = 0.0  # seconds of them in which the network had no batch


Unit = Callable[[], Measured]


class Skipped(Exception):  # noqa: N818 - no error: a contender that can not run here, with the reason for people
    """Raised while a contender is made: a library is missing, a precision would take minutes."""


@dataclass(frozen=True)
class Candidate:
    """Who, and the module-level function that makes its unit of work in a process of its own."""

    name: str
    make: Callable[..., Unit]
    arguments: dict[str, Any] = field(default_factory=dict)
    flop: float = 0.0  # of an image; 0: not counted
    precision: str = "fp32"  # whose limit it is measured against


@dataclass(frozen=True)
class Timing:
    """What became of a contender: its rounds, or why there are none."""

    contender: Candidate
    rates: tuple[float, ...] = ()  # a second, a round each
    waited: float = 0.0  # share of the time
    memory: float = 0.0  # MiB at its peak, Python and PyTorch included
    skipped: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    @property
    def spread(self) -> float:
        """Half of the distance between the fastest and the slowest round, as a share of the median."""
        return (max(self.rates) - min(self.rates)) / 2 / self.median

    def over(self, other: "Timing") -> float:
        """How many times as fast as ``other``: the median of the ratios of rounds that stood side by side."""
        return statistics.median(a / b for a, b in zip(self.rates, other.rates, strict=True))


def compete(contenders: Sequence[Candidate], rounds: int, say: Callable[[str], None]) -> list[Timing]:
    """Time all contenders in turn, ``rounds`` times, after a first one that counts for nothing."""
    with _running(contenders, say) as players:
        for number in range(rounds):
            ready = [player for player in players if not player.skipped]
            for player in ready[number % len(ready) :] + ready[: number % len(ready)] if ready else []:
                player.play()
        return [player.finish() for player in players]


class _Player:
    """The parent's end of a contender's process."""

    def __init__(self, contender: Candidate) -> None:
        self.contender, self.skipped, self.rounds = contender, "", list[Measured]()
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        disabled = [name for name in kernels.KERNELS if not kernels.enabled(name)]
        arguments = (theirs, contender.make, contender.arguments, disabled)
        self.process: BaseProcess = spawn.Process(target=_serve, args=arguments, daemon=False)
        self.process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        if not self._connection.poll(READY_SECONDS):
            self.skipped = f"not ready after {READY_SECONDS:.0f} s"
            return
        answer = self._receive()
        self.skipped = answer if isinstance(answer, str) else ""

    def play(self) -> None:
        self._connection.send(True)
        answer = self._receive()
        if isinstance(answer, str):
            self.skipped = answer
        else:
            self.rounds.append(Measured(*answer))

    def finish(self) -> Timing:
        if self.skipped or not self.rounds:
            return Timing(self.contender, skipped=self.skipped or "no round was played")
        self._connection.send(False)
        memory = self._receive()
        seconds = sum(r.seconds for r in self.rounds)
        rates = tuple(r.done / r.seconds for r in self.rounds)
        waited = sum(r.waited for r in self.rounds) / seconds
        return Timing(self.contender, rates, waited, 0.0 if isinstance(memory, str) else float(memory))

    def stop(self) -> None:
        self._connection.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionError):
            return "its process ended early; out of memory?"


@contextmanager
def _running(contenders: Sequence[Candidate], say: Callable[[str], None]) -> Iterator[list[_Player]]:
    players: list[_Player] = []
    try:
        for contender in contenders:  # one after the other, so that none is made while another warms up
            say(contender.name)
            players.append(_Player(contender))
            players[-1].wait_until_ready()
        yield players
    finally:
        for player in players:
            player.stop()


def _serve(
    connection: Connection, make: Callable[..., Unit], arguments: dict[str, Any], disabled_kernels: list[str]
) -> None:
    """The contender's own process: ready, a round whenever asked, its peak memory at the end."""
    os.dup2(2, 1)  # what libraries print is not the bench's answer
    if disabled_kernels:
        kernels.use("off", *disabled_kernels)
    try:
        unit = make(**arguments)
        unit()
        connection.send(True)
        while connection.recv():
            connection.send(tuple(unit()))
        connection.send(peak_memory())
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return  # the parent has gone
    except Skipped as reason:
        connection.send(str(reason))
    except Exception as error:  # whatever a library throws: the others go on, and the line says what it was
        connection.send(" ".join(f"{type(error).__name__}: {error}".split())[:200])


def peak_memory() -> float:
    """The most memory that this process has held, MiB. Of Linux's two counts, the one that begins with the process."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, IndexError, ValueError):
        unit = 1024**2 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def timed(work: Callable[[], object], done: float) -> Measured:
    """One call of ``work``, which did ``done`` images."""
    started = time.perf_counter()
    work()
    return Measured(done, time.perf_counter() - started)


def repeated(work: Callable[[], object], done: float, lasting: float = 0.5) -> Unit:
    """``work``, which does ``done`` images, as often as goes into so many seconds, once at least.

    One that is short alone would be lost among the clock's own doubts. Short ones come to speed before the clock runs;
    long ones hardly feel it. What stood still while another process computed finds caches as that left them, and its
    threads on one core until they are moved: one answer of OpenVINO's in int8 took 6 ms for half a second, then 4.
    """
    seconds = timed(work, done).seconds
    if seconds < lasting:  # the first one is slower than those that come
        seconds = min(timed(work, done).seconds for _ in range(2))
    seconds = max(seconds, 1e-6)
    times, before = max(1, round(lasting / seconds)), int(_TO_SPEED / seconds)

    def repeat(count: int) -> None:
        for _ in range(count):
            work()

    def unit() -> Measured:
        repeat(before)
        return timed(lambda: repeat(times), done * times)

    return unit


SIDE = 2048  # of the matrices
COPIED = 1 << 28  # bytes: no cache holds them
KINDS = ("fp32", "bf16", "int8")


def contenders() -> list[Candidate]:
    """The limits by name: multiply-adds count as two operations, a copied byte is read and written."""
    results = [Candidate(f"matrix product, {kind}", product, {"kind": kind}, precision=kind) for kind in KINDS]
    return [*results, Candidate("memory copy", copy, precision="copy")]


def product(kind: str) -> Unit:
    """Products of two 2048×2048 matrices."""
    import torch

    if kind == "bf16" and not torch.cpu.get_capabilities().get("avx512_bf16"):
        raise Skipped("this processor has no bfloat16 arithmetic")
    numbers = torch.randn(2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    if kind == "int8":
        a, b = (numbers * 40).clamp(-127, 127).to(torch.int8)
        return repeated(lambda: torch._int_mm(a, b), 2 * SIDE**3)
    a, b = numbers.to(torch.bfloat16 if kind == "bf16" else torch.float32)
    return repeated(lambda: a @ b, 2 * SIDE**3)


def copy() -> Unit:
    """A copy from one quarter of a gigabyte to another: bytes read and bytes written."""
    import torch

    source, target = torch.zeros(2, COPIED, dtype=torch.uint8)
    source.fill_(1)
    return repeated(lambda: target.copy_(source), 2 * COPIED)


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    import torch

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load_before": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
