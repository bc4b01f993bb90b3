"""Turns away, before anything is made of it, a request for which there is no room, or no time.

Under overload they come one by one, between batches that leave no cache warm for them: on the way through ASGI and the
routes each would take from those who are let in as much as a seventh of an answer. They are told, counted and logged
like all others.
"""

import re
from collections.abc import Sequence

from pydantic_core import to_json

from service.http.middleware import PROBLEM_JSON, Access, Visit, cost, problem, request_id
from service.pipeline import Pipeline
from service.repository.card import MEDIA_OF_TASK
from service.telemetry import metrics
from service.telemetry.stages import Stopwatch

_NOTHING_DONE = Stopwatch()
_SAME_IN_ALL = [(b"content-type", PROBLEM_JSON.encode()), *cost(_NOTHING_DONE.seconds, batch_size=0)]
_HEAD = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: %d\r\nx-request-id: %b\r\nretry-after: %d\r\n" + b"".join(
    b"%b: %b\r\n" % header for header in _SAME_IN_ALL
)

_TIMEOUT = re.compile(rb"(?:^|&)timeout_ms=([1-9][0-9]{0,8})(?:&|$)")  # what else it may be is told further in


class Door:
    """``access`` records who is turned away; ``pipeline``, while there is one, says who is. Nobody may wait for longer
    than ``timeout_ms``, but for less if the query says so."""

    # The same as the app's: to look it up in Starlette's state for each request takes an eighth of ``turn_away``.
    pipeline: Pipeline | None = None

    def __init__(self, access: Access, timeout_ms: int) -> None:
        self._access, self._timeout_ms = access, timeout_ms
        self._tasks = {f"/{task}".encode(): task for task in MEDIA_OF_TASK}

    def turn_away(
        self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]
    ) -> tuple[bytes, bytes] | None:
        """Status line and headers, and the body, that are the answer to this request; None if it may come in."""
        path, _, query = target.partition(b"?")
        task = self._tasks.get(path) if method == b"POST" else None
        pipeline = self.pipeline
        if task is None or pipeline is None:
            return None
        stated = _TIMEOUT.search(query)
        patience = min(int(stated[1]) if stated else self._timeout_ms, self._timeout_ms) / 1000
        if pipeline.takes(task, patience):
            return None
        if self._access.closes():  # who is to go to another server is told so further in
            return None
        error = pipeline.refuse(task, patience)  # always 503, as the head says
        this = Visit(request_id(headers), f"/{task}", status=error.status, watch=_NOTHING_DONE)
        body = to_json(problem(error, this.request_id))
        head = _HEAD % (len(body), this.request_id.encode("ascii"), error.retry_after_seconds or 1)
        metrics.count_refusal(this.endpoint, error.slug)
        self._access.record({"method": "POST", "path": this.endpoint, "headers": headers}, this)
        return head, body
