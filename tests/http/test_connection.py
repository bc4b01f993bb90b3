"""Connections as clients meet them: uvicorn with our protocol on a port of its own, and the running service."""

import asyncio
import contextlib
import inspect
import json
import re
import socket
from collections.abc import AsyncIterator, Callable

import httptools
import pytest
import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http import connection
from service.http.connection import Connection
from tests.serving import Server

both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body; on /later after a moment, on /early at once and without reading it."""
    body, more = b"", scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    if scope["path"] == "/later":
        await asyncio.sleep(0.2)
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def serving(app: ASGIApp = echo) -> AsyncIterator[int]:
    """Serves ``app`` as BentoML does: by uvicorn, on a socket that is handed to it. Yields the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, http=Connection, lifespan="off", log_config=None))
        with contextlib.suppress(asyncio.CancelledError):
            running = asyncio.create_task(server.serve([listener]))
            try:
                async with asyncio.timeout(20):
                    while not server.started:
                        await asyncio.sleep(0.01)
                    yield listener.getsockname()[1]
            finally:
                server.should_exit = True
                await running


def post(path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: there", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length, head
    return int(head.split()[1]), await reader.readexactly(int(length[1]))


async def refusal(reader: asyncio.StreamReader) -> str:
    """The detail of a problem, after which the connection ends."""
    async with asyncio.timeout(10):
        status, body = await answer(reader)
        assert await reader.read() == b""
    problem = json.loads(body)
    assert problem["status"] == status
    return f"{status} {problem['detail']}"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections may be idle for half a second only."""
    monkeypatch.setattr(Connection, "keep_alive_seconds", 0.5)


@pytest.fixture
def quick_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads may take half a second only."""
    monkeypatch.setattr(Connection, "head_seconds", 0.5)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads may have 500 bytes and 10 fields."""
    monkeypatch.setattr(Connection, "max_head_bytes", 500)
    monkeypatch.setattr(Connection, "max_head_fields", 10)


FIELDS = "\r\n".join(f"X-{number}: y" for number in range(20))
LARGE_HEADS = {
    "one long value": post("/", b"", f"X-Long: {'x' * 600}"),
    "a long path": post("/" + "x" * 600),
    "many fields": post("/", b"", FIELDS),
    "a value without an end": post("/", b"", f"X-Long: {'x' * 1_000}")[:-4],
    "many fields without an end": post("/", b"", FIELDS)[:-2],
}


@pytest.mark.parametrize("head", LARGE_HEADS.values(), ids=LARGE_HEADS)
@pytest.mark.parametrize("pieces", [1, 3], ids=["at once", "in pieces"])
async def test_a_head_that_is_too_large_is_431(head: bytes, pieces: int, small: None) -> None:
    if pieces == 1 and head is LARGE_HEADS["a value without an end"]:
        pieces = 2  # the rest of it is awaited: it may be the end
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        size = -(-len(head) // pieces)
        for start in range(0, len(head), size):
            writer.write(head[start : start + size])
            await asyncio.sleep(0.05)
        if pieces == 2:
            writer.write(b"x" * 300)
        assert await refusal(reader) == "431 the request's head is larger than 500 bytes or 10 fields"
        writer.close()


async def test_a_body_is_no_part_of_the_head_that_follows_it(small: None) -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        second = post("/", b"second")
        for _ in range(3):
            writer.write(post("/", bytes(10_000)) + second[:10])
            assert await answer(reader) == (200, bytes(10_000))
            writer.write(second[10:])
            assert await answer(reader) == (200, b"second")
        writer.close()


@pytest.mark.parametrize("before", [b"", post("/", b"first")], ids=["the first", "a later one"])
async def test_a_head_that_comes_too_slowly_is_408(before: bytes, quick_heads: None) -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(before + b"POST / HTTP/1.1\r\nHost: ")
        if before:
            assert await answer(reader) == (200, b"first")
        for _ in range(3):
            await asyncio.sleep(0.02)
            writer.write(b"x")  # every byte is activity, and none of it ends the head
        assert await refusal(reader) == "408 the request's head was not complete after 0.5 s"
        writer.close()


async def test_no_refusal_stands_in_an_answer_that_has_begun(quick_heads: None) -> None:
    begun = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        begun.set()
        await receive()
        await receive()  # until the client is gone

    async with serving(slow) as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post("/") + b"POST / HTTP/1.1\r\n")
        await begun.wait()
        assert (await reader.read()).endswith(b"\r\n\r\na")
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"\r\n\r\n"], ids=["nothing", "an empty line", "empty lines"])
async def test_a_connection_without_a_request_ends(sent: bytes, quick: None) -> None:
    async with serving() as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert await reader.read() == b""
        writer.close()


@both_loops
def test_a_connection_ends_when_it_has_been_idle(run: Callable[..., None], quick: None) -> None:
    async def conversation() -> None:
        async with serving() as port, asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3):
                writer.write(post("/", b"more"))
                assert await answer(reader) == (200, b"more")
            assert await reader.read() == b""
            writer.close()

    run(conversation())


@pytest.mark.parametrize("sent", [0, 50_000, 100_000], ids=["head", "half", "all"])
async def test_a_connection_whose_request_was_answered_early_ends_when_nothing_comes(sent: int, quick: None) -> None:
    async with serving() as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = post("/early", bytes(100_000))
        head = len(request) - 100_000
        for end in (100_000, sent):  # it is kept for the next
            writer.write(request[:head])
            assert await answer(reader) == (200, b"")
            writer.write(request[head : head + end])
        assert await reader.read() == b""
        writer.close()


async def test_a_connection_is_not_idle_while_its_request_is_answered(quick: None) -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = post("/later", b"whole")
        writer.write(request[:-1])
        await asyncio.sleep(0.6)
        writer.write(request[-1:])
        assert await answer(reader) == (200, b"whole")
        writer.close()


@both_loops
def test_pipelined_requests_are_answered_in_order(run: Callable[..., None]) -> None:
    async def conversation() -> None:
        async with serving() as port, asyncio.timeout(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            paths = ["/later", "/", "/early", *["/"] * 17]
            writer.write(b"".join(post(path, b"number %d" % number) for number, path in enumerate(paths)))
            for number, path in enumerate(paths):
                expected = b"" if path == "/early" else b"number %d" % number
                assert await answer(reader) == (200, expected)
            writer.close()

    run(conversation())


BROKEN = {
    "no HTTP": b"nonsense\r\n\r\n",
    "a body in pieces of no size": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nmany\r\n",
}


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN)
async def test_what_is_not_http_is_400(sent: bytes) -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert await refusal(reader) == "400 this is not HTTP"
        writer.close()


async def test_open_connections_are_counted() -> None:
    async with serving() as port, asyncio.timeout(10):
        writers = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(3)]
        upgraded = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        writers[0].write(upgraded)  # and refused, by an app that has no WebSocket
        while connection.open_connections() != 3:
            await asyncio.sleep(0.01)
        for left, writer in enumerate(writers):
            writer.close()
            while connection.open_connections() != 2 - left:
                await asyncio.sleep(0.01)


# --- what is relied on of uvicorn: these fail where a release changes it ---


def test_servers_that_choose_no_protocol_get_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn.config, "HTTP_PROTOCOLS", dict(uvicorn.config.HTTP_PROTOCOLS))
    monkeypatch.setattr(Connection, "keep_alive_seconds", 120)
    connection.install(keep_alive_seconds=7)
    config = uvicorn.Config(echo, log_config=None)
    config.load()
    assert config.http_protocol_class is Connection
    assert Connection.keep_alive_seconds == 7


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("connection_made", ["self", "transport"]),
        ("connection_lost", ["self", "exc"]),
        ("data_received", ["self", "data"]),
        ("on_message_begin", ["self"]),
        ("on_headers_complete", ["self"]),
        ("send_400_response", ["self", "msg"]),
        ("timeout_keep_alive_handler", ["self"]),
    ],
)
def test_uvicorns_protocol_has_the_methods_that_ours_overrides_or_calls(method: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(HttpToolsProtocol, method)).parameters) == parameters


async def test_uvicorns_protocol_has_the_attributes_that_ours_uses() -> None:
    config = uvicorn.Config(echo, log_config=None)
    config.load()
    state = uvicorn.server.ServerState()
    made = HttpToolsProtocol(config=config, server_state=state, app_state={})
    assert made.connections is state.connections
    assert made.cycle is None and made.timeout_keep_alive_task is None and not made.pipeline
    assert isinstance(made.timeout_keep_alive, int) and isinstance(made.access_log, bool)
    made.on_message_begin()
    assert made.url == b"" and made.headers == []
    cycle = set(inspect.signature(httptools_impl.RequestResponseCycle).parameters)
    assert {"scope", "keep_alive", "on_response"} <= cycle
    source = inspect.getsource(httptools_impl.RequestResponseCycle.__init__)
    for name in ("response_started", "response_complete", "more_body"):
        assert f"self.{name} = " in source


def test_what_a_callback_raises_is_an_error_of_the_parser() -> None:
    """And so is answered by ``send_400_response``."""
    assert issubclass(httptools.HttpParserCallbackError, httptools.HttpParserError)
    assert "except httptools.HttpParserError:" in inspect.getsource(HttpToolsProtocol.data_received)


def _of_service(server: Server, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(request)
        received = b""
        while block := client.recv(65536):
            received += block
    return received


def test_the_running_service_has_these_limits(server: Server) -> None:
    for head in (f"X-Long: {'x' * 70_000}", "\r\n".join(f"X-{number}: y" for number in range(120))):
        refused = _of_service(server, post("/classify", b"", head))
        assert refused.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert b"larger than 65536 bytes or 100 fields" in refused
    allowed = _of_service(server, post("/classify", b"", f"X-Long: {'x' * 60_000}", "Connection: close"))
    assert b"/problems/empty-body" in allowed
