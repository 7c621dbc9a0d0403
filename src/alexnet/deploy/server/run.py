"""A server from its socket to its end: signals, readiness, drain."""

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from alexnet.deploy.server import keys, logs, reload
from alexnet.deploy.server.service import Service, Settings
from alexnet.errors import AlexNetError, ServerError

BACKLOG = 512  # connections that the kernel keeps until they are accepted


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one. Raises :class:`ServerError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as undo:
            # Of a socket that names its protocol asyncio sends each piece at once: an answer's body would wait 40 ms.
            found = undo.enter_context(socket.socket(family, kind, protocol))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(BACKLOG)
            undo.pop_all()  # it stays open
            return found
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
    asyncio.run(Worker(settings).run(listening, ready, parent))


class Worker:
    """One process that answers: :meth:`run` from its beginning to its end, :meth:`stop` as a signal would."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.failure: AlexNetError | None = None
        self._asked: list[int] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, listening: socket.socket, ready: Callable[[], None], parent: Any = None) -> None:
        """Serve until :meth:`stop`. Raises :class:`AlexNetError` if the classifier can not be opened."""
        self.service = Service(self.settings)
        self.server = _uvicorn(self.service)
        loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop, number)
            loop.add_signal_handler(signal.SIGHUP, self.reload)
        if parent is not None:
            loop.add_reader(parent.fileno(), self._orphaned, parent)
        self._start(self._open(ready))
        await self.server.serve(sockets=[listening])
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.server.force_exit:
            logs.event("stopped at once", logging.WARNING, waiting=self.service.gate.pictures)
        else:
            await self.service.close()
            logs.event("stopped")
        if self.failure is not None:
            raise self.failure

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, ready: Callable[[], None]) -> None:
        known = reload.signature(self.settings.path)
        try:
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
        if self.settings.watch:
            await reload.watch(self.settings.path, self.settings.watch, known, self._reload)

    def reload(self) -> None:
        """Take what is on the disk now."""
        self._start(self._reload())

    async def _reload(self) -> None:
        if self.service.state == "ready":
            await self.service.reload(self._keys)

    def _keys(self) -> Sequence[str]:
        settings = self.settings
        return keys.read_keys(settings.key_file) if settings.key_file is not None else settings.keys

    def stop(self, number: int = signal.SIGTERM) -> None:
        """The first signal drains; the same one again ends it at once."""
        if number in self._asked:
            self.server.force_exit = self.server.should_exit = True
        elif not self._asked:
            self.service.drain()
            self._start(self._drain())
        self._asked.append(number)

    async def _drain(self) -> None:
        await asyncio.sleep(self.settings.drain_delay)  # balancers see that it is not ready, and send no more
        self.server.should_exit = True

    def _orphaned(self, parent: Any) -> None:
        asyncio.get_running_loop().remove_reader(parent.fileno())
        self.stop(signal.SIGTERM)


def _uvicorn(service: Service) -> Any:
    import uvicorn

    from alexnet.deploy.server.app import create_app
    from alexnet.deploy.server.protocol import protocol

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # ours stay: uvicorn's would kill the process by the same signal after it has drained

    limits = service.limits
    config = uvicorn.Config(
        create_app(service), http=protocol(limits), loop="asyncio", ws="none", lifespan="off", log_config=None,
        access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=15, backlog=BACKLOG,
        timeout_graceful_shutdown=max(1, round(limits.drain_seconds)), h11_max_incomplete_event_size=32768,
    )  # fmt: skip
    return Server(config)
