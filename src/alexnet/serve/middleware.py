"""The outermost ASGI layer: request ids, checks of Host and Origin, security headers, the log line of each request.

Every request ends here in one response and one line of the log, whatever the application does.
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

LINGER_SECONDS = 5.0  # for which the rest of a rejected body is read and discarded
PROTECTED = ("/v1/", "/metrics")  # pages of other sites must not send requests to these
HEALTH = ("/healthz", "/readyz")  # probes send an IP address as Host
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
SINGLE = (b"authorization", b"content-type", b"host", b"origin", b"sec-fetch-site", b"x-api-key")  # at most once
HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
CLOSE = (b"connection", b"close")


class RequestMiddleware:
    """``app`` with request ids, access checks, security headers and logging."""

    def __init__(self, app: App, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = logs.request_id(headers.get(b"x-request-id", b"").decode("latin-1"))
        length, chunked = headers.get(b"content-length", b"0"), b"transfer-encoding" in headers
        exchange = _Exchange(scope, receive, send, request_id, body_complete=length == b"0" and not chunked)
        # HEAD is handled as GET; the connection leaves out the body.
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        inner = {**scope, "method": method, "state": {**scope.get("state", {}), "id": request_id}}
        _use_absolute_target(inner, headers)
        try:
            if rejection := _check_headers(scope["http_version"], scope["headers"]):
                exchange.close = True
                await exchange.reject(rejection)
            elif rejection := self._check_access(inner["path"], headers):
                await exchange.reject(rejection)
            else:
                await self.app(inner, exchange.receive_message, exchange.send_message)
        except Exception:  # the application's own handler has already sent a response
            logs.event("failed", logging.ERROR, trace=True, id=request_id)
        finally:
            self._log(exchange, inner)

    def _check_access(self, path: str, headers: dict[bytes, bytes]) -> RequestRejected | None:
        """A rejection for a request that a page of another site made a browser send."""
        settings = self.service.settings
        host = headers.get(b"host", b"localhost").decode("latin-1").lower()  # HTTP/1.0 has none, browsers always do
        if path not in HEALTH and settings.hosts is not None and not is_known_host(host, settings.hosts):
            return RequestRejected(421, f"Host is {printable(host)[:80]!r}, which is not served here. See --allow-host")
        if path.startswith(PROTECTED) and is_cross_site(headers, host, settings.hosts or (), settings.origins):
            return RequestRejected(403, "a page of another site sent this request. See --allow-origin")
        return None

    def _log(self, exchange: "_Exchange", scope: Any) -> None:
        seconds = time.monotonic() - exchange.started
        route = getattr(scope.get("route"), "path", "other")  # a label per unknown path would grow without bound
        status = exchange.status or 499  # the client closed the connection before a response
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
            **scope["state"].get("log", {}),
        )


def _check_headers(version: str, headers: Sequence[tuple[bytes, bytes]]) -> RequestRejected | None:
    """A rejection for a request that a proxy may read in another way than this server does (request smuggling)."""
    names = [name for name, _ in headers]
    for name in SINGLE:
        if names.count(name) > 1:
            return RequestRejected(400, f"{name.decode().title()} is there {names.count(name)} times. Send one")
    if version not in ("1.0", "1.1"):
        return RequestRejected(505, f"the request is HTTP/{version}; must be HTTP/1.1")
    if b"transfer-encoding" not in names:
        return None
    if b"content-length" in names:
        return RequestRejected(400, "Content-Length and Transfer-Encoding are both there. Send one")
    if version == "1.0":
        return RequestRejected(400, "Transfer-Encoding is there in HTTP/1.0; must be HTTP/1.1")
    return None


def _use_absolute_target(scope: Any, headers: dict[bytes, bytes]) -> None:
    """Change a target such as http://HOST/PATH to PATH with the Host header HOST, as RFC 9112, 3.2.2 has it."""
    scheme, separator, rest = scope["path"].partition("://")
    if separator and scheme.lower() in ("http", "https"):
        host, _, path = rest.partition("/")
        headers[b"host"] = host.encode("latin-1", "replace")
        scope |= {"path": f"/{path}", "raw_path": f"/{path}".encode()}


