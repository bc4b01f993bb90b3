"""Starts a contestant, waits until it answers right, and ends it with every process that it has started."""

import ctypes
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.contestants import CONVSERVE, Contestant, Post
from benchmarks.networks import WORK, Network
from benchmarks.stages import Answer, Setup

START_SECONDS = 180
_STOP_SECONDS = 5  # LitServe would take 30
_ANSWER_SECONDS = 60
_SCORES_DIFFER = 1e-3
_PORTS = 3  # TorchServe listens on three
_ADOPT_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER, see prctl(2)


class NotServing(Exception):
    """A contestant does not start, or does not answer right; the message says how it ended."""


@dataclass(frozen=True)
class Server:
    contestant: Contestant
    port: int
    process: psutil.Process
    start_seconds: float
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


@contextmanager
def serving(
    contestant: Contestant, network: Network, setup: Setup, expected: Answer, **settings: str
) -> Iterator[Server]:
    """``contestant`` with ``network`` until the block ends; ``settings`` are further environment variables.

    Raises ``NotServing`` unless it answers the network's body as ``expected`` within ``START_SECONDS``.
    """
    folder = WORK / "run" / contestant.name  # what it writes, it writes there
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{network.name}.log"
    _adopt_orphans()
    others = _descendants()
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(contestant.python), "-m", contestant.module],
            cwd=contestant.root if contestant.module == CONVSERVE.module else folder,
            env=_environment(contestant, setup, network, settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        post = contestant.post(network)
        _wait_until_right(process, contestant, f"http://127.0.0.1:{setup.port}", post, expected, log)
        yield Server(contestant, setup.port, psutil.Process(process.pid), time.monotonic() - began, log)
    finally:
        _end(process, others)


def free_ports() -> int:
    """The first of a few neighbouring ports on which nobody listens."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first: int = probe.getsockname()[1]
        with suppress(OSError, OverflowError):
            for port in range(first, first + _PORTS):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first


def ask(url: str, post: Post) -> bytes:
    """The answer's body. Raises ``OSError``, of which HTTP's refusals are a kind."""
    request = urllib.request.Request(url + post.path, post.body, dict(post.headers), method="POST")
    with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as response:
        content: bytes = response.read()
    return content


def same(answer: Answer, expected: Answer) -> bool:
    """Labels in their order, and scores but for rounding; masks as they are."""
    return len(answer) == len(expected) and all(
        ours["label"] == theirs["label"]
        and abs(ours["score"] - theirs["score"]) < _SCORES_DIFFER
        and ours.get("mask") == theirs.get("mask")
        for ours, theirs in zip(answer, expected, strict=True)
    )


def _environment(contestant: Contestant, setup: Setup, network: Network, settings: dict[str, str]) -> dict[str, str]:
    """This process's without what might change the service; both ways of telling a server what to do."""
    kept = {key: value for key, value in os.environ.items() if "CONVSERVE" not in key and "PROMETHEUS" not in key}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    ours = {"HOST": "127.0.0.1", "PORT": str(setup.port), "CONVSERVE_REPOSITORY": str(network.repository)}
    ours["CONVSERVE_DEVICE"] = "cpu"
    return {**kept, "PYTHONPATH": str(contestant.root), **threads, **ours, **setup.environment(), **settings}


def _wait_until_right(
    process: subprocess.Popen[bytes], contestant: Contestant, url: str, post: Post, expected: Answer, log: Path
) -> None:
    until = time.monotonic() + START_SECONDS
    problem = "it did not listen"
    while time.monotonic() < until:
        if process.poll() is not None:
            raise NotServing(f"it ended with {process.returncode}: {_last_words(log)}")
        try:
            answer = contestant.read(ask(url, post))
        except urllib.error.HTTPError as error:
            problem = f"it answered {error.code}: {error.read()[-300:].decode(errors='replace')}"
        except (OSError, ValueError, LookupError, TypeError) as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            if not same(answer, expected):
                raise NotServing(f"it answers {str(answer)[:300]} where {str(expected)[:300]} is right")
            return
        time.sleep(0.05)
    raise NotServing(f"it was not ready after {START_SECONDS} s: {problem}; {_last_words(log)}")


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "it said nothing"


def _adopt_orphans() -> None:
    """Processes whose parent ends become our children, so that a server that leaves some behind cannot lose them."""
    ctypes.CDLL(None).prctl(_ADOPT_ORPHANS, 1)


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _end(process: subprocess.Popen[bytes], others: set[psutil.Process]) -> None:
    """By process ids: the server is asked; what is left after that of what it started is killed. ``others`` were there
    before."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    psutil.wait_procs(_started(process, others), timeout=_STOP_SECONDS)
    left = _started(process, others)
    for child in left:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(left, timeout=_STOP_SECONDS)
    process.kill()
    process.wait()


def _started(process: subprocess.Popen[bytes], others: set[psutil.Process]) -> set[psutil.Process]:
    """But for itself, which only ``subprocess`` may wait for."""
    return {child for child in _descendants() - others if child.pid != process.pid}
