"""The JSON of every response: what routes return, and what the OpenAPI description says. No field is left out of it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from alexnet.deploy.server.explain import Method
from alexnet.deploy.server.limits import Limits


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

    model_config = _example(error="busy: 64 pictures are waiting; ask again later", request_id="4bf92f3577b34da6")
    error: str
    request_id: str


class Unusable(Strict):
    """None of the images can be used; each entry says why."""

    model_config = _example(
        error="no picture can be used: beach.jpg: is empty; must be a whole JPEG, … file; replace or remove it",
        predictions=[_FAILURE], model_sha256="9f86d0…", request_id="4bf92f3577b34da6",
    )  # fmt: skip
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
    abstain_below: float | None = None
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
