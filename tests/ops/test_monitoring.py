"""Prometheus, Alertmanager and the dashboard, as docker/ has them: by their own checks, and run against a real service.

Grafana itself does not run here: its queries are asked of Prometheus in its place.
"""

import itertools
import json
import math
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests import graphs
from tests.samples import grey_clip, grey_png, half_red_png, square_wav
from tests.serving import ROOT, free_port, serving

DOCKER = ROOT / "docker"
PROMETHEUS = DOCKER / "prometheus"
ALERTMANAGER = DOCKER / "alertmanager" / "alertmanager.yml"
ALERTS_TEST = Path(__file__).with_name("alerts_test.yml")
RULES = [
    rule
    for file in ("rules.yml", "alerts.yml")
    for group in yaml.safe_load((PROMETHEUS / file).read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "convserve.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = sorted(
    {rule["record"] for rule in RULES if "record" in rule}
    | {rule["expr"] for rule in RULES if "record" in rule}
    # An alert's expression is empty as long as all is well: alerts_test.yml proves that it fires, and this that all it
    # asks for is there.
    | {name for rule in ALERTS for name in re.findall(r"[\w:]*convserve[\w:]+|\bup\b", rule["expr"])}
    | {target["expr"] for panel in PANELS for target in panel["targets"]}
    | {annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]}
)
NEEDS_A_GPU = [query for query in QUERIES if "convserve_gpu_" in query]
NEEDS_A_PAGE = ['ALERTS{alertstate="firing",severity="page"}']  # the annotation, which marks what woke somebody
CALLS = re.findall(r'endpoint[=!]~"[^$"]+"', "\n".join([*QUERIES, *(rule["expr"] for rule in ALERTS)]))
SYSTEM_PATHS = ("/", "/models", "/models/none", "/problems/not-ready", "/metrics", "/docs", "/openapi.json", "/livez",
                "/readyz", "/healthz", "/nowhere", "/docs.json")  # fmt: skip
MEDIA = {"classify": grey_png(7), "segment": half_red_png(), "audio": square_wav(0.5), "video": grey_clip(7)}
GPU = """
convserve_gpu_utilization_ratio{gpu="0"} 0.4
convserve_gpu_memory_used_bytes{gpu="0"} 4e9
convserve_gpu_power_watts{gpu="0"} 250
"""


def _tool(name: str) -> str:
    return shutil.which(name) or pytest.fail(
        f"{name} is missing; Debian: apt-get install prometheus prometheus-alertmanager"
    )


def _checked(*command: str) -> None:
    done = subprocess.run([_tool(command[0]), *command[1:]], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- as files ---


def test_their_own_checkers_find_nothing_wrong() -> None:
    _checked("promtool", "check", "config", str(PROMETHEUS / "prometheus.yml"))
    _checked(
        "promtool", "check", "rules", "--lint-fatal", str(PROMETHEUS / "rules.yml"), str(PROMETHEUS / "alerts.yml")
    )
    _checked("amtool", "check-config", str(ALERTMANAGER))


def test_every_alert_fires_when_it_should_and_is_quiet_otherwise() -> None:
    _checked("promtool", "test", "rules", str(ALERTS_TEST))
    expected = re.findall(r'labels: \'{alertname="(\w+)"', ALERTS_TEST.read_text())
    assert {rule["alert"] for rule in ALERTS} == set(expected)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_every_alert_says_what_it_means(alert: dict[str, Any]) -> None:
    """That its runbook exists is in tests/test_docs.py."""
    assert alert["labels"]["severity"] in {"page", "ticket"}
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"} and all(notes.values())


def test_calls_are_selected_by_one_matcher_that_names_no_task() -> None:
    (matcher,) = set(CALLS)
    assert len(CALLS) >= 15 and matcher.startswith("endpoint!~")
    assert not any(task in matcher for task in MEDIA)


def test_every_panel_says_what_to_do_and_none_covers_another() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["description"].endswith(".") for panel in PANELS)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


def test_the_stack_is_pinned_confined_and_reached_from_this_machine_only() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    for name in ("prometheus", "alertmanager", "grafana"):
        service = services[name]
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            source, _, rest = volume.partition(":")
            assert not source.startswith(".") or (rest.endswith(":ro") and (DOCKER / source).exists())


# --- running ---


