"""What uvicorn's protocol lacks.

Answers in one piece, and a batch's together: uvicorn writes head and body one after the other, and uvloop sends each at
once. That is two calls of the kernel and two packets, and wakes the client twice; and of clients on the same machine
each that is woken while the next answer is made takes the core from it.

Whether the client is still there: ASGI tells it only to who waits for it, which takes a task for every request. And
whether all of the body is there, so that nobody has to set an alarm before it is read.

A client may send many requests before it reads an answer. Nothing more of it is read before those that have come are
answered, all but the last: uvicorn reads on whenever somebody asks for a body, though all of it be there.

A connection that is closed for being at rest while a request waits in it, unread, would lose that request: uvloop looks
at its timers before it reads.

Who was refused and comes again at once, on the same connection, is not read at once: a thousand such clients would
keep a core busy with nothing but refusing them. What is not read costs nothing, and in the end TCP holds it back.

A request that begins to come may be another worker's: ``passes_on`` is asked, and gives it away with its connection.
One whose head is there may have to stay outside: ``turns_away`` is asked, and what it says is the answer.
"""

import asyncio
import select
import socket
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, ClassVar, cast

import uvicorn
from uvicorn import config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.throttle import Throttle

PassesOn = Callable[[asyncio.Transport, bytes, int], bool]  # a connection, what came of it, requests in hand beside it
# Method, target and headers of a request -> the answer's head, but for what is the connection's, and its body.
TurnsAway = Callable[[bytes, bytes, Sequence[tuple[bytes, bytes]]], tuple[bytes, bytes] | None]
_CONNECTION, _WHOLE = "convserve.connection", "convserve.whole"
# Refusals a second after which a worker reads on at once: each takes 0.1 to 0.25 ms of the cores. A second's worth more
# may come before: all who come are refused while a burst is worked off, and are others than came before. Nobody is kept
# for longer than the shortest time after which they are asked to come again.
_REFUSALS_HZ, _REFUSALS_AT_ONCE, _MOST_SECONDS = 1000, 1000, 1.0


class Gathered:
    """A transport that holds back what is written first until more comes, or the event loop's turn ends; and where
    ``others`` will be answered, too, all that is written until then."""

    def __init__(self, transport: asyncio.Transport, others: Callable[[], bool]) -> None:
        self._transport, self._others = transport, others
        self._held = b""
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes) -> None:
        first = not self._held
        self._held += data
        if first:
            self._loop.call_soon(self._flush)
        elif not self._others():
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    @property
    def sent(self) -> bool:
        """Whether the kernel has all that was written."""
        return not self._held and not self._transport.get_write_buffer_size()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._held and not self._transport.is_closing():
            self._transport.write(self._held)
        self._held = b""


