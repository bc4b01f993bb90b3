"""The oracle is uvicorn's own protocol: the same requests must be answered with the same bytes."""

import asyncio
import contextlib
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http import connection as wire
from service.http.handoff import LARGEST
from service.http.middleware import App, Message, Receive, Scope, Send


class Kept:
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("others", [False, True])
async def test_head_and_body_are_one_piece_that_waits_only_for_others(others: bool) -> None:
    kept = Kept()
    transport = wire.Gathered(kept, lambda: others)  # type: ignore[arg-type]
    for before in (0, 1):
        transport.write(b"head ")
        assert len(kept.sent) == before and not transport.sent
        transport.write(b"body")
        assert len(kept.sent) == before + (not others) and transport.sent is not others
        await asyncio.sleep(0)
        assert kept.sent == [b"head body"] * (before + 1) and transport.sent


async def test_what_nothing_follows_is_sent_when_the_turn_ends() -> None:
    kept = Kept()
    transport = wire.Gathered(kept, lambda: False)  # type: ignore[arg-type]
    transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    await asyncio.sleep(0)
    assert kept.sent == [b"HTTP/1.1 100 Continue\r\n\r\n"]


async def test_closing_sends_what_is_held_and_nothing_is_sent_after_it() -> None:
    kept = Kept()
    transport = wire.Gathered(kept, lambda: False)  # type: ignore[arg-type]
    transport.write(b"last")
    transport.close()
    assert (kept.sent, kept.closed) == ([b"last"], True)
    transport.write(b"too late")
    await asyncio.sleep(0)
    assert kept.sent == [b"last"]


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it was sent; /slowly in pieces, of which the second waits for a byte of the request's body."""
    if scope["type"] != "http":
        return
    close = [(b"connection", b"close")] if scope["path"] == "/last" else []
    message: Message = await receive()
    if scope["path"] == "/slowly":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"], "more_body": True})
        message = await receive()
        await send({"type": "http.response.body", "body": message["body"]})
        return
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length, *close]})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def _serving(protocol: type[asyncio.Protocol], app: App = _app, patience: int = 5) -> AsyncIterator[int]:
    async with _running(protocol, app, patience) as server:
        yield server.servers[0].sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def _running(
    protocol: type[asyncio.Protocol], app: App = _app, patience: int = 5
) -> AsyncIterator[uvicorn.Server]:
    config = uvicorn.Config(
        app, http=protocol, lifespan="off", log_config=None, port=0, date_header=False, timeout_keep_alive=patience
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server._serve())  # without its signal handlers
    async with asyncio.timeout(20):
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield server
        finally:
            server.should_exit = True
            await running


def _post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: there", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


