"""bytes -> answer: the stages of a request in order, each timed once. Below HTTP, so that every way in shares it."""

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from service import postprocess
from service.admission import Admission
from service.batcher import Batcher, Place, Result
from service.cards import AudioPreprocess, ImagePreprocess, ModelCard, Task, VideoPreprocess
from service.catalogue import Catalogue, LoadedModel
from service.decode import Limits, audio, cost, mp4, video
from service.decode.audio import decode_audio
from service.decode.image import Picture, decode_image
from service.decode.video import decode_video
from service.engine import CPU
from service.errors import CorruptMedia, EmptyBody, MediaTooLarge, NotReady, QueueFull
from service.metrics import ModelSeries
from service.preprocess import ImageSample, Windows, audio_windows, decoded_shorter_side, image_sample, video_windows
from service.schemas import (
    ClassifyParameters,
    Parameters,
    Prediction,
    Segment,
    SegmentParameters,
    Timeline,
    WindowParameters,
)
from service.settings import Settings
from service.stopwatch import Stopwatch, now
from service.threads import workers

Body = list[Prediction] | list[Segment] | Timeline | bytes  # bytes: a PNG
Form = Literal["json", "png"]
# What takes no longer is decoded on the event loop: changing places with threads, between one call of a decoder and the
# next, costs a tenth of the throughput. On a CPU a batch is run there, too: handing it to a thread takes a quarter of a
# millisecond. Where the worker has one core there is nothing to gain by threads, but others do wait meanwhile, for
# their refusals, too.
_AT_ONCE_SECONDS, _AT_ONCE_SECONDS_ONE_CORE = 0.0025, 0.008
_T = TypeVar("_T")


class Answer(NamedTuple):
    body: Body
    stages: Mapping[str, float]  # seconds, by the names in STAGES
    batch_size: int


