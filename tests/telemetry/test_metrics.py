"""The series as Prometheus would read them, against what the clients counted."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import graphs
from tests.samples import grey_clip, grey_png, half_red_png, square_wav
from tests.serving import ROOT, Server, environment, serving

_T = TypeVar("_T")
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Server]:
    repository = graphs.write_all(tmp_path / "repository")
    with serving(tmp_path / "log", repository=str(repository), workers="2") as running:
        yield running


def _scrape(server: Server) -> Series:
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _value(series: Series, name: str, **labels: str) -> float:
    return series.get((name, frozenset(labels.items())), 0.0)


@pytest.mark.parametrize("path", ["/classify", "/bento/classify"])
def test_a_client_that_leaves_while_it_sends_is_counted_as_499(fresh: Server, path: str) -> None:
    _send_and_leave(fresh, f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc".encode(), seconds=0.2)
    assert _first_statuses(fresh, path) == {"499": 1}


def test_a_client_that_leaves_while_it_waits_is_counted_as_499(fresh: Server) -> None:
    part = (
        b'--limit\r\nContent-Disposition: form-data; name="file"; filename="clip"\r\n\r\n' + grey_clip(5, 500) + b"\r\n"
    )
    body = 60 * part + b"--limit--\r\n"  # seconds of work, so that it takes longer than to notice that the client left
    head = f"POST /video HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    _send_and_leave(fresh, head.encode() + b"Content-Type: multipart/form-data; boundary=limit\r\n\r\n" + body)
    assert _first_statuses(fresh, "/video") == {"499": 1}


def _send_and_leave(server: Server, sent: bytes, seconds: float = 0.0) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(sent)
        time.sleep(seconds)  # to be read from before it is left


def _first_statuses(server: Server, path: str) -> dict[str, float]:
    """How often each status was counted, once there is any."""
    deadline = time.monotonic() + 20
    counted: dict[str, float] = {}
    while not sum(counted.values()) and time.monotonic() < deadline:
        series = _scrape(server).items()
        name = "convserve_requests_total"
        counted = {
            dict(labels)["status"]: value
            for (found, labels), value in series
            if found == name and ("endpoint", path) in labels
        }
        time.sleep(0.1)
    return {status: value for status, value in counted.items() if value}


def test_counts_equal_the_clients_own_over_several_workers_and_batches_form(fresh: Server) -> None:
    def ask(number: int) -> int:
        body = b"junk" if number % 8 == 0 else grey_png(number % 256)
        return httpx.post(f"{fresh.url}/classify", content=body, timeout=60).status_code

    with ThreadPoolExecutor(48) as pool:
        statuses = list(pool.map(ask, range(480)))
    httpx.post(f"{fresh.url}/audio", content=square_wav(0.5, seconds=0.5), timeout=30)
    series = _scrape(fresh)
    for status in (200, 415):
        counted = _value(series, "convserve_requests_total", endpoint="/classify", status=str(status))
        assert counted == statuses.count(status)
    assert _value(series, "convserve_rejected_total", endpoint="/classify", reason="unsupported-media") == 60
    assert _value(series, "convserve_samples_total", model="tiny-classify:1") == 420
    assert _value(series, "convserve_samples_total", model="tiny-audio:1") == 9  # half a second: nine windows
    assert _value(series, "convserve_request_duration_seconds_count", endpoint="/classify") == 480
    stages = ("decode", "preprocess", "queue", "inference", "padding", "postprocess")
    for stage in stages:
        assert _value(series, "convserve_stage_duration_seconds_count", endpoint="/classify", stage=stage) == 420
    batches = _value(series, "convserve_batch_size_count", model="tiny-classify:1")
    assert _value(series, "convserve_batch_size_sum", model="tiny-classify:1") == 420
    assert 0 < batches < 420, "with 48 clients at once, some batches hold more than one sample"
    assert _value(series, "convserve_queue_depth", model="tiny-classify:1") == 0
    assert _value(series, "convserve_workers") == 2
    assert _value(series, "convserve_worker_starts_total") == 2
    assert _value(series, "convserve_engine_seconds_total", model="tiny-classify:1") > 0
    assert _value(series, "convserve_calibrated_samples_per_second", model="tiny-classify:1") > 0
    info = [labels for name, labels in series if name == "convserve_model_info"]
    assert len(info) == 4 and all(dict(labels)["provider"] == "CPUExecutionProvider" for labels in info)


def test_every_endpoint_and_status_is_counted_as_the_clients_saw_it(server: Server) -> None:
    media = {"classify": grey_png(7), "segment": half_red_png(), "audio": square_wav(0.5), "video": grey_clip(7)}
    ways = [f"{prefix}/{task}" for prefix in ("", "/bento") for task in media]
    good = [("POST", way, "", media[way.rpartition("/")[2]]) for way in ways]
    bad = [("POST", way, "", body) for way in ways for body in (b"", b"junk")]
    odd = [
        ("POST", "/classify", "?top_k=0", b"x"),
        ("POST", "/audio", "?model=nobody", b"x"),
        ("GET", "/video", "", b""),
    ]
    others = [("GET", "/models", "", b""), ("GET", "/readyz", "", b""), ("GET", "/no/such/path", "", b"")]

    def ask(call: tuple[str, str, str, bytes]) -> tuple[str, str]:
        method, path, query, body = call
        answer = httpx.request(method, f"{server.url}{path}{query}", content=body, timeout=60)
        return "unknown" if path == "/no/such/path" else path, str(answer.status_code)

    before = _requests(_scrape(server))
    with ThreadPoolExecutor(8) as pool:
        seen = Counter(pool.map(ask, (good * 6 + bad + odd + others) * 3))
    assert {status for _, status in seen} == {"200", "400", "404", "405", "415", "422"}
    counted = _eventually(lambda: _requests(_scrape(server)) - before, lambda counts: counts.total() >= seen.total())
    assert counted == seen


def test_refusals_are_counted_by_reason_on_both_routes(server: Server) -> None:
    bodies = {"empty-body": b"", "unsupported-media": b"junk", "corrupt-media": grey_png(5)[:-28]}
    kinds = [(path, reason) for path in ("/classify", "/bento/classify") for reason in bodies]

    def refused() -> list[float]:
        series = _scrape(server)
        return [_value(series, "convserve_rejected_total", endpoint=path, reason=reason) for path, reason in kinds]

    before = refused()
    for path, reason in kinds:
        httpx.post(f"{server.url}{path}", content=bodies[reason], timeout=30)
    assert refused() == [count + 1 for count in before]


def test_failures_are_zero_before_the_first_one(fresh: Server) -> None:
    series = _scrape(fresh)
    for endpoint in ("/classify", "/segment", "/audio", "/video", "/bento/classify"):
        for status in ("500", "503", "504"):
            assert series["convserve_requests_total", frozenset({("endpoint", endpoint), ("status", status)})] == 0
        labels = frozenset({("endpoint", endpoint), ("reason", "queue-full")})
        assert series["convserve_rejected_total", labels] == 0


def test_the_counts_of_a_killed_worker_stay_but_for_what_it_had_in_flight(fresh: Server) -> None:
    """Clients keep asking while one of two workers is killed. An answer that was sent but not counted yet, or counted
    but not received, was in flight: each client has one call at a time."""
    clients, calls = 8, 100
    killed, (victim, other) = [], sorted(fresh.workers())

    def ask(client: int) -> Counter[tuple[str, str]]:
        seen: Counter[tuple[str, str]] = Counter()
        body = b"junk" if client % 4 == 0 else grey_png(client)
        with httpx.Client(base_url=fresh.url, timeout=60) as connection:
            for number in range(calls):
                if client == 0 and number == calls // 2:
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)
                try:
                    seen["/classify", str(connection.post("/classify", content=body).status_code)] += 1
                except httpx.TransportError:
                    seen["lost", ""] += 1
        return seen

    with ThreadPoolExecutor(clients) as pool:
        seen = sum(pool.map(ask, range(clients)), Counter())
    lost = seen.pop(("lost", ""), 0)
    assert killed and seen.total() + lost == clients * calls
    series = _scrape(fresh)
    counted = _requests(series)
    for status in ("200", "415"):
        assert abs(counted["/classify", status] - seen["/classify", status]) <= clients
    starts = _value(series, "convserve_worker_starts_total")  # another one may have taken its place by now
    assert _value(series, "convserve_workers") == starts - 1, "the dead worker's gauges are gone"
    assert _value(series, "convserve_queue_depth", model="tiny-classify:1") == 0
    assert other in fresh.workers() and victim not in fresh.workers()


def _requests(series: Series) -> Counter[tuple[str, str]]:
    """By endpoint and status, without those that ask for the metrics themselves."""
    counts: Counter[tuple[str, str]] = Counter()
    for (name, labels), value in series.items():
        if name == "convserve_requests_total" and value and dict(labels)["endpoint"] != "/metrics":
            counts[dict(labels)["endpoint"], dict(labels)["status"]] += int(value)
    return counts


def _eventually(read: Callable[[], _T], done: Callable[[_T], bool], seconds: float = 10) -> _T:
    """A worker counts an answer after it was sent, and another may be asked in between."""
    until = time.monotonic() + seconds
    while not done(value := read()) and time.monotonic() < until:
        time.sleep(0.1)
    return value


def test_unknown_paths_have_no_series_of_their_own(server: Server) -> None:
    for number in range(20):
        httpx.get(f"{server.url}/made-up-{number}", timeout=30)
        httpx.get(f"{server.url}/models/made-up-{number}", timeout=30)
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    assert "made-up" not in text
    endpoints = set(re.findall(r'endpoint="([^"]*)"', text))
    assert {"unknown", "/models/{name}"} <= endpoints
    assert len(endpoints) < 20


def test_two_servers_count_apart(fresh: Server, server: Server) -> None:
    httpx.post(f"{fresh.url}/classify", content=b"", timeout=30)
    before = _value(_scrape(server), "convserve_requests_total", endpoint="/classify", status="400")
    httpx.post(f"{fresh.url}/classify", content=b"", timeout=30)
    assert _value(_scrape(server), "convserve_requests_total", endpoint="/classify", status="400") == before
    assert _value(_scrape(fresh), "convserve_requests_total", endpoint="/classify", status="400") == 2


def test_the_metrics_folder_is_removed_with_its_process() -> None:
    folder = _printed("from service.telemetry.metrics import share_folder; print(share_folder())").strip()
    assert folder and not Path(folder).exists()


def test_the_counts_of_a_forked_process_and_its_parent_add_up() -> None:
    """By a counter that had a value before, of which the child makes its own from then on."""
    probe = """if True:
        import os
        from service.telemetry import metrics
        counter = metrics.REJECTED.labels("/x", "y")
        counter.inc(1)
        if (child := os.fork()) == 0:
            counter.inc(10)
            os._exit(0)
        os.waitpid(child, 0)
        counter.inc(100)
        print(metrics.exposition().decode())
    """
    assert 'convserve_rejected_total{endpoint="/x",reason="y"} 111.0' in _printed(probe)


def test_the_exposition_holds_the_last_value_of_a_gauge_and_every_bucket_of_a_histogram() -> None:
    probe = """if True:
        from service.telemetry import metrics
        from service.telemetry.request import RequestContext, observe_request
        for seconds in (0.0005, 0.02, 60):
            observe_request(RequestContext("an-id", "/x", status=200), seconds)
        for value in (3, 0, 7):
            metrics.QUEUE_DEPTH.labels("m:1").set(value)
        print(metrics.exposition().decode())
    """
    families = text_string_to_metric_families(_printed(probe))
    samples = [sample for family in families for sample in family.samples]
    buckets = {
        sample.labels["le"]: sample.value
        for sample in samples
        if sample.labels.get("endpoint") == "/x" and "le" in sample.labels
    }
    assert (buckets["0.001"], buckets["0.025"], buckets["30.0"], buckets["+Inf"]) == (1, 2, 2, 3)
    assert [sample.value for sample in samples if sample.name == "convserve_queue_depth"] == [7.0]


def _printed(probe: str) -> str:
    """By a process of its own that runs ``probe``."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", probe],
        cwd=ROOT,
        env=environment({}, 1),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
