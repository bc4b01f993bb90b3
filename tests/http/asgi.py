"""One request to an ASGI app, without a server."""

from collections.abc import Sequence
from typing import Any

import httpx
from starlette.types import ASGIApp, Message, Scope

Headers = Sequence[tuple[bytes, bytes]]


class Call:
    """What was sent to the app, and what it sent. ``received`` counts the messages that it asked for."""

    def __init__(self, path: str, *, method: str = "POST", headers: Headers = (), body: Sequence[bytes] = ()) -> None:
        path, _, query = path.partition("?")
        self.scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": list(headers),
        }
        self.received = 0
        self.sent: list[Message] = []
        self._body = list(body)

    async def receive(self) -> Message:
        self.received += 1
        if not self._body:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self._body.pop(0), "more_body": bool(self._body)}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def to(self, app: ASGIApp) -> httpx.Response:
        """The answer of ``app``."""
        await app(self.scope, self.receive, self.send)
        start: dict[str, Any] = dict(self.sent[0])
        assert start["type"] == "http.response.start"
        content = b"".join(message.get("body", b"") for message in self.sent[1:])
        return httpx.Response(start["status"], headers=start["headers"], content=content)
