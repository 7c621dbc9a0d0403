"""The body of a request -> images: bounded in bytes, parts and time, all in memory and nothing on a disk.

The JSON of every response: what routes return, and what the OpenAPI description says. No field is left out of it.
"""

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

FIELD = "file"  # the name of the form's field
RAW = ("application/octet-stream", "binary/octet-stream")
KINDS = "multipart/form-data with a field 'file', or the image itself as image/* or application/octet-stream"


class Upload(NamedTuple):
    """An image as it was sent."""

    name: str
    data: bytes


def kind_of(request: Request, limits: Limits) -> str:
    """multipart or raw; raises :class:`RequestRejected` where the head alone says that the body can not be taken."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    multipart = kind == "multipart/form-data"
    if not multipart and not kind.startswith("image/") and kind not in RAW:
        raise RequestRejected(415, f"Content-Type is {printable(kind)[:80] or 'missing'}; must be {KINDS}")
    _check_charset(request.headers.get("content-type", ""))
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestRejected(415, "Content-Encoding is set; must be the bytes of the image themselves")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.body_bytes:
        raise _too_large(limits)
    return "multipart" if multipart else "raw"


def _check_charset(content_type: str) -> None:
    """Raise :class:`RequestRejected` (415) unless the names in a form are UTF-8, which is what browsers send."""
    charset = parse_options_header(content_type)[1].get(b"charset", b"utf-8").decode("latin-1")
    try:
        known = codecs.lookup(charset).name
    except (LookupError, ValueError):
        known = ""
    if known != "utf-8":
        raise RequestRejected(415, f"the charset is {printable(charset)[:40]}. Send the form in UTF-8")


@contextmanager
def held(gate: AdmissionController) -> Iterator[list[int]]:
    """Bytes of this body that lie in memory, appended to the list, are given back at the end."""
    sizes: list[int] = []
    try:
        yield sizes
    finally:
        gate.bytes -= sum(sizes)


async def uploads(request: Request, limits: Limits, gate: AdmissionController, sizes: list[int]) -> list[Upload]:
    """The images of a request. Raises :class:`RequestRejected`, and ``ClientDisconnect`` if the client goes away."""
    kind = kind_of(request, limits)
    try:
        async with asyncio.timeout(limits.body_seconds):
            if kind == "raw":
                return [Upload("image", b"".join([chunk async for chunk in _chunks(request, limits, gate, sizes)]))]
            return await _parts(request, limits, gate, sizes)
    except TimeoutError:
        raise RequestRejected(408, f"the body did not arrive within {limits.body_seconds:g} seconds") from None


async def _chunks(
    request: Request, limits: Limits, gate: AdmissionController, sizes: list[int]
) -> AsyncGenerator[bytes, None]:
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > limits.body_bytes:  # a length that lied, or none: chunked
            raise _too_large(limits)
        gate.hold(len(chunk))
        sizes.append(len(chunk))
        yield chunk


def _too_large(limits: Limits) -> RequestRejected:
    return RequestRejected(413, f"the body is over {limits.max_megabytes:g} MB; send fewer or smaller images")


class _InMemory(MultiPartParser):
    """Starlette's parser, without its temporary files: a server on a read-only disk takes images too."""

    spool_max_size = 0  # never to disk
    ended = False  # was the form's last boundary there?

    def on_end(self) -> None:
        self.ended = True

    def close(self) -> None:
        """Free what was read, also of a form that was cut short."""
        for file in self._files_to_close_on_error:
            file.close()


async def _parts(request: Request, limits: Limits, gate: AdmissionController, sizes: list[int]) -> list[Upload]:
    stream = _chunks(request, limits, gate, sizes)
    parser = _InMemory(
        request.headers, stream, max_files=limits.max_images, max_fields=0, max_part_size=limits.body_bytes
    )
    try:
        return [_upload(field, value) for field, value in await _items(parser, limits)]
    finally:
        parser.close()
        await stream.aclose()


async def _items(parser: _InMemory, limits: Limits) -> list[tuple[str, UploadFile | str]]:
    try:
        items = (await parser.parse()).multi_items()
    except MultiPartException as error:
        raise _refused(error.message, limits) from None
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


def _refused(reason: str, limits: Limits) -> RequestRejected:
    """The answer to what the parser says."""
    if reason.startswith("Too many files"):
        return RequestRejected(413, f"over {limits.max_images} images in one request; send them in several")
    if reason.startswith("Too many fields"):
        return RequestRejected(
            422, f"the form has a field that is no file; must be only {FIELD!r}, files; addresses are not read"
        )
    return RequestRejected(400, f"the form can not be read: {printable(reason)[:200]}")