@dataclass
class _Exchange:
    """One request and its response, as far as they have been transferred."""

    scope: Any
    receive: Receive
    send: Send
    id: str
    started: float = field(default_factory=time.monotonic)
    status: int = 0
    received: int = 0  # bytes of the body
    close: bool = False  # close the connection after this response
    body_complete: bool = False  # the body has arrived, or the client has disconnected

    async def receive_message(self) -> Message:
        message = await self.receive()
        self.received += len(message.get("body", b""))
        is_last = message["type"] != "http.request" or not message.get("more_body", False)
        self.body_complete = self.body_complete or is_last
        return message

    async def send_message(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = [*HEADERS, (b"x-request-id", self.id.encode())]
            extra += [CLOSE] if self.close or not self.body_complete else []
            message["headers"] = [*message.get("headers", []), *extra]
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not is_last or self.body_complete:
            await self.send(message)
            return
        # The response is complete before the body has arrived. Clients send all of the body before they read, and
        # closing the connection now would discard the response. So the rest of the body is read for a while.
        await self.send({**message, "more_body": True})
        await self._discard_body()
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard_body(self) -> None:
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.body_complete:
                    await self.receive_message()
        except TimeoutError:
            return

    async def reject(self, rejection: RequestRejected) -> None:
        body = error_body(rejection.reason, self.id)
        headers = [*_body_headers(body), *rejection_headers(rejection)]
        await self.send_message({"type": "http.response.start", "status": rejection.status, "headers": headers})
        await self.send_message({"type": "http.response.body", "body": body})


def error_response(rejection: RequestRejected, request_id: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """All headers, and the body, of an error response that is sent without the application."""
    body = error_body(rejection.reason, request_id)
    own = [*_body_headers(body), *rejection_headers(rejection)]
    return [*own, *HEADERS, (b"x-request-id", request_id.encode())], body


def error_body(reason: str, request_id: str) -> bytes:
    """The JSON of an error response."""
    return json.dumps({"error": reason, "request_id": request_id}, ensure_ascii=False).encode()


def rejection_headers(rejection: RequestRejected) -> list[tuple[bytes, bytes]]:
    """``Retry-After`` or ``WWW-Authenticate``, where they apply."""
    headers = [(b"retry-after", str(rejection.retry_after).encode())] if rejection.retry_after is not None else []
    return headers + ([(b"www-authenticate", b"Bearer")] if rejection.status == 401 else [])


def _body_headers(body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]


def is_known_host(host: str, known: Sequence[str]) -> bool:
    """Does the Host header name this machine, or one of ``known``?

    If not, an attacker may have pointed a DNS name at this machine, so that the attacker's page has the same origin as
    this server (DNS rebinding).
    """
    name = host_name(host)
    if "*" in known or name in known or name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_name(host: str) -> str:
    """The name in a Host header, without port, brackets and the final dot; empty if it is invalid."""
    try:
        parts = urlsplit(f"//{host}")
    except ValueError:
        return ""
    is_valid = parts.netloc == host and "@" not in host  # a host and a port, nothing before or behind them
    return (parts.hostname or "").removesuffix(".") if is_valid else ""


def is_cross_site(headers: Mapping[bytes, bytes], host: str, hosts: Sequence[str], origins: Sequence[str]) -> bool:
    """Did a page send the request whose origin is neither this server nor in ``origins``?"""
    origin = headers.get(b"origin", b"").decode("latin-1").lower()
    if "*" in origins or origin in origins:
        return False
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site not in (b"same-origin", b"none")
    # Browsers omit Sec-Fetch-Site if the server is neither local nor behind TLS.
    name = origin.partition("://")[2]
    return bool(origin) and name != host and host_name(name) not in hosts
