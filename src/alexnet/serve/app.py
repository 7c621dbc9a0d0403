"""The page at ``/``: three files of this package, read once, sent as they are.

The routes: what is requested, and what the responses hold.
"""

import asyncio
import base64
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from alexnet.data.decode import encode_png
from alexnet.errors import ImageError, did_you_mean, printable
from alexnet.export.prediction import best
from alexnet.serve import requests
from alexnet.serve.engine import Engine, Found, Want
from alexnet.serve.explain import Method, data_url
from alexnet.serve.limits import RequestRejected
from alexnet.serve.middleware import App, RequestMiddleware, problem, refusal_headers
from alexnet.serve.service import Service

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


_BEARER = HTTPBearer(auto_error=False, description="a key of --key-file, where the server has keys")
_API_KEY = APIKeyHeader(name="X-API-Key", auto_error=False, description="the same key, in a header of its own")


async def _authorized(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    api_key: Annotated[str | None, Depends(_API_KEY)],
) -> None:
    """Raise :class:`RequestRejected` (401) unless the request has a key, where keys are required."""
    keys = _service(request).keys
    if keys and not keys.open_to(bearer.credentials if bearer else api_key or ""):
        raise RequestRejected(401, "this server requires a key. Send it as Authorization: Bearer KEY")


async def _known_parameters(request: Request) -> None:
    """Raise :class:`RequestRejected` (422) for a query parameter that the route does not have, or that is there
    twice."""
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            hint = did_you_mean(name, known) if known else "This route has none"
            raise RequestRejected(422, f"unknown query parameter '{printable(name)[:40]}'. {hint}")
        if len(request.query_params.getlist(name)) > 1:
            raise RequestRejected(422, f"query parameter {name!r} is there more than once. Send it once")


_KEY = [Depends(_authorized)]


def create_app(service: Service) -> RequestMiddleware:
    """The whole application around ``service``."""
    from importlib.metadata import version

    app = FastAPI(
        title="alexnet",
        version=version("alexnet"),
        description="Images in, classes with probabilities out.",
        docs_url=None,
        redoc_url=None,  # both would load scripts from another host
        dependencies=[Depends(_known_parameters)],
    )
    app.state.service = service
    app.add_exception_handler(RequestRejected, _refused)
    app.add_exception_handler(RequestValidationError, _wrong)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _failed)
    app.get("/healthz", summary="Is the process alive?", responses=requests.problems())(healthz)
    app.get("/readyz", summary="Are requests served?", responses=requests.problems())(readyz)
    app.get(
        "/metrics",
        summary="For Prometheus",
        response_class=Response,
        dependencies=_KEY,
        responses=requests.problems(401) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )(metrics)
    app.get(
        "/v1/model",
        summary="The classifier",
        response_model_exclude_unset=True,
        dependencies=_KEY,
        responses=requests.problems(401),
    )(model)
    app.get(
        "/v1/filters.png",
        summary="The first layer's filters",
        response_class=Response,
        dependencies=_KEY,
        responses=requests.problems(401, 404) | {200: {"content": {"image/png": {"schema": requests.IMAGE}}}},
    )(filters)
    app.post(
        "/v1/predict",
        summary="Predict the classes of images",
        response_model_exclude_unset=True,
        dependencies=_KEY,
        response_model=requests.Predictions,
        openapi_extra={"requestBody": requests.BODY},
        responses=requests.problems(401, 413, 415)
        | {422: {"model": requests.Unusable | requests.Problem, "description": requests.UNUSABLE}},
    )(predict)
    add(app)
    origins = service.settings.origins
    inner: App = app
    if origins:
        inner = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "X-API-Key", "X-Request-ID"),
            expose_headers=("Retry-After", "X-Request-ID"),
        )
    return RequestMiddleware(inner, service)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def healthz() -> requests.Alive:
    return requests.Alive(status="alive")


async def readyz(request: Request) -> requests.Ready:
    state = _service(request).state
    if state != "ready":
        raise RequestRejected(503, f"not ready: {state}", 2)
    return requests.Ready(status="ready")


async def metrics(request: Request) -> Response:
    text, kind = _service(request).metrics.text()
    return Response(text, media_type=kind)


async def model(
    request: Request,
    reference_samples: Annotated[bool, Query(description="with reference images, if the server shares images")] = True,
) -> requests.Model:
    service = _service(request)
    engine, settings = service.engine, service.settings
    description = requests.Model(
        name=engine.name,
        model_sha256=engine.sha256,
        classes=list(engine.classes),
        capabilities=_capabilities(service),
        confidence_threshold=settings.confidence_threshold,
        limits=service.limits,
        **engine.about,
    )
    if reference_samples and settings.images:
        description.reference_samples = [
            requests.ReferenceSample(name=g.name, png=base64.b64encode(g.png).decode(), probabilities=g.probabilities)
            for g in engine.reference_samples
        ]
    return description


