"""Which worker answers whom: one that is at rest rather than one that works, and else each its share.

All workers accept from one socket, and whichever is quicker takes a connection for good, as clients keep theirs: one of
two workers may hold nearly all of them, and one that was started afresh none; two requests may meet in one worker while
the other does nothing. So each worker writes what it has where the others see it, and passes on a request that begins
to come, with its connection: to a worker that is at rest, if it is not so itself, or to the one with the fewest
connections, if it has clearly more than its share, until it has no more than that.
"""

import asyncio
import math
import mmap
import struct
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple, Protocol

from service.http.handoff import Handover

_REST_SECONDS = 0.001  # who is at rest for less has but answered: the next question is on its way
_SECONDS_BETWEEN = 0.02  # two looks at the shares
_SLACK = 0.1  # of a fair share, that nobody minds
_SECONDS_BETWEEN_WORDS = 0.2  # of a worker in which nothing happens
_SILENT_SECONDS = 1.0  # who has said nothing for so long is dead, or hangs: nobody gives it anything


class State(Protocol):
    @property
    def connections(self) -> Collection[object]: ...


class Server(Protocol):
    """What of uvicorn's server is needed."""

    @property
    def should_exit(self) -> bool: ...

    @property
    def server_state(self) -> State: ...


class Row(NamedTuple):
    """What a worker tells the others; times are monotonic seconds."""

    connections: int
    at_rest_since: float  # infinity while it works
    told_at: float


_ROW = struct.Struct("qdd")  # a Row


class Connections:
    """One worker's view. ``file`` is shared by all ``workers``."""

    def __init__(self, file: Path, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._workers, self._clock = file, workers, clock
        self._rows = struct.Struct(workers * _ROW.format)
        self._server: Server | None = None
        self._handover: Handover | None = None
        self._looked_at = self._at_rest_since = clock()
        self._leaving = self._has_too_many = False

    def watch(self, server: Server, index: int, handover: Handover | None = None) -> None:
        """``server`` is that of worker number ``index``, from 0. Until this is called, and without ``handover``,
        nothing is passed on."""
        with self._file.open("a+b") as shared:
            shared.truncate(self._workers * _ROW.size)
            self._table = mmap.mmap(shared.fileno(), self._workers * _ROW.size)
        self._server, self._index, self._handover = server, index, handover
        self.tell()  # what a worker that died had is nobody's any more

    def send_away(self) -> None:
        """From now on every answer ends its connection: only with an answer can HTTP/1.1 tell a client to go."""
        self._leaving = True
        if self._server is not None:
            self.tell()

    def closes(self) -> bool:
        """Whether the connection that an answer is about to go to ends with it."""
        return self._leaving or (self._server is not None and self._server.should_exit)

    def working(self, works: bool) -> None:
        """Whether there is anything to do, from now on. Who but waits for a slow client's body is at rest."""
        self._at_rest_since = math.inf if works else self._clock()
        if self._server is not None:
            self.tell()

    def tell(self) -> None:
        """What this worker has, from now on also where the others see it."""
        assert self._server is not None
        at_rest_since = math.inf if self.closes() else self._at_rest_since
        self._write(self._index, Row(len(self._server.server_state.connections), at_rest_since, self._clock()))

    async def keep_telling(self) -> None:
        """For a worker in which nothing happens: what it had last would count as its share, and it as dead."""
        while True:
            self.tell()
            await asyncio.sleep(_SECONDS_BETWEEN_WORDS)

    def pass_on(self, transport: asyncio.BaseTransport, received: bytes, in_hand: int) -> bool:
        """Whether the request that begins with ``received`` went to another worker, with its connection: then the
        caller only aborts its ``transport``. This worker has ``in_hand`` requests beside it."""
        if self._workers == 1 or self._handover is None or self.closes():
            return False
        taker = self.taker(in_hand)
        if taker is None:
            return False
        given = self._handover.give(taker, transport.get_extra_info("socket").fileno(), received)
        # Both will say so themselves, but the next may come here before. Who is not there is taken to be silent.
        mine, its = self._row(self._index), self._row(taker)
        self._write(self._index, mine._replace(connections=mine.connections - given))
        self._write(taker, Row(its.connections + given, math.inf, its.told_at if given else 0.0))
        return given

    def taker(self, in_hand: int) -> int | None:
        """The worker that should rather have a request that begins to come here, where ``in_hand`` are already."""
        now = self._clock()
        look = now - self._looked_at >= _SECONDS_BETWEEN
        if not (look or self._has_too_many or (in_hand and self._somebody_rests(now))):
            return None
        if look:
            self._looked_at = now
            self.tell()
        rows = [Row(*row) for row in _ROW.iter_unpack(self._table[:])]
        others = [
            index for index, row in enumerate(rows) if index != self._index and now - row.told_at < _SILENT_SECONDS
        ]
        if not others:
            return None
        mine, fair = rows[self._index].connections, sum(row.connections for row in rows) / self._workers
        if look:
            self._has_too_many = mine > fair * (1 + _SLACK)
        rested = min(others, key=lambda index: rows[index].at_rest_since)
        if in_hand and now - rows[rested].at_rest_since >= _REST_SECONDS:
            return rested
        fewest = min(others, key=lambda index: rows[index].connections)
        return fewest if self._has_too_many and mine > max(fair, rows[fewest].connections + 1) else None

    def _somebody_rests(self, now: float) -> bool:
        """Asked of every request under load: so nothing is made of the rows."""
        since: float = min(self._rows.unpack_from(self._table)[1::3])
        return now - since >= _REST_SECONDS

    def _row(self, index: int) -> Row:
        return Row(*_ROW.unpack_from(self._table, index * _ROW.size))

    def _write(self, index: int, row: Row) -> None:
        _ROW.pack_into(self._table, index * _ROW.size, *row)
