"""What every scenario does: start a server that answers right, load it, and look at what it holds."""

import math
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass

import psutil

from benchmarks import load
from benchmarks.contestants import CONVSERVE, Contestant, Post
from benchmarks.networks import Network
from benchmarks.servers import Server, free_ports, serving
from benchmarks.stages import Setup, Stages

WARM_SECONDS, WARM_CONNECTIONS = 1, 16
_MOST_LEFT_SECONDS = 10.0


@dataclass(frozen=True)
class Plan:
    """``contestants`` may include ``limit``; ``rounds`` and the rest as the command's options say."""

    contestants: Sequence[str]
    networks: Sequence[Network]
    connections: Sequence[int]
    cores: int
    rounds: int
    seconds: int
    answers: int
    overload_seconds: int


def started(contestant: Contestant, network: Network, cores: int, **settings: str) -> AbstractContextManager[Server]:
    """As ``serving``, on ports that are free, with the answer that the same stages give here."""
    setup = Setup(network.folder, free_ports(), cores, network.max_batch)
    expected = Stages(network.folder).answers([network.body])[0]
    return serving(contestant, network, setup, expected, **settings)


def warm(server: Server, post: Post) -> None:
    loaded(server, post, WARM_CONNECTIONS, WARM_SECONDS)


def loaded(server: Server, post: Post, connections: int, seconds: int) -> dict[str, float]:
    """Ends when the server is likely to have done all: some go on with what nobody waits for any more, and it would be
    in the way of the next load."""
    before = batches_so_far(server)
    done = load.measure(server.url + post.path, post.body, post.headers, connections=connections, seconds=seconds)
    time.sleep(min(_MOST_LEFT_SECONDS, connections / max(1.0, done.requests_per_second)))
    samples, batches = (after - first for after, first in zip(batches_so_far(server), before, strict=True))
    values = vars(done) | ({"batch": samples / batches} if batches else {})
    return {name: value for name, value in values.items() if math.isfinite(value)}


@contextmanager
def stopped(servers: Sequence[Server]) -> Iterator[None]:
    """All their processes, until the block ends."""
    for server in servers:
        _signal(server, psutil.Process.suspend)
    try:
        yield
    finally:
        for server in servers:
            _signal(server, psutil.Process.resume)


def _signal(server: Server, send: Callable[[psutil.Process], None]) -> None:
    for process in server.processes():
        with suppress(psutil.NoSuchProcess):
            send(process)


def batches_so_far(server: Server) -> tuple[float, float]:
    """Samples and batches that the service has run, by its own count; zeros for others."""
    if server.contestant.module != CONVSERVE.module:
        return 0.0, 0.0
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        series = response.read().decode()
    samples, batches = (
        sum(map(float, re.findall(rf"^convserve_batch_size_{name}{{[^}}]*}} (\S+)$", series, re.MULTILINE)))
        for name in ("sum", "count")
    )
    return samples, batches


def memory(server: Server, workers: int) -> dict[str, float]:
    """Megabytes: of all its processes (what they share counted once), and of the largest, which are the workers."""
    found = []
    for process in server.processes():
        try:
            found.append(process.memory_full_info())
        except psutil.Error:  # it has ended meanwhile
            continue
    largest = sorted(found, key=lambda info: info.rss)[-workers:]
    return {
        "all_pss_mb": sum(info.pss for info in found) / 1e6,
        "worker_pss_mb": max(info.pss for info in largest) / 1e6,
        "worker_rss_mb": max(info.rss for info in largest) / 1e6,
    }
