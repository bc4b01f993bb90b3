"""Whose media is decoded next: it becomes samples shortly before the engine takes them, and not all at once.

What is quick is decoded on the event loop, on a CPU between two batches: meanwhile each would push the other out of the
caches. What is slow is decoded in threads, the smaller first. Of either no more is decoded than the next batch takes,
by threads one more for each; a long request makes samples for many batches, and keeps others as long waiting as bytes,
but not the shortest.
"""

import math
from typing import Any, Protocol

from service.scheduling.admission import Admission
from service.scheduling.fair_queue import Line
from service.scheduling.gate import Turns

_TURN_SECONDS = 0.0025  # for which quick media are decoded one after the other before the event loop sees to others


class Request(Protocol):
    @property
    def size(self) -> int: ...  # bytes

    @property
    def slow(self) -> bool: ...  # it is decoded in a thread

    @property
    def at_once_seconds(self) -> float: ...  # else for how long on the event loop

    @property
    def left(self) -> int: ...  # once it is decoded, samples that no batch has taken yet


class Decoding:
    """Gives requests their turn. ``decoded`` are those that wait for the engine, and ``admission`` counts the others;
    ``changed`` has to be called after each change to either. ``on_cpu`` says that the engine runs on the cores that
    decode; ``max_batch`` samples at a time. ``decoders`` are the threads."""

    def __init__(
        self, decoded: Line[Any], admission: Admission, *, max_batch: int, decoders: int, on_cpu: bool
    ) -> None:
        self._decoded, self._admission = decoded, admission
        self._max_batch, self._decoders, self._on_cpu = max_batch, decoders, on_cpu
        self._quick: Turns[Request] = Turns(self._loop_is_free, self._loop_has_room, _TURN_SECONDS)
        self._slow: Turns[Request] = Turns(self._thread_is_free, self._threads_have_room, math.inf)

    async def turn(self, request: Request) -> None:
        """Until it is its; raises what ``end`` was given."""
        if request.slow:
            await self._slow.wait(request, request.size, 0.0)
        else:
            seconds = request.at_once_seconds
            await self._quick.wait(request, seconds + self._admission.pace.inference.value, seconds)

    def behind(self, size: int) -> int:
        """How many slow requests are decoded before one of so many bytes that would come now."""
        return self._slow.before(size) + self._in_threads

    def changed(self) -> None:
        self._quick.changed()
        self._slow.changed()

    def end(self, reason: Exception) -> None:
        """Nobody who waits gets a turn any more."""
        self._quick.end(reason)
        self._slow.end(reason)

    def _loop_is_free(self) -> bool:
        """No batch runs on the same cores, and what is decoded does not fill the next one already."""
        if self._on_cpu and self._admission.running:
            return False
        decoded, most = self._decoded, self._max_batch
        return len(decoded) < most or sum(not other.slow and other.left == 1 for other in decoded) < most

    def _loop_has_room(self, request: Request) -> bool:
        room = self._max_batch - (self._admission.undecoded - self._admission.slow - len(self._quick))
        return len(self._decoded) < room or self._before(request, most=1) < room

    def _thread_is_free(self) -> bool:
        """Or will be soon: each finds the next one when it is done, though the event loop be busy."""
        return self._in_threads < 2 * self._decoders

    def _threads_have_room(self, request: Request) -> bool:
        """A long request counts as what a decoder has to make for a batch: there are about as many of them as decoders,
        so that the engine always has something to do."""
        most = math.ceil(self._max_batch / self._decoders)
        return self._before(request, most=most) + self._in_threads < self._max_batch + self._decoders

    def _before(self, request: Request, *, most: int) -> int:
        """How much is decoded that will hardly let it go first, of each request ``most`` samples at most: what has one
        sample, and what is not much larger. What is quick takes no room from what is slow, nor the other way round."""
        return sum(
            min(other.left, most)
            for other in self._decoded
            if other.slow == request.slow and (other.left == 1 or other.size <= 2 * request.size)
        )

    @property
    def _in_threads(self) -> int:
        """Requests that are decoded there, or will be next; without those whose client has left, which end soon."""
        return self._admission.slow - len(self._slow)
