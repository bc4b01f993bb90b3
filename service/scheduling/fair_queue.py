"""Queue with virtual finish times: short requests before long ones, and none waits for ever.

If two long requests alternate, both take as long as both together; one after the other, the first is done in half of
that and the second no later. A short one should wait for neither. So each goes when it would be done if all that wait
had an even share of the service: the finish numbers of fair queueing (A. Demers, S. Keshav and S. Shenker, "Analysis
and simulation of a fair queueing algorithm", SIGCOMM 1989), each request being one packet.

Requests served before their virtual finish time stay active until then: else the clock would run ahead, and new short
requests would come behind all long ones. A new request takes the place of such a one; else clients that ask again at
once would slow the clock down, and long requests would starve.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable, Iterator
from heapq import heappop, heappush
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)
_Key = tuple[float, int]  # the virtual finish time, and the order of arrival among equals


class FairQueue(Generic[T]):
    """Items with their work, in whatever unit; iterates in the order of service.

    Its clock shows the even share of an item that has waited from the beginning.
    """

    def __init__(self) -> None:
        self._clock = 0.0
        self._keys: dict[T, _Key] = {}
        self._queue: list[tuple[_Key, T]] = []  # sorted
        self._active: list[float] = []  # virtual finish times of items served before them; a heap
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, item: T) -> bool:
        return item in self._keys

    def __iter__(self) -> Iterator[T]:
        return iter([item for _, item in self._queue])

    def add(self, item: T, work: float) -> None:
        self._keys[item] = key = (self._clock + work, next(self._numbers))
        insort(self._queue, (key, item))
        if self._active and self._active[0] <= key[0]:
            heappop(self._active)

    def advance(self, work: float) -> None:
        """Advances the clock by ``work`` that was done for items that wait or have just left."""
        while self._active and self._active[0] <= self._clock:
            heappop(self._active)
        self._clock += work / max(1, len(self._queue) + len(self._active))

    def remove(self, item: T, *, served: bool = False) -> None:
        """Removes an item that has had all its work (``served``) or gives up; does nothing for one that is gone."""
        if key := self._keys.pop(item, None):
            del self._queue[bisect_left(self._queue, (key,))]
            if not self._queue:
                self._active.clear()
            elif served and key[0] > self._clock:
                heappush(self._active, key[0])

    def first(self) -> T:
        return self._queue[0][1]

    def ahead_of(self, work: float) -> list[T]:
        """Items that would be served before a new one of so much work."""
        return [item for _, item in self._queue[: bisect_right(self._queue, ((self._clock + work, math.inf),))]]

    def clear(self) -> None:
        self._keys.clear()
        self._queue.clear()
        self._active.clear()
