"""Who goes next: short before long, but nobody waits for ever.

If two long requests take turns, both take as long as both together; one after the other, the first is done in half of
that, and the second no later. But a short one should not wait for either. So everybody goes when they would be done if
all who wait had an even share of what is served: the finish numbers of fair queueing (A. Demers, S. Keshav and
S. Shenker, "Analysis and simulation of a fair queueing algorithm", SIGCOMM 1989), each request being one packet.

Who was served before their number would be here yet, and have their share until then: else the clock would run ahead,
and newcomers with little work would come behind all who have much. A newcomer takes the place of such a one; else
clients who come again at once would slow the clock down, and those with much work would wait for ever.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable, Iterator
from heapq import heappop, heappush
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)
_Key = tuple[float, int]  # the finish number, and one by which of equals the first comes first


class Line(Generic[T]):
    """Those who wait, with the work that they bring, in whatever unit; iterating gives them in order.

    Its clock shows the even share of somebody who has waited from the beginning.
    """

    def __init__(self) -> None:
        self._clock = 0.0
        self._keys: dict[T, _Key] = {}
        self._line: list[tuple[_Key, T]] = []  # sorted
        self._early: list[float] = []  # finish numbers of those who have left before them; a heap
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._line)

    def __contains__(self, item: T) -> bool:
        return item in self._keys

    def __iter__(self) -> Iterator[T]:
        return iter([item for _, item in self._line])

    def join(self, item: T, work: float) -> None:
        self._keys[item] = key = (self._clock + work, next(self._numbers))
        insort(self._line, (key, item))
        if self._early and self._early[0] <= key[0]:
            heappop(self._early)

    def served(self, work: float) -> None:
        """Some of those who wait, or have just left, were, with so much together."""
        while self._early and self._early[0] <= self._clock:
            heappop(self._early)
        self._clock += work / max(1, len(self._line) + len(self._early))

    def leave(self, item: T, *, served: bool = False) -> None:
        """It has had all its work, if it was ``served``, or gives up; who does not wait may leave, too."""
        if key := self._keys.pop(item, None):
            del self._line[bisect_left(self._line, (key,))]
            if not self._line:
                self._early.clear()
            elif served and key[0] > self._clock:
                heappush(self._early, key[0])

    def first(self) -> T:
        return self._line[0][1]

    def before(self, work: float) -> list[T]:
        """Those of them who go before somebody who would come now with so much."""
        return [item for _, item in self._line[: bisect_right(self._line, ((self._clock + work, math.inf),))]]

    def clear(self) -> None:
        self._keys.clear()
        self._line.clear()
        self._early.clear()
