"""Who goes next, where there is not always room."""

import asyncio
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

from service.scheduling.fair_queue import Line

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Turn(Generic[T]):
    come: asyncio.Future[None]
    item: T
    work: float
    seconds: float
    number: int  # in the order of coming


class Turns(Generic[T]):
    """Lets those who wait go on in the order of their line, as long as it is ``open`` and there is ``room`` for the
    first; where there is none, whoever has least work may go, if there is room for that. In one turn of the event loop
    no more go than it takes to hold it up for ``seconds``. ``changed`` has to be called whenever somebody may go again.
    """

    def __init__(self, open: Callable[[], bool], room: Callable[[T], bool], seconds: float) -> None:
        self._open, self._room, self._seconds = open, room, seconds
        self._line: Line[_Turn[T]] = Line()
        self._least: list[tuple[float, int, _Turn[T]]] = []  # the same, by work and number
        self._numbers = count()
        self._called = False  # whoever goes next does so in the next turn of the event loop
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._line)

    async def wait(self, item: T, work: float, seconds: float) -> None:
        """Until it is the turn of ``item``, which brings so much work, and then holds the event loop up for
        ``seconds``; raises what ``end`` was given."""
        turn = _Turn(self._loop.create_future(), item, work, seconds, next(self._numbers))
        self._line.join(turn, work)
        insort(self._least, (work, turn.number, turn))
        if turn is self._line.first() or turn is self._least[0][2]:  # else somebody would go before it
            self.changed()
        try:
            await turn.come
        finally:
            self._remove(turn)

    def before(self, work: float) -> int:
        """How many go before somebody who would come now."""
        return len(self._line.before(work))

    def changed(self) -> None:
        if not self._called and self._following():
            self._called = True
            self._loop.call_soon(self._next)

    def end(self, reason: Exception) -> None:
        """Nobody who waits gets a turn any more."""
        for turn in self._line:
            if not turn.come.done():
                turn.come.set_exception(reason)
        self._line.clear()
        self._least.clear()

    def _next(self) -> None:
        self._called = False
        left = self._seconds
        while left > 0 and (turn := self._following()):
            self._line.served(turn.work)
            self._remove(turn, served=True)
            if not turn.come.done():
                turn.come.set_result(None)
                left -= turn.seconds
        self.changed()

    def _following(self) -> _Turn[T] | None:
        if not self._line or not self._open():
            return None
        first = self._line.first()
        if self._room(first.item):
            return first
        least = self._least[0][2]
        return least if self._room(least.item) else None

    def _remove(self, turn: _Turn[T], *, served: bool = False) -> None:
        if turn in self._line:
            self._line.leave(turn, served=served)
            del self._least[bisect_left(self._least, (turn.work, turn.number))]
