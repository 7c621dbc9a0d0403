"""The routes: ``POST /v1/predict``, ``GET /v1/model``, health, metrics, and the page at ``/``."""

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
from alexnet.pages import png_url
from alexnet.serve import schemas
from alexnet.serve.engine import Engine, ImageResult, RequestOptions
from alexnet.serve.explain import Method
from alexnet.serve.limits import RequestRejected
from alexnet.serve.middleware import App, RequestMiddleware, error_body, rejection_headers
from alexnet.serve.schemas import body_memory, error_responses, read_images
from alexnet.serve.service import Service

PAGE = Path(__file__).with_name("page")
PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}

_BEARER = HTTPBearer(auto_error=False, description="a key of --key-file, if the server has keys")
_API_KEY = APIKeyHeader(name="X-API-Key", auto_error=False, description="the same key in a header of its own")


def create_app(service: Service) -> RequestMiddleware:
    """The ASGI application of ``service``, with all middleware."""
    from alexnet import __version__

    app = FastAPI(
        title="alexnet",
        version=__version__,
        description="Image classification: images in, labels with scores out.",
        docs_url=None,
        redoc_url=None,  # both would load scripts from another host
        redirect_slashes=False,  # a redirect would have the Host header of the request, and not be JSON
        dependencies=[Depends(_check_parameters)],
    )
    app.state.service = service
    _add_error_handlers(app)
    _add_routes(app)
    _add_page(app)
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


def _add_routes(app: FastAPI) -> None:
    key = [Depends(_check_key)]
    app.get("/healthz", summary="Is the process alive?", responses=error_responses())(healthz)
    app.get("/readyz", summary="Does the server accept requests?", responses=error_responses())(readyz)
    app.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=Response,
        dependencies=key,
        responses=error_responses(401) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )(metrics)
    app.get(
        "/v1/model",
        summary="The classifier",
        response_model_exclude_unset=True,
        dependencies=key,
        responses=error_responses(401),
    )(model)
    app.get(
        "/v1/filters.png",
        summary="The filters of the first layer",
        response_class=Response,
        dependencies=key,
        responses=error_responses(401, 404) | {200: {"content": {"image/png": {"schema": schemas.IMAGE}}}},
    )(filters)
    app.post(
        "/v1/predict",
        summary="Predict the classes of images",
        response_model_exclude_unset=True,
        dependencies=key,
        response_model=schemas.Predictions,
        openapi_extra={"requestBody": schemas.PREDICT_BODY},
        responses=error_responses(401, 413, 415)
        | {422: {"model": schemas.NoUsableImage | schemas.ErrorResponse, "description": schemas.NO_USABLE_IMAGE}},
    )(predict)


def _add_page(app: FastAPI) -> None:
    """Add the routes of the page; they are not part of the OpenAPI description."""
    for path, (name, media_type) in PAGE_FILES.items():
        content = (PAGE / name).read_bytes()

        async def send(request: Request, content: bytes = content, media_type: str = media_type) -> Response:
            return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

        app.add_route(path, send)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _check_key(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    api_key: Annotated[str | None, Depends(_API_KEY)],
) -> None:
    """Raise :class:`RequestRejected` (401) unless the request has a valid key, if the server has keys."""
    keys = _service(request).keys
    if keys and not keys.verify(bearer.credentials if bearer else api_key or ""):
        raise RequestRejected(401, "this server requires a key. Send it as Authorization: Bearer KEY")


async def _check_parameters(request: Request) -> None:
    """Raise :class:`RequestRejected` (422) for a query parameter that is unknown or repeated."""
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            hint = did_you_mean(name, known) if known else "This route has none"
            raise RequestRejected(422, f"unknown query parameter '{printable(name)[:40]}'. {hint}")
        if len(request.query_params.getlist(name)) > 1:
            raise RequestRejected(422, f"query parameter {name!r} is there more than once. Send it once")


# Routes


async def healthz() -> schemas.Alive:
    return schemas.Alive(status="alive")


async def readyz(request: Request) -> schemas.Ready:
    state = _service(request).state
    if state != "ready":
        raise RequestRejected(503, f"not ready: {state}", 2)
    return schemas.Ready(status="ready")


async def metrics(request: Request) -> Response:
    text, media_type = _service(request).metrics.text()
    return Response(text, media_type=media_type)


async def model(
    request: Request,
    reference_samples: Annotated[bool, Query(description="with reference images, if the server shares images")] = True,
) -> schemas.Model:
    service = _service(request)
    engine, settings = service.engine, service.settings
    description = schemas.Model(
        name=engine.name,
        model_sha256=engine.sha256,
        classes=list(engine.classes),
        capabilities=service.capabilities,
        confidence_threshold=settings.confidence_threshold,
        limits=service.limits,
        **engine.metadata,
    )
    if reference_samples and settings.share_images:
        description.reference_samples = [
            schemas.ReferenceSample(
                name=sample.name, png=base64.b64encode(sample.png).decode(), probabilities=sample.probabilities
            )
            for sample in engine.reference_samples
        ]
    return description


async def filters(request: Request) -> Response:
    image = _service(request).engine.filters()
    if image is None:
        raise HTTPException(404, "this model has no filters to show")
    return Response(encode_png(image), media_type="image/png")


