"""The page at ``/``: three files of this package, read once, sent as they are."""

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response

FOLDER = Path(__file__).with_name("page")
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}


def add(app: FastAPI) -> None:
    """Add the routes of the page to ``app``. They are no part of its OpenAPI."""
    for path, (name, kind) in FILES.items():
        content = (FOLDER / name).read_bytes()

        async def send(request: Request, content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

        app.add_route(path, send)