async def filters(request: Request) -> Response:
    drawn = _service(request).engine.filters()
    if drawn is None:
        raise HTTPException(404, "an exported file has no filters to show")
    return Response(encode_png(drawn), media_type="image/png")


async def predict(
    request: Request,
    top: Annotated[int | None, Query(ge=1, le=100_000, description="entries of top_k")] = None,
    confidence_threshold: Annotated[
        float | None, Query(ge=0, le=1, description="abstain if the first score is lower")
    ] = None,
    embedding: Annotated[bool, Query(description="add the features of the last hidden layer")] = False,
    saliency: Annotated[Method | None, Query(description="add where the network looked")] = None,
    neighbors: Annotated[int, Query(ge=0, le=20, description="add so many training images, the most similar")] = 0,
) -> Any:
    """Send images as a form with files in fields called `file`, or one image as the body itself.

    Images that can not be used have an error each; the others in the request have their predictions.
    """
    service = _service(request)
    want = Want(embedding, saliency, neighbors)
    _check(service, want)
    service.gate.room_for(1)  # before a byte of the body is read
    with requests.held(service.gate) as sizes:
        images = await requests.uploads(request, service.limits, service.gate, sizes)
        request.state.about = {"images": len(images)}
        engine, results = await _while_there(request, service.response(images, want), service.limits.request_timeout)
    threshold = confidence_threshold if confidence_threshold is not None else service.settings.confidence_threshold
    entries = [
        _entry(upload.name, result, engine, want, top or service.settings.top, threshold)
        for upload, result in zip(images, results, strict=True)
    ]
    failures = [entry for entry in entries if isinstance(entry, requests.Failure)]
    request.state.about["bad"] = len(failures)
    rest = {"model_sha256": engine.sha256, "request_id": request.state.id}
    if len(failures) == len(entries):
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        error = f"no image can be used: {failures[0].error}{more}"
        return JSONResponse(requests.Unusable(error=error, predictions=failures, **rest).model_dump(), 422)
    return requests.Predictions(predictions=entries, **rest)


def _capabilities(service: Service) -> list[str]:
    return [name for name in service.engine.offers if name != "neighbors" or service.settings.images]


def _check(service: Service, want: Want) -> None:
    """Raise :class:`RequestRejected` unless the server has what is requested."""
    capabilities = _capabilities(service)
    requested = {"embedding": want.embedding, f"saliency={want.saliency}": want.saliency, "neighbors": want.neighbors}
    for name, value in requested.items():
        if value and name not in capabilities:
            raise RequestRejected(
                422, f"{name} is not available. This server has {', '.join(capabilities) or 'only predictions'}"
            )


def _entry(
    name: str, result: Found | ImageError, engine: Engine, want: Want, top: int, threshold: float | None
) -> requests.Prediction | requests.Failure:
    """One image's part of the response; what was not requested stays unset, and absent."""
    if isinstance(result, ImageError):
        return requests.Failure(filename=name, error=str(result))
    prediction = best(name, result.row, engine.classes, top)
    entry = requests.Prediction(
        filename=name, top_k=[requests.Score(label=label, score=score) for label, score in prediction.top_k]
    )
    if threshold is not None:
        entry.abstained = prediction.score < threshold
    if want.embedding and result.embedding is not None:
        entry.embedding = result.embedding.tolist()
    if result.saliency is not None:
        entry.saliency = requests.Saliency(
            method=result.saliency.method, image=data_url(result.saliency.png), box_xywh_normalized=result.saliency.view
        )
    if want.neighbors:
        entry.neighbors = [
            requests.Neighbor(label=one.label, distance=one.distance, image=data_url(one.png))
            for one in result.neighbors
        ]
    return entry


async def _while_there(request: Request, work: Any, seconds: float) -> Any:
    """The result of ``work``; given up where the client goes away or it takes too long."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, watch}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if watch.done():
            raise ClientDisconnect
        raise RequestRejected(503, f"no answer within {seconds:g} seconds; ask again later", 5)
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# What is no answer


def _problem(request: Request, status: int, reason: str, refused: RequestRejected | None = None) -> Response:
    response = Response(problem(reason, request.state.id), status, media_type="application/json")
    for name, value in refusal_headers(refused or RequestRejected(status, reason)):
        response.headers[name.decode()] = value.decode()
    return response


async def _refused(request: Request, error: Any) -> Response:
    return _problem(request, error.status, error.reason, error)


async def _wrong(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    return _problem(request, 422, f"parameter {'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")


async def _http(request: Request, error: Any) -> Response:
    response = _problem(request, error.status_code, str(error.detail))
    for name, value in (error.headers or {}).items():  # which methods are allowed
        response.headers[name] = value.replace("GET", "GET, HEAD") if name.lower() == "allow" else value
    return response


async def _gone(request: Request, error: Any) -> Response:
    return _problem(request, 400, "the client went away")  # nobody reads it


async def _failed(request: Request, error: Any) -> Response:
    return _problem(request, 500, "the server failed; its log has the request id")
