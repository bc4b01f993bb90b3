"""The HTTP API: one route per task, the stages of each in order; models, metrics and problems beside them."""

import asyncio
import re
import time
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic_core import to_json
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.errors import (
    REFUSALS,
    BodyTimeout,
    BodyTooLarge,
    InternalError,
    InvalidParameter,
    MethodNotAllowed,
    NotFound,
    NotReady,
    ServiceError,
)
from service.http import connection as wire
from service.http import openapi
from service.http.body import Upload, parse_parameters, read_inputs
from service.http.middleware import PROBLEM_JSON, App, Receive, Scope, Send, cost, problem, visit
from service.pipeline import Answer, Body, Form, Pipeline
from service.repository.card import ModelCard, Task
from service.schemas import ClassifyParameters, Parameters, SegmentParameters, WindowParameters
from service.settings import Settings
from service.telemetry import metrics
from service.telemetry.stages import STAGES, Stopwatch, now
from service.version import VERSION

_PARAMETERS: dict[Task, type[Parameters]] = {
    "classify": ClassifyParameters,
    "segment": SegmentParameters,
    "audio": WindowParameters,
    "video": WindowParameters,
}
CLIENT_LEFT = 499  # nginx's status for a request whose client did not wait; nobody reads it but the log
_T = TypeVar("_T")


def create_app(settings: Settings) -> FastAPI:
    """The app. ``app.state.pipeline`` has to be set before it is ready."""
    app = FastAPI(title="convserve", summary=openapi.SUMMARY, version=VERSION, docs_url="/docs", redoc_url=None)
    app.state.settings = settings
    app.state.pipeline = None
    for task in _PARAMETERS:
        _add_task_route(app, task)
    app.add_api_route("/models", list_models, methods=["GET"], response_model=list[ModelCard])
    app.add_api_route("/models/{name}", show_model, methods=["GET"], response_model=ModelCard)
    app.add_api_route("/problems/{slug}", show_problem, methods=["GET"])
    app.add_api_route("/metrics", show_metrics, methods=["GET"], include_in_schema=False)
    app.add_api_route("/", to_docs, methods=["GET"], include_in_schema=False)
    app.add_exception_handler(ServiceError, _refused)
    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(Exception, _failed)
    return app


