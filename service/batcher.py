"""Samples -> batches -> samples.

A request takes a *place* before its media is decoded; ``admission`` says who gets one. It has its *turn* to be decoded
when fewer than a batch's worth of requests are decoded already (one more for each decoder, where decoding is slow):
until then it is but the bytes that came, and costs nothing if its client gives up. Its samples then stand in line with
those of all others. Whenever the engine is free it takes a batch, however small, once what has arrived by then is
decoded: no clock is waited for, and batches grow by themselves when samples come faster than the engine takes them.
On a CPU, what decodes quickly is decoded between two batches: meanwhile each would push the other out of the caches.
``isolation`` runs it. What still waits when the block is left, by an answer, an error, the deadline or a client that
went away, never runs.

    async with batcher.reserve(deadline) as place:     QueueFull, DeadlineUnmeetable, NotReady: nothing was done
        await place.turn()                             DeadlineExceeded, at the deadline, wherever it is
        samples = …
        result = await place.run(samples)              InternalError, NotReady

Fairness: a batch takes one sample from each waiting request in turn, so a sound of a thousand windows delays the next
one by a batch, not by a thousand windows. Samples of one shape share a batch; shapes take turns.
"""

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

from service.admission import Admission
from service.engine import Outputs
from service.errors import DeadlineExceeded, InternalError, NotReady, ServiceError
from service.isolation import EngineBroken, Isolated, Ran, Runner, Sample
from service.metrics import ModelSeries
from service.pace import Pace
from service.stopwatch import Run
from service.turns import Turns

Shape = tuple[int, ...]
_TURN_SECONDS = 0.0025  # for which quick media are decoded one after the other before the event loop sees to others
_QUIET_TURNS = 8  # of the event loop, in which nothing arrived: what still comes will be in the next batch


class Result(NamedTuple):
    outputs: list[Outputs]  # one per sample, in order
    runs: list[Run]  # the batches they were in


class Place:
    """One request's place in the queue, from before it is decoded until it is answered or gives up.

    It is entered before use: the deadline then ends whatever is awaited inside.
    """

    def __init__(self, batcher: "Batcher", deadline: float) -> None:
        self.deadline = deadline
        self.came = time.monotonic()
        self.counted = 1  # samples that it counts as in the queue
        self.decoded = self.quick = False
        self._doing = "waited to be decoded"
        self._batcher = batcher
        self._samples: Sequence[Sample] = ()
        self._taken = 0
        self._answered = 0
        self._outputs: list[Outputs] = []
        self._runs: list[Run] = []
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timeout = asyncio.timeout(deadline - self.came)

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

    async def turn(self, *, at_once_seconds: float = 0.0) -> None:
        """Until the media should be decoded: for so long on the event loop, or in a thread."""
        self.quick = at_once_seconds > 0
        await self._batcher.turn(at_once_seconds)
        self._doing = "was decoded"

    async def run(self, samples: Sequence[Sample], *, decode_seconds: float = 0.0) -> Result:
        """Every sample's outputs. All samples have one shape; making them took a thread ``decode_seconds``. Raises what
        failed a sample."""
        self._doing = "waited for the model"
        self._samples = samples
        self._outputs = [()] * len(samples)
        self._batcher.enqueue(self, samples[0].shape, decode_seconds)
        await self._finished
        return Result(self._outputs, self._runs)

    @property
    def untouched(self) -> bool:
        """No batch has taken anything yet."""
        return self._taken == 0

    @property
    def left(self) -> int:
        """Samples that no batch has taken yet."""
        return len(self._samples) - self._taken

    def take(self) -> "Entry":
        self._taken += 1
        return Entry(self, self._taken - 1, self._samples[self._taken - 1])

    def answer(self, number: int, ran: Ran) -> None:
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


class Entry(NamedTuple):
    place: Place
    number: int  # among its request's samples
    sample: Sample

    def tell(self, ran: Ran | None) -> None:
        if ran:
            self.place.answer(self.number, ran)
        else:
            self.place.fail(InternalError("the model failed on this sample"))


