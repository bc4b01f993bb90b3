"""The BentoML service: hosts the HTTP API, starts and warms up the models, reports health, shuts down.

bentoml serve service.app:ConvServe
"""

import asyncio
import functools
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from http import HTTPStatus
from multiprocessing.connection import Connection as Pipe
from types import FrameType
from typing import Any

from service import launch, memory
from service.telemetry import metrics  # before BentoML: it chooses the folder that the series are shared in

import bentoml  # isort: skip
from bentoml._internal.utils.analytics.usage_stats import do_not_track
from bentoml.exceptions import BentoMLException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.engines.onnxruntime import CPU, DeviceUnusable
from service.errors import BodyTimeout, EmptyBody, NotReady, ServiceError
from service.http import connection
from service.http.balance import SECONDS_BETWEEN_REPORTS, ConnectionBalance
from service.http.body import counted
from service.http.middleware import AccessLog, LoadShedding, RequestId, set_up_logging
from service.http.routes import BENTO_PREFIX, CLIENT_LEFT, TaskRoutes, create_app, endpoints_of, mounted
from service.http.state import State
from service.pipeline import Pipeline
from service.repository.loading import check_loadable, load_models
from service.scheduling.threads import schedule_in_batches
from service.settings import Settings, SettingsError
from service.tasks import TASKS
from service.tasks.task import Task
from service.telemetry.request import RequestContext, StageTimer, count_refusal, observe_stages, start_at_zero
from service.telemetry.tracing import Tracing, exporter_name

logger = logging.getLogger("convserve")
set_up_logging()
launch.prepare_workers()
# `bentoml serve` asks whether it may tell of itself before it imports this module, which says no, and keeps the answer.
do_not_track.cache_clear()

try:
    STATE = State(Settings.read())
    exporter_name(os.environ)  # may be one that is not installed
except SettingsError as _error:
    sys.exit(f"convserve does not start: {_error}")

SETTINGS = STATE.settings
API = create_app(STATE)
_TIMER: ContextVar[StageTimer] = ContextVar("timer")  # of a call on BentoML's routes, whose methods see no request

_BEHIND_OURS_SECONDS = 30  # BentoML's own timeout would answer in its own form: it lies this far above ours

connection.install(SETTINGS.keep_alive_seconds)


@functools.cache  # one for each worker, and none for the process that starts them: it sends in a thread of its own
def _tracing() -> Tracing | None:
    return Tracing.from_environment()


def _load_or_explain(pipe: Pipe) -> None:
    """In a process of its own: tries whether models load, and sends what stands in the way, or nothing."""
    logging.disable(logging.WARNING)  # the workers will log the same
    try:
        check_loadable(SETTINGS)
        pipe.send(None)
    except (SettingsError, DeviceUnusable) as error:
        pipe.send(str(error))


