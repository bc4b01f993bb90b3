"""The series as Prometheus would read them, against what the clients counted."""

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import graphs
from tests.samples import grey_png, square_wav
from tests.serving import ROOT, Server, environment, serving

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


def test_unknown_paths_make_no_series_of_their_own(server: Server) -> None:
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


def test_the_metrics_folder_goes_with_its_process() -> None:
    probe = "from service.metrics import share_folder; print(share_folder())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", probe],
        cwd=ROOT,
        env=environment({}, 1),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() and not Path(done.stdout.strip()).exists()