async def predict(
    request: Request,
    top: Annotated[int | None, Query(ge=1, le=100_000, description="number of entries in top_k")] = None,
    confidence_threshold: Annotated[
        float | None, Query(ge=0, le=1, description="abstain if the first score is lower")
    ] = None,
    embedding: Annotated[bool, Query(description="add the features of the last hidden layer")] = False,
    saliency: Annotated[Method | None, Query(description="add a saliency map for the first prediction")] = None,
    neighbors: Annotated[int, Query(ge=0, le=20, description="add this many nearest training images")] = 0,
) -> Any:
    """Send images as a form with files in fields called `file`, or one image as the body itself.

    An image that cannot be used has an `error` in place of its prediction; the other images of the request have
    predictions.
    """
    service = _service(request)
    options = RequestOptions(embedding, saliency, neighbors)
    _check_capabilities(service, options)
    service.admission.check_capacity(1)  # before the body is read
    with body_memory(service.admission) as sizes:
        images = await read_images(request, service.limits, service.admission, sizes)
        request.state.log = {"images": len(images)}
        engine, results = await _unless_disconnected(
            request, service.predict(images, options), service.limits.request_timeout
        )
    threshold = confidence_threshold if confidence_threshold is not None else service.settings.confidence_threshold
    service.count(engine, results, threshold)
    entries = [
        _entry(image.name, result, engine, options, top or service.settings.top, threshold)
        for image, result in zip(images, results, strict=True)
    ]
    failures = [entry for entry in entries if isinstance(entry, schemas.Failure)]
    request.state.log["bad"] = len(failures)
    ids = {"model_sha256": engine.sha256, "request_id": request.state.id}
    if len(failures) == len(entries):
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        error = f"no image can be used: {failures[0].error}{more}"
        return JSONResponse(schemas.NoUsableImage(error=error, predictions=failures, **ids).model_dump(), 422)
    return schemas.Predictions(predictions=entries, **ids)


def _check_capabilities(service: Service, options: RequestOptions) -> None:
    """Raise :class:`RequestRejected` (422) if the server cannot compute what is requested."""
    capabilities = service.capabilities
    requested = {
        "embedding": options.embedding,
        f"saliency={options.saliency}": options.saliency,
        "neighbors": options.neighbors,
    }
    for name, value in requested.items():
        if value and name not in capabilities:
            raise RequestRejected(
                422, f"{name} is not available. This server has {', '.join(capabilities) or 'only predictions'}"
            )


def _entry(
    filename: str,
    result: ImageResult | ImageError,
    engine: Engine,
    options: RequestOptions,
    top: int,
    threshold: float | None,
) -> schemas.Prediction | schemas.Failure:
    """The entry of one image in the response; fields that were not requested stay unset."""
    if isinstance(result, ImageError):
        return schemas.Failure(filename=filename, error=str(result))
    prediction = best(filename, result.probabilities, engine.classes, top, threshold)
    entry = schemas.Prediction(
        filename=filename, top_k=[schemas.Score(label=label, score=score) for label, score in prediction.top_k]
    )
    if prediction.abstained is not None:
        entry.abstained = prediction.abstained
    if options.embedding and result.embedding is not None:
        entry.embedding = result.embedding.tolist()
    if result.saliency is not None:
        overlay = result.saliency
        entry.saliency = schemas.Saliency(
            method=overlay.method, image=png_url(overlay.png), box_xywh_normalized=overlay.box_xywh_normalized
        )
    if options.neighbors:
        entry.neighbors = [
            schemas.Neighbor(label=neighbor.label, distance=neighbor.distance, image=png_url(neighbor.png))
            for neighbor in result.neighbors
        ]
    return entry


async def _unless_disconnected(request: Request, work: Any, seconds: float) -> Any:
    """The result of ``work``, cancelled when the client disconnects or ``seconds`` have passed."""
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watcher}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if watcher.done():
            raise ClientDisconnect
        raise RequestRejected(503, f"no prediction within {seconds:g} seconds; try again later", 5)
    finally:
        for future in (task, watcher):
            future.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# Errors


def _add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(RequestRejected, _on_rejected)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameter)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_exception)


def _error(request: Request, status: int, reason: str, rejection: RequestRejected | None = None) -> Response:
    response = Response(error_body(reason, request.state.id), status, media_type="application/json")
    for name, value in rejection_headers(rejection or RequestRejected(status, reason)):
        response.headers[name.decode()] = value.decode()
    return response


async def _on_rejected(request: Request, error: Any) -> Response:
    return _error(request, error.status, error.reason, error)


async def _on_invalid_parameter(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    return _error(request, 422, f"parameter {'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")


async def _on_http_exception(request: Request, error: Any) -> Response:
    response = _error(request, error.status_code, str(error.detail))
    for name, value in (error.headers or {}).items():  # Allow: the methods of the route
        response.headers[name] = value.replace("GET", "GET, HEAD") if name.lower() == "allow" else value
    return response


async def _on_disconnect(request: Request, error: Any) -> Response:
    return _error(request, 400, "the client closed the connection")


async def _on_exception(request: Request, error: Any) -> Response:
    return _error(request, 500, "the server failed; its log has the request id")
