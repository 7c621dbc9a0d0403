"""The body of a request -> pictures: bounded in bytes, parts and time, all in memory and nothing on a disk."""

import asyncio
import codecs
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from alexnet.deploy.server.limits import Gate, Limits, Refused
from alexnet.errors import printable

FIELD = "file"  # the name of the form's field
RAW = ("application/octet-stream", "binary/octet-stream")
KINDS = "multipart/form-data with a field 'file', or the picture itself as image/* or application/octet-stream"


class Upload(NamedTuple):
    """A picture as it was sent."""

    name: str
    data: bytes


def kind_of(request: Request, limits: Limits) -> str:
    """multipart or raw; raises :class:`Refused` where the head alone says that the body can not be taken."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    multipart = kind == "multipart/form-data"
    if not multipart and not kind.startswith("image/") and kind not in RAW:
        raise Refused(415, f"Content-Type is {printable(kind)[:80] or 'missing'}; must be {KINDS}")
    _check_charset(request.headers.get("content-type", ""))
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "Content-Encoding is set; must be the bytes of the picture themselves")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.body_bytes:
        raise _too_large(limits)
    return "multipart" if multipart else "raw"


def _check_charset(content_type: str) -> None:
    """Raise :class:`Refused` (415) unless the names in a form are UTF-8, which is what browsers send."""
    charset = parse_options_header(content_type)[1].get(b"charset", b"utf-8").decode("latin-1")
    try:
        known = codecs.lookup(charset).name
    except (LookupError, ValueError):
        known = ""
    if known != "utf-8":
        raise Refused(415, f"the charset is {printable(charset)[:40]}. Send the form in UTF-8")


@contextmanager
def held(gate: Gate) -> Iterator[list[int]]:
    """Bytes of this body that lie in memory, appended to the list, are given back at the end."""
    sizes: list[int] = []
    try:
        yield sizes
    finally:
        gate.bytes -= sum(sizes)


async def uploads(request: Request, limits: Limits, gate: Gate, sizes: list[int]) -> list[Upload]:
    """The pictures of a request. Raises :class:`Refused`, and ``ClientDisconnect`` if the client goes away."""
    kind = kind_of(request, limits)
    try:
        async with asyncio.timeout(limits.body_seconds):
            if kind == "raw":
                return [Upload("picture", b"".join([chunk async for chunk in _chunks(request, limits, gate, sizes)]))]
            return await _parts(request, limits, gate, sizes)
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {limits.body_seconds:g} seconds") from None


async def _chunks(request: Request, limits: Limits, gate: Gate, sizes: list[int]) -> AsyncIterator[bytes]:
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > limits.body_bytes:  # a length that lied, or none: chunked
            raise _too_large(limits)
        gate.hold(len(chunk))
        sizes.append(len(chunk))
        yield chunk


def _too_large(limits: Limits) -> Refused:
    return Refused(413, f"the body is over {limits.max_megabytes:g} MB; send fewer or smaller pictures")


class _InMemory(MultiPartParser):
    """Starlette's parser, without its temporary files: a server on a read-only disk takes pictures too."""

    spool_max_size = 0  # never to disk
    ended = False  # was the form's last boundary there?

    def on_end(self) -> None:
        self.ended = True

    def close(self) -> None:
        """Free what was read, also of a form that was cut short."""
        for file in self._files_to_close_on_error:
            file.close()


async def _parts(request: Request, limits: Limits, gate: Gate, sizes: list[int]) -> list[Upload]:
    stream = _chunks(request, limits, gate, sizes)
    parser = _InMemory(
        request.headers, stream, max_files=limits.max_pictures, max_fields=0, max_part_size=limits.body_bytes  # type: ignore[arg-type]
    )  # fmt: skip
    try:
        return [_upload(field, value) for field, value in await _items(parser, limits)]
    finally:
        parser.close()
        await stream.aclose()  # type: ignore[attr-defined]


async def _items(parser: _InMemory, limits: Limits) -> list[tuple[str, UploadFile | str]]:
    try:
        items = (await parser.parse()).multi_items()
    except MultiPartException as error:
        raise _refused(error.message, limits) from None
    except (ValueError, AssertionError, LookupError) as error:
        raise Refused(400, f"the form can not be read: {printable(str(error))[:200]}") from None
    if not parser.ended:
        raise Refused(400, "the form can not be read: it has no end")
    if not items:
        raise Refused(422, f"the form has no {FIELD!r}; must be at least one file, in fields of this name")
    return items


def _upload(field: str, value: UploadFile | str) -> Upload:
    if field != FIELD or isinstance(value, str):
        raise Refused(422, f"the form has a field {printable(field)[:40]!r}; must be only {FIELD!r}, files")
    return Upload(printable(value.filename or "picture")[:255], value.file.read())


def _refused(reason: str, limits: Limits) -> Refused:
    """The answer to what the parser says."""
    if reason.startswith("Too many files"):
        return Refused(413, f"over {limits.max_pictures} pictures in one request; send them in several")
    if reason.startswith("Too many fields"):
        return Refused(
            422, f"the form has a field that is no file; must be only {FIELD!r}, files; addresses are not read"
        )
    return Refused(400, f"the form can not be read: {printable(reason)[:200]}")