class TaskRoutes:
    """Answers the task routes before anything else sees them: BentoML's and FastAPI's layers would cost them a quarter
    of the throughput. Everything else, also the wrong method on these paths, goes on. A plain ASGI middleware."""

    def __init__(self, app: App, api: FastAPI) -> None:
        self.app, self.api = app, api
        self._tasks = {f"/{task}": task for task in _PARAMETERS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = self._tasks.get(scope["path"]) if scope.get("method") == "POST" else None
        if task is None:
            await self.app(scope, receive, send)
            return
        visit(scope).watch = Stopwatch()
        try:
            response = await answer_request(Request(scope, receive), task, self.api.state)
        except ServiceError as error:
            response = refusal(error, scope)
        except ClientDisconnect:
            response = Response(status_code=CLIENT_LEFT)
        await response(scope, receive, send)


def mounted(app: FastAPI) -> App:
    """``app`` below BentoML's routes, which have kept what they answer to: POST to ``/bento/...``."""
    bento = {f"/bento/{task}" for task in _PARAMETERS}

    async def every_path(scope: Scope, receive: Receive, send: Send) -> None:
        answer = _only_post(scope) if scope["path"] in bento else app
        await answer(scope, receive, send)

    return every_path


def _only_post(scope: Scope) -> Response:
    response = refusal(MethodNotAllowed(f"{scope['path']!r} answers to POST"), scope)
    response.headers["Allow"] = "POST"
    return response


def _add_task_route(app: FastAPI, task: Task) -> None:
    """For /docs, and for the methods that the path does not answer to: POST never comes here."""

    async def route(request: Request) -> Response:
        return await answer_request(request, task, app.state)

    app.add_api_route(
        f"/{task}",
        route,
        methods=["POST"],
        operation_id=task,
        summary=openapi.SUMMARIES[task],
        responses=openapi.responses(task),
        openapi_extra=openapi.request(task, _PARAMETERS[task]),
    )


async def answer_request(request: Request, task: Task, state: State) -> Response:
    """Body, parameters, model, then each file's stages; several files answer independently of one another."""
    settings: Settings = state.settings
    pipeline, this = _pipeline(state), visit(request.scope)
    inputs = await read_inputs(request, settings)
    received = time.monotonic()
    parameters = parse_parameters(
        _PARAMETERS[task], request.scope["query_string"], inputs.parameters, settings.timeout_ms
    )
    form = _form(request, parameters, len(inputs.uploads))
    card = pipeline.catalogue.find(task, parameters.model)
    this.model = card.key
    deadline = received + (parameters.timeout_ms or settings.timeout_ms) / 1000
    if len(inputs.uploads) > 1:
        return await _while_connected(
            request.scope, _several(request, pipeline, card, inputs.uploads, parameters, deadline)
        )
    answering = pipeline.answer(
        card, inputs.uploads[0].data, parameters, deadline=deadline, form=form, watch=this.watch
    )
    answer = await _while_connected(request.scope, answering)
    metrics.observe_stages(this.endpoint, answer.stages)
    return _response(answer.body, card, answer.stages, answer.batch_size)


async def _several(
    request: Request,
    pipeline: Pipeline,
    card: ModelCard,
    uploads: list[Upload],
    parameters: Parameters,
    deadline: float,
) -> Response:
    """One result per file, in order; a file that fails is a problem in its place. All files come in at once as far as
    there is room; each of the others when one before it is done, so that it is not refused because of them."""
    answers: list[Answer] = []
    asked = now()

    async def result(upload: Upload) -> dict[str, Any]:
        this = visit(request.scope)
        watch = Stopwatch(this.watch.intervals if this.watch else None)
        watch.add("queue", asked, now())
        try:
            answer = await pipeline.answer(card, upload.data, parameters, deadline=deadline, watch=watch)
        except ServiceError as error:
            metrics.count_refusal(this.endpoint, error.slug)
            return {"filename": upload.filename, "error": problem(error, this.request_id)}
        metrics.observe_stages(this.endpoint, answer.stages)
        answers.append(answer)
        return {"filename": upload.filename, "predictions": answer.body}

    results: list[asyncio.Task[dict[str, Any]]] = []
    async with asyncio.TaskGroup() as group:
        for upload in uploads:
            while not pipeline.has_room_for_more(card) and (coming := [file for file in results if not file.done()]):
                await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            results.append(group.create_task(result(upload)))
            await asyncio.sleep(0)  # it takes its place
    longest = {stage: max((answer.stages[stage] for answer in answers), default=0.0) for stage in STAGES}
    content = {"results": [file.result() for file in results]}
    return _response(content, card, longest, max((answer.batch_size for answer in answers), default=0))


def _form(request: Request, parameters: Parameters, files: int) -> Form:
    """PNG if the client asks for it by name; ``*/*`` means JSON."""
    if not isinstance(parameters, SegmentParameters):
        return "json"
    wanted = _accepted(", ".join(request.headers.getlist("accept")))
    png = wanted.get("image/png", 0.0) > wanted.get("application/json", 0.0)
    if png and files > 1:
        raise InvalidParameter("Accept: image/png answers one file; send one, or accept JSON")
    if parameters.overlay and not png:
        raise InvalidParameter("'overlay' is for Accept: image/png")
    return "png" if png else "json"


def _accepted(header: str) -> dict[str, float]:
    """Media types by name with their weights (RFC 9110, section 12.5.1); what cannot be read weighs nothing."""
    weights: dict[str, float] = {}
    for part in header.lower().split(","):
        name, *parameters = (item.strip() for item in part.split(";"))
        stated = next((item[2:] for item in parameters if item.startswith("q=")), "1")
        weights[name] = float(stated) if re.fullmatch(r"[01](\.\d{0,3})?", stated) else 0.0
    return weights


def _response(body: Body | dict[str, Any], card: ModelCard, stages: Mapping[str, float], batch_size: int) -> Response:
    """The body with what it cost; over several files, the most of each."""
    if isinstance(body, bytes):
        response = Response(body, media_type="image/png")
    else:
        response = Response(to_json(body), media_type="application/json")
    response.raw_headers += [(b"x-model", card.key.encode()), *cost(stages, batch_size)]
    return response


async def _while_connected(scope: Scope, work: Coroutine[Any, Any, _T]) -> _T:
    """Stops ``work`` when the client leaves, so that nothing is done for nobody. Raises ``ClientDisconnect``."""
    if (left := wire.left(scope)) is None:
        return await work
    working = asyncio.current_task()
    assert working is not None
    stopped = finished = False

    def stop(_: object) -> None:
        nonlocal stopped
        if not finished:
            stopped = working.cancel()

    left.add_done_callback(stop)
    try:
        return await work
    except asyncio.CancelledError:
        if stopped and working.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        finished = True
        left.remove_done_callback(stop)


async def list_models(request: Request) -> Response:
    """The cards of all loaded models."""
    return Response(to_json(_pipeline(request.app.state).catalogue.cards()), media_type="application/json")


async def show_model(request: Request, name: str) -> Response:
    """One card, by name or name:version."""
    return Response(_pipeline(request.app.state).catalogue.named(name).model_dump_json(), media_type="application/json")


async def show_problem(slug: str) -> Response:
    """What a problem type means."""
    if slug not in REFUSALS:
        raise NotFound(f"no problem is called {slug[:80]!r}; there are {', '.join(REFUSALS)}")
    error = REFUSALS[slug]
    return JSONResponse({"type": f"/problems/{slug}", "title": error.title, "status": error.status})


async def show_metrics() -> Response:
    """Prometheus text, summed over all workers."""
    return Response(await asyncio.to_thread(metrics.exposition), media_type=metrics.CONTENT_TYPE)


async def to_docs() -> Response:
    return RedirectResponse("/docs")


def _pipeline(state: State) -> Pipeline:
    pipeline: Pipeline | None = state.pipeline
    if pipeline is None:
        raise NotReady("no model is loaded yet", retry_after_seconds=5)
    return pipeline


def refusal(error: ServiceError, scope: Scope) -> Response:
    """The problem document for ``error``, counted."""
    this = visit(scope)
    metrics.count_refusal(this.endpoint, error.slug)
    headers = {"X-Model": this.model} if this.model else {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
        wire.refused(scope)
    if isinstance(error, (BodyTimeout, BodyTooLarge)):
        headers["Connection"] = "close"  # the rest of the body is not wanted
    response = Response(
        to_json(problem(error, this.request_id)), status_code=error.status, media_type=PROBLEM_JSON, headers=headers
    )
    if this.watch:
        response.raw_headers += cost(this.watch.seconds, batch_size=0)
    return response


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return refusal(error, request.scope)


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:80]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        response = refusal(MethodNotAllowed(f"{path!r} answers to {allowed}"), request.scope)
        response.headers["Allow"] = allowed
        return response
    if error.status_code == 404:
        routes = ", ".join(f"POST /{task}" for task in _PARAMETERS)
        return refusal(
            NotFound(f"there is nothing at {path!r}; there are {routes}, GET /models, GET /docs"), request.scope
        )
    return refusal(InternalError(str(error.detail)), request.scope)


async def _failed(request: Request, error: Exception) -> Response:
    return refusal(InternalError("see the service's log under this request_id"), request.scope)
