"""HTTP connections: uvicorn's protocol, with the bounds that it lacks. See docs/decisions/connection-layer.md.

A connection that sends nothing is closed after the keep-alive time, from its first moment on. A request's head may be
64 KiB and 100 fields large and take ten seconds; else the client could hold memory and a descriptor for ever.
"""

import asyncio
from typing import Any, ClassVar

from pydantic_core import to_json
from uvicorn import config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MAX_HEAD_BYTES = 64 * 1024
_MAX_HEAD_FIELDS = 100
_HEAD_SECONDS = 10.0


class Connection(HttpToolsProtocol):
    """One connection. ``open_count`` is how many this process has."""

    open_count: ClassVar[int] = 0
    keep_alive_seconds: ClassVar[int] = 120

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.timeout_keep_alive = self.keep_alive_seconds
        self.access_log = False  # the service has one of its own
        self._in_head, self._head_bytes = False, 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        Connection.open_count += 1
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        Connection.open_count -= 1
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > _MAX_HEAD_BYTES or len(self.headers) > _MAX_HEAD_FIELDS:
            self._refuse(431, "Request Header Fields Too Large", "the request's head is larger than the limit")
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._head_is_late)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(408, "Request Timeout", f"the request's head was not complete after {_HEAD_SECONDS:g} s")

    def _refuse(self, status: int, reason: str, detail: str) -> None:
        """Answers with a problem document, unless an earlier request on this connection is being answered; closes."""
        if self.cycle is None or self.cycle.response_complete:
            body = to_json({"type": "about:blank", "title": reason, "status": status, "detail": detail})
            head = (
                f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/problem+json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode("ascii") + body)
        self.transport.close()


def install(keep_alive_seconds: int) -> None:
    """Makes it the protocol of all servers in this process. BentoML makes uvicorn's configuration, and lets nobody
    choose: it takes the one that is called auto."""
    Connection.keep_alive_seconds = keep_alive_seconds
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"
