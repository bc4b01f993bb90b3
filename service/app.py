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
from multiprocessing.connection import Connection as Pipe
from types import FrameType
from typing import Any

from service import launch, memory
from service.telemetry import metrics  # before BentoML: it chooses the folder that the series are shared in

import bentoml  # isort: skip
from bentoml._internal.utils.analytics.usage_stats import do_not_track
from starlette.types import ASGIApp, Scope

from service.engines.onnxruntime import CPU, DeviceUnusable
from service.errors import NotReady
from service.http import connection
from service.http.balance import SECONDS_BETWEEN_REPORTS, ConnectionBalance
from service.http.middleware import AccessLog, LoadShedding, RequestId, set_up_logging
from service.http.routes import TaskRoutes, create_app, endpoints_of, mounted
from service.http.state import BENTO_PREFIX, State, task_routes
from service.pipeline import Pipeline
from service.repository.loading import check_loadable, load_models
from service.scheduling.threads import schedule_in_batches
from service.settings import Settings, SettingsError
from service.tasks import TASKS
from service.tasks.task import Task
from service.telemetry.request import RequestContext, start_at_zero
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
        start_at_zero(path for path, task in task_routes().items() if task.name in tasks)
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


def _method(task: Task) -> Any:
    """BentoML's method of a task, with default parameters, by which its clients know the route.

    Over HTTP ``TaskRoutes`` answers that route.
    """

    async def call(self: Worker, media: bytes, /) -> Any:
        if STATE.pipeline is None:
            raise NotReady("no model is loaded yet")
        model, deadline = STATE.pipeline.registry.find(task.name), time.monotonic() + SETTINGS.timeout_ms / 1000
        return (await STATE.pipeline.answer(model, media, task.parameters(), deadline=deadline)).body

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
        app: ASGIApp = super().to_asgi(is_main)
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
@bentoml.asgi_app(mounted(API), path="/")
class ConvServe(Worker):
    """The service that BentoML hosts: a worker, with a method for each task."""

    vars().update({name: _method(task) for name, task in TASKS.items()})
