"""Open-loop load against a small server that keeps its own count. Nothing here is about how long anything takes."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from benchmarks.contestants import Post
from benchmarks.endurance import mixed_rates, tally
from benchmarks.openloop import BROKEN, Outcome, Sender, Stream, arrivals, patient, percentile

POST = Post("/classify?timeout_ms=2", b"\r\n\r\nbody" * 300, {"Content-Type": "image/jpeg"})
Answering = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(answer: Answering) -> AsyncIterator[Sender]:
    """A server that reads whole requests and lets ``answer`` write what it likes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await answer(head + await reader.readexactly(length), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    serving: list[asyncio.Task[None] | None] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    sender = Sender(server.sockets[0].getsockname()[1])
    try:
        yield sender
    finally:
        sender.close()
        server.close()
        await asyncio.gather(*filter(None, serving))


def said(status: int, body: bytes = b"[]") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Type: a\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


async def test_what_the_server_counts_is_what_is_told() -> None:
    heard: Counter[bytes] = Counter()
    statuses: Counter[int] = Counter()

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        heard[request.split(b"\r\n")[0]] += 1
        assert request.endswith(b"\r\n\r\n" + POST.body)
        status = (200, 200, 503)[heard.total() % 3]
        statuses[status] += 1
        whole = said(status, bytes(5000))
        writer.write(whole[:20])  # an answer may come in pieces, broken within its head
        await asyncio.sleep(0)
        writer.write(whole[20:])

    streams = [Stream("fast", POST, 300.0), Stream("slow", Post("/video", POST.body, {}), 30.0)]
    due = Counter(name for _, name in arrivals(streams, 0.5))
    async with listening(answer) as sender:
        outcomes = await sender.send(streams, 0.5)
    assert Counter(outcome.stream for outcome in outcomes) == due
    assert heard == {b"POST /classify?timeout_ms=2 HTTP/1.1": due["fast"], b"POST /video HTTP/1.1": due["slow"]}
    assert Counter(outcome.status for outcome in outcomes) == statuses


async def test_a_connection_that_is_dropped_is_no_answer() -> None:
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with listening(answer) as sender:
        outcomes = await sender.send([Stream("a", POST, 100.0)], 0.1)
    assert outcomes
    assert {outcome.status for outcome in outcomes} == {BROKEN}


async def test_nobody_listens() -> None:
    async with listening(lambda request, writer: asyncio.sleep(0)) as sender:
        pass
    assert await sender.ask(b"POST / HTTP/1.1\r\n\r\n") == BROKEN


async def test_recovery_is_five_good_answers_in_a_row() -> None:
    statuses = [503, 200, 200, 503, 200, 200, 200, 200, 200, 503]
    asked = iter(statuses)

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(said(next(asked)))

    async with listening(answer) as sender:
        seconds = await sender.recover(POST, usual_seconds=30, limit_seconds=60)
    assert next(asked) == 503  # the tenth was not asked
    assert 0 < seconds < 60


async def test_usual_is_what_takes_a_lone_client_long_but_not_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    takes = iter([*range(100, 50, -1), *range(1, 51)])

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal now
        now += next(takes)
        writer.write(said(200))

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    async with listening(answer) as sender:
        assert await sender.usual(POST, probes=100) == 96
    assert next(takes, None) is None


async def test_a_lone_client_that_is_refused_does_not_load_the_machine() -> None:
    asked = 0

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.write(said(503))

    async with listening(answer) as sender:
        assert await sender.recover(POST, usual_seconds=30, limit_seconds=0.5) == 0.5
    assert 1 <= asked <= 26, "one in 20 ms"


def test_arrivals_are_a_poisson_process_and_the_same_each_time() -> None:
    streams = [Stream("a", POST, 100.0), Stream("b", POST, 10.0)]
    times = list(arrivals(streams, 50.0))
    assert times == sorted(times) == list(arrivals(streams, 50.0))
    counts = Counter(name for _, name in times)
    assert abs(counts["a"] - 5000) < 4 * 5000**0.5
    assert abs(counts["b"] - 500) < 4 * 500**0.5


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 3.0
    assert percentile(list(range(1, 101)), 0.99) == 100
    assert percentile([], 0.5) != percentile([], 0.5)  # NaN


def test_answers_that_come_after_the_end_make_no_rate() -> None:
    outcomes = [
        Outcome("a", 200, due=0.0, seconds=0.5),
        Outcome("a", 200, due=1.0, seconds=1.0),
        Outcome("a", 200, due=1.9, seconds=0.2),
        Outcome("a", 503, due=1.5, seconds=0.004),
        Outcome("a", 504, due=1.5, seconds=2.0),
        Outcome("a", BROKEN, due=1.5, seconds=2.0),
    ]
    told = tally(outcomes, seconds=2.0)
    assert told["good_per_second"] == 1.0
    assert [told[name] for name in ("sent", "good", "refused", "late", "failed")] == [6, 3, 1, 1, 1]
    assert told["refusal_p99_ms"] == pytest.approx(4.0)
    assert "refusal_p99_ms" not in tally(outcomes[:3], seconds=2.0)


def test_classes_share_the_machine_as_stated() -> None:
    """A class's share of the machine is its rate over what it could do alone."""
    pictures, clips = mixed_rates([900.0, 50.0], share=0.1)
    assert clips / (pictures + clips) == pytest.approx(0.1)
    assert pictures / 900 + clips / 50 == pytest.approx(0.6)
    assert mixed_rates([1000.0, 50.0], share=None) == pytest.approx([300.0, 15.0])


async def test_a_saturated_server_is_asked_by_so_many_at_a_time_and_its_good_answers_are_counted() -> None:
    asked, most, good = 0, 0, 0

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal asked, most, good
        asked += 1
        most = max(most, asked)
        await asyncio.sleep(0.01)
        asked -= 1
        status = 200 if most % 2 else 503
        good += status == 200
        writer.write(said(status))

    async with listening(answer) as sender:
        rate = await sender.saturate(POST, connections=5, seconds=0.5)
    assert most == 5
    assert good - 5 <= rate * 0.5 <= good


async def test_an_answer_that_ends_its_connection_is_read_to_its_end() -> None:
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        head, _, body = said(200, bytes(5000)).partition(b"\r\n\r\n")
        writer.write(head + b"\r\nConnection: close\r\n\r\n")
        await asyncio.sleep(0.01)
        writer.write(body)
        await writer.drain()
        writer.close()

    async with listening(answer) as sender:
        outcomes = await sender.send([Stream("a", POST, 100.0)], 0.2)
    assert outcomes
    assert {outcome.status for outcome in outcomes} == {200}


def test_a_patient_sender_is_one_only_meanwhile() -> None:
    with suppress(ZeroDivisionError), patient():
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
        raise ZeroDivisionError
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
