"""uvicorn's HTTP/1.1 with what it lacks: deadlines for reading and writing, a connection limit, errors as JSON.

A server from its socket to its end: signals, readiness, drain.
"""

import asyncio
import contextlib
import http
import ipaddress
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from alexnet.errors import AlexNetError, ServerError
from alexnet.serve import engine, logs, middleware
from alexnet.serve import service as keys
from alexnet.serve.engine import in_thread
from alexnet.serve.limits import Limits, RequestRejected
from alexnet.serve.service import Service, Settings

SEND_BUFFER = 65536  # bytes in the kernel that one client may leave unread; Linux doubles it, by default it has 4 MB


def protocol(service: Service, connections: int) -> type[asyncio.Protocol]:
    """The class of a connection to ``service``, of which at most ``connections`` are open."""
    limits = service.limits

    class Limited(H11Protocol):
        _reading: asyncio.TimerHandle | None = None  # the deadline for the head of a request
        _writing: asyncio.TimerHandle | None = None  # the deadline for what lies in the write buffer

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            with contextlib.suppress(OSError):
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            transport.set_write_buffer_limits(high=0)  # pause_writing: not empty; resume_writing: empty
            if len(self.connections) > connections:
                self._refuse(RequestRejected(503, "busy: too many connections; ask again later", 1))
                return
            self._reading = self.loop.call_later(limits.header_seconds, self._late)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            waits = self.conn.their_state is h11.IDLE  # for the rest of a request's head
            if waits and self._reading is None:
                self._reading = self.loop.call_later(limits.header_seconds, self._late)
            elif not waits and self._reading is not None:
                self._reading.cancel()
                self._reading = None

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._writing is None:
                self._writing = self.loop.call_later(limits.write_seconds, self._unread)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._reading, self._writing):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """For a request that is not HTTP; called where h11's error is handled."""
            error = sys.exc_info()[1]
            status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
            self._refuse(RequestRejected(status, f"the request is not valid HTTP/1.1: {error}"))

        def _late(self) -> None:
            self._reading = None
            if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
                self._refuse(RequestRejected(408, "the head of the request did not arrive in time"))

        def _unread(self) -> None:
            logs.event("closed: the client did not read", logging.WARNING, client=(self.client or [""])[0])
            self.transport.abort()

        def _refuse(self, refused: RequestRejected) -> None:
            """Answer without the application, and close the connection."""
            name = logs.request_id(None)
            if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
                head, body = middleware.refusal(refused, name)
                lines = [f"HTTP/1.1 {refused.status} {http.HTTPStatus(refused.status).phrase}".encode()]
                lines += [key.title() + b": " + value for key, value in [*head, middleware.CLOSE]]
                self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            if self.cycle is not None:
                self.cycle.disconnected = True  # the application's own answer is not sent any more
                self.cycle.message_event.set()
            self.transport.close()
            service.metrics.requests.labels("other", refused.status).inc()
            logs.event("request", id=name, client=(self.client or [""])[0], status=refused.status)

    return Limited