@dataclass
class Stack:
    prometheus: str
    alertmanager: str
    gpu: list[str] = field(default_factory=list)  # what a second instance exposes

    def ask(self, query: str) -> list[Any]:
        """The result of ``query`` at this moment, without what is not a number. Fails where Prometheus refuses it."""
        for variable, value in {"$__rate_interval": "1m", "$endpoint": ".*", "$model": ".*"}.items():
            query = query.replace(variable, value)
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": query}, timeout=30).json()
        assert answer["status"] == "success", (query, answer)
        return [result for result in answer["data"]["result"] if not math.isnan(float(result["value"][1]))]

    def empty(self) -> list[str]:
        return [query for query in QUERIES if not self.ask(query)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """docker/'s Prometheus and Alertmanager around a real service of two workers under a little load, which has one
    model that cannot be loaded. Everything is scraped and evaluated each second."""
    folder = tmp_path_factory.mktemp("stack")
    repository = graphs.write_all(folder / "repository")
    broken = graphs.write_model(repository, "classify", name="broken")
    (broken / "model.onnx").write_bytes(b"something else")
    ports = {name: free_port() for name in ("prometheus", "alertmanager", "gpu")}
    running = Stack(f"http://127.0.0.1:{ports['prometheus']}", f"http://127.0.0.1:{ports['alertmanager']}")
    with (
        serving(folder / "log", repository=str(repository), workers="2", access_log="false") as server,
        _exporter(ports["gpu"], running.gpu),
        _asked(server.url),
        _process(folder, "prometheus-alertmanager", f"--config.file={ALERTMANAGER}", f"--storage.path={folder}/alerts",
                 f"--web.listen-address=127.0.0.1:{ports['alertmanager']}", "--cluster.listen-address="),
        _process(folder, "prometheus", f"--config.file={_configuration(folder, server.port, ports)}",
                 f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{ports['prometheus']}"),
    ):  # fmt: skip
        _until(lambda: httpx.get(f"{running.prometheus}/-/ready", timeout=5).status_code == 200)
        yield running


def test_every_query_of_the_dashboard_and_the_rules_returns_data(stack: Stack) -> None:
    """GPU series are not there without a GPU, and pages not while all is well."""
    absent = sorted([*NEEDS_A_GPU, *NEEDS_A_PAGE])
    _until(lambda: stack.empty() == absent)
    assert stack.empty() == absent
    stack.gpu.append(GPU)
    _until(lambda: stack.empty() == NEEDS_A_PAGE)
    assert stack.empty() == NEEDS_A_PAGE


def test_an_alert_reaches_alertmanager(stack: Stack) -> None:
    def alerts() -> list[Any]:
        return list(httpx.get(f"{stack.alertmanager}/api/v2/alerts", timeout=5).json())

    _until(lambda: bool(alerts()))
    told = [alert for alert in alerts() if alert["labels"]["alertname"] == "ConvserveModelNotLoaded"]
    assert [alert["labels"]["model"] for alert in told] == ["broken:1"]
    assert told[0]["annotations"]["summary"] == "The model broken:1 is not served: sha256"
    assert [receiver["name"] for receiver in told[0]["receivers"]] == ["ticket"]


def test_the_matcher_selects_every_call_and_nothing_else(stack: Stack) -> None:
    def endpoints(matcher: str = "") -> set[str]:
        found = stack.ask(f"count by (endpoint) (convserve_requests_total{{{matcher}}})")
        return {result["metric"]["endpoint"] for result in found}

    calls = {f"{way_in}/{task}" for way_in in ("", "/bento") for task in MEDIA}
    _until(lambda: len(endpoints()) >= len(calls) + len(SYSTEM_PATHS) - 1)  # two of the paths are unknown
    assert endpoints(CALLS[0]) == calls
    assert endpoints() - calls > {"/", "unknown", "/models/{name}", "/problems/{slug}", "/readyz"}


def test_prometheus_counts_what_the_service_counts(stack: Stack) -> None:
    """Statuses and stages arrive under the names that the dashboard uses."""
    for task in MEDIA:
        assert stack.ask(f'convserve_requests_total{{endpoint="/{task}",status="200"}} > 0')
        assert stack.ask(f'convserve_requests_total{{endpoint="/{task}",status="415"}} > 0')
        assert len(stack.ask(f'sum by (stage) (convserve_stage_duration_seconds_count{{endpoint="/{task}"}})')) == 6
    assert stack.ask('convserve_rejected_total{reason="unsupported-media"} > 0')
    assert [result["value"][1] for result in stack.ask("convserve_workers")] == ["2"]


def _configuration(folder: Path, port: int, ports: dict[str, int]) -> Path:
    """prometheus.yml, with other addresses and a faster clock."""
    text = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    text["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    text["rule_files"] = [str(PROMETHEUS / file) for file in text["rule_files"]]
    text["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{ports['alertmanager']}"]
    text["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{port}", f"127.0.0.1:{ports['gpu']}"]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(text))
    return file


@contextmanager
def _process(folder: Path, name: str, *arguments: str) -> Iterator[None]:
    with (folder / f"{name}.log").open("wb") as output:
        process = subprocess.Popen([_tool(name), *arguments], cwd=folder, stdout=output, stderr=output)
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


@contextmanager
def _exporter(port: int, texts: list[str]) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write("".join(texts).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _asked(url: str) -> Iterator[None]:
    """A little load until the block ends: every system endpoint and both ways into every task, then the tasks in turn,
    with media and with junk."""
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            for path in SYSTEM_PATHS:
                client.get(path)
            for task in MEDIA:
                client.post(f"/bento/{task}", content=MEDIA[task])
            for task in itertools.cycle(MEDIA):
                client.post(f"/{task}", content=MEDIA[task])
                client.post(f"/{task}", content=b"junk")
                if over.wait(0.05):
                    return

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield
        finally:
            over.set()
            asking.result()


def _until(done: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for it, and lets the caller say what is wrong if it never comes."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if done():
                return
        except httpx.TransportError:  # not up yet
            pass
        time.sleep(0.5)
