"""bytes -> answer: the stages of a request in order, each timed once. Below HTTP, so that every way in shares it."""

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from service.engines.onnxruntime import CPU
from service.errors import CorruptMedia, DeadlineUnmeetable, EmptyBody, MediaTooLarge, NotReady, QueueFull
from service.media import Limits, audio, cost, mp4, video
from service.media.audio import decode_audio
from service.media.image import Picture, decode_image
from service.media.samples import ImageSample, Windows, audio_windows, decoded_shorter_side, image_sample, video_windows
from service.media.video import decode_video
from service.repository.card import AudioPreprocess, ImagePreprocess, ModelCard, Task, VideoPreprocess
from service.repository.registry import Catalogue, LoadedModel
from service.scheduling.admission import Admission
from service.scheduling.batcher import Batcher
from service.scheduling.queued_request import Place, Result
from service.scheduling.threads import workers
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
from service.tasks import answers as postprocess
from service.telemetry.metrics import ModelSeries
from service.telemetry.stages import Stopwatch, now

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


class Media(NamedTuple):
    data: bytes
    seconds: float  # about how long it takes to decode, at most; infinite where its header does not tell
    limits: Limits  # for which alone ``seconds`` holds
    shorter_side: int | None = None  # pixels that a decoded picture has to have there; None: all that it has


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

    def takes(self, task: str, patience: float) -> bool:
        """Whether any model of ``task`` may answer a request within so many seconds: else nobody has to read it. Where
        none serves it, that is not for this to say."""
        admissions = self._admissions.get(task)
        return not admissions or any(admission.takes(patience) for admission in admissions)

    def has_room_for_more(self, card: ModelCard) -> bool:
        """Whether a request of which ``card``'s model has a file already may bring in another one."""
        return self._batchers[card.key].admission.has_room_for_more()

    def refuse(self, task: str, patience: float) -> DeadlineUnmeetable | NotReady | QueueFull:
        """What a request is told that none of them takes."""
        first, *others = self._admissions[task]
        for admission in others:
            admission.refuse(patience)
        return first.refuse(patience)

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
        # The overlay needs every pixel of the picture.
        whole = isinstance(parameters, SegmentParameters) and parameters.overlay and form == "png"
        media = self._media(card, data, whole=whole)
        self._count(1)
        try:
            at_once_seconds = media.seconds if media.seconds <= self._at_once_seconds else 0.0
            batcher = self._batchers[card.key]
            async with batcher.reserve(deadline, size=len(data), at_once_seconds=at_once_seconds) as place:
                if card.task == "segment":
                    assert isinstance(parameters, SegmentParameters)
                    body, result = await self._segment(card, media, parameters, form, place, watch)
                elif card.task == "classify":
                    assert isinstance(parameters, ClassifyParameters)
                    body, result = await self._classify(card, media, parameters, place, watch)
                else:
                    assert isinstance(parameters, WindowParameters)
                    body, result = await self._windows(card, media, parameters, place, watch)
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

    def _media(self, card: ModelCard, data: bytes, *, whole: bool) -> Media:
        """What can be told of ``data`` by its header, for ``card``'s model, or all of its pixels if ``whole``."""
        spec = card.preprocess
        if isinstance(spec, ImagePreprocess):
            shorter_side = None if whole else decoded_shorter_side(spec)
            return Media(data, cost.decoding_seconds(data, shorter_side), self._limits, shorter_side)
        if isinstance(spec, AudioPreprocess):
            return Media(data, audio.decoding_seconds(data, sample_rate_hz=spec.sample_rate_hz), self._limits)
        if not (film := mp4.film(data)):
            return Media(data, math.inf, self._limits)
        seconds = video.decoding_seconds(film, frame_rate_hz=spec.frame_rate_hz, shorter_side=spec.shorter_side)
        return Media(data, seconds, video.claimed_limits(film, self._limits))

    async def _classify(
        self, card: ModelCard, media: Media, parameters: ClassifyParameters, place: Place, watch: Stopwatch
    ) -> tuple[Body, Result]:
        sample = (await self._picture(card, media, place, watch))[1].sample
        result = await _inferred(place, [sample], watch)
        with watch.stage("postprocess"):
            return postprocess.predictions(
                np.asarray(result.outputs[0][0], np.float32), card.categories, parameters.top_k
            ), result

    async def _segment(
        self, card: ModelCard, media: Media, parameters: SegmentParameters, form: Form, place: Place, watch: Stopwatch
    ) -> tuple[Body, Result]:
        picture, (sample, region) = await self._picture(card, media, place, watch)
        result = await _inferred(place, [sample], watch, filling=1 - region.height * region.width / sample[..., 0].size)
        mask, confidence = np.asarray(result.outputs[0][0], np.uint8), np.asarray(result.outputs[0][1], np.float32)

        def finish() -> Body:
            place_of_mask = (mask, confidence, region)
            with watch.stage("postprocess"):
                if form == "json":
                    return postprocess.segments(*place_of_mask, picture.size, card, parameters.threshold)
                if parameters.overlay:
                    return postprocess.overlay_png(*place_of_mask, picture.image, card)
                return postprocess.palette_png(*place_of_mask, picture.size, card)

        return await self._threaded(card.task, watch, finish), result

    async def _windows(
        self, card: ModelCard, media: Media, parameters: WindowParameters, place: Place, watch: Stopwatch
    ) -> tuple[Body, Result]:
        def work(limits: Limits) -> Windows:
            return self._cut(card, media.data, limits, place, watch)

        windows = await self._decoded(card.task, media, place, watch, work)
        result = await _inferred(place, windows.samples, watch)
        with watch.stage("postprocess"):
            rows = _rows(result)
            if parameters.windows:
                return postprocess.timeline(rows, windows, card.categories, parameters.top_k), result
            return postprocess.predictions(postprocess.whole(rows, windows), card.categories, parameters.top_k), result

    async def _picture(
        self, card: ModelCard, media: Media, place: Place, watch: Stopwatch
    ) -> tuple[Picture, ImageSample]:
        spec = card.preprocess
        assert isinstance(spec, ImagePreprocess)

        def work(limits: Limits) -> tuple[Picture, ImageSample]:
            with watch.stage("decode"):
                picture = decode_image(media.data, limits, shorter_side=media.shorter_side, check=place.check)
            with watch.stage("preprocess"):
                return picture, image_sample(picture.image, spec)

        return await self._decoded(card.task, media, place, watch, work)

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
        self, task: Task, media: Media, place: Place, watch: Stopwatch, work: Callable[[Limits], _T]
    ) -> _T:
        """In its turn runs ``work``, which decodes: in a thread, or on the spot.

        On the spot by the limits for which the estimate holds: what is refused by those may have lied, and is decoded
        again, by the true limits and in a thread.
        """
        if not place.slow:
            await self._turn(place, watch)
            if media.limits is self._limits:
                return work(self._limits)
            with suppress(MediaTooLarge, CorruptMedia):  # for FFmpeg tells one from the other but at times
                return work(media.limits)
            place.slows()
        await self._turn(place, watch)
        return await self._threaded(task, watch, lambda: work(self._limits))

    async def _turn(self, place: Place, watch: Stopwatch) -> None:
        asked = now()
        await place.turn()
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
    return np.array([outputs[0] for outputs in result.outputs])
