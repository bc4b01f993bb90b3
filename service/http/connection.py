"""HTTP connections: uvicorn's protocol, with the bounds that it lacks. See docs/decisions/connection-layer.md.

A connection that sends nothing is closed after the keep-alive time, from its first moment on. A request's head may be
64 KiB and 100 fields large and take ten seconds; else the client could hold memory and a descriptor for ever.
"""

import asyncio
from collections.abc import Collection
from typing import Any, ClassVar

from pydantic_core import to_json
from uvicorn import config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class HeadTooLarge(Exception):
    """Raised within the parser, which ends there and has ``send_400_response`` called."""


class Connection(HttpToolsProtocol):
    """One connection. ``of_process`` are those of this process."""

    of_process: ClassVar[Collection[object]] = ()
    keep_alive_seconds: ClassVar[int] = 120
    max_head_bytes: ClassVar[int] = 64 * 1024
    max_head_fields: ClassVar[int] = 100
    head_seconds: ClassVar[float] = 10.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        Connection.of_process = self.connections
        self.timeout_keep_alive = self.keep_alive_seconds
        self.access_log = False  # the service has one of its own
        self._in_head, self._head_bytes, self._head_too_large = False, 0, False
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_keep_alive()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        began_before = self._in_head  # else a part of the data may belong to the request before
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data) if began_before else 0
            if self._head_bytes > self.max_head_bytes or len(self.headers) > self.max_head_fields:
                self._refuse_head()
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(self.head_seconds, self._head_is_late)
        elif self._is_idle() and self.timeout_keep_alive_task is None:
            self._start_keep_alive()

    def _is_idle(self) -> bool:
        """Returns whether all requests are answered, also one that was answered before its body came."""
        return self.cycle is None or self.cycle.response_complete

    def _awaits_body(self) -> bool:
        """Returns whether the only unanswered request is one whose body is still to come."""
        return self.cycle.more_body and not self.cycle.response_started and not self.pipeline

    def _start_keep_alive(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._end_head()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self.max_head_bytes or len(self.headers) > self.max_head_fields:
            self._head_too_large = True
            raise HeadTooLarge
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Called for what the parser cannot read, and where one of its callbacks raises."""
        if self._head_too_large:
            self._refuse_head()
        else:
            self._refuse(400, "Bad Request", "this is not HTTP")

    def _refuse_head(self) -> None:
        limits = f"{self.max_head_bytes} bytes or {self.max_head_fields} fields"
        self._refuse(431, "Request Header Fields Too Large", f"the request's head is larger than {limits}")

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(408, "Request Timeout", f"the request's head was not complete after {self.head_seconds:g} s")

    def _refuse(self, status: int, reason: str, detail: str) -> None:
        """Answers with a problem document, unless an earlier request on this connection is being answered; closes."""
        if self._is_idle() or self._awaits_body():
            body = to_json({"type": "about:blank", "title": reason, "status": status, "detail": detail})
            head = (
                f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/problem+json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode("ascii") + body)
        self.transport.close()


def install(keep_alive_seconds: int) -> None:
    """Makes it the protocol of all servers in this process.

    BentoML makes uvicorn's configuration, which names no protocol, so uvicorn takes the one called auto.
    """
    Connection.keep_alive_seconds = keep_alive_seconds
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"


def open_connections() -> int:
    return len(Connection.of_process)
