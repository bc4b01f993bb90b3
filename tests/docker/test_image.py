"""The image as an operator runs it: confined, asked, hurt and stopped."""

import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.launch import _CALLS
from tests import graphs
from tests.docker.engine import CONFINED, Container, Engine, container
from tests.samples import grey_png
from tests.serving import ROOT
from tests.update import assert_nothing_was_lost, update

pytestmark = pytest.mark.timeout(1500)  # the first to ask for an image waits until it is built

EXPECTED = {"classify": "cat", "segment": "Tree", "audio": "seven", "video": "pan left"}
STOP_SECONDS = 40  # as docs/deployment.md tells an operator to give
LARGEST_CPU_BYTES = 400e6  # what is added to the base image


def ask_all(url: str) -> None:
    """The four calls that the README begins with."""
    for task, name in _CALLS.items():
        answer = httpx.post(f"{url}/{task}", content=(ROOT / "samples" / name).read_bytes(), timeout=30)
        assert answer.status_code == 200, answer.text
        labels = [entry["label"] for entry in answer.json()]
        assert labels[0] == EXPECTED[task]


def kill_a_worker(running: Container) -> None:
    """Once all are ready, and waits until another has taken its place."""
    before, until = running.workers(), time.monotonic() + 120
    while not _all_ready(running, len(before)):
        assert time.monotonic() < until, running.log()
        time.sleep(0.5)
    running.python(f"import os, signal; os.kill({before[0]}, signal.SIGKILL)")
    while len(now := set(running.workers())) < len(before) or before[0] in now or not _all_ready(running, len(before)):
        assert time.monotonic() < until, running.log()
        time.sleep(0.5)


def _all_ready(running: Container, workers: int) -> bool:
    return f"\nconvserve_workers {float(workers)}\n" in httpx.get(f"{running.url}/metrics", timeout=10).text


def test_it_answers_confined(engine: Engine, image: str) -> None:
    with container(engine, image, *CONFINED) as running:
        ask_all(running.url)
        until = time.monotonic() + 60
        while (health := engine.inspect(running.name)["State"]["Health"]["Status"]) == "starting":
            assert time.monotonic() < until
            time.sleep(1)
        assert health == "healthy"
        assert running.python("import os; print(os.getuid(), os.getgid())") == "10001 10001"
        changed = engine.run("diff", running.name).splitlines()
        assert changed == [], "it needs nothing to be writable but /tmp"


def test_it_is_healthy_only_while_it_can_answer(engine: Engine, image: str, tmp_path: Path) -> None:
    """The health check is the one in the image, asked inside of a container whose service is told to stop."""
    repository = graphs.write_all(tmp_path / "repository")
    mount = f"--volume={repository}:/models:ro"
    with container(
        engine, image, mount, CONVSERVE_REPOSITORY="/models", CONVSERVE_DRAIN_SECONDS="20", PORT="3000"
    ) as running:
        command = engine.inspect(image)["Config"]["Healthcheck"]["Test"]
        assert command[0] == "CMD"
        assert engine.attempt("exec", running.name, *command[1:]).returncode == 0
        engine.run("kill", "--signal=TERM", running.name)
        until = time.monotonic() + 10
        while engine.attempt("exec", running.name, *command[1:]).returncode == 0:
            assert time.monotonic() < until


def test_it_holds_nothing_that_serving_does_not_need(engine: Engine, image: str, base: str) -> None:
    def found(*names: str) -> str:
        script = f"for name in {' '.join(names)}; do command -v $name; done; true"
        return engine.run("run", "--rm", "--entrypoint=sh", image, "-c", script)

    assert found("gcc", "cc", "ld", "pip", "pip3", "uv", "git", "curl") == ""
    modules = "torch", "models", "pip", "setuptools", "pytest"
    absent = engine.run(
        *("run", "--rm", "--entrypoint=python", image, "-c"),
        f"import importlib.util as u; print([m for m in {modules} if m != 'models' and u.find_spec(m)])",
    )
    assert absent == "[]"
    left = engine.run(
        "run", "--rm", "--user=0", "--entrypoint=find", image, "/root", "/tmp", "/run", "-type", "f", "-size", "+9k"
    )
    assert left == "", "no cache, and nothing of what was seen while it was built"
    own_bytes = engine.inspect(image)["Size"] - engine.inspect(base)["Size"]
    assert own_bytes < LARGEST_CPU_BYTES, f"{own_bytes / 1e6:.0f} MB on top of the base image"


