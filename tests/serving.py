"""A real server in a process of its own, as an operator starts it; bounded in time and ended by its process id."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
_START_SECONDS = 90


@dataclass
class Server:
    url: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if int(parent) == self.process.pid and b"worker.service" in command:
                    found.append(int(entry.name))
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(settings: Mapping[str, str], port: int) -> dict[str, str]:
    """This process's, without any setting of ours in it."""
    kept = {key: value for key, value in os.environ.items() if "CONVSERVE" not in key and "PROMETHEUS" not in key}
    return {**kept, "HOST": "127.0.0.1", "PORT": str(port), "CONVSERVE_DEVICE": "cpu", **settings}


@contextmanager
def serving(log: Path, variables: Mapping[str, str] | None = None, **settings: str) -> Iterator[Server]:
    """``python -m service`` until the block ends. Settings are named without their prefix, in lower case.

    ``variables`` are other ones of its environment.
    """
    port = free_port()
    named = {f"CONVSERVE_{name.upper()}": value for name, value in settings.items()}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            cwd=ROOT,
            env={**environment(named, port), **(variables or {})},
            stdout=output,
            stderr=output,
        )
    server = Server(f"http://127.0.0.1:{port}", port, process, log)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(server: Server) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if server.process.poll() is not None:
            break
        try:
            if httpx.get(f"{server.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise RuntimeError(f"the server did not start:\n{server.log.read_text()[-4000:]}")


def start_and_fail(**settings: str) -> tuple[int, str]:
    """Starts a server that must refuse to; its exit status and what it printed."""
    named = {f"CONVSERVE_{name.upper()}": value for name, value in settings.items()}
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=ROOT,
        env=environment(named, free_port()),
        capture_output=True,
        timeout=_START_SECONDS,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).decode()
