"""Who is decoded next: media become samples shortly before the engine takes them, and not all at once."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress


class Turns:
    """Lets those who wait go on in the order in which they came: no more than there is ``room`` for, and in one turn of
    the event loop no more than it takes to hold it up for ``seconds``. ``changed`` has to be called whenever there may
    be room again."""

    def __init__(self, room: Callable[[], int], seconds: float) -> None:
        self._room, self._seconds = room, seconds
        self._waiting: deque[tuple[asyncio.Future[None], float]] = deque()
        self._called = False  # whoever goes next does so in the next turn of the event loop
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, seconds: float) -> None:
        """Until it is the turn of the caller, who then holds the event loop up for ``seconds``; raises what ``end`` was
        given."""
        turn = self._loop.create_future()
        self._waiting.append((turn, seconds))
        self.changed()
        try:
            await turn
        except asyncio.CancelledError:
            with suppress(ValueError):  # its turn had come already
                self._waiting.remove((turn, seconds))
            raise

    def changed(self) -> None:
        if self._waiting and not self._called and self._room() > 0:
            self._called = True
            self._loop.call_soon(self._next)

    def end(self, reason: Exception) -> None:
        """Nobody who waits gets a turn any more."""
        for turn, _ in self._waiting:
            if not turn.done():
                turn.set_exception(reason)
        self._waiting.clear()

    def _next(self) -> None:
        self._called = False
        room, left = self._room(), self._seconds
        while self._waiting and room > 0:
            turn, seconds = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                room, left = room - 1, left - seconds
                if left <= 0:
                    break
        self.changed()
