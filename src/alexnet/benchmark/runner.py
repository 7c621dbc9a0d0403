"""Times candidates: each in its own process, in interleaved rounds, so that a disturbance affects all of them.

A process of its own also gives each candidate its own allocator settings, its own kernels and its own peak memory. This
module imports no torch, so that the processes stay small. It also measures the limits of the machine: matrix products
and memory copies.
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
from alexnet.system import cores

READY_SECONDS = 900.0  # a candidate that is not ready by then (a compilation that hangs) is skipped
_FORM_SECONDS = 120.0  # likewise for a further form of a peer, or ten times as long as the quickest one took
_TRIAL_SECONDS = 5.0  # of a peer's form: up to three rounds, of which the fastest counts
_WARMUP_SECONDS = 0.5  # of computation before the clock starts


class Round(NamedTuple):
    """One measured round of a candidate."""

    done: float  # images; for a limit operations or bytes
    seconds: float
    waited: float = 0.0  # of these seconds, without a batch for the network


Unit = Callable[[], Round]


class Skipped(Exception):  # noqa: N818 - no error: the candidate cannot run here
    """Raised by a candidate that cannot run on this machine; the message is the reason, such as a missing library."""


@dataclass(frozen=True)
class Candidate:
    """What is timed: ``make(**arguments)`` returns the unit of work, in the candidate's own process."""

    name: str
    make: Callable[..., Unit]
    arguments: dict[str, Any] = field(default_factory=dict)
    flop: float = 0.0  # operations per image; 0: not counted
    precision: str = "fp32"  # the limit it is compared with
    peer: str = ""  # candidates of one peer are forms of it, and only its fastest forms are timed; "": always timed


@dataclass(frozen=True)
class Timing:
    """The rounds of a candidate, or the reason why there are none."""

    candidate: Candidate
    rates: tuple[float, ...] = ()  # per second, one value per round
    waited: float = 0.0  # fraction of the time
    memory: float = 0.0  # peak MiB of the process, with Python and PyTorch
    skipped: str = ""
    trial: float = 0.0  # rate of the trial that showed another form of the peer to be faster; there are no rates then

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    @property
    def spread(self) -> float:
        """Half of the distance between the fastest and the slowest round, relative to the median."""
        return (max(self.rates) - min(self.rates)) / 2 / self.median

    def over(self, other: "Timing") -> float:
        """Speed relative to ``other``: the median of the ratios of interleaved rounds."""
        return statistics.median(a / b for a, b in zip(self.rates, other.rates, strict=True))


def time_candidates(candidates: Sequence[Candidate], rounds: int, log: Callable[[str], None]) -> list[Timing]:
    """Time all candidates in ``rounds`` interleaved rounds, after one warm-up round each.

    Candidates with the same ``peer`` are forms of it, such as its precisions. Each form runs trial rounds first, and
    only the fastest form is timed.

    Args:
        candidates: The candidates.
        rounds: Number of measured rounds.
        log: Receives the name of each candidate before it starts.
    """
    with _running(candidates, log) as processes:
        for number in range(rounds):
            ready = [process for process in processes if not process.skipped]
            for process in ready[number % len(ready) :] + ready[: number % len(ready)] if ready else []:
                process.run_round()
        return [process.finish() for process in processes]


