import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # BentoML's own, raised while it is imported
    import bentoml

    assert bentoml.SyncHTTPClient

from tests import graphs
from tests.batching import Bench, Make
from tests.serving import Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers with the four tiny models, whose answers are known by hand; limits as they are by default."""
    folder = tmp_path_factory.mktemp("server")
    repository = graphs.write_all(folder / "repository")
    with serving(folder / "log", repository=str(repository), workers="2") as running:
        yield running


@pytest.fixture(scope="session")
def narrow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker with limits so low that every one of them can be provoked."""
    folder = tmp_path_factory.mktemp("narrow")
    repository = graphs.write_all(folder / "repository")
    with serving(
        folder / "log",
        repository=str(repository),
        workers="1",
        queue_samples="2",
        timeout_ms="5000",
        body_timeout_ms="1500",
        max_body_bytes="200000",
        max_files="3",
        max_pixels="10000",
        max_frame_pixels="5000",
        max_frames="40",
        max_seconds="2",
        max_channels="2",
    ) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as opened:
        yield opened


@pytest.fixture
def narrow(narrow_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=narrow_server.url, timeout=30) as opened:
        yield opened


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """So that sums come out the same in every run."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[Bench] = []

    async def build(**options: Any) -> Bench:
        made.append(Bench(**options))
        return made[-1]

    yield build
    for bench in made:
        bench.engine.gate.set()
        await bench.batcher.close()
        assert not any(bench.counts), "something admitted was never released"
