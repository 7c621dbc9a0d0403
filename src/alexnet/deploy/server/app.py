"""The routes: what is asked, what is answered."""

import asyncio
import base64
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from alexnet.data.pixels import encode_png
from alexnet.deploy.answers import best
from alexnet.deploy.server import body, page, schemas
from alexnet.deploy.server.engine import Engine, Found, Want
from alexnet.deploy.server.explain import Method
from alexnet.deploy.server.guard import Guard, problem, refusal_headers
from alexnet.deploy.server.limits import Refused
from alexnet.deploy.server.service import Service
from alexnet.errors import PictureError

_NEEDS: dict[int | str, dict[str, Any]] = {401: schemas.PROBLEMS[401], 503: schemas.PROBLEMS[503]}


def create_app(service: Service) -> Guard:
    """The whole application around ``service``."""
    from importlib.metadata import version

    app = FastAPI(
        title="alexnet", version=version("alexnet"), description="Pictures in, classes with probabilities out.",
        docs_url=None, redoc_url=None,  # both would load scripts from another host
    )  # fmt: skip
    app.state.service = service
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _wrong)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _failed)
    app.get("/healthz", summary="Is the process alive?")(healthz)
    app.get("/readyz", summary="Does it answer?", responses={503: schemas.PROBLEMS[503]})(readyz)
    app.get("/metrics", summary="For Prometheus", response_class=Response, responses={401: _NEEDS[401]})(metrics)
    app.get("/v1/model", summary="What answers", response_model=schemas.Model, responses=_NEEDS)(model)
    app.get("/v1/filters.png", summary="The first layer's filters", responses=_FILTERS, response_class=Response)(
        filters
    )
    app.post(
        "/v1/predict", summary="What is on pictures?", response_model=schemas.Answers,
        responses=schemas.PROBLEMS, openapi_extra={"requestBody": schemas.BODY},
    )(predict)  # fmt: skip
    page.add(app)
    return Guard(app, service)


_FILTERS: dict[int | str, dict[str, Any]] = {
    **_NEEDS,
    200: {"content": {"image/png": {}}},
    404: {"model": schemas.Problem, "description": "An exported file shows none."},
}


def _service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


async def healthz() -> dict[str, str]:
    return {"status": "alive"}


async def readyz(request: Request) -> dict[str, str]:
    state = _service(request).state
    if state != "ready":
        raise Refused(503, f"not ready: {state}", 2)
    return {"status": "ready"}


async def metrics(request: Request) -> Response:
    text, kind = _service(request).metrics.text()
    return Response(text, media_type=kind)


async def model(request: Request, golden: bool = True) -> Response:
    service = _service(request)
    engine, settings = service.engine, service.settings
    about: dict[str, Any] = {
        "name": engine.name, "sha256": engine.sha256, "classes": list(engine.classes), "offers": _offers(service),
        "abstain_below": settings.abstain_below, **engine.about, "limits": asdict(service.limits),
    }  # fmt: skip
    if golden and settings.pictures:
        about["golden"] = [
            {"name": g.name, "png": base64.b64encode(g.png).decode(), "probabilities": g.probabilities}
            for g in engine.golden
        ]
    return JSONResponse(about)


async def filters(request: Request) -> Response:
    drawn = _service(request).engine.filters()
    if drawn is None:
        raise HTTPException(404, "an exported file shows no filters")
    return Response(encode_png(drawn), media_type="image/png")


async def predict(
    request: Request,
    top: Annotated[int | None, Query(ge=1, le=100_000, description="guesses a picture")] = None,
    abstain_below: Annotated[float | None, Query(ge=0, le=1, description="under this probability: unknown")] = None,
    embedding: Annotated[bool, Query(description="add what the last hidden layer says")] = False,
    saliency: Annotated[Method | None, Query(description="add where the network looked")] = None,
    neighbors: Annotated[int, Query(ge=0, le=20, description="add so many training pictures, the most alike")] = 0,
) -> Response:
    """Send pictures as a form with files in fields called `file`, or one picture as the body itself.

    Good pictures are answered beside bad ones, each of which says why it can not be used.
    """
    service = _service(request)
    want = Want(embedding, saliency, neighbors)
    _check(service, want)
    service.gate.room_for(1)  # before a byte of the body is read
    with body.held(service.gate) as sizes:
        pictures = await body.uploads(request, service.limits, service.gate, sizes)
        request.state.about = {"pictures": len(pictures)}
        engine, found = await _while_there(request, service.answer(pictures, want), service.limits.answer_seconds)
    threshold = abstain_below if abstain_below is not None else service.settings.abstain_below
    answers = [
        _said(upload.name, one, engine, want, top or service.settings.top, threshold)
        for upload, one in zip(pictures, found, strict=True)
    ]
    bad = [answer["error"] for answer in answers if "error" in answer]
    request.state.about["bad"] = len(bad)
    rest = {"sha256": engine.sha256, "request_id": request.state.id}
    if len(bad) == len(answers):
        reason = f"no picture can be used: {bad[0]}" + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else "")
        return JSONResponse({"error": reason, "predictions": answers, **rest}, 422)
    return JSONResponse({"predictions": answers, **rest})


def _offers(service: Service) -> list[str]:
    return [name for name in service.engine.offers if name != "neighbors" or service.settings.pictures]


def _check(service: Service, want: Want) -> None:
    """Raise :class:`Refused` unless what is wanted is there."""
    offers = _offers(service)
    wanted = {"embedding": want.embedding, f"saliency={want.saliency}": want.saliency, "neighbors": want.neighbors}
    for name, value in wanted.items():
        if value and name not in offers:
            raise Refused(422, f"{name} is asked for; this server has {', '.join(offers) or 'probabilities only'}")


def _said(
    name: str, found: Found | PictureError, engine: Engine, want: Want, top: int, threshold: float | None
) -> dict[str, Any]:
    if isinstance(found, PictureError):
        return {"picture": name, "error": str(found)}
    prediction = best(name, found.row, engine.classes, top)
    answer = prediction.to_dict()
    if threshold is not None:
        answer["unknown"] = prediction.probability < threshold
    if want.embedding and found.embedding is not None:
        answer["embedding"] = found.embedding.tolist()
    if found.saliency is not None:
        answer["saliency"] = found.saliency.to_dict()
    if want.neighbors:
        answer["neighbors"] = [neighbor.to_dict() for neighbor in found.neighbors]
    return answer


async def _while_there(request: Request, work: Any, seconds: float) -> Any:
    """The result of ``work``; given up where the client goes away or it takes too long."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, watch}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if watch.done():
            raise ClientDisconnect
        raise Refused(503, f"no answer within {seconds:g} seconds; ask again later", 5)
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# What is no answer


def _problem(request: Request, status: int, reason: str, refused: Refused | None = None) -> Response:
    answer = Response(problem(reason, request.state.id), status, media_type="application/json")
    for name, value in refusal_headers(refused or Refused(status, reason)):
        answer.headers[name.decode()] = value.decode()
    return answer


async def _refused(request: Request, error: Any) -> Response:
    return _problem(request, error.status, error.reason, error)


async def _wrong(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    return _problem(request, 422, f"parameter {'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")


async def _http(request: Request, error: Any) -> Response:
    answer = _problem(request, error.status_code, str(error.detail))
    for name, value in (error.headers or {}).items():  # which methods are allowed
        answer.headers[name] = value
    return answer


async def _gone(request: Request, error: Any) -> Response:
    return _problem(request, 400, "the client went away")  # nobody reads it


async def _failed(request: Request, error: Any) -> Response:
    return _problem(request, 500, "the server failed; its log has the request id")
