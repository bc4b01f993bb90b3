"""Samples -> batches -> samples.

A request takes a *place* before its media is decoded, so that what could not be answered in time is refused while it
is still cheap. It gets its *turn* to be decoded when fewer than a batch's worth of requests are decoded already: until
then it is but the bytes that came, and costs nothing if its client gives up. Its samples then wait in line with those
of all others. Whenever the engine is free it takes a batch, however small, once what has arrived by then is decoded: no
clock is waited for, and batches grow by themselves when samples come faster than the engine takes them.
What still waits when the block is left, by an answer, an error, the deadline or a client that went away, never runs.

    async with batcher.reserve(deadline) as place:     QueueFull, DeadlineUnmeetable: nothing was done
        await place.turn()                             DeadlineExceeded, at the deadline, wherever it is
        samples = …
        result = await place.run(samples)              InternalError, NotReady

Fairness: a batch takes one sample from each waiting request in turn, so a sound of a thousand windows delays the next
one by a batch, not by a thousand windows. Samples of one shape share a batch; shapes take turns.

Bounds: a request counts as one sample from the start, and as more, up to a batch's worth, as far as it has them and the
queue has room; the rest waits in its own hands. So the queue is bounded, and only a first sample can be refused. A
burst may fill the queue; once it was full, it is kept short until nothing has had to be refused for a while, so that
those who are let in under overload are answered soon, and the service is itself again soon after.

Isolation: if a batch fails, its samples run again one by one, and only those that fail alone are failed. If even a
blank sample fails then, the engine is broken and the worker has to be started afresh.
"""

import asyncio
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from service.engine import Outputs
from service.errors import DeadlineExceeded, DeadlineUnmeetable, InternalError, NotReady, QueueFull, ServiceError
from service.metrics import ModelSeries
from service.pace import Pace
from service.stopwatch import Run, now
from service.threads import workers
from service.turns import Turns

logger = logging.getLogger("convserve.batcher")

Sample = NDArray[np.generic]
Shape = tuple[int, ...]
_QUIET_TURNS = 8  # of the event loop, in which nothing arrived: what still comes will be in the next batch
_SHORT_SECONDS = 2.0  # of waiting, while requests have to be refused
_CAUTION = 1.2  # what is let in and comes too late has cost others their answer: paces may drop by so much


class Runner(Protocol):
    """What the batcher needs of an engine: it is called from one thread, one batch at a time."""

    def run(self, samples: Sequence[Sample]) -> list[Outputs]: ...

    def padded_size(self, count: int) -> int: ...  # samples that it computes when it is given so many

    def blank(self) -> Sample: ...


class Result(NamedTuple):
    outputs: list[Outputs]  # one per sample, in order
    runs: list[Run]  # the batches they were in


class Place:
    """One request's place in the queue, from before it is decoded until it is answered or gives up.

    It is entered before use: the deadline then ends whatever is awaited inside.
    """

    def __init__(self, batcher: "Batcher", deadline: float) -> None:
        self.deadline = deadline
        self.waiting = 1  # samples that count in the queue; until the media is decoded, one
        self.decoded = False
        self._doing = "waited to be decoded"
        self.runs: list[Run] = []
        self._batcher = batcher
        self._samples: Sequence[Sample] = ()
        self._outputs: list[Outputs] = []
        self._taken = 0
        self._answered = 0
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timeout = asyncio.timeout(deadline - time.monotonic())

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
        """Nobody waits for the answer any more, or it is complete."""
        return self._finished.done() or time.monotonic() >= self.deadline

    def check(self) -> None:
        """For decoders, from any thread: raises ``DeadlineExceeded`` when there is no use in going on."""
        if self.over:
            raise self._late()

    async def turn(self, *, quick: bool = False) -> None:
        """Until the media should be decoded: ``quick`` says that it will be at once, on the event loop."""
        await self._batcher.turn(quick)
        self._doing = "was decoded"

    async def run(self, samples: Sequence[Sample], *, decode_seconds: float = 0.0) -> Result:
        """Every sample's outputs. All samples have one shape; making them took a thread ``decode_seconds``. Raises what
        failed a sample."""
        self._doing = "waited for the model"
        self._samples = samples
        self._outputs = [()] * len(samples)
        self._batcher.enqueue(self, samples[0].shape, decode_seconds)
        await self._finished
        return Result(self._outputs, self.runs)

    def take(self) -> "Entry":
        self._taken += 1
        return Entry(self, self._taken - 1, self._samples[self._taken - 1])

    @property
    def untouched(self) -> bool:
        """No batch has taken anything yet."""
        return self._taken == 0

    @property
    def left(self) -> int:
        """Samples that no batch has taken yet."""
        return len(self._samples) - self._taken

    def answer(self, number: int, outputs: Outputs) -> None:
        self._outputs[number] = outputs
        self._answered += 1
        if self._answered == len(self._samples) and not self._finished.done():
            self._doing = "was answered"
            self._finished.set_result(None)

    def fail(self, error: ServiceError) -> None:
        if not self._finished.done():
            self._finished.set_exception(error)

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the deadline passed while the request {self._doing}")