def test_it_says_what_it_is(engine: Engine, image: str) -> None:
    about = engine.inspect(image)["Config"]
    assert about["User"] == "10001:10001"
    assert about["StopSignal"] == "SIGTERM"
    assert "/models" in about["Volumes"] and "3000/tcp" in about["ExposedPorts"]
    assert {"title", "version", "revision", "licenses"} <= {name.rpartition(".")[2] for name in about["Labels"]}


def test_every_library_bundled_with_pyav_is_in_the_notice(engine: Engine, image: str) -> None:
    listing = engine.run(
        *("run", "--rm", "--entrypoint=python", image, "-c"),
        "import av, pathlib; print(*(p.name for p in (pathlib.Path(av.__file__).parents[1] / 'av.libs').iterdir()))",
    )
    notice = engine.run("run", "--rm", "--entrypoint=cat", image, "/app/NOTICE")
    bundled = {re.split(r"\W", name)[0] for name in listing.split()}
    ffmpeg = {name for name in bundled if name.startswith(("libav", "libsw"))}
    assert {"libavcodec", "libswscale"} <= ffmpeg and len(bundled) > 20
    assert bundled - ffmpeg <= set(re.findall(r"lib\w+", notice))


def test_a_killed_worker_comes_back(engine: Engine, image: str) -> None:
    with container(engine, image, *CONFINED, CONVSERVE_WORKERS="2") as running:
        kill_a_worker(running)
        ask_all(running.url)
        assert "convserve_worker_starts_total 3.0" in httpx.get(f"{running.url}/metrics").text


def test_its_counts_are_the_client_s_own_whatever_is_killed(engine: Engine, image: str, tmp_path: Path) -> None:
    repository = graphs.write_all(tmp_path / "repository")
    mount = f"--volume={repository}:/models:ro"
    with container(engine, image, *CONFINED, mount, CONVSERVE_REPOSITORY="/models", CONVSERVE_WORKERS="2") as running:

        def ask(_: int) -> int:
            return httpx.post(f"{running.url}/classify", content=grey_png(7), timeout=30).status_code

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(200)))
            kill_a_worker(running)
            answers += pool.map(ask, range(200))
        assert answers == [200] * 400
        assert (
            'convserve_requests_total{endpoint="/classify",status="200"} 400.0'
            in httpx.get(f"{running.url}/metrics").text
        )


def test_it_is_stopped_under_load_without_a_loss(engine: Engine, image: str, tmp_path: Path) -> None:
    repository = graphs.write_all(tmp_path / "repository")
    mount = f"--volume={repository}:/models:ro"
    with container(engine, image, *CONFINED, mount, CONVSERVE_REPOSITORY="/models", CONVSERVE_WORKERS="2") as running:
        stopping: list[subprocess.Popen[bytes]] = []

        def stop() -> None:
            command = [str(engine.client), "stop", f"--time={STOP_SECONDS}", running.name]
            stopping.append(subprocess.Popen(command, env=engine.environment(), stdout=subprocess.DEVNULL))

        seen = update(running.port, stop, running.status)
        stopping[0].wait(timeout=STOP_SECONDS + 30)
    assert_nothing_was_lost(seen)


def test_a_setting_that_makes_no_sense_is_named(engine: Engine, image: str) -> None:
    done = engine.attempt("run", "--rm", *CONFINED, "--env=CONVSERVE_WORKERS=many", image)
    assert done.returncode == 1
    assert "convserve does not start: CONVSERVE_WORKERS" in done.stdout + done.stderr


def test_a_bento_s_container_answers_and_replaces_a_killed_worker(engine: Engine, bento_image: str) -> None:
    with container(engine, bento_image, CONVSERVE_WORKERS="2") as running:
        ask_all(running.url)
        kill_a_worker(running)
        ask_all(running.url)
