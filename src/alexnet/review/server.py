"""The server of the review page: reachable from this machine only, and only with the token in its address.

::

    GET  /TOKEN/            the page
    GET  /TOKEN/data.json   topics, images and decisions
    GET  /TOKEN/image/17    an image as a JPEG
    POST /TOKEN/decisions   changes of decisions; all of them are written, or none
"""

import json
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from alexnet.data import decode
from alexnet.errors import DataError, ImageError
from alexnet.review.session import Change, Session
from alexnet.schema import check, parse_json
from alexnet.serve.middleware import HEADERS, App, Receive, Send, is_cross_site, is_known_host

IMAGE_SIZE = 640  # pixels of an image on the page at most
BODY_BYTES = 4 << 20  # of a request
PAGE = Path(__file__).with_name("page")
PAGE_FILES = {"": "text/html", "review.css": "text/css", "review.js": "text/javascript"}
WRONG_ADDRESS = "Open the address that alexnet review printed: it has a token that this one lacks.\n"


class TokenMiddleware:
    """``app`` below ``/TOKEN``, for requests of this machine's own page only, with security headers."""

    def __init__(self, app: App, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = [*HEADERS, (b"cache-control", b"no-store")]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        headers = dict(scope["headers"])
        host = headers.get(b"host", b"localhost").decode("latin-1").lower()
        token, _, rest = str(scope["path"]).removeprefix("/").partition("/")
        if not is_known_host(host, ()) or is_cross_site(headers, host, (), ()):
            response: App = Response("This page is for this machine only.\n", 403, media_type="text/plain")
        elif not secrets.compare_digest(token.encode(), self.token.encode()):
            response = Response(WRONG_ADDRESS, 404, media_type="text/plain")
        else:
            response, scope = self.app, {**scope, "path": f"/{rest}", "raw_path": None}
        await response(scope, receive, send_with_headers)


def create_app(session: Session, token: str) -> TokenMiddleware:
    """The ASGI application of a review."""

    def data(request: Request) -> Response:
        return JSONResponse(session.to_dict())

    def image(request: Request) -> Response:
        index = request.path_params["index"]
        if index >= len(session.images):
            return _error(404, f"image {index} is not in this review")
        try:
            return Response(_jpeg(session, index), media_type="image/jpeg")
        except (ImageError, OSError) as error:
            return _error(422, str(error))

    async def decisions(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > BODY_BYTES:
                return _error(413, f"more than {BODY_BYTES:,} bytes")
        try:
            session.decide(check(parse_json(body), list[Change]))
        except ValueError as error:
            return _error(422, str(error))
        except DataError as error:
            return _error(409, str(error))
        return JSONResponse({"decided": len(session.decisions)})

    routes = [
        Route("/data.json", data),
        Route("/image/{index:int}", image),
        Route("/decisions", decisions, methods=["POST"]),
    ]
    routes += [Route(f"/{name}", _send_file(name or "index.html", kind)) for name, kind in PAGE_FILES.items()]
    return TokenMiddleware(Starlette(routes=routes), token)


def serve(session: Session, listening: socket.socket, token: str) -> None:
    """Serve the review at a socket of :func:`alexnet.serve.run.bind` until Ctrl-C."""
    server(session, listening, token).run(sockets=[listening])


def server(session: Session, listening: socket.socket, token: str) -> Any:
    """The uvicorn server of a review."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Ctrl-C ends the server; uvicorn would raise the signal again after that."""
            in_main = threading.current_thread() is threading.main_thread()  # others cannot handle signals
            numbers = (signal.SIGINT, signal.SIGTERM) if in_main else ()
            before = {number: signal.signal(number, self.handle_exit) for number in numbers}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    app = create_app(session, token)
    return Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none", server_header=False))


def new_token() -> str:
    """A token that cannot be guessed."""
    return secrets.token_urlsafe(16)


def _send_file(name: str, media_type: str) -> Callable[[Request], Response]:
    content = (PAGE / name).read_bytes()

    def send(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return send


def _jpeg(session: Session, index: int) -> bytes:
    """An image as a JPEG of at most IMAGE_SIZE pixels. Bars make larger images square."""
    sample = session.images[index]
    data = sample.load()
    pixels = decode.decode(data, sample.origin, allow_truncated=True) if isinstance(data, bytes) else data
    height, width = pixels.shape[:2]
    if max(height, width) > IMAGE_SIZE:
        pixels = decode.fit(pixels, IMAGE_SIZE, "squash" if height == width else "pad")
    return decode.encode_jpeg(pixels, 90)


def _error(status: int, message: str) -> Response:
    return Response(json.dumps({"error": message}), status, media_type="application/json")