class Entry(NamedTuple):
    place: Place
    number: int  # among its request's samples
    sample: Sample


class Batcher:
    """The queue before one engine, and the task that empties it. All methods belong to one event loop.

    ``decoders`` is how many requests are decoded at a time. ``broken`` is called once, when the engine answers not even
    a blank sample any more.
    """

    def __init__(
        self,
        engine: Runner,
        series: ModelSeries,
        *,
        max_batch: int,
        queue_samples: int,
        decoders: int,
        broken: Callable[[], None],
    ) -> None:
        self._engine, self._series, self._broken = engine, series, broken
        self._max_batch, self._queue_samples, self._pace = max_batch, queue_samples, Pace(decoders)
        self._quick = Turns(lambda: self._ready < max_batch)
        self._slow = Turns(lambda: self._ready + self._decoding < max_batch + decoders)
        self._lines: OrderedDict[Shape, deque[Place]] = OrderedDict()
        self._waiting = 0  # samples, of which these are requests that are not decoded yet
        self._undecoded = 0
        self._ready = 0  # requests that are decoded, and of which no sample has run
        self._running = 0
        self._overloaded_until = -math.inf
        self._over: NotReady | None = None
        self._work = asyncio.Event()
        self._thread = workers(1, "engine")
        self._loop = asyncio.create_task(self._serve())

    def reserve(self, deadline: float) -> Place:
        """A place for a request that must be answered by ``deadline`` (monotonic seconds).

        Raises ``QueueFull``; ``DeadlineUnmeetable`` when what is ahead takes longer, by the pace measured so far;
        ``NotReady`` after the end.
        """
        self.check_room()
        ahead, patience = self._seconds_ahead(), deadline - time.monotonic()
        needed = _CAUTION * (ahead + self._pace.seconds_of_one())
        if self._waiting + self._running > 0 and needed > patience:
            raise DeadlineUnmeetable(
                f"with what is waiting it may take {needed * 1000:.0f} ms; "
                f"the request may wait {patience * 1000:.0f} ms",
                retry_after_seconds=max(1, math.ceil(ahead)),
            )
        self._count(1)
        self._undecoded += 1
        return Place(self, deadline)

    def has_room(self) -> bool:
        """Whether a request would be let in, if only its deadline were far enough."""
        if self._over or self._waiting >= self._queue_samples:
            return False
        return time.monotonic() >= self._overloaded_until or self._seconds_ahead() <= _SHORT_SECONDS

    def check_room(self) -> None:
        """Raises ``QueueFull``, or ``NotReady`` after the end."""
        if self._over:
            raise self._over
        if not self.has_room():
            self._overloaded_until = time.monotonic() + _SHORT_SECONDS
            ahead = self._seconds_ahead()
            raise QueueFull(
                f"{self._waiting} samples are waiting, for about {ahead:.1f} s; QUEUE_SAMPLES is {self._queue_samples}",
                retry_after_seconds=max(1, math.ceil(ahead)),
            )

    def _seconds_ahead(self) -> float:
        return self._pace.seconds_ahead(self._undecoded, self._waiting + self._running)

    async def turn(self, quick: bool) -> None:
        await (self._quick if quick else self._slow).wait()

    def enqueue(self, place: Place, shape: Shape, decode_seconds: float) -> None:
        if self._over:
            place.fail(self._over)
            return
        self._decoded(place)
        self._pace.decoding.add(decode_seconds)
        self._recount(place)
        self._lines.setdefault(shape, deque()).append(place)
        self._ready += 1
        self._work.set()

    def release(self, place: Place) -> None:
        self._decoded(place)
        self._count(-place.waiting)
        place.waiting = 0

    async def close(self) -> None:
        """Takes nothing more, refuses what still waits, and lets the batch that runs come back."""
        self._end(NotReady("the service is stopping", retry_after_seconds=5))
        self._work.set()
        await self._loop
        self._thread.shutdown(wait=False)

    async def _serve(self) -> None:
        while self._over is None:
            await self._work.wait()
            await self._let_others_in()
            if batch := self._next_batch():
                await self._run(batch)
            else:
                self._work.clear()

    async def _let_others_in(self) -> None:
        """What has arrived meanwhile and is decoded quickly shares the batch: each one costs more than a sample. On a
        CPU this takes no time from the engine: the event loop would go first anyway."""
        quiet = 0 if self._waiting > 1 else _QUIET_TURNS
        for _ in range(self._max_batch):
            if quiet >= _QUIET_TURNS or self._waiting - self._undecoded >= self._max_batch:
                break
            before = (self._waiting, self._undecoded)
            await asyncio.sleep(0)
            quiet = quiet + 1 if (self._waiting, self._undecoded) == before else 0

    def _end(self, reason: NotReady) -> None:
        self._over = self._over or reason
        for line in self._lines.values():
            for place in line:
                place.fail(reason)
        self._lines.clear()
        self._ready = 0
        self._quick.end(reason)
        self._slow.end(reason)

    def _next_batch(self) -> list[Entry]:
        """One sample from each waiting request in turn, of the shape whose turn it is; the expired are passed over."""
        batch: list[Entry] = []
        while self._lines and not batch:
            shape, line = self._lines.popitem(last=False)
            while line and len(batch) < self._max_batch:
                place = line.popleft()
                self._ready -= place.untouched
                if place.over:
                    self.release(place)
                    continue
                batch.append(place.take())
                self._recount(place)
                if place.left:
                    line.append(place)
            if line:
                self._lines[shape] = line  # at the end: the other shapes come first
        self._give_turns()
        return batch

    async def _run(self, batch: list[Entry]) -> None:
        self._running = len(batch)
        try:
            outputs, run = await self._timed_run([entry.sample for entry in batch])
        except Exception:  # an engine may fail in any way; none of them may stop the others' answers
            logger.exception("a batch of %d failed; its samples run alone", len(batch))
            await self._run_alone(batch)
        else:
            self._answer(batch, outputs, run)
        finally:
            self._running = 0

    async def _run_alone(self, batch: list[Entry]) -> None:
        failed: list[Entry] = []
        for entry in batch:
            try:
                outputs, run = await self._timed_run([entry.sample])
            except Exception:  # as above
                failed.append(entry)
            else:
                self._answer([entry], outputs, run)
        error: ServiceError = InternalError("the model failed on this sample")
        if len(failed) == len(batch) and not await self._answers_blank():
            error = NotReady("the engine failed; the worker starts afresh", retry_after_seconds=10)
            self._end(error)
            self._broken()
        for entry in failed:
            entry.place.fail(error)

    async def _answers_blank(self) -> bool:
        try:
            await self._timed_run([self._engine.blank()])
        except Exception:  # as above
            return False
        return True

    async def _timed_run(self, samples: list[Sample]) -> tuple[list[Outputs], Run]:
        began = now()
        try:
            outputs = await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.run, samples)
            if len(outputs) != len(samples):
                raise RuntimeError(f"the engine answered {len(outputs)} of {len(samples)} samples")
        except Exception:
            self._series.failures.inc()
            raise
        run = Run(began, now() - began, len(samples), self._engine.padded_size(len(samples)))
        self._series.engine_seconds.inc(run.seconds)
        return outputs, run

    def _answer(self, batch: list[Entry], outputs: list[Outputs], run: Run) -> None:
        self._series.batch_size.observe(run.size)
        self._series.samples.inc(run.size)
        self._pace.inference.add(run.seconds / run.size)
        for place in {entry.place for entry in batch}:
            place.runs.append(run)
        for entry, output in zip(batch, outputs, strict=True):
            entry.place.answer(entry.number, output)

    def _decoded(self, place: Place) -> None:
        if not place.decoded:
            place.decoded = True
            self._undecoded -= 1
            self._give_turns()

    def _give_turns(self) -> None:
        self._quick.changed()
        self._slow.changed()

    @property
    def _decoding(self) -> int:
        """Requests that have had their turn and are not decoded yet."""
        return self._undecoded - len(self._quick) - len(self._slow)

    def _recount(self, place: Place) -> None:
        """A place counts with the samples it has left, at most one batch's worth, and at most what has room."""
        room = self._queue_samples - self._waiting + place.waiting
        now = min(place.left, self._max_batch, max(1, room))
        self._count(now - place.waiting)
        place.waiting = now

    def _count(self, change: int) -> None:
        if change:
            self._waiting += change
            self._series.queue_depth.set(self._waiting)
