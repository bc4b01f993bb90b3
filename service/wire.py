"""An answer in one piece: uvicorn writes its head and its body one after the other, and uvloop sends each at once. That
is two calls of the kernel and two packets, and wakes the client twice."""

import asyncio
from typing import Any, cast

from uvicorn import config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


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

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._held and not self._transport.is_closing():
            self._transport.write(self._held)
        self._held = b""


class Protocol(HttpToolsProtocol):
    """uvicorn's, on such a transport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, Gathered(transport)))


def use() -> None:
    """For all servers of this process. BentoML lets nobody choose a protocol, and takes the one that is called auto."""
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Protocol.__name__}"
