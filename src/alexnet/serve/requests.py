"""The body of a predict request: images in a form or as raw bytes, bounded in size, number and time, all in memory."""

import asyncio
import codecs
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from alexnet.errors import printable
from alexnet.serve.limits import AdmissionController, Limits, RequestRejected

FIELD = "file"  # the name of the form's field
RAW_TYPES = ("application/octet-stream", "binary/octet-stream")
ACCEPTED = "multipart/form-data with a field 'file', or the image itself as image/* or application/octet-stream"


class Upload(NamedTuple):
    """An encoded image of a request."""

    name: str
    data: bytes


@contextmanager
def body_memory(admission: AdmissionController) -> Iterator[list[int]]:
    """Yield a list of chunk sizes; at the end, their sum is subtracted from the bytes in memory."""
    sizes: list[int] = []
    try:
        yield sizes
    finally:
        admission.bytes -= sum(sizes)


async def read_images(
    request: Request, limits: Limits, admission: AdmissionController, sizes: list[int]
) -> list[Upload]:
    """The images of a request.

    Args:
        sizes: The list of :func:`body_memory`, to which the size of each chunk is appended.

    Raises:
        RequestRejected: The body is too large, too slow, or not what the route accepts.
        ClientDisconnect: The client closed the connection.
    """
    is_form = _check_header(request, limits)
    try:
        async with asyncio.timeout(limits.body_seconds):
            if is_form:
                return await _read_form(request, limits, admission, sizes)
            return [Upload("image", b"".join([chunk async for chunk in _chunks(request, limits, admission, sizes)]))]
    except TimeoutError:
        raise RequestRejected(408, f"the body did not arrive within {limits.body_seconds:g} seconds") from None


def _check_header(request: Request, limits: Limits) -> bool:
    """Is the body a form? Raises :class:`RequestRejected` if the header alone shows that it cannot be accepted."""
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    is_form = media_type == "multipart/form-data"
    if not is_form and not media_type.startswith("image/") and media_type not in RAW_TYPES:
        raise RequestRejected(415, f"Content-Type is {printable(media_type)[:80] or 'missing'}; must be {ACCEPTED}")
    _check_charset(content_type)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestRejected(415, "Content-Encoding is set; send the bytes of the image without an encoding")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.body_bytes:
        raise _too_large(limits)
    return is_form


def _check_charset(content_type: str) -> None:
    """Raise :class:`RequestRejected` (415) unless the names in a form are UTF-8, which browsers send."""
    charset = parse_options_header(content_type)[1].get(b"charset", b"utf-8").decode("latin-1")
    try:
        codec = codecs.lookup(charset).name
    except (LookupError, ValueError):
        codec = ""
    if codec != "utf-8":
        raise RequestRejected(415, f"the charset is {printable(charset)[:40]}. Send the form in UTF-8")


async def _chunks(
    request: Request, limits: Limits, admission: AdmissionController, sizes: list[int]
) -> AsyncGenerator[bytes, None]:
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > limits.body_bytes:  # Content-Length was wrong, or absent
            raise _too_large(limits)
        admission.reserve(len(chunk))
        sizes.append(len(chunk))
        yield chunk


def _too_large(limits: Limits) -> RequestRejected:
    return RequestRejected(413, f"the body is over {limits.max_megabytes:g} MB; send fewer or smaller images")


class _InMemoryParser(MultiPartParser):
    """Starlette's form parser without temporary files, so that the server works on a read-only file system."""

    spool_max_size = 0  # never write to a disk
    ended = False  # whether the final boundary was seen

    def on_end(self) -> None:
        self.ended = True

    def close(self) -> None:
        """Free the files, also those of an incomplete form."""
        for file in self._files_to_close_on_error:
            file.close()


async def _read_form(
    request: Request, limits: Limits, admission: AdmissionController, sizes: list[int]
) -> list[Upload]:
    stream = _chunks(request, limits, admission, sizes)
    parser = _InMemoryParser(
        request.headers, stream, max_files=limits.max_images, max_fields=0, max_part_size=limits.body_bytes
    )
    try:
        return [_upload(field, value) for field, value in await _items(parser, limits)]
    finally:
        parser.close()
        await stream.aclose()


async def _items(parser: _InMemoryParser, limits: Limits) -> list[tuple[str, UploadFile | str]]:
    try:
        items = (await parser.parse()).multi_items()
    except MultiPartException as error:
        raise _rejection(error.message, limits) from None
    except (ValueError, AssertionError, LookupError) as error:
        raise RequestRejected(400, f"the form can not be read: {printable(str(error))[:200]}") from None
    if not parser.ended:
        raise RequestRejected(400, "the form can not be read: it has no end")
    if not items:
        raise RequestRejected(422, f"the form has no {FIELD!r}; must be at least one file, in fields of this name")
    return items


def _upload(field: str, value: UploadFile | str) -> Upload:
    if field != FIELD or isinstance(value, str):
        raise RequestRejected(422, f"the form has a field {printable(field)[:40]!r}; must be only {FIELD!r}, files")
    return Upload(printable(value.filename or "image")[:255], value.file.read())


def _rejection(message: str, limits: Limits) -> RequestRejected:
    """The rejection for an error message of the form parser."""
    if message.startswith("Too many files"):
        return RequestRejected(413, f"over {limits.max_images} images in one request; send them in several")
    if message.startswith("Too many fields"):
        return RequestRejected(
            422, f"the form has a field that is no file; must be only {FIELD!r}, files; addresses are not read"
        )
    return RequestRejected(400, f"the form can not be read: {printable(message)[:200]}")
