import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.settings import SettingsError
from service.telemetry.request import BatchRun, Interval, RequestContext, StageTimer
from service.telemetry.tracing import Tracing, exporter_name
from tests import graphs
from tests.samples import grey_png, half_red_png, square_wav
from tests.serving import serving, start_and_fail

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, None),
        ({"OTEL_SERVICE_NAME": "mine"}, None),
        (ENDPOINT, "otlp_proto_http"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, "otlp_proto_http"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp_proto_http"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, None),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, None),
    ],
)
def test_the_standard_variables_switch_traces_on(environment: dict[str, str], name: str | None) -> None:
    assert exporter_name(environment) == name


@pytest.mark.parametrize(
    "environment", [{**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, {"OTEL_TRACES_EXPORTER": "zipkin"}]
)
def test_an_exporter_that_is_not_installed_is_named(environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"otlp_proto_grpc|zipkin"):
        exporter_name(environment)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter) -> Tracing:
    return Tracing(exporter)


def scope(**headers: str) -> dict[str, Any]:
    return {"method": "POST", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}


def context(runs: list[BatchRun], status: int = 200) -> RequestContext:
    timer = StageTimer(
        [Interval("decode", 1.0, 1.5), Interval("queue", 1.5, 2.0), Interval("inference", 2.0, 3.0, runs)]
    )
    return RequestContext("an-id", "/classify", began=1.0, status=status, model="grey:1", timer=timer)


def finished(traces: Tracing, exporter: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    traces.flush()
    by_name: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        by_name.setdefault(span.name, []).append(span)
    return by_name


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None and span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_requests_of_one_batch_are_linked_to_its_only_span(traces: Tracing, exporter: InMemorySpanExporter) -> None:
    run = BatchRun(began=2.0, seconds=0.75, size=2, padded_size=4)
    traces.record(scope(), context([run]))
    traces.record(scope(), context([run]))
    spans = finished(traces, exporter)
    assert {name: len(of_it) for name, of_it in spans.items()} == {
        "POST /classify": 2,
        "decode": 2,
        "queue": 2,
        "inference": 2,
        "batch": 1,
    }
    (batch,) = spans["batch"]
    assert seconds(batch) == pytest.approx(0.75, abs=1e-6)
    assert batch.attributes is not None and batch.context is not None
    assert batch.attributes["convserve.batch.size"] == 2 and batch.attributes["convserve.batch.padded_size"] == 4
    calls = {call.context.span_id: call for call in spans["POST /classify"] if call.context}
    assert len({call.context.trace_id for call in calls.values() if call.context}) == 2
    for inference in spans["inference"]:
        assert [link.context.span_id for link in inference.links] == [batch.context.span_id]
        assert inference.parent is not None and inference.parent.span_id in calls
        assert seconds(inference) == pytest.approx(1.0, abs=1e-6)
    starts = [spans[name][0].start_time or 0 for name in ("POST /classify", "decode", "queue", "inference")]
    assert [round((start - starts[0]) / 1e9, 3) for start in starts] == [0, 0, 0.5, 1]


def test_a_call_continues_its_clients_trace(traces: Tracing, exporter: InMemorySpanExporter) -> None:
    traces.record(scope(traceparent=f"00-{'a' * 32}-{'b' * 16}-01"), context([], status=503))
    (call,) = finished(traces, exporter)["POST /classify"]
    assert call.context is not None and call.context.trace_id == int("a" * 32, 16)
    assert call.parent is not None and call.parent.span_id == int("b" * 16, 16)
    assert not call.status.is_ok
    assert call.attributes is not None and call.attributes["convserve.request_id"] == "an-id"
    assert call.attributes["http.response.status_code"] == 503


def test_a_call_that_its_client_does_not_sample_leaves_no_span(traces: Tracing, exporter: InMemorySpanExporter) -> None:
    run = BatchRun(2.0, 0.5, 2, 2)
    traces.record(scope(traceparent=f"00-{'a' * 32}-{'b' * 16}-00"), context([run]))
    assert finished(traces, exporter) == {}
    traces.record(scope(), context([run]))
    assert len(finished(traces, exporter)["batch"]) == 1, "the batch waits for a request that is sampled"


def test_probes_and_scrapes_leave_no_span(traces: Tracing, exporter: InMemorySpanExporter) -> None:
    traces.record(scope(), RequestContext("an-id", "/readyz", status=200))
    assert finished(traces, exporter) == {}


class Collector(ThreadingHTTPServer):
    """Keeps what is sent to /v1/traces."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Keeps)
        self.received: list[ExportTraceServiceRequest] = []


class _Keeps(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_service_exports_the_spans_of_what_its_clients_saw(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the last requests left is sent when it is told to end."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.namespace=tests")
    repository = graphs.write_all(tmp_path / "repository")
    bodies = {
        "/classify": grey_png(7),
        "/segment": half_red_png(),
        "/audio": square_wav(0.5),
        "/bento/audio": square_wav(1),
    }
    with (
        serving(tmp_path / "log", repository=str(repository), workers="1") as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        paths = list(bodies) * 8
        answers = list(pool.map(lambda path: client.post(path, content=bodies[path]), paths))
        assert client.post("/classify", content=b"no picture").status_code == 415
    assert {answer.status_code for answer in answers} == {200}
    resources = [resource for request in collector.received for resource in request.resource_spans]
    described = {item.key: item.value.string_value for item in resources[0].resource.attributes}
    assert described["service.name"] == "convserve" and described["service.namespace"] == "tests"
    spans: list[Span] = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    count = Counter(span.name for span in spans)
    assert {name: count[f"POST {name}"] for name in bodies} == {
        "/classify": 9,
        "/segment": 8,
        "/audio": 8,
        "/bento/audio": 8,
    }
    assert count["inference"] == len(paths) == count["preprocess"]
    batches = {span.span_id for span in spans if span.name == "batch"}
    linked = [[link.span_id for link in span.links] for span in spans if span.name == "inference"]
    assert all(links and set(links) <= batches for links in linked) and batches == {
        link for links in linked for link in links
    }
    ids = {item.value.string_value for span in spans for item in span.attributes if item.key == "convserve.request_id"}
    assert {answer.headers["X-Request-Id"] for answer in answers} <= ids


def test_a_service_without_the_exporter_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    status, said = start_and_fail()
    assert status == 1 and "convserve does not start: the OTEL_* variables ask for" in said
