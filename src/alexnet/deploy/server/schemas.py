"""What the answers look like, for the OpenAPI description."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [values]})


class Guess(BaseModel):
    """A class and how probable it is, 0 to 1."""

    model_config = ConfigDict(populate_by_name=True)
    class_: str = Field(alias="class")
    probability: float


_ANSWER = {
    "picture": "beach.jpg",
    "guesses": [{"class": "parachute", "probability": 0.91}, {"class": "church", "probability": 0.04}],
}


class Saliency(BaseModel):
    """Where the network looked for its first guess: what it did not look at is dark."""

    method: str
    image: str = Field(description="data:image/png;base64,…: black, transparent where it looked")
    view: list[float] = Field(description="left, top, width, height of the image, as shares of the upright picture")


class Neighbor(BaseModel):
    """A training picture that looks alike to the network."""

    model_config = ConfigDict(populate_by_name=True)
    class_: str = Field(alias="class")
    distance: float = Field(description="Euclidean, in the last hidden layer")
    image: str = Field(description="data:image/png;base64,…: 64 × 64 pixels")


class Answer(BaseModel):
    """What is said of one picture: guesses, most probable first, or why it can not be used."""

    model_config = _example(**_ANSWER)
    picture: str = Field(description="the name that was sent with it")
    guesses: list[Guess] | None = None
    error: str | None = Field(None, description="in place of guesses: why the picture can not be used")
    unknown: bool | None = Field(None, description="is the first guess too improbable? Only with a threshold")
    embedding: list[float] | None = Field(None, description="what the last hidden layer says, if it was asked for")
    saliency: Saliency | None = None
    neighbors: list[Neighbor] | None = Field(None, description="nearest first")


class Answers(BaseModel):
    """An answer a picture, in the order of the request."""

    model_config = _example(predictions=[_ANSWER], sha256="9f86d0…", request_id="4bf92f3577b34da6")
    predictions: list[Answer]
    sha256: str = Field(description="which classifier answered, as in /v1/model")
    request_id: str


class Problem(BaseModel):
    """Why there is no answer, in one sentence."""

    model_config = _example(error="busy: 64 pictures are waiting; ask again later", request_id="4bf92f3577b34da6")
    error: str
    request_id: str


class Unusable(Problem):
    """None of the pictures can be used; each says why. Also what is wrong with the request itself."""

    model_config = _example(
        error="no picture can be used: beach.jpg: is empty; must be a whole JPEG, … file; replace or remove it",
        request_id="4bf92f3577b34da6",
        predictions=[{"picture": "beach.jpg", "error": "beach.jpg: is empty; must be a whole JPEG, … file; …"}],
    )
    predictions: list[Answer] | None = None


class Model(BaseModel):
    """The classifier that answers."""

    name: str
    sha256: str = Field(description="of the bundle's config.json, or of the exported file")
    classes: list[str] = Field(description="in the order of the network")
    offers: list[str] = Field(description="what can be asked for besides guesses")
    abstain_below: float | None = None
    preprocessing: dict[str, Any]
    metrics: dict[str, Any] = Field(description="scores by split, as counted when it was trained")
    data: dict[str, Any]
    recipe: str
    limits: dict[str, float]
    golden: list[dict[str, Any]] | None = Field(None, description="pictures with the probabilities expected of them")


PICTURE = {"type": "string", "format": "binary"}
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "array", "items": PICTURE, "minItems": 1}},
                "required": ["file"],
                "additionalProperties": False,
            }
        },
        **{kind: {"schema": PICTURE} for kind in ("image/jpeg", "image/png", "application/octet-stream")},
    },
}
_WHY = {
    400: "The form can not be read.",
    401: "A key is wanted.",
    408: "The body did not arrive in time.",
    413: "The body is too large, or has too many pictures.",
    415: "The body is of a kind that is no picture.",
    503: "Busy, loading or late; Retry-After says when to ask again.",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    **{status: {"model": Problem, "description": why} for status, why in _WHY.items()},
    422: {"model": Unusable, "description": "No picture can be used, or a parameter is wrong."},
}
