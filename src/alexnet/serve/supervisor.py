"""Several server processes behind one socket: started, monitored, restarted after a crash, stopped together."""

import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NoReturn

from alexnet.errors import AlexNetError, Interrupted, ServerError, reason
from alexnet.serve import logs
from alexnet.serve.run import serve
from alexnet.serve.service import Settings

CRASH_SECONDS = 10.0  # a process that ends sooner has crashed at its start
MAX_CRASHES = 3  # crashes in a row that end the server


def supervise(settings: Settings, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve with ``settings.workers`` processes until a signal ends all of them.

    Args:
        settings: The settings of each process. ``threads`` 0 divides the processor cores among the processes.
        listening: The socket that the processes share.
        ready: Called once all processes are ready.

    Raises:
        ServerError: A process cannot start.
    """
    logs.configure()
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.workers)
    Supervisor(replace(settings, threads=threads), listening, ready).run()


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    started: float
    ready: bool = False


class Supervisor:
    """The parent of the server processes; see :func:`supervise`."""

    def __init__(self, settings: Settings, listening: socket.socket, ready: Callable[[], None]) -> None:
        self.settings, self.listening, self.on_ready = settings, listening, ready
        self.context = multiprocessing.get_context("spawn")  # a fork would copy PyTorch without its threads
        self.workers: list[_Worker] = []
        self.signals: list[int] = []
        self.crashes = 0
        self.failure: AlexNetError | None = None

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, frame: self.signals.append(number))
        for _ in range(self.settings.workers):
            self._start_worker()
        announced = stopping = False
        while self.workers:
            self._read_messages()
            while self.signals:
                received = self.signals.pop(0)
                if stopping and received != signal.SIGHUP:
                    self._kill(received)
                stopping = self._forward(received) or stopping
            if not announced and not stopping and all(worker.ready for worker in self.workers):
                announced = True
                self.on_ready()
            stopping = self._replace_dead(stopping)
        if self.failure is not None:
            raise self.failure

    def _start_worker(self) -> None:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_work, args=(self.settings, self.listening, theirs))
        # Ctrl-C reaches the whole process group. With SIGINT blocked a worker gets one signal (our SIGTERM), not two.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()
        self.workers.append(_Worker(process, ours, time.monotonic()))

    def _read_messages(self) -> None:
        """Read the workers' messages; returns when something happens, after half a second at most."""
        active = wait([*(w.pipe for w in self.workers), *(w.process.sentinel for w in self.workers)], 0.5)
        for worker in self.workers:
            if worker.pipe not in active:
                continue
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                worker.process.join(1)  # its end of the pipe closes when it ends
                continue
            worker.ready = message == "ready"
            if message != "ready" and self.failure is None:
                self.failure = ServerError(message)

    def _forward(self, number: int) -> bool:
        """Send a signal to every worker. Returns whether it stops the server."""
        for worker in self.workers:
            if worker.process.is_alive() and worker.process.pid is not None:
                os.kill(worker.process.pid, number if number == signal.SIGHUP else signal.SIGTERM)
        return number != signal.SIGHUP

    def _kill(self, number: int) -> NoReturn:
        """End at once, after a second signal."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
        raise Interrupted(number, "stopped at once", "accepted requests were not answered")

    def _replace_dead(self, stopping: bool) -> bool:
        """Remove dead workers and start new ones. Returns whether the server stops."""
        for worker in [w for w in self.workers if not w.process.is_alive()]:
            self.workers.remove(worker)
            worker.pipe.close()
            worker.process.join()
            self._remove_metrics(worker)
            if stopping:
                continue
            logs.event("process died", logging.ERROR, pid=worker.process.pid, status=worker.process.exitcode)
            self.crashes = self.crashes + 1 if time.monotonic() - worker.started < CRASH_SECONDS else 0
            if self.failure is None and self.crashes < MAX_CRASHES:
                self._start_worker()
                continue
            self.failure = self.failure or ServerError(f"{self.crashes} processes died as soon as they had started")
            stopping = self._forward(signal.SIGTERM)
        return stopping

    def _remove_metrics(self, worker: _Worker) -> None:
        if self.settings.shared_metrics:
            from prometheus_client.multiprocess import mark_process_dead

            mark_dead: Callable[[int | None], None] = mark_process_dead
            mark_dead(worker.process.pid)


def _work(settings: Settings, listening: socket.socket, parent: Connection) -> None:
    try:
        serve(settings, listening, lambda: parent.send("ready"), parent)
    except AlexNetError as error:
        parent.send(reason(error))
        raise SystemExit(1) from None
