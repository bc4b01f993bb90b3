"""The routes: one per task, and models, problems, metrics and documentation beside them."""

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import (
    REFUSALS,
    CorruptMedia,
    InternalError,
    InvalidParameter,
    MethodNotAllowed,
    NotFound,
    NotReady,
    ServiceError,
    UnsupportedMedia,
)
from service.http import body, openapi
from service.http.body import Upload
from service.http.problems import problem, refusal
from service.http.state import BENTO_PREFIX, State, task_routes
from service.pipeline import Answer, Pipeline, ServedModel
from service.repository.card import ModelCard
from service.tasks import TASKS
from service.tasks.task import JSON, Task
from service.telemetry import metrics
from service.telemetry.metrics import STAGES
from service.telemetry.request import RequestContext, StageTimer, cost_headers, count_refusal, now, observe_stages
from service.version import VERSION

CLIENT_LEFT = 499  # nginx's status for a request whose client did not wait; only the log shows it
_BENTO_ROUTES = ("/livez", "/readyz", "/healthz")  # BentoML's own
_UNKNOWN = "unknown"  # the endpoint of every path that does not exist, so that no client can make series
_WATCH_AFTER_SECONDS = 0.1  # requests that are answered sooner are not watched for a client that leaves
_FORM_BY_CURL = "application/x-www-form-urlencoded"

T = TypeVar("T")


def create_app(state: State) -> FastAPI:
    app = FastAPI(title="convserve", summary=openapi.SUMMARY, version=VERSION, docs_url="/docs", redoc_url=None)
    app.state.service = state
    for task in TASKS.values():
        _add_task_route(app, task, state)
    app.add_api_route("/models", list_models, methods=["GET"], response_model=list[ModelCard])
    app.add_api_route("/models/{name}", show_model, methods=["GET"], response_model=ModelCard)
    app.add_api_route("/problems/{slug}", show_problem, methods=["GET"])
    app.add_api_route("/metrics", show_metrics, methods=["GET"], include_in_schema=False)
    app.add_api_route("/", to_docs, methods=["GET"], include_in_schema=False)
    app.add_exception_handler(ServiceError, _refused)
    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(Exception, _failed)
    return app


def endpoints_of(app: FastAPI) -> Callable[[str], str]:
    """Returns the function from a path to its route's template, a label that takes few values."""
    paths = [path for route in app.routes if (path := getattr(route, "path", ""))]
    fixed = {*(path for path in paths if "{" not in path), *task_routes(), *_BENTO_ROUTES}
    with_name = {path.partition("{")[0]: path for path in paths if "{" in path}

    def endpoint_of(path: str) -> str:
        if path in fixed:
            return path
        return next((template for prefix, template in with_name.items() if path.startswith(prefix)), _UNKNOWN)

    return endpoint_of