CONVERSATIONS = {
    "one after the other": [_post("/", b"first"), _post("/", b"second")],
    "pipelined": [b"".join(_post("/", f"number {number}".encode()) for number in range(20))],
    "nothing": [_post("/", b"")],
    "much": [_post("/", bytes(range(256)) * 20_000)],
    "many small pieces": [
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n2\r\nbc\r\n" * 5_000 + b"0\r\n\r\n"
    ],
    "close": [_post("/last", b"the end")],
    "head": [b"HEAD / HTTP/1.1\r\nHost: there\r\n\r\n"],
    "continue": [_post("/", b"asked first", "Expect: 100-continue")],
    "HTTP/1.0": [b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nold"],
    "upgrade": [b"GET / HTTP/1.1\r\nHost: there\r\nConnection: upgrade\r\nUpgrade: something\r\n\r\n"],
    "websocket": [b"POST / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc"],
    "broken": [b"nonsense\r\n\r\n"],
}


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
async def test_the_answers_are_those_of_uvicorn(conversation: list[bytes]) -> None:
    said = []
    for protocol in (HttpToolsProtocol, wire.Protocol):
        async with _serving(protocol) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for request in conversation:
                writer.write(request)
                await writer.drain()
            writer.write(_post("/last", b"bye"))
            said.append(await reader.read())
            writer.close()
    assert said[0] == said[1]
    assert re.match(rb"HTTP/1.1 (200 OK|100 Continue|400 (Bad Request)?)\r\n", said[1])
    assert not wire.Protocol.in_hand


def _with_sorted_heads(answers: bytes) -> list[list[bytes]]:
    return [sorted(answer.split(b"\r\n")) for answer in re.split(rb"(?=HTTP/1\.1 )", answers)]


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
async def test_who_is_turned_away_is_answered_as_by_an_app(
    conversation: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    length, body = (b"content-length", b"4"), b"full"
    away, let_in = list[tuple[bytes, bytes]](), list[str]()

    async def full(scope: Scope, receive: Receive, send: Send) -> None:
        let_in.append(scope["path"])
        await send({"type": "http.response.start", "status": 503, "headers": [length]})
        await send({"type": "http.response.body", "body": body})

    def turn_away(method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
        away.append((method, target))
        return b"HTTP/1.1 503 Service Unavailable\r\n%b: %b\r\n" % length, b"" if method == b"HEAD" else body

    said = []
    for protocol in (HttpToolsProtocol, wire.Protocol):
        let_in.clear()
        monkeypatch.setattr(wire.Protocol, "turns_away", staticmethod(turn_away))
        async with _serving(protocol, full) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for request in conversation:
                writer.write(request)
                await writer.drain()
            writer.write(_post("/last", b"bye", "Connection: close"))
            said.append(_with_sorted_heads(await reader.read()))
            writer.close()
    assert said[0] == said[1]
    odd = b"nonsense" in conversation[0] or b"upgrade" in conversation[0]  # which another protocol would see to
    assert odd or (away and not let_in)
    assert not wire.Protocol.in_hand


async def test_who_was_turned_away_may_ask_again_and_is_let_in_once_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = True

    def turn_away(method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, bytes] | None:
        assert (method, target, dict(headers)[b"host"]) == (b"POST", b"/?a=b", b"there")
        return (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n", b"") if full else None

    monkeypatch.setattr(wire.Protocol, "turns_away", staticmethod(turn_away))
    async with _serving(wire.Protocol, patience=1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = _post("/?a=b", b"ab")
        writer.write(request[:-2])
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 "), "before its body has come"
        full = False
        writer.write(request[-2:] + request)
        assert (await reader.readuntil(b"\r\n\r\nab")).startswith(b"HTTP/1.1 200 OK\r\n")
        full = True
        writer.write(request)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        async with asyncio.timeout(10):
            assert not await reader.read(), "it is closed for being at rest, as others are"
        writer.close()
        other, its = await asyncio.open_connection("127.0.0.1", port)
        its.write(request[:-2])
        await other.readuntil(b"\r\n\r\n")
        its.close()  # amid a request that is answered already


class Waits:
    """A throttle by which every refused client has to wait for so long."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self.asked = seconds, 0

    def seconds(self) -> float:
        self.asked += 1
        return self._seconds


def _turn_away(method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, bytes] | None:
    """From /full only."""
    return (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n", b"") if target == b"/full" else None


async def _refuses(scope: Scope, receive: Receive, send: Send) -> None:
    """Every request, within."""
    wire.refused(scope)
    await _hasty(scope, receive, send)


async def _first_answered(*readers: asyncio.StreamReader) -> list[int]:
    """In which order heads come."""
    order = list[int]()

    async def head(number: int, reader: asyncio.StreamReader) -> None:
        await reader.readuntil(b"\r\n\r\n")
        order.append(number)

    await asyncio.gather(*(head(number, reader) for number, reader in enumerate(readers)))
    return order


@pytest.mark.parametrize("app", [_app, _refuses], ids=["at the door", "within"])
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_who_comes_again_at_once_after_a_refusal_is_heard_after_others(
    run: Callable[..., None], app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire.Protocol, "turns_away", staticmethod(_turn_away))
    throttle = Waits(2.0)
    monkeypatch.setattr(wire.Protocol, "refusals", throttle)

    async def client() -> None:
        async with _serving(wire.Protocol, app) as port, asyncio.timeout(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_post("/full", b"first"))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 "), "at once"
            writer.write(_post("/full", bytes(100_000)))
            other, its = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.sleep(0.2)
            its.write(_post("/", b""))
            assert await _first_answered(reader, other) == [1, 0]
            await asyncio.sleep(0.1)
            writer.write(_post("/last", b"bye", "Connection: close"))
            await reader.read()
            for one in (writer, its):
                one.close()

    run(client())
    assert throttle.asked == (2 if app is _app else 4), "for each refusal"


async def test_who_is_not_heard_yet_may_leave_or_end_with_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire.Protocol, "turns_away", staticmethod(_turn_away))
    monkeypatch.setattr(wire.Protocol, "refusals", Waits(0.5))
    complaints = list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    async with asyncio.timeout(20):
        async with _serving(wire.Protocol) as port:
            rests, its = await asyncio.open_connection("127.0.0.1", port)
            leaves, whose = await asyncio.open_connection("127.0.0.1", port)
            asks, his = await asyncio.open_connection("127.0.0.1", port)
            for reader, writer in ((rests, its), (leaves, whose), (asks, his)):
                writer.write(_post("/full", b""))
                await reader.readuntil(b"\r\n\r\n")
            whose.close()
            his.write(_post("/", b"again"))
            await asyncio.sleep(0.1)
        assert await rests.read() == b""
        assert (await asks.read()).endswith(b"again"), "what was there before the server stopped is answered"
        await asyncio.sleep(0.6)
        for writer in (its, his):
            writer.close()
    assert not complaints and not wire.Protocol.in_hand


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_of_requests_that_are_sent_ahead_only_a_few_are_read_ahead(run: Callable[..., None]) -> None:
    requests, size = 100, 20_000
    may_answer, waiting = asyncio.Semaphore(0), list[int]()

    async def counts(scope: Scope, receive: Receive, send: Send) -> None:
        first = await receive()
        await may_answer.acquire()
        waiting.append(len(scope["extensions"][wire._CONNECTION].pipeline))

        async def again() -> Message:
            return messages.pop() if messages else await receive()

        messages = [first]
        await _app(scope, again, send)

    async def client() -> None:
        async with _serving(wire.Protocol, counts) as port, asyncio.timeout(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"".join(_post("/", b"%6d" % number + bytes(size)) for number in range(requests)))
            for number in range(requests):
                await asyncio.sleep(0.005)  # in which more would be read
                may_answer.release()
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 OK\r\n")
                assert await reader.readexactly(6 + size) == b"%6d" % number + bytes(size)
            writer.close()

    run(client())
    assert len(waiting) == requests and 0 < max(waiting) <= 2 * LARGEST // size


async def test_an_answer_in_pieces_is_not_held_back() -> None:
    async with _serving(wire.Protocol) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = _post("/slowly", b"ab")
        writer.write(request[:-1])
        assert b"a\r\n" in await reader.readuntil(b"\r\na\r\n"), "before the rest of the body was sent"
        writer.write(request[-1:])
        assert await reader.readuntil(b"0\r\n\r\n") == b"1\r\nb\r\n0\r\n\r\n"
        writer.close()


@pytest.mark.parametrize(
    "size", [0, 10, 200_000, 5_000_000]
)  # reading is paused while more is unread than 65,536 bytes
async def test_the_scope_tells_when_the_client_has_left(size: int) -> None:
    received, left = asyncio.Event(), asyncio.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.1)  # meanwhile the body comes
        while (await receive())["more_body"]:
            pass
        leaving = wire.left(scope)
        assert leaving is not None and not leaving.done()
        received.set()
        await leaving
        left.set()

    async with _serving(wire.Protocol, waits) as port, asyncio.timeout(20):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_post("/", bytes(size)))
        await received.wait()
        writer.close()
        await left.wait()


async def test_the_scope_tells_when_all_of_the_body_has_come() -> None:
    told: list[bool] = []
    begun, sent = asyncio.Event(), asyncio.Event()

    async def reads(scope: Scope, receive: Receive, send: Send) -> None:
        told.append(wire.whole(scope))
        begun.set()
        await sent.wait()
        while (await receive())["more_body"]:
            pass
        told.append(wire.whole(scope))
        await _hasty({"path": "/"}, receive, send)

    async with _serving(wire.Protocol, reads) as port, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = _post("/", b"body")
        writer.write(request[:-1])
        await begun.wait()
        writer.write(request[-1:])
        sent.set()
        await reader.readuntil(b"\r\n\r\n")
        writer.write(request)
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert told == [False, True, True, True]


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\nHost: th"], ids=["nothing", "half a head"])
async def test_a_connection_whose_head_does_not_come_ends(sent: bytes) -> None:
    async with _serving(wire.Protocol, patience=1) as port, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert await reader.read() == b""
        writer.close()


async def test_a_head_in_pieces_has_as_long_after_each() -> None:
    request = _post("/", b"whole")
    async with _serving(wire.Protocol, patience=4) as port, asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for at in range(0, 40, 20):
            await asyncio.sleep(2.4)
            writer.write(request[at : at + 20])
        writer.write(request[40:])
        assert (await reader.readuntil(b"whole")).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()


async def _hasty(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers before the body is there; /patiently after two seconds."""
    if scope["path"] == "/patiently":
        await asyncio.sleep(2)
    await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("sent", [100, 50_000, 200_000], ids=["head", "half", "all"])
async def test_a_connection_whose_request_was_answered_early_ends_when_nothing_comes(sent: int) -> None:
    async with _serving(wire.Protocol, _hasty, patience=1) as port, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = _post("/", bytes(100_000))
        for end in (len(request), sent):  # it is kept for the next
            writer.write(request[:100])
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
            writer.write(request[100:end])
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_request_that_the_event_loop_was_too_busy_to_read_is_answered(run: Callable[..., None]) -> None:
    async def conversation() -> None:
        loop = asyncio.get_running_loop()
        bell, rope = socket.socketpair()
        with bell, rope, socket.socket() as client:
            client.setblocking(False)

            def reads_long() -> None:
                client.sendall(_post("/", b"second"))
                time.sleep(1.1)  # longer than a connection may be at rest
                loop.remove_reader(bell)

            async with _serving(wire.Protocol, patience=1) as port, asyncio.timeout(20):
                await loop.sock_connect(client, ("127.0.0.1", port))
                client.sendall(_post("/", b"first"))
                assert (await loop.sock_recv(client, 10_000)).endswith(b"\r\n\r\nfirst")
                loop.add_reader(bell, reads_long)
                rope.sendall(b"!")
                assert (await loop.sock_recv(client, 10_000)).endswith(b"\r\n\r\nsecond")
                assert await loop.sock_recv(client, 10_000) == b"", "it is closed once it is at rest"

    run(conversation())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_request_that_is_there_unread_when_the_server_stops_is_answered(run: Callable[..., None]) -> None:
    async def conversation() -> None:
        loop = asyncio.get_running_loop()
        async with _running(wire.Protocol) as server, asyncio.timeout(20):
            with socket.socket() as client:
                client.setblocking(False)
                await loop.sock_connect(client, server.servers[0].sockets[0].getsockname())
                client.sendall(_post("/", b"first"))
                assert (await loop.sock_recv(client, 10_000)).endswith(b"\r\n\r\nfirst")
                (connection,) = server.server_state.connections
                client.sendall(_post("/", b"second"))
                connection.shutdown()  # in the same turn of the event loop
                assert (await loop.sock_recv(client, 10_000)).endswith(b"\r\n\r\nsecond")
                connection.shutdown()
                assert await loop.sock_recv(client, 10_000) == b"", "what is at rest ends"

    run(conversation())


async def test_a_request_that_comes_with_the_rest_of_one_that_was_answered_early_is_answered() -> None:
    async with _serving(wire.Protocol, _hasty, patience=1) as port, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write((early := _post("/", bytes(1_000)))[:100])
        await reader.readuntil(b"\r\n\r\n")
        writer.write(early[100:] + _post("/patiently", b""))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        writer.close()


class Passing:
    """Gives requests to ``taker`` as another worker would, whenever there are as many in hand as are wanted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, taker: uvicorn.Server, at: int = 0) -> None:
        self.passed: list[bytes] = []
        self.asked: list[int] = []
        self._taker, self._at = taker, at
        monkeypatch.setattr(wire.Protocol, "passes_on", staticmethod(self._pass))

    def _pass(self, transport: asyncio.Transport, received: bytes, in_hand: int) -> bool:
        self.asked.append(in_hand)
        if in_hand < self._at:
            return False
        same = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        self.passed.append(received)
        wire.take(self._taker, same, received)
        return True


def _named(name: bytes) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """Says who it is, how much it was sent, and by whom."""
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message.get("more_body", False)
        said = b"%s got %d from %d" % (name, size, scope["client"][1])
        length = (b"content-length", b"%d" % len(said))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": said})

    return app


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))  # type: ignore[index]


@pytest.mark.parametrize("size", [0, 10, 60_000, 70_000, 300_000, 5_000_000])
async def test_a_request_that_is_passed_on_is_answered_by_the_other_on_the_same_connection(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = _running(wire.Protocol, _named(b"second"))
    async with second as taker, _serving(wire.Protocol, _named(b"first")) as port, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        me = writer.get_extra_info("sockname")[1]
        for passes in (False, True):
            if passes:
                passing = Passing(monkeypatch, taker)
            writer.write(_post("/", bytes(size)))
            await writer.drain()
            assert await _answer(reader) == b"%s got %d from %d" % (b"second" if passes else b"first", size, me)
        passing._at = 1
        for more in (1, 2):
            writer.write(_post("/", bytes(more)))
            assert await _answer(reader) == b"second got %d from %d" % (more, me)
        assert passing.asked == [0, 0, 0] and len(passing.passed) == 1
        writer.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_no_more_is_read_of_a_connection_that_was_passed_on_than_somebody_takes(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    async def reads_late(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.3)
        (asked,) = wire.Protocol.in_hand
        held.append(len(asked.cycle.body))
        await _named(b"second")(scope, receive, send)

    async def conversation() -> None:
        async with _running(wire.Protocol, reads_late) as taker, _serving(wire.Protocol) as port, asyncio.timeout(20):
            Passing(monkeypatch, taker)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_post("/", bytes(20_000_000)))
            assert (await _answer(reader)).startswith(b"second got 20000000")
            writer.close()

    run(conversation())
    assert held[0] < 1_000_000


async def test_what_is_amid_a_request_or_before_its_answer_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _running(wire.Protocol) as taker, _serving(wire.Protocol) as port, asyncio.timeout(20):
        passing = Passing(monkeypatch, taker, at=1)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        begun, other = await asyncio.open_connection("127.0.0.1", port)
        slowly = _post("/slowly", b"ab")
        other.write(slowly[:10])
        await asyncio.sleep(0.05)
        other.write(slowly[10:-1])
        await begun.readuntil(b"\r\na\r\n")
        writer.write(_post("/", b"while the first is in hand"))
        assert await _answer(reader) == b"while the first is in hand"
        other.write(slowly[-1:])
        await begun.readuntil(b"0\r\n\r\n")
        writer.write(_post("/", b"afterwards"))
        assert await _answer(reader) == b"afterwards"
        assert passing.asked == [0, 1, 0] and passing.passed == [_post("/", b"while the first is in hand")]
        writer.close()
        other.close()


async def test_who_left_is_no_longer_in_hand() -> None:
    received = asyncio.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        received.set()
        left = wire.left(scope)
        assert left is not None and len(wire.Protocol.in_hand) == 1
        await left

    async with _serving(wire.Protocol, waits) as port, asyncio.timeout(20):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_post("/", b""))
        await received.wait()
        writer.close()
        while wire.Protocol.in_hand:
            await asyncio.sleep(0.01)


def test_other_servers_do_not_tell_whether_the_client_has_left_or_sent_all() -> None:
    assert not wire.whole({}) and not wire.whole({"extensions": {}})
    assert wire.left({"type": "http"}) is None
    assert wire.left({"type": "http", "extensions": {}}) is None
    wire.refused({"type": "http"})


async def test_servers_that_choose_nothing_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn.config, "HTTP_PROTOCOLS", dict(uvicorn.config.HTTP_PROTOCOLS))
    monkeypatch.setattr(wire.Protocol, "passes_on", wire.Protocol.passes_on)
    monkeypatch.setattr(wire.Protocol, "turns_away", wire.Protocol.turns_away)
    wire.use(lambda transport, received, in_hand: False, lambda method, target, headers: None)
    config = uvicorn.Config(_app, log_config=None)
    config.load()
    assert config.http_protocol_class is wire.Protocol
