"""OpenTelemetry traces: a span for each call, below it one for each stretch of a stage, and one for each batch.

The inference of every request in a batch is linked to the batch's span. Off unless the standard ``OTEL_*`` variables
ask for them. Spans are made once a request is over, from what was measured anyway.
"""

import os
import threading
import time
from collections.abc import Mapping, MutableMapping
from importlib.metadata import entry_points
from typing import Any

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, set_span_in_context

from service.settings import SettingsError
from service.telemetry.request import BatchRun, Interval, RequestContext, now

_ENDPOINTS = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
_PROTOCOLS = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
_FLUSH_SECONDS = 3  # a collector that hangs may not cost the requests their time to finish


def exporter_name(environment: Mapping[str, str]) -> str | None:
    """Returns the exporter's name in OpenTelemetry's packages, None for none. Raises ``SettingsError``."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    asked = environment.get("OTEL_TRACES_EXPORTER") or ("otlp" if any(map(environment.get, _ENDPOINTS)) else "none")
    if asked == "none":
        return None
    protocol = next(filter(None, map(environment.get, _PROTOCOLS)), "http/protobuf")
    name = f"otlp_proto_{protocol.removesuffix('/protobuf')}" if asked == "otlp" else asked
    installed = entry_points(group="opentelemetry_traces_exporter").names
    if name not in installed:
        known = ", ".join(sorted(installed))
        raise SettingsError(f"the OTEL_* variables ask for the traces' exporter {name!r}; installed are {known}")
    return name


class Tracing:
    def __init__(self, exporter: SpanExporter) -> None:
        ours = Resource.create({"service.name": "convserve", "process.pid": os.getpid()})
        # It samples as OTEL_TRACES_SAMPLER says, and sends in a thread of its own.
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("convserve")

    @classmethod
    def from_environment(cls) -> "Tracing | None":
        name = exporter_name(os.environ)
        if name is None:
            return None
        (found,) = entry_points(group="opentelemetry_traces_exporter", name=name)
        return cls(found.load()())

    def record(self, scope: MutableMapping[str, Any], context: RequestContext) -> None:
        """The spans of a request that has just been answered; of calls alone, not of probes and scrapes."""
        if context.timer is None:
            return
        origin = time.time_ns() - _nanoseconds(now())  # of the stopwatches' clock
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        call = self._tracer.start_span(
            f"{scope['method']} {context.endpoint}",
            propagate.extract(headers),
            SpanKind.SERVER,
            {
                "http.request.method": scope["method"],
                "http.route": context.endpoint,
                "http.response.status_code": context.status,
                "convserve.model": context.model,
                "convserve.request_id": context.request_id,
            },
            start_time=origin + _nanoseconds(context.began),
        )
        if call.is_recording():
            if context.status >= 500:
                call.set_status(StatusCode.ERROR)
            below = set_span_in_context(call)
            for interval in context.timer.intervals:
                self._stage(interval, below, origin, context.model)
        call.end()

    def flush(self) -> None:
        self._provider.force_flush()

    def close(self) -> None:
        """Sends what is left, unless the collector hangs."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_FLUSH_SECONDS)

    def _stage(self, interval: Interval, below: Context, origin: int, model: str) -> None:
        links = [Link(self._batch(run, below, origin, model)) for run in interval.runs]
        span = self._tracer.start_span(
            interval.stage, below, links=links, start_time=origin + _nanoseconds(interval.began)
        )
        span.end(origin + _nanoseconds(interval.ended))

    def _batch(self, run: BatchRun, below: Context, origin: int, model: str) -> SpanContext:
        """The batch's span. It stands in the trace of the first of its requests that is over."""
        if run.span is None:
            attributes: dict[str, str | int] = {
                "convserve.model": model,
                "convserve.batch.size": run.size,
                "convserve.batch.padded_size": run.padded_size,
            }
            span: Span = self._tracer.start_span(
                "batch", below, attributes=attributes, start_time=origin + _nanoseconds(run.began)
            )
            span.end(origin + _nanoseconds(run.began + run.seconds))
            run.span = span.get_span_context()
        context: SpanContext = run.span
        return context


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