class RawBodies:
    """Bodies for BentoML's own routes, which have no limits: raw bytes whatever the content type says, counted and
    timed as on our routes. Plain ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(f"{BENTO_PREFIX}/"):
            await self.app(scope, receive, send)
            return
        # BentoML would read forms by itself, to disk, and answer 500 for broken ones.
        others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        scope = {**scope, "headers": [*others, (b"content-type", b"application/octet-stream")]}
        body = counted(Request(scope, receive), SETTINGS.max_body_bytes)
        until = asyncio.get_running_loop().time() + SETTINGS.body_timeout_ms / 1000
        received, left = 0, False
        this = RequestContext.of(scope)
        this.timer = StageTimer()
        _TIMER.set(this.timer)

        async def next_block() -> Message:
            nonlocal received, left
            try:
                async with asyncio.timeout_at(until):
                    block = await anext(body, b"")
            except TimeoutError:
                raise _refused(this.endpoint, BodyTimeout(SETTINGS.body_timeout_ms)) from None
            except ServiceError as error:
                raise _refused(this.endpoint, error) from error
            except ClientDisconnect as error:
                left = True
                raise BentoMLException("the client left", error_code=HTTPStatus.BAD_REQUEST) from error
            received += len(block)
            if not received:  # BentoML would make two braces of it
                raise _refused(this.endpoint, EmptyBody())
            return {"type": "http.request", "body": block, "more_body": bool(block)}

        async def sending(message: Message) -> None:
            if left and message["type"] == "http.response.start":
                message["status"] = CLIENT_LEFT
            await send(message)

        await self.app(scope, next_block, sending)


class Worker:
    """One worker process, from its start to its end."""

    def __init__(self) -> None:
        self._broken = False

    @bentoml.on_deployment
    @staticmethod
    def check_start() -> None:
        """Once, before any worker: what cannot work must not start, and be started again for ever."""
        receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=_load_or_explain, args=(sender,))
        process.start()
        sender.close()
        try:
            problem = receiver.recv()
        except EOFError:
            problem = "a model cannot be loaded; the log above says which"
        process.join()
        if problem:
            sys.exit(f"convserve does not start: {problem}")

    @bentoml.on_startup
    async def start(self) -> None:
        """In each worker, before it takes requests: loads and warms up every model."""
        began = time.monotonic()
        models = load_models(SETTINGS)
        for model in models:
            rate = model.engine.warm_up(model.max_batch)
            metrics.CALIBRATED.labels(model.card.key).set(rate)
        STATE.pipeline = Pipeline(models, SETTINGS, on_broken=self._give_up)
        memory.settle()
        if all(model.engine.provider == CPU for model in models):  # a GPU must not wait for its next batch
            schedule_in_batches()
        self._balancing = asyncio.create_task(self._balance_connections())
        self._drain_on_sigterm()
        tasks = STATE.pipeline.registry.tasks()
        start_at_zero(f"{prefix}/{task}" for prefix in ("", BENTO_PREFIX) for task in tasks)
        metrics.WORKERS.set(1)
        metrics.WORKER_STARTS.inc()
        listing = ", ".join(f"{model.card.key} on {model.engine.provider}" for model in models)
        logger.info("worker %d is ready after %.1f s: %s", os.getpid(), time.monotonic() - began, listing)
        samples = {f"/{name}": task.sample for name, task in TASKS.items() if name in tasks}
        launch.announce(metrics.share_folder(), samples)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        pipeline, STATE.pipeline = STATE.pipeline, None
        if pipeline is not None:
            await pipeline.close()
        if tracing := _tracing():
            tracing.close()
        metrics.WORKERS.set(0)

    async def __is_ready__(self) -> bool:
        return STATE.pipeline is not None and not self._broken and not STATE.draining

    async def __is_alive__(self) -> bool:
        return not self._broken

    async def _balance_connections(self) -> None:
        index = (bentoml.server_context.worker_index or 1) - 1
        file = metrics.share_folder() / "connections"
        balance = ConnectionBalance(file, SETTINGS.worker_count(), index, connection.open_connections)
        while True:
            STATE.surplus_connections = balance.surplus()
            await asyncio.sleep(SECONDS_BETWEEN_REPORTS)

    def _drain_on_sigterm(self) -> None:
        """Puts the drain before what the server does on SIGTERM: it closes the listener, and finishes what is in
        flight."""
        stop = signal.getsignal(signal.SIGTERM)
        if callable(stop):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._drain, stop)

    def _drain(self, stop: Callable[[int, FrameType | None], Any]) -> None:
        """Leaves readiness first, while requests that still come are answered and their clients sent away."""
        STATE.draining = True
        drain_seconds = 0 if self._broken else SETTINGS.drain_seconds  # a broken engine has no answers to give
        asyncio.get_running_loop().call_later(drain_seconds, stop, signal.SIGTERM, None)

    def _give_up(self) -> None:
        """The engine answers nothing any more: leaves readiness, and ends, so that a new worker takes over."""
        self._broken = True
        logger.critical("the engine is broken; worker %d ends, to be started afresh", os.getpid())
        os.kill(os.getpid(), signal.SIGTERM)


def _refused(endpoint: str, error: ServiceError) -> BentoMLException:
    """``error`` as BentoML encodes it, counted."""
    count_refusal(endpoint, error.slug)
    return BentoMLException(f"{error.title}: {error.detail}", error_code=HTTPStatus(error.status))


def _bento_method(task: Task) -> Any:
    """BentoML's route of a task, with default parameters: ``client.<task>(media)``."""

    async def call(self: Worker, media: bytes, /) -> Any:
        deadline, endpoint = time.monotonic() + SETTINGS.timeout_ms / 1000, f"{BENTO_PREFIX}/{task.name}"
        try:
            if STATE.pipeline is None:
                raise NotReady("no model is loaded yet")
            model = STATE.pipeline.registry.find(task.name)
            answer = await STATE.pipeline.answer(model, media, task.parameters(), deadline=deadline, timer=_TIMER.get())
            observe_stages(endpoint, answer.stages)
            return answer.body
        except ServiceError as error:
            raise _refused(endpoint, error) from error

    call.__name__ = call.__qualname__ = task.name
    call.__doc__ = f"{task.summary}."
    call.__annotations__["return"] = task.answer
    return bentoml.api(route=f"{BENTO_PREFIX}/{task.name}")(call)


def _trace(scope: Scope, this: RequestContext) -> None:
    if tracing := _tracing():
        tracing.record(scope, this)


class Hosted(bentoml.Service[Any]):  # type: ignore[misc]  # it is untyped
    """BentoML's service within our middleware chain, from the outside in. See docs/decisions/middleware-order.md.

    ``add_asgi_middleware`` would put the chain within BentoML's timeout and tracing, which cost every request a task
    and a timer that runs on for a minute.
    """

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        app: ASGIApp = RawBodies(super().to_asgi(is_main))
        app = LoadShedding(TaskRoutes(app, STATE), STATE)
        app = AccessLog(app, SETTINGS.access_log, _trace if exporter_name(os.environ) else None)
        return RequestId(app, endpoints_of(API), STATE)


@bentoml.service(
    name="convserve",
    service_class=Hosted,
    workers=SETTINGS.worker_count(),
    traffic={"timeout": (SETTINGS.timeout_ms + SETTINGS.body_timeout_ms) / 1000 + _BEHIND_OURS_SECONDS},
    # Ours instead: BentoML's own cost more than half of the throughput.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
# Mounted as a plain function: the unknown paths of a Starlette app BentoML would answer itself, in its own form.
@bentoml.asgi_app(mounted(API), path="/")
class ConvServe(Worker):
    """The service that BentoML hosts: a worker, with a method for each task."""

    vars().update({name: _bento_method(task) for name, task in TASKS.items()})
