"""uvicorn's HTTP/1.1 with what it lacks: a deadline for the head of a request, and a most number of connections."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from alexnet.deploy.server.limits import Limits

_FULL = b'{"error": "busy: too many connections; ask again later"}'
_LATE = b'{"error": "the head of the request did not arrive in time"}'


def _answer(status: str, body: bytes, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}"
    return head.encode() + b"Connection: close\r\n\r\n" + body


def protocol(limits: Limits) -> type[asyncio.Protocol]:
    """The class of a connection under ``limits``."""

    class Limited(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                transport.write(_answer("503 Service Unavailable", _FULL, "Retry-After: 1\r\n"))
                transport.close()
                return
            self._timer = self.loop.call_later(limits.header_seconds, self._late)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            waits = self.conn.their_state is h11.IDLE  # for the rest of a request's head
            if waits and self._timer is None:
                self._timer = self.loop.call_later(limits.header_seconds, self._late)
            elif not waits:
                self._disarm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def _disarm(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _late(self) -> None:
            self._timer = None
            if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
                self.transport.write(_answer("408 Request Timeout", _LATE))
                self.transport.close()

    return Limited
