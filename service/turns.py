"""Who is decoded next: media become samples shortly before the engine takes them, and not all at once."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from service.line import Line


@dataclass(eq=False, slots=True)
class _Turn:
    come: asyncio.Future[None]
    work: float
    seconds: float


class Turns:
    """Lets those who wait go on, in the order of their line: as long as there is ``room`` for the first one's work, and
    in one turn of the event loop no more than it takes to hold it up for ``seconds``. ``changed`` has to be called
    whenever there may be room again."""

    def __init__(self, room: Callable[[float], bool], seconds: float) -> None:
        self._room, self._seconds = room, seconds
        self._line: Line[_Turn] = Line()
        self._called = False  # whoever goes next does so in the next turn of the event loop
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._line)

    async def wait(self, work: float, seconds: float) -> None:
        """Until it is the turn of the caller, who then holds the event loop up for ``seconds``; raises what ``end`` was
        given."""
        turn = _Turn(self._loop.create_future(), work, seconds)
        self._line.join(turn, work)
        self.changed()
        try:
            await turn.come
        finally:
            self._line.leave(turn)

    def before(self, work: float) -> int:
        """How many go before somebody who would come now."""
        return len(self._line.before(work))

    def changed(self) -> None:
        if self._line and not self._called and self._room(self._line.first().work):
            self._called = True
            self._loop.call_soon(self._next)

    def end(self, reason: Exception) -> None:
        """Nobody who waits gets a turn any more."""
        for turn in self._line:
            if not turn.come.done():
                turn.come.set_exception(reason)
        self._line.clear()

    def _next(self) -> None:
        self._called = False
        left = self._seconds
        while self._line and left > 0:
            turn = self._line.first()
            if not self._room(turn.work):
                return
            self._line.served(turn.work, len(self._line))
            self._line.leave(turn)
            if not turn.come.done():
                turn.come.set_result(None)
                left -= turn.seconds
        self.changed()
