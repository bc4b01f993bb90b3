"""docker/compose.yaml, up and connected. Its ports are those of this machine, so they have to be free."""

import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.docker.engine import Engine
from tests.docker.test_image import ask_all
from tests.serving import ROOT
from tests.tls import certificate

pytestmark = pytest.mark.timeout(1500)  # images are made first
COMPOSE = ROOT / "docker" / "compose.yaml"
TLS = ROOT / "docker" / "nginx" / "tls"


def compose(engine: Engine, *arguments: str) -> None:
    plugin = engine.attempt("compose", "version").returncode == 0
    program = [str(engine.client), "compose"] if plugin else [shutil.which("docker-compose") or ""]
    if not program[0]:
        pytest.fail("Docker Compose is missing; Debian: apt-get install docker-compose")
    environment = {**engine.environment(), "EDGE_ADDRESS": "127.0.0.1"}
    done = subprocess.run(
        [*program, f"--file={COMPOSE}", "--profile=cpu", "--profile=edge", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def stack(engine: Engine, image: str, watchers: set[str]) -> Iterator[set[str]]:
    """What is up, by its service's name."""
    engine.run("tag", image, "convserve:cpu")
    if TLS.exists():
        pytest.skip(f"{TLS} holds a certificate, which is not for tests")
    TLS.mkdir()
    for file in certificate(TLS):
        file.chmod(0o644)  # so that the container's user may read it
    services = {"convserve", *watchers}
    try:
        compose(engine, "up", "--detach", *services)
        yield services
    finally:
        compose(engine, "down", "--volumes")
        shutil.rmtree(TLS)


def eventually(url: str, path: str, wanted: Any) -> Any:
    """The JSON at ``url``, asked until ``wanted`` is true of it."""
    until, content = time.monotonic() + 90, None
    while time.monotonic() < until:
        try:
            content = httpx.get(f"{url}{path}", timeout=5).json()
            if wanted(content):
                return content
        except (httpx.HTTPError, ValueError):
            pass
        time.sleep(0.5)
    raise AssertionError(f"{url}{path}: {content}")


def test_all_of_it_comes_up_connected_with_nothing_to_click(stack: set[str]) -> None:
    until = time.monotonic() + 90
    while True:
        try:
            if httpx.get("http://127.0.0.1:3000/readyz").status_code == 200:
                break
        except httpx.HTTPError:
            assert time.monotonic() < until
        time.sleep(0.5)
    ask_all("http://127.0.0.1:3000")
    prometheus = "http://127.0.0.1:9090/api/v1"
    up = eventually(prometheus, "/query?query=up{job='convserve'}", lambda said: said["data"]["result"])
    assert up["data"]["result"][0]["value"][1] == "1"
    groups = eventually(prometheus, "/rules", lambda said: said["data"]["groups"])["data"]["groups"]
    assert {"convserve-errors", "convserve-load"} <= {group["name"] for group in groups}
    eventually(prometheus, "/alertmanagers", lambda said: len(said["data"]["activeAlertmanagers"]) == 1)
    eventually("http://127.0.0.1:9093/api/v2", "/status", lambda said: "versionInfo" in said)
    if "grafana" in stack:
        eventually("http://127.0.0.1:3001/api", "/search?type=dash-db", lambda said: len(said) == 1)


def test_strangers_get_in_by_tls_alone(stack: set[str]) -> None:
    assert "edge" in stack
    trusted = ssl.create_default_context(cafile=str(TLS / "fullchain.pem"))
    with httpx.Client(verify=trusted, timeout=30) as client:
        answer = client.post("https://localhost/classify", content=(ROOT / "samples" / "cat.jpg").read_bytes())
        assert answer.json()[0]["label"] == "cat"
        assert client.get("https://localhost/metrics").status_code == 404
    assert httpx.get("http://localhost/models").status_code == 308


def test_it_is_confined(engine: Engine, stack: set[str]) -> None:
    for name in engine.run("ps", "--quiet", "--filter=label=com.docker.compose.project=convserve").split():
        about = engine.inspect(name)
        host = about["HostConfig"]
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and not host["Privileged"], about["Name"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        users = [line.split()[1] for line in engine.run("top", name, "-eo", "pid,uid").splitlines()[1:]]
        assert users and "0" not in users, f"{about['Name']} runs as root"
        for ports in about["NetworkSettings"]["Ports"].values():
            assert {port["HostIp"] for port in ports or []} <= {"127.0.0.1"}
