"""A Docker engine, the images built by it, and containers confined as docs/deployment.md advises."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.serving import ROOT, free_port

BASE_IMAGE = "python:3.11-slim-bookworm"  # the Dockerfile's own default
BENTO_BASE_IMAGE = "python:3.11-slim"  # BentoML's
STAND_IN = "convserve-stand-in-base"
CONFINED = ("--read-only", "--tmpfs=/tmp:size=64m", "--cap-drop=ALL", "--security-opt=no-new-privileges")
_START_SECONDS = 90


@dataclass(frozen=True)
class Engine:
    client: Path
    host: str | None  # as DOCKER_HOST; None for the client's own choice

    def environment(self) -> dict[str, str]:
        """In which `docker` is a client that can build, and speaks to this engine."""
        path = os.pathsep.join([str(self.client.parent), os.environ.get("PATH", "")])
        host = {"DOCKER_HOST": self.host} if self.host else {}
        return {**os.environ, **host, "PATH": path, "DOCKER_BUILDKIT": "1"}

    def run(self, *arguments: str, timeout: float = 120, stdin: str | None = None) -> str:
        """What `docker ARGUMENTS` prints; raises what it complains of."""
        done = self.attempt(*arguments, timeout=timeout, stdin=stdin)
        if done.returncode:
            raise RuntimeError(f"docker {' '.join(arguments)}:\n{(done.stdout + done.stderr)[-4000:]}")
        return done.stdout.strip()

    def attempt(
        self, *arguments: str, timeout: float = 120, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.client), *arguments],
            cwd=ROOT,
            env=self.environment(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("inspect", name))[0]
        return found

    def has(self, image: str) -> bool:
        """At hand, or pulled now."""
        if self.attempt("image", "inspect", image).returncode == 0:
            return True
        try:
            return self.attempt("pull", "--quiet", image, timeout=300).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def build(self, target: str, tag: str, base: str) -> None:
        """docker/Dockerfile, behind whatever certificate authority this process's own pip is behind."""
        authority = certificates()
        secret = [f"--secret=id=ca,src={authority}"] if authority else []
        arguments = ["--network=host", f"--build-arg=BASE_IMAGE={base}", f"--target={target}", f"--tag={tag}", *secret]
        self.run("build", "--file=docker/Dockerfile", *arguments, ".", timeout=1200)


@dataclass(frozen=True)
class Container:
    engine: Engine
    name: str
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def status(self) -> int | None:
        """What it ended with; None while it runs."""
        state = self.engine.inspect(self.name)["State"]
        return None if state["Running"] else int(state["ExitCode"])

    def log(self) -> str:
        done = self.engine.attempt("logs", "--tail=60", self.name)
        return done.stdout + done.stderr

    def python(self, code: str) -> str:
        """What ``code`` prints inside."""
        return self.engine.run("exec", self.name, "python", "-c", code)

    def workers(self) -> list[int]:
        """Process ids, as they are inside."""
        return [int(pid) for pid in self.python(_WORKERS).split()]


_WORKERS = """
from pathlib import Path
for process in Path("/proc").glob("[0-9]*"):
    if b"\\0_bentoml_impl.worker.service\\0" in (process / "cmdline").read_bytes():
        print(process.name)
"""


def find_client() -> Path | None:
    """A `docker` with which BuildKit builds: one with its buildx, or one so old that it brings its own."""
    for folder in os.get_exec_path():
        client = Path(folder) / "docker"
        if not os.access(client, os.X_OK):
            continue
        version = subprocess.run([client, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
        buildx = subprocess.run([client, "buildx", "version"], capture_output=True, timeout=30, check=False)
        if buildx.returncode == 0 or version.startswith(("Docker version 19.", "Docker version 20.")):
            return client
    return None


def certificates() -> str | None:
    """The authorities that this process trusts, if it was told which."""
    return os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")


@contextmanager
def daemon(client: Path, folder: Path) -> Iterator[Engine]:
    """An engine of our own, all of it in ``folder``; for root."""
    program = shutil.which("dockerd")
    assert program
    engine = Engine(client, f"unix://{folder}/socket")
    arguments = [f"--data-root={folder}/data", f"--exec-root={folder}/run", f"--pidfile={folder}/pid"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, f"--host={engine.host}", *arguments], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while engine.attempt("info").returncode:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"dockerd did not start:\n{(folder / 'log').read_text()[-4000:]}")
            time.sleep(0.5)
        yield engine
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextmanager
def container(engine: Engine, image: str, *options: str, **variables: str) -> Iterator[Container]:
    """``image`` until the block ends, answering on a port of this machine's own."""
    port = free_port()
    environment = [f"--env={name}={value}" for name, value in variables.items()]
    name = engine.run("run", "--detach", f"--publish=127.0.0.1:{port}:3000", *environment, *options, image)
    running = Container(engine, name, port)
    try:
        _wait_until_ready(running)
        yield running
    finally:
        engine.run("rm", "--force", "--volumes", name)


def _wait_until_ready(running: Container) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and running.status() is None:
        try:
            if httpx.get(f"{running.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the container did not start:\n{running.log()}")
