"""The pipeline: decode -> prepare -> infer -> finish, each step timed once. It knows no task and no HTTP."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from service.engines.engine import Sample
from service.engines.onnxruntime import CPU
from service.errors import CorruptMedia, DeadlineUnmeetable, EmptyBody, MediaTooLarge, NotReady, QueueFull
from service.media import Limits
from service.repository.card import ModelCard
from service.repository.loading import LoadedModel
from service.repository.registry import Registry
from service.scheduling.batcher import Batcher, QueuedRequest, Result
from service.scheduling.threads import background_pool
from service.settings import Settings
from service.tasks import TASKS
from service.tasks.task import JSON, Prepared, Task
from service.telemetry.metrics import ModelSeries
from service.telemetry.request import StageTimer, now

# Media that decode no longer than this are decoded on the event loop: handing over to a thread and back costs a tenth
# of the throughput. On a CPU a batch of that length runs there too: handing it to a thread takes a quarter of a
# millisecond. A worker with one core gains nothing by threads, but requests wait meanwhile, refusals among them.
_ON_LOOP_SECONDS, _ON_LOOP_SECONDS_ONE_CORE = 0.0025, 0.008
_NO_DECODING_SECONDS = 1e-9  # of samples that come ready

T = TypeVar("T")


class Answer(NamedTuple):
    body: Any  # what pydantic can serialise, or bytes for another media type than JSON
    stages: Mapping[str, float]  # seconds by stage
    batch_size: int


@dataclass(frozen=True, eq=False)
class ServedModel:
    card: ModelCard
    task: Task
    batcher: Batcher


class Pipeline:
    """All loaded models with their queues, and the threads that decode. Lives in one event loop.

    ``on_broken`` is called when an engine answers nothing any more.
    """

    def __init__(self, models: Iterable[LoadedModel], settings: Settings, on_broken: Callable[[], None]) -> None:
        self._settings, self._on_broken = settings, on_broken
        self._limits: Limits = settings.limits()
        cores = settings.threads_per_worker()
        self._on_loop_seconds = _ON_LOOP_SECONDS if cores > 1 else _ON_LOOP_SECONDS_ONE_CORE
        # Threads of their own for each task: a clip that decodes for seconds delays no picture. One more where lengths
        # differ by as much; pictures would evict each other from the caches.
        self._threads = {name: cores + task.of_any_length for name, task in TASKS.items()}
        self._decoders = {name: background_pool(count, f"decode-{name}") for name, count in self._threads.items()}
        self.registry = Registry([self.serve(model) for model in models], settings.default_models)

    def serve(self, model: LoadedModel) -> ServedModel:
        """Puts a queue before a loaded model. It answers requests once it is in the registry."""
        batcher = Batcher(
            model.engine,
            ModelSeries(model.card.key),
            max_batch=model.max_batch,
            queue_samples=self._settings.stated_queue(),
            on_cpu=model.engine.provider == CPU,
            decoders=self._threads[model.card.task],
            on_loop_seconds=self._on_loop_seconds,
            on_broken=self._on_broken,
        )
        return ServedModel(model.card, TASKS[model.card.task], batcher)

    async def swap(self, registry: Registry[ServedModel]) -> None:
        """Answers from ``registry`` from the next request on; returns once earlier requests are answered.

        Models that are in both registries go on; the queues of the others are closed when they are empty.
        """
        kept = registry.models()
        gone = [model for model in self.registry.models() if model not in kept]
        self.registry = registry
        await asyncio.gather(*(model.batcher.drain() for model in gone))

    async def close(self) -> None:
        await asyncio.gather(*(model.batcher.close() for model in self.registry.models()))
        for pool in self._decoders.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def would_admit(self, task: str, within: float) -> bool:
        """Returns whether any model of ``task`` may answer ``within`` so many seconds; True if there is no model."""
        models = self.registry.of(task)
        return not models or any(model.batcher.admission.would_admit(within) for model in models)

    def refusal(self, task: str, within: float) -> DeadlineUnmeetable | NotReady | QueueFull:
        """Returns why no model of ``task`` admits such a request."""
        refusals = [model.batcher.admission.refusal(within) for model in self.registry.of(task)]
        return refusals[0]

    async def answer(
        self,
        model: ServedModel,
        data: bytes,
        parameters: Any,
        *,
        deadline: float,
        media_type: str = JSON,
        timer: StageTimer | None = None,
    ) -> Answer:
        """Answers the media in ``data`` by ``deadline`` (monotonic seconds).

        Raises the refusals of decoding, scheduling and the model; see ``service.errors``.
        """
        if not data:
            raise EmptyBody
        timer = timer or StageTimer()
        task = model.task
        spec = task.decode_spec(model.card.preprocess, parameters)
        cost = task.decode_cost(data, spec, self._limits)
        on_loop_seconds = cost.seconds if cost.seconds <= self._on_loop_seconds else 0.0
        async with model.batcher.reserve(deadline, size=len(data), on_loop_seconds=on_loop_seconds) as request:

            def work(limits: Limits) -> Prepared:
                with timer.stage("decode"):
                    blocks = []
                    for block in task.decode(data, spec, limits, deadline):
                        request.check()
                        blocks.append(block)
                with timer.stage("preprocess"):
                    return task.prepare(blocks, model.card.preprocess)

            prepared = await self._decoded(task, work, cost.limits, request, timer)
            asked = now()
            decode_seconds = timer.seconds["decode"] + timer.seconds["preprocess"]
            result = await request.infer(prepared.samples, decode_seconds=decode_seconds)
            timer.add_inference(asked, result.runs, padding=prepared.padding)

            def finish() -> Any:
                with timer.stage("postprocess"):
                    return task.finish(result.outputs, prepared, model.card, parameters, media_type)

            body = await self._in_thread(task, timer, finish) if task.finishes_in_thread else finish()
        return Answer(body, timer.seconds, max(run.size for run in result.runs))

    async def infer(self, model: ServedModel, samples: Sequence[Sample], *, deadline: float) -> Result:
        """Answers samples that are made already, of one shape that the card states: the step that batches."""
        async with model.batcher.reserve(deadline, on_loop_seconds=_NO_DECODING_SECONDS) as request:
            return await request.infer(samples)

    async def _decoded(
        self,
        task: Task,
        work: Callable[[Limits], Prepared],
        claimed: Limits,
        request: QueuedRequest,
        timer: StageTimer,
    ) -> Prepared:
        """Runs ``work`` when its time has come: on the event loop or in a thread.

        On the event loop it runs under the limits for which the estimate holds; media refused by those may have lied,
        and are decoded again in a thread, under the true limits.
        """
        if not request.in_thread:
            await _scheduled(request, timer)
            if claimed is self._limits:
                return work(claimed)
            with suppress(MediaTooLarge, CorruptMedia):  # FFmpeg does not always tell one from the other
                return work(claimed)
            request.move_to_thread()
        await _scheduled(request, timer)
        return await self._in_thread(task, timer, lambda: work(self._limits))

    async def _in_thread(self, task: Task, timer: StageTimer, work: Callable[[], T]) -> T:
        """Runs ``work`` in the task's threads; waiting for one counts as queueing."""
        asked = now()

        def timed() -> T:
            timer.add("queue", asked, now())
            return work()

        return await asyncio.get_running_loop().run_in_executor(self._decoders[task.name], timed)


async def _scheduled(request: QueuedRequest, timer: StageTimer) -> None:
    asked = now()
    await request.wait_to_decode()
    timer.add("queue", asked, now())
