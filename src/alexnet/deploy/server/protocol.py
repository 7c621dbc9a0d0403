"""uvicorn's HTTP/1.1 with what it lacks: deadlines for reading and writing, a connection limit, errors as JSON."""

import asyncio
import contextlib
import http
import logging
import socket
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from alexnet.deploy.server import guard, logs
from alexnet.deploy.server.limits import Refused
from alexnet.deploy.server.service import Service

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
                self._refuse(Refused(503, "busy: too many connections; ask again later", 1))
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
            self._refuse(Refused(status, f"the request is not valid HTTP/1.1: {error}"))

        def _late(self) -> None:
            self._reading = None
            if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
                self._refuse(Refused(408, "the head of the request did not arrive in time"))

        def _unread(self) -> None:
            logs.event("closed: the client did not read", logging.WARNING, client=(self.client or [""])[0])
            self.transport.abort()

        def _refuse(self, refused: Refused) -> None:
            """Answer without the application, and close the connection."""
            name = logs.request_id(None)
            if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
                head, body = guard.refusal(refused, name)
                lines = [f"HTTP/1.1 {refused.status} {http.HTTPStatus(refused.status).phrase}".encode()]
                lines += [key.title() + b": " + value for key, value in [*head, guard.CLOSE]]
                self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            if self.cycle is not None:
                self.cycle.disconnected = True  # the application's own answer is not sent any more
                self.cycle.message_event.set()
            self.transport.close()
            service.metrics.requests.labels("other", refused.status).inc()
            logs.event("request", id=name, client=(self.client or [""])[0], status=refused.status)

    return Limited
