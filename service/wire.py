"""What uvicorn's protocol lacks.

An answer in one piece: uvicorn writes its head and its body one after the other, and uvloop sends each at once. That is
two calls of the kernel and two packets, and wakes the client twice.

Whether the client is still there: ASGI tells it only to who waits for it, which takes a task for every request. And
whether all of the body is there, so that nobody has to set an alarm before it is read.
"""

import asyncio
from collections.abc import MutableMapping
from typing import Any, cast

from uvicorn import config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_LEFT, _WHOLE = "convserve.left", "convserve.whole"


class Gathered:
    """A transport that holds back what is written first until more comes, or the event loop's turn ends."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held = b""
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes) -> None:
        if self._held:
            self._held += data
            self._flush()
        else:
            self._held = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._held and not self._transport.is_closing():
            self._transport.write(self._held)
        self._held = b""


class Protocol(HttpToolsProtocol):
    """uvicorn's, on such a transport, with a future in every scope that is done when the client has left."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.access_log = False  # a line that nobody reads would be made for each answer: service.access has one

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._left = self.loop.create_future()
        super().connection_made(cast(asyncio.Transport, Gathered(transport)))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._left.set_result(None)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {_LEFT: self._left}  # type: ignore[dict-item]

    def on_body(self, body: bytes) -> None:
        if self.cycle and not self.cycle.body:
            self.cycle.body = b""  # type: ignore[assignment]  # a first piece is neither copied into it nor out of it
        elif self.cycle and isinstance(self.cycle.body, bytes):
            self.cycle.body = bytearray(self.cycle.body)  # to which thousands of small ones can be added
        super().on_body(body)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # It ended the timer for connections at rest, which only answers start. After what was answered before its body
        # was all there none may ever come.
        answered = self.cycle is not None and self.cycle.response_complete
        at_rest = answered and self in self.connections and not self.transport.is_closing()
        if at_rest and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.scope["extensions"][_WHOLE] = True  # type: ignore[assignment]
        if not self.pipeline:  # nobody asks for more of the body, which would go on reading what was paused
            self.flow.resume_reading()


def left(scope: MutableMapping[str, Any]) -> asyncio.Future[None] | None:
    """Done when the client of this request has left; None where the server does not tell."""
    found: asyncio.Future[None] | None = scope.get("extensions", {}).get(_LEFT)
    return found


def whole(scope: MutableMapping[str, Any]) -> bool:
    """Whether all of this request's body has come; False, too, where the server does not tell."""
    return _WHOLE in scope.get("extensions", {})


def use() -> None:
    """For all servers of this process. BentoML lets nobody choose a protocol, and takes the one that is called auto."""
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Protocol.__name__}"
