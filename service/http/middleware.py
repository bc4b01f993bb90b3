"""The middleware chain, from the outside in: request id, access log, load shedding. All are plain ASGI.

BentoML's tracing and Starlette's error handling stand around it, BentoML's routes and ours within.
"""

import functools
import logging
import os
import random
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import InternalError
from service.http.problems import refusal
from service.http.state import State, task_routes
from service.telemetry.request import RequestContext, StageTimer, now, observe_request

failures = logging.getLogger("convserve.failures")
_STANDARD_OUTPUT = 1
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TIMEOUT = re.compile(rb"(?:^|&)timeout_ms=([1-9][0-9]{0,8})(?:&|$)")  # any other value is refused further in


class RequestId:
    """Gives each request an id and a context, and tells clients when their connection ends.

    ``endpoint_of`` maps a path to its route's template.
    """

    def __init__(self, app: ASGIApp, endpoint_of: Callable[[str], str], state: State) -> None:
        self.app, self.endpoint_of, self.state = app, endpoint_of, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        this = RequestContext(_request_id(scope), self.endpoint_of(scope["path"]))
        this.attach(scope)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                this.status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", this.request_id.encode("ascii"))]
                if self.state.draining or self.state.surplus_connections > 0:
                    self.state.surplus_connections -= 1
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
            await send(message)

        await self.app(scope, receive, sending)


def _request_id(scope: Scope) -> str:
    """Returns the client's, if it sent a sane one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_ID.fullmatch(given := value.decode("latin-1")):
            return str(given)
    return f"{random.getrandbits(128):032x}"


class AccessLog:
    """Counts, logs and traces each request once it is over; answers 500 where a bug left no answer.

    A log line is JSON on standard output; ``trace`` is called with the scope and the context.
    """

    def __init__(self, app: ASGIApp, log: bool, trace: Callable[[Scope, RequestContext], None] | None = None) -> None:
        self.app, self.log, self.trace = app, log, trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        this = RequestContext.of(scope)
        try:
            await self.app(scope, receive, send)
        except Exception:  # without an answer, BentoML would let the client wait for minutes
            failures.exception("request %s failed", this.request_id)
            if not this.status:
                error = InternalError("see the service's log under this request_id")
                await refusal(error, scope)(scope, receive, send)
        finally:
            seconds = now() - this.began
            observe_request(this, seconds)
            if self.trace:
                self.trace(scope, this)
            if self.log:
                _write_line(scope, this, seconds)


def _write_line(scope: Scope, this: RequestContext, seconds: float) -> None:
    line = {
        "time": _second(int(time.time())),
        "request_id": this.request_id,
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": this.status,
        "milliseconds": round(seconds * 1000, 3),
        "model": this.model or None,
    }
    with suppress(OSError):  # of a reader that is gone; a line is whole, as a pipe takes 4 KiB at once
        os.write(_STANDARD_OUTPUT, to_json(line) + b"\n")


@functools.lru_cache(1)
def _second(now: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))


class LoadShedding:
    """Refuses calls that no model can answer in time, with 503, before anything is read of their bodies."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state
        self._timeout_ms = state.settings.timeout_ms
        self._tasks = task_routes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pipeline = self.state.pipeline
        task = self._tasks.get(scope["path"]) if scope.get("method") == "POST" else None
        if task and pipeline:
            stated = _TIMEOUT.search(scope["query_string"])
            within = min(int(stated[1]) if stated else self._timeout_ms, self._timeout_ms) / 1000
            if not pipeline.would_admit(task.name, within):
                RequestContext.of(scope).timer = StageTimer()
                await refusal(pipeline.refusal(task.name, within), scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def set_up_logging() -> None:
    """Sends our messages to standard error; standard output holds access lines alone."""
    ours = logging.getLogger("convserve")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
