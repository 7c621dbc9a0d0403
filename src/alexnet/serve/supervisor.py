"""Several processes behind one socket: started, watched, replaced when one dies, ended together."""

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
from alexnet.serve.run import work
from alexnet.serve.service import Settings

SHORT_LIFE = 10.0  # seconds: who dies faster was never well
MOST_DEATHS = 3  # such short lives in a row end the server


@dataclass
class _Child:
    process: BaseProcess
    pipe: Connection
    started: float
    ready: bool = False


def supervise(settings: Settings, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve with ``settings.workers`` processes until a signal ends all of them.

    ``ready`` is called when the first of each has become ready. Raises :class:`ServerError` where one can not start.
    """
    logs.configure()
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.workers)
    _Family(replace(settings, threads=threads), listening, ready).run()


class _Family:
    def __init__(self, settings: Settings, listening: socket.socket, ready: Callable[[], None]) -> None:
        self.settings, self.listening, self.announce = settings, listening, ready
        self.context = multiprocessing.get_context("spawn")  # a fork would take over PyTorch's threads half
        self.children: list[_Child] = []
        self.signals: list[int] = []
        self.deaths = 0
        self.failure: AlexNetError | None = None

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, frame: self.signals.append(number))
        for _ in range(self.settings.workers):
            self._begin()
        announced = ending = False
        while self.children:
            self._hear()
            while self.signals:
                received = self.signals.pop(0)
                if ending and received != signal.SIGHUP:
                    self._kill(received)
                ending = self._pass_on(received) or ending
            if not announced and not ending and all(child.ready for child in self.children):
                announced = True
                self.announce()
            ending = self._bury(ending)
        if self.failure is not None:
            raise self.failure

    def _begin(self) -> None:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_child, args=(self.settings, self.listening, theirs))
        # Ctrl-C reaches the whole group: with SIGINT blocked a child gets one signal, our SIGTERM, and not two.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()
        self.children.append(_Child(process, ours, time.monotonic()))

    def _hear(self) -> None:
        """What the children say, until something happens or half a second is over."""
        speaking = wait([*(c.pipe for c in self.children), *(c.process.sentinel for c in self.children)], 0.5)
        for child in self.children:
            if child.pipe not in speaking:
                continue
            try:
                word = child.pipe.recv()
            except (EOFError, OSError):
                child.process.join(1)  # its end of the pipe closes with it
                continue
            child.ready = word == "ready"
            if word != "ready" and self.failure is None:
                self.failure = ServerError(word)

    def _pass_on(self, number: int) -> bool:
        """Hand a signal to every child; is it the end?"""
        for child in self.children:
            if child.process.is_alive() and child.process.pid is not None:
                os.kill(child.process.pid, number if number == signal.SIGHUP else signal.SIGTERM)
        return number != signal.SIGHUP

    def _kill(self, number: int) -> NoReturn:
        """A second signal: end at once."""
        for child in self.children:
            child.process.kill()
            child.process.join()
        raise Interrupted(number, "stopped at once", "accepted requests were not answered")

    def _bury(self, ending: bool) -> bool:
        """Take the dead out, put new ones in their place; is this the end?"""
        for child in [c for c in self.children if not c.process.is_alive()]:
            self.children.remove(child)
            child.pipe.close()
            child.process.join()
            self._forget(child)
            if ending:
                continue
            logs.event("process died", logging.ERROR, pid=child.process.pid, status=child.process.exitcode)
            self.deaths = self.deaths + 1 if time.monotonic() - child.started < SHORT_LIFE else 0
            if self.failure is None and self.deaths < MOST_DEATHS:
                self._begin()
                continue
            self.failure = self.failure or ServerError(f"{self.deaths} processes died as soon as they had started")
            ending = self._pass_on(signal.SIGTERM)
        return ending

    def _forget(self, child: _Child) -> None:
        if self.settings.shared_metrics:
            from prometheus_client.multiprocess import mark_process_dead

            forget: Callable[[int | None], None] = mark_process_dead
            forget(child.process.pid)


def _child(settings: Settings, listening: socket.socket, parent: Connection) -> None:
    try:
        work(settings, listening, lambda: parent.send("ready"), parent)
    except AlexNetError as error:
        parent.send(reason(error))
        raise SystemExit(1) from None