BACKLOG = 512  # connections that the kernel keeps until they are accepted
ACCEPTED = 8  # connections that are accepted in one go; each needs a file before it can be refused
OWN_FILES = 48  # that the server needs besides connections: libraries, a bundle that is opened, ACCEPTED
STOPPING = (signal.SIGTERM, signal.SIGINT)
GRACE = 1.0  # seconds after the drain limit for what was given up to end


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one. Raises :class:`ServerError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as undo:
            # Of a socket that names its protocol asyncio sends each piece at once: an answer's body would wait 40 ms.
            result = undo.enter_context(socket.socket(family, kind, protocol))
            result.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            result.bind(address)
            result.listen(BACKLOG)
            undo.pop_all()  # it stays open
            return result
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ServerError(f"{host}:{port} can not be listened at: {reason}", "a free port", "--port, --host") from error


def url(listening: socket.socket) -> str:
    """The address of a server, for people."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listening: socket.socket) -> bool:
    """Can only this machine reach it?"""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def work(settings: Settings, listening: socket.socket, ready: Callable[[], None], parent: Any = None) -> None:
    """Answer until a signal ends it; calls ``ready`` once it is. Raises :class:`AlexNetError` if it can not start.

    ``parent``: a connection whose end means that the process which started this one is gone.
    """
    logs.configure()
    raise_file_limit()
    runner = asyncio.Runner()
    try:
        ended = runner.run(Worker(settings).run(listening, ready, parent))
    except BaseException:
        runner.close()
        raise
    if not ended:  # Python would wait for the threads that still work
        sys.stdout.flush()
        os._exit(0)
    runner.close()


class Worker:
    """One process that answers: :meth:`run` from its beginning to its end, :meth:`stop` as a signal would."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.failure: AlexNetError | None = None
        self._stop_by: float | None = None  # time of the loop at which everything has to be over
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, listening: socket.socket, ready: Callable[[], None], parent: Any = None) -> bool:
        """Serve until :meth:`stop`. Raises :class:`AlexNetError` if the classifier can not be opened.

        Returns whether all threads have ended: False if one still decodes, or waits for a disk, at the drain limit.
        """
        self.service = Service(self.settings)
        self.server = _uvicorn(self.service)
        self._loop = loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_error)
        if parent is not None:
            loop.add_reader(parent.fileno(), self._orphaned, parent)
        with self._handled_signals():
            self._start(self._open(ready))
            await self.server.serve(sockets=[listening])
            return await self._end()

    async def _end(self) -> bool:
        for connection in list(self.server.server_state.connections):  # whose requests were given up
            connection.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        left = 0.0 if self._stop_by is None else self._stop_by - self._loop.time()
        ended = True
        try:
            async with asyncio.timeout(max(left, 0) + GRACE):
                await self.service.close()
        except TimeoutError:
            ended = False
        if self.failure is not None:
            raise self.failure
        logs.event("stopped" if ended else "stopped: threads were still at work at the drain limit")
        return ended

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, ready: Callable[[], None]) -> None:
        try:
            known = await in_thread("watch", engine.signature, self.settings.path)
            await self.service.open()
        except AlexNetError as error:
            self.failure, self.server.should_exit = error, True
            return
        except Exception as error:  # a library's own: no half-open server may stay behind
            logs.event("can not open", logging.ERROR, trace=True)
            self.failure = ServerError(f"{self.settings.path} can not be opened: {type(error).__name__}")
            self.server.should_exit = True
            return
        ready()
        if self.settings.reload_interval:
            await engine.watch(self.settings.path, self.settings.reload_interval, known, self._reload)

    def reload(self) -> None:
        """Take what is on the disk now."""
        self._start(self._reload())

    async def _reload(self) -> None:
        if self.service.state == "ready":
            await self.service.reload(self._keys)

    def _keys(self) -> Sequence[str]:
        settings = self.settings
        return keys.read_keys(settings.key_file) if settings.key_file is not None else settings.keys

    def stop(self) -> None:
        """Answer what was accepted, then end. Only the first call has an effect."""
        if self._stop_by is None:
            limits = self.service.limits
            self._stop_by = self._loop.time() + self.settings.drain_delay + limits.drain_seconds
            self.service.drain()
            self._start(self._drain())

    @contextlib.contextmanager
    def _handled_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # Python allows no handlers
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in STOPPING}
        self._loop.add_signal_handler(signal.SIGHUP, self.reload)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                if signal.getsignal(number) == self._on_signal:
                    signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any = None) -> None:
        """Stop. From now on the kernel itself ends the process: at a second signal, or some time after the drain limit.

        A handler in Python does not run while the main thread is inside a library, or blocked by a pipe that is full.
        """
        for each in (*STOPPING, signal.SIGALRM):
            signal.signal(each, signal.SIG_DFL)
        seconds = self.settings.drain_delay + self.settings.limits.drain_seconds
        signal.setitimer(signal.ITIMER_REAL, seconds + 3 * GRACE)
        self._loop.call_soon_threadsafe(self.stop)

    async def _drain(self) -> None:
        await asyncio.sleep(self.settings.drain_delay)  # balancers see that it is not ready, and send no more
        self.server.should_exit = True

    def _orphaned(self, parent: Any) -> None:
        self._loop.remove_reader(parent.fileno())
        self._on_signal(signal.SIGTERM)


def _log_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error in the event loop as one line."""
    logs.event(str(context["message"]), logging.ERROR, error=repr(context.get("exception", "")))


def raise_file_limit() -> None:
    """Allow as many open files, and so connections, as the system allows this user."""
    with contextlib.suppress(OSError, ValueError):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def connection_limit(limits: Limits) -> int:
    """``max_connections``, or as many as the limit on open files leaves beside those that the server needs."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most == resource.RLIM_INFINITY or most >= limits.max_connections + OWN_FILES:
        return limits.max_connections
    connections = max(1, most - OWN_FILES)
    logs.event(
        "fewer connections: the limit on open files (ulimit -n) is low",
        logging.WARNING,
        open_files=most,
        max_connections=connections,
    )
    return connections


def _uvicorn(service: Service) -> Any:
    import uvicorn

    from alexnet.serve.app import create_app
    # joined

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # ours stay: uvicorn's would kill the process by the same signal after it has drained

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for each in sockets or []:
                each.listen(BACKLOG)  # the kernel's queue; uvicorn's backlog is how many asyncio accepts in one go

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
        backlog=ACCEPTED,
        h11_max_incomplete_event_size=32768,
        timeout_graceful_shutdown=max(1, round(limits.drain_seconds)),
    )
    return Server(config)
