"""Nothing that runs here tells anybody that it does: seen by the system calls of real processes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests import graphs
from tests.serving import ROOT, free_port

_TRACE = ["strace", "-D", "-f", "-qq", "-e", "trace=connect"]
_SESSION = """
import importlib, sys
importlib.import_module(sys.argv[1])
import onnxruntime
onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
"""


@pytest.fixture(scope="module")
def traces() -> None:
    """Skips where system calls cannot be seen."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    if subprocess.run([*_TRACE, "-o", os.devnull, "true"], capture_output=True, timeout=30, check=False).returncode:
        pytest.skip("strace may not trace here")


def asked_elsewhere(log: Path) -> list[str]:
    """Calls that reach for another machine; a name is looked up by such a one, too."""
    return [
        line
        for line in log.read_text().splitlines()
        if re.search(r"AF_INET6?,", line) and not re.search(r'"(127\.|::1")|sin6?_port=htons\(0\)', line)
    ]


def silent(home: Path) -> dict[str, str]:
    """The environment of somebody who has never heard of these variables, in an empty home."""
    unset = {"ORT_DISABLE_TELEMETRY", "BENTOML_DO_NOT_TRACK", "BENTOML_HOME"}
    kept = {name: value for name, value in os.environ.items() if name not in unset and "CONVSERVE" not in name}
    return {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.parametrize("package", ["service", "models", "benchmarks", "tests"])
def test_onnx_runtime_keeps_no_record_and_asks_nobody(package: str, tmp_path: Path, traces: None) -> None:
    home, log, graph = tmp_path / "home", tmp_path / "log", tmp_path / "graph.onnx"
    home.mkdir()
    graph.write_bytes(graphs.grey_classifier())
    subprocess.run(
        [*_TRACE, "-o", str(log), sys.executable, "-c", _SESSION, package, str(graph)],
        cwd=ROOT,
        env=silent(home),
        check=True,
        timeout=60,
    )
    assert list(home.iterdir()) == []
    assert asked_elsewhere(log) == []


def test_bentoml_itself_starts_the_service_without_a_word_to_anybody(tmp_path: Path, traces: None) -> None:
    home, log, port = tmp_path / "home", tmp_path / "log", free_port()
    home.mkdir()
    settings = {
        "CONVSERVE_REPOSITORY": str(graphs.write_all(tmp_path / "repository")),
        "CONVSERVE_WORKERS": "1",
        "CONVSERVE_DEVICE": "cpu",
    }
    command = ["bentoml", "serve", "service.app:ConvServe", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [*_TRACE, "-o", str(log), sys.executable, "-m", *command],
        cwd=ROOT,
        env={**silent(home), **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 90
        while time.monotonic() < until and process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        else:
            pytest.fail("it did not start")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    assert "connect(" in log.read_text()
    assert asked_elsewhere(log) == []
