import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from service.engines.onnxruntime import CPU, Engine
from service.errors import (
    CorruptMedia,
    DeadlineExceeded,
    DeadlineUnmeetable,
    EmptyBody,
    NotReady,
    QueueFull,
    ServiceError,
)
from service.media import Limits
from service.pipeline import Pipeline, ServedModel
from service.repository.card import ModelCard
from service.repository.loading import LoadedModel, load_models
from service.repository.registry import Registry
from service.scheduling.admission import AdmissionControl
from service.settings import Settings
from service.tasks.classify import CLASSIFY, ClassifyParameters
from service.tasks.video import VIDEO
from service.tasks.windows import WindowParameters
from service.telemetry.request import StageTimer
from tests import graphs
from tests import synthetic as media
from tests.batching import until
from tests.samples import grey_png


class Counting:
    """An engine that answers every picture with category ``answer``, once its gate is open."""

    provider = CPU

    def __init__(self, answer: int = 0) -> None:
        self.gate = threading.Event()
        self._row = np.eye(graphs.LEVELS, dtype=np.float32)[answer]

    def run(self, samples: list[object]) -> list[tuple[object]]:
        self.gate.wait(20)
        return [(self._row,) for _ in samples]

    def padded_size(self, count: int) -> int:
        return count

    def blank(self) -> None:
        return None


def loaded(task: str, engine: Counting, **changed: Any) -> LoadedModel:
    content = graphs.card_content(task, graphs.grey_classifier(), **changed)
    return LoadedModel(ModelCard.model_validate(content), cast(Engine, engine), 1)


@asynccontextmanager
async def started(models: list[LoadedModel], **settings: Any) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(models, Settings(device="cpu", **settings), on_broken=lambda: None)
    try:
        yield pipeline
    finally:
        for model in models:
            if isinstance(model.engine, Counting):
                model.engine.gate.set()
        await pipeline.close()


