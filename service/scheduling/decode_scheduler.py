"""Decode scheduling: media become samples shortly before the engine takes them, and not all at once.

Media that decode quickly are decoded on the event loop, on a CPU between two batches: beside one they would evict each
other from the caches. Slow media are decoded in threads, the smaller first. No more is decoded than the next batch
takes, and one more for each thread. A long request makes samples for many batches and delays other long ones, but not
the shortest.
"""

import asyncio
import math
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

from service.scheduling.admission import AdmissionControl
from service.scheduling.fair_queue import FairQueue

_LOOP_SECONDS = 0.0025  # of decoding in one iteration of the event loop, before it serves others

T = TypeVar("T")


class Undecoded(Protocol):
    """A request as the decode scheduler sees it."""

    @property
    def size(self) -> int: ...  # bytes

    @property
    def in_thread(self) -> bool: ...  # it is decoded in a thread

    @property
    def on_loop_seconds(self) -> float: ...  # else how long it is decoded on the event loop

    @property
    def left(self) -> int: ...  # once it is decoded: samples that no batch has taken yet


@dataclass(eq=False, slots=True)
class _Waiter(Generic[T]):
    admitted: asyncio.Future[None]
    item: T
    work: float
    seconds: float
    number: int  # order of arrival


class FairGate(Generic[T]):
    """Lets waiters through in the order of a fair queue, as long as it is ``open`` and there is ``room`` for the first.

    Where the first has no room, the waiter with the least work overtakes it if it has. In one iteration of the event
    loop no more go through than hold it up for ``seconds``. ``notify`` has to be called whenever a waiter may go.
    """

    def __init__(self, open: Callable[[], bool], room: Callable[[T], bool], seconds: float) -> None:
        self._open, self._room, self._seconds = open, room, seconds
        self._queue: FairQueue[_Waiter[T]] = FairQueue()
        self._by_work: list[tuple[float, int, _Waiter[T]]] = []
        self._numbers = count()
        self._scheduled = False
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._queue)

    async def wait(self, item: T, work: float, seconds: float) -> None:
        """Waits for ``item`` to be let through, after which it holds the event loop up for ``seconds``.

        Raises what ``close`` was given.
        """
        waiter = _Waiter(self._loop.create_future(), item, work, seconds, next(self._numbers))
        self._queue.add(waiter, work)
        insort(self._by_work, (work, waiter.number, waiter))
        if waiter is self._queue.first() or waiter is self._by_work[0][2]:  # else another one would go before it
            self.notify()
        try:
            await waiter.admitted
        finally:
            self._remove(waiter)

    def ahead_of(self, work: float) -> int:
        """How many would go before a new waiter of so much work."""
        return len(self._queue.ahead_of(work))

    def notify(self) -> None:
        if not self._scheduled and self._next():
            self._scheduled = True
            self._loop.call_soon(self._let_through)

    def close(self, reason: Exception) -> None:
        for waiter in self._queue:
            if not waiter.admitted.done():
                waiter.admitted.set_exception(reason)
        self._queue.clear()
        self._by_work.clear()

    def _let_through(self) -> None:
        self._scheduled = False
        left = self._seconds
        while left > 0 and (waiter := self._next()):
            self._queue.advance(waiter.work)
            self._remove(waiter, served=True)
            if not waiter.admitted.done():
                waiter.admitted.set_result(None)
                left -= waiter.seconds
        self.notify()

    def _next(self) -> _Waiter[T] | None:
        if not self._queue or not self._open():
            return None
        first = self._queue.first()
        if self._room(first.item):
            return first
        smallest = self._by_work[0][2]
        return smallest if self._room(smallest.item) else None

    def _remove(self, waiter: _Waiter[T], *, served: bool = False) -> None:
        if waiter in self._queue:
            self._queue.remove(waiter, served=served)
            del self._by_work[bisect_left(self._by_work, (waiter.work, waiter.number))]


class DecodeScheduler:
    """Decides when each request is decoded.

    ``decoded`` are the requests that wait for the engine; ``admission`` counts the others. ``notify`` has to be called
    after each change to either. ``on_cpu`` says that the engine runs on the cores that decode, ``max_batch`` samples at
    a time; ``decoders`` is the number of decoding threads.
    """

    def __init__(
        self, decoded: FairQueue[Any], admission: AdmissionControl, *, max_batch: int, decoders: int, on_cpu: bool
    ) -> None:
        self._decoded, self._admission = decoded, admission
        self._max_batch, self._decoders, self._on_cpu = max_batch, decoders, on_cpu
        self._loop: FairGate[Undecoded] = FairGate(self._loop_is_free, self._loop_has_room, _LOOP_SECONDS)
        self._threads: FairGate[Undecoded] = FairGate(self._thread_is_free, self._threads_have_room, math.inf)

    async def wait(self, request: Undecoded) -> None:
        """Waits until ``request`` should be decoded. Raises what ``close`` was given."""
        if request.in_thread:
            await self._threads.wait(request, request.size, 0.0)
        else:
            seconds = request.on_loop_seconds
            await self._loop.wait(request, seconds + self._admission.estimator.inference.value, seconds)

    def ahead_of(self, size: int) -> int:
        """How many requests are decoded in threads before a new one of ``size`` bytes."""
        return self._threads.ahead_of(size) + self._in_threads

    def notify(self) -> None:
        self._loop.notify()
        self._threads.notify()

    def close(self, reason: Exception) -> None:
        self._loop.close(reason)
        self._threads.close(reason)

    def _loop_is_free(self) -> bool:
        """False while a batch runs on the same cores, or while the next batch is full already."""
        if self._on_cpu and self._admission.running:
            return False
        decoded, most = self._decoded, self._max_batch
        return len(decoded) < most or sum(not other.in_thread and other.left == 1 for other in decoded) < most

    def _loop_has_room(self, request: Undecoded) -> bool:
        room = self._max_batch - (self._admission.undecoded - self._admission.in_threads - len(self._loop))
        return len(self._decoded) < room or self._samples_ahead_of(request, most=1) < room

    def _thread_is_free(self) -> bool:
        """True also for one request more than threads: a thread that is done finds it though the event loop is busy."""
        return self._in_threads < 2 * self._decoders

    def _threads_have_room(self, request: Undecoded) -> bool:
        """A long request counts as the samples that one thread must make for a batch: there are about as many of them
        as threads, so that the engine always has work."""
        most = math.ceil(self._max_batch / self._decoders)
        return self._samples_ahead_of(request, most=most) + self._in_threads < self._max_batch + self._decoders

    def _samples_ahead_of(self, request: Undecoded, *, most: int) -> int:
        """Decoded samples, at most ``most`` of each request, that will hardly let ``request`` go first.

        Those are requests of one sample, and requests not much larger. The event loop's requests take no room from the
        threads', nor the other way round.
        """
        return sum(
            min(other.left, most)
            for other in self._decoded
            if other.in_thread == request.in_thread and (other.left == 1 or other.size <= 2 * request.size)
        )

    @property
    def _in_threads(self) -> int:
        """Requests that threads decode or will next; without those whose client has left, which end soon."""
        return self._admission.in_threads - len(self._threads)
