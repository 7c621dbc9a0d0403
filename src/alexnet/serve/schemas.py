"""The JSON of requests and responses: what the routes return, and what ``/openapi.json`` describes."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from alexnet.serve.explain import Method
from alexnet.serve.limits import Limits


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
}
NO_USABLE_IMAGE = "No image can be used, or a parameter is wrong or unknown."
_EVERY_ROUTE = (400, 403, 408, 421, 422, 431, 500, 501, 503)


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route for its OpenAPI description: those of every route, and ``statuses``."""
    return {
        status: {"model": ErrorResponse, "description": _DESCRIPTIONS[status]}
        for status in sorted({*_EVERY_ROUTE, *statuses})
    }
