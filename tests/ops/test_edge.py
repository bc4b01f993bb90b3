"""docker/nginx/nginx.conf by a real nginx, before a real service."""

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.errors import REFUSALS
from service.settings import Settings
from tests import graphs
from tests.samples import grey_png
from tests.serving import ROOT, free_port, serving
from tests.tls import certificate

CONFIGURATION = ROOT / "docker" / "nginx" / "nginx.conf"
BODY_TIMEOUT_MS = 500


@dataclass
class Edge:
    port: int
    plain_port: int
    trusted: ssl.SSLContext

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"https://localhost:{self.port}", verify=self.trusted, timeout=30)


def _tool(name: str) -> str:
    return shutil.which(name) or pytest.fail(f"{name} is missing; Debian: apt-get install nginx-light")


@contextmanager
def edge(folder: Path, upstream_port: int) -> Iterator[Edge]:
    """nginx as it is configured, but for addresses and folders."""
    tls, temporary = folder / "tls", folder / "tmp"
    tls.mkdir(parents=True)
    temporary.mkdir()
    chain, _ = certificate(tls)
    port, plain_port = free_port(), free_port()
    text = CONFIGURATION.read_text()
    for there, here in (
        ("convserve:3000", f"127.0.0.1:{upstream_port}"),
        ("listen 8443", f"listen 127.0.0.1:{port}"),
        ("listen 8080", f"listen 127.0.0.1:{plain_port}"),
        ("/tmp/", f"{temporary}/"),
        ("/etc/nginx/tls", str(tls)),
        ("worker_processes auto", "worker_processes 1"),
    ):
        assert there in text
        text = text.replace(there, here)
    (folder / "nginx.conf").write_text(text)
    # The container's nginx is nobody from the start; root's would give up its rights to the folders here.
    options = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    process = subprocess.Popen([_tool("nginx"), "-c", folder / "nginx.conf", "-g", options])
    try:
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.1)
        yield Edge(port, plain_port, ssl.create_default_context(cafile=str(chain)))
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def fronted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Edge, str]]:
    """The edge, and the URL of the service behind it, which has little patience with bodies."""
    folder = tmp_path_factory.mktemp("edge")
    repository = graphs.write_all(folder / "repository")
    with (
        serving(
            folder / "log", repository=str(repository), workers="1", body_timeout_ms=str(BODY_TIMEOUT_MS)
        ) as server,
        edge(folder / "nginx", server.port) as front,
    ):
        yield front, server.url


def dripped(connection: http.client.HTTPConnection, body: bytes, seconds: float) -> tuple[int, bytes]:
    """POSTs ``body`` to /classify in ten pieces over ``seconds``."""
    connection.putrequest("POST", "/classify")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    size = -(-len(body) // 10)
    with suppress(BrokenPipeError, ConnectionResetError):  # it has had enough, and said so
        for start in range(0, len(body), size):
            connection.send(body[start : start + size])
            time.sleep(seconds / 10)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_a_call_goes_through_with_all_that_belongs_to_it(fronted: tuple[Edge, str]) -> None:
    with fronted[0].client() as client:
        answer = client.post("/classify", content=grey_png(7), headers={"X-Request-Id": "mine"})
        assert answer.json()[0]["label"] == "7"
        assert answer.headers["X-Request-Id"] == "mine" and "inference" in answer.headers["Server-Timing"]
        refused = client.post("/classify", content=b"no picture")
        assert refused.status_code == 415 and refused.json()["type"] == "/problems/unsupported-media"
        assert client.get("/nowhere").json()["type"] == "/problems/not-found"


def test_a_slow_client_keeps_nobody_waiting(fronted: tuple[Edge, str]) -> None:
    front, url = fronted
    seconds = 4 * BODY_TIMEOUT_MS / 1000
    direct = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=30)
    assert dripped(direct, grey_png(7), seconds)[0] == 408, "so slow is this client"
    through = http.client.HTTPSConnection("localhost", front.port, context=front.trusted, timeout=30)
    status, content = dripped(through, grey_png(7), seconds)
    assert status == 200 and json.loads(content)[0]["label"] == "7"
    direct.close()
    through.close()


def announced(connection: http.client.HTTPConnection, length: int) -> tuple[http.client.HTTPResponse, dict[str, Any]]:
    """The refusal of a body that was announced, but not sent."""
    connection.putrequest("POST", "/classify")
    connection.putheader("Content-Length", str(length))
    connection.endheaders()
    answer = connection.getresponse()
    problem = json.loads(answer.read())
    connection.close()
    return answer, problem


def test_a_body_over_the_limit_is_refused_as_the_service_would(fronted: tuple[Edge, str]) -> None:
    length = Settings().max_body_bytes + 1
    front, url = fronted
    through = http.client.HTTPSConnection("localhost", front.port, context=front.trusted, timeout=30)
    direct = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=30)
    (answer, problem), (own_answer, own) = announced(through, length), announced(direct, length)
    assert answer.status == own_answer.status == 413
    assert answer.headers["Content-Type"] == own_answer.headers["Content-Type"]
    assert {**problem, "detail": "", "request_id": ""} == {**own, "detail": "", "request_id": ""}
    assert problem["request_id"]


def test_what_is_not_for_strangers_is_not_there(fronted: tuple[Edge, str]) -> None:
    front, _ = fronted
    with front.client() as client:
        answer = client.get("/metrics")
        assert answer.status_code == 404 and answer.json()["type"] == "/problems/not-found"
    plain = httpx.get(f"http://127.0.0.1:{front.plain_port}/models?x=1", headers={"Host": "example.org"})
    assert plain.status_code == 308 and plain.headers["Location"] == "https://example.org/models?x=1"


def test_with_nothing_behind_it_it_says_when_to_come_again(tmp_path: Path) -> None:
    with edge(tmp_path / "nginx", free_port()) as front, front.client() as client:
        answer = client.post("/classify", content=grey_png(7))
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "5"
    assert answer.json()["type"] == "/problems/not-ready"


def test_it_gives_up_a_connection_at_rest_before_the_service_does() -> None:
    (seconds,) = re.findall(r"keepalive_timeout (\d+)s;", CONFIGURATION.read_text())
    assert int(seconds) < Settings().keep_alive_seconds, "or a call may be lost on one that was just ended"


def test_its_refusals_are_the_service_s() -> None:
    written = re.findall(r"return (\d+) '(\{.*\})';", CONFIGURATION.read_text())
    assert len(written) == 3
    for status, document in written:
        problem = json.loads(document)
        refusal = REFUSALS[problem["type"].removeprefix("/problems/")]
        assert (problem["status"], problem["title"]) == (refusal.status, refusal.title)
        assert problem["status"] == int(status)
