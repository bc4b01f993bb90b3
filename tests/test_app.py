"""Starting, refusing to start, being killed and stopping, with a process of its own for each."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from service.repository.folder import BUNDLED
from tests import graphs
from tests.samples import grey_png, square_wav
from tests.serving import serving, start_and_fail


def test_it_serves_with_torch_blocked(tmp_path: Path) -> None:
    """The bundled repository, with an importer in the way that fails whoever asks for torch or for models."""
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'torchvision', 'models'):\n"
        "            raise ImportError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    probe = "import torch"
    path = {"PYTHONPATH": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", probe], env={**os.environ, **path}, check=False).returncode != 0
    with serving(tmp_path / "log", path) as server:
        assert {card["name"] for card in httpx.get(f"{server.url}/models").json()} == {
            entry.name for entry in BUNDLED.iterdir() if not entry.name.startswith(".")
        }
        assert httpx.post(f"{server.url}/audio", content=square_wav(0.5, seconds=1), timeout=30).status_code == 200
        until = time.monotonic() + 90
        while "convserve is ready at" not in server.log.read_text():
            assert time.monotonic() < until
            time.sleep(0.1)  # the first worker says so, and another may have answered before it


def test_a_broken_model_is_skipped_and_counted_while_the_others_serve(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    graphs.write_model(repository, "classify")
    broken = graphs.write_model(repository, "audio")
    (broken / "model.onnx").write_bytes(b"something else")
    with serving(tmp_path / "log", repository=str(repository), workers="1") as server:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            assert client.post("/classify", content=grey_png(8)).json()[0]["label"] == "8"
            response = client.post("/audio", content=square_wav(0.5))
            assert (response.status_code, response.json()["type"]) == (404, "/problems/task-not-served")
            assert "classify" in response.json()["detail"]
            assert (
                'convserve_model_load_failures{model="tiny-audio:1",reason="sha256"} 1.0' in client.get("/metrics").text
            )
        assert "tiny-audio:1" in server.log.read_text()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_batch": "none"}, "CONVSERVE_MAX_BATCH"),
        ({"max_batch": "nosuch=3"}, "CONVSERVE_MAX_BATCH names 'nosuch'"),
        ({"timeout_ms": "-5"}, "CONVSERVE_TIMEOUT_MS"),
        ({"max_batchs": "4"}, "CONVSERVE_MAX_BATCH"),
        ({"repository": "/no/such/folder"}, "CONVSERVE_REPOSITORY"),
        ({"default_models": "classify=nobody"}, "CONVSERVE_DEFAULT_MODELS"),
        ({"device": "cuda"}, "CONVSERVE_DEVICE=cuda"),
    ],
    ids=lambda value: str(value),
)
def test_it_refuses_to_start_on_what_makes_no_sense_and_names_it(settings: dict[str, str], named: str) -> None:
    if settings.get("device") == "cuda" and Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU here")
    status, output = start_and_fail(**settings)
    assert status != 0
    assert "convserve does not start" in output and named in output
    assert "Traceback" not in output


def test_a_repository_without_a_sound_model_does_not_start(tmp_path: Path) -> None:
    status, output = start_and_fail(repository=str(tmp_path))
    assert status != 0 and "no model" in output


def test_a_killed_worker_comes_back_and_what_was_counted_stays(tmp_path: Path) -> None:
    """Also in the images of ``bentoml containerize``, which set a variable that keeps BentoML from starting it."""
    image = {"BENTOML_CONTAINERIZED": "true"}
    repository = tmp_path / "repository"
    graphs.write_model(repository, "classify")
    with serving(tmp_path / "log", image, repository=str(repository), workers="2") as server:
        for _ in range(20):
            assert httpx.post(f"{server.url}/classify", content=grey_png(1), timeout=30).status_code == 200
        before = server.workers()
        assert len(before) == 2
        if sys.platform == "linux":
            until = time.monotonic() + 60  # the first answers while the second starts
            while {os.sched_getscheduler(worker) for worker in before} != {os.SCHED_BATCH}:
                assert time.monotonic() < until
                time.sleep(0.1)
        os.kill(before[0], signal.SIGKILL)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            now = server.workers()
            text = httpx.get(f"{server.url}/metrics", timeout=30).text
            if len(now) == 2 and before[0] not in now and "convserve_worker_starts_total 3.0" in text:
                break
            time.sleep(0.5)
        assert 'convserve_requests_total{endpoint="/classify",status="200"} 20.0' in text
        assert "convserve_workers 2.0" in text


def test_the_access_log_can_be_turned_off(tmp_path: Path) -> None:
    """What is in it is tested with the middleware."""
    repository = tmp_path / "repository"
    graphs.write_model(repository, "classify")
    with serving(tmp_path / "log", repository=str(repository), workers="1", access_log="false") as server:
        assert httpx.post(f"{server.url}/classify", content=grey_png(1), timeout=30).status_code == 200
    assert not [line for line in server.log.read_text().splitlines() if line.startswith("{")]


def test_more_connections_may_be_idle_than_a_process_may_have_files_at_first(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    graphs.write_model(repository, "classify")
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as ending:
        ending.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (allowed, most))
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
        started = serving(tmp_path / "log", repository=str(repository), workers="1", keep_alive_seconds="2")
        server = ending.enter_context(started)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
        address = ("127.0.0.1", server.port)
        idle = [ending.enter_context(socket.create_connection(address, timeout=30)) for _ in range(300)]
        assert httpx.post(f"{server.url}/classify", content=grey_png(11), timeout=30).json()[0]["label"] == "11"
        began = time.monotonic()
        kept = ending.enter_context(socket.create_connection(address, timeout=30))
        kept.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b"".join(iter(lambda: kept.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and b"connection: close" not in answer
        assert {connection.recv(1) for connection in idle} == {b""}
        assert time.monotonic() - began > 1.9, "each ends after two seconds"


def test_sigterm_lets_what_is_in_flight_finish(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    graphs.write_model(repository, "classify")
    with serving(tmp_path / "log", repository=str(repository), workers="1") as server:
        picture = grey_png(11)
        with httpx.Client(base_url=server.url, timeout=30) as client:

            def slowly() -> object:
                yield picture[:20]
                server.process.send_signal(signal.SIGTERM)
                time.sleep(1)
                yield picture[20:]

            answer = client.post("/classify", content=slowly())  # type: ignore[arg-type]
        assert answer.json()[0]["label"] == "11"
        assert server.process.wait(timeout=30) == 0
    assert '"path":"/classify","status":200' in server.log.read_text(), "the last lines are not lost"


def test_after_sigterm_it_is_not_ready_but_still_answers_and_sends_clients_away(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    graphs.write_model(repository, "classify")
    with serving(tmp_path / "log", repository=str(repository), workers="1", drain_seconds="4") as server:
        with httpx.Client(base_url=server.url, timeout=30) as kept:
            assert "connection" not in kept.get("/readyz").headers
            server.process.send_signal(signal.SIGTERM)
            answer = kept.get("/readyz")
            while answer.status_code == 200:  # the signal is on its way
                answer = kept.get("/readyz")
            assert (answer.status_code, answer.headers["connection"]) == (503, "close")
            answer = kept.post("/classify", content=grey_png(11))  # on a new connection
            assert (answer.json()[0]["label"], answer.headers["connection"]) == ("11", "close")
            assert kept.get("/livez").status_code == 200  # it must not be killed for it
        assert server.process.wait(timeout=40) == 0