class Pipeline:
    """Every loaded model with its queue, and the threads that decode. Lives in one event loop.

    ``broken`` is called when an engine is; ``working`` whenever there begins or ceases to be anything in hand.
    """

    def __init__(
        self,
        models: list[LoadedModel],
        settings: Settings,
        broken: Callable[[], None],
        working: Callable[[bool], None] = lambda works: None,
    ) -> None:
        self._working, self._in_hand = working, 0  # requests
        self.catalogue = Catalogue((model.card for model in models), settings.default_models)
        self._limits: Limits = settings.limits()
        # Decoders of their own for each task: a clip that decodes for seconds keeps no picture waiting. One more where
        # lengths differ by as much; pictures would but push each other out of the caches.
        cores = settings.threads_per_worker()
        threads = {task: cores + (task in ("audio", "video")) for task in self.catalogue.tasks()}
        self._at_once_seconds = _AT_ONCE_SECONDS if cores > 1 else _AT_ONCE_SECONDS_ONE_CORE
        self._batchers: dict[str, Batcher] = {
            model.card.key: Batcher(
                model.engine,
                ModelSeries(model.card.key),
                max_batch=model.max_batch,
                queue_samples=settings.stated_queue(),
                on_cpu=model.engine.provider == CPU,
                decoders=threads[model.card.task],
                at_once_seconds=self._at_once_seconds,
                broken=broken,
            )
            for model in models
        }
        self._admissions: dict[str, list[Admission]] = {
            task: [self._batchers[card.key].admission for card in self.catalogue.of(task)]
            for task in self.catalogue.tasks()
        }
        self._decoders = {task: workers(count, f"decode-{task}") for task, count in threads.items()}

    def has_room(self, task: str) -> bool:
        """Whether any model of ``task`` would take a request: else nobody has to read what could not be answered.
        Where none serves it, that is not for this to say."""
        admissions = self._admissions.get(task)
        return not admissions or any(admission.has_room() for admission in admissions)

    def has_room_for_more(self, card: ModelCard) -> bool:
        """Whether a request of which ``card``'s model has a file already may bring in another one."""
        return self._batchers[card.key].admission.has_room_for_more()

    def refuse(self, task: str) -> QueueFull | NotReady:
        """What a request is told for which there is no room."""
        first, *others = self._admissions[task]
        for admission in others:
            admission.refuse()
        return first.refuse()

    async def answer(
        self,
        card: ModelCard,
        data: bytes,
        parameters: Parameters,
        *,
        deadline: float,
        form: Form = "json",
        watch: Stopwatch | None = None,
    ) -> Answer:
        """What ``card``'s model says of the media in ``data``, by ``deadline`` (monotonic seconds).

        Raises the refusals of decoding, batching and the model; see ``service.errors``.
        """
        if not data:
            raise EmptyBody
        watch = watch or Stopwatch()
        self._count(1)
        try:
            async with self._batchers[card.key].reserve(deadline) as place:
                if card.task == "segment":
                    assert isinstance(parameters, SegmentParameters)
                    body, result = await self._segment(card, data, parameters, form, place, watch)
                elif card.task == "classify":
                    assert isinstance(parameters, ClassifyParameters)
                    body, result = await self._classify(card, data, parameters, place, watch)
                else:
                    assert isinstance(parameters, WindowParameters)
                    body, result = await self._windows(card, data, parameters, place, watch)
        finally:
            self._count(-1)
        return Answer(body, watch.seconds, max(run.size for run in result.runs))

    def _count(self, more: int) -> None:
        before, self._in_hand = self._in_hand, self._in_hand + more
        if not before or not self._in_hand:
            self._working(self._in_hand > 0)

    async def close(self) -> None:
        await asyncio.gather(*(batcher.close() for batcher in self._batchers.values()))
        for pool in self._decoders.values():
            pool.shutdown(wait=False, cancel_futures=True)

    async def _classify(
        self, card: ModelCard, data: bytes, parameters: ClassifyParameters, place: Place, watch: Stopwatch
    ) -> tuple[Body, Result]:
        sample = (await self._picture(card, data, place, watch))[1].sample
        result = await _inferred(place, [sample], watch)
        with watch.stage("postprocess"):
            return postprocess.predictions(
                np.asarray(result.outputs[0][0], np.float32), card.categories, parameters.top_k
            ), result

    async def _segment(
        self, card: ModelCard, data: bytes, parameters: SegmentParameters, form: Form, place: Place, watch: Stopwatch
    ) -> tuple[Body, Result]:
        whole = form == "png" and parameters.overlay  # the overlay needs every pixel of the picture
        picture, (sample, region) = await self._picture(card, data, place, watch, whole=whole)
        result = await _inferred(place, [sample], watch, filling=1 - region.height * region.width / sample[..., 0].size)
        mask, confidence = np.asarray(result.outputs[0][0], np.uint8), np.asarray(result.outputs[0][1], np.float32)

        def finish() -> Body:
            place_of_mask = (mask, confidence, region)
            with watch.stage("postprocess"):
                if whole:
                    return postprocess.overlay_png(*place_of_mask, picture.image, card)
                if form == "png":
                    return postprocess.palette_png(*place_of_mask, picture.size, card)
                return postprocess.segments(*place_of_mask, picture.size, card, parameters.threshold)

        return await self._threaded(card.task, watch, finish), result

    async def _windows(
        self, card: ModelCard, data: bytes, parameters: WindowParameters, place: Place, watch: Stopwatch
    ) -> tuple[Body, Result]:
        spec = card.preprocess
        claimed: Limits | None = None
        if isinstance(spec, AudioPreprocess):
            seconds = audio.decoding_seconds(data, sample_rate_hz=spec.sample_rate_hz)
        else:
            assert isinstance(spec, VideoPreprocess)
            seconds = math.inf
            if film := mp4.film(data):
                claimed = video.claimed_limits(film, self._limits)
                seconds = video.decoding_seconds(film, frame_rate_hz=spec.frame_rate_hz, shorter_side=spec.shorter_side)

        def work(limits: Limits) -> Windows:
            return self._cut(card, data, limits, place, watch)

        windows = await self._decoded(card.task, seconds, place, watch, work, claimed=claimed)
        result = await _inferred(place, windows.samples, watch)
        with watch.stage("postprocess"):
            rows = _rows(result)
            if parameters.windows:
                return postprocess.timeline(rows, windows, card.categories, parameters.top_k), result
            return postprocess.predictions(postprocess.whole(rows, windows), card.categories, parameters.top_k), result

    async def _picture(
        self, card: ModelCard, data: bytes, place: Place, watch: Stopwatch, *, whole: bool = False
    ) -> tuple[Picture, ImageSample]:
        spec = card.preprocess
        assert isinstance(spec, ImagePreprocess)
        shorter_side = None if whole else decoded_shorter_side(spec)

        def work(limits: Limits) -> tuple[Picture, ImageSample]:
            with watch.stage("decode"):
                picture = decode_image(data, limits, shorter_side=shorter_side, check=place.check)
            with watch.stage("preprocess"):
                return picture, image_sample(picture.image, spec)

        return await self._decoded(card.task, cost.decoding_seconds(data, shorter_side), place, watch, work)

    def _cut(self, card: ModelCard, data: bytes, limits: Limits, place: Place, watch: Stopwatch) -> Windows:
        spec = card.preprocess
        if isinstance(spec, AudioPreprocess):
            with watch.stage("decode"):
                sound = decode_audio(data, limits, sample_rate_hz=spec.sample_rate_hz, check=place.check)
            with watch.stage("preprocess"):
                return audio_windows(sound, spec)
        assert isinstance(spec, VideoPreprocess)
        with watch.stage("decode"):
            frames = decode_video(
                data,
                limits,
                frame_rate_hz=spec.frame_rate_hz,
                shorter_side=spec.shorter_side,
                check=place.check,
            )
        with watch.stage("preprocess"):
            return video_windows(frames, spec)

    async def _decoded(
        self,
        task: Task,
        seconds: float,
        place: Place,
        watch: Stopwatch,
        work: Callable[[Limits], _T],
        *,
        claimed: Limits | None = None,
    ) -> _T:
        """In its turn runs ``work``, which decodes for about ``seconds``: in a thread, or on the spot.

        On the spot by ``claimed`` limits, if ``seconds`` hold for those alone: what is refused there may have lied, and
        is decoded again, by the true limits and in a thread.
        """
        if seconds <= self._at_once_seconds:
            await self._turn(place, watch, seconds)
            if claimed is None:
                return work(self._limits)
            with suppress(MediaTooLarge, CorruptMedia):  # for FFmpeg tells one from the other but at times
                return work(claimed)
        await self._turn(place, watch, 0.0)
        return await self._threaded(task, watch, lambda: work(self._limits))

    async def _turn(self, place: Place, watch: Stopwatch, at_once_seconds: float) -> None:
        asked = now()
        await place.turn(at_once_seconds=at_once_seconds)
        watch.add("queue", asked, now())

    async def _threaded(self, task: Task, watch: Stopwatch, work: Callable[[], _T]) -> _T:
        """Runs ``work`` in the task's pool; what it waited for a thread counts as queueing."""
        asked = now()

        def started() -> _T:
            watch.add("queue", asked, now())
            return work()

        return await asyncio.get_running_loop().run_in_executor(self._decoders[task], started)


async def _inferred(place: Place, samples: list[np.ndarray], watch: Stopwatch, *, filling: float = 0.0) -> Result:
    asked = now()
    result = await place.run(samples, decode_seconds=watch.seconds["decode"] + watch.seconds["preprocess"])
    watch.add_inference(asked, result.runs, filling=filling)
    return result


def _rows(result: Result) -> np.ndarray:
    """(samples, C) probabilities."""
    return np.stack([outputs[0] for outputs in result.outputs])