class Batcher:
    """The queue before one engine, and the task that empties it. All methods belong to one event loop.

    ``admission`` may be asked for room before there is anything to reserve it for. ``on_cpu`` says that the engine
    computes on the cores that decode, and so runs on the event loop a batch that takes up to ``at_once_seconds``;
    ``decoders`` how many requests are decoded at a time where that is slow. ``broken`` is called once, when the engine
    answers not even a blank sample any more.
    """

    def __init__(
        self,
        engine: Runner,
        series: ModelSeries,
        *,
        max_batch: int,
        queue_samples: int | None,
        on_cpu: bool,
        decoders: int,
        at_once_seconds: float,
        broken: Callable[[], None],
    ) -> None:
        pace = Pace(decoders, on_cpu=on_cpu)
        self.admission = Admission(queue_samples, pace, series.queue_depth, max_batch=max_batch)
        self._engine = Isolated(engine, series, pace.inference, at_once_seconds if on_cpu else 0.0)
        self._broken, self._max_batch = broken, max_batch
        self._quick = Turns(lambda: 0 if on_cpu and self.admission.running else max_batch - self._ready, _TURN_SECONDS)
        self._slow = Turns(lambda: max_batch + decoders - self._ready - self._decoding, math.inf)
        self._lines: OrderedDict[Shape, deque[Place]] = OrderedDict()
        self._ready = 0  # requests that are decoded, and of which no sample has run
        self._work = asyncio.Event()
        self._loop = asyncio.create_task(self._serve())

    def reserve(self, deadline: float) -> Place:
        """A place for a request that must be answered by ``deadline`` (monotonic seconds).

        Raises ``QueueFull``; ``DeadlineUnmeetable``; ``NotReady`` after the end.
        """
        self.admission.enter(deadline)
        return Place(self, deadline)

    async def turn(self, at_once_seconds: float) -> None:
        await (self._quick if at_once_seconds > 0 else self._slow).wait(at_once_seconds)

    def enqueue(self, place: Place, shape: Shape, decode_seconds: float) -> None:
        if self.admission.closed:
            place.fail(self.admission.closed)
            return
        self._decoded(place)
        self.admission.pace.decoded(decode_seconds, at_once=place.quick)
        self._recount(place)
        self._lines.setdefault(shape, deque()).append(place)
        self._ready += 1
        self._work.set()

    def release(self, place: Place) -> None:
        self._decoded(place)
        place.counted = self.admission.recount(place.counted, 0)

    async def close(self) -> None:
        """Takes nothing more, refuses what still waits, and lets the batch that runs come back."""
        self._end(NotReady("the service is stopping", retry_after_seconds=5))
        self._work.set()
        await self._loop
        self._engine.close()

    async def _serve(self) -> None:
        while not self.admission.closed:
            await self._work.wait()
            await self._let_others_in()
            if batch := self._next_batch():
                await self._run(batch)
                await asyncio.sleep(0)  # it may have run on the event loop, and the next one will: others come between
            else:
                self._work.clear()

    async def _let_others_in(self) -> None:
        """What has arrived meanwhile and is decoded quickly shares the batch: each one costs more than a sample. On a
        CPU this takes no time from the engine: the event loop would go first anyway."""
        queue = self.admission
        quiet = 0 if queue.waiting > 1 else _QUIET_TURNS
        for _ in range(self._max_batch + _QUIET_TURNS):  # there may be no end of what cannot be decoded
            if quiet >= _QUIET_TURNS or self._ready >= self._max_batch:
                break
            before = (queue.waiting, queue.undecoded)
            await asyncio.sleep(0)
            quiet = quiet + 1 if (queue.waiting, queue.undecoded) == before else 0

    def _next_batch(self) -> list[Entry]:
        """One sample from each waiting request in turn, of the shape whose turn it is; who is over is passed over."""
        batch: list[Entry] = []
        while self._lines and not batch:
            shape, line = self._lines.popitem(last=False)
            while line and len(batch) < self._max_batch:
                place = line.popleft()
                self._ready -= place.untouched
                if place.over:
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
        self.admission.running = len(batch)
        try:
            async for number, ran in self._engine.run([entry.sample for entry in batch]):
                batch[number].tell(ran)
        except EngineBroken:
            reason = NotReady("the engine failed; the worker starts afresh", retry_after_seconds=10)
            self._end(reason)
            for entry in batch:
                entry.place.fail(reason)
            self._broken()
        finally:
            self.admission.running = 0
            self.admission.pace.answered(len(batch), time.monotonic(), came=min(entry.place.came for entry in batch))
            self._give_turns()

    def _end(self, reason: NotReady) -> None:
        self.admission.close(reason)
        for place in (place for line in self._lines.values() for place in line):
            place.fail(reason)
        self._lines.clear()
        self._ready = 0
        self._quick.end(reason)
        self._slow.end(reason)

    def _decoded(self, place: Place) -> None:
        if not place.decoded:
            place.decoded = True
            self.admission.decoded()
            self._give_turns()

    def _give_turns(self) -> None:
        self._quick.changed()
        self._slow.changed()

    @property
    def _decoding(self) -> int:
        """Requests that have had their turn and are not decoded yet."""
        return self.admission.undecoded - len(self._quick) - len(self._slow)

    def _recount(self, place: Place) -> None:
        place.counted = self.admission.recount(place.counted, min(place.left, self._max_batch))
