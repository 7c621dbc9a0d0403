"""The JSON of requests and responses, which ``/openapi.json`` describes, and the reader of request bodies."""

import asyncio
import codecs
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from alexnet.errors import printable
from alexnet.serve.explain import Method
from alexnet.serve.limits import AdmissionController, Limits, RequestRejected


class Strict(BaseModel):
    """A model without further fields."""

    model_config = ConfigDict(extra="forbid")


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [values]})


class Score(Strict):
    """A class and its probability, 0 to 1."""

    label: str
    score: float


class Saliency(Strict):
    """A saliency map for the first prediction."""

    method: Method
    image: str = Field(description="data:image/png;base64,…: black, transparent where the saliency is high")
    box_xywh_normalized: tuple[float, float, float, float] = Field(
        description="left, top, width, height of the map, as fractions of the upright image"
    )


class Neighbor(Strict):
    """A training image with similar features."""

    label: str
    distance: float = Field(description="Euclidean distance of the features in the last hidden layer")
    image: str = Field(description="data:image/png;base64,…: 64 × 64 pixels")


_PREDICTION = {
    "filename": "beach.jpg",
    "top_k": [{"label": "parachute", "score": 0.91}, {"label": "church", "score": 0.04}],
}
_FAILURE = {"filename": "beach.jpg", "error": "beach.jpg: is empty; must be a whole JPEG, … file"}


class Prediction(Strict):
    """The prediction for one image. Fields that were not requested are absent."""

    model_config = _example(**_PREDICTION)
    filename: str = Field(description="the name in the request")
    top_k: list[Score] = Field(description="the highest scores first")
    abstained: bool = Field(
        default=False,
        description="first score below the threshold; absent without one",
    )
    embedding: list[float] = Field(default=[], description="features of the last hidden layer")
    saliency: Saliency | None = None
    neighbors: list[Neighbor] = Field(default=[], description="nearest first")


class Failure(Strict):
    """An image that cannot be used, and why."""

    model_config = _example(**_FAILURE)
    filename: str
    error: str


class Predictions(Strict):
    """One entry per image, in the order of the request."""

    model_config = _example(predictions=[_PREDICTION], model_sha256="9f86d0…", request_id="4bf92f3577b34da6")
    predictions: list[Prediction | Failure]
    model_sha256: str = Field(description="SHA-256 of the model that predicted, as in /v1/model")
    request_id: str


class ErrorResponse(Strict):
    """An error, in one line."""

    model_config = _example(error="busy: 64 images are waiting; try again later", request_id="4bf92f3577b34da6")
    error: str
    request_id: str


class NoUsableImage(Strict):
    """None of the images can be used; each entry says why."""

    model_config = _example(
        error="no image can be used: beach.jpg: is empty; must be a whole JPEG, … file; replace or remove it",
        predictions=[_FAILURE],
        model_sha256="9f86d0…",
        request_id="4bf92f3577b34da6",
    )
    error: str
    predictions: list[Failure]
    model_sha256: str
    request_id: str


class Preprocessing(Strict):
    """How an image is brought to the network's input."""

    stored_size: int
    fit: str
    image_size: int | None = Field(default=None, description="of the center crop, pixels; absent for an exported file")


class ReferenceSample(Strict):
    """An image, and the probabilities that the classifier must predict for it, in the order of ``classes``."""

    name: str
    png: str = Field(description="base64")
    probabilities: list[float]


class Model(Strict):
    """The classifier that the server runs."""

    name: str
    model_sha256: str = Field(description="SHA-256 of the bundle's config.json, or of the exported file")
    classes: list[str] = Field(description="in the order of the network's outputs")
    capabilities: list[str] = Field(description="what requests may ask for besides predictions")
    confidence_threshold: float | None = None
    parameters: int = Field(default=0, description="absent for an exported file")
    preprocessing: Preprocessing
    metrics: dict[str, Any] = Field(description="metrics by split, measured after training")
    data: dict[str, Any]
    recipe: str
    precision: str
    limits: Limits
    reference_samples: list[ReferenceSample] = Field(default=[], description="absent unless the server shares images")


class Alive(Strict):
    """The process is alive."""

    status: Literal["alive"]


class Ready(Strict):
    """The server accepts requests."""

    status: Literal["ready"]


IMAGE = {"type": "string", "format": "binary"}
PREDICT_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "array", "items": IMAGE, "minItems": 1}},
                "required": ["file"],
                "additionalProperties": False,
            }
        },
        **{kind: {"schema": IMAGE} for kind in ("image/jpeg", "image/png", "application/octet-stream")},
    },
}
_DESCRIPTIONS = {
    400: "The request, or the form in it, cannot be read.",
    401: "A key is required.",
    403: "A page of another site sent the request; see --allow-origin.",
    404: "The model has no filters to show.",
    408: "The request did not arrive in time.",
    413: "The body is too large, or has too many images.",
    415: "The body is neither a form nor an image.",
    421: "The Host header names another server; see --allow-host.",
    422: "A parameter is wrong or unknown.",
    431: "The header of the request is too large.",
    500: "The server failed; its log has the request id.",
    501: "The transfer encoding is not supported.",
    503: "Busy, loading, or the prediction took too long; Retry-After has the seconds to wait.",
    505: "The version of HTTP is not 1.0 or 1.1.",
}
NO_USABLE_IMAGE = "No image can be used, or a parameter is wrong or unknown."
_EVERY_ROUTE = (400, 403, 408, 421, 422, 431, 500, 501, 503, 505)


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route for its OpenAPI description: those of every route, and ``statuses``."""
    return {
        status: {"model": ErrorResponse, "description": _DESCRIPTIONS[status]}
        for status in sorted({*_EVERY_ROUTE, *statuses})
    }


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
        raise RequestRejected(400, f"the form cannot be read: {printable(str(error))[:200]}") from None
    if not parser.ended:
        raise RequestRejected(400, "the form cannot be read: it has no end")
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
            422,
            f"the form has a field that is no file: it has no filename; must be only {FIELD!r}, files; "
            "addresses are not read",
        )
    return RequestRejected(400, f"the form cannot be read: {printable(message)[:200]}")
