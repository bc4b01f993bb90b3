"""Dynamic batching: samples -> batches -> outputs.

A request reserves a place in the queue before its media is decoded, if ``admission`` lets it. It is decoded when
``decode_scheduler`` says so, shortly before the engine can take it: until then it is bytes, and costs nothing if its
client gives up. Its samples then wait in a fair queue. Whenever the engine is free it takes a batch, however small, of
all that has arrived and is decoded: no timer runs, and batches grow by themselves when samples come faster than the
engine takes them. What still waits when the block is left, by an answer, an error, the deadline or a client that went
away, never runs.

    async with batcher.reserve(deadline) as request:   QueueFull, DeadlineUnmeetable, NotReady: nothing was done
        await request.wait_to_decode()                 NotReady; DeadlineExceeded, at the deadline, anywhere inside
        samples = …
        result = await request.infer(samples)          InternalError, NotReady
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

from service.engines.engine import Engine, Outputs, Sample
from service.errors import DeadlineExceeded, InternalError, NotReady, ServiceError
from service.scheduling.admission import AdmissionControl, LatencyEstimator
from service.scheduling.decode_scheduler import DecodeScheduler
from service.scheduling.fair_queue import FairQueue
from service.scheduling.isolation import EngineBroken, run_one_by_one
from service.scheduling.threads import background_pool
from service.telemetry.metrics import ModelSeries
from service.telemetry.request import BatchRun, now

logger = logging.getLogger("convserve.batcher")

_QUIET_ITERATIONS = 8  # of the event loop without an arrival, after which a batch is closed
_LONG_REQUESTS_SECONDS = 0.02  # that long requests may add to a batch
_POLL_SECONDS, _QUIET_POLLS = 0.01, 3  # of a queue that is drained, and how often in a row it has to be empty


class Result(NamedTuple):
    outputs: list[Outputs]  # one per sample, in order
    runs: list[BatchRun]  # the batches they were in


class _Ran(NamedTuple):
    outputs: Outputs  # of one sample
    run: BatchRun


class QueuedRequest:
    """One request in the queue, from before it is decoded until it is answered or gives up.

    A context manager: inside, the deadline ends whatever is awaited, with ``DeadlineExceeded``.
    """

    def __init__(self, batcher: "Batcher", deadline: float, size: int, on_loop_seconds: float) -> None:
        self.size, self.on_loop_seconds = size, on_loop_seconds
        self.in_thread = on_loop_seconds == 0  # it is decoded in a thread, and not on the event loop
        self.waiting_since = time.monotonic()
        self.counted = 1  # samples that it counts as in the queue
        self.decoded = False
        self._deadline = deadline
        self._doing = "waited to be decoded"
        self._batcher = batcher
        self._samples: Sequence[Sample] = ()
        self._taken = self._answered = 0  # samples
        self._outputs: list[Outputs] = []
        self._runs: list[BatchRun] = []
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timeout = asyncio.timeout(deadline - self.waiting_since)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._finished.cancel()
        self._batcher.release(self)
        try:
            await self._timeout.__aexit__(*error)
        except TimeoutError:
            raise self._late() from None

    @property
    def over(self) -> bool:
        """True once the answer is complete, or the client waits no longer."""
        return self._finished.done() or time.monotonic() >= self._deadline

    def check(self) -> None:
        """Raises ``DeadlineExceeded`` when there is no use in decoding on. Decoders call it, from any thread."""
        if self.over:
            raise self._late()

    async def wait_to_decode(self) -> None:
        await self._batcher.decoding.wait(self)
        self._doing = "was decoded"

    def move_to_thread(self) -> None:
        """Makes it wait again, to be decoded in a thread after all."""
        self.in_thread = True
        self._doing = "waited to be decoded"
        self._batcher.admission.move_to_thread()
        self._batcher.decoding.notify()

    async def infer(self, samples: Sequence[Sample], *, decode_seconds: float | None = None) -> Result:
        """Returns the outputs of ``samples``, one at least, all of one shape.

        They took ``decode_seconds`` to make, None if they came ready. Raises what failed a sample.
        """
        assert samples
        self._doing = "waited for the model"
        self._samples = samples
        self._outputs = [()] * len(samples)
        self._batcher.enqueue(self, decode_seconds)
        await self._finished
        return Result(self._outputs, self._runs)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._samples[0].shape

    @property
    def long(self) -> bool:
        """True if it has more than one sample."""
        return len(self._samples) > 1

    @property
    def left(self) -> int:
        """Samples that no batch has taken yet."""
        return len(self._samples) - self._taken

    def take(self) -> "_BatchEntry":
        self._taken += 1
        return _BatchEntry(self, self._taken - 1, self._samples[self._taken - 1])

    def answer(self, number: int, ran: _Ran) -> None:
        self._outputs[number] = ran.outputs
        if self._runs[-1:] != [ran.run]:
            self._runs.append(ran.run)
        self._answered += 1
        if self._answered == len(self._samples) and not self._finished.done():
            self._doing = "was answered"
            self._finished.set_result(None)

    def fail(self, error: ServiceError) -> None:
        if not self._finished.done():
            self._finished.set_exception(error)

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the deadline passed while the request {self._doing}")


class _BatchEntry(NamedTuple):
    request: QueuedRequest
    number: int  # among its request's samples
    sample: Sample

    def answer(self, ran: _Ran | None) -> None:
        if ran:
            self.request.answer(self.number, ran)
        else:
            self.request.fail(InternalError("the model failed on this sample"))


class _LongRequestLimit:
    """How many samples of long requests a batch may hold: a request that comes meanwhile waits for all of them.

    Halved when they took more than 20 ms of a batch; doubled when twice as many would not.
    """

    def __init__(self, max_batch: int) -> None:
        self.samples = self._most = max_batch

    def observe(self, samples: int, *, of: int, seconds: float) -> None:
        theirs = seconds * samples / of
        if theirs > _LONG_REQUESTS_SECONDS:
            self.samples = max(1, self.samples // 2)
        elif samples == self.samples and 2 * theirs <= _LONG_REQUESTS_SECONDS:
            self.samples = min(2 * self.samples, self._most)


class Batcher:
    """The queue before one engine, and the task that empties it. All methods belong to one event loop.

    ``on_cpu`` says that the engine computes on the cores that decode; a batch of up to ``on_loop_seconds`` then runs on
    the event loop. ``decoders`` is how many requests are decoded at a time in threads. ``on_broken`` is called once,
    when the engine answers not even a blank sample any more.
    """

    def __init__(
        self,
        engine: Engine,
        series: ModelSeries,
        *,
        max_batch: int,
        queue_samples: int | None,
        on_cpu: bool,
        decoders: int,
        on_loop_seconds: float,
        on_broken: Callable[[], None],
    ) -> None:
        estimator = LatencyEstimator(decoders, on_cpu=on_cpu)
        self.admission = AdmissionControl(queue_samples, estimator, series.queue_depth, max_batch=max_batch)
        self._engine, self._series, self._on_broken, self._max_batch = engine, series, on_broken, max_batch
        self._on_loop_seconds = on_loop_seconds if on_cpu else 0.0
        self._thread = background_pool(1, "engine")
        self._queue: FairQueue[QueuedRequest] = FairQueue()  # of decoded requests; their work is samples
        self._long_limit, self._long_first = _LongRequestLimit(max_batch), False
        self.decoding = DecodeScheduler(
            self._queue, self.admission, max_batch=max_batch, decoders=decoders, on_cpu=on_cpu
        )
        self._work = asyncio.Event()
        self._serving = asyncio.create_task(self._serve())

    def reserve(self, deadline: float, *, size: int = 1, on_loop_seconds: float = 0.0) -> QueuedRequest:
        """Admits a request of ``size`` bytes that must be answered by ``deadline`` (monotonic seconds).

        It is decoded on the event loop for ``on_loop_seconds``, or if that is 0 in a thread. Raises ``QueueFull``;
        ``DeadlineUnmeetable``; ``NotReady`` after ``close``.
        """
        in_thread = on_loop_seconds == 0
        behind = self.decoding.ahead_of(size) if in_thread else 0
        self.admission.admit(deadline, in_thread=in_thread, behind=behind)
        return QueuedRequest(self, deadline, size, on_loop_seconds)

    def enqueue(self, request: QueuedRequest, decode_seconds: float | None) -> None:
        """Puts a request into the fair queue: its samples are there."""
        if self.admission.closed:
            request.fail(self.admission.closed)
            return
        request.decoded = True
        self.admission.leave_undecoded(in_thread=request.in_thread)
        if decode_seconds is not None:
            self.admission.estimator.decoded(decode_seconds, in_thread=request.in_thread)
        self._recount(request)
        self._queue.add(request, request.left)
        if request.in_thread:
            request.waiting_since = time.monotonic()  # what came before is the threads' time
        if request.in_thread or request.long:  # else it takes the room in which it was decoded
            self.decoding.notify()
        self._work.set()

    def release(self, request: QueuedRequest) -> None:
        """Forgets a request that is answered or gives up."""
        gives_room = not request.decoded or request in self._queue
        self._queue.remove(request)
        if not request.decoded:
            self.admission.leave_undecoded(in_thread=request.in_thread)
        request.counted = self.admission.recount(request.counted, 0)
        if gives_room:
            self.decoding.notify()

    async def close(self) -> None:
        """Refuses what comes and what waits, and lets the batch that runs come back."""
        self._end(NotReady("the service is stopping", retry_after_seconds=5))
        self._work.set()
        await self._serving
        self._thread.shutdown(wait=False)

    async def drain(self) -> None:
        """Waits until no request has been here for a moment, then closes.

        Requests admitted meanwhile are answered: a client's next file, or a request that had found its model before.
        """
        quiet = 0
        while quiet < _QUIET_POLLS:
            await asyncio.sleep(_POLL_SECONDS)
            quiet = 0 if self.admission.requests else quiet + 1
        await self.close()

    async def _serve(self) -> None:
        while not self.admission.closed:
            await self._work.wait()
            await self._collect()
            if batch := self._next_batch():
                await self._run_batch(batch)
                await asyncio.sleep(0)  # it may have run on the event loop, and the next one will: others come between
            else:
                self._work.clear()

    async def _collect(self) -> None:
        """Lets what has arrived and decodes quickly share the batch: a batch more costs more than a sample more.

        On a CPU this takes no time from the engine: the event loop would go first anyway.
        """
        admission, quiet = self.admission, 0
        if admission.waiting <= 1:
            return
        for _ in range(self._max_batch + _QUIET_ITERATIONS):  # there may be no end of what cannot be decoded
            if quiet >= _QUIET_ITERATIONS or len(self._queue.ahead_of(1)) >= self._max_batch:
                return
            before = (admission.waiting, admission.undecoded)
            await asyncio.sleep(0)
            quiet = quiet + 1 if (admission.waiting, admission.undecoded) == before else 0

    def _next_batch(self) -> list[_BatchEntry]:
        """Takes the first request and as many others as there is room for, of the same shape.

        Long requests keep to their limit. After a batch that a long one led, requests of a single sample go first, so
        that they do not wait for the whole of a long one whose virtual finish time has come.
        """
        batch: list[_BatchEntry] = []
        limit = self._long_limit.samples
        for request in sorted(self._queue, key=lambda queued: queued.long) if self._long_first else self._queue:
            if request.over:
                self._queue.remove(request)
            elif not batch or request.shape == batch[0].sample.shape:
                taken = min(request.left, self._max_batch - len(batch), limit) if request.long else 1
                limit -= taken if request.long else 0
                batch += [request.take() for _ in range(taken)]
                self._recount(request)
                if not request.left:
                    self._queue.remove(request, served=True)
                if len(batch) == self._max_batch:
                    break
        self._long_first = bool(batch) and batch[0].request.long
        self._queue.advance(len(batch))
        self.decoding.notify()
        return batch

    async def _run_batch(self, batch: list[_BatchEntry]) -> None:
        self.admission.running = len(batch)
        began = time.monotonic()
        try:
            await self._answer_batch(batch)
            long_samples = sum(entry.request.long for entry in batch)
            self._long_limit.observe(long_samples, of=len(batch), seconds=time.monotonic() - began)
        except EngineBroken:
            reason = NotReady("the engine failed; the worker starts afresh", retry_after_seconds=10)
            self._end(reason)
            for entry in batch:
                entry.request.fail(reason)
            self._on_broken()
        finally:
            self.admission.running = 0
            waiting_since = min(entry.request.waiting_since for entry in batch)
            self.admission.estimator.answered(len(batch), time.monotonic(), waiting_since=waiting_since)
            self.decoding.notify()

    async def _answer_batch(self, batch: list[_BatchEntry]) -> None:
        samples = [entry.sample for entry in batch]
        try:
            results = await self._counted_run(samples)
        except Exception:  # an engine may fail in any way
            logger.exception("a batch of %d failed; its samples run alone", len(batch))
            async for number, ran in run_one_by_one(self._counted_run, samples, self._run_blank):
                batch[number].answer(ran)
        else:
            for entry, result in zip(batch, results, strict=True):
                entry.answer(result)

    async def _counted_run(self, samples: Sequence[Sample]) -> list[_Ran]:
        ran = await self._run(samples)
        run = ran[0].run
        self.admission.estimator.inference.add(run.seconds / run.size)
        self._series.batch_size.observe(run.size)
        self._series.samples.inc(run.size)
        return ran

    async def _run_blank(self) -> None:
        await self._run([self._engine.blank()])

    async def _run(self, samples: Sequence[Sample]) -> list[_Ran]:
        """Runs a batch in the engine's thread, or a short one on the event loop."""
        estimate, began = self.admission.estimator.inference.value * len(samples), now()
        try:
            if 0 < estimate <= self._on_loop_seconds:
                outputs = self._engine.run(samples)
            else:
                outputs = await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.run, samples)
            if len(outputs) != len(samples):
                raise RuntimeError(f"the engine answered {len(outputs)} of {len(samples)} samples")
        except Exception:
            self._series.failures.inc()
            raise
        run = BatchRun(began, now() - began, len(samples), self._engine.padded_size(len(samples)))
        self._series.engine_seconds.inc(run.seconds)
        return [_Ran(output, run) for output in outputs]

    def _end(self, reason: NotReady) -> None:
        self.admission.close(reason)
        for request in self._queue:
            request.fail(reason)
        self._queue.clear()
        self.decoding.close(reason)

    def _recount(self, request: QueuedRequest) -> None:
        request.counted = self.admission.recount(request.counted, min(request.left, self._max_batch))