class TaskRoutes:
    """Answers the task routes before BentoML's and FastAPI's layers, which would cost a quarter of the throughput.

    Everything else, also another method on these paths, goes on to ``app``.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state
        self._tasks = task_routes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = self._tasks.get(scope["path"]) if scope.get("method") == "POST" else None
        if task is None:
            await self.app(scope, receive, send)
            return
        RequestContext.of(scope).timer = StageTimer()
        try:
            response = await answer_request(Request(scope, receive), task, self.state)
        except ServiceError as error:
            response = refusal(error, scope)
        except ClientDisconnect:
            response = Response(status_code=CLIENT_LEFT)
        await response(scope, receive, send)


def mounted(app: FastAPI) -> ASGIApp:
    """``app`` below BentoML's routes, as a plain function: of a Starlette app BentoML answers unknown paths itself."""

    async def every_path(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in task_routes():  # only other methods get here, of which FastAPI knows none below /bento
            await refusal(MethodNotAllowed(f"{scope['path']!r} answers to POST"), scope, allow=["POST"])(
                scope, receive, send
            )
        else:
            await app(scope, receive, send)

    return every_path


def _add_task_route(app: FastAPI, task: Task, state: State) -> None:
    """Adds the route for /docs, and for other methods; POST is answered by ``TaskRoutes``."""

    async def route(request: Request) -> Response:
        return await answer_request(request, task, state)

    app.add_api_route(
        f"/{task.name}",
        route,
        methods=["POST"],
        operation_id=task.name,
        summary=task.summary,
        responses=openapi.responses(task),
        openapi_extra=openapi.request(task),
    )


async def answer_request(request: Request, task: Task, state: State) -> Response:
    """Reads body and parameters, finds the model, and answers each file independently of the others."""
    settings, pipeline, this = state.settings, _pipeline(state), RequestContext.of(request.scope)
    query = request.scope["query_string"]
    parameters = body.parse_parameters(task.parameters, query, {}, settings.timeout_ms)
    model = pipeline.registry.find(task.name, parameters.model)  # a body that is in vain is not waited for
    raw = request.scope["path"].startswith(BENTO_PREFIX)  # BentoML's clients state content types that mean nothing
    read = await body.read(request, settings, raw=raw)
    received = time.monotonic()
    if read.parameters:
        parameters = body.parse_parameters(task.parameters, query, read.parameters, settings.timeout_ms)
        model = pipeline.registry.find(task.name, parameters.model)
    media_type = _media_type(request, task, len(read.uploads))
    if len(task.media_types) > 1:
        task.check_media_type(parameters, media_type)
    this.model = model.card.key
    deadline = received + (parameters.timeout_ms or settings.timeout_ms) / 1000
    if len(read.uploads) > 1:
        return await _while_connected(request, _several(request, pipeline, model, read.uploads, parameters, deadline))
    answering = pipeline.answer(
        model, read.uploads[0].data, parameters, deadline=deadline, media_type=media_type, timer=this.timer
    )
    try:
        answer = await _while_connected(request, answering)
    except (CorruptMedia, UnsupportedMedia) as error:
        raise _with_hint(error, request) from error
    observe_stages(this.endpoint, answer.stages)
    return _response(answer.body, media_type, model.card, answer.stages, answer.batch_size)


async def _several(
    request: Request,
    pipeline: Pipeline,
    model: ServedModel,
    uploads: list[Upload],
    parameters: Any,
    deadline: float,
) -> Response:
    """One result per file, in order; a file that fails is a problem in its place.

    Files are queued as far as there is room, the others as earlier ones are done, so none is refused because of them.
    """
    answers: list[Answer] = []
    asked = now()

    async def result(upload: Upload) -> dict[str, Any]:
        this = RequestContext.of(request.scope)
        timer = StageTimer(this.timer.intervals if this.timer else None)
        timer.add("queue", asked, now())
        try:
            answer = await pipeline.answer(model, upload.data, parameters, deadline=deadline, timer=timer)
        except ServiceError as error:
            count_refusal(this.endpoint, error.slug)
            return {"filename": upload.filename, "error": problem(error, this.request_id)}
        observe_stages(this.endpoint, answer.stages)
        answers.append(answer)
        return {"filename": upload.filename, "predictions": answer.body}

    results: list[asyncio.Task[dict[str, Any]]] = []
    has_room = model.batcher.admission.has_room_for_more
    async with asyncio.TaskGroup() as group:
        for upload in uploads:
            while not has_room() and (unfinished := [file for file in results if not file.done()]):
                await asyncio.wait(unfinished, return_when=asyncio.FIRST_COMPLETED)
            results.append(group.create_task(result(upload)))
            await asyncio.sleep(0)  # it is queued
    longest = {stage: max((answer.stages[stage] for answer in answers), default=0.0) for stage in STAGES}
    content = {"results": [file.result() for file in results]}
    batch_size = max((answer.batch_size for answer in answers), default=0)
    return _response(content, JSON, model.card, longest, batch_size)


def _media_type(request: Request, task: Task, files: int) -> str:
    """Returns the media type that the client prefers by name; ``*/*`` means the task's first."""
    first, *others = task.media_types
    if not others:
        return first
    wanted = _accepted(", ".join(request.headers.getlist("accept")))
    best = max(others, key=lambda media_type: wanted.get(media_type, 0.0))
    if wanted.get(best, 0.0) <= wanted.get(first, 0.0):
        return first
    if files > 1:
        raise InvalidParameter(f"Accept: {best} answers one file; send one, or accept JSON")
    return best


def _accepted(header: str) -> dict[str, float]:
    """Media types by name with their weights (RFC 9110, section 12.5.1); an unreadable weight is 0."""
    weights: dict[str, float] = {}
    for part in header.lower().split(","):
        name, *parameters = (item.strip() for item in part.split(";"))
        stated = next((item[2:] for item in parameters if item.startswith("q=")), "1")
        weights[name] = float(stated) if re.fullmatch(r"[01](\.\d{0,3})?", stated) else 0.0
    return weights


def _with_hint(error: ServiceError, request: Request) -> ServiceError:
    """``curl -d @FILE`` drops line ends, which damages media."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM_BY_CURL:
        return error
    return type(error)(f"{error.detail}; if curl sent it with -d, use --data-binary, as -d drops line ends")


def _response(content: Any, media_type: str, card: ModelCard, stages: Mapping[str, float], batch_size: int) -> Response:
    """The answer with what it took; of several files, the most of each."""
    response = Response(content if media_type != JSON else to_json(content), media_type=media_type)
    response.raw_headers += [(b"x-model", card.key.encode()), *cost_headers(stages, batch_size)]
    return response


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Awaits ``work``, and cancels it when the client leaves. Raises ``ClientDisconnect`` then."""
    loop, working = asyncio.get_running_loop(), asyncio.current_task()
    assert working is not None
    watching: asyncio.Task[None] | None = None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            continue
        left = working.cancel()

    def start_watching() -> None:
        nonlocal watching
        watching = loop.create_task(watch())

    timer = loop.call_later(_WATCH_AFTER_SECONDS, start_watching)
    try:
        return await work
    except asyncio.CancelledError:
        if left and working.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        timer.cancel()
        if watching:
            watching.cancel()


def _pipeline(state: State) -> Pipeline:
    if state.pipeline is None:
        raise NotReady("no model is loaded yet", retry_after_seconds=5)
    return state.pipeline


async def list_models(request: Request) -> Response:
    """The cards of all loaded models."""
    return Response(to_json(_pipeline(request.app.state.service).registry.cards()), media_type=JSON)


async def show_model(request: Request, name: str) -> Response:
    """One card, by name or name:version."""
    card = _pipeline(request.app.state.service).registry.named(name).card
    return Response(card.model_dump_json(), media_type=JSON)


async def show_problem(slug: str) -> Response:
    """The meaning of a problem type."""
    if slug not in REFUSALS:
        raise NotFound(f"no problem is called {slug[:80]!r}; there are {', '.join(REFUSALS)}")
    error = REFUSALS[slug]
    return JSONResponse({"type": f"/problems/{slug}", "title": error.title, "status": error.status})


async def show_metrics() -> Response:
    """Prometheus text, summed over all workers."""
    return Response(await asyncio.to_thread(metrics.exposition), media_type=metrics.CONTENT_TYPE)


async def to_docs() -> Response:
    return RedirectResponse("/docs")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return refusal(error, request.scope)


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:80]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return refusal(MethodNotAllowed(f"{path!r} answers to {allowed}"), request.scope, allow=[allowed])
    if error.status_code == 404:
        routes = ", ".join(f"POST /{name}" for name in TASKS)
        return refusal(
            NotFound(f"there is nothing at {path!r}; there are {routes}, GET /models, GET /docs"), request.scope
        )
    return refusal(InternalError(str(error.detail)), request.scope)


async def _failed(request: Request, error: Exception) -> Response:
    return refusal(InternalError("see the service's log under this request_id"), request.scope)
