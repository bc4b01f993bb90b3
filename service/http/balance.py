"""Balance of connections over workers.

All workers accept from one socket, and whichever is quicker takes a connection for good, as clients keep theirs: one of
two workers may hold nearly all of them, and one that was started afresh none. So each worker writes how many it has
where the others see it, and one with clearly more than its share ends some with their next answers (``Connection:
close``). Those clients connect again, mostly to a worker with less to do.
"""

import mmap
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SECONDS_BETWEEN_REPORTS = 0.1
_MOST_AT_ONCE = 2  # connections that end between two reports, so that the others' counts can follow
_SLACK = 0.25  # of a fair share
_SILENT_SECONDS = 1.0  # a worker that has reported nothing for so long is dead, or hangs


class _Row(NamedTuple):
    """A worker's report."""

    connections: int
    reported_at: float  # monotonic seconds


_ROW = struct.Struct("qd")


class ConnectionBalance:
    """One worker's view; worker ``index`` counts from 0. ``file`` is shared by all ``workers``.

    ``open_connections`` says how many this worker has.
    """

    def __init__(
        self,
        file: Path,
        workers: int,
        index: int,
        open_connections: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index, self._clock = index, clock
        self._open_connections = open_connections
        with file.open("a+b") as shared:
            shared.truncate(workers * _ROW.size)
            self._table = mmap.mmap(shared.fileno(), workers * _ROW.size)
        self.report()  # a dead worker of this number had others, which are closed

    def report(self) -> None:
        row = _Row(self._open_connections(), self._clock())
        _ROW.pack_into(self._table, self._index * _ROW.size, *row)

    def surplus(self) -> int:
        """Reports, and returns how many connections should end before the next report."""
        self.report()
        rows = [_Row(*row) for row in _ROW.iter_unpack(self._table[:])]
        alive = [row for row in rows if self._clock() - row.reported_at < _SILENT_SECONDS]
        mine, fewest = rows[self._index].connections, min(row.connections for row in alive)
        fair = sum(row.connections for row in alive) / len(alive)
        if mine > fair * (1 + _SLACK) and mine > fewest + 1:
            return min(max(1, int(mine - fair)), _MOST_AT_ONCE)
        return 0
