import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from service.engines.onnxruntime import CPU, Engine
from service.errors import CorruptMedia, DeadlineUnmeetable, QueueFull, ServiceError
from service.media.image import Picture, decode_image
from service.media.video import decode_video
from service.pipeline import Pipeline
from service.repository.card import ModelCard
from service.repository.registry import LoadedModel, load_models
from service.scheduling.admission import Admission
from service.schemas import ClassifyParameters, WindowParameters
from service.settings import Settings
from tests import graphs
from tests import synthetic as media
from tests.samples import grey_png


class Stuck:
    """An engine that answers nothing until it is let go, and then fails."""

    provider = CPU

    def __init__(self) -> None:
        self.go = threading.Event()

    def run(self, samples: object) -> list[object]:
        self.go.wait(20)
        raise RuntimeError("let go")

    def padded_size(self, count: int) -> int:
        return count

    def blank(self) -> None:
        return None


@pytest.fixture
async def pipeline(tmp_path: Path) -> AsyncIterator[Pipeline]:
    """Two models for /classify, the second the default, and one for /audio; each of their queues takes one sample."""
    graph, stuck = graphs.grey_classifier(), Stuck()
    contents = [
        graphs.card_content("classify", graph, name=name, default=name == "second") for name in ("first", "second")
    ]
    contents.append(graphs.card_content("audio", graph))
    models = [LoadedModel(ModelCard.model_validate(content), cast(Engine, stuck), 1) for content in contents]
    built = Pipeline(models, Settings(repository=tmp_path, device="cpu", queue_samples=1), broken=lambda: None)
    yield built
    stuck.go.set()
    await built.close()


async def _until(queue: Admission, *, running: int, waiting: int) -> None:
    async with asyncio.timeout(10):
        while (queue.running, queue.waiting) != (running, waiting):
            await asyncio.sleep(0.001)


async def test_it_says_when_there_begins_and_ceases_to_be_anything_in_hand(pipeline: Pipeline) -> None:
    said: list[bool] = []
    pipeline._working = said.append
    card = pipeline.catalogue.find("classify", "second")
    work = ClassifyParameters(), time.monotonic() + 20
    answering = asyncio.create_task(pipeline.answer(card, grey_png(5), work[0], deadline=work[1]))
    await _until(pipeline._batchers[card.key].admission, running=1, waiting=0)
    with pytest.raises(ServiceError):
        await pipeline.answer(card, b"no picture", work[0], deadline=work[1])
    assert said == [True]
    cast(Stuck, pipeline._batchers[card.key]._engine._engine).go.set()
    with pytest.raises(ServiceError):
        await answering
    assert said == [True, False]
    with pytest.raises(ServiceError):
        await pipeline.answer(card, b"no picture", work[0], deadline=work[1])
    assert said == [True, False, True, False]


async def test_a_task_has_room_until_the_queue_of_every_model_is_full(pipeline: Pipeline) -> None:
    def ask(model: str) -> "asyncio.Task[object]":
        card = pipeline.catalogue.find("classify", model)
        parameters, deadline = ClassifyParameters(model=model), time.monotonic() + 20
        return asyncio.create_task(pipeline.answer(card, grey_png(5), parameters, deadline=deadline))

    asked = []
    for model in ("second", "first"):
        queue = pipeline._batchers[pipeline.catalogue.find("classify", model).key].admission
        assert pipeline.takes("classify", 20)
        asked.append(ask(model))  # one that runs, and so counts no more
        await _until(queue, running=1, waiting=0)
        assert pipeline.takes("classify", 20)
        asked.append(ask(model))
        await _until(queue, running=1, waiting=1)
    assert not pipeline.takes("classify", 20)
    assert "1 samples are waiting" in pipeline.refuse("classify", 20).detail
    assert pipeline.takes("audio", 20)
    assert pipeline.takes("video", 20)  # nothing serves it, which is not for this to say
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert pipeline.takes("classify", 20)


