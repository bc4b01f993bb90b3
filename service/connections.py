"""Keeps the clients' connections spread over the workers, and sends the clients away before the worker stops.

All workers accept from one socket, and whichever is quicker takes a connection for good, as clients keep theirs: one of
two workers may hold nearly all of them, and one that was started afresh none. So each worker writes how many it has
where the others see it, and one that has clearly more than its share closes one after an answer, now and then; where
the client comes back, the others have more time to take it.
"""

import asyncio
import mmap
import struct
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

_SECONDS_BETWEEN = 0.02  # two that are closed, for the first one's client to arrive elsewhere
_SECONDS_BETWEEN_COUNTS = 0.5  # where there are no answers that would bring one about
_SLACK = 0.1  # of a fair share; and one connection
_COUNT = struct.Struct("q")


class State(Protocol):
    @property
    def connections(self) -> Collection[object]: ...


class Server(Protocol):
    """What of uvicorn's server is needed."""

    @property
    def should_exit(self) -> bool: ...

    @property
    def server_state(self) -> State: ...


class Connections:
    """One worker's view. ``file`` is shared by all ``workers``."""

    def __init__(self, file: Path, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._workers, self._clock = file, workers, clock
        self._server: Server | None = None
        self._looked_at = clock()
        self._leaving = False

    def watch(self, server: Server, index: int) -> None:
        """``server`` is that of worker number ``index``, from 0. Until this is called, nothing is closed."""
        with self._file.open("a+b") as shared:
            shared.truncate(self._workers * _COUNT.size)
            self._counts = mmap.mmap(shared.fileno(), self._workers * _COUNT.size)
        self._server, self._index = server, index
        self.count()  # what a worker that died had is nobody's any more

    def send_away(self) -> None:
        """From now on every answer ends its connection: only with an answer can HTTP/1.1 tell a client to go."""
        self._leaving = True

    def closes(self) -> bool:
        """Whether the connection that an answer is about to go to ends with it."""
        if self._server is None:
            return False
        if self._leaving or self._server.should_exit:
            return True
        now = self._clock()
        if now - self._looked_at < _SECONDS_BETWEEN:
            return False
        self._looked_at = now
        mine = self.count()
        share: float = sum(count for (count,) in _COUNT.iter_unpack(self._counts[:])) / self._workers
        return mine > share * (1 + _SLACK) + 1

    def count(self) -> int:
        """How many this worker has, from now on also where the others see it."""
        assert self._server is not None
        held = len(self._server.server_state.connections)
        _COUNT.pack_into(self._counts, self._index * _COUNT.size, held)
        return held

    async def keep_counting(self) -> None:
        """For a worker that has nothing to answer any more: what it had last would count as its share."""
        while True:
            self.count()
            await asyncio.sleep(_SECONDS_BETWEEN_COUNTS)
