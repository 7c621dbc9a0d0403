"""What stands around every request: its id, who may send it, headers for browsers, the log line, late bodies.

A plain ASGI layer, the outermost: whatever happens inside ends in an answer and one line in the log.
"""

import asyncio
import ipaddress
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from alexnet.errors import printable
from alexnet.serve import logs
from alexnet.serve.limits import RequestRejected
from alexnet.serve.service import Service

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Any, Receive, Send], Awaitable[None]]

LINGER = 5.0  # seconds in which the rest of a refused body is read and thrown away
PROTECTED = ("/v1/", "/metrics")  # no page of another site may send requests to these
HEALTH = ("/healthz", "/readyz")  # probes send an address of their own as Host
_POLICY = "; ".join(
    f"{what}-src {whom}"
    for what, whom in {
        "default": "'none'",
        "script": "'self'",
        "style": "'self'",
        "img": "'self' blob: data:",
        "connect": "'self'",
    }.items()
)
HEADERS = (
    (b"content-security-policy", f"{_POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'".encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
CLOSE = (b"connection", b"close")


@dataclass
class _Exchange:
    """One request and its answer, as far as they have come."""

    scope: Any
    receive: Receive
    send: Send
    id: str
    started: float = field(default_factory=time.monotonic)
    status: int = 0
    received: int = 0  # bytes of the body
    close: bool = False  # does the connection end with this answer?
    whole: bool = False  # has all of the body arrived, or the client gone?

    async def get(self) -> Message:
        message = await self.receive()
        self.received += len(message.get("body", b""))
        self.whole = self.whole or message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def put(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = [*HEADERS, (b"x-request-id", self.id.encode())]
            extra += [CLOSE] if self.close or not self.whole else []
            message["headers"] = [*message.get("headers", []), *extra]
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not last or self.whole:
            await self.send(message)
            return
        # Answered before the body had come. A connection closed now would take the answer with it: clients write
        # first and read then. So the rest is read for a while, and then the answer ends.
        await self.send({**message, "more_body": True})
        await self._linger()
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(LINGER):
                while not self.whole:
                    await self.get()
        except TimeoutError:
            return

    async def refuse(self, refused: RequestRejected) -> None:
        body = problem(refused.reason, self.id)
        headers = [*body_headers(body), *refusal_headers(refused)]
        await self.put({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self.put({"type": "http.response.body", "body": body})


def refusal(refused: RequestRejected, request_id: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """All headers, and the body, of an answer that no application gives."""
    body = problem(refused.reason, request_id)
    return [*body_headers(body), *refusal_headers(refused), *HEADERS, (b"x-request-id", request_id.encode())], body


def body_headers(body: bytes) -> list[tuple[bytes, bytes]]:
    """Of a body of JSON."""
    return [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]


def problem(reason: str, request_id: str) -> bytes:
    """The JSON of every answer that is none."""
    return json.dumps({"error": reason, "request_id": request_id}, ensure_ascii=False).encode()


def refusal_headers(refused: RequestRejected) -> list[tuple[bytes, bytes]]:
    """When to come again, or what to bring."""
    again = [(b"retry-after", str(refused.retry).encode())] if refused.retry is not None else []
    return again + ([(b"www-authenticate", b"Bearer")] if refused.status == 401 else [])


class RequestMiddleware:
    """``app`` with all that around it."""

    def __init__(self, app: App, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        name = logs.request_id(headers.get(b"x-request-id", b"").decode("latin-1"))
        length, chunked = headers.get(b"content-length", b"0"), b"transfer-encoding" in headers
        exchange = _Exchange(scope, receive, send, name, whole=length == b"0" and not chunked)
        exchange.close = chunked and b"content-length" in headers
        # HEAD is GET without a body, which the connection leaves out.
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        inner = {**scope, "method": method, "state": {**scope.get("state", {}), "id": name}}
        try:
            if exchange.close:  # a proxy before this may have read another request than the one that h11 did
                await exchange.refuse(
                    RequestRejected(400, "Content-Length and Transfer-Encoding are both there. Send one")
                )
            elif refused := self._refused(scope["path"], headers):
                await exchange.refuse(refused)
            else:
                await self.app(inner, exchange.get, exchange.put)
        except Exception:  # the answer has been given by the app's own handler for it
            logs.event("failed", logging.ERROR, trace=True, id=name)
        finally:
            self._note(exchange, inner)

    def _refused(self, path: str, headers: dict[bytes, bytes]) -> RequestRejected | None:
        """Requests that a page of another site made a browser send."""
        settings = self.service.settings
        host = headers.get(b"host", b"localhost").decode("latin-1").lower()  # HTTP/1.0 has none, browsers do
        if path not in HEALTH and settings.hosts is not None and not is_known_host(host, settings.hosts):
            return RequestRejected(421, f"Host is {printable(host)[:80]!r}, which is not served here. See --allow-host")
        if path.startswith(PROTECTED) and is_cross_site(headers, host, settings.hosts or (), settings.origins):
            return RequestRejected(403, "a page of another site sent this request. See --allow-origin")
        return None

    def _note(self, exchange: _Exchange, scope: Any) -> None:
        seconds = time.monotonic() - exchange.started
        route = getattr(scope.get("route"), "path", "other")  # other people' paths would be series without end
        status = exchange.status or 499  # the client went away before an answer
        self.service.metrics.requests.labels(route, status).inc()
        self.service.metrics.seconds.labels(route).observe(seconds)
        quiet = route in ("/healthz", "/readyz", "/metrics") and status == 200
        logs.event(
            "request",
            logging.DEBUG if quiet else logging.INFO,
            id=exchange.id,
            client=(scope.get("client") or [""])[0],
            method=exchange.scope["method"],
            path=scope["path"],
            status=status,
            ms=round(1000 * seconds, 1),
            bytes=exchange.received,
            **scope["state"].get("about", {}),
        )


def is_known_host(host: str, known: Sequence[str]) -> bool:
    """Does the Host header name this machine, or one of ``known``?

    Otherwise a name that an attacker owns may have been pointed at this machine, and the attacker's page would be of
    the same origin as this server (DNS rebinding).
    """
    name = host_name(host)
    if "*" in known or name in known or name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_name(host: str) -> str:
    """The name in a Host header, without port, brackets and the last dot; empty if it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def is_cross_site(headers: Mapping[bytes, bytes], host: str, hosts: Sequence[str], origins: Sequence[str]) -> bool:
    """Did a page send the request whose origin is neither this server nor in ``origins``, as browsers report it?"""
    origin = headers.get(b"origin", b"").decode("latin-1").lower()
    if "*" in origins or origin in origins:
        return False
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site not in (b"same-origin", b"none")
    # Browsers leave it out where the server is neither local nor behind TLS.
    name = origin.partition("://")[2]
    return bool(origin) and name != host and host_name(name) not in hosts
