"""What is true of every request, whichever way it takes: an id, a count, a duration, a line in the access log, and an
answer even where a bug left none. A plain ASGI middleware around BentoML's routes and ours alike."""

import functools
import logging
import random
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from service.errors import REFUSALS, InternalError, ServiceError
from service.repository.card import MEDIA_OF_TASK
from service.telemetry.access_log import AccessLog
from service.telemetry.metrics import count_refusal, observe_request
from service.telemetry.stages import STAGES, Stopwatch, now

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

failures = logging.getLogger("convserve.failures")
PROBLEM_JSON = "application/problem+json"
_TIMING = ", ".join(f"{stage};dur=%.3f" for stage in STAGES).encode()  # milliseconds
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_KEY = "convserve"
_UNKNOWN = "unknown"  # the endpoint of every path that does not exist, so that no client can make series
_FIXED = {
    *(f"/{task}" for task in MEDIA_OF_TASK),
    *(f"/bento/{task}" for task in MEDIA_OF_TASK),
    *("/", "/models", "/metrics", "/docs", "/openapi.json", "/livez", "/readyz", "/healthz"),
}
_WITH_NAME = {"/models/": "/models/{name}", "/problems/": "/problems/{slug}"}


@dataclass
class Visit:
    """One request, as its log line and its trace tell it. Routes add the model once it is known; a call has a watch."""

    request_id: str
    endpoint: str
    began: float = field(default_factory=now)
    status: int = 0
    model: str = ""
    watch: Stopwatch | None = None


def visit(scope: Scope) -> Visit:
    found: Visit = scope[_KEY]
    return found


def endpoint_of(path: str) -> str:
    """The route's template: a label that takes few values."""
    if path in _FIXED:
        return path
    return next((template for prefix, template in _WITH_NAME.items() if path.startswith(prefix)), _UNKNOWN)


def problem(error: ServiceError, request_id: str) -> dict[str, Any]:
    """RFC 9457."""
    return {
        "type": f"/problems/{error.slug}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "request_id": request_id,
    }


def cost(stages: Mapping[str, float], batch_size: int) -> list[tuple[bytes, bytes]]:
    """The headers that tell what a request took; ``stages`` in seconds."""
    timing = _TIMING % tuple([seconds * 1000 for seconds in stages.values()])
    return [(b"x-batch-size", b"%d" % batch_size), (b"server-timing", timing)]


class Access:
    """Writes to ``log``, where there is one. ``closes`` is asked, for each answer, whether its connection ends with it;
    ``trace`` is told of each request that is over."""

    def __init__(
        self,
        app: App,
        *,
        log: AccessLog | None = None,
        closes: Callable[[], bool] = lambda: False,
        trace: Callable[[Scope, Visit], None] | None = None,
    ) -> None:
        self.app, self.log, self.closes, self.trace = app, log, closes, trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        this = scope[_KEY] = Visit(request_id(scope["headers"]), endpoint_of(scope["path"]))

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                this.status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", this.request_id.encode("ascii"))]
                message["headers"] = [*headers, (b"connection", b"close")] if self.closes() else headers
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception:  # the last line of defence: without an answer, BentoML would let the client wait for minutes
            failures.exception("request %s failed", this.request_id)
            if not this.status:
                count_refusal(this.endpoint, InternalError.slug)
                await _send_problem(
                    sending, InternalError("see the service's log under this request_id"), this.request_id
                )
        finally:
            self.record(scope, this)

    def record(self, scope: Scope, this: Visit) -> None:
        """A request that is over: counts, log and trace."""
        seconds = now() - this.began
        observe_request(this.endpoint, this.status, seconds)
        if self.trace:
            self.trace(scope, this)
        if self.log:
            line = {
                "time": _second(int(time.time())),
                "request_id": this.request_id,
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": this.status,
                "milliseconds": round(seconds * 1000, 3),
                "model": this.model or None,
            }
            self.log.write(line)


@functools.lru_cache(1)
def _second(now: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's, if it sent a sane one."""
    for name, value in headers:
        if name == b"x-request-id" and _SANE_ID.fullmatch(given := value.decode("latin-1")):
            return str(given)
    return f"{random.getrandbits(128):032x}"


async def _send_problem(send: Send, error: ServiceError, request_id: str) -> None:
    assert error.slug in REFUSALS
    body = to_json(problem(error, request_id))
    headers = [(b"content-type", PROBLEM_JSON.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def set_up_logging() -> None:
    """Access lines are JSON on standard output, and nothing else is; everything else of ours goes to standard error."""
    ours = logging.getLogger("convserve")
    notes = logging.StreamHandler(sys.stderr)
    notes.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours.handlers, ours.propagate = [notes], False
    ours.setLevel(logging.INFO)