async def test_a_task_takes_who_may_wait_for_one_of_its_models(pipeline: Pipeline) -> None:
    first, second = (pipeline._batchers[f"{name}:1"].admission for name in ("first", "second"))
    for queue in (first, second):
        queue._samples = 2
        queue.pace.inference.add(2.0)
    second.recount(0, 1)
    assert pipeline.takes("classify", 0.1), "nothing is known to hold up the first"
    first.recount(0, 1)
    assert not pipeline.takes("classify", 2.3)
    assert isinstance(pipeline.refuse("classify", 2.3), DeadlineUnmeetable)
    assert first.has_room() and second.has_room(), "they were not full"
    assert pipeline.takes("classify", 2.5)


async def test_a_refusal_leaves_nothing_to_the_garbage_collector(pipeline: Pipeline) -> None:
    card = pipeline.catalogue.find("classify", "second")
    pipeline._batchers[card.key].admission.waiting = 1
    gc.collect()
    gc.disable()
    try:
        for _ in range(100):
            try:
                await pipeline.answer(card, b"any", ClassifyParameters(), deadline=time.monotonic() + 20)
            except QueueFull:
                continue
        assert gc.collect() < 100
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("cores", "thread"),
    [pytest.param(1, "MainThread", id="one core: at once"), pytest.param(2, "decode-classify", id="two: in a thread")],
)
async def test_a_photograph_is_decoded_where_the_worker_gains_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, thread: str
) -> None:
    threads: list[str] = []

    def remembered(*args: Any, **options: Any) -> Picture:
        threads.append(threading.current_thread().name)
        return decode_image(*args, **options)

    monkeypatch.setattr("service.pipeline.decode_image", remembered)
    monkeypatch.setattr("service.settings.usable_cores", lambda: cores)
    graphs.write_all(tmp_path)
    settings = Settings(repository=tmp_path, device="cpu", workers=1)
    pipeline = Pipeline(load_models(settings), settings, broken=lambda: None)
    try:
        for data in (
            media.picture(media.smooth(9, 9), "GIF"),
            media.picture(media.smooth(2000, 3000), "JPEG"),
            media.picture(media.smooth(9, 9), "JPEG"),
        ):
            card, deadline = pipeline.catalogue.find("classify"), time.monotonic() + 20
            await pipeline.answer(card, data, ClassifyParameters(), deadline=deadline)
    finally:
        await pipeline.close()
    names = [name.partition("_")[0] for name in threads]
    assert names == ["decode-classify", thread, "MainThread"], "a GIF, a large JPEG, a small one"


async def test_a_clip_that_is_small_by_its_header_is_decoded_at_once_and_in_a_thread_if_that_lied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def remembered(*args: Any, **options: Any) -> media.Pixels:
        threads.append(threading.current_thread().name.partition("_")[0])
        return decode_video(*args, **options)

    monkeypatch.setattr("service.pipeline.decode_video", remembered)
    monkeypatch.setattr("service.settings.usable_cores", lambda: 1)
    graphs.write_all(tmp_path)
    settings = Settings(repository=tmp_path, device="cpu", workers=1)
    pipeline = Pipeline(load_models(settings), settings, broken=lambda: None)
    card, frames = pipeline.catalogue.find("video"), media.numbered(4, 96, 96, step=60)

    async def answer(data: bytes) -> object:
        return (await pipeline.answer(card, data, WindowParameters(), deadline=time.monotonic() + 20)).body

    try:
        honest = media.clip(frames, rate=8)
        expected = await answer(honest)
        assert threads == ["MainThread"]
        assert await answer(media.said_to_be(honest, 16, 16)) == expected
        assert threads == ["MainThread", "MainThread", "decode-video"]
        assert await answer(media.clip(frames, "matroska", rate=8)) == expected
        assert threads[3:] == ["decode-video"], "there is no telling how long it takes"
        at = honest.index(b"mdat") + 4
        with pytest.raises(CorruptMedia):
            await answer(honest[:at] + bytes(300) + honest[at + 300 :])
        assert threads[4:] == ["MainThread", "decode-video"]
        assert not pipeline._batchers[card.key].admission.waiting
        assert not pipeline._batchers[card.key].admission.undecoded
    finally:
        await pipeline.close()
