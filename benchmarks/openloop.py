"""Open-loop load: requests are sent when they are due, whether or not the server has answered the ones before.

Latency counts from the moment at which a request was due, so that a server that makes the sender wait is not flattered
(Tene's coordinated omission). Arrivals are a Poisson process, the same one each time.
"""

import asyncio
import contextlib
import functools
import gc
import heapq
import itertools
import os
import random
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from benchmarks.contestants import Post

GOOD, REFUSED, LATE, BROKEN = 200, 503, 504, 0
_MAX_CONNECTIONS = 8000
_DRAIN_SECONDS = 30
_SEED = 0
_IN_A_ROW = 5
_BETWEEN_PROBES_SECONDS = 0.02  # refused at once and asking again at once, a lone client would keep a core busy
_TICK_SECONDS = 0.002  # what is due before the next is sent together with it
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LAST = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
Answered = Callable[[int], None]


@dataclass(frozen=True)
class Stream:
    """Requests of one kind, so many a second."""

    name: str
    post: Post
    rate_hz: float


class Outcome(NamedTuple):
    stream: str
    status: int  # of HTTP; BROKEN where there was no answer
    due: float  # in seconds from the beginning
    seconds: float  # from then to the answer


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def encoded(post: Post, port: int) -> bytes:
    """The request as it is sent."""
    lines = [f"POST {post.path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(post.body)}"]
    lines += [": ".join(header) for header in post.headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + post.body


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Meanwhile this process waits for its turn of the cores, which it shares with the server, rather than interrupt it
    for each answer and each request that is due: elsewhere it could not. Its waiting is part of every latency. Nor does
    it go through all that it remembers for garbage, of which it makes none."""
    before = os.sched_getscheduler(0)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        os.sched_setscheduler(0, before, os.sched_param(0))


class _Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, idle: "list[_Connection]") -> None:
        self._idle = idle
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._missing = 0  # bytes of the body, once the head is there
        self._status = 0
        self._last = False  # the server closes the connection after this answer
        self._answered: Answered | None = None

    def ask(self, request: bytes, answered: Answered) -> None:
        """``answered`` is told the status, or BROKEN."""
        assert self._transport is not None
        self._answered = answered
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._status:
            self._missing -= len(data)
        else:
            self._received += data
            head, end, body = self._received.partition(b"\r\n\r\n")
            if not end:
                return
            self._received = b""
            length = _LENGTH.search(head)
            self._status = int(head.split(b" ", 2)[1])
            self._missing = int(length[1]) - len(body) if length else 0
            self._last = _LAST.search(head) is not None
        if self._missing <= 0:
            status, self._status = self._status, 0
            if not self._last:
                self._idle.append(self)
            elif self._transport is not None:
                self._transport.close()
            self._finish(status)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        self._finish(BROKEN)

    def _finish(self, status: int) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(status)


class Sender:
    """Keeps connections to one server on 127.0.0.1, as many as are needed at once. It works by callbacks, without a
    task for each request: what it takes of the machine, the server does not have."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[_Connection] = []
        self._all: list[_Connection] = []
        self._connecting: set[asyncio.Task[None]] = set()

    async def ask(self, request: bytes) -> int:
        """The answer's status, or BROKEN."""
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._ask(request, answer.set_result)
        return await answer

    def _ask(self, request: bytes, answered: Answered) -> None:
        if self._idle:
            self._idle.pop().ask(request, answered)
        elif len(self._all) >= _MAX_CONNECTIONS:
            answered(BROKEN)
        else:
            connecting = asyncio.create_task(self._ask_another(request, answered))
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)

    async def _ask_another(self, request: bytes, answered: Answered) -> None:
        connection = _Connection(self._idle)
        self._all.append(connection)
        try:
            await asyncio.get_running_loop().create_connection(lambda: connection, "127.0.0.1", self._port)
        except OSError:
            answered(BROKEN)
        else:
            connection.ask(request, answered)

    async def send(self, streams: Sequence[Stream], seconds: float) -> list[Outcome]:
        """Every request of ``streams`` that is due within ``seconds``; returns when all are answered or given up."""
        requests = {stream.name: encoded(stream.post, self._port) for stream in streams}
        due = deque(arrivals(streams, seconds))
        due_by_name = Counter(name for _, name in due)
        outcomes: list[Outcome] = []
        number, complete, loop = len(due), asyncio.Event(), asyncio.get_running_loop()

        def answered(name: str, at: float, status: int) -> None:
            outcomes.append(Outcome(name, status, at, time.perf_counter() - began - at))
            if len(outcomes) == number:
                complete.set()

        def ask_who_is_due() -> None:
            passed = time.perf_counter() - began
            while due and due[0][0] <= passed:
                at, name = due.popleft()
                self._ask(requests[name], functools.partial(answered, name, at))
            if due:
                loop.call_later(max(due[0][0] - passed, _TICK_SECONDS), ask_who_is_due)

        began = time.perf_counter()
        try:
            async with asyncio.timeout(seconds + _DRAIN_SECONDS):
                if number:
                    ask_who_is_due()
                    await complete.wait()
        except TimeoutError:  # what is not answered by now counts as broken
            told = Counter(outcome.stream for outcome in outcomes)
            for name, sent in due_by_name.items():
                outcomes += [Outcome(name, BROKEN, seconds, _DRAIN_SECONDS)] * (sent - told[name])
        return list(outcomes)

    async def saturate(self, post: Post, connections: int, seconds: float) -> float:
        """Good answers per second when each of so many connections asks again as soon as it is answered."""
        request, end = encoded(post, self._port), time.perf_counter() + seconds

        async def client() -> int:
            good = 0
            while (status := await self.ask(request)) and time.perf_counter() < end:
                good += status == GOOD
            return good

        return sum(await asyncio.gather(*(client() for _ in range(connections)))) / seconds

    async def usual(self, post: Post, probes: int = 100) -> float:
        """Seconds in which a lone client is answered 95 times of a hundred. It asks as ``recover`` does, after a pause,
        which leaves no cache warm: that takes twice as long as one question after the other."""
        request = encoded(post, self._port)
        return percentile([(await self._probe(request))[1] for _ in range(probes)], 0.95)

    async def recover(self, post: Post, usual_seconds: float, *, limit_seconds: float) -> float:
        """Seconds until a lone client is answered as usual again: well, and in at most twice ``usual_seconds``, five
        times in a row. At most ``limit_seconds``."""
        request, began, in_a_row, first = encoded(post, self._port), time.perf_counter(), 0, 0.0
        while (asked := time.perf_counter()) - began < limit_seconds:
            status, seconds = await self._probe(request)
            first = first if in_a_row else asked - began
            in_a_row = in_a_row + 1 if status == GOOD and seconds <= 2 * usual_seconds else 0
            if in_a_row == _IN_A_ROW:
                return first
        return limit_seconds

    async def _probe(self, request: bytes) -> tuple[int, float]:
        """Status and seconds; returns after a pause."""
        asked = time.perf_counter()
        status = await self.ask(request)
        seconds = time.perf_counter() - asked
        await asyncio.sleep(_BETWEEN_PROBES_SECONDS)
        return status, seconds

    def close(self) -> None:
        for connection in self._all:
            connection.close()


def arrivals(streams: Sequence[Stream], seconds: float) -> Iterator[tuple[float, str]]:
    """When which stream's next request is due, in order, in seconds from the beginning."""
    return heapq.merge(*(_poisson(stream, seconds) for stream in streams))


def _poisson(stream: Stream, seconds: float) -> Iterator[tuple[float, str]]:
    generator = random.Random(f"{stream.name} {_SEED}")
    times = itertools.accumulate(generator.expovariate(stream.rate_hz) for _ in itertools.count())
    return ((at, stream.name) for at in itertools.takewhile(lambda at: at < seconds, times))
