"""Measurements of one request: how long each stage took, which batches it shared, how it ended.

They are taken once, and serve ``Server-Timing``, the histograms, the access log and the traces alike.
"""

import functools
import time
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from prometheus_client import Counter, Histogram

from service.errors import REFUSALS
from service.telemetry import metrics
from service.telemetry.metrics import STAGES

now = time.perf_counter
_TIMING = ", ".join(f"{stage};dur=%.3f" for stage in STAGES).encode()  # milliseconds
_CONTEXT = "convserve"  # where the ASGI scope holds a request's context


@dataclass(eq=False, slots=True)
class BatchRun:
    """One batch through the engine; all requests with samples in it share this very object."""

    began: float  # by the clock of ``now``
    seconds: float
    size: int  # samples
    padded_size: int  # samples computed for them
    span: Any = None  # of the batch, once it is in a trace

    @property
    def padding_seconds(self) -> float:
        return self.seconds * (1 - self.size / self.padded_size)


class Interval(NamedTuple):
    """One stretch of a stage, by the clock of ``now``."""

    stage: str
    began: float
    ended: float
    runs: Sequence[BatchRun] = ()  # the batches it waited for


class StageTimer:
    """Seconds by stage, and when each was. What is known stays known if the request fails midway.

    Each of several files of a request has a timer, and they share ``intervals``.
    """

    def __init__(self, intervals: list[Interval] | None = None) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.intervals: list[Interval] = [] if intervals is None else intervals

    def stage(self, name: str) -> "Stage":
        return Stage(self, name)

    def add(self, stage: str, began: float, ended: float) -> None:
        self.seconds[stage] += ended - began
        self.intervals.append(Interval(stage, began, ended))

    def add_inference(self, asked: float, runs: Sequence[BatchRun], *, padding: float) -> None:
        """Adds the time since the samples were queued, at ``asked``, until ``runs`` have answered all of them.

        ``padding`` is the share of each sample that is filler.
        """
        ended = now()
        running = padding_seconds = 0.0
        for run in runs:
            running += run.seconds
            padding_seconds += run.padding_seconds
        padding_seconds += padding * (running - padding_seconds)
        self.seconds["queue"] += max(0.0, ended - asked - running)
        self.seconds["inference"] += running - padding_seconds
        self.seconds["padding"] += padding_seconds
        self.intervals.append(Interval("queue", asked, runs[0].began))
        self.intervals.append(Interval("inference", runs[0].began, ended, runs))


class Stage:
    """Context manager that adds the time of its block, also of one that fails."""

    __slots__ = ("_began", "_name", "_timer")

    def __init__(self, timer: StageTimer, name: str) -> None:
        self._timer, self._name = timer, name

    def __enter__(self) -> None:
        self._began = now()

    def __exit__(self, *error: object) -> None:
        self._timer.add(self._name, self._began, now())


@dataclass(slots=True)
class RequestContext:
    """One HTTP request, as its log line and its trace tell it.

    Routes set ``model`` once it is known; calls of a task have a ``timer``.
    """

    request_id: str
    endpoint: str  # the route's template
    began: float = field(default_factory=now)
    status: int = 0
    model: str = ""
    timer: StageTimer | None = None

    def attach(self, scope: MutableMapping[str, Any]) -> None:
        """Puts it where ``of`` finds it: into the ASGI scope."""
        scope[_CONTEXT] = self

    @staticmethod
    def of(scope: MutableMapping[str, Any]) -> "RequestContext":
        context: RequestContext = scope[_CONTEXT]
        return context


def cost_headers(stages: Mapping[str, float], batch_size: int) -> list[tuple[bytes, bytes]]:
    """Headers that state what a request took; ``stages`` in seconds."""
    timing = _TIMING % tuple([seconds * 1000 for seconds in stages.values()])
    return [(b"x-batch-size", b"%d" % batch_size), (b"server-timing", timing)]


@functools.cache  # finding a series by its labels takes longer than adding to it
def _endpoint(endpoint: str, status: int) -> tuple[Counter, Histogram]:
    return metrics.REQUESTS.labels(endpoint, str(status)), metrics.DURATION.labels(endpoint)


@functools.cache
def _stages(endpoint: str) -> dict[str, Histogram]:
    return {stage: metrics.STAGE_DURATION.labels(endpoint, stage) for stage in STAGES}


@functools.cache
def _refusals(endpoint: str, reason: str) -> Counter:
    return metrics.REJECTED.labels(endpoint, reason)


def observe_request(context: RequestContext, seconds: float) -> None:
    requests, duration = _endpoint(context.endpoint, context.status)
    requests.inc()
    duration.observe(seconds)


def observe_stages(endpoint: str, stages: Mapping[str, float]) -> None:
    """Counts the seconds of each stage, as ``Server-Timing`` states them."""
    histograms = _stages(endpoint)
    for stage, seconds in stages.items():
        histograms[stage].observe(seconds)


def count_refusal(endpoint: str, reason: str) -> None:
    _refusals(endpoint, reason).inc()


def start_at_zero(endpoints: Iterable[str]) -> None:
    """Creates the series that alerts count: Prometheus sees no increase in a series whose first value is 1."""
    for endpoint in endpoints:
        _endpoint(endpoint, 200)
        for refusal in REFUSALS.values():
            if refusal.status >= 500:
                _endpoint(endpoint, refusal.status)
                _refusals(endpoint, refusal.slug)
