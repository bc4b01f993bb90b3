"""Who is decoded next: media become samples shortly before the engine takes them, and not all at once."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress


class Turns:
    """Lets those who wait go on in the order in which they came: one in each turn of the event loop, and only while
    ``open`` says that there is use in it. ``changed`` has to be called whenever that may have become so."""

    def __init__(self, open: Callable[[], bool]) -> None:
        self._open = open
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._called = False  # whoever goes next does so in the next turn of the event loop
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self) -> None:
        """Until it is the caller's turn; raises what ``end`` was given."""
        turn = self._loop.create_future()
        self._waiting.append(turn)
        self.changed()
        try:
            await turn
        except asyncio.CancelledError:
            with suppress(ValueError):  # its turn had come already
                self._waiting.remove(turn)
            raise

    def changed(self) -> None:
        if self._waiting and not self._called and self._open():
            self._called = True
            self._loop.call_soon(self._next)

    def end(self, reason: Exception) -> None:
        """Nobody who waits gets a turn any more."""
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(reason)
        self._waiting.clear()

    def _next(self) -> None:
        self._called = False
        if self._waiting and self._open() and not (turn := self._waiting.popleft()).done():
            turn.set_result(None)
        self.changed()