class _Flow(FlowControl):
    """Reads on only while ``wanted``."""

    def __init__(self, transport: asyncio.Transport, wanted: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._wanted = wanted

    def resume_reading(self) -> None:
        if self._wanted():
            super().resume_reading()


class _Answered:
    """In the place of uvicorn's cycle, for a request that had none."""

    response_complete, body = True, b""

    def __init__(self) -> None:
        self.message_event = asyncio.Event()


class Protocol(HttpToolsProtocol):
    """uvicorn's, on such a transport, and in every scope. ``received`` is what another worker has read already."""

    passes_on: PassesOn = staticmethod(lambda transport, received, in_hand: False)
    turns_away: TurnsAway = staticmethod(lambda method, target, headers: None)
    in_hand: ClassVar[set["Protocol"]] = set()  # those whose request is not answered yet, or not even whole
    refusals: ClassVar[Throttle] = Throttle(_REFUSALS_HZ, at_once=_REFUSALS_AT_ONCE, most_seconds=_MOST_SECONDS)
    left: asyncio.Future[None]  # done when the client has left

    def __init__(self, *args: Any, received: bytes = b"", **options: Any) -> None:
        super().__init__(*args, **options)
        self._received, self._amid = received, False  # a request
        self.refused = False  # the client was told to come again later
        self.access_log = False  # a line that nobody reads would be made for each answer: the middleware has one

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.left = self.loop.create_future()
        super().connection_made(cast(asyncio.Transport, Gathered(transport, self._others)))
        self.flow = _Flow(self.transport, lambda: not self.pipeline)
        self._rest()
        if self._received:
            super().data_received(self._received)
            self._received = b""
            self.loop.call_soon(self._pause)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.in_hand.discard(self)
        self.left.set_result(None)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._amid = True
        self.scope["extensions"] = {_CONNECTION: self}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        if self._at_rest() and not self.parser.should_upgrade():
            answer = self.turns_away(self.parser.get_method(), self.url, self.headers)
            if answer is not None:
                self._answer(*answer)
                return
        super().on_headers_complete()
        if self.cycle and not self.cycle.response_complete:  # it is no upgrade, which another protocol would end
            self.in_hand.add(self)

    def on_response_complete(self) -> None:
        self.in_hand.discard(self)
        super().on_response_complete()
        if not self.transport.is_closing():
            self.flow.resume_reading()  # the last of those that have come may not be whole
        if self.refused:
            self.refused = False
            if seconds := self.refusals.seconds():
                self.loop.call_soon(self._hold, seconds)  # once all is done with that would read on

    def on_body(self, body: bytes) -> None:
        if self.cycle is None or self.cycle.response_complete:
            return
        if not self.cycle.body:
            self.cycle.body = b""  # type: ignore[assignment]  # a first piece is neither copied into it nor out of it
        elif isinstance(self.cycle.body, bytes):
            self.cycle.body = bytearray(self.cycle.body)  # to which thousands of small ones can be added
        super().on_body(body)

    def data_received(self, data: bytes) -> None:
        if not self._amid and self._passed_on(data):
            self.transport.abort()
            return
        super().data_received(data)
        # It ended the timer for connections at rest, which only answers start. Of a head that came in part the rest may
        # never come, nor that of a body whose request was answered before.
        if self._at_rest() and self in self.connections and not self.transport.is_closing():
            self._rest()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._amid = False
        self.scope["extensions"][_WHOLE] = True  # type: ignore[assignment]
        self.flow.resume_reading()  # nobody asks for more of the body, which would go on reading what was paused

    def timeout_keep_alive_handler(self) -> None:
        """Where the event loop is late, and not the client, its next request is there, and only unread."""
        if not _readable(self.transport):
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """What is at rest ends, but for a request that is there, and only unread: its answer will say that it ends."""
        if not (self._at_rest() and _readable(self.transport)):
            super().shutdown()

    def _rest(self) -> None:
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _others(self) -> bool:
        return len(self.in_hand) > 1

    def _at_rest(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _answer(self, head: bytes, body: bytes) -> None:
        """To a request whose body nobody wants, even if it still comes."""
        self.cycle = _Answered()  # type: ignore[assignment]
        stays = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
        ours = b"".join([b"%b: %b\r\n" % header for header in self.server_state.default_headers])
        self.refused = True
        self.transport.write(head + ours + (b"\r\n" if stays else b"connection: close\r\n\r\n") + body)
        if not stays:
            self.transport.close()
        self.on_response_complete()

    def _hold(self, seconds: float) -> None:
        if not self.transport.is_closing():
            self.flow.pause_reading()
            self.loop.call_later(seconds, self._let_go)

    def _let_go(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _passed_on(self, data: bytes) -> bool:
        if not (self._at_rest() and self.scheme == "http" and cast(Gathered, self.transport).sent):
            return False
        return self.passes_on(self.transport, data, len(self.in_hand))

    def _pause(self) -> None:
        """uvloop pauses nothing before it has begun to read, which is after ``connection_made``."""
        if self.flow.read_paused:
            self.transport.pause_reading()


def _readable(transport: asyncio.BaseTransport) -> bool:
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def take(server: uvicorn.Server, connection: socket.socket, received: bytes) -> None:
    """Serves a connection that another worker has accepted, and ``received`` of it."""
    loop, tasks = asyncio.get_running_loop(), server.server_state.tasks

    def protocol() -> Protocol:
        return Protocol(
            config=server.config,
            server_state=server.server_state,
            app_state=server.lifespan.state,
            received=received,
            _loop=loop,
        )

    task = loop.create_task(loop.connect_accepted_socket(protocol, connection))
    task.add_done_callback(tasks.discard)
    tasks.add(task)  # type: ignore[arg-type]  # which a server that stops waits for, as it does for requests


def left(scope: MutableMapping[str, Any]) -> asyncio.Future[None] | None:
    """Done when the client of this request has left; None where the server does not tell."""
    return connection.left if (connection := _connection(scope)) else None


def whole(scope: MutableMapping[str, Any]) -> bool:
    """Whether all of this request's body has come; False, too, where the server does not tell."""
    return _WHOLE in scope.get("extensions", {})


def refused(scope: MutableMapping[str, Any]) -> None:
    """The client of this request is about to be told to come again later."""
    if connection := _connection(scope):
        connection.refused = True


def _connection(scope: MutableMapping[str, Any]) -> Protocol | None:
    found: Protocol | None = scope.get("extensions", {}).get(_CONNECTION)
    return found


def use(passes_on: PassesOn, turns_away: TurnsAway) -> None:
    """For all servers that this process makes from now on. BentoML lets nobody choose a protocol, and takes the one
    that is called auto."""
    Protocol.passes_on, Protocol.turns_away = staticmethod(passes_on), staticmethod(turns_away)
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Protocol.__name__}"