class _CandidateProcess:
    """A candidate's process, seen from the parent process."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate, self.skipped, self.rounds, self.trial = candidate, "", list[Round](), 0.0
        self.seconds = 0.0  # until it was ready
        spawn = multiprocessing.get_context("spawn")
        self._connection, child_connection = spawn.Pipe()
        disabled = [name for name in kernels.KERNELS if not kernels.enabled(name)]
        arguments = (child_connection, candidate.make, candidate.arguments, disabled)
        self.process: BaseProcess = spawn.Process(target=_serve, args=arguments, daemon=False)
        self.process.start()
        child_connection.close()

    def wait_until_ready(self, limit: float = READY_SECONDS) -> None:
        started = time.perf_counter()
        if not self._connection.poll(limit):
            self.skipped = f"not ready after {limit:.0f} s"
            self.process.kill()  # it would slow down the others
            return
        self.seconds = time.perf_counter() - started
        reply = self._receive()
        self.skipped = reply if isinstance(reply, str) else ""

    def run_round(self) -> None:
        self._connection.send(True)
        reply = self._receive()
        if isinstance(reply, str):
            self.skipped = reply
        else:
            self.rounds.append(Round(*reply))

    def run_trial(self) -> None:
        while not self.skipped and len(self.rounds) < 3 and sum(r.seconds for r in self.rounds) < _TRIAL_SECONDS:
            self.run_round()
        self.trial = max((r.done / r.seconds for r in self.rounds), default=0.0)
        self.rounds.clear()

    def finish(self) -> Timing:
        if self.skipped or not self.rounds:
            return Timing(self.candidate, skipped=self.skipped or "no round was run", trial=self.trial)
        self._connection.send(False)
        memory = self._receive()
        seconds = sum(r.seconds for r in self.rounds)
        rates = tuple(r.done / r.seconds for r in self.rounds)
        waited = sum(r.waited for r in self.rounds) / seconds
        memory = 0.0 if isinstance(memory, str) else float(memory)
        return Timing(self.candidate, rates, waited, memory, trial=self.trial)

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
            return "its process ended early, perhaps out of memory"


@contextmanager
def _running(candidates: Sequence[Candidate], log: Callable[[str], None]) -> Iterator[list[_CandidateProcess]]:
    processes: list[_CandidateProcess] = []
    try:
        for candidate in candidates:  # one after the other, so that none starts while another warms up
            log(candidate.name)
            forms = [p for p in processes if candidate.peer and p.candidate.peer == candidate.peer]
            ready = [form.seconds for form in forms if form.seconds]
            processes.append(_CandidateProcess(candidate))
            processes[-1].wait_until_ready(limit_of_form(ready))
            if candidate.peer:
                processes[-1].run_trial()
                _stop_slower_forms([*forms, processes[-1]])
        yield processes
    finally:
        for process in processes:
            process.stop()


def limit_of_form(ready: Sequence[float]) -> float:
    """Seconds in which a form of a peer must be ready, from those that its other forms took."""
    return min(READY_SECONDS, max(_FORM_SECONDS, 10 * min(ready))) if ready else READY_SECONDS


def _stop_slower_forms(forms: Sequence[_CandidateProcess]) -> None:
    fastest = max(forms, key=lambda form: form.trial)
    for form in forms:
        if form is not fastest and not form.skipped:
            form.skipped = "another form is faster"
            form.stop()


def _serve(
    connection: Connection, make: Callable[..., Unit], arguments: dict[str, Any], disabled_kernels: list[str]
) -> None:
    """Main function of a candidate's process: reports ready, runs a round on each request, reports its peak memory."""
    os.dup2(2, 1)  # output of libraries goes to stderr, apart from the results
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
        return  # the parent process ended
    except Skipped as reason:
        connection.send(str(reason))
    except Exception as error:  # of any library: the other candidates continue, and the reason is reported
        connection.send(" ".join(f"{type(error).__name__}: {error}".split())[:200])


def peak_memory() -> float:
    """Peak memory of this process in MiB: on Linux VmHWM, which does not include the parent process."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, IndexError, ValueError):
        unit = 1024**2 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def timed(work: Callable[[], object], done: float) -> Round:
    """Time one call of ``work``, which processes ``done`` images."""
    started = time.perf_counter()
    work()
    return Round(done, time.perf_counter() - started)


def repeated(work: Callable[[], object], done: float, lasting: float = 0.5) -> Unit:
    """Return a unit that calls ``work`` as often as fits into ``lasting`` seconds, at least once.

    Short work is warmed up before the clock starts: after a process has waited, its caches are cold and its threads are
    on one core for a moment (OpenVINO's int8 model took 6 ms per image for half a second, then 4 ms).

    Args:
        work: The function to time.
        done: Images that one call processes.
        lasting: Seconds of a round.
    """
    seconds = timed(work, done).seconds
    if seconds < lasting:  # the first call is slower
        seconds = min(timed(work, done).seconds for _ in range(2))
    seconds = max(seconds, 1e-6)
    times, before = max(1, round(lasting / seconds)), int(_WARMUP_SECONDS / seconds)

    def repeat(count: int) -> None:
        for _ in range(count):
            work()

    def unit() -> Round:
        repeat(before)
        return timed(lambda: repeat(times), done * times)

    return unit


SIZE = 2048  # of the matrices
COPIED = 1 << 28  # bytes, more than any cache
KINDS = ("fp32", "bf16", "int8")


def limit_candidates() -> list[Candidate]:
    """Candidates for the limits. A multiply-add counts as two operations, a copied byte as read and written."""
    results = [Candidate(f"matrix product, {kind}", product, {"kind": kind}, precision=kind) for kind in KINDS]
    return [*results, Candidate("memory copy", copy, precision="copy")]


def product(kind: str) -> Unit:
    """Products of two 2048×2048 matrices."""
    import torch

    needed = {"fp32": None, "bf16": "avx512_bf16", "int8": "avx512_vnni"}[kind]
    if needed and not torch.cpu.get_capabilities().get(needed):
        raise Skipped(f"this processor has no {kind} arithmetic that PyTorch uses")
    values = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    if kind == "int8":
        a, b = (values * 40).clamp(-127, 127).to(torch.int8)
        return repeated(lambda: torch._int_mm(a, b), 2 * SIZE**3)
    a, b = values.to(torch.bfloat16 if kind == "bf16" else torch.float32)
    return repeated(lambda: a @ b, 2 * SIZE**3)


def copy() -> Unit:
    """Copies of 256 MiB: bytes read plus bytes written."""
    import torch

    source, target = torch.zeros(2, COPIED, dtype=torch.uint8)
    source.fill_(1)
    return repeated(lambda: target.copy_(source), 2 * COPIED)


def machine() -> dict[str, str | int]:
    """Describe the machine of the measurements."""
    import torch

    return {
        "processor": _processor(),
        "cores": cores(),
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
