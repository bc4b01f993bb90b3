"""Samples -> batches -> samples.

A request takes a *place* before its media is decoded; ``admission`` says who gets one. It has its *turn* to be decoded,
by ``decoding``, shortly before the engine can take it: until then it is but the bytes that came, and costs nothing if
its client gives up. Its samples then stand in the *line* with those of all others. Whenever the engine is free it takes
a batch, however small, once what has arrived by then is decoded: no clock is waited for, and batches grow by themselves
when samples come faster than the engine takes them. ``isolation`` runs it. What still waits when the block is left, by
an answer, an error, the deadline or a client that went away, never runs.

    async with batcher.reserve(deadline) as place:     QueueFull, DeadlineUnmeetable, NotReady: nothing was done
        await place.turn()                             NotReady; DeadlineExceeded, at the deadline, wherever it is
        samples = …
        result = await place.run(samples)              InternalError, NotReady

The line is fair: a sound of a thousand windows delays the next one by a moment, not by a thousand windows, and of two
such sounds the first is done in half of the time of both. Whoever goes first says of which shape a batch's samples are.
"""

import asyncio
import time
from collections.abc import Callable

from service.errors import NotReady
from service.scheduling.admission import Admission
from service.scheduling.decode_scheduler import Decoding
from service.scheduling.fair_queue import Line
from service.scheduling.isolation import EngineBroken, Isolated, Runner
from service.scheduling.latency import Pace
from service.scheduling.long_requests import Quota
from service.scheduling.queued_request import Entry, Place
from service.telemetry.metrics import ModelSeries

_QUIET_ITERATIONS = 8  # of the event loop, in which nothing arrived: what still comes will be in the next batch


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
        self._on_broken, self._max_batch = broken, max_batch
        self._line: Line[Place] = Line()  # of those that are decoded; their work is samples
        self._quota, self._long_led = Quota(max_batch), False  # of long requests; one of them led the last batch
        self.decoding = Decoding(self._line, self.admission, max_batch=max_batch, decoders=decoders, on_cpu=on_cpu)
        self._work = asyncio.Event()
        self._serving = asyncio.create_task(self._serve())

    def reserve(self, deadline: float, *, size: int = 1, at_once_seconds: float = 0.0) -> Place:
        """A place for a request of ``size`` bytes that must be answered by ``deadline`` (monotonic seconds), and is
        decoded for so long on the event loop, or else in a thread.

        Raises ``QueueFull``; ``DeadlineUnmeetable``; ``NotReady`` after the end.
        """
        slow = at_once_seconds == 0
        self.admission.enter(deadline, slow=slow, behind=self.decoding.behind(size) if slow else 0)
        return Place(self, deadline, size, at_once_seconds)

    def enqueue(self, place: Place, decode_seconds: float) -> None:
        if self.admission.closed:
            place.fail(self.admission.closed)
            return
        place.decoded = True
        self.admission.decoded(slow=place.slow)
        self.admission.pace.decoded(decode_seconds, slow=place.slow)
        self._recount(place)
        self._line.join(place, place.left)
        if place.slow:
            place.waits_since = time.monotonic()  # the rest is the threads' pace
        if place.slow or place.long:  # else it takes the room in which it was decoded
            self.decoding.changed()
        self._work.set()

    def release(self, place: Place) -> None:
        gives_room = not place.decoded or place in self._line
        self._line.leave(place)
        if not place.decoded:
            self.admission.decoded(slow=place.slow)  # it never will be
        place.counted = self.admission.recount(place.counted, 0)
        if gives_room:
            self.decoding.changed()

    async def close(self) -> None:
        """Takes nothing more, refuses what still waits, and lets the batch that runs come back."""
        self._end(NotReady("the service is stopping", retry_after_seconds=5))
        self._work.set()
        await self._serving
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
        """What has arrived meanwhile and is decoded quickly shares the batch: one more batch costs more than one more
        sample. On a CPU this takes no time from the engine: the event loop would go first anyway."""
        admission, quiet = self.admission, 0
        if admission.waiting <= 1:
            return
        for _ in range(self._max_batch + _QUIET_ITERATIONS):  # there may be no end of what cannot be decoded
            if quiet >= _QUIET_ITERATIONS or len(self._line.before(1)) >= self._max_batch:
                return
            before = (admission.waiting, admission.undecoded)
            await asyncio.sleep(0)
            quiet = quiet + 1 if (admission.waiting, admission.undecoded) == before else 0

    def _next_batch(self) -> list[Entry]:
        """Who is first, and of the others as many as there is room for, of those with the same shape; of long requests
        within their quota. After a batch that a long one led those with a single sample go first, so that nobody waits
        for the whole of a long one whose time has come."""
        batch: list[Entry] = []
        quota = self._quota.samples
        for place in sorted(self._line, key=lambda place: place.long) if self._long_led else self._line:
            if place.over:
                self._line.leave(place)
            elif not batch or place.shape == batch[0].sample.shape:
                taken = min(place.left, self._max_batch - len(batch), quota) if place.long else 1
                quota -= taken if place.long else 0
                batch += [place.take() for _ in range(taken)]
                self._recount(place)
                if not place.left:
                    self._line.leave(place, served=True)
                if len(batch) == self._max_batch:
                    break
        self._long_led = bool(batch) and batch[0].place.long
        self._line.served(len(batch))
        self.decoding.changed()
        return batch

    async def _run(self, batch: list[Entry]) -> None:
        self.admission.running = len(batch)
        began = time.monotonic()
        try:
            async for number, ran in self._engine.run([entry.sample for entry in batch]):
                batch[number].tell(ran)
            self._quota.ran(sum(entry.place.long for entry in batch), of=len(batch), seconds=time.monotonic() - began)
        except EngineBroken:
            reason = NotReady("the engine failed; the worker starts afresh", retry_after_seconds=10)
            self._end(reason)
            for entry in batch:
                entry.place.fail(reason)
            self._on_broken()
        finally:
            self.admission.running = 0
            waits_since = min(entry.place.waits_since for entry in batch)
            self.admission.pace.answered(len(batch), time.monotonic(), waits_since=waits_since)
            self.decoding.changed()

    def _end(self, reason: NotReady) -> None:
        self.admission.close(reason)
        for place in self._line:
            place.fail(reason)
        self._line.clear()
        self.decoding.end(reason)

    def _recount(self, place: Place) -> None:
        place.counted = self.admission.recount(place.counted, min(place.left, self._max_batch))
