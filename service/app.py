"""The BentoML service: hosts the HTTP API, starts and warms up the models, says whether it is well, shuts down.

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
from contextvars import ContextVar
from http import HTTPStatus
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from service import launch, memory
from service.http import connection as wire
from service.http import middleware as access
from service.scheduling import threads
from service.telemetry import metrics  # before BentoML: it chooses the folder that the series are shared in

import bentoml  # isort: skip
import uvicorn
from bentoml._internal.utils.analytics.usage_stats import do_not_track
from bentoml.exceptions import BentoMLException
from starlette.requests import ClientDisconnect, Request

from service.engines.onnxruntime import CPU, DeviceUnusable
from service.errors import BodyTimeout, EmptyBody, NotReady, ServiceError
from service.http.balance import Connections
from service.http.body import counted
from service.http.handoff import Handover
from service.http.load_shedding import Door
from service.http.routes import CLIENT_LEFT, TaskRoutes, create_app, mounted
from service.pipeline import Body, Pipeline
from service.repository.card import Task
from service.repository.registry import check_loadable, load_models
from service.schemas import ClassifyParameters, Parameters, Prediction, Segment, SegmentParameters, WindowParameters
from service.settings import Settings, SettingsError
from service.telemetry.access_log import AccessLog
from service.telemetry.stages import Stopwatch
from service.telemetry.tracing import Traces, exporter_name

logger = logging.getLogger("convserve")
access.set_up_logging()
launch.prepare_workers()
# `bentoml serve` asks whether it may tell of itself before it imports this module, which says no, and keeps the answer.
do_not_track.cache_clear()

try:
    SETTINGS = Settings.read()
    exporter_name(os.environ)  # may be one that is not installed
except SettingsError as _error:
    sys.exit(f"convserve does not start: {_error}")

API = create_app(SETTINGS)
_WATCH: ContextVar[Stopwatch] = ContextVar("watch")  # of a call on BentoML's routes, whose methods see no request
ACCESS_LOG = AccessLog() if SETTINGS.access_log else None
CONNECTIONS = Connections(metrics.share_folder() / "connections", SETTINGS.worker_count())
_SAMPLES = Path(__file__).resolve().parent.parent / "samples"
_SAMPLE_OF: dict[Task, str] = {
    "classify": "cat.jpg",
    "segment": "tower.jpg",
    "audio": "seven.wav",
    "video": "pan-left.mp4",
}
_BEHIND_OURS_SECONDS = 30  # BentoML's own timeout would answer in its own form: it lies this far above ours


@functools.cache  # one for each worker, and none for the process that starts them: it sends in a thread of its own
def _traces() -> Traces | None:
    return Traces.from_environment()


def _load_or_explain(pipe: Connection) -> None:
    """In a process of its own: tries whether models load, and sends what stands in the way, or nothing."""
    logging.disable(logging.WARNING)  # the workers will say the same
    try:
        check_loadable(SETTINGS)
        pipe.send(None)
    except (SettingsError, DeviceUnusable) as error:
        pipe.send(str(error))


class RawBodies:
    """Bodies for BentoML's own routes, which have no limits: raw bytes whatever the content type says, counted and
    timed as on our routes. A plain ASGI middleware."""

    def __init__(self, app: access.App) -> None:
        self.app = app

    async def __call__(self, scope: access.Scope, receive: access.Receive, send: access.Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/bento/"):
            await self.app(scope, receive, send)
            return
        # BentoML would read forms by itself, to disk, and answer 500 for broken ones.
        others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        scope = {**scope, "headers": [*others, (b"content-type", b"application/octet-stream")]}
        body = counted(Request(scope, receive), SETTINGS.max_body_bytes)
        patience = asyncio.get_running_loop().time() + SETTINGS.body_timeout_ms / 1000
        received, left = 0, False
        this = access.visit(scope)
        endpoint, this.watch = this.endpoint, Stopwatch()
        _WATCH.set(this.watch)

        async def next_block() -> access.Message:
            nonlocal received, left
            try:
                async with asyncio.timeout_at(patience):
                    block = await anext(body, b"")
            except TimeoutError:
                raise _refused(endpoint, BodyTimeout(SETTINGS.body_timeout_ms)) from None
            except ServiceError as error:
                raise _refused(endpoint, error) from error
            except ClientDisconnect as error:
                left = True
                raise BentoMLException("the client left", error_code=HTTPStatus.BAD_REQUEST) from error
            received += len(block)
            if not received:  # BentoML would make two braces of it
                raise _refused(endpoint, EmptyBody())
            return {"type": "http.request", "body": block, "more_body": bool(block)}

        async def sending(message: access.Message) -> None:
            if left and message["type"] == "http.response.start":
                message["status"] = CLIENT_LEFT
            await send(message)

        await self.app(scope, next_block, sending)


class Hosted(bentoml.Service[Any]):  # type: ignore[misc]  # it is untyped
    """BentoML's service below our layers. What it calls a middleware stands below its timeout and its tracing, which
    cost every request a task, a timer that runs on for minutes, and a tenth of the throughput."""

    def to_asgi(self, is_main: bool = True) -> access.App:
        tasks = TaskRoutes(super().to_asgi(is_main), api=API)
        traces = _traces()
        trace = traces.record if traces else None
        entrance = access.Access(tasks, log=ACCESS_LOG, closes=CONNECTIONS.closes, trace=trace)
        API.state.door = Door(entrance, SETTINGS.timeout_ms)
        wire.use(CONNECTIONS.pass_on, API.state.door.turn_away)
        return entrance


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
class ConvServe:
    def __init__(self) -> None:
        self._pipeline: Pipeline | None = None
        self._broken = self._leaving = False

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
        self._pipeline = API.state.pipeline = API.state.door.pipeline = Pipeline(
            models, SETTINGS, broken=self._give_up, working=CONNECTIONS.working
        )
        memory.settle()
        if all(model.engine.provider == CPU for model in models):  # a GPU must not wait for its next batch
            threads.wait_for_turns()
        # uvicorn keeps its server to itself, but has made it what SIGTERM is answered by.
        server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if isinstance(server, uvicorn.Server):
            server.config.timeout_keep_alive = SETTINGS.keep_alive_seconds
            index = (bentoml.server_context.worker_index or 1) - 1
            CONNECTIONS.watch(server, index, self._handover(server, index))
            self._telling = asyncio.create_task(CONNECTIONS.keep_telling())
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._leave, server)
        metrics.expect(f"{way_in}/{task}" for way_in in ("", "/bento") for task in self._pipeline.catalogue.tasks())
        metrics.WORKERS.set(1)
        metrics.WORKER_STARTS.inc()
        listing = ", ".join(f"{model.card.key} on {model.engine.provider}" for model in models)
        logger.info("worker %d is ready after %.1f s: %s", os.getpid(), time.monotonic() - began, listing)
        samples = {f"/{task}": _SAMPLES / _SAMPLE_OF[task] for task in self._pipeline.catalogue.tasks()}
        launch.announce(metrics.share_folder(), samples)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        API.state.pipeline = API.state.door.pipeline = None
        if self._pipeline is not None:
            await self._pipeline.close()
        if traces := _traces():
            traces.close()
        if ACCESS_LOG:
            ACCESS_LOG.flush()
        metrics.WORKERS.set(0)

    async def __is_ready__(self) -> bool:
        return self._pipeline is not None and not self._broken and not self._leaving

    async def __is_alive__(self) -> bool:
        return not self._broken

    @bentoml.api(route="/bento/classify")
    async def classify(self, media: bytes, /) -> list[Prediction]:
        """What is in a picture."""
        return await self._answer("classify", media, ClassifyParameters())  # type: ignore[return-value]

    @bentoml.api(route="/bento/segment")
    async def segment(self, media: bytes, /) -> list[Segment]:
        """What is in every pixel of a picture."""
        return await self._answer("segment", media, SegmentParameters())  # type: ignore[return-value]

    @bentoml.api(route="/bento/audio")
    async def audio(self, media: bytes, /) -> list[Prediction]:
        """What is in a sound."""
        return await self._answer("audio", media, WindowParameters())  # type: ignore[return-value]

    @bentoml.api(route="/bento/video")
    async def video(self, media: bytes, /) -> list[Prediction]:
        """What is in a clip."""
        return await self._answer("video", media, WindowParameters())  # type: ignore[return-value]

    async def _answer(self, task: Task, media: bytes, parameters: Parameters) -> Body:
        deadline = time.monotonic() + SETTINGS.timeout_ms / 1000
        try:
            if self._pipeline is None:
                raise NotReady("no model is loaded yet")
            card = self._pipeline.catalogue.find(task)
            answer = await self._pipeline.answer(card, media, parameters, deadline=deadline, watch=_WATCH.get())
            metrics.observe_stages(f"/bento/{task}", answer.stages)
            return answer.body
        except ServiceError as error:
            raise _refused(f"/bento/{task}", error) from error

    @staticmethod
    def _handover(server: uvicorn.Server, index: int) -> Handover | None:
        try:
            return Handover(metrics.share_folder(), index, functools.partial(wire.take, server))
        except OSError as error:  # the folder's name is too long for a socket's
            logger.warning("every connection stays with the worker that accepts it: %s", error)
            return None

    def _leave(self, server: uvicorn.Server) -> None:
        """What SIGTERM asks for: out of readiness first, while requests that still come are answered and their clients
        sent away. Then uvicorn stops: it closes the listener and what rests, and finishes what is in flight."""
        self._leaving = True
        CONNECTIONS.send_away()
        drain_seconds = 0 if self._broken else SETTINGS.drain_seconds  # a broken engine has no answers to give
        asyncio.get_running_loop().call_later(drain_seconds, server.handle_exit, signal.SIGTERM, None)

    def _give_up(self) -> None:
        """The engine answers nothing any more: out of readiness, and away, so that a new worker takes over."""
        self._broken = True
        logger.critical("the engine is broken; worker %d ends, to be started afresh", os.getpid())
        os.kill(os.getpid(), signal.SIGTERM)


def _refused(endpoint: str, error: ServiceError) -> BentoMLException:
    """``error`` as BentoML would have it, counted."""
    metrics.count_refusal(endpoint, error.slug)
    return BentoMLException(f"{error.title}: {error.detail}", error_code=HTTPStatus(error.status))


_service: Any = ConvServe  # what the decorator made of the class
_service.add_asgi_middleware(RawBodies)