def soon(seconds: float = 20.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds


def ask(pipeline: Pipeline, name: str | None = None, level: int = 5) -> "asyncio.Task[Any]":
    """A request for /classify: the model is found now, and the answer's first label is the result."""
    model = pipeline.registry.find("classify", name)

    async def answer() -> Any:
        found = await pipeline.answer(model, grey_png(level), ClassifyParameters(), deadline=soon())
        return found.body[0]["label"]

    return asyncio.create_task(answer())


def admission(pipeline: Pipeline, name: str) -> AdmissionControl:
    return pipeline.registry.named(name).batcher.admission


async def until_counted(queue: AdmissionControl, *, running: int, waiting: int) -> None:
    await until(lambda: (queue.running, queue.waiting) == (running, waiting))


# Admission by task


@pytest.fixture
def engines() -> dict[str, Counting]:
    """Of the two models of /classify, and what they answer."""
    return {"first": Counting(1), "second": Counting(2)}


@pytest.fixture
async def pipeline(engines: dict[str, Counting]) -> AsyncIterator[Pipeline]:
    """Two models for /classify, the second the default, and one for /audio; each of their queues takes one sample."""
    models = [loaded("classify", engine, name=name, default=name == "second") for name, engine in engines.items()]
    async with started([*models, loaded("audio", Counting())], queue_samples=1) as pipeline:
        yield pipeline


async def test_a_task_has_room_until_the_queue_of_every_model_is_full(pipeline: Pipeline) -> None:
    asked = []
    for model in ("second", "first"):
        queue = admission(pipeline, model)
        assert pipeline.would_admit("classify", 20)
        asked.append(ask(pipeline, model))  # it runs, and so counts no more
        await until_counted(queue, running=1, waiting=0)
        assert pipeline.would_admit("classify", 20)
        asked.append(ask(pipeline, model))
        await until_counted(queue, running=1, waiting=1)
    assert not pipeline.would_admit("classify", 20)
    assert "1 samples are waiting" in pipeline.refusal("classify", 20).detail
    assert pipeline.would_admit("audio", 20)
    assert pipeline.would_admit("video", 20)  # nothing serves it, so a route refuses it later
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert pipeline.would_admit("classify", 20)


async def test_a_task_admits_what_one_of_its_models_can_answer_in_time() -> None:
    models = [loaded("classify", Counting(), name=name) for name in ("first", "second")]
    async with started(models, queue_samples=2) as pipeline:
        first, second = admission(pipeline, "first"), admission(pipeline, "second")
        for queue in (first, second):
            queue.estimator.inference.add(2.0)
        second.recount(0, 1)
        assert pipeline.would_admit("classify", 0.1), "nothing is known to hold up the first"
        first.recount(0, 1)
        assert not pipeline.would_admit("classify", 2.3)
        assert isinstance(pipeline.refusal("classify", 2.3), DeadlineUnmeetable)
        assert first.has_room() and second.has_room(), "they were not full"
        assert pipeline.would_admit("classify", 2.5)


async def test_a_refusal_is_freed_as_soon_as_it_is_handled(pipeline: Pipeline) -> None:
    """Under overload there are thousands: none may wait for the garbage collector."""
    model = pipeline.registry.find("classify", "second")
    admission(pipeline, "second").recount(0, 1)
    refusals: list[weakref.ref[QueueFull]] = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            try:
                await pipeline.answer(model, b"any", ClassifyParameters(), deadline=soon())
            except QueueFull as refusal:
                refusals.append(weakref.ref(refusal))
        assert len(refusals) == 10 and not any(refusal() for refusal in refusals)
    finally:
        gc.enable()


async def test_media_that_cannot_be_decoded_leave_the_queue(pipeline: Pipeline) -> None:
    model, queue = pipeline.registry.find("classify"), admission(pipeline, "second")
    for data in (b"no picture", grey_png(5)[:-28]):
        with pytest.raises(ServiceError):
            await pipeline.answer(model, data, ClassifyParameters(), deadline=soon())
    with pytest.raises(EmptyBody):
        await pipeline.answer(model, b"", ClassifyParameters(), deadline=soon())
    assert (queue.waiting, queue.requests, queue.undecoded, queue.in_threads) == (0, 0, 0, 0)


async def test_each_step_is_timed(pipeline: Pipeline, engines: dict[str, Counting]) -> None:
    model, timer = pipeline.registry.find("classify"), StageTimer()
    engines["second"].gate.set()
    answer = await pipeline.answer(model, grey_png(5), ClassifyParameters(top_k=1), deadline=soon(), timer=timer)
    assert answer.body == [{"label": "2", "score": 1.0}]
    assert answer.batch_size == 1 and answer.stages is timer.seconds
    assert [interval.stage for interval in timer.intervals] == [
        "queue",
        "decode",
        "preprocess",
        "queue",
        "inference",
        "postprocess",
    ]


# Samples that come ready


async def test_samples_that_come_ready_are_inferred_and_share_batches_with_files(tmp_path: Path) -> None:
    async with started(load_models(Settings(repository=graphs.write_all(tmp_path), device="cpu"))) as pipeline:
        model = pipeline.registry.find("classify")
        levels = [3, 200, 7]
        samples = [np.full((4, 4, 3), level, np.uint8) for level in levels]
        answered, *files = await asyncio.gather(
            pipeline.infer(model, samples, deadline=soon()), *(ask(pipeline, level=level) for level in (9, 90))
        )
        assert [int(np.argmax(outputs[0])) for outputs in answered.outputs] == levels
        assert sum(run.size for run in answered.runs) >= 3
        assert files == ["9", "90"]
        assert admission(pipeline, "tiny-classify").requests == 0


async def test_samples_that_come_ready_are_refused_as_files_are(
    pipeline: Pipeline, engines: dict[str, Counting]
) -> None:
    model, sample = pipeline.registry.find("classify"), np.zeros((4, 4, 3), np.uint8)
    running = ask(pipeline)
    await until_counted(admission(pipeline, "second"), running=1, waiting=0)
    with pytest.raises(DeadlineExceeded, match="waited for the model"):
        await pipeline.infer(model, [sample], deadline=soon(0.1))
    waiting = ask(pipeline)
    await until_counted(admission(pipeline, "second"), running=1, waiting=1)
    with pytest.raises(QueueFull):
        await pipeline.infer(model, [sample], deadline=soon())
    engines["second"].gate.set()
    assert [await running, await waiting] == ["2", "2"]


async def test_samples_that_come_ready_do_not_wait_behind_media_that_decode_slowly() -> None:
    engine = Counting()
    engine.gate.set()
    async with started([loaded("classify", engine)], queue_samples=4) as pipeline:
        model, sample = pipeline.registry.find("classify"), np.zeros((4, 4, 3), np.uint8)
        model.batcher.admission.estimator.decoded(10.0, in_thread=True)
        async with model.batcher.reserve(soon(60)):  # a file that is decoded in a thread
            with pytest.raises(DeadlineUnmeetable):
                model.batcher.reserve(soon(5))
            assert len((await pipeline.infer(model, [sample], deadline=soon(5))).outputs) == 1


# Hot swap of the registry


def replaced(pipeline: Pipeline, *models: ServedModel) -> Registry[ServedModel]:
    """A registry of ``models`` and of all that are loaded under other names."""
    names = {model.card.name for model in models}
    others = [model for model in pipeline.registry.models() if model.card.name not in names]
    return Registry([*others, *models], {})


async def test_requests_in_flight_are_answered_by_the_old_model_and_new_ones_by_the_new(
    pipeline: Pipeline, engines: dict[str, Counting]
) -> None:
    old, kept = pipeline.registry.find("classify", "second"), pipeline.registry.find("classify", "first")
    running = ask(pipeline, "second")
    await until_counted(old.batcher.admission, running=1, waiting=0)
    waiting, of_kept = ask(pipeline, "second"), ask(pipeline, "first")
    await until_counted(old.batcher.admission, running=1, waiting=1)
    new_engine = Counting(77)
    new_engine.gate.set()
    new = pipeline.serve(loaded("classify", new_engine, name="second", version=2))
    swapping = asyncio.create_task(pipeline.swap(replaced(pipeline, new)))
    await until(lambda: pipeline.registry.find("classify", "second") is new)
    assert await ask(pipeline, "second") == "77"
    assert not swapping.done() and not running.done() and not waiting.done(), "the old model is still at work"
    engines["second"].gate.set()
    assert [await running, await waiting] == ["2", "2"]
    await swapping
    with pytest.raises(NotReady):
        old.batcher.reserve(soon())
    assert pipeline.registry.find("classify", "first") is kept and not of_kept.done()
    engines["first"].gate.set()
    assert await of_kept == "1", "a model in both registries goes on"
    assert await ask(pipeline, "first") == "1"


async def test_a_request_that_had_found_the_old_model_is_answered_by_it(
    pipeline: Pipeline, engines: dict[str, Counting]
) -> None:
    engines["second"].gate.set()
    found = ask(pipeline, "second")  # it has the model, and has not asked yet
    new_engine = Counting(77)
    new_engine.gate.set()
    new = pipeline.serve(loaded("classify", new_engine, name="second", version=2))
    await asyncio.gather(pipeline.swap(replaced(pipeline, new)), found)
    assert found.result() == "2"


async def test_swapping_waits_for_no_model_that_stays(pipeline: Pipeline, engines: dict[str, Counting]) -> None:
    stuck = ask(pipeline, "first")
    await until_counted(admission(pipeline, "first"), running=1, waiting=0)
    await asyncio.wait_for(pipeline.swap(Registry(pipeline.registry.models(), {})), 5)
    assert not stuck.done()
    engines["first"].gate.set()
    assert await stuck == "1"


# Where media are decoded


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads in which media were decoded, without their numbers."""
    threads: list[str] = []
    for task in (CLASSIFY, VIDEO):

        def recorded(*args: Any, decode: Any = task.decode) -> Iterator[Any]:
            threads.append(threading.current_thread().name.partition("_")[0])
            yield from decode(*args)

        monkeypatch.setattr(type(task), "decode", staticmethod(recorded))
    return threads


@pytest.mark.parametrize(
    ("cores", "thread"),
    [
        pytest.param(1, "MainThread", id="one core: on the event loop"),
        pytest.param(2, "decode-classify", id="two cores: in a thread"),
    ],
)
async def test_a_photograph_is_decoded_where_the_worker_gains_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoding: list[str], cores: int, thread: str
) -> None:
    monkeypatch.setattr("service.settings.usable_cores", lambda: cores)
    models = load_models(Settings(repository=graphs.write_all(tmp_path), device="cpu", workers=1))
    async with started(models, workers=1) as pipeline:
        for data in (
            media.picture(media.smooth(9, 9), "GIF"),
            media.picture(media.smooth(2000, 3000), "JPEG"),
            media.picture(media.smooth(9, 9), "JPEG"),
        ):
            model = pipeline.registry.find("classify")
            await pipeline.answer(model, data, ClassifyParameters(), deadline=soon())
    assert decoding == ["decode-classify", thread, "MainThread"], "a GIF, a large JPEG, a small one"


async def test_a_clip_that_is_small_by_its_header_is_decoded_on_the_event_loop_and_in_a_thread_if_that_lied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoding: list[str]
) -> None:
    monkeypatch.setattr("service.settings.usable_cores", lambda: 1)
    models = load_models(Settings(repository=graphs.write_all(tmp_path), device="cpu", workers=1))
    frames = media.numbered(4, 96, 96, step=60)
    async with started(models, workers=1) as pipeline:

        async def answer(data: bytes) -> object:
            model = pipeline.registry.find("video")
            return (await pipeline.answer(model, data, WindowParameters(), deadline=soon())).body

        honest = media.clip(frames, rate=8)
        expected = await answer(honest)
        assert decoding == ["MainThread"]
        assert await answer(media.said_to_be(honest, 16, 16)) == expected
        assert decoding == ["MainThread", "MainThread", "decode-video"]
        assert await answer(media.clip(frames, "matroska", rate=8)) == expected
        assert decoding[3:] == ["decode-video"], "its header does not tell how long it takes"
        at = honest.index(b"mdat") + 4
        with pytest.raises(CorruptMedia):
            await answer(honest[:at] + bytes(300) + honest[at + 300 :])
        assert decoding[4:] == ["MainThread", "decode-video"]
        queue = admission(pipeline, "tiny-video")
        assert (queue.waiting, queue.undecoded) == (0, 0)


async def test_decoding_ends_when_the_client_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip is decoded block by block; a client that leaves stops it at the next one."""
    blocks: list[int] = []
    released = threading.Event()

    def long(data: bytes, spec: Any, limits: Limits, deadline: float) -> Iterator[media.Pixels]:
        try:
            while len(blocks) < 2000:  # ten seconds, and not for ever if nothing stops it
                blocks.append(len(blocks))
                time.sleep(0.005)
                yield np.zeros((1, 8, 8, 3), np.uint8)
        finally:
            released.set()

    monkeypatch.setattr(type(VIDEO), "decode", staticmethod(long))
    async with started(load_models(Settings(repository=graphs.write_all(tmp_path), device="cpu"))) as pipeline:
        model = pipeline.registry.find("video")
        clip = media.clip(media.numbered(2), "matroska")
        asking = asyncio.create_task(pipeline.answer(model, clip, WindowParameters(), deadline=soon()))
        await until(lambda: len(blocks) > 2)
        asking.cancel()
        await until(released.is_set)
        with pytest.raises(asyncio.CancelledError):
            await asking
        with pytest.raises(DeadlineExceeded, match="was decoded"):
            await pipeline.answer(model, clip, WindowParameters(), deadline=soon(0.1))
        assert admission(pipeline, "tiny-video").undecoded == 0