class Strict(BaseModel):
    """A model that has the fields which it lists, and no others."""

    model_config = ConfigDict(extra="forbid")


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [values]})


class Score(Strict):
    """A class and its probability, 0 to 1."""

    label: str
    score: float


class Saliency(Strict):
    """Where the network looked for its first prediction: what it did not look at is dark."""

    method: Method
    image: str = Field(description="data:image/png;base64,…: black, transparent where it looked")
    box_xywh_normalized: tuple[float, float, float, float] = Field(
        description="left, top, width, height of the map, as fractions of the upright image"
    )


class Neighbor(Strict):
    """A training image that the network finds similar."""

    label: str
    distance: float = Field(description="Euclidean, between the features of the last hidden layer")
    image: str = Field(description="data:image/png;base64,…: 64 × 64 pixels")


_PREDICTION = {
    "filename": "beach.jpg",
    "top_k": [{"label": "parachute", "score": 0.91}, {"label": "church", "score": 0.04}],
}
_FAILURE = {"filename": "beach.jpg", "error": "beach.jpg: is empty; must be a whole JPEG, … file; …"}


class Prediction(Strict):
    """The prediction for one image. Fields that were not requested are absent."""

    model_config = _example(**_PREDICTION)
    filename: str = Field(description="as it was sent")
    top_k: list[Score] = Field(description="the highest scores first")
    abstained: bool = Field(default=False, description="is the first score below the threshold?")
    embedding: list[float] = Field(default=[], description="features of the last hidden layer")
    saliency: Saliency | None = None
    neighbors: list[Neighbor] = Field(default=[], description="nearest first")


class Failure(Strict):
    """Why one image can not be used."""

    model_config = _example(**_FAILURE)
    filename: str
    error: str


class Predictions(Strict):
    """One entry an image, in the order of the request."""

    model_config = _example(predictions=[_PREDICTION], model_sha256="9f86d0…", request_id="4bf92f3577b34da6")
    predictions: list[Prediction | Failure]
    model_sha256: str = Field(description="of the classifier that predicted, as in /v1/model")
    request_id: str


class Problem(Strict):
    """Why there is no result, in one line."""

    model_config = _example(error="busy: 64 images are waiting; ask again later", request_id="4bf92f3577b34da6")
    error: str
    request_id: str


class Unusable(Strict):
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
    """What happens to an image before the network."""

    stored_size: int
    fit: str
    image_size: int | None = Field(default=None, description="of the center crop; absent for an exported file")


class ReferenceSample(Strict):
    """An image of the data set, and the probabilities that the classifier has to have for it."""

    name: str
    png: str = Field(description="base64")
    probabilities: list[float]


class Model(Strict):
    """The classifier that is served."""

    name: str
    model_sha256: str = Field(description="of the bundle's config.json, or of the exported file")
    classes: list[str] = Field(description="in the order of the network")
    capabilities: list[str] = Field(description="what can be requested besides predictions")
    confidence_threshold: float | None = None
    parameters: int = Field(default=0, description="absent for an exported file")
    preprocessing: Preprocessing
    metrics: dict[str, Any] = Field(description="scores by split, as measured after training")
    data: dict[str, Any]
    recipe: str
    precision: str
    limits: Limits
    reference_samples: list[ReferenceSample] = Field(default=[], description="absent unless the server shares images")


class Alive(Strict):
    """The process lives."""

    status: Literal["alive"]


class Ready(Strict):
    """Requests are served."""

    status: Literal["ready"]


IMAGE = {"type": "string", "format": "binary"}
BODY = {
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
_WHY = {
    400: "The request, or the form in it, can not be read.",
    401: "A key is required.",
    403: "A page of another site sent the request; see --allow-origin.",
    404: "An exported file has no filters to show.",
    408: "The request did not arrive in time.",
    413: "The body is too large, or has too many images.",
    415: "The body is neither a form nor an image.",
    421: "The Host header names another server; see --allow-host.",
    422: "A parameter is wrong or unknown.",
    431: "The head of the request is too large.",
    500: "The server failed; its log has the request id.",
    501: "The transfer encoding is not supported.",
    503: "Busy, loading or late; Retry-After has the seconds to wait.",
}
UNUSABLE = "No image can be used, or a parameter is wrong or unknown."
ALWAYS = (400, 403, 408, 421, 422, 431, 500, 501, 503)  # whatever the route is


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that are none of its results: those of every route, and ``statuses``."""
    return {status: {"model": Problem, "description": _WHY[status]} for status in sorted({*ALWAYS, *statuses})}
