"""The processes of a server: one, or several behind one socket, monitored and restarted after a crash.

uvicorn serves HTTP/1.1. What it lacks is added here: deadlines for reading and writing, a limit on connections, and
error responses as JSON.
"""

import asyncio
import contextlib
import http
import ipaddress
import logging
import multiprocessing
import os
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from alexnet.errors import AlexNetError, Interrupted, ServerError, reason
from alexnet.serve import logs, middleware
from alexnet.serve.limits import Limits, RequestRejected
from alexnet.serve.service import Service, Settings, in_thread, read_keys

CRASH_SECONDS = 10.0  # a process that ends before has crashed at its start
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


BACKLOG = 512  # connections that the kernel queues until they are accepted
ACCEPT_BATCH = 8  # connections that asyncio accepts at once; each needs a file before it can be rejected
RESERVED_FILES = 48  # open files besides connections: libraries, a bundle that is being opened, ACCEPT_BATCH
SEND_BUFFER = 65536  # bytes of unread response per client in the kernel; Linux doubles it, its default is 4 MB
READ_SIZE = 16384  # bytes that are parsed at once: 16 kB in chunks of one byte take 40 ms, asyncio's 256 kB 2 s
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_SECONDS = 1.0  # after the drain limit, for cancelled work to end


_BYTES = re.compile(r":? bytearray\(.*", re.DOTALL)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket at ``host``; port 0 is any free port. Raises :class:`ServerError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as stack:
            # asyncio sets TCP_NODELAY only if the socket names its protocol; without it responses wait 40 ms.
            listening = stack.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
            stack.pop_all()  # keep it open
            return listening
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ServerError(f"cannot listen at {host}:{port}: {reason}", "a free port", "--port, --host") from error


def url(listening: socket.socket) -> str:
    """The URL of a server at this socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listening: socket.socket) -> bool:
    """Is the socket reachable from this machine only?"""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def serve(settings: Settings, listening: socket.socket, ready: Callable[[], None], parent: Any = None) -> None:
    """Serve until a signal ends the process.

    Args:
        settings: The settings of the server.
        listening: The socket of :func:`bind`.
        ready: Called once requests are served.
        parent: A connection to the supervisor, if any; its end means that the supervisor is gone.

    Raises:
        AlexNetError: The classifier cannot be opened.
    """
    logs.configure()
    raise_file_limit()
    runner = asyncio.Runner()
    try:
        ended = runner.run(Worker(settings).run(listening, ready, parent))
    except BaseException:
        runner.close()
        raise
    if not ended:  # Python would wait for the threads that still run
        sys.stdout.flush()
        os._exit(0)
    runner.close()


class Worker:
    """The life of one server process: :meth:`run` serves, :meth:`stop` does what a signal does."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.failure: AlexNetError | None = None
        self._stop_by: float | None = None  # time of the event loop at which the process must have ended
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, listening: socket.socket, ready: Callable[[], None], parent: Any = None) -> bool:
        """Serve until :meth:`stop`; see :func:`serve` for the arguments.

        Returns:
            Whether all threads have ended. False if one still decodes, or waits for a disk, at the drain limit.
        """
        self.service = Service(self.settings)
        self.server = _uvicorn(self.service)
        self._loop = loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_error)
        if parent is not None:
            loop.add_reader(parent.fileno(), self._on_parent_gone, parent)
        with self._handled_signals():
            self._start(self._open(ready))
            await self.server.serve(sockets=[listening])
            return await self._end()

    async def _open(self, ready: Callable[[], None]) -> None:
        try:
            known = await in_thread("watch", signature, self.settings.path)
            await self.service.open()
        except AlexNetError as error:
            self.failure, self.server.should_exit = error, True
            return
        except Exception as error:  # an error of a library: a server that cannot become ready must end
            logs.event("cannot open", logging.ERROR, trace=True)
            self.failure = ServerError(f"{self.settings.path} cannot be opened: {type(error).__name__}")
            self.server.should_exit = True
            return
        ready()
        if self.settings.reload_interval:
            await watch(self.settings.path, self.settings.reload_interval, known, self._reload)

    def reload(self) -> None:
        """Open the bundle that is on the disk now."""
        self._start(self._reload())

    async def _reload(self) -> None:
        if self.service.state == "ready":
            await self.service.reload(self._read_keys)

    def _read_keys(self) -> Sequence[str]:
        settings = self.settings
        return read_keys(settings.key_file) if settings.key_file is not None else settings.keys

    def stop(self) -> None:
        """Finish accepted requests, then end. Only the first call has an effect."""
        if self._stop_by is None:
            limits = self.service.limits
            self._stop_by = self._loop.time() + self.settings.drain_delay + limits.drain_seconds
            self.service.drain()
            self._start(self._drain())

    async def _drain(self) -> None:
        await asyncio.sleep(self.settings.drain_delay)  # load balancers see "not ready" and send no more requests
        self.server.should_exit = True

    async def _end(self) -> bool:
        for connection in list(self.server.server_state.connections):  # their requests were cancelled
            connection.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        remaining = 0.0 if self._stop_by is None else self._stop_by - self._loop.time()
        ended = True
        try:
            async with asyncio.timeout(max(remaining, 0) + GRACE_SECONDS):
                await self.service.close()
        except TimeoutError:
            ended = False
        if self.failure is not None:
            raise self.failure
        logs.event("stopped" if ended else "stopped: threads were still running at the drain limit")
        return ended

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @contextlib.contextmanager
    def _handled_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # Python allows handlers in the main thread only
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        self._loop.add_signal_handler(signal.SIGHUP, self.reload)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                if signal.getsignal(number) == self._on_signal:
                    signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any = None) -> None:
        """Stop. A second signal, or a timer after the drain limit, lets the kernel end the process.

        A handler in Python does not run while the main thread is inside a library, or blocked by a full pipe.
        """
        for each in (*STOP_SIGNALS, signal.SIGALRM):
            signal.signal(each, signal.SIG_DFL)
        seconds = self.settings.drain_delay + self.settings.limits.drain_seconds + 3 * GRACE_SECONDS
        signal.setitimer(signal.ITIMER_REAL, seconds)
        if os.getpid() == 1:
            _end_process_1()
        self._loop.call_soon_threadsafe(self.stop)

    def _on_parent_gone(self, parent: Any) -> None:
        self._loop.remove_reader(parent.fileno())
        self._on_signal(signal.SIGTERM)


def _end_process_1() -> None:
    """End this process at the next signal: another request to stop, or that of the timer.

    The kernel does not end process 1, that of a container, by a signal without a handler. So a thread does it, to which
    Python writes the signals while the main thread may be blocked.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for number in (*STOP_SIGNALS, signal.SIGALRM):
        signal.signal(number, lambda number, frame: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # before, it was the event loop's for SIGHUP

    def wait_and_exit() -> None:
        number = int(signal.SIGHUP)
        while number not in (*STOP_SIGNALS, signal.SIGALRM):
            (number,) = os.read(reading, 1)
        os._exit(128 + number)

    threading.Thread(target=wait_and_exit, name="signals", daemon=True).start()


def _log_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error in the event loop as one line."""
    logs.event(str(context["message"]), logging.ERROR, error=repr(context.get("exception", "")))


# Reload when the bundle has changed

Signature: TypeAlias = tuple[tuple[str, int, int, int], ...]


def signature(path: Path) -> Signature:
    """Name, size, time and inode of each file of a bundle, run or exported file; empty while it is being replaced."""
    folder = path / "bundle" if (path / "bundle" / "config.json").is_file() else path
    try:
        files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else [path]
        stats = [(str(file), file.stat()) for file in files]
    except OSError:
        return ()
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in stats)


async def watch(path: Path, seconds: float, known: Signature, reload: Callable[[], Awaitable[object]]) -> None:
    """Call ``reload`` when the files at ``path`` have changed.

    Args:
        path: A bundle, run or exported file.
        seconds: Time between two checks. A change must be the same at two checks, since copying takes time.
        known: The signature of the files that are loaded.
        reload: Called without arguments.
    """
    before = known
    while True:
        await asyncio.sleep(seconds)
        now = await in_thread("watch", signature, path)
        if now and now != known and now == before:
            known = now
            await reload()
        before = now


# uvicorn


def _uvicorn(service: Service) -> Any:
    import uvicorn

    from alexnet.serve.app import create_app

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # the Worker handles signals; uvicorn would raise the same signal again after it has drained

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for each in sockets or []:
                each.listen(BACKLOG)  # the kernel's queue; uvicorn's backlog is the number accepted at once

    limits = service.limits
    config = uvicorn.Config(
        create_app(service),
        http=protocol(service, connection_limit(limits)),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=15,
        backlog=ACCEPT_BATCH,
        h11_max_incomplete_event_size=32768,
        timeout_graceful_shutdown=max(1, round(limits.drain_seconds)),
    )
    return Server(config)


def raise_file_limit() -> None:
    """Raise the limit on open files, and so on connections, to what the system allows this user."""
    with contextlib.suppress(OSError, ValueError):
        hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def connection_limit(limits: Limits) -> int:
    """``max_connections``, or fewer if the limit on open files is low."""
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if open_files == resource.RLIM_INFINITY or open_files >= limits.max_connections + RESERVED_FILES:
        return limits.max_connections
    connections = max(1, open_files - RESERVED_FILES)
    logs.event(
        "fewer connections: the limit on open files (ulimit -n) is low",
        logging.WARNING,
        open_files=open_files,
        max_connections=connections,
    )
    return connections


def protocol(service: Service, max_connections: int) -> type[asyncio.Protocol]:
    """The protocol class of a connection, with deadlines and a limit on the number of connections."""
    limits = service.limits

    class LimitedProtocol(H11Protocol):
        _ended = False  # after an error: what the client still sends is discarded
        _read_deadline: asyncio.TimerHandle | None = None  # for the header of a request
        _write_deadline: asyncio.TimerHandle | None = None  # for the client to read what was sent

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            with contextlib.suppress(OSError):
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            transport.set_write_buffer_limits(high=0)  # pause_writing: not empty; resume_writing: empty
            transport.max_size = READ_SIZE
            if len(self.connections) > max_connections:
                self._reject(RequestRejected(503, "busy: too many connections; try again later", 1))
                transport.close()  # at once: files for connections are scarce
                return
            self._read_deadline = self.loop.call_later(limits.header_seconds, self._on_header_timeout)

        def data_received(self, data: bytes) -> None:
            if self._ended:
                return
            super().data_received(data)
            waiting = self.conn.their_state is h11.IDLE  # for the rest of a header
            if waiting and self._read_deadline is None:
                self._read_deadline = self.loop.call_later(limits.header_seconds, self._on_header_timeout)
            elif not waiting and self._read_deadline is not None:
                self._read_deadline.cancel()
                self._read_deadline = None

        def shutdown(self) -> None:
            if self._ended:
                self.transport.close()
            else:
                super().shutdown()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._write_deadline is None:
                self._write_deadline = self.loop.call_later(limits.write_seconds, self._on_write_timeout)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._write_deadline is not None:
                self._write_deadline.cancel()
                self._write_deadline = None

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._read_deadline, self._write_deadline):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """Called by uvicorn while it handles the h11 error of a malformed request."""
            error = sys.exc_info()[1]
            status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
            text = _BYTES.sub("", str(error))  # h11 appends the bytes that the client sent
            self._reject(RequestRejected(status, f"the request is not valid HTTP/1.1: {text}"))

        def _on_header_timeout(self) -> None:
            self._read_deadline = None
            if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
                self._reject(RequestRejected(408, "the header of the request did not arrive in time"))

        def _on_write_timeout(self) -> None:
            logs.event("closed: the client did not read", logging.WARNING, client=(self.client or [""])[0])
            self.transport.abort()

        def _reject(self, rejection: RequestRejected) -> None:
            """Send an error response without the application, and close the connection after a while.

            Closing at once, with data of the client unread, would reset the connection and discard the response.
            """
            request_id = logs.request_id(None)
            if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
                headers, body = middleware.error_response(rejection, request_id)
                lines = [f"HTTP/1.1 {rejection.status} {http.HTTPStatus(rejection.status).phrase}".encode()]
                lines += [key.title() + b": " + value for key, value in [*headers, middleware.CLOSE]]
                self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            if self.cycle is not None:
                self.cycle.disconnected = True  # the application's own response is not sent any more
                self.cycle.message_event.set()
            self._ended = True
            if self._read_deadline is not None:
                self._read_deadline.cancel()
            if self.transport.can_write_eof() and not self.transport.is_closing():
                self.transport.write_eof()
            self.transport.resume_reading()
            self.loop.call_later(middleware.LINGER_SECONDS, self.transport.close)
            service.metrics.requests.labels("other", rejection.status).inc()
            logs.event("request", id=request_id, client=(self.client or [""])[0], status=rejection.status)

    return LimitedProtocol
